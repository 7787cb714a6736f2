"""Take a trained workspace home: the adapter with its card, the merged model, Ollama, GGUF, the Hub; and compare what was written
with what was trained."""

from __future__ import annotations

import gc
import math
import re
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from gemma_colab.core.catalog import shape_of, shown_name
from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.machine import GIB, free_gib, pick_dtype, readable, stack_versions
from gemma_colab.core.rows import prompt, to_messages
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import ADAPTER_FILES, Workspace
from gemma_colab.model.lent import describe_machine

if TYPE_CHECKING:
    import torch

    from gemma_colab.export.parity import Measured

FORMS = ("adapter", "merged", "ollama", "gguf", "hub")
PUSHED = ("adapter", "merged")
EXPORT, SUMMARY = "export.json", "summary.json"
ROWS = 20  # questions that the forms are compared on
# A GGUF file is sound where this share of its answers is the merged model's, or parts from it at a word that the merged model holds
# nearly as likely as its own (nats). Measured in benchmarks/README.md.
SOUND, NEARLY = 0.8, 1.0
COMPARED = ("parity", "same", "sentence", "not_compared")  # what export.json says of the comparison of `merged/`
# What an export that was killed leaves behind; the number is its process.
LEFT = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?:part|old)|\.gguf\.(?P<other>\d+)\..+")


def export_workspace(
    workspace: Workspace,
    to: str,
    *,
    rows: int = ROWS,
    max_new_tokens: int = 144,
    text_only: bool | None = None,
    outtype: str = "q8_0",
    repo_id: str | None = None,
    form: str = "adapter",
    private: bool = True,
    exist_ok: bool = False,
    system: str | None = None,
) -> dict:
    """Write one form of what was trained in this workspace; returns what `export.json` then holds.

    to: "adapter" (adds the card to `adapter/`), "merged" (`merged/`, compared with the adapter on `rows` test rows; 0 for no
    comparison), "ollama", "gguf" (both made from `merged/`, which is made first if it isn't there for this adapter), or "hub", which
    pushes `form`, "adapter" or "merged", to `repo_id` as `export.push.push` does. text_only: as for `export.merged.merge`; left out,
    a `merged/` that is used stays what it is, and one that is made is text only. outtype: of the GGUF file, see
    `export.gguf.write_gguf`. system: for "ollama", a text before the first question, see `export.ollama.modelfile`.
    Raises errors of this package before the work starts, wherever that is possible.
    """
    _check(to, form, repo_id, rows, system)
    trained = _trained(workspace)
    _sweep(workspace)
    if to == "hub":
        from gemma_colab.export.push import check_push, push

        # Before hours of merging. A repository that is there may be private already.
        repo_id, is_private = check_push(repo_id, private=private, exist_ok=exist_ok)
    if to == "adapter":
        write_card(workspace, "adapter")
        _record(workspace, adapter=_size(workspace, "adapter"))
    if to in ("merged", "ollama", "gguf") or (to == "hub" and form == "merged"):
        there = None if to == "merged" else _merged_kind(workspace)  # asked for by its name, it is made anew
        wanted = text_only if text_only is not None else there is not False
        if there is None or there != wanted:
            _refuse_early(workspace, trained, to, outtype)
            _merge(workspace, trained, wanted)
    if to == "merged" and rows:
        _compare(workspace, trained, rows, max_new_tokens)
    if to == "ollama":
        from gemma_colab.export.ollama import write_ollama

        write_ollama(workspace.path / "merged", workspace.path / "ollama", system=system)
        _record(workspace, ollama=_size(workspace, "ollama"))
    if to == "gguf":
        _write_gguf(workspace, outtype, rows, max_new_tokens)
    if to == "hub":
        write_card(workspace, form)  # notebook 05 may have run since the last one was written
        url = push(workspace.path / form, repo_id, private=private, exist_ok=exist_ok)
        _record(workspace, hub={"repo": url, "form": form, "private": is_private})
    return exported(workspace)


