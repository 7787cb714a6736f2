"""The judge: with functions whose habits are known, and over HTTP against a server started here."""

import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from gemma_colab.core.errors import DatasetError, ModelError, SettingsError
from gemma_colab.evaluation import judge as module
from gemma_colab.evaluation.judge import PROMPT, endpoint, judge, judge_summary, read_vote

KEY = "sk-not-a-real-key-0123456789"


def table(n=12):
    lines = [
        {"question": f"Вопрос {i}?", "wanted": "", "base": "Коротко.", "tuned": f"Ответ длиннее, номер {i}."} for i in range(n)
    ]
    return pd.DataFrame(lines)


def between(prompt, tag):
    return prompt.split(f"<{tag}>\n")[1].split(f"\n</{tag}>")[0]


def longer(prompt):
    a, b = between(prompt, "answer_A"), between(prompt, "answer_B")
    return f"One of them says more.\n{'A' if len(a) > len(b) else 'B'}"


# ------------------------------------------------------------------------------------------ votes
def test_a_judge_that_always_takes_the_first_has_seen_nothing():
    judged = judge(table(), lambda prompt: "A")
    assert set(judged["winner"]) == {"same"}
    assert (set(judged["vote"]), set(judged["vote_swapped"])) == ({"base"}, {"tuned"})
    summary = judge_summary(judged)
    assert (summary["wins"], summary["losses"], summary["ties"], summary["disagreed"]) == (0, 0, 12, 12)
    assert summary["win_rate"] is None
    assert "changed its mind with the order in 12" in summary["sentence"]


def test_a_judge_that_prefers_the_longer_answer_lets_it_win():
    summary = judge_summary(judge(table(), longer))
    assert (summary["wins"], summary["losses"], summary["ties"], summary["disagreed"]) == (12, 0, 0, 0)
    assert summary["verdict"] == "better"
    assert summary["low"] > 0.7
    swapped = judge_summary(judge(table(), longer, ("tuned", "base")), ("tuned", "base"))
    assert (swapped["wins"], swapped["losses"], swapped["verdict"]) == (0, 12, "worse")
    json.dumps(summary)


def test_half_a_preference_is_a_tie():
    def undecided(prompt):
        return "SAME" if len(between(prompt, "answer_A")) > 10 else "A"

    summary = judge_summary(judge(table(3), undecided))
    assert (summary["ties"], summary["disagreed"]) == (3, 3)


def test_equal_answers_are_not_asked_and_unreadable_replies_are_counted():
    answers = table(4)
    answers.loc[0, "tuned"] = " Коротко. "
    asked = []

    def shy(prompt):
        asked.append(prompt)
        return "I would rather not say." if "Вопрос 2" in prompt and len(asked) % 2 else longer(prompt)

    judged = judge(answers, shy)
    assert len(asked) == 6
    assert judged["winner"].tolist() == ["identical", "tuned", "unreadable", "tuned"]
    summary = judge_summary(judged)
    assert (summary["identical"], summary["unreadable"], summary["wins"], summary["rows"]) == (1, 1, 2, 4)
    assert "replies to 1 could not be read" in summary["sentence"]
    assert "too few rows to tell" in summary["sentence"]


@pytest.mark.parametrize(
    ("reply", "vote"),
    [
        ("A", "a"),
        ("The first is polite.\n\n**B**", "b"),
        ("A is short, B is long.\nVerdict: A.", "a"),
        ("A\nOn second thoughts:\nB\n", "b"),
        ("Final answer: [[SAME]]", "same"),
        ("tie", "same"),
        ("Первый вежливее.\nА", "a"),  # Cyrillic
        ("В", "b"),
        ("Б", "b"),
        ("<think>\nA\n</think>\nB", "b"),
        ("<think>\nA\n", None),  # cut off in mid-thought
        ("A or B", None),
        ("I like A better than B because it is right", None),
        ("", None),
        ("C", None),
    ],
)
def test_a_verdict_is_a_line_of_its_own(reply, vote):
    assert read_vote(reply) == vote


