"""Splitting: seeded, sized, and nothing alike on both sides; and the check of a split for leaks."""

import random
from collections import Counter

import numpy as np
import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import answer, question, to_messages
from gemma_colab.data.splitting import PARTS, SplitSettings, alike, check_split, groups, leaks, split_rows, word_grams

WORDS = """дом река окно небо трава книга стол море город улица ветер камень лес поезд письмо чай сахар масло врач школа мост завод
театр парк рынок песня зима лето утро ночь""".split()


def row(instruction, output, input="", **more):
    return to_messages({"instruction": instruction, "input": input, "output": output} | more)


def different(n, seed=0, **more):
    rng = random.Random(seed)
    return [row(" ".join(rng.sample(WORDS, 6)), " ".join(rng.sample(WORDS, 6)), **more) for _ in range(n)]


def sizes(parts):
    return {part: len(rows) for part, rows in parts.items()}


def where(parts):
    return {str(r): part for part, rows in parts.items() for r in rows}


def test_seeded_complete_and_sized(support_rows):
    parts, how = split_rows(support_rows, SplitSettings(seed=3))
    assert list(parts) == list(PARTS)
    assert (parts, how) == split_rows(support_rows, SplitSettings(seed=3))
    assert parts != split_rows(support_rows, SplitSettings(seed=4))[0]
    assert sorted(map(str, sum(parts.values(), []))) == sorted(map(str, support_rows))
    assert len(parts["test"]) == round(0.15 * len(support_rows))
    assert len(parts["validation"]) == round(0.1 * len(support_rows))
    assert how.startswith(f"{len(support_rows)} rows in ")
    order = {str(r): i for i, r in enumerate(support_rows)}
    assert all([order[str(r)] for r in rows] == sorted(order[str(r)] for r in rows) for rows in parts.values())


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.15), (0.02, 0.4), (0.4, 0.02), (0.25, 0.25)])
def test_the_sizes_are_those_asked_for(validation, test):
    parts, _ = split_rows(different(200), SplitSettings(validation_size=validation, test_size=test))
    assert sizes(parts) == {"train": 200 - round(200 * (validation + test)), "validation": 200 * validation, "test": 200 * test}


@pytest.mark.parametrize("n", [3, 5, 12])
def test_small_sets_fill_every_part(n):
    for seed in range(5):
        parts, how = split_rows(different(n, seed), SplitSettings(seed=seed))
        assert sum(sizes(parts).values()) == n
        assert min(sizes(parts).values()) >= 1
        assert len(parts["train"]) >= max(map(len, parts.values()))
        assert "rows alike in question, answer or as a whole stay together" in how
        assert f"only {len(parts['validation'])} validation rows" in how


@pytest.mark.parametrize("rows", [[], different(1), different(2), [*different(2), different(2)[1] | {"line": 3}]])
def test_fewer_than_three_groups_cannot_be_split(rows):
    with pytest.raises(
        DatasetError, match=rf"{len(rows)} rows make \d group\(s\) of look-alikes, too few for train.* add different rows"
    ):
        split_rows(rows, SplitSettings())


def test_small_sets_keep_twins_together_too():
    rows = different(5)
    rows.append(row(question(rows[0]) + " сегодня", answer(rows[0]) + " да"))
    for seed in range(20):
        parts = split_rows(rows, SplitSettings(seed=seed))[0]
        assert where(parts)[str(rows[0])] == where(parts)[str(rows[5])]


# ---------------------------------------------------------------------------------------------------- look-alikes
LONG = "Ваш заказ передан в службу доставки и прибудет в течение трёх рабочих дней, отследить его можно в личном кабинете"
A, B = different(2, seed=99)
TWINS = {
    "question": (row(question(A), answer(A)), row(question(A) + " скорее", answer(B))),
    "long answer": (row(question(A), LONG + "."), row(question(B), LONG + " на сайте.")),
    "13 words": (row(question(A), f"{answer(A)} {LONG}"), row(question(B), f"{LONG} {' '.join(WORDS[:20])}")),
    "input": (row("Ответь", answer(A), input=question(A)), row("Ответь", answer(B), input=question(A) + " да")),
    "conversation": (A | {"conversation": "c"}, B | {"conversation": "c"}),
}


@pytest.mark.parametrize("name", TWINS)
def test_groups_are_never_on_both_sides(name):
    one, other = TWINS[name]
    rows = [one, *different(58, seed=1), other]
    assert [0, 59] in groups(rows)[0]
    for seed in range(10):
        parts = where(split_rows(rows, SplitSettings(seed=seed, test_size=0.4))[0])
        assert parts[str(one)] == parts[str(other)]


