"""Take a trained workspace home: adapter and card, merged model, Ollama, GGUF, the Hub; and compare what was written with it."""

import gc
import shutil
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import pandas as pd
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gemma_colab.core.catalog import dimensions_of, from_hub
from gemma_colab.core.chat import load_tokenizer, tokenize_row
from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import SettingsError, WorkspaceError, say
from gemma_colab.core.loading import load_model, quantization_config
from gemma_colab.core.machine import GIB, pick_dtype
from gemma_colab.core.rows import Row, prompt, to_messages
from gemma_colab.core.workspace import ADAPTER_FILES, Workspace, sweep
from gemma_colab.evaluation import answer_losses, generate_answers
from gemma_colab.export.adapter import check_adapter, load_adapter, name_for_whole_model, of_text_part
from gemma_colab.export.card import model_card
from gemma_colab.export.checkpoint import config_of
from gemma_colab.export.folders import BELONGS, CARD, LEFT, carry, changed, refuse_overlap, refuse_strangers, signed
from gemma_colab.export.gguf import OUTTYPES, can_run, check_gguf, ready_converter, write_gguf
from gemma_colab.export.hub import check_push, push
from gemma_colab.export.merged import merge
from gemma_colab.export.ollama import modelfile, write_ollama
from gemma_colab.export.record import entry, exported, mib, record
from gemma_colab.handover.assess import run_facts
from gemma_colab.model.choice import sees_images, shown_name
from gemma_colab.model.hub import refuse_another_base, refuse_links
from gemma_colab.model.lent import describe_machine
from gemma_colab.model.memory import readable
from gemma_colab.training.records import save_curve
from gemma_colab.ui.report import write_report

