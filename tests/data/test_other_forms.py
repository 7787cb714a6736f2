"""Other people's forms of data: what is not to be learned stays out, what the texts need is missed, and no remedy trains nonsense."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from recipes import recipe

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import answer, prompt
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows
from gemma_colab.data.schema import say_mapping
from gemma_colab.data.turns import fit

ASKED = [f"Where is order {i}, please?" for i in range(8)]
SAID = [f"Order {i} is on its way and comes tomorrow." for i in range(8)]
TOPICS = ["way", "money"] * 4


def put(folder, name, records, **how):
    path = folder / name
    if name.endswith(".csv"):
        pd.DataFrame(records).to_csv(path, index=False)
    elif name.endswith(".parquet"):
        pd.DataFrame(records).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(r, ensure_ascii=False, **how) + "\n" for r in records), encoding="utf-8")
    return path


def rows_with(**columns):
    """Records of a question and an answer, and these columns: one value for all, or a list."""
    made = []
    for i, (asked, said) in enumerate(zip(ASKED, SAID, strict=True)):
        made.append({"question": asked, "answer": said} | {c: v[i] if isinstance(v, list) else v for c, v in columns.items()})
    return made


def chat(*turns):
    """Turns of user and assistant; a pair is a text and what else is said of the turn."""
    roles, turns = ("user", "assistant"), [turn if isinstance(turn, tuple) else (turn, {}) for turn in turns]
    return {"messages": [{"role": roles[i % 2], "content": text} | more for i, (text, more) in enumerate(turns)]}


def refusal(path, **options):
    with pytest.raises(DatasetError) as caught:
        read_rows(path, on_bad="aside", **options)
    return str(caught.value)


# --- what is not to be learned


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize(
    ("column", "yes", "no"),
    [
        ("label", True, False),
        ("is_good", True, False),
        ("is_good", 1, 0),
        ("Weight", 1.0, 0.0),
        ("train", True, False),
        ("loss_weight", 1, 0),
        ("rating", "good", "bad"),
        ("feedback", "👍", "👎"),
        ("оценка", "хорошо", "плохо"),
        ("feedback", "positive", "negative"),
        ("verdict", "right", "wrong"),
        ("is_ok", True, False),
        ("deleted", False, True),
        ("skip", "no", "yes"),
    ],
)
def test_rows_that_are_marked_are_left_out_and_counted(tmp_path, name, column, yes, no):
    path = put(tmp_path, name, rows_with(**{column: [yes, no] * 4}))
    source = read_rows(path, on_bad="aside")
    assert [answer(row) for row in source.rows] == SAID[::2]
    first = 1 + name.endswith(".csv")
    assert [(bad["line"], bad["field"]) for bad in source.aside] == [(first + i, column) for i in (1, 3, 5, 7)]
    report = check_rows(source.rows, aside=source.aside)
    (found,) = [f for f in report.findings if f.check == "not to be learned"]
    assert (found.severity, found.lines) == ("W", [first + i for i in (1, 3, 5, 7)])
    assert "unreadable row" not in report.reason
    assert "so this row is not to be learned; left out; to learn it" in repr(report)
    told = read_rows(path, mapping={"label": column})  # somebody means a class
    assert [answer(row) for row in told.rows] == SAID


def test_a_marked_row_beside_an_unreadable_one(tmp_path):
    path = put(tmp_path, "a.jsonl", [*rows_with(label=[True, False] * 4), {"question": "a", "answer": 5}])
    source = read_rows(path, on_bad="aside")
    report = check_rows(source.rows, aside=source.aside)
    assert {f.check: f.lines for f in report.findings if f.lines} == {"unreadable row": [9], "not to be learned": [2, 4, 6, 8]}
    said = repr(report).split("not to be learned in")
    assert "5, not a text" in said[0]
    assert "5, not a text" not in said[1]


@pytest.mark.parametrize(
    "labels", [TOPICS, list(range(8)), ["0", "1", "2", "3"] * 2, ["yes", "no"] * 4, ["positive", "negative"] * 4]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_label_that_is_a_class_stays_one(tmp_path, name, labels):
    source = read_rows(put(tmp_path, name, rows_with(label=labels)))
    assert [row["label"] for row in source.rows] == list(map(str, labels))
    assert not source.aside


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", [0, 1] * 4),
        ("label", ["1", "-1"] * 4),
        ("rating", [1, 2, 3, 4, 5, 5, 5, 5]),
        ("оценка", [5, 2] * 4),
        ("score", [0.1, 0.9] * 4),
    ],
)
def test_numbers_that_may_rate_answers_are_asked_about(tmp_path, column, values):
    for name in ("a.jsonl", "a.csv"):
        path = put(tmp_path, name, rows_with(**{column: values}))
        message = refusal(path)
        assert f"the column '{column}' (" in message
        assert "may rate the answers, and bad ones would be learned like good ones" in message
        assert say_mapping({"label": column}) in message
        assert len(read_rows(path, mapping={"label": column}).rows) == 8


def test_a_rating_that_is_the_same_in_all_rows_asks_nothing(tmp_path):
    assert len(read_rows(put(tmp_path, "a.jsonl", rows_with(rating=5))).rows) == 8


MARKS = [
    {"weight": 0},
    {"weight": 0.0},
    {"train": False},
    {"loss_weight": 0},
    {"loss": False},
    {"training": False},
    {"learn": "no"},
]


@pytest.mark.parametrize("mark", MARKS, ids=str)
def test_a_turn_that_is_marked_is_read_and_not_learned(tmp_path, tokenizer, mark):
    record = chat(
        "Hi!", ("RUDE", mark), "Where is it?", ("On its way.", {"weight": 1}), ("Thanks", {"weight": 0}), ("Bye!", mark)
    )
    source = read_rows(put(tmp_path, "a.jsonl", [record]))
    (row,) = source.rows
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == [
        ("user", "Hi!"), ("model", "RUDE"), ("user", "Where is it?"), ("assistant", "On its way.")]  # fmt: skip
    assert [turn["role"] for turn in prompt(row)] == ["user", "assistant", "user"]  # as every server knows them
    whole = tokenize_row(row, tokenizer)
    assert (
        tokenizer.decode([i for i, label in zip(*whole.values(), strict=True) if label != -100]) == "On its way.<end_of_turn>\n"
    )
    usual = chat("Hi!", "RUDE", "Where is it?", "On its way.")
    assert whole["input_ids"] == tokenize_row(usual, tokenizer)["input_ids"]
    (found,) = [f for f in check_rows(source.rows).findings if f.check == "read, not learned"]
    assert found.hits[0].note == "read only: 1; cut: 1"
    (again,) = read_rows(put(tmp_path, "again.jsonl", source.rows)).rows  # a row that we saved
    assert again["messages"] == row["messages"]


def test_a_conversation_without_an_answer_to_learn_is_left_out(tmp_path):
    rows = [chat("a", "b"), chat("a", ("b", {"weight": 0})), chat("a", ("b", {"weight": 0}), "c", ("d", {"weight": 0}))]
    source = read_rows(put(tmp_path, "a.jsonl", rows), on_bad="aside")
    assert [bad["line"] for bad in source.aside] == [2, 3]
    assert all("marked" in bad and "all answers are marked" in bad["problem"] for bad in source.aside)


def test_a_conversation_that_is_cut_does_not_end_on_an_answer_to_skip(tmp_path, tokenizer):
    record = chat("a", "b " * 40, "c", ("d " * 40, {"weight": 0}), "e", "f " * 40)
    rows = read_rows(put(tmp_path, "a.jsonl", [record])).rows
    size = len(tokenize_row(chat("a", "b " * 40, "c", "d " * 40), tokenizer)["input_ids"])
    pieces, _ = fit(rows, tokenizer, size + 5, "split")
    assert [[turn["role"] for turn in row["messages"]] for row in pieces] == [["user", "assistant"], ["user", "assistant"]]


# --- what the texts need


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"images": ["a.jpg"]}, "which the texts of the row don't hold; this series trains on texts only"),
        ({"image": "photo.png"}, "don't hold; this series"),
        ({"image_url": "https://x/y"}, "don't hold; this series"),
        ({"audio": {"path": "a.wav"}}, "don't hold; this series"),
        ({"video": "a.mp4"}, "don't hold; this series"),
        ({"has_image": True}, "don't hold; this series"),
        ({"tools": [{"name": "find"}]}, "don't hold; this series"),
        ({"choices": ["red", "green"]}, "['red', 'green'], which the texts of the row don't hold"),
        ({"choices": {"text": ["red", "green"], "label": ["A", "B"]}}, "which the texts of the row don't hold"),
        ({"options": {"A": "red", "B": "green"}}, "which the texts of the row don't hold"),
        ({"option_a": "red", "option_b": "green"}, "which the texts of the row don't hold"),
        ({"A": "red", "B": "green", "C": "blue"}, "which the texts of the row don't hold"),
        ({"варианты ответа": "красный; зелёный"}, "write what the question needs of it there"),
    ],
)
def test_columns_that_the_texts_need_are_not_ignored(tmp_path, columns, words):
    records = [record | columns for record in rows_with()]
    assert words in refusal(put(tmp_path, "a.jsonl", records))
    source = read_rows(put(tmp_path, "b.jsonl", [*rows_with(), records[0]]), on_bad="aside")
    assert (len(source.rows), [bad["line"] for bad in source.aside]) == (8, [9])


@pytest.mark.parametrize(
    "columns",
    [
        {"images": []},
        {"image": None},
        {"image": ""},
        {"has_image": False},
        {"tools": "[]"},
        {"choices": ["order", "please"]},  # the question holds them
        {"a": "x", "b": "y"},
        {"id": "photo.jpg", "imagery": "x", "optional": "y"},
    ],
)
def test_columns_that_the_texts_do_not_need(tmp_path, columns):
    assert len(read_rows(put(tmp_path, "a.jsonl", rows_with(**{c: [v] * 8 for c, v in columns.items()}))).rows) == 8


@pytest.mark.parametrize("column", ["context", "passage", "document", "документ"])
def test_a_text_that_is_asked_about_stands_in_the_question(tmp_path, column):
    row = read_rows(put(tmp_path, "a.jsonl", rows_with(**{column: "Orders are slow in May."}))).rows[0]
    assert question(row) == f"{ASKED[0]}\n\nOrders are slow in May."


def test_an_empty_cell_of_a_table_is_no_image(tmp_path):
    path = put(tmp_path, "a.csv", rows_with(image=[None] * 7 + ["a.jpg"]))
    source = read_rows(path, on_bad="aside")
    assert (len(source.rows), [bad["line"] for bad in source.aside]) == (7, [9])


# --- known forms

TREE = {"message_id": "1", "parent_id": None, "text": "Hi, where is it?", "role": "prompter", "lang": "en"}
SQUAD = {
    "id": "1",
    "title": "Post",
    "context": "A long text.",
    "question": "Who?",
    "answers": {"text": ["he"], "answer_start": [3]},
}
SPOKEN = [("user", ASKED[0]), ("assistant", SAID[0])] * 4


def talk(who, what, **more):
    return [{who: role, what: text} | more for role, text in SPOKEN]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (talk("role", "text", dialog_id=1), "one message a row, and 'role' says whose; join those of each 'dialog_id' to one row"),
        (talk("sender", "message"), "one message a row, and 'sender' says whose; join those of each conversation"),
        (talk("who", "said"), "one message a row, and 'who' says whose"),  # by what it holds
        ([{"user": "U01", "text": text, "ts": "1.2"} for _, text in SPOKEN], "one message a row, and 'user' says whose"),
        ([{"автор": "Анна", "сообщение": text} for _, text in SPOKEN], "one message a row, and 'автор' says whose"),
        ([TREE] * 4, "a tree of messages, where a question has several answers"),
        ([{"message_tree_id": "1", "prompt": TREE | {"replies": [TREE]}}], "a tree of messages"),
        ([{"title": "x", "create_time": 1.5, "mapping": {"a": {"message": None}}}], "a tree of messages"),
        ([SQUAD] * 4, "lists of answers, as in SQuAD"),
        ([{"title": "Post", "paragraphs": [{"context": "A text.", "qas": []}]}], "as in SQuAD"),
        ([{"question": "q", "answers": ["a", "b"]}], "lists of answers"),
        ([{"id": i, "type": "message", "date": "2024-01-01", "from": "Anna", "from_id": "user1", "text": t} for i, (_, t) in enumerate(SPOKEN)], "an export of Telegram"),
        ([{"question": "q", "chosen": "c", "rejected": "r"}], "--map instruction=question --map output=chosen"),
        ([{"system": "s", "prompt": "q", "chosen": "c", "rejected": "r"}], "--map instruction=prompt --map output=chosen"),
        ([{"chosen": SPOKEN[:2], "rejected": SPOKEN[:2]}], "--map messages=chosen"),
        ([{"chosen": "Human: Hi. Assistant: Hello.", "rejected": "Human: Hi. Assistant: No."}], "preference data; write each question with its better answer"),
        ([{"prompt": "q", "response_a": "a b.", "response_b": "c d.", "winner": "a"}], "preference data; write each question with its better answer"),
        ([{"prompt": "q", "left_answer": "a b.", "right_answer": "c d."}], "preference data; write each question with its better answer"),
        ([["a b", "c d"]] * 3, "['a b', 'c d'], not an object with columns; if these are a question and its answer, write a row as"),
    ],
)  # fmt: skip
def test_known_forms_are_named(tmp_path, records, words):
    message = refusal(put(tmp_path, "a.jsonl", records))
    assert words in message
    assert "output=role" not in message
    assert len(message) < 500


def test_telegrams_file_as_it_is_written(tmp_path):
    said = [
        {"id": i, "type": "message", "date": "2024-01-01", "from": "Anna", "from_id": "user1", "text": t}
        for i, t in enumerate(SAID)
    ]
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"name": "Shop", "type": "personal_chat", "id": 7, "messages": said}, indent=1))
    assert "an export of Telegram" in refusal(path)


def test_one_message_a_row_is_joined_by_the_recipe(tmp_path, monkeypatch):
    ids = ["7", "007", "NA", "3", "4", "5", "6", "null"]  # two of which pandas would take for one, and two for nothing
    table = [
        {"dialog_id": ids[i // 2], "role": ("user", "assistant")[i % 2], "text": text}
        for i, text in enumerate(text for pair in zip(ASKED, SAID, strict=True) for text in pair)
    ]
    put(tmp_path, "messages.csv", table)
    monkeypatch.chdir(tmp_path)
    recipe("One message a row")
    rows = read_rows("chats.jsonl").rows
    assert [(question(row), answer(row), row["conversation"]) for row in rows] == [*zip(ASKED, SAID, ids, strict=True)]


# --- a mapping that is proposed

PAIRS = [{"frage": asked, "antwort": said} for asked, said in zip(ASKED, SAID, strict=True)]


@pytest.mark.parametrize(
    ("records", "line"),
    [
        (PAIRS, "--map instruction=frage --map output=antwort"),
        ([{"antwort": r["antwort"], "frage": r["frage"]} for r in PAIRS], "--map instruction=frage --map output=antwort"),
        ([r | {"lang": "de", "date": "5 May 2026", "name": "Anna Smith"} for r in PAIRS], "--map instruction=frage --map output=antwort"),
        ([{"question": r["frage"], "solution": r["antwort"], "model": "Gemma 3 of 2025."} for r in PAIRS], "--map instruction=question --map output=solution"),
        ([{"answer": r["antwort"], "anliegen": r["frage"], "n": 5} for r in PAIRS], "--map instruction=anliegen --map output=answer"),
        ([{"question": r["frage"], "answer": "B", "response": r["antwort"]} for r in PAIRS], "--map instruction=question --map output=response"),
    ],
)  # fmt: skip
def test_a_mapping_is_proposed_where_texts_look_like_answers(tmp_path, records, line):
    message = refusal(put(tmp_path, "a.csv", records))
    assert "holds the question and" in message
    assert f"(on the command line: {line})" in message


CLOSED = ["Please call them back.", "Please send a mail."] * 4


@pytest.mark.parametrize(
    "columns",
    [
        {"right_model": "gpt-4 turbo preview"},
        {"orig_instruction": SAID},
        {"name": ["Anna Smith", "Otto Weber"] * 4},
        {"lang": "en"},
        {"title": SAID},
        {"from": ["Anna Smith <a@b.de>"] * 8},
        {"date": [f"{i} May 2026, at noon" for i in range(8)]},
        {"heading": [f"How to return order {i}" for i in range(8)]},
        {"next_step": CLOSED},
        {"language_name": ["German (Austria)", "German (Swiss)"] * 4},
        {"comment": SAID},
        {"explanation": SAID},
        {"one": SAID, "two": SAID},  # either
        {"response": SAID, "completion": SAID},
    ],
)
def test_no_mapping_is_proposed_where_it_would_train_nonsense(tmp_path, columns):
    records = [{c: v for c, v in r.items() if c != "answer"} for r in rows_with(**columns)]
    message = refusal(put(tmp_path, "a.csv", records))
    assert "name their columns" in message
    assert not any(f"output={column}" in message for column in columns)


def test_a_first_row_in_place_of_names_is_not_mapped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(f'"{asked}","{said}"' for asked, said in zip(ASKED, SAID, strict=True)))
    message = refusal(path)
    assert "if line 1 is a row, write the columns' names above it, such as question,answer" in message
    assert "--map" not in message


# --- spellings

PART = {"type": "text", "text": "On its way."}


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "value": "On its way."}],
        [{"type": "output_text", "text": "On its way.", "annotations": []}],
        [{"type": "input_text", "text": "On its "}, {"type": "input_text", "text": "way."}],
        [{"type": "text", "text": {"value": "On its way.", "annotations": []}}],
        [{"type": "text", "text": None, "value": "On its way."}],
        ["On its way."],
    ],
)
def test_parts_of_a_turn(tmp_path, content):
    (row,) = read_rows(put(tmp_path, "a.jsonl", [chat("a", "b") | {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]}])).rows  # fmt: skip
    assert answer(row) == "On its way."


@pytest.mark.parametrize(
    "part", [{"type": "image"}, {"type": "input_image", "image_url": "x"}, {"type": "refusal", "refusal": "No."}, 5]
)
def test_parts_that_are_no_text(tmp_path, part):
    assert "not a part of text" in refusal(put(tmp_path, "a.jsonl", [chat("a", [part])]))


@pytest.mark.parametrize(
    ("asks", "answers"),
    [("user", "bot"), ("human", "ai"), ("prompter", "assistant"), ("Клиент", "Оператор"), ("пользователь", "бот"), ("customer", "agent"), ("USER", "CHATBOT")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("who", "what"), [("role", "content"), ("from", "value"), ("speaker", "text"), ("sender", "message"), ("type", "content")]
)
def test_roles_of_others(tmp_path, asks, answers, who, what):
    turns = [{who: asks, what: "a"}, {who: answers, what: "b"}]
    row, _ = read_rows(put(tmp_path, "a.jsonl", [{"messages": turns}] * 2)).rows
    assert row["messages"] == chat("a", "b")["messages"]


def test_chats_as_text_in_a_cell(tmp_path):
    turns = [chat(asked, said)["messages"] for asked, said in zip(ASKED, SAID, strict=True)]
    for column in ("messages", "conversation", "диалог"):
        for write in (json.dumps, str, lambda value: json.dumps(value, indent=1)):
            rows = read_rows(put(tmp_path, "a.csv", [{column: write(some), "n": 1} for some in turns])).rows
            assert [row["messages"] for row in rows] == turns
    halves = [{"prompt": json.dumps(some[:1]), "completion": str(some[1:])} for some in turns]
    assert [row["messages"] for row in read_rows(put(tmp_path, "a.csv", halves)).rows] == turns
    pairs = [{"instruction": "c", "output": "d", "history": '[["a", "b"]]'}]
    assert read_rows(put(tmp_path, "a.csv", pairs)).rows[0]["messages"] == chat("a", "b", "c", "d")["messages"]
    broken = put(tmp_path, "a.csv", [{"messages": json.dumps(turns[0])[:-9], "n": 1}])
    assert "not a list of turns" in refusal(broken)
    wanted = json.dumps(chat("a", "b")["messages"])  # an answer that is a chat is what somebody wants written
    assert answer(read_rows(put(tmp_path, "a.csv", [{"question": "Write a dialog", "answer": wanted}])).rows[0]) == wanted


def test_a_list_of_turns_is_a_row(tmp_path):
    assert read_rows(put(tmp_path, "a.jsonl", [chat("a", "b")["messages"]] * 2)).rows[1]["messages"] == chat("a", "b")["messages"]


# --- JSON as people write it

COMMENTED = """// my data
/* of
   two sources */
