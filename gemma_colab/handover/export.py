"""Take a trained workspace home: the adapter with its card, the merged model, Ollama, GGUF, the Hub; and compare what was written
with what was trained."""

from __future__ import annotations

import gc
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.curve import history_table, save_curve
from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.loading import load_model, quantization_config
from gemma_colab.core.machine import GIB, free_gib, pick_dtype
from gemma_colab.core.rows import Row, prompt, to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.workspace import SPLITS, Workspace, whole
from gemma_colab.evaluation import answer_losses, generate_answers
from gemma_colab.export.adapter import check_adapter, load_adapter
from gemma_colab.export.card import model_card
from gemma_colab.export.checkpoint import base_folder, is_multimodal, missing_stops, stored_tensors
from gemma_colab.export.converter import ready_converter
from gemma_colab.export.gguf import can_run, check_gguf, check_outtype, gguf_gib, write_gguf
from gemma_colab.export.hub import check_push, push
from gemma_colab.export.merged import merge
from gemma_colab.export.ollama import modelfile, write_ollama
from gemma_colab.export.parity import Measured, behind, parity, same_model
from gemma_colab.export.record import entry, exported, mib, record
from gemma_colab.model.choice import shown_name
from gemma_colab.model.lent import describe_machine
from gemma_colab.model.libraries import stack_versions
from gemma_colab.model.memory import readable
from gemma_colab.ui.report import write_report

FORMS = ("adapter", "merged", "ollama", "gguf", "hub")
PUSHED = ("adapter", "merged")
SUMMARY, TEST = "summary.json", "rows/test.jsonl"
# A GGUF file is sound where this share of its answers is the merged model's, or parts from it at a word that the merged model holds
# nearly as likely as its own (nats). Measured in benchmarks/README.md.
SOUND, NEARLY = 0.8, 1.0
LARGER = "delete the model you have loaded and export again, or compare on a larger machine"
ON_4, ON_16 = "adapter on the 4-bit base", "adapter on the 16-bit base"
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?:part|old)")  # of `Workspace.writing`, when it was killed


def export_workspace(
    workspace: Workspace,
    to: str,
    *,
    rows: int = 20,
    max_new_tokens: int = 144,
    text_only: bool | None = None,
    outtype: str = "q8_0",
    repo_id: str | None = None,
    form: str = "adapter",
    private: bool = True,
    exist_ok: bool = False,
    system: str | None = None,
) -> dict:
    """Write one form of what was trained in this workspace; return what `export.json` then holds (see `exported`).

    to: "adapter" (adds the card to `adapter/`), "merged" (`merged/`, compared with the adapter on `rows` test rows; 0 for no
    comparison), "ollama", "gguf" (both made from `merged/`, which is made first if it isn't there for today's adapter), or "hub",
    which pushes `form`, "adapter" or "merged", to `repo_id` as `push` does. text_only: as for `merge`; left out, a `merged/` that is
    used stays what it is, and one that is made is text only. outtype: of the GGUF file, see `write_gguf`. system: for "ollama", a
    text before the first question. Where notebook 05 left `summary.json` and `report.html` of this adapter, they are told too.
    Raises errors of this package before the work starts, wherever that is possible.
    """
    _check(to, form, repo_id, rows, outtype, system)
    check_adapter(workspace.need("adapter"))
    workspace.need("training.json")
    _sweep(workspace)
    if to == "hub":  # before hours of merging; and a repository that is there may be private already
        repo_id, is_private = check_push(repo_id, private=private, exist_ok=exist_ok)
    if to in ("merged", "ollama", "gguf") or (to == "hub" and form == "merged"):
        _need_merged(workspace, to, text_only, outtype)
    if to == "adapter":
        write_card(workspace.path / "adapter", "adapter", run_facts(workspace))
        record(workspace, adapter=entry(workspace, "adapter"))
    elif to == "merged" and rows:
        _compare_merged(workspace, rows, max_new_tokens)
    elif to == "ollama":
        write_ollama(workspace.path / "merged", workspace.path / "ollama", system=system)
        record(workspace, ollama=entry(workspace, "ollama"))
    elif to == "gguf":
        path = write_gguf(workspace.path / "merged", workspace.path / "gguf" / f"model-{outtype}.gguf", outtype=outtype)
        made = entry(workspace, f"gguf/{path.name}") | {"file": path.name}
        record(workspace, gguf=made)
        record(workspace, gguf=made | _compare_gguf(workspace, path, rows, max_new_tokens))
    elif to == "hub":
        write_card(workspace.path / form, form, run_facts(workspace))  # notebook 05 may have run since the last one was written
        url = push(workspace.path / form, repo_id, private=private, exist_ok=exist_ok)
        record(workspace, hub={"repo": url, "form": form, "private": is_private})
    _tell_report(workspace)
    return exported(workspace)


