"""What a notebook shows: tables in which every text is escaped, settings on sliders, and panels in which a person reads, judges,
compares blind and talks. Only widgets that Colab's ipywidgets 7.7 and version 8 share; no JavaScript; it starts without torch.

`panel = settings_panel(LoraSettings(), machine, ...)` shows controls, and `panel.settings` is what they are set to. Decisions of
`ReviewPanel` and `BlindPanel` are saved in the workspace with every click.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "text_table": "gemma_colab.ui.evidence",
        "trained_tokens": "gemma_colab.ui.evidence",
        "comparison_table": "gemma_colab.ui.evidence",
        "side_by_side": "gemma_colab.ui.evidence",
        "frozen_and_trained": "gemma_colab.ui.plots",
        "settings_panel": "gemma_colab.ui.panels",
        "ReviewPanel": "gemma_colab.ui.review",
        "BlindPanel": "gemma_colab.ui.blind",
        "ChatPanel": "gemma_colab.ui.chat",
    },
)
