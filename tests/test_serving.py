"""`transformers serve` with a merged model, as the README shows it: an OpenAI-compatible server that answers as generate() does."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_serve_available

from gemma_colab.core.workspace import samples

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]; `make test-all` installs it"),
]
COMMAND = "transformers serve {merged} --host 127.0.0.1 --port {port}"
CHATS = [
    [{"role": "user", "content": "Скажи, какая столица у Австрии."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name the opposite of \u201cempty\u201d."}],
    [
        {"role": "user", "content": "What is the capital of Austria?"},
        {"role": "assistant", "content": "The capital of Austria is Vienna."},
        {"role": "user", "content": "Repeat the number 5736."},
    ],
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url: str, body: dict | None = None):
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(merged: Path, log: Path):
    """The address of a server with this model; it is stopped at the end, as Ctrl-C stops it, and must go in peace."""
    port = free_port()
    program, *arguments = COMMAND.format(merged=merged, port=port).split()
    script = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with log.open("wb") as file:
        server = subprocess.Popen([script, *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 240  # on a machine whose cores are busy with other work
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                assert get(f"http://localhost:{port}/health") == {"status": "ok"}
                break
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.3)
        yield f"http://localhost:{port}"
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
        assert "Application shutdown complete" in log.read_text()
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def test_the_server_answers_as_the_model_does(tmp_path):
    merged = shutil.copytree(samples() / "tiny-gemma3", tmp_path / "merged")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged, dtype="auto"), AutoTokenizer.from_pretrained(merged)
    greedy = GenerationConfig(max_new_tokens=48, do_sample=False, eos_token_id=[1, 106], pad_token_id=0)
    with serving(merged, tmp_path / "server.log") as address:
        for chat in CHATS:
            asked = {"model": str(merged), "messages": chat, "temperature": 0, "max_tokens": 48}
            answer = get(f"{address}/v1/chat/completions", asked)
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
            out = model.generate(**ids, generation_config=greedy)[0, ids["input_ids"].shape[1] :]
            assert answer["choices"][0]["message"]["content"].strip() == tokenizer.decode(out, skip_special_tokens=True).strip()
            assert answer["choices"][0]["finish_reason"] == "stop"  # at <end_of_turn>, not at the limit
            assert answer["usage"]["prompt_tokens"] == ids["input_ids"].shape[1]  # <bos> once
