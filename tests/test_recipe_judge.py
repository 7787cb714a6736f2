"""docs/recipes.md: a judge with habits that are known, and over HTTP against a server started here."""

import io
import json
import threading
import types
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from recipes import recipe

TITLE = "Another model as a judge"
KEY = "sk-not-a-real-key-0123456789"
PROMPT = "<answer_A>\nдлинный\n</answer_A>\n<answer_B>\n\n</answer_B>"


@pytest.fixture
def names():
    return recipe(TITLE)


def table(n=12):
    return pd.DataFrame(
        [{"question": f"Вопрос {i}?", "wanted": "", "base": "Коротко.", "tuned": f"Ответ длиннее, номер {i}."} for i in range(n)]
    )


def between(prompt, tag):
    return prompt.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def longer(prompt):
    return f"One of them says more.\n{'A' if len(between(prompt, 'answer_A')) > len(between(prompt, 'answer_B')) else 'B'}"


def test_a_judge_that_always_takes_the_first_has_seen_nothing(names):
    assert names["judge"](table(), lambda prompt: "A", {}) == {"SAME": 12}


def test_a_judge_that_prefers_the_longer_answer_lets_it_win(names):
    assert names["judge"](table(), longer, {}) == {"tuned": 12}
    assert names["judge"](table(), longer, {}, "tuned", "base") == {"tuned": 12}


def test_ties_identical_answers_and_unreadable_replies_are_counted(names):
    answers, asked = table(4), []
    answers.loc[0, "tuned"] = " Коротко. "

    def shy(prompt):
        asked.append(prompt)
        return "I would rather not say." if "Вопрос 2" in prompt and len(asked) % 2 else longer(prompt)

    assert names["judge"](answers, shy, {}) == {"identical": 1, "tuned": 2, "unreadable": 1}
    assert len(asked) == 6

    def half(prompt):  # half a preference is a tie
        return "SAME" if len(between(prompt, "answer_A")) > 10 else "A"

    assert names["judge"](table(3), half, {}) == {"SAME": 3}


def test_texts_with_braces_are_only_texts(names):
    replies = {}
    answers = pd.DataFrame([{"question": "Цена {a}?", "wanted": "{0}", "base": "{b}", "tuned": "{x}"}])
    names["judge"](answers, lambda prompt: "A", replies)
    parts = [[between(p, tag) for tag in ("question", "right_answer", "answer_A", "answer_B")] for p in replies]
    assert parts == [["Цена {a}?", "{0}", "{b}", "{x}"], ["Цена {a}?", "{0}", "{x}", "{b}"]]


def test_replies_already_paid_for_are_not_asked_again(names):
    calls, replies = [], {}

    def runs_out(prompt):
        calls.append(prompt)
        if len(calls) == 11:
            raise RuntimeError("quota is used up")
        return longer(prompt)

    with pytest.raises(RuntimeError, match="quota"):
        names["judge"](table(), runs_out, replies)
    assert names["judge"](table(), runs_out, replies) == {"tuned": 12}
    assert len(calls) == 25  # 24 and the one that failed


@pytest.mark.parametrize(
    ("reply", "vote"),
    [
        ("The first is polite.\n\n**B**", "B"),
        ("A\nOn second thoughts:\nB\n", "B"),
        ("[[same]]", "SAME"),
        ("<think>\nA\n</think>\nB", "B"),
        ("<think>\nA\n", None),  # cut off in mid-thought
        ("A or B", None),
        ("", None),
        ("-\n" * 200_000 + "A", "A"),
    ],
)
def test_a_verdict_is_a_line_of_its_own(names, reply, vote):
    assert names["vote"](reply) == vote


# ------------------------------------------------------------------------------------------ over HTTP
@pytest.fixture
def server():
    """(base_url, requests it got, statuses it still has to give before it answers)"""
    got, statuses = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, dict(self.headers), body))
            status = statuses.pop(0) if statuses else 200
            reply = {"error": {"message": f"no, {self.headers.get('Authorization')}"}}
            if status == 200:
                reply = {"choices": [{"message": {"role": "assistant", "content": longer(body["messages"][0]["content"])}}]}
            content = json.dumps(reply).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            got.append((self.path, dict(self.headers), None))
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", got, statuses
    server.shutdown()
    server.server_close()


