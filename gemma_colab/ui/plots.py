"""A picture of what LoRA trains."""

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.curve import new_axes
from gemma_colab.core.settings import LoraSettings
from gemma_colab.model.memory import adapted_layers, lora_parameters

FROZEN, TRAINED = "#c9ccd1", "#c8552b"


def frozen_and_trained(name: str, dimensions: Dimensions, lora: LoraSettings, ax: Axes | None = None) -> Axes:
    """Draw the linear layers of the first block to scale, as wide as their inputs and as high as their outputs: frozen in grey, and
    beside each its two thin trained matrices, A below and B on the right (never thinner than a line)."""
    ax = ax or new_axes(9, 3.2)
    adapted, unit = adapted_layers(dimensions, lora)[0], max(max(size) for size in dimensions.linear_layers.values())
    left, line, gap = 0.0, unit / 150, unit / 18
    for layer, (inputs, outputs) in dimensions.linear_layers.items():
        ax.add_patch(Rectangle((left, 0), inputs, outputs, color=FROZEN))
        thick = max(lora.r, line)
        if layer in adapted:
            ax.add_patch(Rectangle((left, -2 * line - thick), inputs, thick, color=TRAINED))
            ax.add_patch(Rectangle((left + inputs + 2 * line, 0), thick, outputs, color=TRAINED))
        ax.text(left + inputs / 2, outputs + line, layer.removesuffix("_proj"), ha="center", va="bottom", fontsize=8)
        left += inputs + gap + thick
    trained = lora_parameters(dimensions, lora)
    frozen = dimensions.linear_parameters + dimensions.embedding_parameters
    ax.set(xlim=(-gap, left), ylim=(-gap, unit * 1.1), aspect="equal")
    said = f"{frozen:,} frozen (grey, and the embedding), {trained:,} trained (red): {trained / (frozen + trained):.2%}"
    ax.set_title(f"{name}, block 1 of {dimensions.num_hidden_layers}. In all {said}", fontsize=9, parse_math=False)
    ax.axis("off")
    return ax
