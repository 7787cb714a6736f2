"""Fetch from the Hugging Face Hub or a folder, and say in one sentence why that failed and what to do next."""

import hashlib
import json
import os
import re
import shlex
from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_token, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from gemma_colab.core.catalog import SHORT, TINY, dimensions_of, known_dimensions
from gemma_colab.core.chat import with_template
from gemma_colab.core.errors import SECRET, SPOILT, GemmaColabError, ModelError, SettingsError, plain, say
from gemma_colab.core.workspace import samples

SITE, INDEX = "https://huggingface.co", "model.safetensors.index.json"
STORE = "store it as HF_TOKEN (Colab: a secret, the key icon on the left; Kaggle: Add-ons -> Secrets; elsewhere `hf auth login`) and restart"
ACCESS = f"accept its license at {SITE}/{{name}}, make a token of the type 'read' at {SITE}/settings/tokens, and {STORE}; or use {{instead}}"
ROOM = "make room there (`hf cache ls` lists what it holds), or set HF_HOME to a folder on a larger disk and restart"
AGAIN = "check the network (Kaggle: Session options -> Internet) and run this again, whole files are kept; or use 'tiny-gemma3', which is here"
# By name, because huggingface_hub 1 uses httpx and 2 uses httpx2; the last three are messages, the latter two of hf_xet.
LOST = "Connect(?:ion)?Error|NetworkError|ProxyError|ProtocolError|Timeout|LocalEntryNotFoundError|OfflineModeIsEnabled|Consistency check failed|CAS Client Error|CAS service error"
FAILURES = {  # pattern in an error's `trace` -> what it means, and the next step; the first that is found counts
    "trust_remote_code": ("{name} brings code of its own, which nothing here runs", "take a plain Gemma 3 checkpoint, without auto_map in its files"),
    "No space left on device|Disk quota exceeded": ("{name} can't be saved: no space is left in {cache}", ROOM),
    "OutOfMemoryError": ("{name} does not fit into the GPU's memory", "restart; `gemma-colab plan {quoted}` shows what to change"),
    "HTTP 401 with a token|'ascii' codec": ("the Hugging Face Hub refused your token: it is mistyped, deleted or expired", ACCESS),
    "HTTP 401.*GatedRepoError": ("{name} is for those who accepted its license, and there is no token here", ACCESS),
    "GatedRepoError": ("your token is valid, but its owner has not accepted the license of {name}", ACCESS),
    "Repo id must": ("the model folder {name} is not there, or no longer", "put it back, or a link to it, or name the model where it is now"),
    "RepositoryNotFound": ("{name} is not on the Hugging Face Hub, or private, and no folder here", f"check the spelling at {SITE}/models?search=gemma-3"),
    "HTTP 403": ("your token may not read {name}, as fine-grained ones may not until they are allowed to", ACCESS),
    r"HTTP (429|5\d\d)": ("{name} can't be downloaded: the Hugging Face Hub answered HTTP {0}", "run this again in a few minutes"),
    LOST: ("{name} can't be downloaded: no connection to the Hugging Face Hub, or it broke{offline}", AGAIN),
    # transformers says so too when the connection was lost behind the config
    "file named model.safetensors": ("{name} has no weights as safetensors, or the connection broke", "run this again, or choose a checkpoint that has: other formats can run code when they are opened"),
}  # fmt: skip
# Of other files, or as another class, transformers would make a tokenizer whose steps nobody has looked at.
OURS = ("GemmaTokenizer", "GemmaTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast")
BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # answers come from these too
OWN = "take a checkpoint with Gemma 3's own tokenizer"
NO_TOKENIZER = f"has no tokenizer.json; {OWN}"


def before_asking(name: str, source: str) -> None:
    """Say, once for each name, that the Hub is asked for a model, where the name may be a path: its words leave this machine.

    Raises an error for a name that is a key, and for a folder with a link out of it: what is there would be taken along.
    """
    no_secret("model", name)
    if os.path.isdir(source):
        refuse_links(Path(source))
    # Else transformers has pickle weights converted by a public service, which opens a pull request at that model.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    if known_dimensions(name) is None and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) and not os.path.exists(source):
        _say(f"There is no folder {name} here, so the Hugging Face Hub is asked for a model of that name.")


_say = cache(say)


def without_account(name: str) -> str | None:
    """Name the copy of a checkpoint of Google's for which the Hub asks neither token nor license; None for other models."""
    return f"unsloth/{name.split('/')[1]}" if re.match(r"google/gemma-3-\d", name) else None


def no_secret(what: str, name: str) -> None:
    """Raise `SettingsError` where a key was given in place of a name: names are asked for elsewhere, and shown."""
    if SECRET.search(name):
        cause = "looks like a key or a password, so it was neither shown nor sent"
        raise SettingsError(f"{what} {cause}; give a name, and make a new key if others may have seen this one")


