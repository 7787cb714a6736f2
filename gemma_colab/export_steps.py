"""Take a trained workspace home: the adapter with its card, the merged model, Ollama, GGUF, the Hub; and compare what was written
with what was trained."""

from __future__ import annotations

import gc
import math
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from gemma_colab.catalog import shown_name
from gemma_colab.errors import SettingsError
from gemma_colab.hardware import GIB, describe_machine, pick_dtype, readable, stack_versions
from gemma_colab.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.workspace import ADAPTER_FILES, Workspace

if TYPE_CHECKING:
    from gemma_colab.export.parity import Measured

FORMS = ("adapter", "merged", "ollama", "gguf", "hub")
PUSHED = ("adapter", "merged")
EXPORT, SUMMARY = "export.json", "summary.json"
ROWS = 20  # questions that the forms are compared on


def export_workspace(
    workspace: Workspace,
    to: str,
    *,
    rows: int = ROWS,
    max_new_tokens: int = 144,
    text_only: bool = True,
    outtype: str = "q8_0",
    repo_id: str | None = None,
    form: str = "adapter",
    private: bool = True,
    exist_ok: bool = False,
) -> dict:
    """Write one form of what was trained in this workspace; returns what `export.json` then holds.

    to: "adapter" (adds the card to `adapter/`), "merged" (`merged/`, compared with the adapter on `rows` test rows; 0 for no
    comparison), "ollama", "gguf" (both made from `merged/`, which is made first if it isn't there for this adapter), or "hub", which
    pushes `form`, "adapter" or "merged", to `repo_id` as `export.push.push` does. text_only: as for `export.merged.merge`.
    outtype: of the GGUF file, see `export.gguf.write_gguf`. Raises errors of this package before the work starts, wherever that is possible.
    """
    _check(to, form, repo_id, rows)
    trained = _trained(workspace)
    _sweep(workspace)
    if to == "hub":
        from gemma_colab.export.push import check_push, push

        repo_id = check_push(repo_id, private=private, exist_ok=exist_ok)  # before hours of merging
    if to in ("adapter", "hub"):
        write_card(workspace, "adapter")
        _record(workspace, adapter=_size(workspace, "adapter"))
    if to in ("merged", "ollama", "gguf") or (to == "hub" and form == "merged"):
        _ensure_merged(workspace, trained, text_only, anew=to == "merged")
    if to == "merged" and rows:
        _compare(workspace, trained, rows, max_new_tokens)
    if to == "ollama":
        from gemma_colab.export.ollama import write_ollama

        write_ollama(workspace.path / "merged", workspace.path / "ollama")
        _record(workspace, ollama=_size(workspace, "ollama"))
    if to == "gguf":
        _write_gguf(workspace, outtype, rows, max_new_tokens)
    if to == "hub":
        url = push(workspace.path / form, repo_id, private=private, exist_ok=exist_ok)
        _record(workspace, hub={"repo": url, "form": form, "private": private})
    return exported(workspace)


def exported(workspace: Workspace) -> dict:
    """What was exported from this workspace so far: form -> its size and more; and "parity", the records of the comparison."""
    return workspace.read_json(EXPORT) if workspace.has(EXPORT) else {}


def _check(to: str, form: str, repo_id: str | None, rows: int) -> None:
    if to not in FORMS:
        raise SettingsError(f"to={to!r} must be one of {', '.join(FORMS)}; try 'merged'")
    if form not in PUSHED:
        raise SettingsError(f"form={form!r} must be one of {', '.join(PUSHED)}; try 'adapter'")
    if not 0 <= rows <= 10_000:
        raise SettingsError(f"rows={rows} must be from 0 to 10,000; try {ROWS}")
    if to == "hub" and not repo_id:
        raise SettingsError("the Hub needs a name to push to; give repo_id (--repo), such as my-name/my-model")


def _trained(workspace: Workspace) -> ModelSettings:
    """The model that the adapter here was trained on."""
    from gemma_colab.export.adapter import check_adapter

    check_adapter(workspace.need("adapter"))
    workspace.need("training.json")
    record = workspace.read_json("training.json")
    return ModelSettings(model=record["model"], load_in_4bit=record.get("load_in_4bit", True))


def _sweep(workspace: Workspace) -> None:
    """Remove what an export that was killed has left half-written: gigabytes, which nobody would find."""
    for part in workspace.path.glob(".*.part"):
        if (found := re.fullmatch(r"\.(?:merged|ollama)\.(\d+)\.part", part.name)) and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(part, ignore_errors=True)


def _record(workspace: Workspace, **what) -> None:
    workspace.write_json(EXPORT, exported(workspace) | what)


def _size(workspace: Workspace, name: str) -> dict:
    from gemma_colab.export.parity import folder_mib

    return {"MiB": round(folder_mib(workspace.path / name), 2), "adapter": workspace.fingerprint(*ADAPTER_FILES)}


def _ensure_merged(workspace: Workspace, trained: ModelSettings, text_only: bool, *, anew: bool) -> None:
    """`merged/`, of the adapter that is there now."""
    from gemma_colab.export.merged import merge

    made = exported(workspace).get("merged", {})
    same = made.get("adapter") == workspace.fingerprint(*ADAPTER_FILES) and made.get("text_only") == text_only
    if workspace.has("merged/config.json") and same and not anew:
        return
    with workspace.writing("merged") as part:
        merge(trained.model, workspace.path / "adapter", part, text_only=text_only)
        _put_card(workspace, "merged", part)
    left = {
        name: value for name, value in exported(workspace).items() if name not in ("parity", "same", "sentence", "not_compared")
    }
    workspace.write_json(EXPORT, left | {"merged": _size(workspace, "merged") | {"text_only": text_only}})


