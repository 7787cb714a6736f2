"""Notebook 05 in one call: the candidates on the test rows, statistics, what was forgotten or memorized, a verdict, the report."""

import dataclasses
import json
import random
from collections.abc import Callable

import pandas as pd

from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.errors import GemmaColabError, say
from gemma_colab.core.machine import dtype_name, pick_dtype
from gemma_colab.core.rows import answer, prompt
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.workspace import ADAPTER_FILES, SPLIT_FILES, SPLITS, Workspace
from gemma_colab.evaluation.blind import BlindReview
from gemma_colab.evaluation.candidates import Evaluation, adapter_for, evaluate, kept_answers
from gemma_colab.evaluation.compare import loss_gap
from gemma_colab.evaluation.failures import UNLIKE
from gemma_colab.evaluation.fields import json_metrics, mixed_up, most_frequent, schema_of
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.knowledge import general_knowledge, memorization
from gemma_colab.evaluation.loss import answer_losses, mean_loss, perplexity
from gemma_colab.evaluation.metrics import USUAL
from gemma_colab.evaluation.verdict import check_bars, verdict
from gemma_colab.export.record import exported
from gemma_colab.handover.adapter import ensure_adapter
from gemma_colab.handover.rows import ensure_rows
from gemma_colab.handover.settings import choose_model
from gemma_colab.model.choice import shown_name
from gemma_colab.model.lent import describe_machine
from gemma_colab.model.libraries import stack_versions
from gemma_colab.training.replay import REPLAY_ROWS
from gemma_colab.ui.report import write_report

ASKED_AGAIN = 32  # training rows that are asked again: enough for a share of a fifth to show
GENERAL = 120  # general questions there are
BARS = "ship_settings.json"
LOSS_ROWS = 32  # training rows, and validation rows, whose loss is measured: some thousand tokens


def load_tuned(workspace: Workspace, *, anyway: bool = False) -> tuple:
    """Load the model that was chosen in this workspace with the adapter that was trained here, in eval mode, and its tokenizer.

    Prints what is loaded and why. Trains an adapter if notebook 04 did not run. anyway: also a model that looks too large for this
    machine. Raises `ModelError` for that, and `WorkspaceError` if the adapter was trained on another model or on other rows.
    """
    from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.export.adapter import load_adapter

    machine = describe_machine()
    chosen, why = choose_model(workspace, machine, anyway=anyway)
    ensure_adapter(workspace, chosen)
    dtype, why_dtype = pick_dtype(machine, dimensions_of(chosen.model))
    say(f"{chosen.model}, because {why}; {dtype}, because {why_dtype}")
    base = load_model(chosen.model, dtype, quantization_config(dtype) if chosen.load_in_4bit else None)
    return load_adapter(base, workspace).eval(), load_tokenizer(chosen.model)


