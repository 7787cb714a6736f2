"""What a model in pieces (FSDP) asks of a run. How to launch one on several GPUs or machines: docs/recipes.md."""

import dataclasses

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from trl import SFTTrainer

from gemma_colab.core.errors import SettingsError


def prepare_sharding(trainer: SFTTrainer) -> None:
    """Keep the losses of a model in pieces exact; does nothing to a whole one. Call it before `train`.

    accelerate has FSDP round what the model returns to bf16, losses included: three digits, too few to tell which validation point
    was the best. Gradients are averaged in float32 too; those of an adapter are small enough for that. In checkpoints each process
    writes its part of the adapter: FULL_STATE_DICT would gather the whole model.
    Raises `SettingsError` under FSDP version 1, and when one process would load for all.
    """
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    for name, must, why in (
        ("fsdp_version", 2, "4-bit weights and adapters don't fit into one flat weight"),
        ("cpu_ram_efficient_loading", False, "4-bit weights can't be sent, so each process loads all"),
    ):
        if (value := getattr(plugin, name)) != must:
            raise SettingsError(f"{name}={value} must be {must}, {why}; docs/recipes.md has the whole command")
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # those of the file are for its own kind
    plugin.set_state_dict_type("SHARDED_STATE_DICT")
    if policy := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def whole_adapter(trainer: SFTTrainer) -> dict | None:
    """Gather the weights that were trained on the CPU of the first process, for `save_pretrained(..., state_dict=)`.

    Empty on the other processes; all must call it at the same time. None if the model is whole: `save_pretrained` finds them itself.
    """
    if not trainer.is_fsdp_enabled:
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model, options=options)
