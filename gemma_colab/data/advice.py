"""What to say of columns that are not recognized: which known form this is, or a mapping, where their texts look like an answer."""

import re
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.schema import EXTRAS, HEADER, NAMES, RATINGS, ROLES, listed, named, normal, say_mapping, shown

ROW = '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
FORMS = {  # what gives a form away, an id or a column of lists -> what it is; what to do
    "parent id, message tree id, replies, mapping": "a tree of messages, where a question has several answers; write each path from"
    f" the first question to an answer as one row {ROW}",
    "from id, personal information": "an export of Telegram, one message a row; decide whose messages are the answers, and write each"
    f" conversation as one row {ROW}",
    "answers, paragraphs, qas": 'lists of answers, as in SQuAD; write one row {"question": ..., "context": ..., "answer": ...} for each',
}
# One message a row: who speaks, and what.
SPEAKERS = set("role from user sender author speaker who роль от автор отправитель кто".split())
SAID = set("text content message body value utterance текст сообщение реплика".split())
# Two of these are two answers, of which one is the better.
RIVALS = re.compile(r".*\b(chosen|rejected|better|worse)\b.*|(left|right) .*|(answer|response|output) ?([abjk\d]|left|right)")
# A name of something else than an answer, whatever its texts look like.
NO_ANSWER = "quest quer prompt instr input frage pregunt вопрос запрос задани comment note комментар примечан user client клиент explan reason"
NO_ANSWER += r" \b(id|name|lang|language|title|topic|subject|source|model|author|from|to|date|time|url|link|role|type|status|tags?|context)\b"
NO_ANSWER = re.compile("|".join(f"{NO_ANSWER} имя фио назван заголов тема язык автор источник контекст".split()))
SEVERAL_WORDS = re.compile(r"(?<!\S)(?:[\d_]|[^\w\s])*+[^\W\d_]\S*+\s++(?:[\d_]|[^\w\s])*+[^\W\d_]")  # no date, link or role
SENTENCE = re.compile(r"[.!?…»)\"`:]$|\n|(?<!\S)(\S++\s++){14}")  # ends like one, or is long: no name, title or label


def explain(problem: str, record: dict[str, Any], others: list[tuple[int, Any]]) -> tuple[str, str, dict[str, str]]:
    """Return what is wrong with the columns of a record, what to do, and a mapping that may be meant; {} where nothing looks like it.
    others: (line, record), which show what the columns hold."""
    alike = [other for _, other in others if isinstance(other, dict) and other.keys() == record.keys()] or [record]
    values = {c: [r[c].strip() for r in alike if isinstance(r[c], str) and r[c].strip()] for c in record}
    names, found = {normal(c): c for c in record}, named(record)
    nested = [name for name, c in names.items() if name.endswith("id") or isinstance(record[c], (list, dict))]
    for signs, form in FORMS.items():
        if {*signs.split(", ")} & {*nested}:
            return *form.split("; ", 1), {}
    texts = [c for c, some in values.items() if _most(SEVERAL_WORDS, some)]
    answers = [c for c in texts if _most(SENTENCE, values[c]) and not NO_ANSWER.search(normal(c))]
    asked = [c for ours in ("instruction", "question", "input") for c in found[ours]]
    mapping = dict(zip(("instruction", "input"), asked, strict=False))
    if "chosen" in names and (asked or "chosen" in nested):
        told = say_mapping(mapping | {"output" if asked else "messages": names["chosen"]})
        told += ', or {"messages": "chosen"} of whole chats' * bool(asked)
        return "preference data", f"to learn the chosen answers say {told}", {}
    if sum(bool(RIVALS.fullmatch(name)) for name in names) > 1:
        return "preference data", 'write each question with its better answer as one row {"instruction": ..., "output": ...}', {}
    speakers = [c for name, c in names.items() if name in SPEAKERS and SAID & names.keys() - {name} and c not in texts]
    speakers += [c for c, some in values.items() if some and {text.lower() for text in some} <= ROLES.keys()]
    if speakers:
        key = shown(found["conversation"][0]) if found["conversation"] else "conversation"
        how = f"join those of each {key} to one row {ROW}, as docs/recipes.md does"
        return f"one message a row, and {shown(speakers[0])} says whose", how, {}
    if any(SENTENCE.search(c) and SEVERAL_WORDS.search(c) for c in record):
        return problem, HEADER, {}
    known = found["output"]
    said = known if len(known) == 1 else [c for c in known or answers if c in answers and c not in asked]
    beside = {ours: found[ours][0] for ours in EXTRAS if found[ours]}
    # For a page that shows three rows of it, a bold guess: the longest text is the answer, hardly the first; the one before it the question.
    longest = sorted(said, key=lambda c: ([c] == texts[:1], -sum(map(len, values[c]))))[:1]
    others, order = [c for c in texts if c not in longest], [*record].index
    before = [c for c in others if order(c) < max(map(order, longest), default=0)] or others[:1]
    guess = mapping or dict(zip(["instruction"], before[-1:], strict=False))
    guess = guess | {"output": longest[0]} | beside if guess and longest and len(asked) < 3 else {}
    if not asked:  # of two texts the last is taken for the answer
        said = said[-1:]
        mapping = dict(zip(["instruction"], {*texts} - {*said}, strict=False)) if len({*texts, *said}) == 2 else {}
    if len(said) == 1 and mapping and len(asked) < 3:
        told, asked = say_mapping(mapping | {"output": said[0]}), mapping.values()
        sure = f"if {listed(asked)} holds the question and {shown(said[0])} the answer, say {told}"
        return problem, sure, mapping | {"output": said[0]} | beside
    how = 'mapping={"instruction": ..., "output": ...} (in a terminal: --map instruction=COLUMN --map output=COLUMN)'
    return problem, f"a row needs a question and an answer; name their columns, with {how}; {HEADER}", guess


def _most(pattern: re.Pattern, texts: list[str]) -> bool:
    """Tell whether the pattern is in most of these texts, and they are no few that are in row after row."""
    return 2 * len(set(texts)) > len(texts) < 2 * sum(bool(pattern.search(text)) for text in texts)


def refuse_ratings(name: str, marks: set[tuple[str, str]]) -> None:
    """Raise `DatasetError` where a column holds numbers that may rate the answers. marks: (column, what it holds)."""
    for column in dict.fromkeys(column for column, _ in sorted(marks) if normal(column) in RATINGS):
        numbers = {float(text) for c, text in marks if c == column and re.fullmatch(r" *-?\d+(\.\d+)? *", text)}
        if len(numbers) > 1 and (normal(column) not in NAMES["label"] or numbers in ({0, 1}, {-1, 1})):  # else numbers of classes
            what = f"the column {shown(column)} ({min(numbers):g} to {max(numbers):g}) may rate the answers"
            remedy = f"delete the bad rows and the column, or, to learn all of them, say {say_mapping({'label': column})}"
            raise DatasetError(f"{name}: {what}, and bad ones would be learned like good ones; {remedy}")
