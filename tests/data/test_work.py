"""The work that a text makes grows as its length does, whatever the text: four times the length, about four times the work."""

import itertools
import os
import re
import time

import pytest

from gemma_colab.core.rows import to_messages
from gemma_colab.data import advice, checks_set, checks_text, encodings, json_files, likeness, personal, schema, splitting, tables
from gemma_colab.data.cleaning import CHANGES
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows

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
