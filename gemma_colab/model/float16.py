"""Gemma 3 in float16 without NaN.

The residual stream of Gemma 3 grows past 65,504, the largest float16, so plain float16 ends in inf and NaN at the first
`post_attention_layernorm` (transformers PR #37226). The products inside the layers stay small. So only the stream itself is
kept in float32: the embedding's output, and what the two norms before each addition return (a `Gemma3RMSNorm` returns the
type it is given). Matrix products still run in float16, for which a T4 has tensor cores.
"""

from __future__ import annotations

from transformers import PreTrainedModel

STREAM_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def keep_residual_in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Attach the hooks to a float16 Gemma 3, quantised or not; returns it. They are not saved: attach them after each load."""
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    for name, module in model.named_modules():
        if name.endswith(STREAM_NORMS):
            module.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, args: (args[0].to(module.weight.dtype), *args[1:]))
    return model
