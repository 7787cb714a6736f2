"""Push a folder to the Hugging Face Hub, private unless you say otherwise; what would go wrong is found before the upload.

The token is the one huggingface_hub finds by itself: Colab's secret HF_TOKEN, the environment, or a saved login. It is never an
argument here, so that it can't end up in a notebook.
"""

import json
import os
import re
import shlex
from collections.abc import Collection
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from gemma_colab.core.door import plugged
from gemma_colab.core.errors import KEYS, PRIVATE_KEY, SECRET, ModelError, WorkspaceError, say
from gemma_colab.export.adapter import SETTINGS, check_adapter
from gemma_colab.export.checkpoint import check_merged
from gemma_colab.export.folders import BELONGS, CARD
from gemma_colab.export.record import mib
from gemma_colab.model.choice import shown_name
from gemma_colab.model.hub import LOST, SITE, STORE, no_secret, trace
from gemma_colab.model.preflight import token_source

EMPTY = {".gitattributes"}  # what a repository holds that was made and never filled
PLACE = re.compile(r"path/or/id/of/this/(?:adapter|model)")  # in the code of the card
# Sent from the disk, and searched in their first MiB; of all else, the bytes that were searched are sent.
HEAVY = (".safetensors", ".gguf")
NO_TEXT = (*HEAVY, ".png", ".model")  # searched for keys only, for by chance bytes look like much else
ESCAPED = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[bfnrt]|([!-/:-@\[-`{-~]))")  # as JSON and Markdown may write it
# Words and sizes, in which anything can be found.
NUMBERS = ("tokenizer.json", "added_tokens.json", "model.safetensors.index.json")
WRITE = f"make a token of the type 'write' at {SITE}/settings/tokens, and {STORE}"
FAILURES = {  # pattern in an error's `trace` -> what it means, and the next step; the first that is found counts
    "LocalTokenNotFound": f"there is no token here, and the Hugging Face Hub needs one to write; {WRITE}",
    "HTTP 401|'ascii' codec": f"the Hugging Face Hub refused your token, from {{token}}: mistyped, deleted or expired; {WRITE}",
    "HTTP 40[34]": "your token, from {token}, has no right to write to {repo}; "
    f"{WRITE}; or allow a fine-grained one to write there; or take a name under your own account",
    rf"HTTP (?:409|429|5\d\d)|{LOST}": "{repo}: the Hugging Face Hub has a problem, or the connection to it broke off, and nothing of "
    "it is visible there ({error}); check the network, and run this again in five minutes",
}


def push(
    folder: str | Path, repo_id: str, *, private=True, exist_ok=False, message: str | None = None, also: Collection[str] = ()
) -> str:
    """Upload an adapter or a merged model, with its card, as one commit; return its address.

    repo_id: "owner/name", or a name alone for your own account. private: only you, or your organization, can see it. exist_ok:
    write a new version into a repository that is there already: its files become those of the folder, older versions stay in its
    history, and it stays as private as it is. message: of the commit. also: names of files that go whatever they are, but keys.
    Raises `WorkspaceError` or `ModelError` if the folder is not whole, and `ModelError` for a name that can't be, a missing or weak
    token, a repository that is there, or no network. A commit is there as a whole or not at all; should the upload break, run it again.
    """
    folder, api = Path(folder), HfApi()
    before, files = _states(folder), _files(folder, also)
    if "\ufffd" in (card := files[CARD].decode(errors="replace")):
        raise WorkspaceError(f"{folder / CARD} is not in UTF-8, as the Hub wants it; open it in an editor, and save it in UTF-8")
    repo_id, is_private, old = check_push(repo_id, private=private, exist_ok=exist_ok)
    files[CARD] = PLACE.sub(lambda _: repo_id, card).encode()
    operations = [CommitOperationAdd(file, content) for file, content in files.items()]
    operations += [CommitOperationDelete(file) for file in sorted((old or set()) - files.keys() - EMPTY)]
    as_it_is = "" if is_private == private else ", as it is already"
    say(f"what is sent: {', '.join(files)}")
    say(f"{mib(folder):,.1f} MiB to {repo_id}, {'private' if is_private else 'public'}{as_it_is}")
    now = _states(folder)
    if other := [path for path in files.values() if isinstance(path, str) and before.get(path) != now.get(path)]:
        raise WorkspaceError(f"{other[0]} was changed after it was checked, and nothing was sent; run this again")
    with _explained(repo_id):
        if old is None:
            api.create_repo(repo_id, private=private)
        api.create_commit(repo_id, operations, commit_message=message or f"{folder.name} of gemma_colab")
    return f"{api.endpoint}/{repo_id}"


def check_push(repo_id: str, *, private: bool = True, exist_ok: bool = False) -> tuple[str, bool, set[str] | None]:
    """Check name, network, token, right to write and repository, and change nothing.

    Returns the whole name, whether it will be private (a repository that is there stays what it is), and the files there now;
    None where it is not there yet.
    """
    no_secret("repo_id (--repo)", repo_id)
    with _explained(repo_id):
        validate_repo_id(repo_id)
        api = HfApi()
        me = api.whoami()
        if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
            raise ModelError(f"your token, from {token_source()}, may only read; {WRITE}")
        repo_id = repo_id if "/" in repo_id else f"{me['name']}/{repo_id}"
        try:
            there = api.model_info(repo_id)
        except RepositoryNotFoundError:
            return repo_id, private, None
    old = {sibling.rfilename for sibling in there.siblings or []}
    if (filled := old - EMPTY) and not exist_ok:
        or_into = "or write a new version into it with exist_ok=True (--exist-ok)"
        raise ModelError(f"{repo_id} exists already, with {len(filled)} files; take another name, {or_into}")
    if private and not there.private:
        change = "make it private in its settings, take another name, or say private=False (--public)"
        raise ModelError(f"{repo_id} is public, and this would be seen by everybody; {change}")
    return repo_id, bool(there.private), old


def _states(folder: Path) -> dict[str, tuple]:
    """Tell by which a file of weights is known again: they are too large to be kept in memory."""
    found = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def _files(folder: Path, also: Collection[str]) -> dict[str, str | bytes]:
    """Map name to path or content of each file. Raises `WorkspaceError` for what is no whole model, nor part of it, and for secrets."""
    form = "adapter" if (folder / SETTINGS).is_file() else "merged"
    if form == "adapter":
        check_adapter(folder)
    else:
        check_merged(folder, llama_cpp=False)
    if not (folder / CARD).is_file():
        command = f"gemma-colab export --workspace {shlex.quote(str(folder.parent))} --to {form}"
        raise WorkspaceError(f"{folder} has no {CARD}, the card; {command} writes it")
    files, belongs = {}, BELONGS[form]  # nothing else is sent unless it is named
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if not (real := path.resolve()).is_relative_to(folder.resolve()):
            raise WorkspaceError(f"{path} is a link to {real}, outside the folder; copy that file here, or delete the link")
        with open(os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as f:  # it may be a link by now
            content = f.read(2**20 if path.suffix in HEAVY else -1)
        text = content.replace(b"\0", b"").decode(errors="replace")  # UTF-16 too
        if path.suffix == ".safetensors":  # the header, without its numbers
            if (size := int.from_bytes(content[:8], "little")) > 2**20 - 8:
                raise WorkspaceError(f"{path} has a header of {size:,} bytes, and 1 MiB of it is searched; save it anew")
            header = content[8 : 8 + size]
            text = re.sub(r"\[[\d,\s]*\]", "", header.decode(errors="replace"))
        text = ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2] or "\n", text)
        no_text = path.suffix in NO_TEXT
        if (key := re.search(PRIVATE_KEY, text)) or (re.search(KEYS, text) if no_text else SECRET.search(text)):
            what = "a private key" if key else "a token"
            raise WorkspaceError(f"{path} holds what looks like {what}; take it out, and make a new one")
        if (named := name.as_posix()) not in also:
            send = f"name it in also=[{named!r}] (--also {shlex.quote(named)})"
            if len(name.parts) > 1 or not any(fnmatch(named, one) for one in belongs):
                raise WorkspaceError(f"{path} is no part of the model; move it out of this folder, or, to send it, {send}")
            searched = named not in NUMBERS and (path.suffix == ".safetensors" or not no_text)
            if found := {kind for kind, *_ in plugged("personal_data")(text * searched)} - {"phone?"}:
                what = f"{path} holds what looks like personal data ({', '.join(sorted(found))})"
                raise WorkspaceError(f"{what}; take it out, or, if it may be seen, {send}")
        files[named] = str(path) if path.suffix in HEAVY else content
    if form == "adapter":
        settings = json.loads(files[SETTINGS])
        settings["base_model_name_or_path"] = shown_name(str(settings.get("base_model_name_or_path") or ""))
        files[SETTINGS] = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
    return files


@contextmanager
def _explained(repo_id: str):
    """What goes wrong while the Hub is asked becomes one sentence of a `ModelError`, which never holds a token."""
    try:
        yield
    except ModelError:
        raise
    except Exception as e:  # huggingface_hub, httpx and hf_xet raise here
        text, error = trace(e), f"{type(e).__name__}: {e}".splitlines()[0]
        unknown = "{repo} can't be pushed: {error}; if the next try fails too, report it with this sentence"
        sentence = next((said for pattern, said in FAILURES.items() if re.search(pattern, text)), unknown)
        raise ModelError(sentence.format(repo=repo_id, token=token_source(), error=error)) from None