def refuse_links(folder: Path) -> None:
    """Raise `ModelError` for what is a link out of the folder, or no plain file, at any depth; from the Hub's cache to its blobs a link may
    lead. The weights that are loaded may lie on another disk: whatever is read as such can be nothing else."""
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    loaded = {*weights_of(str(folder), folder)}
    for path in sorted(folder.rglob("*")):
        if path not in loaded and not any(path.resolve().is_relative_to(one) for one in homes):
            outside = f"{path} is a link to {path.resolve()}, outside the folder"
            raise ModelError(f"{outside}; copy that file here if it belongs to the model, or delete the link")
        if path.exists() and not path.is_file() and not path.is_dir():  # such as a pipe, on which a reader waits for ever
            raise ModelError(f"{path} is no plain file; delete it, and copy the model's own file here if it had that name")


def before_reading(name: str, source: str, cls: type) -> None:
    """Look at a config, a tokenizer or an index before a library believes it. Raises `ModelError` for an adapter beside a config:
    transformers would put that on the model by itself, and peft would import what its settings name."""
    from transformers.utils import cached_file

    if cls.__name__ == "AutoConfig":
        from transformers import PretrainedConfig
        from transformers.utils.peft_utils import find_adapter_config_file

        if find_adapter_config_file(source):
            what = f"{name} is an adapter, not a whole model, or has one beside its weights (adapter_config.json)"
            remedy = "load its base and put the adapter on that, or merge the two; take that file out of a model that is whole"
            raise ModelError(f"{what}; {remedy}")
        check_config(name, PretrainedConfig.get_config_dict(source)[0])
    elif cls.__name__ == "AutoTokenizer":
        if not (file := _tokenizer_file(source)) and Path(source).is_dir():  # of the Hub, it may just not be to be had now
            raise ModelError(f"{name} {NO_TOKENIZER}")
        if file and _steps(Path(file), os.stat(file).st_mtime_ns) != _steps(samples() / TINY / "tokenizer.json"):
            what = f"{file} changes texts otherwise than Gemma 3's tokenizer, which could take for ever"
            raise ModelError(f"{what}; {OWN}")
    else:
        if file := cached_file(source, INDEX, _raise_exceptions_for_missing_entries=False):
            parts_of(name, Path(file))
        size = sum(path.stat().st_size for path in weights_of(name, Path(source)) if path.is_file())  # 0 for a model on the Hub
        # In 4 bit a weight of a linear layer takes half a byte; an embedding isn't quantized so far.
        if size and size < (least := (asked := dimensions_of(name)).linear_parameters // 2 + asked.embedding_parameters):
            what = f"{name} holds {size:,} bytes, and its config asks for weights of {least:,} bytes at least"
            raise ModelError(f"{what}; take a whole checkpoint")


def weights_of(name: str, folder: Path) -> list[Path]:
    """Return the files that transformers takes the weights of a folder from: `model.safetensors`, or else those that its index names."""
    whole, index = folder / "model.safetensors", folder / INDEX
    return [whole] if whole.is_file() else parts_of(name, index) if index.is_file() else []


def weights_mark(name: str, dated: bool = True) -> str:
    """Return a short mark of what answers come from in a folder or GGUF file: another model of its name is known by it. "" for the Hub's.

    dated: by size and time. Else by size and content, of weights 4 KiB of each MiB: a copy, such as one on a new disk, is the same.
    """
    if name == TINY or known_dimensions(name):
        return ""
    path, mark = Path(name).expanduser(), hashlib.sha256()
    for file in filter(Path.is_file, [path, *weights_of(name, path), *map(path.joinpath, BESIDE)]):
        stat = file.stat()
        mark.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns * dated}".encode())
        if not dated:
            with file.open("rb") as weights:
                for start in range(0, stat.st_size, 2**20):
                    weights.seek(start)
                    mark.update(weights.read(2**20 if file.name in BESIDE else 4096))
    return mark.hexdigest()[:12] if path.exists() else ""


def refuse_another_base(run: dict) -> None:
    """Raise `ModelError` where a base's folder holds other weights than when `run`, a training, was recorded; older records don't know."""
    if (now := weights_mark(run["model"], dated=False)) and run.get("weights", now) != now:
        raise ModelError(f"{run['model']} holds other weights than at the training; put those back, or run notebook 04 again")


def parts_of(name: str, index: Path) -> list[Path]:
    """Return the files that an index names. Raises `ModelError` unless they are safetensors beside it."""
    try:
        parts = sorted({*map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())})
    except SPOILT as e:
        raise ModelError(f"{index} is no index of weights ({e}); take a sound checkpoint") from None
    for part in parts:
        if Path(part).name != part or not part.endswith(".safetensors"):
            what = f"{name} takes weights from {part}, which is no .safetensors file in its own folder"
            raise ModelError(f"{what}; take a sound checkpoint")
    return [index.parent / part for part in parts]