FORMS = ("adapter", "merged", "ollama", "gguf", "hub")
SUMMARY, TEST = "summary.json", "rows/test.jsonl"
CLOSE = 0.02  # nats per token: below the spread of two runs that differ in their seed only
# A GGUF file is sound where this share of its answers is the merged model's, or parts from it at a word that the merged model holds
# nearly as likely as its own (nats). Measured in benchmarks/README.md.
SOUND, NEARLY = 0.8, 1.0
LARGER = "delete the model you have loaded and export again, or compare on a larger machine"
ON_4, ON_16 = "adapter on the 4-bit base", "adapter on the 16-bit base"


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
    also: Collection[str] = (),
) -> dict:
    """Write one form of what was trained in this workspace; return what `export.json` then holds (see `exported`).

    to: "adapter" (adds the card to `adapter/`), "merged" (`merged/`, compared with the adapter on `rows` test rows; 0 for no
    comparison), "ollama", "gguf" (both made from `merged/`, which is made first if it isn't there for today's adapter), or "hub",
    which pushes `form`, "adapter" or "merged", to `repo_id` as `push` does. text_only: as for `merge`; left out, a `merged/` that is
    used stays what it is, and one that is made is text only. outtype: of the GGUF file, see `write_gguf`. system: for "ollama", a
    text before the first question. also: for "hub", see `push`. Where notebook 05 left `summary.json` and `report.html` of this
    adapter, they are told too. Raises errors of this package before the work starts, wherever that is possible.
    """
    for name, value, known in (("to", to, FORMS), ("form", form, FORMS[:2]), ("outtype", outtype, OUTTYPES)):
        if value not in known:
            raise SettingsError(f"{name}={value!r} must be one of {', '.join(known)}")
    if rows < 0:
        raise SettingsError(f"rows={rows} must be 0 or more; try 20")
    if to == "hub" and not repo_id:
        raise SettingsError("the Hub needs a name to push to; give repo_id (--repo), such as my-name/my-model")
    if system is not None and to != "ollama":
        raise SettingsError(f"system={system[:40]!r} is for Ollama only, not for to={to!r}; leave it out, or take to='ollama'")
    modelfile(".", system)  # raises where Ollama would read it differently
    workspace.need("training.json")
    check_adapter(adapter := workspace.need("adapter"))
    refuse_links(adapter)
    base = workspace.read_json("training.json")["model"]
    if sees_images(base) and not of_text_part(adapter):  # it was saved by an older version
        with workspace.writing("adapter") as part:
            shutil.copytree(adapter, part)
            name_for_whole_model(part)
    for name in FORMS:  # gigabytes of an export that was killed, which nobody would find
        sweep(workspace.path, f".{name}.[0-9]*")
    sweep(workspace.own("gguf"), ".*.gguf.[0-9]*")
    if to == "hub":  # before hours of merging; and a repository that is there may be private already
        repo_id, is_private, _ = check_push(repo_id, private=private, exist_ok=exist_ok)
    if to == "gguf":
        ready_converter()
    merged = workspace.path / "merged"
    if to in ("merged", "ollama", "gguf") or (to == "hub" and form == "merged"):
        _need_merged(workspace, to, text_only)
    if of_text_part(adapter):
        blind = to == "gguf" or ((form if to == "hub" else to) != "adapter" and exported(workspace)["merged"]["text_only"])
        more = f", and only that is written: {to} sees none any more (--to merged --whole keeps the vision part)" if blind else ""
        say(f"{shown_name(base)} sees images; only its text part was tuned{more}.")
    if to == "adapter":
        write_card(workspace, "adapter")
        record(workspace, adapter=entry(workspace, "adapter"))
    elif to == "merged" and rows:
        record(workspace, **_compare_merged(workspace, rows, max_new_tokens))
        for name in ("adapter", "merged"):
            write_card(workspace, name)
    elif to == "ollama":
        write_ollama(merged, workspace.path / "ollama", system=system)
        record(workspace, ollama=entry(workspace, "ollama"))
    elif to == "gguf":
        path = write_gguf(merged, workspace.path / "gguf" / f"model-{outtype}.gguf", outtype=outtype)
        made = entry(workspace, f"gguf/{path.name}") | {"file": path.name}
        record(workspace, gguf=made)
        record(workspace, gguf=made | _compare_gguf(workspace, path, rows, max_new_tokens))
    elif to == "hub":
        write_card(workspace, form)  # notebook 05 may have run since the last one was written
        url = push(workspace.path / form, repo_id, private=private, exist_ok=exist_ok, also=also)
        record(workspace, hub={"repo": url, "form": form, "private": is_private})
    made = exported(workspace)
    if summary := _evaluation(workspace):
        workspace.write_json(SUMMARY, summary | {"export": made.get("parity", [])})
        if workspace.has("report.html") and workspace.has("evaluation/rows.jsonl"):
            write_report(workspace)
    return made


def _need_merged(workspace: Workspace, to: str, text_only: bool | None) -> None:
    """Merge, unless `merged/` is there of today's adapter and of the kind that is wanted; asked for by its name, it is made anew."""
    usable = to != "merged" and workspace.has("merged/config.json")
    there = exported(workspace).get("merged", {}).get("text_only") if usable else None
    wanted = text_only if text_only is not None else there is not False
    if there == wanted:
        return
    refuse_another_base(run := workspace.read_json("training.json"))
    base, merged = run["model"], workspace.path / "merged"
    refuse_strangers(merged, BELONGS["merged"])
    if Path(base).is_dir():  # it may be the merged model of an earlier round
        refuse_overlap(merged, Path(base))
    trained = workspace.fingerprint(*ADAPTER_FILES)
    with workspace.writing("merged") as part:
        merge(base, workspace.path / "adapter", part, text_only=wanted)
        if workspace.fingerprint(*ADAPTER_FILES) != trained:
            raise WorkspaceError(f"the adapter in {workspace.path} was replaced while it was merged; export again")
        carry(merged, part, "merged")
    record(workspace, merged=entry(workspace, "merged") | {"text_only": wanted})
    write_card(workspace, "merged")


