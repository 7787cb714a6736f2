"""Gemma 3 in float16 without NaN.

The residual stream of Gemma 3 grows past 65,504, the largest float16, so plain float16 ends in inf and NaN at the first
`post_attention_layernorm` (transformers PR #37226). The products inside the layers stay small. So only the stream itself is
kept in float32, and each block computes in float16, for which a T4 has tensor cores.

The other recipe of that pull request divides the stream by 64 and folds the factor into the norms. This one changes no weight, so
nothing of it can be saved by mistake (both are measured in benchmarks/README.md).
"""

import torch
from transformers import PreTrainedModel

INTO_A_BLOCK = ("input_layernorm", "pre_feedforward_layernorm", "model.norm")
OUT_OF_A_BLOCK = ("post_attention_layernorm", "post_feedforward_layernorm")


def keep_residual_in_float32(model: PreTrainedModel) -> None:
    """Attach the hooks to a float16 Gemma 3, quantized or not. They are not saved: attach them after each load.

    A `Gemma3RMSNorm` returns the type it is given, so the norms are the doors: what leaves a block becomes float32 before its
    norm and stays so when it is added to the stream; what enters a block, or the head, is made float16 behind its norm.
    """
    for name, module in model.named_modules():
        if name.endswith("embed_tokens"):
            module.register_forward_hook(lambda module, args, output: output.float())
        elif name.endswith("rotary_emb"):  # it takes its type from the stream, and queries and keys take theirs from it
            module.register_forward_hook(lambda module, args, output: tuple(x.half() for x in output))
        elif name.endswith(OUT_OF_A_BLOCK):
            module.register_forward_pre_hook(lambda module, args: (args[0].float(), *args[1:]))
        elif name.endswith(INTO_A_BLOCK):
            module.register_forward_hook(lambda module, args, output: output.to(torch.float16))