@cache
def _steps(file: Path, changed: int = 0) -> list:
    """Return what a tokenizer does to a text, and how it cuts that up: each may make a long text of a short one, or search for ever."""
    said = json.loads(file.read_text(encoding="utf-8"))
    how = [said["model"].get("type", "BPE"), *(said["model"].get(part) or 0 for part in ("dropout", "max_input_chars_per_word"))]
    steps = [said.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    return [*steps, how, len(str(said.get("post_processor"))) < 5000]


def check_config(name: str, said: dict) -> None:
    """Raise `ModelError` for a config of somebody else's that libraries would work on for ever, or that names code or weights elsewhere."""
    for field, value in said.items():
        listed = isinstance(value, list) and not field.startswith("tokenizer.")  # a GGUF file lists its tokens there
        most = 1024 if re.search("num_|count", field) or listed else 2**24
        if isinstance(value, dict):
            check_config(name, value)
        elif isinstance(size := len(value) if listed else value, int | float) and size > most:
            raise ModelError(f"{name} says {field}={size:g}, and {most} is the most of any Gemma 3; take a sound checkpoint")
        elif field == "use_bidirectional_attention" and value:
            raise ModelError(
                f"{name} says {field}={value!r}: its tokens see those behind them, so it can't write; take a Gemma 3"
            )
        elif field == "transformers_weights" or (field.endswith("attn_implementation") and "/" in str(value)):
            what = f"{name} names code or weights elsewhere, {field}={value!r}, which nothing here reads"
            raise ModelError(f"{what}; take {field} out of its config.json")


def _tokenizer_file(source: str) -> str | None:
    from transformers.models.auto.tokenization_auto import get_tokenizer_config
    from transformers.tokenization_utils_base import get_fast_tokenizer_file
    from transformers.utils import cached_file

    said = get_tokenizer_config(source)
    if odd := [field for field in ("gguf_file", "split_special_tokens") if said.get(field)]:  # another one, of which nobody knows
        raise ModelError(f"tokenizer_config.json of {source} changes the tokenizer by {odd[0]}; {OWN}")
    file = get_fast_tokenizer_file(said.get("fast_tokenizer_files", []))
    return cached_file(source, file, _raise_exceptions_for_missing_entries=False)


def after_reading(name: str, got):
    """Return it; a tokenizer with Gemma 3's own chat template, and only if its steps were looked at."""
    for said in (getattr(got, part, {}) for part in ("__dict__", "init_kwargs")):
        said.pop("auto_map", None)  # somebody's code, which would go along with what is saved
    if isinstance(got, tuple):  # a model, and what was found while it was loaded; `kept_answers` looks whether it is still that
        got[0].made_of = SHORT.get(name, name), getattr(got[0], "is_loaded_in_4bit", False), weights_mark(name)
    if not hasattr(got, "init_kwargs"):  # no tokenizer
        return got
    if not _tokenizer_file(got.name_or_path):
        raise ModelError(f"{name} {NO_TOKENIZER}")
    if type(got).__name__ not in OURS:
        raise ModelError(f"{name} has a tokenizer of another kind, {type(got).__name__}; {OWN}")
    return with_template(got, name)


def explain(name: str, error: BaseException) -> tuple[str, str]:
    """Return why a model can't be loaded, and the next step ("" if none is known). Neither holds a token."""
    if isinstance(error, GemmaColabError):
        return str(error), ""
    text, copy = trace(error), f"{without_account(name)!r}, a copy, or " if without_account(name) else ""
    fields = {
        "name": name,
        "quoted": shlex.quote(name),
        "cache": constants.HF_HUB_CACHE,
        "instead": f"{copy}'gemma-3-270m' from PyPI, without account (the Gemma terms hold too)",
        "offline": " (HF_HUB_OFFLINE is set: unset it and restart)" if is_offline_mode() else "",
    }
    for pattern, sentences in FAILURES.items():
        if match := re.search(pattern, text):
            return tuple(sentence.format(*match.groups(), **fields) for sentence in sentences)
    return f"{name} can't be loaded: {plain(f'{type(error).__name__}: {error}'.splitlines()[0])}", ""


def trace(error: BaseException | None) -> str:
    """Return the names and messages of an error and of those it came from, a line or more each, with the Hub's HTTP status."""
    lines, token = [], "with a token" if get_token() else "without a token"
    while error is not None and len(lines) < 20:
        # That a file is not there is no refusal: a model need not have each.
        refused = isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError)
        status = f"HTTP {error.response.status_code} {token} " if refused else ""
        lines.append(f"{status}{' '.join(kind.__name__ for kind in type(error).__mro__)}: {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(lines)
