"""The ways to train that training.py lets run against each other.

Each is a function run(model, rows, folder) that trains a fresh adapter once over the rows, and returns what `SFTTrainer` logged at
its end. rows: "input_ids" and "labels". folder: an empty one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, PrinterCallback
from trl import SFTConfig, SFTTrainer

from gemma_colab import describe_machine, pick_dtype
from gemma_colab.core.catalog import TINY
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.loading import load_model, quantization_config
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.training.run import train as train_with_everything

MACHINE = describe_machine()
GPU, DTYPE = MACHINE.gpu is not None, pick_dtype(MACHINE)[0]
Run = Callable[[PreTrainedModel, Dataset, str], dict]
PLAIN = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "num_train_epochs": 1,
    "learning_rate": 2e-4,
    "warmup_steps": 5,
    "max_length": 1024,
    "logging_steps": 1,
    "save_strategy": "no",  # the default saves each 500 steps, and there are fewer
    "report_to": "none",
    "disable_tqdm": True,
} | ({} if GPU else {"bf16": False})  # as ours: a CPU computes in float32
# One change of the plain recipe at a time. "adapters", the type they are cast to, is no argument of SFTConfig.
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
CHOICES = {
    "packing": {"packing": True},
    "checkpointing off": {"gradient_checkpointing": False},
    "micro-batch 4 x 1": BATCH,
    "micro-batch 4 x 1, grouped by length": BATCH | {"train_sampling_strategy": "group_by_length"},
    "optimizer adamw_torch, not fused": {"optim": "adamw_torch"},
    "adapters in float32": {"adapters": torch.float32},
} | (
    {  # the notebook has these two as well
        "optimizer paged_adamw_8bit": {"optim": "paged_adamw_8bit"},
        "paged_adamw_8bit, activation_offloading": {"optim": "paged_adamw_8bit", "activation_offloading": True},
    }
    if GPU
    else {"bf16=True, TRL's default": {"bf16": True, "use_cpu": True}}
)


@cache
def tokenizer():
    return load_tokenizer(TINY)


def load_plain(name: str) -> PreTrainedModel:
    """In 4 bit, as TRL's notebook loads it."""
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return AutoModelForCausalLM.from_pretrained(
        name,
        trust_remote_code=False,
        quantization_config=BitsAndBytesConfig(**four_bit, bnb_4bit_compute_dtype=DTYPE),
        dtype=DTYPE,
        attn_implementation="sdpa",
        device_map={"": 0 if GPU else "cpu"},
    )


def load_ours(name: str) -> PreTrainedModel:
    return load_model(name, DTYPE, quantization_config(DTYPE))


# Where the GPU computes in bfloat16 both give the same model, which then needn't be loaded at each turn.
LOAD_PLAIN = load_ours if GPU and MACHINE.capability >= (8, 0) else load_plain


def plain(lora: LoraSettings, adapters: torch.dtype | None = None, **changes) -> Run:
    """The plain script, with `changes` of its `SFTConfig`."""
    return lambda model, rows, folder: just_train(model, SFTConfig(folder, **PLAIN | changes), lora, adapters, rows)


def plain_with_our_settings(
    lora: LoraSettings, train: TrainSettings, validation: Dataset, adapters: torch.dtype | None = None
) -> Run:
    """A plain `SFTTrainer` with the `SFTConfig` that we make."""

    def run(model: PreTrainedModel, rows: Dataset, folder: str) -> dict:
        args = sft_config(train, folder, len(rows), DTYPE)
        args.disable_tqdm, args.assistant_only_loss = True, False  # the rows are tokens, with their labels
        return just_train(model, args, lora, adapters, rows, validation)

    return run


def just_train(
    model: PreTrainedModel,
    args: SFTConfig,
    lora: LoraSettings,
    adapters: torch.dtype | None,
    rows: Dataset,
    validation: Dataset | None = None,
) -> dict:
    """`SFTTrainer` and nothing else. adapters: None leaves them in bf16, as TRL makes them."""
    trainer = SFTTrainer(
        model, args, train_dataset=rows, eval_dataset=validation, processing_class=tokenizer(), peft_config=lora_config(lora)
    )
    trainer.remove_callback(PrinterCallback)  # a dict at each log
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and adapters is not None:
            parameter.data = parameter.data.to(adapters)
    return trainer.train().metrics


def ours(lora: LoraSettings, train: TrainSettings) -> Run:
    """Our trainer, without the validation and the checkpoints that the plain script hasn't either."""

    def run(model: PreTrainedModel, rows: Dataset, folder: str) -> dict:
        args = sft_config(train.replace(num_train_epochs=1), folder, len(rows), DTYPE)
        args.eval_strategy, args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", "no", False, True
        return build_trainer(model, tokenizer(), rows, None, args, lora_config(lora)).train().metrics

    return run


def ours_with_everything(lora: LoraSettings, train: TrainSettings, validation: Dataset) -> Run:
    """All that notebook 04 runs: validation, whole checkpoints, stops, live view."""
    from gemma_colab.training.verdict import training_verdict
    from gemma_colab.training.watch import live_view  # IPython, which a machine lent for a benchmark may lack

    def run(model: PreTrainedModel, rows: Dataset, folder: str) -> dict:
        how = (train, lora_config(lora), DTYPE, folder)
        done = train_with_everything(model, tokenizer(), rows, validation, *how, show=live_view(training_verdict))
        return next(line for line in reversed(done.trainer.state.log_history) if "train_runtime" in line)

    return run