def _check(to: str, form: str, repo_id: str | None, rows: int, outtype: str, system: str | None) -> None:
    if to not in FORMS:
        raise SettingsError(f"to={to!r} must be one of {', '.join(FORMS)}; try 'merged'")
    if form not in PUSHED:
        raise SettingsError(f"form={form!r} must be one of {', '.join(PUSHED)}; try 'adapter'")
    if not 0 <= rows <= 10_000:
        raise SettingsError(f"rows={rows} must be from 0 to 10,000; try 20")
    if to == "hub" and not repo_id:
        raise SettingsError("the Hub needs a name to push to; give repo_id (--repo), such as my-name/my-model")
    if system is not None and to != "ollama":
        raise SettingsError(f"system={system[:40]!r} is for Ollama only, not for to={to!r}; leave it out, or take to='ollama'")
    check_outtype(outtype)
    modelfile(".", system)  # raises where Ollama would read it differently


def _sweep(workspace: Workspace) -> None:
    """Remove what an export that was killed has left half-written: gigabytes, which nobody would find."""
    left = [path for name in (".merged.*", ".ollama.*", "gguf/.*") for path in workspace.path.glob(name)]
    for path in left:
        if not (found := LEFTOVER.fullmatch(path.name)) or psutil.pid_exists(int(found["process"])):
            continue
        if path.suffix == ".old" and not (target := path.with_name(found["name"])).exists():
            path.rename(target)  # killed in the middle of the change: this is the last whole one
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _tell_report(workspace: Workspace) -> None:
    """Bring `summary.json` and `report.html` up to what was exported, where they are there and of today's adapter."""
    summary = workspace.read_json(SUMMARY) if workspace.has(SUMMARY) else {}
    if summary and _of_this_run(summary, workspace.read_json("training.json")):
        workspace.write_json(SUMMARY, summary | {"export": exported(workspace).get("parity", [])})
        if workspace.has("report.html") and workspace.has("evaluation/rows.jsonl"):
            write_report(workspace)


# --------------------------------------------------------------------------------------------- the merged model
def _need_merged(workspace: Workspace, to: str, text_only: bool | None, outtype: str) -> None:
    """Merge, unless `merged/` is there of today's adapter and of the kind that is wanted; asked for by its name, it is made anew."""
    usable = to != "merged" and workspace.has("merged/config.json")
    there = exported(workspace).get("merged", {}).get("text_only") if usable else None
    wanted = text_only if text_only is not None else there is not False
    if there == wanted:
        return
    base = workspace.read_json("training.json")["model"]
    if to in ("ollama", "gguf"):
        _refuse_early(workspace, base, to, outtype)
    with workspace.writing("merged") as part:
        part.mkdir()
        facts = run_facts(workspace) | {"export": [], "export_sentence": None}  # what is wrong with them shows before the work
        merge(base, workspace.path / "adapter", part, text_only=wanted)
        write_card(part, "merged", facts)
    record(workspace, merged=entry(workspace, "merged") | {"text_only": wanted})


def _refuse_early(workspace: Workspace, base: str, to: str, outtype: str) -> None:
    """Say before the merge what Ollama or llama.cpp would miss after it."""
    if to == "gguf":
        ready_converter()
    folder = base_folder(base)
    if not (folder / "tokenizer.model").is_file():
        raise ModelError(
            f"tokenizer.model is missing in {folder}, and llama.cpp and Ollama need it; copy it from the original model"
        )
    tensors, free = stored_tensors(base, folder), free_gib(workspace.path)
    # merged/ has 2 bytes a weight at least; `merge` itself looks closer
    if to == "gguf" and free < (need := gguf_gib(tensors, "bf16") + gguf_gib(tensors, outtype)):
        short = f"take {readable(need)} and {readable(free)} is free in {workspace.path}"
        raise WorkspaceError(f"merged/ and the GGUF file {short}; make room there")