def test_strangers_are_in_no_group():
    rows = [A, *different(58, seed=1), B]
    assert [len(group) for group in groups(rows)[0]] == [1] * 60
    assert [len(group) for group in groups([r | {"conversation": str(i)} for i, r in enumerate(rows)])[0]] == [1] * 60


def test_the_threshold_of_a_group():
    one, other = TWINS["question"]
    rows = [one, *different(58, seed=1), other]
    assert len(groups(rows, threshold=0.6)[0]) == 59
    assert len(groups(rows, threshold=0.99)[0]) == 60


def test_every_group_of_many_stays_whole(support_rows):
    twins = [row(question(r) + " Срочно.", answer(r) + " Ждём.") for r in support_rows[:100]]
    parts, _ = split_rows(support_rows[:100] + twins, SplitSettings(seed=1))
    assert leaks(parts) == []
    assert [f.check for f in check_split(parts)] == []
    apart = {"train": support_rows[:100], "validation": twins[:1], "test": twins[1:3]}
    assert leaks(apart) == [("validation", 0, 0), ("test", 0, 1), ("test", 1, 2)]


@pytest.mark.parametrize("labels", [("positive", "negative"), ("да", "нет"), ("спам", "не спам")])
def test_equal_short_answers_do_not_tie(labels):
    rows = [row(question(r), labels[i % 2]) for i, r in enumerate(different(60))]
    found, why = groups(rows)
    assert len(found) == 60
    assert why == "rows alike in question, answer or as a whole stay together"


PROMPT = "Определи тональность отзыва и ответь одним словом, позитив или негатив, без пояснений и знаков препинания. "


@pytest.mark.parametrize("shape", ["instruction", "system"])
def test_a_shared_prompt_does_not_tie(shape):
    rows = different(40)
    if shape == "instruction":
        rows = [row(PROMPT * 3, answer(r), question(r)) for r in rows]
    else:
        rows = [row(question(r), answer(r), system=PROMPT * 3) for r in rows]
    assert len(groups(rows)[0]) == 40
    parts, _ = split_rows(rows, SplitSettings())
    assert sizes(parts) == {"train": 30, "validation": 4, "test": 6}
    assert leaks(parts) == []


def test_canned_answers_that_tie_everything_are_left_out():
    rows = [row(question(r), LONG) for r in different(40)]
    found, why = groups(rows)
    assert len(found) == 40
    assert why == "40 of 40 rows have answers alike, so only rows alike in question or as a whole stay together"
    few = [*rows[:12], *different(28, seed=5)]  # 12 of 40 are not more than 30 %
    assert max(map(len, groups(few)[0])) == 12
    assert max(map(len, groups(few, most=0.29)[0])) == 1
    assert sizes(split_rows(rows, SplitSettings())[0]) == {"train": 30, "validation": 4, "test": 6}


def test_questions_of_one_form_are_told_apart_by_their_numbers():
    rng = random.Random(0)
    rows = [row(f"What is {rng.randint(10, 99)} + {rng.randint(10, 99)}?", str(i)) for i in range(60)] * 2
    found, why = groups(rows)
    assert why == "120 of 120 rows are alike, so only rows with the same question stay together"
    assert len(found) == len({question(r) for r in rows})
    parts, _ = split_rows(rows, SplitSettings())
    questions = {part: {question(r) for r in parts[part]} for part in parts}
    assert not questions["train"] & (questions["test"] | questions["validation"])


TEMPLATE = "Сколько стоит доставка товара из города {} в город {} обычной почтой"


def template_rows(n, answers):
    rng = random.Random(7)
    return [row(TEMPLATE.format(*rng.sample(WORDS, 2)), answers[i]) for i in range(n)]


def near_twin(one):
    return row(question(one) + " да", answer(one) + " но")


@pytest.mark.parametrize("answers", ["other", "number"])
def test_near_duplicates_outside_a_chain_stay_together(answers):
    ones = different(60, seed=8)
    chain = template_rows(
        120, [answer(r) for r in different(120, seed=9)] if answers == "other" else [str(i) for i in range(120)]
    )
    rows = [*chain, *ones, *map(near_twin, ones)]
    found, _ = groups(rows)
    whose = {i: number for number, group in enumerate(found) for i in group}
    assert all(whose[120 + i] == whose[180 + i] for i in range(60))
    assert len({whose[i] for i in range(120, 240)}) == 60
    parts, _ = split_rows(rows, SplitSettings())
    assert sizes(parts)["test"] == 36
    texts = {id(r): i for i, r in enumerate(rows)}
    hits = [texts[id(r)] for part, number, _ in leaks(parts) if texts[id(r := parts[part][number])] >= 120]
    assert hits == []