def exported(workspace: Workspace) -> dict:
    """What was exported from this workspace so far: form -> its size and more; and "parity", the records of the comparison."""
    return workspace.read_json(EXPORT) if workspace.has(EXPORT) else {}


def _check(to: str, form: str, repo_id: str | None, rows: int, system: str | None) -> None:
    if to not in FORMS:
        raise SettingsError(f"to={to!r} must be one of {', '.join(FORMS)}; try 'merged'")
    if form not in PUSHED:
        raise SettingsError(f"form={form!r} must be one of {', '.join(PUSHED)}; try 'adapter'")
    if not 0 <= rows <= 10_000:
        raise SettingsError(f"rows={rows} must be from 0 to 10,000; try {ROWS}")
    if to == "hub" and not repo_id:
        raise SettingsError("the Hub needs a name to push to; give repo_id (--repo), such as my-name/my-model")
    if system is not None:
        from gemma_colab.export.ollama import modelfile

        if to != "ollama":
            raise SettingsError(
                f"system={system[:40]!r} is for Ollama only, not for to={to!r}; leave it out, or take to='ollama'"
            )
        modelfile(".", system)  # raises where Ollama would read it differently


def _trained(workspace: Workspace) -> ModelSettings:
    """The model that the adapter here was trained on."""
    from gemma_colab.export.adapter import check_adapter

    check_adapter(workspace.need("adapter"))
    workspace.need("training.json")
    record = workspace.read_json("training.json")
    return ModelSettings(model=record["model"], load_in_4bit=record.get("load_in_4bit", True))


def _sweep(workspace: Workspace) -> None:
    """Remove what an export that was killed has left half-written: gigabytes, which nobody would find."""
    left = [path for name in (".merged.*", ".ollama.*", "gguf/.*") for path in workspace.path.glob(name)]
    for path in left:
        if not (found := LEFT.fullmatch(path.name)) or psutil.pid_exists(int(found["process"] or found["other"])):
            continue
        if path.suffix == ".old" and not (target := path.with_name(found["name"])).exists():
            path.rename(target)  # killed in the middle of the change: this is the last whole one
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _of_now(workspace: Workspace) -> dict:
    """What `export.json` says, without what was made from an adapter that is no longer here."""
    found, now = exported(workspace), workspace.fingerprint(*ADAPTER_FILES)
    stale = {name for name, made in found.items() if isinstance(made, dict) and made.get("adapter", now) != now}
    stale |= set(COMPARED) if "merged" in stale else set()
    return {name: made for name, made in found.items() if name not in stale}


def _record(workspace: Workspace, **what) -> None:
    workspace.write_json(EXPORT, _of_now(workspace) | what)


def _size(workspace: Workspace, name: str) -> dict:
    from gemma_colab.export.parity import folder_mib

    return {"MiB": round(folder_mib(workspace.path / name), 2), "adapter": workspace.fingerprint(*ADAPTER_FILES)}


def _merged_kind(workspace: Workspace) -> bool | None:
    """Whether `merged/` is text only; None if there is none of the adapter that is here now."""
    return _of_now(workspace).get("merged", {}).get("text_only") if workspace.has("merged/config.json") else None