# --------------------------------------------------------------------------------------------- the card
def write_card(folder: Path, form: str, facts: dict) -> None:
    """Write README.md and `loss_curve.png` into the folder of an "adapter" or "merged" model. facts: of `run_facts`."""
    with whole(folder / "loss_curve.png") as curve:
        save_curve(history_table(facts["log_history"]), curve, dpi=120)
    dtype = str(AutoConfig.from_pretrained(folder).dtype).removeprefix("torch.") if form == "merged" else "bfloat16"
    card = model_card(form, facts, curve=True, multimodal=facts["is_multimodal"], dtype=dtype)
    with whole(folder / "README.md") as part:
        part.write_text(str(card), encoding="utf-8", errors="backslashreplace")


def run_facts(workspace: Workspace) -> dict:
    """Return what is known of the run, as `summary.json` holds it; no evaluation is in it where notebook 05 has not run since.

    Beside it "log_history" of the run itself, for its curve, and "is_multimodal", whether the base sees images.
    """
    run = workspace.read_json("training.json")
    splits = {split: f"rows/{split}.jsonl" for split in SPLITS}
    settings = {"lora": LoraSettings.file, "train": TrainSettings.file}
    facts = {
        "model": run["model"],
        "load_in_4bit": run.get("load_in_4bit"),
        "fingerprint": run.get("rows"),
        "versions": {name: version for name, version in stack_versions().items() if version != "missing"},
        "rows": {split: len(workspace.read_jsonl(file)) for split, file in splits.items() if workspace.has(file)},
        "settings": {name: workspace.read_json(file) for name, file in settings.items() if workspace.has(file)},
        "training": {name: run.get(name) for name in ("status", "verdict", "seconds", "steps", "best_step", "best_eval_loss")},
        "log_history": run["log_history"],
        "is_multimodal": is_multimodal(run["model"]),  # here: from the name that is shown, a folder can't be found again
    }
    facts["seed"] = facts["settings"].get("train", {}).get("seed")
    if workspace.has(SUMMARY):
        summary = workspace.read_json(SUMMARY)
        if _of_this_run(summary, run):
            facts |= {name: value for name, value in summary.items() if value is not None}
        else:
            print(f"{SUMMARY} is of another training run: the card goes without an evaluation until notebook 05 runs again.")
    made = exported(workspace)
    return facts | {"export": made.get("parity", []), "export_sentence": made.get("sentence")}


def _of_this_run(summary: dict, run: dict) -> bool:
    """Whether an evaluation is of the adapter that is here now."""
    rows, training = run.get("rows"), summary.get("training") or {}
    if summary.get("model") != shown_name(run["model"]) or summary.get("fingerprint", rows) != rows:
        return False
    pairs = [(training.get(name), run.get(name)) for name in ("steps", "best_step", "best_eval_loss")]
    return all(mine is None or theirs is None or math.isclose(mine, theirs, rel_tol=1e-6) for mine, theirs in pairs)


# --------------------------------------------------------------------------------------------- the comparison
def _compare_merged(workspace: Workspace, rows: int, max_new_tokens: int) -> None:
    """Compare `merged/` with the adapter; note it in `export.json` and on both cards."""

    def compare(asked: list[Row]) -> dict:
        forms = compare_forms(workspace, asked, max_new_tokens)
        same, sentence = same_model(forms, "merged", ON_16)
        # The answers don't show it: to measure, every form is told where to stop.
        if lacking := missing_stops(workspace.path / "merged"):
            lacks = f"its generation_config.json lacks {' and '.join(lacking)}, where its answers should end"
            same, sentence = False, f"{sentence}; but {lacks}: export it again"
        return {"parity": parity(forms).round(6).to_dict("records"), "same": same, "sentence": sentence}

    told = _if_it_fits(workspace, rows, _dtypes(workspace)[1], compare)
    record(workspace, **told)
    if "parity" in told:
        for form in PUSHED:
            write_card(workspace.path / form, form, run_facts(workspace))


def compare_forms(workspace: Workspace, rows: list[Row], max_new_tokens: int = 144) -> dict[str, Measured]:
    """Ask these rows of the adapter on the base it was trained on, of the adapter on the 16-bit base, and of `merged/` in plain
    transformers, loaded one after the other; the result is for `parity`."""
    run, (dtype, wide) = workspace.read_json("training.json"), _dtypes(workspace)
    adapter, merged = workspace.path / "adapter", workspace.path / "merged"

    def on_base(quantized: bool) -> tuple:
        base = load_model(run["model"], dtype if quantized else wide, quantization_config(dtype) if quantized else None)
        return load_adapter(base, workspace), load_tokenizer(run["model"])

    loaders = {ON_4: lambda: on_base(True)} if run.get("load_in_4bit", True) else {}
    loaders |= {ON_16: lambda: on_base(False), "merged": lambda: _plain(merged, wide)}
    forms = {}
    for name, load in loaders.items():
        forms[name] = _measure(*load(), rows, merged if name == "merged" else adapter, name, max_new_tokens)
        _free_gpu()
    return forms


