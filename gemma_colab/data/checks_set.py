"""Checks of the set as a whole: how many rows, repeated and contradicting ones, those unlike the others."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from ftfy import fix_encoding

from gemma_colab.core.rows import answer, answer_field, place, question
from gemma_colab.data.checks_text import placeholders, visible
from gemma_colab.data.finding import Finding, Hit, Look
from gemma_colab.data.neighbours import clusters
from gemma_colab.data.text import jaccard, sameness, shingles

FORMAL = re.compile(r"\b(?:вы|вас|вам|вами|ваш(?:а|е|и|у|его|ей|ему|им|их|ими)?)\b", re.IGNORECASE)
INFORMAL = re.compile(  # pronouns, the second person singular of verbs (but not «лишь»), a few imperatives of help desks
    r"\b(?:ты|тебя|тебе|тобой|тво(?:й|я|ё|е|и|его|ей|ему|им|их|ими|ю)|\w{3,}(?:ешь|ёшь|ишь)(?:ся)?"
    r"|(?:не )?(?:посмотри|напиши|зайди|открой|выбери|проверь|подожди|(?<![^.!?] )пришли|попроси|волнуйся|попробуй|укажи|нажми))\b",
    re.IGNORECASE,
)
HINT = re.compile(r"\b[Тт](?:ы|еб|об|во)|[её]шь|ишь|[иу]й(?:ся)?\b|и(?:ся)?\b")  # cheap; INFORMAL is slow
GREETING = re.compile(
    r"^\W*(?:здравствуй\w*|добрый (?:день|вечер)|доброе утро|привет\w*|hello|hi|hey|dear|good (?:morning|afternoon|evening))\b"
    r"|\b(?:с уважением|best regards|kind regards|sincerely)\b",
    re.IGNORECASE,
)
OPEN = re.compile(r"[^\W\d_],?\s*$")  # ends on a letter; an amount or an emoji is an end too
SCRIPTS = {"Cyrillic": re.compile("[^\u0400-\u04ff]+"), "Latin": re.compile("[^A-Za-z\u00c0-\u024f]+")}  # what to leave out
SEEN = 140  # characters of an answer that tell its language
NOT_LETTERS = re.compile(r"[\W\d_]+")


def too_few(look: Look, block: int = 10, warn: int = 50, inform: int = 100) -> Iterator[Finding]:
    n = len(look.rows)
    if n < inform:
        severity = "E" if n < block else "W" if n < warn else "I"
        yield Finding("too few rows", severity, f"{n} rows; {warn} are a start, a few hundred good ones are plenty")


def mixed_schemas(look: Look) -> Iterator[Finding]:
    """Rows whose keys in the file are not those that most rows have (`keys`, which reading notes on such rows)."""
    odd = [Hit(i, note="keys: " + row["keys"]) for i, row in enumerate(look.rows) if "keys" in row]
    if odd:
        yield Finding("mixed schemas", "W", "give all rows the same keys; was a second file pasted in?", odd)


def exact_duplicates(look: Look) -> Iterator[Finding]:
    """Rows that repeat an earlier row; case, punctuation and spaces aside."""
    first, hits = {}, []
    for row, key in enumerate(zip(look.questions, look.answers, strict=True)):
        twin = first.setdefault(key, row)
        if twin != row:
            hits.append(Hit(row, note=f"like {_name(look, twin)}", twin=twin))
    if hits:
        yield Finding("exact duplicate", "W", "drop it: a repeated row is learnt twice and tells nothing new", hits)


def near_duplicates(look: Look, threshold: float = 0.72) -> Iterator[Finding]:
    """Rows much like an earlier one: Jaccard of 5-character shingles, all digits alike. Those that say the same are a warning;
    those that differ in what counts (see `agreement`) only inform. Exact duplicates and contradictions are other findings."""
    twins, others = {}, {}
    says_the_same = agreement(look)
    for row, twin, similarity in look.near:
        if similarity >= threshold and look.questions[row] != look.questions[twin]:
            best = twins if row in twins or says_the_same(row, twin) else others
            best[row] = max(best.get(row, (0.0, 0)), (similarity, twin))
    others = {row: twin for row, twin in others.items() if row not in twins}
    for best, name, severity, advice in (
        (twins, "near duplicate", "W", "keep one, or make the situations really different"),
        (others, "look-alike", "I", "nearly the same words, but other numbers, a “not”, or another answer; a slip, or a series?"),
    ):
        if hits := [
            Hit(row, note=f"{alike:.2f} like {_name(look, twin)}", twin=twin) for row, (alike, twin) in sorted(best.items())
        ]:
            yield Finding(name, severity, advice, hits)


def near_twins(look: Look) -> Iterator[tuple[int, int, str]]:
    """(row, earlier row, note) for every pair of near twins that say the same, in the order of the rows."""
    says_the_same = agreement(look)
    for row, twin, similarity in look.near:
        if look.questions[row] != look.questions[twin] and says_the_same(row, twin):
            yield row, twin, f"{similarity:.2f} like {_name(look, twin)}"


FACTS = re.compile(
    r"\d+|(?<=\d)\s*[-+*/×÷:^%]|[<>=≤≥≠]|\b(?:не\w*|ни|без|not?|none|nothing|cannot|never|without|\w+n['’]t)\b", re.IGNORECASE
)


def agreement(look: Look) -> Callable[[int, int], bool]:
    """A function of two row numbers: whether these near twins say the same, that is the same numbers, signs and negations,
    question near question, answer near answer. What it needs of a row is computed once."""

    @cache
    def facts(row: int) -> list[str]:
        one = look.rows[row]
        return [fact.strip() for fact in FACTS.findall(f"{question(one)} {answer(one)}".lower())]

    @cache
    def cut(row: int, half: int) -> tuple[str, np.ndarray]:
        text = answer(look.rows[row]) if half else look.own[row]
        return sameness(text), shingles(text)

    def near(one: int, other: int, half: int) -> bool:
        (text, mine), (its_text, its) = cut(one, half), cut(other, half)
        return text == its_text or jaccard(mine, its) >= look.near_threshold

    return lambda one, other: facts(one) == facts(other) and near(one, other, 0) and near(one, other, 1)


def contradictions(look: Look) -> Iterator[Finding]:
    """Rows whose question stands elsewhere with another answer."""
    groups = defaultdict(list)
    for row, asked in enumerate(look.questions):
        if asked:
            groups[asked].append(row)
    hits = []
    for group in groups.values():
        if len({look.answers[row] for row in group}) > 1:
            hits += [Hit(row, answer_field(look.rows[row]), note=f"asked in {_names(look, group)}") for row in group]
    if hits:
        yield Finding("contradiction", "W", "decide which answer is right: the model can't", sorted(hits))


def placeholder_words(look: Look, allowed: tuple[str, ...] = (), common: int = 3) -> Iterator[Finding]:
    """A placeholder in at least `common` rows is taken for one that your program fills in, and only informs."""
    hits = placeholders(look, allowed)
    counts = Counter(hit.note.lower() for hit in hits)
    rare = [hit for hit in hits if counts[hit.note.lower()] < common]
    often = [hit for hit in hits if counts[hit.note.lower()] >= common]
    if rare:
        yield Finding("placeholder", "W", "write the text out; if your program fills it in, accept this finding", rare)
    if often:
        words = ", ".join(sorted({hit.note for hit in often}))
        yield Finding("placeholder in use", "I", f"{words}: fine if your program fills it in", often)


def language(look: Look, share: float = 0.5, letters: int = 20, minority: float = 0.1, sample: int = 2000) -> Iterator[Finding]:
    """Answers in another script than most, or in another language of it: langid decides, on `letters` letters or more.

    Related languages (ru, uk, bg) are easily mistaken in a short text, so within the script only long ones are judged.
    The language of most answers is taken from the first `sample`.
    """
    from py3langid import classify  # half a second to load

    answers = [answer(row) for row in look.rows]
    long_enough = [len(NOT_LETTERS.sub("", text[:SEEN])) >= letters for text in answers]
    spoken = Counter(classify(text[:SEEN])[0] for text, enough in list(zip(answers, long_enough, strict=True))[:sample] if enough)
    if not spoken or spoken.most_common(1)[0][1] < share * spoken.total():
        return
    main, scripts = spoken.most_common(1)[0][0], [_script(text) for text in answers]
    script = Counter(scripts).most_common(1)[0][0]
    hits = []

    def rare(one: str) -> bool:
        return one != main and spoken[one] < minority * spoken.total()

    for row, text in enumerate(answers):
        if long_enough[row] and (scripts[row] != script or len(text) >= SEEN):
            one = classify(text[:SEEN])[0]
            if rare(one) and rare(one := classify(fix_encoding(text[:SEEN]))[0]):  # mojibake would pass for Uzbek
                hits.append(Hit(row, answer_field(look.rows[row]), note=f"looks like {one!r}, most answers are {main!r}"))
    if hits:
        yield Finding("language", "I", "one language unless you want several; translate or drop", hits)


def _script(text: str) -> str:
    return max(SCRIPTS, key=lambda name: len(SCRIPTS[name].sub("", text[:SEEN])))


def style(look: Look, majority: float = 0.8, length: float = 4.0) -> Iterator[Finding]:
    """Answers unlike most others: formal or informal address, greeting, closing punctuation, length.

    majority: a habit counts when at least this share of the answers has it. length: how many times the median, in characters.
    """
    answers = {row: answer(one) for row, one in enumerate(look.rows)}
    answers = {row: text for row, text in answers.items() if visible(text)}
    if not answers:
        return
    formal = {row: match for row, text in answers.items() if (match := FORMAL.search(text))}
    informal = {row: match for row, text in answers.items() if HINT.search(text) and (match := INFORMAL.search(text))}
    greeting = {row: match for row, text in answers.items() if (match := GREETING.search(text))}
    open_ended = {row: None for row, text in answers.items() if OPEN.search(text[-20:])}
    addressed = len(formal.keys() | informal.keys())
    for name, odd, among, note in (
        ("style: address", informal, addressed, "«ты» among «вы»"),
        ("style: address", formal, addressed, "«вы» among «ты»"),
        ("style: greeting", greeting, len(answers), "a greeting or a signature, which most answers lack"),
        ("style: ending", open_ended, len(answers), "no closing punctuation, unlike most answers"),
    ):
        if odd and len(odd) + majority * among <= among + 1e-9:
            advice = "one voice is learnt faster than two; make them alike, or keep them if you mean it"
            spans = [(row, match.span() if match else (0, 0)) for row, match in odd.items()]
            yield Finding(name, "I", advice, [Hit(row, answer_field(look.rows[row]), *span, note) for row, span in spans])
    middle = statistics.median(map(len, answers.values()))
    long = {row: len(text) for row, text in answers.items() if len(text) > length * middle}
    if long and len(answers) >= 10:
        advice = f"the median answer has {middle:.0f} characters; is the long one needed?"
        hits = [Hit(row, answer_field(look.rows[row]), note=f"{count} characters") for row, count in long.items()]
        yield Finding("style: length", "I", advice, hits)


def diversity(look: Look, cluster: float = 0.05, prompts: float = 0.8, opening: float = 0.3, words: int = 3) -> Iterator[Finding]:
    """Too much alike: few distinct prompts, one group of near twins, or answers that open with the same words."""
    n = len(look.rows)
    if n < 10:
        return
    distinct = len(set(look.questions)) / n
    if distinct < prompts:
        yield Finding("diversity", "I", f"only {distinct:.0%} of the questions are distinct; add other situations")
    biggest = max(clusters(n, look.near), key=len)
    if len(biggest) > max(3, cluster * n):
        advice = f"{len(biggest)} rows ({len(biggest) / n:.0%}) are one group of look-alikes; the model will learn mostly these"
        yield Finding("diversity", "I", advice, [Hit(row) for row in biggest])
    if statistics.median(len(text.split()) for text in look.answers) <= words:
        return  # one-word answers: a label, which is meant to come back
    openings = Counter(" ".join(text.split()[:words]) for text in look.answers)
    text, count = openings.most_common(1)[0]
    if text and count > opening * n:
        yield Finding("diversity", "I", f"{count} answers ({count / n:.0%}) open with “{text}”; the model will too")


def _name(look: Look, row: int) -> str:
    return place(look.rows[row], row)


def _names(look: Look, rows: list[int], most: int = 5) -> str:
    return ", ".join(_name(look, row) for row in rows[:most]) + (" ..." if len(rows) > most else "")


SET_CHECKS = [
    too_few,
    mixed_schemas,
    exact_duplicates,
    near_duplicates,
    contradictions,
    placeholder_words,
    language,
    style,
    diversity,
]