def test_near_duplicates_inside_a_chain_stay_together():
    chain = template_rows(120, [answer(r) for r in different(120, seed=9)])
    twins = [row(question(r) + " сегодня", answer(r) + " но") for r in chain[:10]]
    found, why = groups([*chain, *twins])
    assert why.endswith("so only rows with the same question, or near as a whole, stay together")
    whose = {i: number for number, group in enumerate(found) for i in group}
    assert all(whose[i] == whose[120 + i] for i in range(10))
    assert len(found) > 60


def test_a_chain_of_rows_near_as_a_whole_is_untied_only_where_nothing_else_is_left():
    ones = different(3, seed=8)
    sums = [row(f"What is {i} + 7?", str(i + 7)) for i in range(10, 90)]
    found, why = groups([*sums, *ones, *map(near_twin, ones)])
    assert why == "80 of 86 rows are alike, so only rows with the same question stay together"
    assert sorted(map(len, found)) == [1] * 80 + [2] * 3
    found, _ = groups([*sums, *different(80, seed=2)])
    assert max(map(len, found)) == 80


def test_rows_without_words_that_are_the_same_stay_together():
    rows = [row("😀", "🎉"), *different(30), row("😀!", "🎉"), row("😀", "👍"), row("🐱", "🎉")]
    assert alike(rows) == alike(rows, answers=False) == {(31, 0)}


# ---------------------------------------------------------------------------------------------------- labels
def labelled(*counts):
    names = [f"l{i:02}" for i, n in enumerate(counts) for _ in range(n)]
    return [r | {"label": name} for r, name in zip(different(len(names)), names, strict=True)]


def test_labels_with_few_rows_count_as_one():
    parts, how = split_rows(labelled(*[1] * 100), SplitSettings())
    assert "; shares of 0 of 100 labels kept, 100 with fewer than 10 rows counted as one" in how
    assert sizes(parts) == {"train": 75, "validation": 10, "test": 15}
    parts, how = split_rows(labelled(60, 20, *[2] * 10), SplitSettings(validation_size=0.1, test_size=0.2))
    assert "; shares of 2 of 12 labels kept, 10 with fewer than 10 rows counted as one" in how
    assert Counter(min(r["label"], "l02") for r in parts["test"]) == {"l00": 12, "l01": 4, "l02": 4}
    assert Counter(min(r["label"], "l02") for r in parts["validation"]) == {"l00": 6, "l01": 2, "l02": 2}
    assert "shares of 2 labels kept" in split_rows(labelled(50, 50), SplitSettings(validation_size=0.02, test_size=0.3))[1]
    assert "shares of 1 of 2 labels kept" in split_rows(labelled(51, 49), SplitSettings(validation_size=0.02, test_size=0.3))[1]


def test_validation_and_test_do_not_favour_the_same_labels():
    parts, _ = split_rows(labelled(*[3] * 34), SplitSettings())
    tested, validated = ({r["label"] for r in parts[name]} for name in ("test", "validation"))
    assert not validated <= tested
    parts, how = split_rows(labelled(*[10] * 10), SplitSettings())
    assert "shares of 10 labels kept" in how
    assert sorted(Counter(r["label"] for r in parts["test"]).values()) == [1] * 5 + [2] * 5
    assert set(Counter(r["label"] for r in parts["validation"]).values()) == {1}


def test_shares_of_labels_are_kept():
    rows = [r | {"label": ["a"] * 6 + ["b"] * 3 + ["c"]} for r in different(200)]
    rows = [r | {"label": r["label"][i % 10]} for i, r in enumerate(rows)]
    parts, how = split_rows(rows, SplitSettings(validation_size=0.1, test_size=0.2, seed=2))
    assert Counter(r["label"] for r in parts["validation"]) == {"a": 12, "b": 6, "c": 2}
    assert Counter(r["label"] for r in parts["test"]) == {"a": 24, "b": 12, "c": 4}
    assert "shares of 3 labels kept" in how
    assert "labels" not in split_rows(different(200), SplitSettings())[1]


def test_more_labels_than_places():
    rows = [r | {"label": str(i)} for i, r in enumerate(different(40))]
    assert sizes(split_rows(rows, SplitSettings())[0]) == {"train": 30, "validation": 4, "test": 6}


