"""Real training steps for tests and benchmarks: a T4's mixed precision on a CPU, and the memory that steps take. Needs no pytest."""

import tempfile

import torch
from datasets import Dataset

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.lora import lora_config
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, sft_config
from gemma_colab.model.measure import PeakMemory, model_bytes


def emulate_fp16(trainer) -> None:
    """What SFTConfig(fp16=True) does on a GPU, and silently leaves out on a CPU: autocast to float16, and a GradScaler."""
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu")


def training_peak(model, dtype: torch.dtype, lora: LoraSettings, train: TrainSettings, tokens: int) -> float:
    """GiB at the peak of two real steps of `SFTTrainer`, on rows of `tokens` tokens; in a batch, every second one is shorter by one."""
    emulated = dtype == torch.float16 and not torch.cuda.is_available()
    torch.manual_seed(0)
    ids = torch.randint(110, 2000, (2 * train.effective_batch, tokens)).tolist()
    if train.per_device_train_batch_size > 1:  # a batch is then padded, and needs a mask
        ids = [row[: tokens - i % 2] for i, row in enumerate(ids)]
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    with tempfile.TemporaryDirectory() as out:
        args = sft_config(
            train.replace(num_train_epochs=1, last_answer_only=True), out, len(ids), torch.float32 if emulated else dtype
        )
        args.eval_strategy, args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", "no", False, True
        trainer = build_trainer(model, load_tokenizer("tiny-gemma3"), data, None, args, lora_config(lora))
        if emulated:
            emulate_fp16(trainer)
        with PeakMemory(model_bytes(trainer.model)) as peak:
            trainer.train()
    return peak.gib