def assess(
    workspace: Workspace,
    *,
    loaded: tuple | None = None,
    evaluation: Evaluation | None = None,
    losses: dict[str, tuple[pd.DataFrame, pd.DataFrame]] | None = None,
    general: pd.DataFrame | None = None,
    memorized: pd.DataFrame | None = None,
    bars: dict[str, float] | None = None,
    test_rows: int | None = None,
    other_rows: int | None = None,
    anyway: bool = False,
    **options,
) -> dict:
    """Judge the tuned model of this workspace by all that needs no person, and write `summary.json`, `evaluation/rows.jsonl` and
    `report.html`; returns the summary. What is not given is measured; answers are kept, so the same call goes on where it stopped.

    loaded: the tuned `PeftModel` and its tokenizer, if they are in memory. evaluation: of `evaluate` on the test rows. losses: split
    -> (base, tuned), of `answer_losses`. general: of `GeneralKnowledge.compare`. memorized: of `memorization`. test_rows: ask at most
    so many, drawn at random. other_rows: of all else that is asked or measured, at most so many of each kind. options: of `evaluate`,
    such as examples=3. Where all right answers are JSON objects with the same keys, each field is measured instead of likeness.
    bars: measure -> the share of test rows from which on figures alone may say "ship it"; they are saved in `ship_settings.json`, and
    those on measures that these rows don't have are named and left out. Without bars those saved there hold.
    A blind review of these answers, if the names were shown, is taken from `review/`. anyway: as for `load_tuned`.
    """
    if bars is not None:
        check_bars(bars)  # impossible ones are refused before hours of work
    rows, machine = ensure_rows(workspace), describe_machine()
    known = [answer(row) for row in rows["train"]]
    chosen, _ = choose_model(workspace, machine, anyway=True)  # load_tuned looks whether it is too large
    if not loaded and any(one is None for one in (evaluation, losses, general, memorized)):
        loaded = load_tuned(workspace, anyway=anyway)
    ensure_adapter(workspace, chosen)
    today, (model, tokenizer) = workspace.fingerprint(*filter(workspace.has, ADAPTER_FILES)), loaded or (None, None)
    most, every = other_rows or LOSS_ROWS, max(1, GENERAL // other_rows) if other_rows else 1
    max_length = TrainSettings.load(workspace).max_length if workspace.has(TrainSettings.file) else 1024

    def base_and_tuned(measure: Callable) -> tuple:
        """measure: a function of the options that keep a candidate's answers."""
        with adapter_for("base", model):
            base = measure(kept_answers(workspace, "base", model))
        return base, measure(kept_answers(workspace, "tuned", model))

    if evaluation is None:
        test = rows["test"]
        if test_rows and test_rows < len(test):
            test = [test[i] for i in sorted(random.Random(0).sample(range(len(test)), test_rows))]
        how = {"max_length": max_length, "workspace": workspace, "train_rows": rows["train"]} | options
        evaluation = evaluate(model, tokenizer, test, **how)
    if losses is None:
        losses = {}
        for split in ("train", "validation"):
            some = rows[split][: min(LOSS_ROWS, most)]
            losses[split] = base_and_tuned(lambda _, some=some: answer_losses(model, tokenizer, some, max_length=max_length))
    if "test" not in losses:
        tables = (evaluation.answers[name][["loss", "loss_tokens"]] for name in ("base", "tuned"))
        losses = losses | {"test": tuple(table.rename(columns={"loss_tokens": "tokens"}) for table in tables)}
    how = {"batch_size": options.get("batch_size")}
    if general is None:
        before, after = base_and_tuned(lambda kept: general_knowledge(model, tokenizer, every, **how, **kept))
        general = after.compare(before)
    if memorized is None:
        how |= kept_answers(workspace, "tuned", model) | {"max_new_tokens": evaluation.max_new_tokens}
        asked = [prompt(row) for row in rows["train"][: min(ASKED_AGAIN, most)]]
        again = generate_answers(model, tokenizer, asked, description="training rows again", **how)
        said = {"train": again, "test": list(evaluation.answers["tuned"]["answer"])}
        memorized = memorization(said, {"train": known[: len(again)], "test": evaluation.references}, known=known)
    constant = {}  # an answer that reads no question, scored like the others
    if schema := schema_of(known):
        # Likeness says nothing about a form that is filled in: there each field is right or wrong.
        own = {name: metric for name, metric in evaluation.metrics.items() if USUAL.get(name) is not metric}
        evaluation, same = dataclasses.replace(evaluation, metrics=json_metrics(schema) | own), most_frequent(known)
        scores = pd.DataFrame(evaluation.score([same] * len(evaluation.test_rows)), dtype=float)
        constant = {"answer": same} | scores.mean().dropna().to_dict()
    if bars is not None:
        if unknown := sorted(bars.keys() - evaluation.metrics.keys()):
            say(f"Left out are bars on what these rows don't have: {', '.join(unknown)}.")
        workspace.write_json(BARS, {"bars": {name: bar for name, bar in bars.items() if name in evaluation.metrics}})
    about = {"dtype": dtype_name(machine, dimensions_of(chosen.model))[0], "machine": machine.gpu or "a CPU"}
    about |= {"adapter": today, "seed": 0}  # it may have been trained again since; of the bootstrap and of the solved examples
    summary = run_facts(workspace) | about | _found(workspace, evaluation, losses, general, memorized)
    summary["settings"]["generation"] = {"max_new_tokens": evaluation.max_new_tokens, "examples": evaluation.examples}
    summary["rows"]["test"], summary["always_the_same"] = len(evaluation.test_rows), constant
    summary["mixed_up"] = mixed_up(list(evaluation.answers["tuned"]["answer"]), evaluation.references, known)
    summary = json.loads(json.dumps(summary), parse_constant=lambda _: None)  # NaN and infinity, which JSON doesn't know
    workspace.write_jsonl("evaluation/rows.jsonl", _records(evaluation.rows()))
    workspace.write_json("summary.json", summary)
    write_report(workspace)
    return summary


def run_facts(workspace: Workspace) -> dict:
    """Return what is known of the run in this workspace before it is evaluated: the first part of `summary.json`, and all that a model's
    card can tell where notebook 05 did not run."""
    run = workspace.read_json("training.json")
    files, kinds = dict(zip(SPLITS, SPLIT_FILES, strict=True)), {"lora": LoraSettings, "train": TrainSettings}
    return {
        "model": shown_name(run["model"]),
        "load_in_4bit": run.get("load_in_4bit"),
        "versions": {name: version for name, version in stack_versions().items() if version != "missing"},
        "rows": {split: len(workspace.read_jsonl(file)) for split, file in files.items() if workspace.has(file)},
        "fingerprint": run.get("rows"),
        "settings": {name: dataclasses.asdict(kind.load(workspace)) for name, kind in kinds.items() if workspace.has(kind.file)},
        "training": {k: v for k, v in run.items() if k not in ("log_history", "rows", "model", "load_in_4bit")},
    }


def _found(workspace: Workspace, evaluation: Evaluation, losses: dict, general: pd.DataFrame, memorized: pd.DataFrame) -> dict:
    """Return what the evaluation came to, as `summary.json` holds it."""
    against = {name: evaluation.compare(name) for name in ("base", "few-shot") if name in evaluation.answers}
    failed, table, review = evaluation.failure_modes(), evaluation.rows(), None
    try:
        review = BlindReview(table, workspace).summary()
    except GemmaColabError as e:  # its files were spoilt
        say(f"The blind review is left out: {e}")
    train = TrainSettings.load(workspace) if workspace.has(TrainSettings.file) else TrainSettings()
    said = verdict(
        against["base"],
        against.get("few-shot"),
        general=general,
        memorized=memorized,
        failures=failed,
        unlike=float(failed.loc["tuned", UNLIKE]),
        review=review if review and review["opened"] else None,
        replayed=train.replay > 0 and not workspace.has(REPLAY_ROWS),  # the sample's rows are of the same kinds as the questions
        bars=workspace.read_json(BARS)["bars"] if workspace.has(BARS) else None,
    )
    losses, gap = {split: pair for split, pair in losses.items() if pair[1]["tokens"].sum()}, {}  # validation may be empty
    if {"train", "test"} <= losses.keys():  # how much larger the loss on test rows is
        (base, _, _), (difference, low, high) = (loss_gap(*pair) for pair in zip(losses["train"], losses["test"], strict=True))
        gap = {"difference": difference, "low": low, "high": high, "base": base}
    means = {split: {"base": mean_loss(base), "tuned": mean_loss(tuned)} for split, (base, tuned) in losses.items()}
    for split, (base, tuned) in losses.items():
        means[split] |= {"base_perplexity": perplexity(base), "tuned_perplexity": perplexity(tuned)}
    return {
        "verdict": said,
        "loss": means,
        "gap": gap,
        "tuned_against_base": _records(against["base"]),
        "tuned_against_few_shot": _records(against["few-shot"]) if "few-shot" in against else [],
        "forgetting": _records(general),
        "memorisation": _records(memorized.rename_axis("part").reset_index()),
        "health": _records(failed.rename_axis("contestant").reset_index()),
        "review": review,
        "export": exported(workspace).get("parity", []),
        "measures": {  # what a metric says of itself: the first sentence of its docstring
            name: " ".join((metric.__doc__ or "").split()).split(". ")[0].rstrip(".")
            for name, metric in evaluation.metrics.items()
        },
        "sorted_by": "token F1" if "token F1" in evaluation.metrics else next(iter(evaluation.metrics)),
    }


def _records(table: pd.DataFrame) -> list[dict]:
    """Return lines for JSON: plain numbers, and None where there is none."""
    return json.loads(table.to_json(orient="records", force_ascii=False, double_precision=12))
