"""A small Hugging Face Hub on this machine, as far as huggingface_hub needs one: model folders, tokens, licenses, failures, pushes."""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

COMMIT = "c0ffee" + 34 * "0"
READER = "hf_" + 17 * "Rd"  # a good token of somebody who accepted every license
STRANGER = "hf_" + 17 * "St"  # a good token of somebody who accepted none
EXPIRED = "hf_" + 17 * "Ex"
DELETED = "hf_" + 17 * "De"  # a bad one, answered as if the model were not there, which the Hub does too
NARROW = "hf_" + 17 * "Nr"  # a good fine-grained token that may not read gated models, nor write
WRITER = "hf_" + 17 * "Wr"  # a good token that may write, of the same person; all others here may only read
OWNERS = ("learner", "shop")  # the person, and an organisation of hers


@dataclass
class Repo:
    """One model. status: what files are answered with, if not 200. xet: address of a Xet storage that holds its weights.
    breaks: file name -> how each of its next downloads ends early: (bytes sent, "closed" or "reset"). private: as it was made.
    read_only: nobody may write there. lost: the connection ends after each upload of a large file. messages: of its commits."""

    folder: Path
    gated: bool = False
    status: int = 200
    xet: str = ""
    breaks: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    private: bool = False
    read_only: bool = False
    lost: bool = False
    messages: list[str] = field(default_factory=list)


class FakeHub:
    """`with FakeHub() as hub`: serves `hub.repos` at `hub.url` and notes every request in `hub.log`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.log: list[dict] = []  # method, path, range, token of each request, and the bytes of files sent in answer
        self.hangs = False  # answer nothing, as a firewall that swallows packets does
        self.over = threading.Event()
        self.uploads: dict[str, bytes] = {}  # large files by their checksum, before a commit names them
        self.home = tempfile.TemporaryDirectory()  # of repositories that are made here
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.home.cleanup()


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
        elif token not in ("", READER, STRANGER, NARROW, WRITER):
            self.error(401, "", "Invalid credentials in Authorization header")
        elif self.command in ("POST", "PUT"):
            self.write(token, path)
        elif path == "/api/whoami-v2":
            self.whoami(token)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?|/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self.model(token, found[1] or found[3], found[2] or "", found[4])
        else:
            self.error(404, "", "Not Found")

    do_GET = do_HEAD

    def do_POST(self):
        self.body = self.whole_body()
        self.do_HEAD()

    do_PUT = do_POST

    def whole_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def whoami(self, token: str):
        if token:
            role = {NARROW: "fineGrained", WRITER: "write"}.get(token, "read")
            orgs = [{"name": OWNERS[1]}]
            self.json({"type": "user", "name": OWNERS[0], "orgs": orgs, "auth": {"accessToken": {"role": role}}})
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
            self.json({"id": name, "sha": COMMIT, "private": repo.private, "gated": repo.gated, "siblings": files})

    # ----------------------------------------------------------------------------------------- pushes
    def write(self, token: str, path: str):
        if path.startswith("/storage/"):  # of large files: no token is sent there, the address is the permission
            return self.store(path.split("/")[-1])
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(token, json.loads(self.body))
        found = re.fullmatch(
            r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main|/([^/]+/[^/]+)\.git/info/lfs/objects/(batch)", path
        )
        name = (found[1] or found[3]) if found else ""
        repo = self.hub.repos.get(name)
        if repo is None:
            return self.error(404, "RepoNotFound", "Repository not found")
        if token != WRITER or repo.read_only:
            return self.error(403, "", "You don't have the rights to write to this repository")
        if repo.status != 200:
            return self.error(repo.status, "", f"HTTP {repo.status}")
        return {"preupload": self.preupload, "batch": self.batch, "commit": self.commit}[found[2] or found[4]](repo, name)

    def create(self, token: str, asked: dict):
        name = f"{asked['organization'] or OWNERS[0]}/{asked['name']}"
        if token != WRITER or name.split("/")[0] not in OWNERS:
            return self.error(403, "", "You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            return self.error(409, "", "You already created this model repo")
        folder = Path(self.hub.home.name, name)
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(folder, private=private)
        self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def preupload(self, repo: Repo, name: str):
        """Which files are large: they go to the storage first."""
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith((".safetensors", ".png", ".gguf")) else "regular" for path in paths}
        self.json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]})

    def batch(self, repo: Repo, name: str):
        objects = []
        for file in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/storage/{'lost' if repo.lost else 'whole'}/{file['oid']}"
            known = {"oid": file["oid"], "size": file["size"]}
            objects.append(known if file["oid"] in self.hub.uploads else known | {"actions": {"upload": {"href": href}}})
        self.json({"transfer": "basic", "objects": objects})

    def store(self, oid: str):
        if "/lost/" in self.path:
            self.close_connection = True
            return
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.uploads[oid] = self.body
        self.json({})

    def commit(self, repo: Repo, name: str):
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
                continue
            path = repo.folder / value["path"]
            if line["key"] == "deletedFile":
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.hub.uploads[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"]))
        self.json({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}"})

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
        if self.command != "HEAD":
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