def write_card(workspace: Workspace, form: str) -> None:
    """Write README.md, unless somebody changed it, and `loss_curve.png` into the folder of the "adapter" or the "merged" model."""
    with workspace.writing(f"{form}/loss_curve.png") as part:
        save_curve(history_table(workspace.read_json("training.json")["log_history"]), part, dpi=120)
    dtype = str(config_of(str(workspace.path / form)).dtype).removeprefix("torch.") if form == "merged" else ""
    text = str(model_card(form, card_facts(workspace), dtype))
    if changed(card := workspace.path / form / CARD, text):
        _say(LEFT.format(card))
    else:
        workspace.write_text(f"{form}/{CARD}", signed(text, "<!-- {} -->"))


_say = cache(say)  # once of each card, which one export may write twice


def card_facts(workspace: Workspace) -> dict:
    """Return what a card tells, as `summary.json` holds it; no evaluation is in it where notebook 05 has not run since."""
    made, summary = exported(workspace), _evaluation(workspace)
    if workspace.has(SUMMARY) and not summary:
        say(f"{SUMMARY} is of another training run or adapter: the card goes without an evaluation until notebook 05 runs again.")
    facts = run_facts(workspace) | {name: value for name, value in summary.items() if value is not None}
    facts |= {"text_part": of_text_part(workspace.path / "adapter"), "text_only": made.get("merged", {}).get("text_only")}
    return facts | {"export": made.get("parity", []), "export_sentence": made.get("sentence")}


def _evaluation(workspace: Workspace) -> dict:
    """Return `summary.json`; {} if there is none, or it is not of the adapter that is here now."""
    run, summary = workspace.read_json("training.json"), workspace.read_json(SUMMARY) if workspace.has(SUMMARY) else {}
    now = {"model": shown_name(run["model"]), "fingerprint": run.get("rows"), "adapter": workspace.fingerprint(*ADAPTER_FILES)}
    same = now | {name: summary[name] for name in now if name in summary} == now
    return summary if same and (summary.get("training") or {}).items() <= run.items() else {}


# --------------------------------------------------------------------------------------------- the comparison
def _if_it_fits(workspace: Workspace, rows: int, dtype: torch.dtype, compare: Callable[[list[Row]], dict]) -> dict:
    """Return what `compare` found on test rows; {"not_compared": why} if there are none, or the merged model is too large to run here."""
    asked = workspace.read_jsonl(TEST, to_messages)[:rows] if workspace.has(TEST) else []
    if not asked:
        return {"not_compared": "there are no test rows to compare on"}
    _free_gpu()
    merged, gpu = workspace.path / "merged", torch.cuda.is_available()
    wider = dtype.itemsize / config_of(str(merged)).dtype.itemsize  # float32 takes twice what is stored in 16 bit
    need = mib(merged) / 1024 * wider * 1.1 + 0.5
    free = (torch.cuda.mem_get_info()[0] if gpu else psutil.virtual_memory().available) / GIB
    if need >= free:
        short = f"takes about {need:.1f} GiB, and {readable(free)} of {'the GPU' if gpu else 'memory'} is free"
        return {"not_compared": f"running the merged model {short}; {LARGER}"}
    try:
        return compare(asked)
    except torch.OutOfMemoryError:  # others use the GPU too, and long rows take more
        return {"not_compared": f"the GPU's memory was full before all questions were answered; {LARGER}"}


