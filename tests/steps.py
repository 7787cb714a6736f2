"""Real training steps for tests and benchmarks: a T4's mixed precision on a CPU, the memory that steps take, plain TRL. Needs no pytest."""

import tempfile

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.loading import load_model, quantization_config
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.model.measure import model_bytes, peak_memory


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
        args = sft_config(train.replace(num_train_epochs=1), out, len(ids), torch.float32 if emulated else dtype)
        args.eval_strategy, args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", "no", False, True
        trainer = build_trainer(model, load_tokenizer("tiny-gemma3"), data, None, args, lora_config(lora))
        if emulated:
            emulate_fp16(trainer)
        with peak_memory(model_bytes(trainer.model)) as peak:
            trainer.train()
    return peak.gib


def plain_losses(model, tokenizer, rows: list[dict], r: int, folder, **changes) -> list[float]:
    """Losses of a plain `SFTTrainer`, without anything of this package, on the rows in batches of 4."""
    same = dict(learning_rate=5e-3, per_device_train_batch_size=4, seed=0, assistant_only_loss=True, bf16=False, warmup_steps=0)
    quiet = dict(use_cpu=True, logging_steps=1, report_to="none", save_strategy="no", gradient_checkpointing=False)
    args, peft_config = SFTConfig(str(folder), **same | quiet | changes), lora_config(LoraSettings(r=r))
    data = Dataset.from_list(rows)
    plain = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, peft_config=peft_config)
    for parameter in plain.model.parameters():  # TRL casts those of a 4-bit model to bf16
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    plain.train()
    return [line["loss"] for line in plain.state.log_history if "loss" in line]


def load_4bit(name, dtype):
    return load_model(name, dtype, quantization_config(dtype))