def _write_gguf(workspace: Workspace, outtype: str, rows: int, max_new_tokens: int) -> None:
    """One file in `gguf/`; where Python can call llama.cpp, it is asked what the merged model is asked."""
    from gemma_colab.export.gguf import RUNTIMES, check_gguf, write_gguf

    path = write_gguf(workspace.path / "merged", workspace.path / "gguf" / f"model-{outtype}.gguf", outtype=outtype)
    _record(workspace, gguf=_size(workspace, "gguf") | {"file": path.name})
    if not any(map(find_spec, RUNTIMES)):
        reason = "Python needs llama.cpp to run it, which pip install xllamacpp brings"
    elif not (rows and workspace.has("rows/test.jsonl")):
        reason = "there are no test rows to compare on"
    elif not (reason := _no_room(workspace)):
        import torch

        prompts = [row["prompt"] for row in workspace.read_jsonl("rows/test.jsonl")[:rows]]
        wanted = _answers(*_plain(workspace.path / "merged", torch.float32), prompts, "merged", max_new_tokens)
        equal = check_gguf(path, prompts, wanted, max_new_tokens=max_new_tokens)["equal"]
        _record(workspace, gguf=exported(workspace)["gguf"] | {"answers equal": float(equal.mean()), "rows": len(equal)})
        return
    _record(workspace, gguf=exported(workspace)["gguf"] | {"not_compared": reason})


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
    made = exported(workspace)
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
    workspace.write_text(f"{form}/README.md", str(_card(workspace, form)))
    return workspace.path / form


def _put_card(workspace: Workspace, form: str, folder: Path) -> None:
    """The same into a folder that is still being written."""
    _draw_curve(workspace, folder / "loss_curve.png")
    (folder / "README.md").write_text(str(_card(workspace, form, folder)), encoding="utf-8")


def _card(workspace: Workspace, form: str, folder: Path | None = None):
    from transformers import AutoConfig

    from gemma_colab.export.card import model_card
    from gemma_colab.export.stored import sees_images

    facts = run_facts(workspace)
    sees = sees_images(facts["model"])
    dtype = "bfloat16"
    if form == "merged":
        dtype = str(AutoConfig.from_pretrained(folder or workspace.path / form).dtype).removeprefix("torch.")
    return model_card(form, facts, curve=True, multimodal=sees, dtype=dtype)


def _draw_curve(workspace: Workspace, path: Path) -> None:
    """From the log of the run itself, so that it is never the curve of another."""
    from matplotlib.figure import Figure

    from gemma_colab.training.history import history_table
    from gemma_colab.ui.plots import loss_curve

    figure = Figure(figsize=(7, 3.2), layout="constrained")  # not pyplot's: a notebook would show it
    loss_curve(history_table(workspace.read_json("training.json")["log_history"]), figure.subplots(), title="")
    figure.savefig(path, format="png", dpi=120)


# --------------------------------------------------------------------------------------------- the comparison
def _compare(workspace: Workspace, trained: ModelSettings, rows: int, max_new_tokens: int) -> None:
    from gemma_colab.export.parity import parity, same_model

    if not workspace.has("rows/test.jsonl"):
        _record(workspace, not_compared="there are no test rows in this workspace")
        return
    if reason := _no_room(workspace):
        _record(workspace, not_compared=reason)
        return
    forms = compare_forms(workspace, trained, rows=rows, max_new_tokens=max_new_tokens)
    same, sentence = same_model(forms, "merged", ON_16)
    _record(workspace, parity=parity(forms).round(6).to_dict("records"), same=same, sentence=sentence)
    for form in PUSHED:
        write_card(workspace, form)


ON_4, ON_16 = "adapter on the 4-bit base", "adapter on the 16-bit base"


def compare_forms(
    workspace: Workspace, trained: ModelSettings, *, rows: int = ROWS, max_new_tokens: int = 144
) -> dict[str, Measured]:
    """The first test rows, asked of the adapter on the base it was trained on, of the adapter on the 16-bit base, and of `merged/` in
    plain transformers. One after the other is loaded and let go; for `export.parity.parity`."""
    import torch

    from gemma_colab.export.adapter import load_adapter
    from gemma_colab.model.loading import load_model, load_tokenizer, quantization_config

    chats = [{key: row[key] for key in ("prompt", "completion")} for row in workspace.read_jsonl("rows/test.jsonl")[:rows]]
    dtype, _ = pick_dtype(describe_machine(str(workspace.path)))
    # Plain transformers can't run Gemma 3 in float16. A T4 emulates bfloat16: slowly, and right.
    wide = torch.bfloat16 if dtype == torch.float16 else dtype
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
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return forms


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
    answers = _answers(model, tokenizer, [chat["prompt"] for chat in chats], name, max_new_tokens)
    seconds = time.monotonic() - start
    return Measured(answers, mean_loss(answer_losses(model, tokenizer, chats, description=name)), folder_mib(folder), seconds)


def _no_room(workspace: Workspace) -> str:
    """Why the merged model can't be run here; "" if it can."""
    import torch

    from gemma_colab.export.parity import folder_mib

    gpu = torch.cuda.is_available()
    # A CPU computes in float32, in which 16-bit weights are twice as large.
    need = folder_mib(workspace.path / "merged") / 1024 * (1.1 if gpu else 2.1) + 0.5
    free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) / GIB
    if free > need:
        return ""
    where = "the GPU" if gpu else "memory"
    return (
        f"running the merged model takes about {need:.1f} GiB, and {readable(free)} of {where} is free; delete the model you have "
        "loaded and export again, or compare on a larger machine"
    )
