"""From settings to LoRA and a real `SFTTrainer`. The helper adds nothing to the mathematics."""

import dataclasses
import math
import os
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import gemma3_chat_template, has_generation_markers

from gemma_colab.core.door import plugged
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.settings import ATTENTION, LoraSettings, TrainSettings


def lora_config(settings: LoraSettings) -> LoraConfig:
    """Make the `peft.LoraConfig` of these settings. "all-linear" leaves the head out: peft skips output layers."""
    named = dataclasses.asdict(settings)
    if settings.target_modules == "attention":
        named["target_modules"] = ATTENTION
    return LoraConfig(task_type="CAUSAL_LM", **named)


def sft_config(settings: TrainSettings, output_dir: str | Path, rows: int, dtype: torch.dtype, *, report_to="none") -> SFTConfig:
    """Make the `trl.SFTConfig` of these settings for `rows` training rows computed in `dtype`.

    Validation, checkpoints and the choice of the best one come together, `evals_per_epoch` times. report_to: such as "wandb".
    """
    gpu = torch.cuda.is_available()
    steps_per_epoch = settings.steps_per_epoch(rows, int(os.environ.get("WORLD_SIZE", 1)))  # as torchrun says it
    eval_steps = -(-steps_per_epoch // settings.evals_per_epoch)  # rounded up: no validation just before the one at the end
    upstream = {name: value for name, value in dataclasses.asdict(settings).items() if name in SFTConfig.__dataclass_fields__}
    return SFTConfig(
        **upstream,
        output_dir=str(output_dir),
        per_device_eval_batch_size=1,  # transformers averages over batches: larger ones would give another validation loss
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        assistant_only_loss=not settings.last_answer_only,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=1,  # no loss is lost between two logs when a run is resumed; TRL waits for each step anyway
        logging_nan_inf_filter=False,  # the default hides a NaN loss
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not gpu,
        eval_packing=False,  # validation stays row by row, so that its loss can be compared
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        dataloader_pin_memory=gpu,
        ddp_find_unused_parameters=False,  # every adapter takes part in every pass; looking for others costs time
        ddp_broadcast_buffers=False,  # transformers 5.15 registers the tables of positions in any order, and DDP sends by order
        report_to=report_to,
    )


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset | None,
    args: SFTConfig,
    peft_config: LoraConfig,
    callbacks: list[TrainerCallback] | None = None,
) -> SFTTrainer:
    """Make a `trl.SFTTrainer` on rows: only the answers are learned, all of them, or the last ones with `args.assistant_only_loss` False.

    TRL casts the adapters of a 4-bit model to bf16, which CUDA's GradScaler can't unscale on a T4 and which rounds small
    updates away, so they are cast to float32 here. Adapters that an earlier run left on the model are taken off first.
    Raises `SettingsError` where this process sees several GPUs, `ModelError` for a chat template of which TRL can't tell the answers.
    """
    if args.n_gpu > 1:
        remedy = "set CUDA_VISIBLE_DEVICES=0 and restart, or train on all with accelerate launch (docs/recipes.md)"
        raise SettingsError(f"n_gpu={args.n_gpu} must be 1, one process trains on one GPU; {remedy}")
    unload_adapters(model)
    if args.use_cpu:
        plugged("score_answers_only")()
    if "input_ids" in train_dataset.column_names:  # rows of tokens bring their labels
        args = dataclasses.replace(args, assistant_only_loss=False)
    template = tokenizer.chat_template
    if args.assistant_only_loss and template != gemma3_chat_template and not has_generation_markers(template):
        remedy = "set last_answer_only=True, or take a checkpoint with Gemma 3's own template"
        raise ModelError(f"TRL can't tell which tokens of the chat template of {tokenizer.name_or_path} are answers; {remedy}")

    def as_trl_reads(rows: Dataset) -> Dataset:
        if "input_ids" in rows.column_names:
            return rows
        if args.assistant_only_loss:
            return rows.select_columns("messages")
        return Dataset.from_list([{"prompt": turns[:-1], "completion": turns[-1:]} for turns in rows["messages"]])

    rows = {"train_dataset": as_trl_reads(train_dataset), "eval_dataset": as_trl_reads(eval_dataset) if eval_dataset else None}
    trainer = SFTTrainer(model=model, args=args, **rows, processing_class=tokenizer, peft_config=peft_config, callbacks=callbacks)
    if args.packing:  # fewer sequences than rows: validate and save as often in an epoch as before
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        share = math.ceil(len(trainer.train_dataset) / batch) / math.ceil(len(train_dataset) / batch)
        for name in ("eval_steps", "save_steps"):
            setattr(trainer.args, name, max(1, round(getattr(args, name) * share)))
    if args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # it takes the bar's place, and prints a dict at each log
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def unload_adapters(model: PreTrainedModel) -> None:
    """Put every layer that peft wrapped back in its place. A cell that is run twice would else train an adapter on an adapter."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)
