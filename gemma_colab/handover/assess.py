"""Notebook 05 in one call: the contestants on the test rows, statistics, forgetting, memorisation, a verdict, the report."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pandas as pd

from gemma_colab.core.catalog import shape_of, shown_name
from gemma_colab.core.errors import GemmaColabError, ModelError
from gemma_colab.core.machine import Machine, describe_machine, dtype_name, pick_dtype, stack_versions
from gemma_colab.core.rows import answer, prompt
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import ADAPTER_FILES, Workspace, read_sample
from gemma_colab.evaluation import contest
from gemma_colab.evaluation.blind import BlindReview
from gemma_colab.evaluation.contest import Contestant, comparison, few_shot_turns, play
from gemma_colab.evaluation.fields import json_metrics, most_frequent, schema_of
from gemma_colab.evaluation.forgetting import forgetting, probe, read_texts
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.health import health, signs
from gemma_colab.evaluation.loss import answer_losses, mean_loss, perplexity
from gemma_colab.evaluation.memorisation import loss_gap, memorisation
from gemma_colab.evaluation.metrics import USUAL, Metric
from gemma_colab.evaluation.verdict import ShipSettings, verdict
from gemma_colab.export.record import exported
from gemma_colab.handover.adapter import ensure_adapter
from gemma_colab.handover.rows import ROW_FILES, ensure_rows
from gemma_colab.training.replay import OWN
from gemma_colab.ui.report import write_report

ANSWERS = "evaluation/answers.jsonl"  # every answer ever given, with a key of its prompt and its model
COLUMNS = ("question", "wanted", "label", "signs")  # of `row_table`, beside the contestants
BY_HEART = 48  # training rows that are asked again: enough for a share of a fifth to show
LOSS_ROWS = 64  # training rows, and validation rows, whose loss is measured: some thousand tokens


def the_contestants(workspace: Workspace, chosen: ModelSettings, train: list[dict], examples: int = 3) -> dict[str, Contestant]:
    """Base, base with `examples` solved training rows in the prompt (none with 0), and tuned, as `evaluation.contest.play` wants
    them. Answers kept in the workspace are of the same model, in the same precision, and of the same adapter, or made anew."""
    base = f"{chosen.model} {chosen.load_in_4bit} {_computes_in(chosen, describe_machine())}"
    tuned = f"{base} {workspace.fingerprint(*ADAPTER_FILES)}" if workspace.has("adapter") else ""
    turns = tuple(few_shot_turns(train, examples))
    few = {"few-shot": Contestant(examples=turns, made_by=base)} if turns else {}
    return {"base": Contestant(made_by=base), **few, "tuned": Contestant(adapter=True, made_by=tuned)}


def _computes_in(chosen: ModelSettings, machine: Machine) -> str:
    try:
        shape = shape_of(chosen.model)
    except ModelError:  # kept answers can be told of when their base is gone
        shape = None
    return dtype_name(machine, shape)[0]


def enough_tokens(tokenizer, chats: list[dict], most: int = 1024) -> int:
    """Tokens that an answer may have: a third more than the longest right one, at most `most`."""
    lengths = [len(tokenizer(answer(chat))["input_ids"]) for chat in chats]
    return min(most, int(max(lengths) * 4 / 3) + 8)


def general_questions() -> list[dict]:
    """`general_probe.jsonl` of the samples."""
    return read_sample("general_probe")


def neutral_texts() -> list[dict]:
    """`neutral_text.jsonl` of the samples."""
    return read_sample("neutral_text")


def row_table(chats: list[dict], tables: dict[str, pd.DataFrame], scored: dict, labels: list | None = None) -> pd.DataFrame:
    """One line a test row, to read: question, wanted, label, the answer of each contestant, the tuned model's scores, and the names
    of the signs of ill health that its answer shows."""
    wanted = [answer(chat) for chat in chats]
    ill = signs(tables["tuned"], wanted)
    return pd.DataFrame(
        {
            "question": [_question(prompt(chat)) for chat in chats],
            "wanted": wanted,
            **({"label": labels} if labels and any(labels) else {}),
            **{name: table["answer"] for name, table in tables.items()},
            # a field of a form may be called as a column here is
            **{name if name not in (*tables, *COLUMNS) else f"{name}, score": s for name, s in scored["tuned"].items()},
            "signs": [", ".join(name for name in ill.columns if row[name]) for row in ill.to_dict("records")],
        }
    )


def _question(turns: list[dict]) -> str:
    """The turns as one text; where there are several, with who speaks."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def summarise(
    workspace: Workspace,
    chosen: ModelSettings,
    machine: Machine,
    rows: dict[str, list[dict]],
    tables: dict[str, pd.DataFrame],
    scored: dict[str, dict[str, list]],
    *,
    losses: dict[str, tuple[pd.DataFrame, pd.DataFrame]],
    forgotten: pd.DataFrame | None = None,
    memorised: pd.DataFrame | None = None,
    labels: list | None = None,
    metrics: dict[str, Metric] | None = None,
    lower_is_better=(),
    generation: dict | None = None,
    constant: str | None = None,
    seed: int = 0,
) -> dict:
    """Write `summary.json`, `evaluation/rows.jsonl` and `report.html`; returns the summary.

    tables, scored: of `contest.play` and `contest.scores` on the test rows. losses: part -> (base, tuned), of `answer_losses`.
    forgotten: of `forgetting.forgetting`. memorised: of `memorisation.memorisation`. metrics: for their meaning, which is the first
    sentence of each one's docstring. generation: what to say of how answers were
    made, such as max_new_tokens and examples. constant: an answer that reads no question (`fields.most_frequent`), scored like the
    others. A blind review of these answers, if the names were shown, is taken from `review/`.
    """
    wanted = [answer(chat) for chat in rows["test"]]
    others = [name for name in ("base", "few-shot") if name in tables]
    against = {name: comparison(tables, scored, name, lower_is_better=lower_is_better) for name in others}
    ill = health(tables, wanted)
    table = row_table(rows["test"], tables, scored, labels)
    by = "token F1" if "token F1" in scored["tuned"] else next(iter(scored["tuned"]))
    review = _review(table, workspace)
    losses = {part: pair for part, pair in losses.items() if pair[1]["tokens"].sum()}  # validation may be empty
    said = verdict(
        against["base"],
        against.get("few-shot"),
        forgotten=forgotten,
        memorised=memorised,
        health=ill,
        alike=float(table["token F1"].median()) if "token F1" in table else None,
        review=review if review and review["opened"] else None,
        replayed=_replayed(workspace),
        ship_by=ShipSettings.load(workspace) if workspace.has(ShipSettings.file) else None,
    )
    gap = {}
    if {"train", "test"} <= losses.keys():
        difference, low, high = loss_gap(losses["train"][1], losses["test"][1])
        gap = {"difference": difference, "low": low, "high": high}
        gap["base"] = loss_gap(losses["train"][0], losses["test"][0])[0]
    training = workspace.read_json("training.json") if workspace.has("training.json") else {}
    settings = {"lora": LoraSettings, "train": TrainSettings}
    settings = {n: dataclasses.asdict(kind.load(workspace)) for n, kind in settings.items() if workspace.has(kind.file)}
    summary = {
        "model": shown_name(chosen.model),
        "load_in_4bit": chosen.load_in_4bit,
        "dtype": _computes_in(chosen, machine),
        "machine": machine.gpu or "a CPU",
        "seed": seed,
        "versions": stack_versions(),
        "rows": {part: len(rows[part]) for part in rows},
        "fingerprint": workspace.fingerprint(*ROW_FILES),
        "settings": settings | {"generation": generation or {}},
        "training": {k: v for k, v in training.items() if k not in ("log_history", "rows", "model", "load_in_4bit")},
        "verdict": {"word": said.word, "ship": said.ship, "against": said.against, "lines": said.lines, "next": said.next_steps},
        "loss": {part: _loss(*pair) for part, pair in losses.items()},
        "gap": {name: _finite(value) for name, value in gap.items()},
        "tuned_against_base": _records(against["base"]),
        "tuned_against_few_shot": _records(against.get("few-shot")),
        "always_the_same": _constant(constant, wanted, metrics or {}),
        "forgetting": _records(forgotten),
        "memorisation": _records(None if memorised is None else memorised.rename_axis("part").reset_index()),
        "health": _records(ill.rename_axis("contestant").reset_index()),
        "review": review,
        "export": exported(workspace).get("parity", []),
        "measures": {name: _meaning(metric) for name, metric in (metrics or {}).items()},
        "sorted_by": by,
    }
    workspace.write_jsonl("evaluation/rows.jsonl", _records(table))
    workspace.write_json("summary.json", summary)
    write_report(workspace)
    return summary


