"""What a notebook shows: tables in which every text is escaped, settings on sliders, and panels in which a person reads, judges,
compares blind and talks. Only widgets that Colab's ipywidgets 7.7 and version 8 share; no JavaScript; it starts without torch.

`panel = settings_panel(LoraSettings(), machine, ...)` shows controls, and `panel.settings` is what they are set to. Decisions of
`ReviewPanel` and `BlindPanel` are saved in the workspace with every click.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.ui.evidence": "text_table trained_tokens comparison_table side_by_side",
        "gemma_colab.ui.plots": "frozen_and_trained",
        "gemma_colab.ui.panels": "settings_panel",
        "gemma_colab.ui.review": "ReviewPanel",
        "gemma_colab.ui.blind": "BlindPanel",
        "gemma_colab.ui.chat": "ChatPanel",
    },
)
