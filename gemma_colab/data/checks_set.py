"""Checks of the set as a whole: how many rows, repeated and contradicting ones, those unlike the others."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from ftfy import fix_encoding

from gemma_colab.data.checks_text import about_markup, code_blanked, visible
from gemma_colab.data.finding import CheckContext, Finding, Hit, check
from gemma_colab.data.likeness import clusters, jaccard, sameness, shingles
from gemma_colab.data.looking import question
from gemma_colab.data.personal import MASKS

# What tells near twins apart: numbers, negations, the signs that `sameness` leaves (C++, C#), but for marks above and below letters.
FACTS = re.compile(r"\d+|\b(?:не\w*|ни|без|not?|none|nothing|cannot|never|without|\w+n't)\b|[^\w\s\u0300-\u1fff]")
# What is in square brackets where something is to be filled in; [смех в зале] is none.
FILL_IN = r"(?:ваш\w*|your|вставь?т?е?\w*|insert|enter|укаж\w+|the )?\s*(?:имя|фамилия|фио|name|ссылк[аиу]|link|url|дат[аыу]|date|время|time"
FILL_IN += r"|номер|number|город|city|адрес|address|компани[яи]|company|телефон|phone|почт[аы]|e-?mail|сумм[аыу]|amount|товар|product|цен[аы]|price)"
PLACEHOLDER = re.compile(
    r"(?i)\{\{[^{}\n]{1,40}\}\}|(?<![\w\\}^$])\{[\w .-]{2,30}\}|<[а-яё][а-яё _]{2,30}>"
    rf"|(?<![\w\])])\[{FILL_IN}[\w ]{{0,20}}\](?![(\[])"
    r"|(?-i:\b(?:TODO|FIXME|XXX)\b(?![ -]?(?:[Ll]ist|[Aa]pp|[Ii]tem|спис|лист)))"
)
F_STRING = re.compile(r"\bf(?:\"[^\"\n]*\"|'[^'\n]*')")
FORMAL = re.compile(r"(?i)\b(?:вы|вас|вам|вами|ваш(?:а|е|и|у|его|ей|ему|им|их|ими)?)\b")
INFORMAL = re.compile(  # pronouns, the second person singular of verbs (but not «лишь»), a few imperatives of help desks
    r"(?i)\b(?:ты|тебя|тебе|тобой|тво(?:й|я|ё|е|и|его|ей|ему|им|их|ими|ю)|\w{3,}(?:ешь|ёшь|ишь)(?:ся)?"
    r"|(?:не )?(?:посмотри|напиши|зайди|открой|выбери|проверь|подожди|(?<![^.!?] )пришли|попроси|волнуйся|попробуй|укажи|нажми))\b"
)
GREETING = re.compile(
    r"(?i)^\W*(?:здравствуй\w*|добрый (?:день|вечер)|доброе утро|привет\w*|hello|hi|hey|dear|good (?:morning|afternoon|evening))\b"
    r"|\b(?:с уважением|best regards|kind regards|sincerely)\b"
)
OPEN_END = re.compile(r"[^\W\d_],?\s*$")  # ends on a letter; an amount or an emoji is an end too
CYRILLIC, LATIN = re.compile("[\u0400-\u04ff]"), re.compile("[A-Za-z\u00c0-\u024f]")
SAMPLE = 140  # characters of an answer that tell its language


@check("too few rows")
def too_few(context: CheckContext, block: int = 10, warn: int = 50, inform: int = 100) -> Iterator[Finding]:
    n = len(context.rows)
    if n < inform:
        severity = "E" if n < block else "W" if n < warn else "I"
        yield Finding("too few rows", severity, f"{n} rows; {warn} are a start, a few hundred good ones are plenty")


@check("mixed schemas", advice="give all rows the same keys; was a second file pasted in?")
def mixed_schemas(context: CheckContext) -> Iterator[Hit]:
    """Rows whose keys in the file are not those that most rows have (`keys`, which reading notes on such rows)."""
    return (Hit(i, note="keys: " + row["keys"]) for i, row in enumerate(context.rows) if "keys" in row)


@check(
    "read, not learned",
    severity="I",
    advice="answers that the file marks so: earlier ones are read only, those at the end are cut",
)
def marked_answers(context: CheckContext) -> Iterator[Hit]:
    """Answers with a mark such as "weight": 0, in rows that have others to learn."""
    for i, row in enumerate(context.rows):
        if (read := sum(turn["role"] == "model" for turn in row["messages"])) or "cut" in row:
            yield Hit(i, note=f"read only: {read}; cut: {row.get('cut', 0)}")


@check("exact duplicate", advice="drop it: a repeated row is learned twice and tells nothing new")
def exact_duplicates(context: CheckContext) -> Iterator[Hit]:
    """Rows that repeat an earlier row; case, punctuation and spaces aside, but for what an answer asks: He left? is not He left."""
    first: dict[tuple[str, str, int], int] = {}
    asks = [text.count("?") for text in context.answers]
    for row, key in enumerate(zip(context.same_questions, context.same_answers, asks, strict=True)):
        if (twin := first.setdefault(key, row)) != row:
            yield Hit(row, note=f"like {context.place(twin)}", twin=twin)


@check("near duplicate", "look-alike")
def near_duplicates(context: CheckContext, threshold: float = 0.72) -> Iterator[Finding]:
    """Rows much like an earlier one: Jaccard of 5-character shingles, all digits alike. Those that say the same are a warning;
    those that differ in what counts (see `near_twins`) only inform. Exact duplicates and contradictions are other findings."""
    best: dict[int, tuple[bool, float, int]] = {}
    for row, twin, similarity, says_the_same in near_twins(context):
        if similarity >= threshold:
            best[row] = max(best.get(row, (False, 0.0, 0)), (says_the_same, similarity, twin))
    for same, name, severity, advice in (
        (True, "near duplicate", "W", "keep one, or make the situations really different"),
        (False, "look-alike", "I", "nearly the same words, but other numbers, a “not”, or another answer; a slip, or a series?"),
    ):
        found = ((row, s, twin) for row, (says_the_same, s, twin) in sorted(best.items()) if says_the_same == same)
        if hits := [Hit(row, note=f"{s:.2f} like {context.place(twin)}", twin=twin) for row, s, twin in found]:
            yield Finding(name, severity, advice, hits)


def near_twins(context: CheckContext) -> Iterator[tuple[int, int, float, bool]]:
    """Yield (row, earlier row, similarity, whether they say the same) of near rows that don't ask the very same.

    They say the same if they hold the same numbers, signs and negations, question near question, answer near answer.
    """

    @cache
    def parts(row: int) -> tuple[list[str], list[str], list[np.ndarray]]:
        facts = FACTS.findall(f"{context.same_questions[row]} {context.same_answers[row]}")
        halves = context.own_questions[row], context.answers[row]
        return facts, [sameness(text) for text in halves], [shingles(text) for text in halves]

    for row, twin, similarity in context.near:
        if context.same_questions[row] != context.same_questions[twin]:
            (facts, texts, sets), (its_facts, its_texts, its_sets) = parts(row), parts(twin)
            pairs = zip(texts, its_texts, sets, its_sets, strict=True)
            near = all(text == its or jaccard(own, other) >= context.near_threshold for text, its, own, other in pairs)
            yield row, twin, similarity, facts == its_facts and near


@check("contradiction", advice="decide which answer is right: the model can't")
def contradictions(context: CheckContext) -> list[Hit]:
    """Rows whose question comes elsewhere with another answer."""
    groups = defaultdict(list)
    for row, asked in enumerate(context.same_questions):
        if asked:
            groups[asked].append(row)
    hits = []
    for group in groups.values():
        if len({context.same_answers[row] for row in group}) > 1:
            places = ", ".join(map(context.place, group[:5])) + " ..." * (len(group) > 5)
            hits += [Hit(row, "answer", note=f"asked in {places}") for row in group]
    return sorted(hits)


@check("placeholder", "placeholder in use")
def placeholder_words(context: CheckContext, allowed: tuple[str, ...] = (), common: int = 3) -> Iterator[Finding]:
    """Placeholders in answers, but for those that your own program fills in (`allowed`), code and masks of personal data. One in at
    least `common` rows is taken for one that your program fills in, and only informs."""
    hits = []
    for row, text in enumerate(context.answers):
        if not about_markup(context.rows[row]):
            asked_for = re.findall(r"todo|fixme|xxx", question(context.rows[row]).lower())
            known = {word.lower() for word in (*allowed, *MASKS, *asked_for)}
            text = F_STRING.sub(lambda m: " " * len(m[0]), code_blanked(text))
            hits += [Hit(row, "answer", *m.span(), m[0]) for m in PLACEHOLDER.finditer(text) if m[0].lower() not in known]
    counts = Counter(hit.note.lower() for hit in hits)
    if rare := [hit for hit in hits if counts[hit.note.lower()] < common]:
        yield Finding("placeholder", "W", "write the text out; if your program fills it in, accept this finding", rare)
    if often := [hit for hit in hits if counts[hit.note.lower()] >= common]:
        words = ", ".join(sorted({hit.note for hit in often}))
        yield Finding("placeholder in use", "I", f"{words}: fine if your program fills it in", often)


@check("language", severity="I", advice="one language unless you want several; translate or drop")
def language(
    context: CheckContext, share: float = 0.5, letters: int = 20, minority: float = 0.1, sample: int = 2000
) -> Iterator[Hit]:
    """Answers in another script than most, or in another language of it: langid decides, on `letters` letters or more.

    Related languages (ru, uk, bg) are easily mistaken in a short text, so within the script only long ones are judged.
    The language of most answers is taken from the first `sample`.
    """
    from py3langid import classify  # half a second to load

    answers = [text[:SAMPLE] for text in context.answers]
    long_enough = [len(re.findall(r"[^\W\d_]", text)) >= letters for text in answers]
    spoken = Counter(classify(text)[0] for text, enough in zip(answers[:sample], long_enough, strict=False) if enough)
    if not spoken or spoken.most_common(1)[0][1] < share * spoken.total():
        return
    main = spoken.most_common(1)[0][0]
    usual = {main} | {one for one, n in spoken.items() if n >= minority * spoken.total()}
    cyrillic = [len(CYRILLIC.findall(text)) >= len(LATIN.findall(text)) for text in answers]
    script = Counter(cyrillic).most_common(1)[0][0]
    for row, text in enumerate(answers):
        judged = long_enough[row] and (cyrillic[row] != script or len(text) == SAMPLE) and classify(text)[0] not in usual
        if judged and (one := classify(fix_encoding(text))[0]) not in usual:  # mojibake would pass for Uzbek
            yield Hit(row, "answer", note=f"looks like {one!r}, most answers are {main!r}")


@check("style: address", "style: greeting", "style: ending", "style: length")
def style(context: CheckContext, majority: float = 0.8, length: float = 4.0) -> Iterator[Finding]:
    """Answers unlike most others: formal or informal address, greeting, closing punctuation, length.

    majority: a habit counts when at least this share of the answers has it. length: how many times the median, in characters.
    """
    answers = {row: text for row, text in enumerate(context.answers) if visible(text)}
    if not answers:
        return

    def where(find: Callable[[str], re.Match | None]) -> dict[int, tuple[int, int]]:
        return {row: match.span() for row, text in answers.items() if (match := find(text))}

    formal, informal, greeting = where(FORMAL.search), where(INFORMAL.search), where(GREETING.search)
    open_ended = dict.fromkeys(where(lambda text: OPEN_END.search(text[-20:])), (0, 0))  # what is missing has no place
    addressed = len(formal.keys() | informal.keys())
    for name, odd, among, note in (
        ("style: address", informal, addressed, "«ты» among «вы»"),
        ("style: address", formal, addressed, "«вы» among «ты»"),
        ("style: greeting", greeting, len(answers), "a greeting or a signature, which most answers lack"),
        ("style: ending", open_ended, len(answers), "no closing punctuation, unlike most answers"),
    ):
        if odd and len(odd) + majority * among <= among + 1e-9:
            advice = "one voice is learned faster than two; make them alike, or keep them if you mean it"
            yield Finding(name, "I", advice, [Hit(row, "answer", *span, note) for row, span in odd.items()])
    median = statistics.median(map(len, answers.values()))
    long = [Hit(row, "answer", note=f"{len(text)} characters") for row, text in answers.items() if len(text) > length * median]
    if long and len(answers) >= 10:
        yield Finding("style: length", "I", f"the median answer has {median:.0f} characters; is the long one needed?", long)


@check("diversity")
def diversity(
    context: CheckContext, cluster: float = 0.05, prompts: float = 0.8, opening: float = 0.3, words: int = 3
) -> Iterator[Finding]:
    """Too much alike: few distinct prompts, one group of near twins, or answers that open with the same words."""
    n = len(context.rows)
    if n < 10:
        return
    distinct = len(set(context.same_questions)) / n
    if distinct < prompts:
        yield Finding("diversity", "I", f"only {distinct:.0%} of the questions are distinct; add other situations")
    biggest = max(clusters(n, context.near), key=len)
    if len(biggest) > max(3, cluster * n):
        advice = f"{len(biggest)} rows ({len(biggest) / n:.0%}) are one group of look-alikes; the model will learn mostly these"
        yield Finding("diversity", "I", advice, [Hit(row) for row in biggest])
    answers = [text.split() for text in context.same_answers]
    text, count = Counter(" ".join(some[:words]) for some in answers).most_common(1)[0]
    # One-word answers are a label, which is meant to come back.
    if text and count > opening * n and statistics.median(map(len, answers)) > words:
        yield Finding("diversity", "I", f"{count} answers ({count / n:.0%}) open with “{text}”; the model will too")
