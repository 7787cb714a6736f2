"""Rows that max_length leaves nothing of, or cuts: TRL drops them without a word, so they are counted and named before the first step."""

import json

import pytest
import torch
from datasets import Dataset
from steps import load_4bit

from gemma_colab.cli import main
from gemma_colab.core.errors import SettingsError, TrainingError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import save_rows
from gemma_colab.training.kept import NAMED, compare_held, fit_rows
from gemma_colab.training.short import short_run, trial_run

LIMIT = 100
SETTINGS = TrainSettings(max_length=LIMIT, num_train_epochs=1, gradient_checkpointing=False, gradient_accumulation_steps=1)


def talk(*turns):
    return {"messages": [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]}


def words(n):
    return " ".join(["кот"] * n)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Six rows by what becomes of them at LIMIT, each with its line."""
    long = words(200)
    fits = talk("Где заказ?", "В пути.")

    def of_tokens(n):
        """One whose last token, the line break behind the answer, is the n-th."""
        for i in range(1, 200):
            row = talk("Где заказ?", "а" * i)
            if len(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]) == n:
                return row
        raise AssertionError("no such row")

    made = [fits, talk(long, "Да."), talk("Почему?", long), of_tokens(LIMIT), of_tokens(LIMIT + 1), of_tokens(LIMIT + 2)]
    made += [talk("Где?", "Там.", long, "Да.")]
    return [row | {"line": 10 * (i + 1)} for i, row in enumerate(made)]


def fitted(rows, tokenizer, settings=SETTINGS, split="train"):
    said = []
    kept, lost = fit_rows({split: rows}, tokenizer, settings, said.append)
    return kept[split], lost["left_out"][split], lost["cut"][split], said


def test_an_answer_cut_before_its_end_counts_and_a_line_break_does_not(rows, tokenizer):
    kept, left_out, cut, said = fitted(rows, tokenizer)
    assert kept == [0, 2, 3, 4, 5, 6]
    assert left_out == ["line 20"]
    assert cut == ["line 30", "line 60", "line 70"]  # not line 50, which loses a line break
    where, longest = [line.split("; max_length=")[0] for line in said], int(said[0].split("; max_length=")[1].split()[0])
    assert where == [
        "left out: 1 of 7 training rows, the answer begins beyond max_length=100 (line 20)",
        "cut: 3 of 7 training rows, an answer ends beyond, and its end is not learned, max_length=100 (line 30, 60, 70)",
    ]
    assert fitted(rows, tokenizer, SETTINGS.replace(max_length=longest)) == (list(range(7)), [], [], [])
    assert fitted(rows, tokenizer, SETTINGS.replace(max_length=longest - 2))[3] != []
    _, left_out, cut, _ = fitted(rows, tokenizer, SETTINGS.replace(last_answer_only=True))
    assert (left_out, cut) == (["line 20", "line 70"], ["line 30", "line 60"])


@pytest.mark.parametrize("last_answer_only", [False, True])
def test_the_rows_are_those_that_trl_keeps(rows, tokenizer, random_gemma, tmp_path, last_answer_only):
    settings, dtype = SETTINGS.replace(last_answer_only=last_answer_only), torch.float32
    data, args = Dataset.from_list(rows), sft_config(settings, tmp_path, len(rows), dtype)
    trainer = build_trainer(load_4bit(random_gemma, dtype), tokenizer, data, data, args, lora_config(LoraSettings(r=4)))
    kept, _, cut, _ = fitted(rows, tokenizer, settings)
    whole = [tokenizer.apply_chat_template(rows[i]["messages"], return_dict=True)["input_ids"] for i in kept]
    held = [list(ids) for ids in trainer.train_dataset["input_ids"]]
    assert held == [ids[:LIMIT] for ids in whole]
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    short = [[label for label in labels if label != -100][-2:].count(end) == 0 for labels in trainer.train_dataset["labels"]]
    loses = [rows[i]["line"] for i, cut_off in zip(kept, short, strict=True) if cut_off]
    assert [f"line {line}" for line in loses] == [
        place for place in cut if place != "line 70"
    ]  # that one ends on an earlier answer
    with pytest.raises(TrainingError, match=f"TRL holds {len(kept)} training rows and was given 7"):
        compare_held(trainer, 7)


def test_places_are_items_lines_general_rows_or_numbers(tokenizer):
    long = talk(words(200), "Да.")
    rows = [talk("а", "б"), long | {"item": 3, "line": 1}, long | {"line": None}, long, *[long | {"line": 5}] * NAMED]
    _, left_out, _, said = fitted(rows, tokenizer)
    assert left_out[:4] == ["item 3", "a general row", "row 4", "line 5"]
    assert len(left_out) == NAMED + 3
    assert " and 3 more); " in said[0]


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("validation", "validation")])
def test_where_nothing_is_left_it_is_refused_with_a_remedy(rows, tokenizer, split, kind):
    remedy = r"max_length=\d+ would keep all, if the memory suffices; or shorten"
    with pytest.raises(SettingsError, match=f"nothing is left for {kind}: of all 1 {kind} rows .* max_length=100; {remedy}"):
        fitted(rows[1:2], tokenizer, split=split)
    with pytest.raises(SettingsError, match=f"nothing is left for {kind}: there are 0 {kind} rows; split the rows anew"):
        fitted([], tokenizer, split=split)


def test_short_runs_name_them_too_and_a_trial_measures_rows_that_are_trained(rows, tokenizer, random_gemma, capsys):
    given = load_4bit(random_gemma, torch.float32), tokenizer
    how = SETTINGS, LoraSettings(r=4), torch.float32
    history = short_run(*given, rows, *how, eval_rows=rows[1:3])
    assert len(history) == 2  # six rows, four in a batch
    out = capsys.readouterr().out
    assert "left out: 1 of 7 training rows" in out
    assert "left out: 1 of 2 validation rows" in out
    trial = trial_run(*given, [rows[0], *[rows[1]] * 8], *how, steps=2)
    assert trial.steps_per_epoch == 1
    assert capsys.readouterr().out.count("left out: 8 of 9 training rows") == 1
    with pytest.raises(SettingsError, match="nothing is left for training"):
        trial_run(*given, [rows[1]], *how)


# --------------------------------------------------------------------------------------------- in a workspace
@pytest.fixture
def trainable(tmp_path, random_gemma, rows, support_rows):
    """A workspace whose rows 20, of training, and 60, of validation, have no answer within LIMIT."""
    workspace = Workspace(tmp_path / "ws")
    fitting = [rows[0] | {"line": i} for i in range(1, 9)]
    splits = {"train": [*fitting, rows[1]], "validation": [rows[0], rows[1] | {"line": 60}], "test": support_rows[:2]}
    save_rows({split: [to_messages(row) for row in part] for split, part in splits.items()}, workspace)
    ModelSettings(model=random_gemma).save(workspace)
    return workspace


def train(workspace, *more):
    sets = [f"--set={name}" for name in (f"max_length={LIMIT}", "num_train_epochs=1", "per_device_train_batch_size=4", *more)]
    return main(["train", "--workspace", str(workspace.path), *[s if "=--" not in s else s[6:] for s in sets]])


@pytest.mark.parametrize("packing", [False, True])
def test_terminal_and_record_name_the_rows_and_the_status_is_a_warning(trainable, capsys, packing):
    assert train(trainable, f"packing={packing}", "--json") == 1
    done = capsys.readouterr()
    found, left = json.loads(done.out), {"train": ["line 20"], "validation": ["line 60"]}
    assert found["left_out"] == left
    assert found["cut"] == {"train": [], "validation": []}
    for line in ("left out: 1 of 9 training rows", "left out: 1 of 2 validation rows"):
        assert [note for note in found["notes"] if note.startswith(line)]
        assert line in done.err  # before the first step
    record = trainable.read_json("training.json")
    assert record["left_out"] == left
    assert record["notes"] == found["notes"]
    (kept,) = (json.loads(path.read_text()) for path in (trainable.path / "history").iterdir())
    assert kept["rows"] == 8


def test_replay_rows_are_named_as_general_ones(trainable, capsys):
    general = [talk(words(200), "Да.") | {"line": 7}]
    trainable.write_jsonl("rows/replay.jsonl", general)
    assert train(trainable, "replay=0.1") == 1
    assert "left out: 2 of 10 training rows, the answer begins beyond max_length=100 (line 20, a general row)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("emptied", "settings", "says"),
    [
        (None, ["max_length=16"], "nothing is left for training: of all 9 training rows"),
        ("validation", [], "nothing is left for validation: there are 0 validation rows"),
        ("validation", ["early_stopping_patience=0"], "nothing is left for validation: there are 0 validation rows"),
        ("train", ["packing=True"], "nothing is left for training: there are 0 training rows"),
    ],
)
def test_a_refused_run_leaves_the_workspace_as_it_was(trainable, emptied, settings, says, capsys):
    train(trainable)
    if emptied:
        trainable.write_jsonl(f"rows/{emptied}.jsonl", [])
    before = {path: path.read_bytes() for path in trainable.path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(trainable, *settings) == 4
    assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trainable.path.rglob("*") if path.is_file()} == before