def test_a_long_reply_of_dashes_is_read_in_no_time():
    assert read_vote("-\n" * 200_000 + "A") == "a"


# ------------------------------------------------------------------------------------------ the prompt
def test_the_prompt_holds_the_texts_and_can_be_changed():
    answers = pd.DataFrame([{"question": "Цена $a?", "wanted": "5 $", "base": "$b", "tuned": "{x}"}])
    prompts = []
    judge(answers, lambda prompt: prompts.append(prompt) or "A")
    parts = [[between(p, tag) for tag in ("question", "wanted_answer", "answer_A", "answer_B")] for p in prompts]
    assert parts == [["Цена $a?", "5 $", "$b", "{x}"], ["Цена $a?", "5 $", "{x}", "$b"]]
    judge(answers, lambda prompt: prompts.append(prompt) or "A", prompt="За 5 $$: $question | $a | $b")
    assert prompts[2] == "За 5 $: Цена $a? | $b | {x}"
    judge(answers.drop(columns="wanted"), lambda prompt: prompts.append(prompt) or "A")
    assert between(prompts[-1], "wanted_answer") == "(none)"


@pytest.mark.parametrize("prompt", ["$question $a", PROMPT + "$tone", PROMPT + " 5 $", ""])
def test_a_prompt_that_lacks_a_place_is_refused_before_anything_is_asked(prompt):
    with pytest.raises(SettingsError, match=r"\$question, \$a and \$b"):
        judge(table(), pytest.fail, prompt=prompt)
    with pytest.raises(DatasetError, match="no column 'best'"):
        judge(table(), pytest.fail, ("base", "best"))


# ------------------------------------------------------------------------------------------ failures
def test_a_judge_that_never_answers_raises_what_it_said():
    def broken(prompt):
        calls.append(prompt)
        raise ModelError("no key")

    calls = []
    with pytest.raises(ModelError, match="no key"):
        judge(table(), broken)
    assert len(calls) == 3


def test_replies_already_paid_for_are_kept(capsys):
    calls, replies = [], {}

    def runs_out(prompt):
        calls.append(prompt)
        if len(calls) > 10:
            raise ModelError("quota is used up")
        return longer(prompt)

    judged = judge(table(), runs_out, replies=replies)
    assert judged["winner"].tolist()[:5] == ["tuned"] * 5
    assert judged["winner"].tolist()[5:] == ["no reply"] * 7
    assert "failed 3 times in a row, so the rest is not asked: quota is used up" in "".join(capsys.readouterr())
    assert len(calls) == 13
    assert len(replies) == 10
    summary = judge_summary(judged)
    assert (summary["wins"], summary["no_reply"]) == (5, 7)
    assert "7 got no reply" in summary["sentence"]
    again = judge(table(), lambda prompt: calls.append(prompt) or longer(prompt), replies=replies)
    assert len(calls) == 13 + 14
    assert set(again["winner"]) == {"tuned"}


def test_one_failure_in_between_stops_nothing():
    calls = []

    def hiccup(prompt):
        calls.append(prompt)
        if len(calls) == 5:
            raise TimeoutError("slow")
        return longer(prompt)

    assert judge(table(), hiccup)["winner"].tolist().count("tuned") == 11


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
            self.send_header("Content-Type", "application/json")
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


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waited = []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    return waited


def test_a_chat_model_behind_an_endpoint_judges(server, monkeypatch):
    url, got, _ = server
    monkeypatch.setenv("JUDGE_KEY", KEY)
    summary = judge_summary(judge(table(10), endpoint("some-model", url, key="JUDGE_KEY", temperature=0)))
    assert (summary["wins"], summary["ties"]) == (10, 0)
    assert len(got) == 20
    path, headers, body = got[0]
    assert path == "/v1/chat/completions"
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("some-model", 0)
    assert "max_tokens" not in body  # some models refuse it
    endpoint("some-model", url.replace("/v1", "/v1beta/openai/"), key=None)(
        "<answer_A>\nдлинный\n</answer_A>\n<answer_B>\n\n</answer_B>"
    )
    assert got[-1][0] == "/v1beta/openai/chat/completions"