@pytest.mark.parametrize(
    "group_sizes", [(1, 1, 1), (1, 1, 1, 1), (2, 2, 1), (5, 1, 1, 1), (4, 4, 4), (6, 1, 1), (1,) * 7, (9, 9, 1, 1, 1)]
)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_no_part_is_empty_whatever_the_groups(group_sizes, share):
    names = [f"c{i}" for i, size in enumerate(group_sizes) for _ in range(size)]
    rows = [r | {"conversation": name} for r, name in zip(different(len(names)), names, strict=True)]
    parts, _ = split_rows(rows, SplitSettings(validation_size=share, test_size=share))
    sides = [{r["conversation"] for r in part} for part in parts.values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(group_sizes)  # and none is on two
    assert sum(map(len, parts.values())) == len(names)


# ---------------------------------------------------------------------------------------------------- leaks
def split_of(held, part="test", train=(), fill=20):
    parts = {"train": [*different(30, seed=3), *train], "validation": different(fill, seed=4), "test": []}
    parts[part] = [*parts[part], *held]
    return parts


def said(parts, **thresholds):
    return [(f.check, f.severity, f.rows) for f in check_split(parts, **thresholds)]


def test_a_clean_split_says_nothing():
    assert said(split_of(different(9, seed=5))) == []


def test_an_exact_leak_is_an_error():
    parts = split_of([B, row(question(A).upper() + "?", answer(A) + ".")], train=[A])
    assert said(parts) == [("leak", "E", [21])]
    assert check_split(parts)[0].hits[0].note == "test row 1"
    parts = split_of([A], "validation", train=[A])
    assert said(parts) == [("leak", "E", [20])]
    assert check_split(parts)[0].hits[0].note == "validation row 20"


@pytest.mark.parametrize("name", ["question", "long answer", "13 words", "input"])
def test_a_near_leak_warns(name):
    one, other = TWINS[name]
    (finding,) = check_split(split_of([B | {"line": 1}, other], train=[one]))
    assert (finding.check, finding.severity, finding.rows[-1]) == ("leak", "W", 21)
    words = "shares 13 words in a row with training" if name == "13 words" else "is like train row 30"
    assert finding.hits[-1].note == f"test row 1 {words}"


def test_the_thresholds_of_a_leak():
    one, other = TWINS["question"]
    assert said(split_of([other], train=[one]), threshold=0.95) == []
    one, other = TWINS["13 words"]
    shared = len(LONG.split())
    assert said(split_of([other], train=[one]), n=shared) == [("leak", "W", [20])]
    assert said(split_of([other], train=[one]), n=shared + 1) == []


def test_another_sign_is_another_row():
    assert said(split_of([row("2*2", "4")], train=[row("2+2", "4")])) in ([], [("leak", "W", [20])])
    assert said(split_of([row("Which? C++", "Yes")], train=[row("Which? C#", "Yes")]))[:1] != [("leak", "E", [20])]


def test_a_row_of_validation_in_test_is_an_error():
    parts = split_of([B, row(question(A), answer(A) + "!")])
    parts["validation"].append(A)
    (finding,) = check_split(parts)
    assert (finding.check, finding.severity, finding.rows) == ("leak", "E", [22])
    assert finding.hits[0].note == "test row 1 stands in validation"
    assert leaks(parts) == [("test", 1, 30 + 20)]  # twins of validation are counted on from those of train
    parts["train"].append(A)  # found in both, it is told of training, and so is the row of validation
    assert [hit.note for hit in check_split(parts)[0].hits] == ["validation row 20", "test row 1"]


@pytest.mark.parametrize("name", ["question", "long answer", "13 words", "input"])
def test_a_near_row_of_validation_in_test_warns(name):
    one, other = TWINS[name]
    parts = split_of([B | {"line": 1}, other])
    parts["validation"].append(one)
    (finding,) = check_split(parts)
    assert (finding.check, finding.severity, finding.rows[-1]) == ("leak", "W", 22)
    words = "shares 13 words in a row with validation" if name == "13 words" else "is like validation row 20"
    assert finding.hits[-1].note == f"test row 1 {words}"


def test_words_in_a_row_are_looked_up_once_for_all_rows(monkeypatch):
    calls, isin = [], np.isin
    monkeypatch.setattr(np, "isin", lambda *args, **more: calls.append(len(args[0])) or isin(*args, **more))
    one, other = TWINS["13 words"]
    assert said(split_of([*different(200, seed=12), other], train=[one])) == [("leak", "W", [220])]
    assert len(calls) <= 2


@pytest.mark.parametrize(("n", "found"), [(15, True), (16, False)])
def test_a_small_validation_part(n, found):
    parts = split_of(different(5, seed=6), fill=n)
    assert said(parts) == ([("validation too small", "W", [])] if found else [])
    assert said(parts, few=n) == []
    assert said(parts, few=n + 1) == [("validation too small", "W", [])]


def test_empty_parts():
    assert said({"train": [], "validation": [], "test": []}) == [("validation too small", "W", [])]
    assert leaks({"train": [], "validation": [], "test": []}) == []


def test_word_grams():
    text = " ".join(WORDS[:14])
    assert len(word_grams(text)) == 2
    assert len(word_grams(" ".join(WORDS[:12]))) == 0
    assert word_grams(text.upper() + "!").tolist() == word_grams(text).tolist()
    assert word_grams(" ".join(WORDS[1:15]))[0] == word_grams(text)[1]
    assert len(word_grams(text, n=3)) == 12
