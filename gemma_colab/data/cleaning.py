"""Clean rows in named steps, with a log line for every change, from which each can be undone. Nothing goes without one.

By default only what is certainly an artefact of storage is changed. A tag may be a left-over in one file and the lesson in another.
"""

import html
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import pandas as pd
from ftfy import fix_encoding
from rapidfuzz.distance import Prefix

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, place
from gemma_colab.data import checks_text
from gemma_colab.data.checks_set import exact_duplicates, near_twins
from gemma_colab.data.checks_text import CODE, MARKDOWN_IMAGE, TAG, about_markup, empty_text
from gemma_colab.data.finding import CheckContext, Finding, Hit
from gemma_colab.data.likeness import normalize
from gemma_colab.data.looking import AS_READ, BESIDE, beside, fingerprint, replaced, texts, with_beside, with_texts
from gemma_colab.data.personal import mask, numbered, own_contacts, redact

DROPPED = "(dropped)"
LONG_WORD = 64
LOG_COLUMNS = ["step", "row", "line", "field", "before", "after"]
SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u3000]")  # all kinds of them but the plain one
GAP = re.compile(r"\S(?: {3,}|\t)\S")  # between columns
BREAK = re.compile("[\x0b\x0c\x1c-\x1f\x85]+")  # control characters that end a line or a page
ENCODING = re.compile(
    r"(?i)mojibake|encod|decod|charset|unicode|ascii|utf-?\d|latin-?1|8859|(?:cp|ws-)125|кодиров|козябр|юникод|байт"
)
SCRIPT = re.compile(r"(?is)<(script|style|head)(?:\s[^<>]*)?>.*?(?:</\1\s*>|\Z)")
BLOCK = re.compile(r"</?(?:br|p|div|li|tr|h[1-6]|blockquote|pre)\b", re.IGNORECASE)  # they have lines of their own


def file_marks(text: str) -> str:
    """Line ends as "\\n", and no marks of files: a byte order mark where a line begins, NUL."""
    text = re.sub(r"(?<!\r)\r+\n", "\n", text.replace("\0", ""))
    return re.sub("^\ufeff+", "", text if "\n" in text else text.replace("\r", "\n"), flags=re.MULTILINE)


def about_encoding(row: Row) -> bool:
    """Tell whether the row is about encodings, or has all that can be repaired in the right letters too: there the fault is the lesson."""
    said, repaired = ("\n".join(map(change, texts(row).values())).lower() for change in (str, fix_encoding))
    words, right = (set(re.findall(r"\w+|[^\w\s]", text)) for text in (said, repaired))
    return right <= words or bool(ENCODING.search(said))