def test_a_chat_model_behind_an_endpoint_judges(names, server):
    url, got, _ = server
    counts = names["judge"](table(10), names["endpoint"]("some-model", url, key=KEY, temperature=0), {})
    assert counts == {"tuned": 10}
    assert len(got) == 20
    path, headers, body = got[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("some-model", 0)
    names["endpoint"]("some-model", url)(PROMPT)
    assert "Authorization" not in got[-1][1]


def test_the_call_on_the_page_prints_counts_and_no_key(names, server, monkeypatch, capsys):
    url, got, _ = server
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    evaluation = types.SimpleNamespace(rows=lambda: table(30))
    recipe(TITLE, 1, names | {"evaluation": evaluation}, ("https://api.openai.com/v1", url))
    said = capsys.readouterr().out
    assert "'tuned': 20" in said
    assert "p = 1.9" in said  # 2 / 2 ** 20
    assert KEY not in said
    assert len(got) == 40


def test_a_busy_server_is_asked_again_and_no_refusal_shows_the_key(names, server, monkeypatch, capsys):
    url, got, statuses = server
    waited = []
    monkeypatch.setattr(names["time"], "sleep", waited.append)
    ask = names["endpoint"]("some-model", url, key=KEY)
    statuses += [429, 503]
    assert names["vote"](ask(PROMPT)) == "A"
    assert (len(got), waited) == (3, [1, 4])
    statuses += [401]
    with pytest.raises(RuntimeError, match=r"some-model gave no reply \(401: .*\*\*\*") as refused:
        ask(PROMPT)
    assert len(got) == 4
    assert KEY not in str(refused.value) + repr(ask) + "".join(capsys.readouterr())
    statuses += [500] * 3
    with pytest.raises(RuntimeError, match="500"):
        ask(PROMPT)


def test_a_key_in_a_long_refusal_is_hidden_before_the_text_is_cut(names, monkeypatch):
    said = io.BytesIO(b"x" * 280 + KEY.encode() + b" is not valid")

    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 401, "no", {}, said)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(RuntimeError, match=r"x\*\*\* is not valid"):
        names["endpoint"]("m", "http://localhost/v1", key=KEY)("?")


def test_the_key_does_not_follow_a_redirect(names, server):
    url, got, statuses = server
    statuses += [302]
    with pytest.raises(RuntimeError, match="404"):
        names["endpoint"]("m", url, key=KEY)("?")
    assert [path for path, _, _ in got] == ["/v1/chat/completions", "/elsewhere"]
    assert KEY not in json.dumps(got[1][1])


@pytest.mark.parametrize("key", [KEY + "\n", KEY + "…", "Bearer " + KEY, KEY + "\x00"])
def test_a_slip_in_the_key_does_not_show_it(names, server, key, capsys):
    url, got, _ = server
    with pytest.raises(ValueError, match="copy the whole key again") as refused:
        names["endpoint"]("m", url, key=key)("?")
    assert KEY not in "".join((str(refused.value), *capsys.readouterr()))
    assert got == []


@pytest.mark.parametrize(
    "url", ["https://me:{}@api.openai.com/v1", "https://api.openai.com/v1?key={}", "me:{}@api.openai.com", "{}"]
)
def test_a_password_in_the_address_is_not_shown(names, url, capsys):
    with pytest.raises(ValueError, match="without a password; give that as key=") as refused:
        names["endpoint"]("m", url.format(KEY))
    assert KEY not in "".join((str(refused.value), *capsys.readouterr()))


def test_it_is_said_beforehand_where_the_texts_go(names, server, capsys):
    url, got, _ = server
    names["endpoint"]("m", url)
    assert "127.0.0.1 will be sent the questions and answers of the rows to be judged" in capsys.readouterr().out
    assert got == []
