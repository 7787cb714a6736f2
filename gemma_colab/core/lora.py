"""LoRA: what is added to the frozen model."""

from __future__ import annotations

from peft import LoraConfig

from gemma_colab.core.settings import ATTENTION, LoraSettings

# Adapters belong to the language model only. In a whole multimodal model, "all-linear" would reach these two as well.
NOT_ADAPTED = r".*(vision_tower|multi_modal_projector).*"


def lora_config(settings: LoraSettings, *, text_only: bool = True) -> LoraConfig:
    """The `peft.LoraConfig` of these settings. "all-linear" leaves the head out: peft skips output layers.

    text_only: as for `loading.load_model`; False keeps adapters out of the vision part.
    """
    targets = ATTENTION if settings.target_modules == "attention" else settings.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        exclude_modules=None if text_only else NOT_ADAPTED,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )
