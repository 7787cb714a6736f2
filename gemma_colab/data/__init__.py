"""Read a dataset, check it, clean it, split it."""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "read_rows": "gemma_colab.data.reading",
        "to_messages": "gemma_colab.core.rows",
        "check_rows": "gemma_colab.data.report",
        "clean": "gemma_colab.data.cleaning",
        "undo": "gemma_colab.data.cleaning",
        "split_rows": "gemma_colab.data.splitting",
        "tokenize_row": "gemma_colab.core.chat",
        "prepare_rows": "gemma_colab.handover.rows",
        "save_rows": "gemma_colab.handover.rows",
        "ensure_rows": "gemma_colab.handover.rows",
    },
)
