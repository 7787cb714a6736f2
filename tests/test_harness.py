"""EleutherAI's harness scores the tuned model, adapter and merged, and comes to our figures."""

import json

import pytest
import torch
from peft import get_peft_model

from gemma_colab.core.loading import load_model
from gemma_colab.core.lora import lora_config
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.workspace import samples
from gemma_colab.evaluation.harness import TASK, write_task
from gemma_colab.evaluation.loss import answer_losses
from gemma_colab.export.adapter import save_adapter
from gemma_colab.export.merged import merge

lm_eval = pytest.importorskip("lm_eval", reason="only make test-all installs lm_eval")
pytestmark = pytest.mark.long


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


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_harness_comes_to_our_loss(tuned, tokenizer, support_rows, tmp_path, form):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, workspace = tuned
    chats = [to_messages(row) for row in support_rows[:10]]
    yaml = write_task(chats, tokenizer, tmp_path / "task")
    assert json.loads(yaml.read_text())["task"] == TASK
    save_adapter(model, tokenizer, workspace)
    where = {"pretrained": str(samples() / "tiny-gemma3"), "peft": str(workspace.path / "adapter")}
    if form == "merged":
        merge("tiny-gemma3", workspace.path / "adapter", workspace.path / "merged")
        where = {"pretrained": str(workspace.path / "merged")}
    harness = HFLM(**where, tokenizer=str(samples() / "tiny-gemma3"), dtype="float32", device="cpu", batch_size=4)
    found = lm_eval.simple_evaluate(
        harness, tasks=[TASK], task_manager=TaskManager(include_path=str(tmp_path / "task"), include_defaults=False),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    theirs = [-sample["resps"][0][0][0] for sample in sorted(found["samples"][TASK], key=lambda s: s["doc_id"])]
    ours = answer_losses(model, tokenizer, chats)
    assert theirs == pytest.approx(list(ours["loss"]), rel=1e-4 if form == "adapter" else 5e-3)  # merged is bf16