def _measure(model, tokenizer, rows: list[Row], folder: Path, name: str, max_new_tokens: int) -> Measured:
    start, prompts = time.monotonic(), [prompt(row) for row in rows]
    answers = generate_answers(model.eval(), tokenizer, prompts, max_new_tokens=max_new_tokens, description=name)
    seconds, losses = time.monotonic() - start, answer_losses(model, tokenizer, rows, description=name)
    return Measured(answers, losses["loss"].sum() / losses["tokens"].sum(), mib(folder), seconds)


def _compare_gguf(workspace: Workspace, path: Path, rows: int, max_new_tokens: int) -> dict:
    """Ask llama.cpp what the merged model is asked, where Python can call it; return what to note of it."""

    def compare(asked: list[Row]) -> dict:
        prompts = [prompt(row) for row in asked]
        model, tokenizer = _plain(workspace.path / "merged", torch.float32)
        wanted = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, description="merged")
        found = check_gguf(path, prompts, wanted, max_new_tokens=max_new_tokens)
        texts = zip(prompts, found["expected"], found["answer"], strict=True)
        near = sum(behind(model, tokenizer, *row) <= NEARLY for row in texts) / len(found)
        equal = float(found["equal"].mean())
        sentence = f"llama.cpp gives the answers of the merged model to {equal:.0%} of {len(found)} test rows"
        if equal < 1:
            sentence += f"; with those that part at a word nearly as likely, which is rounding, it is {near:.0%}"
            sentence += f"; a sound file has {SOUND:.0%} or more"
        if near < SOUND:
            remedy = "export it again with outtype f16, which rounds least, or with another llama.cpp (LLAMA_CPP names it)"
            sentence = f"looks broken: {sentence}; {remedy}"
        return {"answers equal": equal, "nearly": near, "rows": len(found), "same": near >= SOUND, "sentence": sentence}

    if not can_run():
        return {"not_compared": "Python needs llama.cpp to run it, which pip install xllamacpp brings"}
    return _if_it_fits(workspace, rows, torch.float32, compare)


def _dtypes(workspace: Workspace) -> tuple[torch.dtype, torch.dtype]:
    """Return what a 4-bit base computes in on this machine, and what 16-bit weights are loaded in."""
    dimensions = dimensions_of(workspace.read_json("training.json")["model"])
    dtype, _ = pick_dtype(describe_machine(str(workspace.path)), dimensions)
    # Plain transformers can't run Gemma 3 in float16. A T4 emulates bfloat16: slowly, and right.
    return dtype, torch.bfloat16 if dtype == torch.float16 else dtype


def _plain(folder: Path, dtype: torch.dtype) -> tuple:
    """Load model and tokenizer as anybody loads them."""
    where = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=where, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _if_it_fits(workspace: Workspace, rows: int, dtype: torch.dtype, compare: Callable[[list[Row]], dict]) -> dict:
    """Return what `compare` found on test rows; {"not_compared": why} if there are none, or the merged model is too large to run here."""
    asked = [to_messages(row) for row in workspace.read_jsonl(TEST)[:rows]] if workspace.has(TEST) else []
    if not asked:
        return {"not_compared": "there are no test rows to compare on"}
    _free_gpu()
    if reason := _no_room(workspace.path / "merged", dtype):
        return {"not_compared": f"{reason}; {LARGER}"}
    try:
        return compare(asked)
    except torch.OutOfMemoryError:  # others use the GPU too, and long rows take more
        pass
    _free_gpu()  # here, where the error no longer holds what filled it
    return {"not_compared": f"the GPU's memory was full before all questions were answered; {LARGER}"}


def _no_room(merged: Path, dtype: torch.dtype) -> str:
    """Say why the merged model can't be run here in this dtype; "" if it can."""
    wider = dtype.itemsize / AutoConfig.from_pretrained(merged).dtype.itemsize  # float32 takes twice what is stored in 16 bit
    need, gpu = mib(merged) / 1024 * wider * 1.1 + 0.5, torch.cuda.is_available()
    free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) / GIB
    short = f"takes about {need:.1f} GiB, and {readable(free)} of {'the GPU' if gpu else 'memory'} is free"
    return "" if free > need else f"running the merged model {short}"


def _free_gpu() -> None:
    """Give back what deleted models leave in torch's cache, which other programs, and `mem_get_info`, take for used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
