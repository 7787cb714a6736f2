"""docs/recipes.md: EleutherAI's harness scores the tuned model, adapter and merged, and comes to our figures."""

import json

import pytest
import torch
from peft import get_peft_model
from recipes import recipe

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.loading import load_model
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import samples
from gemma_colab.evaluation.loss import answer_losses
from gemma_colab.export.adapter import save_adapter
from gemma_colab.export.merged import merge

TASK = "gemma_colab_test"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(adapter on the 16-bit base, workspace with adapter/ and merged/)"""
    from gemma_colab.core.workspace import Workspace

    workspace = Workspace(tmp_path_factory.mktemp("tuned"))
    torch.manual_seed(0)
    model = get_peft_model(load_model("tiny-gemma3", torch.float32, None), lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval(), workspace


@pytest.fixture
def task(tokenizer, support_rows, tmp_path):
    """(rows, the folder of their task)"""
    rows = [to_messages(row) for row in support_rows[:10]]
    recipe("The test rows in EleutherAI's harness")["write_task"](rows, tokenizer, tmp_path / "task")
    return rows, tmp_path / "task"


def test_context_and_target_are_what_was_trained(task, tokenizer):
    rows, folder = task
    lines = [json.loads(line) for line in (folder / f"{TASK}.jsonl").read_text().splitlines()]
    assert json.loads((folder / f"{TASK}.yaml").read_text())["task"] == TASK
    for row, line in zip(rows, lines, strict=True):
        ids, labels = tokenize_row(row, tokenizer, last_answer_only=True).values()
        assert tokenizer(line["context"] + line["target"])["input_ids"] == ids  # <bos> comes from the tokenizer
        assert tokenizer.decode([label for label in labels if label != -100]) == line["target"]


@pytest.mark.long
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_harness_comes_to_our_loss(tuned, tokenizer, task, form):
    lm_eval = pytest.importorskip("lm_eval", reason="only make test-all installs lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, workspace = tuned
    rows, folder = task
    save_adapter(model, tokenizer, workspace)
    where = {"pretrained": str(samples() / "tiny-gemma3"), "peft": str(workspace.path / "adapter")}
    if form == "merged":
        merge("tiny-gemma3", workspace.path / "adapter", workspace.path / "merged")
        where = {"pretrained": str(workspace.path / "merged")}
    harness = HFLM(**where, tokenizer=str(samples() / "tiny-gemma3"), dtype="float32", device="cpu", batch_size=4)
    found = lm_eval.simple_evaluate(
        harness, tasks=[TASK], task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    theirs = [-sample["resps"][0][0][0] for sample in sorted(found["samples"][TASK], key=lambda s: s["doc_id"])]
    ours = answer_losses(model, tokenizer, rows)
    assert theirs == pytest.approx(list(ours["loss"]), rel=1e-4 if form == "adapter" else 5e-3)  # merged is bf16