def _refuse_early(workspace: Workspace, trained: ModelSettings, to: str, outtype: str) -> None:
    """What `merged/` would be missing for llama.cpp or Ollama, said before it is made."""
    if to not in ("ollama", "gguf"):
        return
    from gemma_colab.export.gguf import gguf_gib, ready_converter
    from gemma_colab.export.stored import base_folder, config_of, stored_tensors, text_name

    if to == "gguf":
        ready_converter()
    folder = base_folder(trained.model)
    if not (folder / "tokenizer.model").is_file():
        raise ModelError(
            f"tokenizer.model is missing in {folder}, and llama.cpp and Ollama need it; copy it there from the model's original repository"
        )
    if to == "gguf":
        tensors = stored_tensors(trained.model, folder)
        weights = sum(tensor.bytes // tensor.dtype.itemsize for name, tensor in tensors.items() if text_name(name))
        # merged/ has 2 bytes a weight at least; `merge` itself looks closer
        need = 2 * weights / GIB + gguf_gib(weights, outtype, config_of(trained.model).to_dict())
        if (free := free_gib(workspace.path)) < need:
            raise WorkspaceError(
                f"merged/ and the GGUF file take {readable(need)} and {readable(free)} is free in {workspace.path}; make room there"
            )


def _merge(workspace: Workspace, trained: ModelSettings, text_only: bool) -> None:
    """Write `merged/`, of the adapter that is there now."""
    from gemma_colab.export.merged import merge

    with workspace.writing("merged") as part:
        part.mkdir()
        facts = _facts(workspace)  # and the curve: what is wrong with them should show before the work
        _draw_curve(workspace, part / "loss_curve.png")
        merge(trained.model, workspace.path / "adapter", part, text_only=text_only)
        (part / "README.md").write_text(str(_card("merged", facts, part)), encoding="utf-8")
    left = {name: value for name, value in _of_now(workspace).items() if name not in COMPARED}
    workspace.write_json(EXPORT, left | {"merged": _size(workspace, "merged") | {"text_only": text_only}})


def _write_gguf(workspace: Workspace, outtype: str, rows: int, max_new_tokens: int) -> None:
    """One file in `gguf/`; where Python can call llama.cpp, it is asked what the merged model is asked."""
    import torch

    from gemma_colab.export.gguf import RUNTIMES, write_gguf

    path = write_gguf(workspace.path / "merged", workspace.path / "gguf" / f"model-{outtype}.gguf", outtype=outtype)
    made = _size(workspace, f"gguf/{path.name}") | {"file": path.name}
    _record(workspace, gguf=made)
    if not any(map(find_spec, RUNTIMES)):
        told = {"not_compared": "Python needs llama.cpp to run it, which pip install xllamacpp brings"}
    elif not (rows and workspace.has("rows/test.jsonl")):
        told = {"not_compared": "there are no test rows to compare on"}
    else:
        told = _if_it_fits(workspace, torch.float32, lambda: _compare_gguf(workspace, path, rows, max_new_tokens))
    _record(workspace, gguf=made | told)


def _compare_gguf(workspace: Workspace, path: Path, rows: int, max_new_tokens: int) -> dict:
    import torch

    from gemma_colab.export.gguf import check_gguf
    from gemma_colab.export.parity import behind

    prompts = [prompt(to_messages(row)) for row in workspace.read_jsonl("rows/test.jsonl")[:rows]]
    model, tokenizer = _plain(workspace.path / "merged", torch.float32)
    wanted = _answers(model, tokenizer, prompts, "merged", max_new_tokens)
    found = check_gguf(path, prompts, wanted, max_new_tokens=max_new_tokens)
    texts = zip(prompts, found["expected"], found["answer"], strict=True)
    near = sum(behind(model, tokenizer, *row) <= NEARLY for row in texts) / len(found)
    return {"answers equal": float(found["equal"].mean()), "nearly": near, "rows": len(found), "same": near >= SOUND}


# --------------------------------------------------------------------------------------------- the card
def run_facts(workspace: Workspace) -> dict:
    """What is known of the run, as `summary.json` holds it. Where notebook 05 has not run since, there is no evaluation in it."""
    record = workspace.read_json("training.json")
    parts = ("train", "validation", "test")
    kinds = {"lora": LoraSettings, "train": TrainSettings}
    facts = {
        "model": record["model"],
        "load_in_4bit": record.get("load_in_4bit"),
        "fingerprint": record.get("rows"),
        "versions": {name: version for name, version in stack_versions().items() if version != "missing"},
        "rows": {part: len(workspace.read_jsonl(f"rows/{part}.jsonl")) for part in parts if workspace.has(f"rows/{part}.jsonl")},
        "settings": {name: workspace.read_json(kind.file) for name, kind in kinds.items() if workspace.has(kind.file)},
        "training": {name: record.get(name) for name in ("status", "verdict", "seconds", "steps", "best_step", "best_eval_loss")},
    }
    facts["seed"] = facts["settings"].get("train", {}).get("seed")
    if workspace.has(SUMMARY):
        summary = workspace.read_json(SUMMARY)
        if _of_this_run(summary, record):
            facts |= {name: value for name, value in summary.items() if value is not None}
        else:
            print(f"{SUMMARY} is of another training run: the card goes without an evaluation until notebook 05 runs again.")
    made = _of_now(workspace)
    return facts | {"export": made.get("parity", []), "export_sentence": made.get("sentence")}


def _of_this_run(summary: dict, record: dict) -> bool:
    """Whether an evaluation is of the adapter that is here now."""
    training = summary.get("training") or {}
    if summary.get("model") != shown_name(record["model"]) or summary.get("fingerprint", record["rows"]) != record["rows"]:
        return False
    pairs = [(training.get(name), record.get(name)) for name in ("steps", "best_step", "best_eval_loss")]
    return all(mine is None or theirs is None or math.isclose(mine, theirs, rel_tol=1e-6) for mine, theirs in pairs)


def write_card(workspace: Workspace, form: str) -> Path:
    """Write README.md and `loss_curve.png` into `adapter/` or `merged/`; returns the folder."""
    with workspace.writing(f"{form}/loss_curve.png") as curve:
        _draw_curve(workspace, curve)
    workspace.write_text(f"{form}/README.md", str(_card(form, _facts(workspace), workspace.path / form)))
    return workspace.path / form


def _facts(workspace: Workspace) -> dict:
    """`run_facts`, and whether the base sees images."""
    from gemma_colab.export.stored import sees_images

    # `run_facts` holds the name that is shown, from which a folder can't be found again
    return run_facts(workspace) | {"sees_images": sees_images(workspace.read_json("training.json")["model"])}


def _card(form: str, facts: dict, folder: Path):
    from transformers import AutoConfig

    from gemma_colab.export.card import model_card

    dtype = str(AutoConfig.from_pretrained(folder).dtype).removeprefix("torch.") if form == "merged" else "bfloat16"
    return model_card(form, facts, curve=True, multimodal=facts["sees_images"], dtype=dtype)


def _draw_curve(workspace: Workspace, path: Path) -> None:
    """From the log of the run itself, so that it is never the curve of another."""
    from gemma_colab.core.live_curve import save_loss_curve

    save_loss_curve(workspace.read_json("training.json")["log_history"], path, dpi=120)


# --------------------------------------------------------------------------------------------- the comparison
def _compare(workspace: Workspace, trained: ModelSettings, rows: int, max_new_tokens: int) -> None:
    if not workspace.has("rows/test.jsonl"):
        _record(workspace, not_compared="there are no test rows in this workspace")
        return
    told = _if_it_fits(workspace, _dtypes(workspace)[1], lambda: _compared(workspace, trained, rows, max_new_tokens))
    _record(workspace, **told)
    if "parity" in told:
        for form in PUSHED:
            write_card(workspace, form)


def _compared(workspace: Workspace, trained: ModelSettings, rows: int, max_new_tokens: int) -> dict:
    from gemma_colab.export.folder import missing_stops
    from gemma_colab.export.parity import parity, same_model

    forms = compare_forms(workspace, trained, rows=rows, max_new_tokens=max_new_tokens)
    same, sentence = same_model(forms, "merged", ON_16)
    # The answers above don't show it: to measure, every form is told where to stop.
    if lacking := missing_stops(workspace.path / "merged"):
        same = False
        sentence += (
            f"; but its generation_config.json lacks {' and '.join(lacking)}, where its answers should end: export it again"
        )
    return {"parity": parity(forms).round(6).to_dict("records"), "same": same, "sentence": sentence}


def _if_it_fits(workspace: Workspace, dtype: torch.dtype, compare: Callable[[], dict]) -> dict:
    """What `compare` found; {"not_compared": why} where the merged model in this dtype is too large to be run here."""
    import torch

    if reason := _no_room(workspace, dtype):
        return {"not_compared": reason}
    try:
        return compare()
    except torch.OutOfMemoryError:  # others use the GPU too, and long rows take more
        pass
    _free_gpu()  # here, where the error no longer holds what filled it
    return {
        "not_compared": "the GPU's memory was full before all questions were answered; delete the model you have loaded and export "
        "again, or compare on a larger machine"
    }


ON_4, ON_16 = "adapter on the 4-bit base", "adapter on the 16-bit base"


def compare_forms(
    workspace: Workspace, trained: ModelSettings, *, rows: int = ROWS, max_new_tokens: int = 144
) -> dict[str, Measured]:
    """The first test rows, asked of the adapter on the base it was trained on, of the adapter on the 16-bit base, and of `merged/` in
    plain transformers. One after the other is loaded and let go; for `export.parity.parity`."""
    from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.export.adapter import load_adapter

    chats = [to_messages(row) for row in workspace.read_jsonl("rows/test.jsonl")[:rows]]
    dtype, wide = _dtypes(workspace)
    merged = workspace.path / "merged"

    def on_base(quantised):
        base = load_model(trained.model, dtype if quantised else wide, quantization_config(dtype) if quantised else None)
        return load_adapter(base, workspace), load_tokenizer(trained.model)

    loaders = {ON_4: lambda: on_base(True)} if trained.load_in_4bit else {}
    loaders |= {ON_16: lambda: on_base(False), "merged": lambda: _plain(merged, wide)}
    folders = {"merged": merged}
    forms = {}
    for name, load in loaders.items():
        forms[name] = _measure(*load(), chats, folders.get(name, workspace.path / "adapter"), name, max_new_tokens)
        _free_gpu()
    return forms


def _dtypes(workspace: Workspace) -> tuple[torch.dtype, torch.dtype]:
    """What a 4-bit base computes in on this machine, and what 16-bit weights are loaded in."""
    import torch

    shape = shape_of(workspace.read_json("training.json")["model"])
    dtype, _ = pick_dtype(describe_machine(str(workspace.path)), shape)
    # Plain transformers can't run Gemma 3 in float16. A T4 emulates bfloat16: slowly, and right.
    return dtype, torch.bfloat16 if dtype == torch.float16 else dtype


def _plain(folder: Path, dtype):
    """Model and tokenizer as anybody loads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=where, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _answers(model, tokenizer, prompts: list, name: str, max_new_tokens: int) -> list[str]:
    from gemma_colab.evaluation.generation import generate_answers

    return generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, description=name)


def _measure(model, tokenizer, chats: list[dict], folder: Path, name: str, max_new_tokens: int) -> Measured:
    from gemma_colab.evaluation.loss import answer_losses, mean_loss
    from gemma_colab.export.parity import Measured, folder_mib

    model.eval()
    start = time.monotonic()
    answers = _answers(model, tokenizer, [prompt(chat) for chat in chats], name, max_new_tokens)
    seconds = time.monotonic() - start
    return Measured(answers, mean_loss(answer_losses(model, tokenizer, chats, description=name)), folder_mib(folder), seconds)


def _free_gpu() -> None:
    """Give back what deleted models leave in torch's cache, which other programs, and `mem_get_info`, take for used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _no_room(workspace: Workspace, dtype: torch.dtype) -> str:
    """Why the merged model can't be run here in this dtype; "" if it can."""
    import torch
    from transformers import AutoConfig

    from gemma_colab.export.parity import folder_mib

    merged, gpu = workspace.path / "merged", torch.cuda.is_available()
    _free_gpu()
    wider = dtype.itemsize / AutoConfig.from_pretrained(merged).dtype.itemsize  # float32 takes twice what is stored in 16 bit
    need = folder_mib(merged) / 1024 * wider * 1.1 + 0.5
    free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) / GIB
    if free > need:
        return ""
    where = "the GPU" if gpu else "memory"
    return (
        f"running the merged model takes about {need:.1f} GiB, and {readable(free)} of {where} is free; delete the model you have "
        "loaded and export again, or compare on a larger machine"
    )
