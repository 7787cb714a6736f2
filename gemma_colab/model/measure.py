"""Memory as it is, beside the plan's memory as it should be."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from types import SimpleNamespace

from gemma_colab.core.machine import GIB


def model_bytes(model) -> int:
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


@contextmanager
def peak_memory(before: int = 0) -> Iterator[SimpleNamespace]:
    """Yield what holds, once the block has ended, the most memory in use at once: `gib`, of it `overhead_gib` no tensor of torch's.

    On a GPU all that is taken of it, by torch's cache, the CUDA context and other programs too. On a CPU what torch's allocator
    gave out since the block began, as its profiler records it; `before`: the bytes that were in use already.
    """
    import torch

    gc.collect()  # else an older run's tensors are freed inside the block
    found = SimpleNamespace(gib=0.0, overhead_gib=0.0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield found
        free, total = torch.cuda.mem_get_info()  # at the end, when all kernels are loaded
        context = total - free - torch.cuda.memory_reserved()
        found.gib = (torch.cuda.max_memory_reserved() + context) / GIB
        found.overhead_gib = found.gib - torch.cuda.max_memory_allocated() / GIB
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it announces itself in the notebook
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield found
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))  # negative where memory is given back
    found.gib = (before + max(accumulate(changes, initial=0))) / GIB