def _constant(answer: str | None, wanted: list[str], metrics: dict[str, Metric]) -> dict:
    """metric -> mean score of one answer given to every question."""
    if answer is None:
        return {}
    scores = {name: [s for s in metric([answer] * len(wanted), wanted) if s is not None] for name, metric in metrics.items()}
    return {"answer": answer} | {name: sum(s) / len(s) for name, s in scores.items() if s}


def _meaning(metric: Metric) -> str:
    """What a metric says of itself: the first sentence of its docstring."""
    return " ".join((metric.__doc__ or "").split()).split(". ")[0].rstrip(".")


def _review(table: pd.DataFrame, workspace: Workspace) -> dict | None:
    """What is known of a blind review of these answers; None where its files were spoilt."""
    try:
        return BlindReview(table, workspace).summary()
    except GemmaColabError as e:
        print(f"The blind review is left out: {e}")
        return None


def _replayed(workspace: Workspace) -> bool:
    """Whether the sample's general rows were trained on, which are of the same kinds as the probe's."""
    return workspace.has(TrainSettings.file) and TrainSettings.load(workspace).replay > 0 and not workspace.has(OWN)


def _loss(base: pd.DataFrame, tuned: pd.DataFrame) -> dict:
    named = {"base": base, "tuned": tuned}
    values = {n: mean_loss(t) for n, t in named.items()} | {f"{n}_perplexity": perplexity(t) for n, t in named.items()}
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _records(table: pd.DataFrame | None) -> list[dict]:
    """Lines for JSON: plain numbers, and None where there is none."""
    return [] if table is None else json.loads(table.to_json(orient="records", force_ascii=False, double_precision=12))


