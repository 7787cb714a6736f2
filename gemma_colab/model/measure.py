"""Memory as it is, beside the plan's memory as it should be."""

from __future__ import annotations

import gc
import os
from itertools import chain
from typing import TYPE_CHECKING

from gemma_colab.core.machine import GIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def model_bytes(model: PreTrainedModel) -> int:
    """Count the bytes of a model's weights, and of the scales, and their scales, that bitsandbytes keeps beside 4-bit ones."""
    storages = {}
    for tensor in chain(model.parameters(), model.buffers()):
        state = getattr(tensor, "quant_state", None)
        beside = [state.absmax, state.code] if state is not None else []
        if state is not None and state.nested:
            beside += [state.state2.absmax, state.state2.code]
        for t in (tensor, *beside):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()  # shared ones count once
    return sum(storages.values())


class PeakMemory:
    """Measure the most memory in use at once inside a `with` block: `gib`, of which `overhead_gib` is no tensor of torch's.

    On a GPU all that is taken of it, by torch's cache, the CUDA context and other programs too. On a CPU what torch's allocator
    gave out since the block began, as its profiler records it; `before`: the bytes that were in use already.
    """

    gib = overhead_gib = 0.0

    def __init__(self, before: int = 0):
        self.before = before

    def __enter__(self) -> PeakMemory:
        import torch

        gc.collect()  # else an older run's tensors are freed inside the block
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it announces itself in the notebook
            from torch.profiler import ProfilerActivity, profile

            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()
        return self

    def __exit__(self, *error) -> None:
        import torch

        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()  # at the end, when all kernels are loaded
            context = total - free - torch.cuda.memory_reserved()
            self.gib = (torch.cuda.max_memory_reserved() + context) / GIB
            self.overhead_gib = self.gib - torch.cuda.max_memory_allocated() / GIB
            return
        self.profile.__exit__(*error)
        events = (e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]")
        now = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            now += event.nbytes()  # negative where memory is given back
            peak = max(peak, now)
        self.gib = (self.before + peak) / GIB