def outside_code(change: Callable[[str], str], text: str) -> str:
    """The text with this change made, but for code in back quotes."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))


def html_to_text(text: str) -> str:
    """Tags away, scripts with their content; a line break where a paragraph ended. `a<b и c>d` is no tag and stays."""
    plain = outside_code(_without_tags, text)
    return text if plain == text else plain.strip("\n")


def _without_tags(text: str) -> str:
    text = MARKDOWN_IMAGE.sub(lambda m: m[0][2 : m[0].index("]")], text)
    if not TAG.search(text):
        return text
    text = TAG.sub(lambda m: "\x0b" if BLOCK.match(m[0]) else "", SCRIPT.sub("", text))  # a line break that tags make
    # Where the writer broke the line too, it stays as it was: a blank line parts instruction and input.
    return re.sub(r"[\n\x0b]+", lambda m: m[0].replace("\x0b", "") or "\n", text)


def entities(text: str) -> str:
    """`&nbsp;` and kin; twice, since exports often escape what was escaped. Tags that come out of it go as well."""
    unescape = partial(checks_text.ENTITY.sub, lambda m: html.unescape(m[0]) if checks_text.is_entity(m[0]) else m[0])
    plain = outside_code(lambda part: unescape(unescape(part)), text)
    return html_to_text(plain) if plain != text and not TAG.search(text) else plain


def control_characters(text: str) -> str:
    """Control characters away; escapes written out as text become what they mean."""

    def unescaped(escape: str) -> str:
        if escape[1:2] in ("u", "x"):
            char = chr(int(escape[2:], 16))
            return escape if "\ud800" <= char <= "\udfff" else char
        return {"n": "\n", "r": "\n", "t": " "}.get(escape[1:], escape[1:])

    def plain(part: str) -> str:
        part = replaced(part, ((unescaped(match[0]), *match.span()) for match in checks_text.escapes(part)))
        return checks_text.CONTROL.sub("", BREAK.sub("\n", part))

    return outside_code(plain, text)


def white_space(text: str) -> str:
    """No blank lines at the ends, no spaces at the end of a line, at most two blank lines, in prose single spaces.

    Code in back quotes stays as it is; where lines are indented or hold columns (code, lists, tables) their spaces stay.
    """

    def trimmed(part: str) -> str:
        lines = SPACES.sub(" ", part.replace("\r\n", "\n").replace("\r", "\n"))
        return re.sub(r"\n{4,}", "\n\n\n", re.sub(r"(?<![ \t])[ \t]+\n", "\n", lines))

    text = re.sub(r"\A(?:[ \t]*\n)+", "", outside_code(trimmed, text)).rstrip()
    lines = CODE.sub("", text).split("\n")
    layout = any(line.startswith(("  ", "\t")) for line in lines[1:]) or sum(bool(GAP.search(line)) for line in lines) > 1
    return text if layout else outside_code(lambda part: re.sub(r"(?<=\n) +", "", re.sub(r"[ \t]+", " ", part)), text).strip()


CHANGES: dict[str, Callable[[str], str]] = {
    "file_marks": file_marks,
    "html_to_text": html_to_text,
    "entities": entities,
    "mojibake": lambda text: file_marks(fix_encoding(text)),  # which may bring a byte order mark to light
    "control_characters": control_characters,
    "invisible_characters": partial(checks_text.HIDDEN.sub, ""),
    "white_space": white_space,
    "fake_input": partial(checks_text.FAKE_INPUT.sub, ""),  # only in the question
    "mask_personal_data": mask,
}
LESSONS = {"html_to_text": about_markup, "entities": about_markup, "mojibake": about_encoding}  # rows that a step leaves alone


def repeated_rows(context: CheckContext) -> list[Finding]:
    """Drop a row whose turns stood earlier to the letter."""
    first: dict[str, int] = {}
    twins = [first.setdefault(json.dumps(row["messages"]), i) for i, row in enumerate(context.rows)]
    return [Finding("", "W", "", [Hit(i, note=f"like {context.place(twin)}") for i, twin in enumerate(twins) if i != twin])]


def near_duplicates(context: CheckContext) -> list[Finding]:
    """Drop a row that repeats an earlier one but for case, punctuation and spaces. Of two near twins that say the same, drop the later
    one, if the earlier is kept and the texts differ only in words added or in endings. A word put for another may turn the meaning
    (on, off): that, like contradictions, is for a person."""
    dropped = {hit.row: hit for finding in exact_duplicates(context) for hit in finding.hits}
    for row, twin, similarity, says_the_same in near_twins(context):
        if says_the_same and not {row, twin} & dropped.keys() and _adds_only(context.texts[row], context.texts[twin]):
            dropped[row] = Hit(row, note=f"{similarity:.2f} like {context.place(twin)}")
    return [Finding("near duplicate", "W", "", list(dropped.values()))]


def _adds_only(one: dict[str, str], other: dict[str, str]) -> bool:
    words, its = (Counter(normalize(" ".join(fields.values())).split()) for fields in (one, other))
    fewer, more = sorted((words - its, its - words), key=Counter.total)
    if max(map(len, fewer | more), default=0) > LONG_WORD:  # no word, and each of its beginnings would be kept
        return False
    # Other endings of one word have at least four letters and three fifths of each before them. These are looked up, not compared.
    begins = {word: range(max(4, -(-3 * len(word) // 5)), len(word) + 1) for word in fewer | more}
    sizes = {some.start for some in begins.values()}
    starts = {word: {word[:n] for n in some if n in sizes} for word, some in begins.items()}
    known = set().union(*(starts[word] for word in more))
    return all(known & starts[word] for word in fewer)


# What they hit is dropped.
DROPS = {"drop_empty": empty_text, "drop_exact_duplicates": repeated_rows, "drop_near_duplicates": near_duplicates}
STEPS = (*CHANGES, *DROPS)
DEFAULT = ("file_marks", "mojibake", "drop_empty", "drop_exact_duplicates")


def clean(
    rows: list[Row], steps: Sequence[str] = DEFAULT, also: Sequence[str] = (), keep: Iterable[str] = ()
) -> tuple[list[Row], pd.DataFrame]:
    """Return new rows, and the log: step, row (number in `rows`), line, field, before, after. The rows given are not changed.

    steps: by default those that repair what is certainly an artefact of storage. also: others, each in its usual place among them:
    html_to_text, entities, control_characters, invisible_characters, white_space, fake_input (a word such as N/A at the end of a
    question), mask_personal_data (also in labels and the like, where equal ones get the same number), drop_near_duplicates. What they
    take away may be right in your rows: look first.
    keep: e-mails, phones and the like that are yours and stay unmasked, beside those that many answers give; after "only", these alone.

    A dropped row has an empty `field`; `before` holds it whole, as JSON. Raises `SettingsError` for a step that doesn't exist.
    """
    if unknown := [step for step in (*steps, *also) if step not in STEPS]:
        raise SettingsError(f"step={unknown[0]!r} is not a cleaning step; choose from {', '.join(STEPS)}")
    steps = [step for step in STEPS if step in (*steps, *also)] if also else steps
    kept, log = dict(enumerate(rows)), []
    own = own_contacts(rows if "mask_personal_data" in steps else [], keep)
    changes, number = CHANGES | {"mask_personal_data": partial(mask, keep=own)}, numbered(keep=own)
    for step in steps:
        if step in DROPS:
            numbers = list(kept)
            hits = [hit for finding in DROPS[step](CheckContext(list(kept.values()))) for hit in finding.hits]
            for n, why in {hit.row: hit.note or "nothing to learn" for hit in hits}.items():
                row = kept.pop(numbers[n])
                log.append((step, numbers[n], row.get("line"), "", json.dumps(row, ensure_ascii=False), f"{DROPPED} {why}"))
            continue
        for i, row in kept.items():
            fields = {"question": texts(row)["question"]} if step == "fake_input" else texts(row)
            new = {field: text for field, old in fields.items() if (text := changes[step](old)) != old}
            if new and step in LESSONS and LESSONS[step](row):
                continue
            kept[i] = with_texts(row, new) if new else row
            if step == "mask_personal_data":  # it is beside the texts, too
                fields |= (names := beside(row))
                new |= (others := {name: text for name, old in names.items() if (text := number(old)) != old})
                kept[i] = with_beside(kept[i], others) if others else kept[i]
            log += [(step, i, row.get("line"), field, fields[field], text) for field, text in new.items()]
    return list(kept.values()), pd.DataFrame(log, columns=LOG_COLUMNS)


def summarize(rows: list[Row], log: pd.DataFrame, done: bool = True) -> Iterator[Finding]:
    """Yield a finding for each step of a log of these rows: how many it changed or left out, with an example. done: False if the rows
    were left as they are, and the log says what the step would do."""
    for step, some in log.groupby("step", sort=False):
        one, numbers = next(some.itertuples()), some["row"].unique().tolist()
        before, after = redact(str(one.before)), redact(one.after)  # what is said of a file may be passed on
        pair = (before, after) if before != after else (str(one.before), after)  # that it was masked is the change
        start = max(0, Prefix.similarity(*pair) - 15) * bool(one.field)
        shown = [f"“{'…' * bool(start)}{t[start:][:50]}{'…' * (len(t) > start + 50)}”" for t in dict.fromkeys((before, after))]
        gone = one.after.replace(DROPPED, "left out,", 1)
        change = f"{' '.join([one.field, *shown[:-1]])} became {shown[-1]}" if one.field else gone
        example = f"such as {place(rows[one.row], one.row)}: {change}"
        how = f"left as it is; with also=[{step!r}] (on the command line: --also {step}), {example}"
        lines = [place(rows[n], n) if "item" in rows[n] else rows[n].get("line", n) for n in numbers]
        left = Finding(f"not cleaned: {step}", "I", how, [Hit(n) for n in numbers])
        yield Finding(f"cleaned: {step}", "I", example, lines=lines) if done else left


def undo(rows: list[Row], log: pd.DataFrame) -> list[Row]:
    """Return the rows as they were before `clean` gave these rows and this log. Raises `SettingsError` for a masked log."""
    if "redacted" in log and (n := int(log["redacted"].eq(True).sum())):
        what = f"personal data are masked in {n} line{'s' * (n > 1)} of this log, and can't be brought back from it"
        raise SettingsError(f"{what}; read unmasked_cleaning_log.jsonl, which originals=True (--originals) writes")
    gone = log[(log["field"] == "") & log["after"].str.startswith(DROPPED)]
    dropped = {line.row: json.loads(line.before) for line in gone.itertuples()}
    left = iter(rows)
    old = [dropped[i] if i in dropped else next(left) for i in range(len(rows) + len(dropped))]
    for line in log.iloc[::-1].itertuples():
        if line.field:
            change = with_beside if line.field.startswith(BESIDE) else with_texts
            old[line.row] = change(old[line.row], {line.field: line.before})
    return [{k: v for k, v in row.items() if k != AS_READ or v != fingerprint(row, now=True)} for row in old]