def assess(
    workspace: Workspace,
    chosen: ModelSettings,
    *,
    loaded: tuple | None = None,
    metrics: dict[str, Metric] | None = None,
    lower_is_better=(),
    examples: int = 3,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    test_rows: int | None = None,
) -> dict:
    """All of notebook 05 but what needs a person; returns the summary (see `summarise`).

    loaded: the tuned `PeftModel` and its tokenizer, if they are in memory. metrics: more than the usual four, or than
    `fields.json_metrics` where all right answers are JSON objects with the same keys. `ship_settings.json` in the workspace has the
    bars of the verdict (`settings.ShipSettings`).
    max_new_tokens: without it, enough for the longest right answer. test_rows: at most so many, drawn at random.
    Answers are kept: after a disconnect the same call goes on where it stopped.
    """
    machine, rows = describe_machine(str(workspace.path)), ensure_rows(workspace)
    ensure_adapter(workspace, chosen)
    model, tokenizer = loaded or load_tuned(workspace, chosen, machine)
    max_new_tokens = max_new_tokens or enough_tokens(tokenizer, rows["test"])
    labels = [row.get("label") for row in workspace.read_jsonl("rows/test.jsonl")]
    if test_rows and test_rows < len(rows["test"]):
        drawn = sorted(random.Random(0).sample(range(len(rows["test"])), test_rows))
        rows = rows | {"test": [rows["test"][i] for i in drawn]}
        labels = [labels[i] for i in drawn]
    max_length = TrainSettings.load(workspace).max_length if workspace.has(TrainSettings.file) else 1024
    how = {"batch_size": batch_size, "save": workspace.path / ANSWERS}
    contestants = the_contestants(workspace, chosen, rows["train"], examples)
    tables = play(model, tokenizer, rows["test"], contestants, max_length=max_length, max_new_tokens=max_new_tokens, **how)
    wanted = [answer(chat) for chat in rows["test"]]
    known_answers = [answer(chat) for chat in rows["train"]]
    form = schema_of(known_answers)
    # Likeness says nothing about a form that is filled in: there each field is right or wrong.
    metrics = (json_metrics(form) if form else USUAL) | (metrics or {})
    scored = contest.scores(tables, wanted, metrics)
    seen = {part: rows[part][:LOSS_ROWS] for part in ("train", "validation")}

    def elsewhere(name: str) -> tuple:
        """What a contestant does on rows that are not in the test."""
        with contest.switched(model, contestants[name]):
            known = {p: answer_losses(model, tokenizer, chats, max_length=max_length) for p, chats in seen.items()}
            asked = probe(model, tokenizer, general_questions(), made_by=contestants[name].made_by, **how)
            return known, asked, read_texts(model, tokenizer, neutral_texts())

    (before, *general_before), (after, *general_after) = elsewhere("base"), elsewhere("tuned")
    losses = {part: (before[part], after[part]) for part in seen}
    losses["test"] = tuple(
        tables[n][["loss", "loss_tokens"]].rename(columns={"loss_tokens": "tokens"}) for n in ("base", "tuned")
    )
    known = rows["train"][:BY_HEART]
    again = generate_answers(
        model,
        tokenizer,
        [prompt(chat) for chat in known],
        max_new_tokens=max_new_tokens,
        made_by=contestants["tuned"].made_by,
        description="training rows again",
        **how,
    )
    by_heart = memorisation(
        {"train": again, "test": list(tables["tuned"]["answer"])},
        {"train": [answer(chat) for chat in known], "test": wanted},
    )
    return summarise(
        workspace,
        chosen,
        machine,
        rows,
        tables,
        scored,
        losses=losses,
        forgotten=forgetting(*zip(general_before, general_after, strict=True)),
        memorised=by_heart,
        labels=labels,
        metrics=metrics,
        lower_is_better=lower_is_better,
        generation={"max_new_tokens": max_new_tokens, "examples": examples if "few-shot" in contestants else 0},
        constant=most_frequent(known_answers) if form else None,
    )


def load_tuned(workspace: Workspace, chosen: ModelSettings, machine: Machine) -> tuple:
    """The chosen model with the adapter of this workspace, and its tokenizer."""
    from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.export.adapter import load_adapter

    dtype, _ = pick_dtype(machine, shape_of(chosen.model))
    base = load_model(chosen.model, dtype, quantization_config(dtype) if chosen.load_in_4bit else None)
    return load_adapter(base, workspace), load_tokenizer(chosen.model)
