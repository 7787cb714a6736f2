"""LoRA: what is added to the frozen model."""

from __future__ import annotations

import sys

from peft import LoraConfig, import_utils

from gemma_colab.settings import ATTENTION, LoraSettings

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


def pass_over_old_torchao() -> None:
    """Let peft adapt plain linear layers beside a torchao that it finds too old (Colab has 0.10, peft wants 0.16).

    peft asks for torchao whenever it adapts such a layer, and raises at an old one, although only weights that torchao quantised
    concern it; there are none here. So peft alone, in this process alone, is told that there is no torchao: nothing is uninstalled,
    nothing has to be restarted, and other libraries find theirs as before.
    """
    try:
        import_utils.is_torchao_available()
    except ImportError:
        for name, module in list(sys.modules.items()):
            if name.startswith("peft.") and hasattr(module, "is_torchao_available"):
                module.is_torchao_available = lambda: False
