"""Several GPUs or machines: the configurations that `accelerate launch` reads, and what a model in pieces (FSDP) asks of a run.

With DDP each GPU holds the whole model and computes its own rows of each batch; only the adapter's gradients travel. With FSDP each
GPU holds a part of every weight and fetches the rest of a block when its turn comes: slower, for models that fit no other way.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from typing import TYPE_CHECKING

from gemma_colab.core.errors import SettingsError

if TYPE_CHECKING:
    from trl import SFTTrainer

KINDS = ("ddp", "fsdp")

_HEAD = """\
# Written by: gemma-colab launch-config {kind}
# Start with: accelerate launch --config_file FILE -m gemma_colab train --workspace DIR
compute_environment: LOCAL_MACHINE
distributed_type: {distributed_type}
num_machines: {machines}
num_processes: {processes}  # one for each {device} of all machines; each computes per_device_train_batch_size rows at once
machine_rank: 0  # {rank}
main_process_port: {port}
mixed_precision: "no"  # gemma_colab asks the GPU and decides itself: bf16 from Ampere on, fp16 on a T4
use_cpu: {cpu}
"""

_MACHINES = """\
main_process_ip: {address}  # of the first machine, as the others reach it
rdzv_backend: static  # the machines are known beforehand
same_network: true
"""

_FSDP = """\
fsdp_config:
  fsdp_version: 2  # shards each weight by itself, so that frozen 4-bit weights and float32 adapters may lie in one block; 1 is deprecated
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP  # fetch and free one block at a time
  fsdp_transformer_layer_cls_to_wrap: Gemma3DecoderLayer  # such a block
  fsdp_reshard_after_forward: true  # free a block after its forward pass and fetch it again for the backward pass
  fsdp_offload_params: false  # the CPU's memory is larger, but every block would cross the bus in every pass
  fsdp_cpu_ram_efficient_loading: false  # would have the first process load and send; 4-bit weights can't be sent, so each loads all
  fsdp_state_dict_type: SHARDED_STATE_DICT  # each process writes its part of the adapter; FULL_STATE_DICT would gather the whole model
  fsdp_activation_checkpointing: false  # gradient_checkpointing in train_settings.json decides; both at once is an error
"""


def launch_config(kind: str, gpus: int, *, machines: int = 1, address: str | None = None, cpu: bool = False) -> str:
    """The YAML that `accelerate launch --config_file` reads, each choice with its reason.

    kind: "ddp" or "fsdp". gpus: of each machine, 1-64. machines: 1-64; more than one need the `address` of the first, and a
    workspace that all of them see, such as a network drive. cpu: processes on the CPU instead of GPUs, to try it out.
    Raises `SettingsError` for what can't be launched.
    """
    if kind not in KINDS:
        raise SettingsError(f"kind={kind!r} must be one of {', '.join(KINDS)}; try 'ddp'")
    for name, value in {"gpus": gpus, "machines": machines}.items():
        if not 1 <= value <= 64:
            raise SettingsError(f"{name}={value!r} must be a whole number from 1 to 64; try {name}=2")
    if gpus * machines == 1:
        raise SettingsError("gpus=1 on one machine needs no launch configuration; call gemma-colab train by itself")
    if machines > 1 and not address:
        raise SettingsError(f"machines={machines} need the address of the first one; name it, such as address='10.0.0.1'")
    if cpu and kind == "fsdp":
        # accelerate 1.15, AcceleratorState: FSDP is looked for on GPUs only, without a word elsewhere.
        raise SettingsError(
            "cpu=True goes with kind='ddp' only, because accelerate runs FSDP on GPUs only and would fall back to DDP"
        )
    text = _HEAD.format(
        kind=kind,
        distributed_type="FSDP" if kind == "fsdp" else "MULTI_GPU",
        machines=machines,
        processes=gpus * machines,
        device="process" if cpu else "GPU",
        rank="on the others: accelerate launch --machine_rank 1, 2, ..." if machines > 1 else "there is one",
        port=29500 if machines > 1 else "0  # any free one",
        cpu=str(cpu).lower(),
    )
    return text + (_MACHINES.format(address=address) if machines > 1 else "") + (_FSDP if kind == "fsdp" else "")


def prepare_sharding(trainer: SFTTrainer) -> None:
    """Keep the losses of a model in pieces exact; does nothing to a whole one. Call it before `train`.

    accelerate has FSDP round what the model returns to bf16, losses included: three digits, too few to tell which validation point
    was the best. Gradients are averaged in float32 too; those of an adapter are small enough for that.
    Raises `SettingsError` under FSDP version 1, and when accelerate is too old.
    """
    if not trainer.is_fsdp_enabled:
        return
    import torch

    found = version("accelerate")
    if tuple(map(int, found.split(".")[:2])) < (1, 15):  # torch 2.13 refuses what an older one makes of tied weights
        raise SettingsError(
            f"accelerate {found} can't shard Gemma 3, whose head is its embedding; pip install 'accelerate>=1.15', or use ddp"
        )
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise SettingsError(
            f"fsdp_version={plugin.fsdp_version} must be 2, 4-bit weights and adapters don't fit into one flat weight; "
            "write the configuration with gemma-colab launch-config fsdp"
        )
    if policy := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def whole_adapter(trainer: SFTTrainer) -> dict | None:
    """The weights that were trained, gathered on the CPU of the first process, for `save_pretrained(..., state_dict=)`; empty on the
    others. All processes must call it at the same time. None if the model is whole: `save_pretrained` then finds them itself."""
    if not trainer.is_fsdp_enabled:
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(trainer.model, options=options)
