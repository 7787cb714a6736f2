"""The work that a text makes grows as its length does, whatever the text: four times the length, about four times the work."""

import itertools
import os
import random
import re
import sys
import time

import pytest
from rapidfuzz.distance import Prefix

from gemma_colab import open_workspace
from gemma_colab.core.rows import to_messages
from gemma_colab.core.workspace import samples
from gemma_colab.data import (
    advice,
    checks_set,
    checks_text,
    encodings,
    finding,
    json_files,
    likeness,
    personal,
    schema,
    splitting,
    tables,
)
from gemma_colab.data.cleaning import CHANGES, _adds_only
from gemma_colab.data.looking import fingerprint_of, pieces
from gemma_colab.data.page import _marked, report_page
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows
from gemma_colab.data.review import FILE, Review
from gemma_colab.handover.rows import prepare_rows

SHORT, TIMES = 2000, 4
# What the patterns look for, or stop at.
UNITS = """<a;<a x=;<a x= ;<script>;</;';\\';\\";";\\;\\n;`;```;&#1;&a;![;![a](;{;{{;[;[[;(;<|;[INST];a@;a@a.;'a@;'a;a.;1;1 ;12-;+7 ;
1.1.1.1 ;AB12 ;://;a://b:;sk-;-eyJ;eyJ;SG.;-----BEGIN PRIVATE KEY-----;-----BEGIN ;# ;##;/*;,/*;,#;, ;,;;|;-;--- ;.;?;a, ;я;яa;Aя;не ;как ;ешь;паспорт ;89123456789 и ;"a" ;"a;a@a.a\u200b;&#0;x&#x0;\\u00;
a b ;ab1_;f";Ã©;Р°;[ваш ;:-(;*;_;=;#REF;\\u0434;a\nb;"a;"", """.replace("\n", "").split(";")
UNITS = [
    *filter(None, UNITS),
    " ",
    "\n",
    "\n\n",
    "\r",
    "\t",
    " \n",
    "\u200d",
    "\U0001f600\u200d",
    "\u200b",
    "\xa0",
    "\x0b",
    "\ufeff",
    "e\u0301",
    ";",
]
BEFORE, BEHIND = ("", "<a x=", "\U0001f600", "/*", "a"), ("", "!", "\U0001f600", "\n", "@", "*/")
CASES = [("", unit, end) for unit in UNITS for end in ("", "!")]
CASES += [("<a x=", " ", ""), ("\U0001f600", "\u200d", "\U0001f600"), ("{,", "# ", "\nx"), ("a", "\r", "b"), ("", "a", "\xff ")]
if FUZZ := os.environ.get("FUZZ"):  # `make fuzz`: ten minutes
    CASES = [*itertools.product(BEFORE, UNITS, BEHIND)]


# Of these, only what a text begins or ends with is looked at.
ENDS = (checks_text.DOCUMENT, checks_text.FAKE_ANSWER, checks_set.OPEN_END)
CHECKS = [p for module in (checks_text, checks_set) for p in vars(module).values() if isinstance(p, re.Pattern) and p not in ENDS]


def patterns(text: str) -> None:
    for pattern in CHECKS:
        for _ in pattern.finditer(text):
            pass
    for pattern in ENDS:
        pattern.fullmatch(text)
    for pattern in (advice.SENTENCE, advice.SEVERAL_WORDS, splitting.CONTACT):
        pattern.sub("", text)
    encodings.WORD.findall(text.encode("cp1252", "replace"))
    json_files._without_comments(text)
    json_files.BETWEEN.match(text)
    tables.ERROR_WORD.fullmatch(text)
    tables.find_delimiter(text)
    schema.CHAT.match(text)
    schema.normal(text)


WORK = {
    "patterns": patterns,
    "cleaning": lambda text: [change(text) for change in CHANGES.values()],
    "personal data": lambda text: (personal.mask(text), personal.redact(text)),
    "likeness": lambda text: (likeness.sameness(text), likeness.shingles(text)),
    "checks": lambda text: check_rows([to_messages({"instruction": text, "output": text})]),
}


def seconds(work, text: str) -> float:
    start = time.process_time()
    work(text)
    return time.process_time() - start


