"""A small Hugging Face Hub on this machine, as far as huggingface_hub needs one: model folders, tokens, licences, failures."""

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

COMMIT = "c0ffee" + 34 * "0"
READER = "hf_" + 17 * "Rd"  # a good token of somebody who accepted every licence
STRANGER = "hf_" + 17 * "St"  # a good token of somebody who accepted none
EXPIRED = "hf_" + 17 * "Ex"
DELETED = "hf_" + 17 * "De"  # a bad one, answered as if the model were not there, which the Hub does too
NARROW = "hf_" + 17 * "Nr"  # a good fine-grained token that may not read gated models


@dataclass
class Repo:
    """One model. status: what files are answered with, if not 200. xet: address of a Xet storage that holds its weights.
    breaks: file name -> how each of its next downloads ends early: (bytes sent, "closed" or "reset")."""

    folder: Path
    gated: bool = False
    status: int = 200
    xet: str = ""
    breaks: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


class FakeHub:
    """`with FakeHub() as hub`: serves `hub.repos` at `hub.url` and notes every request in `hub.log`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[dict] = []  # method, path, range, token of each request, and the bytes of files sent in answer
        self.hangs = False  # answer nothing, as a firewall that swallows packets does
        self.over = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        path = self.path.split("?")[0]
        self.seen = {"method": self.command, "path": path, "range": self.headers.get("Range"), "token": token, "sent": 0}
        self.hub.log.append(self.seen)
        if self.hub.hangs:
            self.hub.over.wait(60)
            self.close_connection = True
        elif token == DELETED:
            self.error(401, "RepoNotFound", "Invalid username or password.")
        elif token not in ("", READER, STRANGER, NARROW):
            self.error(401, "", "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self.whoami(token)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?|/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.model(token, found[1] or found[3], found[2] or "", found[4])
        else:
            self.error(404, "", "Not Found")

    do_GET = do_HEAD

    def whoami(self, token: str):
        if token:
            role = "fineGrained" if token == NARROW else "read"
            self.json({"type": "user", "name": "learner", "auth": {"accessToken": {"role": role}}})
        else:
            self.error(401, "", "Invalid username or password.")

    def model(self, token: str, name: str, question: str, file: str | None):
        repo = self.hub.repos.get(name)
        if repo is None:  # without a token the Hub doesn't tell a model that isn't there from a private one
            self.error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.status != 200:
            self.error(repo.status, "", f"HTTP {repo.status}")
        elif repo.gated and (file or question == "/auth-check") and token != READER:
            if token == NARROW:
                self.error(403, "", "Please enable access to public gated repositories in your fine-grained token settings")
            else:
                self.error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        elif file:
            self.file(repo, name, file)
        elif question.startswith("/xet-read-token"):
            storage = {"X-Xet-Cas-Url": repo.xet, "X-Xet-Access-Token": "storage", "X-Xet-Token-Expiration": "9999999999"}
            self.json({}, **storage)
        elif question.startswith("/tree/"):
            if question.count("/") > 2:  # a folder; these models have none
                return self.error(404, "EntryNotFound", "Entry not found")
            self.json([{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in repo.folder.iterdir()])
        else:
            files = [{"rfilename": path.name} for path in sorted(repo.folder.iterdir())]
            self.json({"id": name, "sha": COMMIT, "private": False, "gated": repo.gated, "siblings": files})

    def file(self, repo: Repo, name: str, file: str):
        path = repo.folder / file
        if not path.is_file():
            return self.error(404, "EntryNotFound", "Entry not found")
        content = path.read_bytes()
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        if repo.xet and file.endswith(".safetensors"):
            self.send_header("X-Xet-Hash", 64 * "a")
            self.send_header("X-Xet-Refresh-Route", f"{self.hub.url}/api/models/{name}/xet-read-token/main")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        plan = repo.breaks.get(file)
        size, how = plan.pop(0) if plan else (len(content), "")
        self.wfile.write(content[start : start + size])
        self.seen["sent"] = min(size, len(content) - start)
        if how == "reset":  # an RST packet, as when a router drops the connection
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = bool(how)

    def json(self, value, status: int = 200, **headers):
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def error(self, status: int, code: str, message: str):
        headers = {"X-Error-Message": message, "X-Repo-Commit": COMMIT} | ({"X-Error-Code": code} if code else {})
        self.json({"error": message}, status, **headers)


def put_colab(monkeypatch, secret: str) -> None:
    """A stand-in for Colab's own module, as far as huggingface_hub asks it for the secret HF_TOKEN."""
    google, colab, userdata, errors = (mock.MagicMock() for _ in range(4))
    userdata.get.return_value, google.colab, colab.userdata, colab.errors = secret, colab, userdata, errors
    modules = {"google": google, "google.colab": colab, "google.colab.userdata": userdata, "google.colab.errors": errors}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("huggingface_hub.utils._auth.is_google_colab", lambda: True)
    monkeypatch.setattr("huggingface_hub.utils._auth._IS_GOOGLE_COLAB_CHECKED", False)  # it asks once and remembers
    monkeypatch.setattr("huggingface_hub.utils._auth._GOOGLE_COLAB_SECRET", None)
