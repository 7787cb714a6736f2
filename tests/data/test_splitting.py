"""Splitting: seeded, sized, nothing that belongs together on both sides, and a leak is told."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.core.workspace import SPLITS, samples
from gemma_colab.data.cleaning import STEPS, clean
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows
from gemma_colab.data.splitting import SplitSettings, group_rows, leaks, split_rows

WORDS = """дом река окно небо трава книга стол море город улица ветер камень лес поезд письмо чай сахар масло врач школа мост завод
театр парк рынок песня зима лето утро ночь""".split()


def row(instruction, output, input="", **more):
    return to_messages({"instruction": instruction, "input": input, "output": output} | more)


def different(n, seed=0, **more):
    rng = random.Random(seed)
    return [row(" ".join(rng.sample(WORDS, 6)), " ".join(rng.sample(WORDS, 6)), **more) for _ in range(n)]


def twin(one, asked=" да", said=" но"):
    return row(question(one) + asked, answer(one) + said)


def sizes(splits):
    return {name: len(rows) for name, rows in splits.items()}


def where(splits):
    return {str(r): name for name, rows in splits.items() for r in rows}


def group_of(rows, **options):
    """Number of the row -> number of its group."""
    return {i: number for number, group in enumerate(group_rows(rows, **options)[0]) for i in group}


def test_the_samples_are_split_as_ever():
    """The figures of the lessons depend on it: lines of validation and test as version 1 dealt them, by seed."""
    before = json.loads((Path(__file__).parent / "splits_of_the_samples.json").read_text("utf-8"))
    cleaned, _ = clean(read_rows(samples() / "support_ru_raw.csv", on_bad="aside").rows, STEPS)
    sets = {"lesson": [r for r in cleaned if r["line"] not in before["lesson dropped"]]}
    sets |= {
        name: read_rows(samples() / f"{name}.jsonl").rows for name in ("support_ru", "support_en", "tickets_ru", "tickets_en")
    }
    for name, rows in sets.items():
        for seed in (0, 1):
            splits, _ = split_rows(rows, seed=seed)
            assert {part: [r["line"] for r in splits[part]] for part in SPLITS[1:]} == before[f"{name} {seed}"]


def test_seeded_complete_and_sized(support_rows):
    splits, notes = split_rows(support_rows, seed=3)
    assert list(splits) == list(SPLITS)
    assert (splits, notes) == split_rows(support_rows, seed=3)
    assert split_rows(support_rows[:60]) == split_rows(support_rows[:60], seed=0)
    assert splits != split_rows(support_rows, seed=4)[0]
    assert sorted(map(str, sum(splits.values(), []))) == sorted(map(str, support_rows))
    assert [len(splits[name]) for name in SPLITS[1:]] == [round(share * len(support_rows)) for share in (0.1, 0.15)]
    assert str(notes).startswith(f"{len(support_rows)} rows in ")
    order = {str(r): i for i, r in enumerate(support_rows)}
    assert all([order[str(r)] for r in rows] == sorted(order[str(r)] for r in rows) for rows in splits.values())


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.15), (0.02, 0.4), (0.4, 0.02), (0.25, 0.25)])
def test_the_sizes_are_those_asked_for(validation, test):
    splits, _ = split_rows(different(200), validation_size=validation, test_size=test)
    assert sizes(splits) == {"train": 200 - round(200 * (validation + test)), "validation": 200 * validation, "test": 200 * test}


def test_impossible_sizes_are_refused_and_the_settings_of_a_workspace_can_be_read(workspace):
    with pytest.raises(SettingsError, match=r"test_size=0.9 must be a number from 0.02 to 0.4"):
        split_rows(different(200), test_size=0.9)
    workspace.write_json("split_settings.json", {"validation_size": 0.1, "test_size": 0.2, "seed": 3})
    assert SplitSettings.load(workspace) == SplitSettings(test_size=0.2, seed=3)


@pytest.mark.parametrize("n", [3, 5, 12])
def test_small_sets_fill_every_split(n):
    for seed in range(5):
        splits, notes = split_rows(different(n, seed), seed=seed)
        assert sum(sizes(splits).values()) == n
        assert min(sizes(splits).values()) >= 1
        assert len(splits["train"]) >= max(sizes(splits).values())
        assert "rows alike in question, answer or as a whole stay together" in notes.sentence
        assert f"only {len(splits['validation'])} validation rows" in notes.sentence


@pytest.mark.parametrize("rows", [[], different(1), different(2), [*different(2), different(2)[1] | {"line": 3}]])
def test_fewer_than_three_groups_cannot_be_split(rows):
    with pytest.raises(
        DatasetError, match=rf"{len(rows)} rows make \d group\(s\) of look-alikes, too few for train.* add different rows"
    ):
        split_rows(rows)


@pytest.mark.parametrize(
    "group_sizes", [(1, 1, 1), (1, 1, 1, 1), (2, 2, 1), (5, 1, 1, 1), (4, 4, 4), (6, 1, 1), (1,) * 7, (9, 9, 1, 1, 1)]
)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_no_split_is_empty_whatever_the_groups(group_sizes, share):
    names = [f"c{i}" for i, size in enumerate(group_sizes) for _ in range(size)]
    rows = [r | {"conversation": name} for r, name in zip(different(len(names)), names, strict=True)]
    sides = [{r["conversation"] for r in some} for some in split_rows(rows, validation_size=share, test_size=share)[0].values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(group_sizes)  # and none is on two


# ---------------------------------------------------------------------------------------------------- look-alikes
LONG = "Ваш заказ передан в службу доставки и прибудет в течение трёх рабочих дней, отследить его можно в личном кабинете"
A, B = different(2, seed=99)
TWINS = {
    "question": (A, row(question(A) + " скорее", answer(B))),
    "long answer": (row(question(A), LONG + "."), row(question(B), LONG + " на сайте.")),
    "13 words": (row(question(A), f"{answer(A)} {LONG}"), row(question(B), f"{LONG} {' '.join(WORDS[:20])}")),
    "input": (row("Ответь", answer(A), input=question(A)), row("Ответь", answer(B), input=question(A) + " да")),
    "conversation": (A | {"conversation": "c"}, B | {"conversation": "c"}),
    "customer": (A | {"customer": "c"}, B | {"customer": "c"}),
    "emoji": (row("😀", "🎉"), row("😀!", "👍")),
}


@pytest.mark.parametrize("name", TWINS)
def test_what_belongs_together_is_never_on_both_sides(name):
    one, other = TWINS[name]
    rows = [one, *different(58, seed=1), other]
    groups = "customer" if name == "customer" else None
    assert [0, 59] in group_rows(rows, groups=groups)[0]
    for seed in range(10):
        splits = where(split_rows(rows, seed=seed, test_size=0.4, groups=groups)[0])
        assert splits[str(one)] == splits[str(other)]


def test_strangers_are_in_no_group():
    rows = [A, *different(58, seed=1), B, row("🐱", "🎉")]
    for some in (rows, [r | {"conversation": str(i)} for i, r in enumerate(rows)]):
        assert [len(group) for group in group_rows(some)[0]] == [1] * 61
    with pytest.raises(SettingsError, match=r"groups='client' is a key of no row.*'conversation': 'client'"):
        split_rows(rows, groups="client")


@pytest.mark.parametrize(
    ("name", "options"),
    [("question", {"near": 0.99, "twin": 0.99}), ("13 words", {"shared_words": 40}), ("long answer", {"long_answer": 999, "shared_words": 99})],
)  # fmt: skip
def test_the_thresholds_are_parameters(name, options):
    rows = [TWINS[name][0], *different(58, seed=1), TWINS[name][1]]
    assert len(group_rows(rows)[0]) == 59
    assert len(group_rows(rows, **options)[0]) == 60


def test_small_sets_keep_twins_together_too():
    rows = [*different(5), twin(different(5)[0])]
    for seed in range(20):
        splits = where(split_rows(rows, seed=seed)[0])
        assert splits[str(rows[0])] == splits[str(rows[5])]


@pytest.mark.parametrize("labels", [("positive", "negative"), ("да", "нет"), ("спам", "не спам")])
def test_equal_short_answers_do_not_tie(labels):
    found, why = group_rows([row(question(r), labels[i % 2]) for i, r in enumerate(different(60))])
    assert len(found) == 60
    assert why == "rows alike in question, answer or as a whole stay together"


PROMPT = "Определи тональность отзыва и ответь одним словом, позитив или негатив, без пояснений и знаков препинания. "


@pytest.mark.parametrize("shape", ["instruction", "system"])
def test_a_shared_prompt_does_not_tie(shape):
    if shape == "instruction":
        rows = [row(PROMPT * 3, answer(r), question(r)) for r in different(40)]
    else:
        rows = [row(question(r), answer(r), system=PROMPT * 3) for r in different(40)]
    assert len(group_rows(rows)[0]) == 40
    splits, notes = split_rows(rows)
    assert sizes(splits) == {"train": 30, "validation": 4, "test": 6}
    assert [f.check for f in notes.findings] == ["validation too small"]


def test_canned_answers_that_tie_everything_are_left_out():
    rows = [row(question(r), LONG) for r in different(40)]
    found, why = group_rows(rows)
    assert len(found) == 40
    assert why == "40 of 40 rows are alike, so only rows alike in question or as a whole stay together"
    few = [*rows[:12], *different(28, seed=5)]  # 12 of 40 are not more than 30 %
    assert max(map(len, group_rows(few)[0])) == 12
    assert max(map(len, group_rows(few, largest_group=0.29)[0])) == 1
    assert sizes(split_rows(rows)[0]) == {"train": 30, "validation": 4, "test": 6}


def test_of_a_few_rows_no_question_is_ever_parted_from_one_like_it():
    few = [row(f"What is {i} + 7?", str(i + 7)) for i in range(10, 18)]
    why = "8 of 8 rows are alike, so only rows alike in question or as a whole stay together"
    assert group_rows(few) == ([list(range(8))], why)


def test_questions_of_one_form_are_told_apart_by_their_numbers():
    rng = random.Random(0)
    rows = [row(f"What is {rng.randint(10, 99)} + {rng.randint(10, 99)}?", str(i)) for i in range(60)] * 2
    found, why = group_rows(rows)
    assert why == "120 of 120 rows are alike, so only rows with the same question stay together"
    assert len(found) == len({question(r) for r in rows})
    asked = {name: {question(r) for r in some} for name, some in split_rows(rows)[0].items()}
    assert not asked["train"] & (asked["test"] | asked["validation"])


def template_rows(n, answers):
    rng = random.Random(7)
    form = "Сколько стоит доставка товара из города {} в город {} обычной почтой"
    return [row(form.format(*rng.sample(WORDS, 2)), said) for said in answers[:n]]


@pytest.mark.parametrize("answers", ["other", "number"])
def test_near_duplicates_outside_a_chain_stay_together(answers):
    ones = different(60, seed=8)
    said = [answer(r) for r in different(120, seed=9)] if answers == "other" else [str(i) for i in range(120)]
    rows = [*template_rows(120, said), *ones, *map(twin, ones)]
    groups = group_of(rows)
    assert all(groups[120 + i] == groups[180 + i] for i in range(60))
    assert len({groups[i] for i in range(120, 240)}) == 60
    splits, _ = split_rows(rows)
    assert sizes(splits)["test"] == 36
    assert all(where(splits)[str(one)] == where(splits)[str(twin(one))] for one in ones)


def test_near_duplicates_inside_a_chain_stay_together():
    chain = template_rows(120, [answer(r) for r in different(120, seed=9)])
    rows = [*chain, *(twin(r, " сегодня") for r in chain[:10])]
    assert group_rows(rows)[1].endswith("so only rows with the same question, or near as a whole, stay together")
    groups = group_of(rows)
    assert all(groups[i] == groups[120 + i] for i in range(10))
    assert len(set(groups.values())) > 60


def test_a_chain_of_rows_near_as_a_whole_is_untied_only_where_nothing_else_is_left():
    ones = different(3, seed=8)
    sums = [row(f"What is {i} + 7?", str(i + 7)) for i in range(10, 90)]
    found, why = group_rows([*sums, *ones, *map(twin, ones)])
    assert why == "80 of 86 rows are alike, so only rows with the same question stay together"
    assert sorted(map(len, found)) == [1] * 80 + [2] * 3
    assert max(map(len, group_rows([*sums, *different(80, seed=2)])[0])) == 80


# ---------------------------------------------------------------------------------------------------- labels
def labeled(*counts):
    names = [f"l{i:02}" for i, n in enumerate(counts) for _ in range(n)]
    return [r | {"label": name} for r, name in zip(different(len(names)), names, strict=True)]


@pytest.mark.parametrize(
    ("counts", "shares", "said"),
    [
        ([1] * 100, {}, "; shares of 0 of 100 labels kept, 100 with fewer than 10 rows counted as one"),
        ([60, 20, *[2] * 10], {"test_size": 0.2}, "; shares of 2 of 12 labels kept, 10 with fewer than 10 rows counted as one"),
        ([50, 50], {"validation_size": 0.02, "test_size": 0.3}, "; shares of 2 labels kept"),
        ([51, 49], {"validation_size": 0.02, "test_size": 0.3}, "; shares of 1 of 2 labels kept, 1 with fewer than 50 rows"),
    ],
)
def test_labels_with_few_rows_count_as_one(counts, shares, said):
    splits, notes = split_rows(labeled(*counts), **shares)
    assert said in notes.sentence
    assert len(splits["test"]) == round(sum(counts) * shares.get("test_size", 0.15))
    if len(counts) == 12:
        assert Counter(min(r["label"], "l02") for r in splits["test"]) == {"l00": 12, "l01": 4, "l02": 4}
        assert Counter(min(r["label"], "l02") for r in splits["validation"]) == {"l00": 6, "l01": 2, "l02": 2}


def test_validation_and_test_do_not_favor_the_same_labels():
    splits, _ = split_rows(labeled(*[3] * 34))
    tested, validated = ({r["label"] for r in splits[name]} for name in ("test", "validation"))
    assert not validated <= tested
    splits, notes = split_rows(labeled(*[10] * 10))
    assert "shares of 10 labels kept" in notes.sentence
    assert sorted(Counter(r["label"] for r in splits["test"]).values()) == [1] * 5 + [2] * 5
    assert set(Counter(r["label"] for r in splits["validation"]).values()) == {1}


def test_shares_of_labels_are_kept():
    rows = [r | {"label": "aaaaaabbbc"[i % 10]} for i, r in enumerate(different(200))]
    splits, notes = split_rows(rows, validation_size=0.1, test_size=0.2, seed=2)
    assert Counter(r["label"] for r in splits["validation"]) == {"a": 12, "b": 6, "c": 2}
    assert Counter(r["label"] for r in splits["test"]) == {"a": 24, "b": 12, "c": 4}
    assert "shares of 3 labels kept" in notes.sentence
    assert "labels" not in split_rows(different(200))[1].sentence


# ---------------------------------------------------------------------------------------------------- leaks
def split_of(held, name="test", train=(), fill=20):
    splits = {"train": [*different(30, seed=3), *train], "validation": different(fill, seed=4), "test": []}
    splits[name] = [*splits[name], *held]
    return splits


def said(splits, **options):
    """Severity of each leak, and what is told of it."""
    return [(f.severity, f.what_to_do.partition(":")[0]) for f in leaks(splits, **options)]


def test_a_clean_split_says_nothing():
    assert said(split_of(different(9, seed=5))) == []
    assert said({"train": [], "validation": [], "test": []}) == []


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        (split_of([B, row(question(A).upper() + "?", answer(A) + ".")], train=[A]), "test row 1 is in train (row 30)"),
        (split_of([A], "validation", train=[A]), "validation row 20 is in train (row 30)"),
        (split_of([A], "validation") | {"test": [B, row(question(A), answer(A) + "!")]}, "test row 1 is in validation (row 20)"),
        (split_of([A], train=[A]) | {"validation": [A, *different(20)]},
         "validation row 0 is in train (row 30); test row 0 is in train (row 30)"),
        (split_of([A] * 5, train=[A]), "; ".join(f"test row {i} is in train (row 30)" for i in range(3)) + " and 2 more"),
    ],
)  # fmt: skip
def test_an_exact_leak_is_an_error(splits, told):
    assert said(splits) == [("E", told)]


@pytest.mark.parametrize("name", ["question", "long answer", "13 words", "input", "conversation", "customer"])
def test_a_near_leak_warns(name):
    one, other = TWINS[name]
    reason = {"long answer": "answer", "13 words": "answer", "conversation": "group", "customer": "group"}.get(name, "question")
    groups = "customer" if name == "customer" else None
    assert said(split_of([B, other], train=[one]), groups=groups)[-1] == ("W", f"test row 1 has its {reason} from train (row 30)")
    splits = split_of([one], "validation") | {"test": [B, other]}
    assert said(splits, groups=groups)[-1][1].endswith(f"test row 1 has its {reason} from validation (row 20)")


def test_the_thresholds_of_a_leak():
    one, other = TWINS["question"]
    assert said(split_of([other], train=[one]), twin=0.95) == []
    one, other = TWINS["13 words"]
    shared = len(LONG.split())
    assert said(split_of([other], train=[one]), shared_words=shared)
    assert not said(split_of([other], train=[one]), shared_words=shared + 1)


def test_another_sign_is_another_row():
    for one, other in (("2+2", "2*2"), ("Which? C++", "Which? C#")):
        assert "E" not in dict(said(split_of([row(other, "4")], train=[row(one, "4")])))


@pytest.mark.parametrize(("n", "found"), [(15, True), (16, False)])
def test_a_small_validation_split(n, found):
    splits = split_of(different(5, seed=6), fill=n)
    assert [(f.check, f.severity) for f in split_rows(splits)[1].findings] == [("validation too small", "W")] * found
    assert split_rows(splits, few=n)[1].findings == []


# ---------------------------------------------------------------------------------------------------- ready-made
def test_ready_made_splits_stay_and_are_checked():
    ready = split_of([A, B], train=[A])
    splits, notes = split_rows(ready)
    assert splits == ready
    assert [(f.check, f.severity) for f in notes.findings] == [("leak", "E")]
    assert str(notes).startswith("the splits were ready-made\nE  leak: test row 0 is in train (row 30): ")


def test_what_is_missing_is_taken_from_train():
    ready = {"train": different(100), "test": different(9, seed=5)}
    splits, notes = split_rows(ready)
    assert splits["test"] == ready["test"]
    assert sizes(splits) == {"train": 90, "validation": 10, "test": 9}
    assert notes.sentence.startswith("100 rows in 100 groups: ")
    for wrong in ({"train": [A], "dev": [B]}, {"test": [A]}):
        with pytest.raises(SettingsError, match="is wrong or missing; name them train, validation, test"):
            split_rows(wrong)


def test_a_customer_is_one_however_the_name_is_typed():
    names = ["Анна К.", "Анна К. ", "анна  к.", "Анна\u00a0К."]
    rows = [to_messages({"instruction": f"{word * 12}?", "output": f"{word * 15}!"}) for word in "абвгдежзиклмнопрстуфхцчшщэюя"]
    rows = [row | {"conversation": names[i % 4] if i < 8 else f"{i}"} for i, row in enumerate(rows)]
    for seed in range(5):
        parts = split_rows(rows, seed=seed)[0].values()
        assert sum(any(row["conversation"] in names for row in part) for part in parts) == 1