def _compare_merged(workspace: Workspace, rows: int, max_new_tokens: int) -> dict:
    """Ask the adapter on the base it was trained on, the adapter on the 16-bit base, and `merged/` in plain transformers, one after the
    other; return what to note of it."""
    run = workspace.read_json("training.json")
    adapter, merged = workspace.path / "adapter", workspace.path / "merged"
    computes, _ = pick_dtype(describe_machine(), dimensions_of(run["model"]))
    # Plain transformers can't run Gemma 3 in float16. A T4 emulates bfloat16: slowly, and right.
    wide = torch.bfloat16 if computes == torch.float16 else computes

    def on_base(dtype: torch.dtype, quantization=None) -> tuple:
        return load_adapter(load_model(run["model"], dtype, quantization), workspace).eval(), load_tokenizer(run["model"])

    def compare(asked: list[Row]) -> dict:
        loaders = {ON_4: lambda: on_base(computes, quantization_config(computes))} if run.get("load_in_4bit", True) else {}
        loaders |= {ON_16: lambda: on_base(wide), "merged": lambda: _plain(merged, wide)}
        lines, answers, prompts = [], [], [prompt(row) for row in asked]
        for name, load in loaders.items():
            model, tokenizer = load()
            start = time.monotonic()
            answers.append(generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, description=name))
            seconds, losses = time.monotonic() - start, answer_losses(model, tokenizer, asked, description=name)
            loss = float(losses["loss"].sum() / losses["tokens"].sum())
            equal, size = _equal(answers[0], answers[-1]) / len(asked), mib(merged if name == "merged" else adapter)
            lines.append({"form": name, "MiB": size, "answers equal": equal, "rows": len(asked), "loss": loss})
            lines[-1] |= {"difference": loss - lines[0]["loss"], "s per answer": seconds / len(asked)}
            del model
            _free_gpu()
        # Equal answers are shown, and are no measure: where two words are nearly as likely, the last digit decides between them, and
        # the rest of the answer follows.
        off = lines[-1]["loss"] - lines[-2]["loss"]
        same = abs(off) <= CLOSE  # not so for a loss that is no number
        equal = f"{_equal(*answers[-2:])} of {len(asked)} answers equal"
        sentence = f"merged against {ON_16}: loss {round(off, 2) + 0.0:+.2f}, {equal}"
        if not same:
            sentence += f"; more than {CLOSE} is too much for rounding: export it again, and check that its base is the same"
        return {"parity": pd.DataFrame(lines).round(6).to_dict("records"), "same": same, "sentence": sentence}

    return _if_it_fits(workspace, rows, wide, compare)


def _equal(one: list[str], other: list[str]) -> int:
    return sum(mine == theirs for mine, theirs in zip(one, other, strict=True))


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
        sentence += f"; with those that part at a word nearly as likely, which is rounding, it is {near:.0%}"
        sentence += f"; a sound file has {SOUND:.0%} or more"
        if near < SOUND:
            remedy = "export it again with outtype f16, which rounds least, or with another llama.cpp (LLAMA_CPP names it)"
            sentence = f"looks broken: {sentence}; {remedy}"
        return {"answers equal": equal, "nearly": near, "rows": len(found), "same": near >= SOUND, "sentence": sentence}

    if not can_run():
        return {"not_compared": "Python needs llama.cpp to run it, which pip install xllamacpp brings"}
    return _if_it_fits(workspace, rows, torch.float32, compare)


@torch.inference_mode()
def behind(model, tokenizer, prompt: list[dict[str, str]], expected: str, answer: str) -> float:
    """Return how much less likely, in nats, `model` holds the first token in which `answer` parts from `expected`, its own, than the
    likeliest one: near 0 where rounding decided, and 0 where the answers are the same."""
    said = ([*prompt, {"role": "assistant", "content": text}] for text in (expected, answer))
    mine, theirs = (tokenize_row({"messages": turns}, tokenizer)["input_ids"] for turns in said)
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    if at is None:  # the same, or they differ in spaces that the chat template takes away
        return 0.0
    logits = model(input_ids=torch.tensor([theirs[:at]], device=model.device), logits_to_keep=1).logits[0, -1]
    return float(logits.max() - logits[theirs[at]])


def _plain(folder: Path, dtype: torch.dtype) -> tuple:
    """Load model and tokenizer by plain classes, as anybody loads them, from a folder that may have been changed since."""
    name, device = str(folder), "cuda" if torch.cuda.is_available() else "cpu"
    how = {"dtype": dtype, "device_map": device, "attn_implementation": "sdpa"}  # a config may name a kernel of the Hub
    model = from_hub(AutoModelForCausalLM, name, name, config=from_hub(AutoConfig, name, name), **how)
    model.generation_config = GenerationConfig()  # `generate` is told everything
    return model.eval(), from_hub(AutoTokenizer, name, name)


def _free_gpu() -> None:
    """Give back what deleted models leave in torch's cache, which other programs, and `mem_get_info`, take for used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
