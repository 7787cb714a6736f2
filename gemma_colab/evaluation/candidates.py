"""The candidates on the same held-out rows: the base, the base with a few examples, the tuned model. One model in memory is all of
them: without its adapter it is the base."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.catalog import SHORT
from gemma_colab.core.errors import DatasetError, SettingsError, WorkspaceError
from gemma_colab.core.rows import Row, answer, prompt
from gemma_colab.core.settings import ModelSettings
from gemma_colab.core.workspace import ADAPTER_FILES, Workspace
from gemma_colab.evaluation.compare import LOSS, compare
from gemma_colab.evaluation.failures import UNLIKE, failures, unlike
from gemma_colab.evaluation.fields import schema_of, telling_examples
from gemma_colab.evaluation.generation import Turns, generate
from gemma_colab.evaluation.loss import answer_losses
from gemma_colab.evaluation.metrics import USUAL, Metric
from gemma_colab.evaluation.verdict import did_it_work
from gemma_colab.model.hub import weights_mark

ANSWERS = "evaluation/answers.jsonl"  # every answer ever given, with a key of its prompt and its model
CANDIDATES = ("base", "few-shot", "tuned")


@dataclass(frozen=True)
class Evaluation:
    """The answers of each candidate to the same rows, as `evaluate` found them; scores and tables are made of them when asked for.

    test_rows: the rows asked. answers: candidate -> one line a row, with answer, tokens, finished (whether it ended by itself), loss
    (sum over the tokens of the right answer, in nats) and loss_tokens. metrics: name -> function; put in your own, also
    afterwards. examples: solved rows in the few-shot prompt. max_new_tokens: limit of an answer.
    """

    test_rows: list[Row]
    answers: dict[str, pd.DataFrame]
    metrics: dict[str, Metric] = field(default_factory=lambda: dict(USUAL))
    lower_is_better: Sequence[str] = ()
    labels: Sequence[str | None] | None = None
    examples: int = 0
    max_new_tokens: int | None = None

    @property
    def references(self) -> list[str]:
        """Return the right answers."""
        return [answer(row) for row in self.test_rows]

    @property
    def scores(self) -> dict[str, dict[str, list]]:
        """Score the answers: candidate -> metric -> one score per row; None where a row has nothing to measure."""
        return {name: self.score(list(table["answer"])) for name, table in self.answers.items()}

    def score(self, answers: list[str]) -> dict[str, list]:
        """Score any answers to these rows: metric -> one score per row."""
        return {name: metric(answers, self.references) for name, metric in self.metrics.items()}

    def table(self) -> pd.DataFrame:
        """Return the mean of each metric (lines) for each candidate (columns)."""
        return pd.DataFrame({name: pd.DataFrame(scores, dtype=float).mean() for name, scores in self.scores.items()})

    def compare(self, before: str) -> pd.DataFrame:
        """Compare a candidate with the last one, which is the tuned model if it was asked, on each metric and on the loss on the right
        answers; the columns are those of `compare.compare`."""
        *_, after = self.answers
        scores = self.scores
        pairs = {metric: (scores[before][metric], scores[after][metric]) for metric in self.metrics}
        pairs[LOSS] = self.answers[before]["loss"], self.answers[after]["loss"]
        return compare(pairs, weights={LOSS: self.answers[after]["loss_tokens"]}, lower_is_better=[*self.lower_is_better, LOSS])

    def did_it_work(self, reasons: dict[str, str]) -> pd.DataFrame:
        """Say for each reason to tune a model, by the measure that tests it, whether tuning worked (see `verdict.did_it_work`), with the
        mean of few-shot if it was asked, and the first of the worst answers of the last candidate beside the right one."""
        table, (*_, last) = did_it_work(self.compare("base"), reasons), self.answers
        if "few-shot" in self.answers:
            few = self.compare("few-shot").set_index("metric")["before"]
            table.insert(table.columns.get_loc("tuned"), "few-shot", [f"{few[name]:.2f}" for name in table["measure"]])
        said = list(self.answers[last]["answer"])
        scores = self.score(said)
        off = [
            pd.Series(scores.get(name, []), dtype=float).rsub(name not in self.lower_is_better).abs() for name in table["measure"]
        ]
        worst = [errors.idxmax() if errors.any() else None for errors in off]
        for column, texts in {"an answer that failed": said, "the right answer": self.references}.items():
            table[column] = ["" if row is None else texts[row] for row in worst]
        return table

    def failure_modes(self) -> pd.DataFrame:
        """Return for each candidate the share of its answers with each failure mode and with any of them, the share that is `unlike` the
        right answers, and the mean length in tokens."""
        lines = {}
        for name, table in self.answers.items():
            found = failures(table, self.references)
            far = unlike(list(table["answer"]), self.references)
            lines[name] = found.assign(any=found.any(axis=1), **{UNLIKE: far}, tokens=table["tokens"]).mean()
        return pd.DataFrame(lines).T

    def rows(self) -> pd.DataFrame:
        """Return a table to read, one line per test row: question, wanted (the right answer), label, the answer of each candidate, the
        scores of the last one (the tuned, if it was asked), and "signs", the failure modes that its answer shows, or that it is `unlike`."""
        *_, last = self.answers
        columns = {"question": [_as_text(prompt(row)) for row in self.test_rows], "wanted": self.references}
        labels = list(self.labels or [row.get("label") for row in self.test_rows])
        columns |= {"label": labels} if any(labels) else {}
        columns |= {name: table["answer"] for name, table in self.answers.items()}
        for name, scores in self.score(list(columns[last])).items():  # a field of a form may be called as a column here is
            columns[f"{name}, score" if name in (*columns, "label", "signs") else name] = scores
        failed = failures(self.answers[last], self.references).assign(**{UNLIKE: unlike(columns[last].tolist(), self.references)})
        columns["signs"] = [", ".join(failed.columns[row]) for row in failed.to_numpy()]
        return pd.DataFrame(columns)


def evaluate(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    workspace: Workspace | None = None,
    train_rows: Sequence[Row] = (),
    examples: int = 3,
    candidates: Sequence[str] = CANDIDATES,
    metrics: dict[str, Metric] | None = None,
    lower_is_better: Sequence[str] = (),
    labels: Sequence[str | None] | None = None,
    max_length: int = 1024,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Ask the same questions of the base, of the base with `examples` solved training rows in the prompt, and of the tuned model.

    All answer without chance (greedily). A model without an adapter is asked as base and few-shot only; without train_rows there is
    no few-shot. workspace: keeps each answer as it comes, and finds those again that this model and adapter gave before: after a
    disconnect, run the same again. metrics: more than the usual four, name -> function of (predictions, references).
    lower_is_better: those of them where it is. labels: one a row to filter by; else the rows' own. max_length: tokens of a row whose
    loss is measured, the examples aside. max_new_tokens: left out, a third more than the longest right answer (`enough_tokens`).
    """
    if unknown := set(candidates) - set(CANDIDATES):
        raise SettingsError(f"candidates names {sorted(unknown)}, and there are {', '.join(CANDIDATES)}; try ('base',)")
    if not rows:
        raise DatasetError("rows=[] has nothing to ask; take the test rows, which ensure_rows(workspace) returns")
    solved = few_shot_turns(train_rows, examples)
    possible = {"base": True, "few-shot": bool(solved), "tuned": hasattr(model, "disable_adapter")}
    max_new_tokens, answers = max_new_tokens or enough_tokens(tokenizer, rows), {}
    for name in (name for name in CANDIDATES if name in candidates and possible[name]):
        shown = solved if name == "few-shot" else []
        asked = [row | {"messages": [*in_front(shown, prompt(row)), row["messages"][-1]]} for row in rows]
        extra = len(tokenizer.apply_chat_template(shown, return_dict=True)["input_ids"]) - 1 if shown else 0  # <bos> comes once
        how = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "description": f"{name}: answers"}
        how |= kept_answers(workspace, name, model) if workspace else {}
        with adapter_for(name, model):
            table = generate(model, tokenizer, [prompt(row) for row in asked], **how)
            losses = answer_losses(model, tokenizer, asked, max_length=max_length + extra, description=f"{name}: loss")
        answers[name] = table.assign(loss=losses["loss"], loss_tokens=losses["tokens"])
    shots = min(examples, len(train_rows)) if "few-shot" in answers else 0
    return Evaluation(list(rows), answers, USUAL | (metrics or {}), lower_is_better, labels, shots, max_new_tokens)


