"""Near pairs: complete and exact against brute force, and quick where many texts are the same."""

import random
import time
from itertools import combinations

import numpy as np
import pytest

from gemma_colab.data.likeness import MAX_TWINS, clusters, jaccard, near_pairs, normalize, sameness, shingles

WORDS = """дом река окно небо трава книга стол море город улица ветер камень лес поезд письмо чай сахар масло врач школа мост завод
театр парк рынок песня зима лето утро ночь order parcel refund garden window summer letter bridge doctor sugar river market""".split()


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def varied(seed, texts=60):
    """Texts of 3 to 40 words, each with a few variants in which some words are changed."""
    rng, made = random.Random(seed), []
    for _ in range(texts):
        words = sentence(rng, rng.randint(3, 40)).split()
        made.append(" ".join(words))
        for _ in range(4):
            changed = [rng.choice(WORDS) if rng.random() < rng.choice((0.03, 0.08, 0.2)) else word for word in words]
            made.append(" ".join(changed))
    rng.shuffle(made)
    return made


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.72, 0.9])
def test_against_brute_force(threshold):
    sets = [shingles(text) for text in varied(7)]
    true = {(b, a): s for a, b in combinations(range(len(sets)), 2) if (s := jaccard(sets[a], sets[b])) >= threshold}
    found = {(row, earlier): similarity for row, earlier, similarity in near_pairs(sets, threshold)}
    assert len(true) > 50
    assert found.keys() <= true.keys()  # nothing that is not near
    assert all(similarity == pytest.approx(true[pair]) for pair, similarity in found.items())
    # A text that stood earlier is paired with its first place only, so texts in equal groups are compared as groups.
    first = {}
    own = [first.setdefault(s.tobytes(), i) for i, s in enumerate(sets)]
    wanted = {pair for pair in true if own[pair[0]] == pair[0] and own[pair[1]] == pair[1]}
    assert len(wanted & found.keys()) >= 0.97 * len(wanted)
    # ... and what is one group is found as one group
    assert sum(map(len, clusters(len(sets), list(found)))) == len(sets)


def test_pairs_are_sorted_and_point_back():
    pairs = near_pairs([shingles(text) for text in varied(3)], 0.6)
    assert pairs == sorted(pairs)
    assert all(earlier < row for row, earlier, _ in pairs)
    assert len({pair[:2] for pair in pairs}) == len(pairs)


def test_empty_texts_are_like_no_other():
    texts = ["", "...", "Где мой заказ сейчас?", "!", "Где мой заказ сейчас", ""]
    assert near_pairs([shingles(text) for text in texts], 0.5) == [(4, 2, 1.0)]
    assert near_pairs([], 0.5) == []
    assert near_pairs([shingles("")], 0.5) == []
    assert near_pairs([shingles("да"), shingles("нет")], 0.5) == []


def test_copies_and_a_crowd_of_twins_are_not_compared_all_with_all():
    assert near_pairs([shingles("Ваш заказ передан в службу доставки")] * 3000, 0.72) == [(i, 0, 1.0) for i in range(1, 3000)]
    rng = random.Random(0)
    base = sentence(rng, 40)
    texts = [f"{base} {sentence(rng, 2)}" for _ in range(1500)]
    sets = [shingles(text) for text in texts]
    start = time.perf_counter()
    pairs = near_pairs(sets, 0.72)
    assert time.perf_counter() - start < 15
    assert len(pairs) < 1500 * MAX_TWINS
    assert len(clusters(len(sets), pairs)) == 1


@pytest.mark.parametrize(
    ("count", "pairs", "groups"),
    [
        (0, [], []),
        (3, [], [[0], [1], [2]]),
        (5, [(3, 1), (4, 3)], [[0], [1, 3, 4], [2]]),
        (4, [(1, 0), (1, 0), (3, 2), (2, 0)], [[0, 1, 2, 3]]),
        (3, [(2, 0, 0.9)], [[0, 2], [1]]),
    ],
)
def test_clusters(count, pairs, groups):
    assert clusters(count, pairs) == groups


# ---------------------------------------------------------------------------------------------------- text helpers
def test_shingles():
    assert normalize("  Ёлка, 12 шт.!") == "елка 12 шт"
    assert shingles("заказ 12").tolist() == shingles("Заказ 98!").tolist()  # digits are all alike
    assert len(shingles("да")) == 1
    assert len(shingles("...")) == 0
    assert len(shingles("абвгде")) == 2
    one = shingles("совсем одно и то же, совсем одно и то же")
    assert one.tolist() == sorted(set(one.tolist()))
    assert shingles("\ud800 половина знака") is not None


def test_jaccard():
    a, b = np.array([1, 2, 3], np.uint32), np.array([2, 3, 4], np.uint32)
    assert jaccard(a, b) == 0.5
    assert jaccard(a, a) == 1
    assert jaccard(a, a[:0]) == jaccard(a[:0], a[:0]) == 0


DIFFERENT = (
    "8 - 2|8 : 2|8-2|8:2|8 – 2|8 2|8×2|8÷2|a - b|a : b|a*b|a/b|+5|-5|T: -5|T: 5|C|C++|A|A-|1.5|15|1.5|1 5|1,5|15|10:30|10.30"
)
DIFFERENT += (
    "|1,000|1.000|5!|5|n!|n|(2+3)*4|2+(3*4)|f'(x)|f(x)|f(x)|fx|[1, 2]|(1, 2)|5'|5\"|.5|5|a.b|a b|rm -rf|rm rf|!x|x|x; y|x, y"
)
DIFFERENT += "|:)|:(|?|!|...|?|a?|a|2:1|2-1|кот : собака|кот - собака|a == b|a != b|→|←|\\d+|\\d*"
DIFFERENT = DIFFERENT.split("|")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Где мой заказ?", "где  мой заказ!", True),
        ("Ещё раз: USB-кабель", "еще раз usb кабель", True),
        ("«Да», — сказал он.", "Да сказал он", True),
        ("What is 2+2?", "What is 2*2?", False),
        ("What is 2 - 5", "What is 2 + 5", False),
        ("x > 5", "x < 5", False),
        ("T = -5", "T = 5", False),
        ("What is C++?", "What is C#?", False),
        ("😀", "😢", False),
        ("कि", "की", False),  # vowel signs are no letters to a regular expression
        ("100%", "100", False),
        ("Сколько будет 8 - 2?", "сколько будет 8 – 2", True),
        ("Что такое C++?", "что такое C++", True),
        ("Москва — столица.", "москва - столица", True),
        ("Hi (there), don’t go!", "hi there, don't go", True),
        ("- пункт\n- другой", "пункт\nдругой", True),
        ("Ответ: 5", "ответ 5.", True),
        ("😀", "😀!", True),
        *((one, other, False) for one, other in zip(DIFFERENT[::2], DIFFERENT[1::2], strict=True)),
    ],
)
def test_when_two_texts_are_the_same(one, other, same):
    assert (sameness(one) == sameness(other)) is same


def test_exactly_as_alike_as_asked_is_near():
    one, other = shingles("заказ уже в пути, ждите его завтра"), shingles("заказ уже в пути, ждите его сегодня")
    alike = jaccard(one, other)
    assert [pair[:2] for pair in near_pairs([one, other], alike)] == [(1, 0)]
    assert list(near_pairs([one, other], alike + 1e-9)) == []