@pytest.mark.parametrize("name", WORK)
def test_no_text_makes_more_work_than_its_length(name):
    """Of the work of one process, with three tries: a busy machine changes nothing. What is quadratic makes 16 times the work."""
    work, slow, cases = WORK[name], [], CASES if name != "checks" or FUZZ else CASES[::8]
    work("warm")
    for before, unit, behind in cases:
        short, long = (before + unit * (n // len(unit)) + behind for n in (SHORT, TIMES * SHORT))
        for _ in range(3):
            if (long_one := seconds(work, long)) < 0.03 or long_one < 2 * TIMES * seconds(work, short):
                break
        else:
            slow.append((before, unit, behind, round(long_one, 2)))
    assert not slow


@pytest.mark.parametrize("line", ['a,""",x","\n', 'a,"b\n', '"a,b\n', 'a,"b" c,"\n'])
def test_quotes_that_are_never_closed_cost_no_square(line, tmp_path):
    """Each of them is looked for to the end of the file. What is not read any more is put aside, not lost."""

    def reading(lines: int) -> float:
        (file := tmp_path / "quotes.csv").write_text("instruction,output\nЧто?,Да.\n" + line * lines, encoding="utf-8")
        start = time.process_time()
        found = read_rows(file, on_bad="aside")
        assert len(found.rows) == 1
        assert "".join(bad["content"] for bad in found.aside).count(line) >= lines
        return time.process_time() - start

    reading(100)
    assert any(reading(16_000) < 1 or reading(16_000) < 8 * reading(4000) for _ in range(3))


# ---------------------------------------------------------------------------------------------------- counted, not timed
def calls(work, *given) -> int:
    """Of functions, and of generators that go on: a busy machine changes nothing."""
    count = 0

    def counted(_frame, event, _arg) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    work(*given)  # what is loaded and remembered once
    sys.setprofile(counted)
    try:
        work(*given)
    finally:
        sys.setprofile(None)
    return count


class Line(int):
    """The number of a line that counts with what it is compared."""

    compared = 0

    def __eq__(self, other):
        Line.compared += 1
        return int(self) == int(other)

    __hash__ = int.__hash__


def test_rows_put_aside_are_not_looked_for_among_all_others():
    rows = [to_messages({"instruction": f"Что такое {i}?", "output": f"Это {i}."}) for i in range(3)]

    def compared(count: int) -> int:
        bad = [{"line": Line(i), "content": "x", "problem": "no row"} for i in range(count)]
        report = check_rows(rows, aside=bad)
        Line.compared = 0
        shown = report_page(report, 20)
        assert shown.count(">line ") >= 20
        assert f"and {count - 20} more rows" in shown
        return Line.compared

    assert compared(400) <= 2 * compared(200) + 20


def spans_of(count: int) -> tuple[str, list[tuple[int, int]]]:
    return "Qя " * count, [(3 * i, 3 * i + 2) for i in range(count)]


def test_a_text_with_many_spans_is_walked_once():
    def cut(count: int) -> list:
        text, spans = spans_of(count)
        return pieces(text, spans, 0, len(text))

    assert cut(2) == [("Qя", True), (" ", False), ("Qя", True), (" ", False)]
    assert calls(cut, 400) < 2.5 * calls(cut, 200)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_marked_that_are_in_any_span(seed):
    rng = random.Random(seed)
    for _ in range(100):
        text = "абвгдежзийклмнопрст"[: rng.randint(0, 19)]
        spans = [tuple(sorted(rng.choices(range(len(text) + 3), k=2))) for _ in range(rng.randint(0, 5))]
        start, stop = sorted(rng.choices(range(len(text) + 1), k=2))
        found, at = pieces(text, spans, start, stop), start
        assert "".join(piece for piece, _ in found) == text[start:stop]
        for piece, marked in found:
            assert marked is any(s <= at and at + len(piece) <= e for s, e in spans)
            at += len(piece)


class Spans(list):
    """Spans that count how often one is looked at."""

    seen = 0

    def __iter__(self):
        for span in super().__iter__():
            Spans.seen += 1
            yield span


def test_masks_on_a_page_are_not_compared_with_all_that_is_marked():
    """A tag as long as half of its text, with addresses in it: each of them is masked."""
    tag, rest = "<a title='" + "a@bc.ru " * 1000 + "'>", "<b>x</b> " * 1000
    spans = Spans([(0, len(tag)), *((len(tag) + 9 * i, len(tag) + 9 * i + 3) for i in range(1000))])
    shown = _marked(tag + rest, spans)
    assert ("[e-mail]", True) in shown
    assert Spans.seen < 10 * len(spans)


def test_a_decision_on_one_row_makes_no_work_of_the_blank_lines_of_another(tmp_path, monkeypatch):
    """Only those of version 1 were kept by a text that was parted at a blank line; of these a few are tried."""
    read = []
    monkeypatch.setattr("gemma_colab.data.review.fingerprint_of", lambda fields: read.append(1) or fingerprint_of(fields))
    row = to_messages({"instruction": "a\n\n" * 300 + "Что?", "output": "Это."})
    workspace = open_workspace(tmp_path)
    Review(workspace).decide(to_messages({"instruction": "Где?", "output": "Там."}), "keep")
    assert Review(workspace).of(row) is None
    assert not read
    old = {"instruction": "a\n\na", "input": row["messages"][0]["content"][6:], "output": "Это."}
    decision = {"action": "drop", "why": "", "checks": []}
    workspace.write_json(FILE, {"0" * 16: decision})
    assert Review(workspace).of(row) is None
    assert 0 < len(read) <= 50
    workspace.write_json(FILE, {fingerprint_of(old): decision})
    assert Review(workspace).of(row) == decision


def words(rng, count: int, letters: str = "abcdefghij") -> str:
    return " ".join("".join(rng.choices(letters, k=rng.randint(4, 9))) for _ in range(count))


def test_the_endings_of_words_are_looked_up():
    def judge(count: int) -> bool:
        rng = random.Random(0)
        begin = words(rng, count)
        one = {"question": "", "answer": begin + " zzzz"}  # which is last, and like none
        return _adds_only(one, {"question": words(rng, 3 * count), "answer": " ".join(word + "ы" for word in begin.split())})

    assert calls(judge, 200) < 2.5 * calls(judge, 100)


@pytest.mark.parametrize("seed", range(5))
def test_words_added_and_other_endings_are_told_from_other_words(seed):
    """As all with all would find them."""
    rng, told = random.Random(seed), set()
    for _ in range(300):
        both = words(rng, rng.randint(0, 3), "аб").split()
        one = [*both, *words(rng, rng.randint(0, 2), "аб").split()]
        other = [word[: rng.randint(3, 9)] + rng.choice(("", "а", "бб", "аба")) for word in both] + words(rng, 2, "аб").split()
        left, right = (
            [word for word in some if some.count(word) > its.count(word)] for some, its in ((one, other), (other, one))
        )
        if len({*one}) + len({*other}) < len(one) + len(other):
            continue
        fewer, more = sorted((left, right), key=len)
        near = all(any(Prefix.similarity(a, b) >= max(4, 0.6 * len(a), 0.6 * len(b)) for b in more) for a in fewer)
        assert _adds_only({"answer": " ".join(one)}, {"answer": " ".join(other)}) is near
        told.add(near)
    assert told == {True, False}


def almost_near(count: int) -> list[str]:
    """Texts of which any two share somewhat less than counts as near."""
    rng, letters = random.Random(0), "abcdefghijklmnopqrstuvwxyz"
    base = "".join(rng.choices(letters, k=300))
    return [f"{base} {''.join(rng.choices(letters, k=110))}" for _ in range(count)]


@pytest.mark.parametrize("threshold", [0.6, 0.72])
def test_rows_that_are_almost_near_are_hardly_compared_one_by_one(threshold, monkeypatch):
    exact, asked = likeness.jaccard, []
    monkeypatch.setattr(likeness, "jaccard", lambda a, b: asked.append(1) or exact(a, b))
    sets = [likeness.shingles(text) for text in almost_near(120)]
    alike = [exact(a, b) for a, b in itertools.combinations(sets, 2)]
    assert min(alike) > 0.5
    assert len(likeness.near_pairs(sets, threshold)) == sum(s >= threshold for s in alike)
    assert len(asked) <= sum(s >= threshold for s in alike) + len(sets)


def test_the_pairs_of_the_same_rows_are_looked_for_once(tmp_path, monkeypatch):
    """Cleaning asks for them, the checks and the split."""
    asked, pairs = [], finding.near_pairs
    monkeypatch.setattr(finding, "near_pairs", lambda sets, threshold: asked.append(len(sets)) or pairs(sets, threshold))
    finding._near.cache_clear()
    prepare_rows(samples() / "support_ru.jsonl", open_workspace(tmp_path))
    assert len(asked) == 1