[
{"question": "a // b", "answer": "see https://x.y # z"}, // the first
# an old one: {"question": "no", "answer": "no"}
{"question": "c", /* why */ "answer": "d",},
{"question": "e", "answer": "f, }"},
]
"""


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_comments_and_trailing_commas(tmp_path, name):
    path = tmp_path / name
    path.write_text(COMMENTED)
    pairs = [(5, "a // b", "see https://x.y # z"), (7, "c", "d"), (8, "e", "f, }")]
    assert [(row["line"], question(row), answer(row)) for row in read_rows(path).rows] == pairs


def test_comments_and_commas_in_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    good = '{"question": "a", "answer": "// b, ]"}'
    path.write_text(
        f'// mine\n{good},\n# {good}\n{good} // c\n{good[:-1]},}}\n{{"question": "see "https://x" now", "answer": "b"}}\n'
    )
    source = read_rows(path, on_bad="aside")
    assert [(row["line"], answer(row)) for row in source.rows] == [(2, "// b, ]"), (4, "// b, ]"), (5, "// b, ]")]
    assert [(bad["line"], bad["content"].strip()) for bad in source.aside] == [
        (6, '{"question": "see "https://x" now", "answer": "b"}')
    ]


def test_the_command_line_says_it(tmp_path):
    path = put(tmp_path, "kto.jsonl", rows_with(label=[True, False] * 4))
    done = subprocess.run([sys.executable, "-m", "gemma_colab", "check", str(path)], capture_output=True, text=True, check=False)
    assert "W  not to be learned in 4 rows (line 2, 4, 6, 8)" in done.stdout