def adapter_for(candidate: str, model):
    """Open a block in which the model's adapter, if it has one, is on for the tuned model and off for the others."""
    return nullcontext() if candidate == "tuned" else getattr(model, "disable_adapter", nullcontext)()


def few_shot_turns(rows: Sequence[Row], examples: int) -> Turns:
    """Return so many solved rows as the turns of one conversation: drawn at random, or where all answers fill in one form, those that
    show most of it (`fields.telling_examples`).

    Their system prompts are left out: one can't be in the middle of a conversation, and the question that follows has its own.
    """
    answers, most = [answer(row) for row in rows], min(examples, len(rows))
    drawn = telling_examples(answers, most) if most and schema_of(answers) else random.Random(0).sample(range(len(rows)), most)
    return [turn for i in drawn for turn in rows[i]["messages"] if turn["role"] != "system"]


def in_front(examples: Turns, turns: Turns) -> Turns:
    """Put the examples before the question. A system prompt stays first; Gemma's template folds it into the first user turn."""
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    return [*system, *examples, *turns[len(system) :]]


def enough_tokens(tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> int:
    """Return how many tokens an answer may have: a third more than the longest right one, at most 1,024."""
    longest = max(len(tokenizer(answer(row))["input_ids"]) for row in rows)
    return min(1024, int(longest * 4 / 3) + 8)


def kept_answers(workspace: Workspace, candidate: str, model: PreTrainedModel) -> dict:
    """Return the options of `generation.generate` that keep the answers of a candidate in the workspace, found again by the chosen model,
    its weights and precision, and the tuned one's adapter. Raises `WorkspaceError` where what is in memory isn't what is there now."""
    chosen, adapter = ModelSettings.load(workspace), workspace.fingerprint(*filter(workspace.has, ADAPTER_FILES))
    now = SHORT.get(chosen.model, chosen.model), chosen.load_in_4bit, weights_mark(chosen.model)
    on_it = getattr(getattr(model, "get_base_model", lambda: model)(), "peft_config", {})  # goes when the adapter goes
    loaded, same = getattr(on_it.get("default"), "saved_as", ""), getattr(model, "made_of", now) == now
    if not same or loaded not in ("", adapter):
        its = f"the adapter in {workspace.path}" if same else f"{chosen.model} in {4 if chosen.load_in_4bit else 16} bit"
        raise WorkspaceError(f"what is in memory is not {its} as it is now; run this notebook from its first cell again")
    made_by = f"{chosen.model} {chosen.load_in_4bit} {str(model.dtype).removeprefix('torch.')}"
    made_by = f"{made_by} {now[-1]}".rstrip()  # a model of the Hub has no mark
    if candidate == "tuned" and not loaded:  # nobody knows which adapter that is
        return {}
    made_by += f" {loaded}" * (candidate == "tuned")
    return {"save": workspace.own(ANSWERS), "made_by": made_by}


def _as_text(turns: Turns) -> str:
    """Join the turns to one text; where there are several, with who speaks."""
    return turns[0]["content"] if len(turns) == 1 else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