def test_the_hugging_face_token_goes_nowhere_else(server, monkeypatch):
    url, got, _ = server
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    judge(table(1), endpoint("some-model", url, key=None))
    assert len(got) == 2
    assert "hf_secret" not in json.dumps([headers for _, headers, _ in got])


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, monkeypatch, no_waiting):
    url, got, statuses = server
    monkeypatch.setenv("JUDGE_KEY", KEY)
    ask = endpoint("some-model", url, key="JUDGE_KEY")
    prompt = "<answer_A>\nдлинный\n</answer_A>\n<answer_B>\n\n</answer_B>"
    statuses += [429, 503]
    assert read_vote(ask(prompt)) == "a"
    assert (len(got), no_waiting) == (3, [1, 4])
    statuses += [401]
    with pytest.raises(
        ModelError, match=r"some-model at 127\.0\.0\.1 gave no reply \(status 401: .*\*\*\*.*check the API key"
    ) as caught:
        ask(prompt)
    assert len(got) == 4
    assert KEY not in str(caught.value)
    assert KEY[:12] not in str(caught.value)
    statuses += [500] * 3
    with pytest.raises(ModelError, match="status 500"):
        ask(prompt)


def test_a_key_does_not_follow_a_redirect_to_another_place(server, monkeypatch):
    url, got, _ = server

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(302)
            self.send_header("Location", url.replace("/v1", "/elsewhere"))
            self.end_headers()

        def log_message(self, *args):
            pass

    first = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=first.serve_forever, daemon=True).start()
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with pytest.raises(ModelError):
        endpoint("m", f"http://127.0.0.1:{first.server_port}/v1", key="JUDGE_KEY")("?")
    first.shutdown()
    first.server_close()
    assert got
    assert KEY not in json.dumps([headers for _, headers, _ in got])


def test_what_is_no_chat_completion_is_said(server, monkeypatch):
    url, got, statuses = server
    statuses += [201]
    with pytest.raises(ModelError, match="its reply is no chat completion"):
        endpoint("m", url, key=None)("?")
    assert len(got) == 1


def test_nobody_there_is_said(monkeypatch):
    with pytest.raises(ModelError, match=r"m at 127\.0\.0\.1 gave no reply .*that the server runs"):
        endpoint("m", "http://127.0.0.1:9/v1", key=None, timeout=2)("?")


def test_the_key_comes_from_the_environment_or_a_colab_secret_and_travels_encrypted(monkeypatch, server):
    url, got, _ = server
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(SettingsError, match="key='OPENAI_API_KEY' is neither in the environment nor a secret of Colab"):
        endpoint("m", "https://api.example.com/v1")
    userdata = types.SimpleNamespace(get=lambda name: {"OPENAI_API_KEY": f"{KEY}\n"}[name])
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(userdata=userdata))
    ask = endpoint("m", url)
    ask("<answer_A>\nдлинный\n</answer_A>\n<answer_B>\n\n</answer_B>")
    assert KEY in json.dumps([headers for _, headers, _ in got])
    assert KEY not in repr(ask)
    with pytest.raises(SettingsError, match="would send the API key unencrypted"):
        endpoint("m", "http://api.example.com/v1")
    with pytest.raises(SettingsError, match="must begin with http"):
        endpoint("m", "localhost:8000", key=None)


def test_a_local_model_can_be_the_judge(random_gemma, tokenizer):
    """A random one says nothing readable, which is counted."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from gemma_colab.evaluation.chatting import contestants

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(random_gemma), LoraConfig(r=2, target_modules="all-linear"))
    base = contestants(model, tokenizer, do_sample=False, max_new_tokens=4)["base"]
    judged = judge(table(2), lambda prompt: base([{"role": "user", "content": prompt}]))
    assert set(judged["winner"]) == {"unreadable"}
