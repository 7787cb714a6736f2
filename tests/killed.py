"""A training run in a process of its own, to be killed from outside. Needs no pytest: the process imports it by name."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from steps import load_4bit

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.training.checkpoints import whole_checkpoints
from gemma_colab.training.run import train

SETTINGS = TrainSettings(
    learning_rate=5e-3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=4,
    warmup_steps=2,
    evals_per_epoch=2,
    early_stopping_patience=50,  # never reached, but it must count on
    save_minutes=0.02,
    neftune_noise_alpha=5.0,  # noise, and dropout below: the random state must come back too
)


def nothing() -> None:
    """Start and end: afterwards everything is imported."""


def run(gemma: str, rows: str, folder: str, result: str) -> None:
    """Train to the end, going on from whatever whole checkpoint is there, and write the history and the weights to `result`."""
    torch.set_num_threads(1)
    disable_progress_bars()
    sys.stdout = open(Path(folder).parent / "said.txt", "a")  # noqa: SIM115
    chats = json.loads(Path(rows).read_text(encoding="utf-8"))
    done = train(
        load_4bit(gemma, torch.float32),
        load_tokenizer("tiny-gemma3"),
        Dataset.from_list(chats[:22]),
        Dataset.from_list(chats[22:]),
        SETTINGS,
        lora_config(LoraSettings(r=4, lora_dropout=0.1)),
        torch.float32,
        folder,
        made_with={"rows": "0123"},
        resume=bool(whole_checkpoints(Path(folder))),
    )
    weights = {name: value.contiguous() for name, value in get_peft_model_state_dict(done.trainer.model).items()}
    save_file(weights, Path(result) / "weights.safetensors")
    names = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    log = [{k: line[k] for k in names if k in line} for line in done.trainer.state.log_history if "train_runtime" not in line]
    (Path(result) / "log.json").write_text(json.dumps(log))
