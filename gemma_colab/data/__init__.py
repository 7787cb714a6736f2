"""From a file to training rows: read it, check it, clean it, split it, save it.

`read_rows` takes any common format, and a row is always `{"messages": [...]}` with its place in the file. `check_rows` reports what is
wrong, `clean` repairs what can be repaired with a log that `undo` reads backwards, `split_rows` keeps look-alikes on one side.
`tokenize_row` shows what of a row is trained. `prepare_rows` does all of this in one call; `ensure_rows` gives the saved rows.
"""

from gemma_colab.core.door import door

__all__, __getattr__, __dir__ = door(
    __name__,
    {
        "gemma_colab.data.reading": "read_rows",
        "gemma_colab.core.rows": "to_messages",
        "gemma_colab.data.report": "check_rows",
        "gemma_colab.data.cleaning": "clean undo",
        "gemma_colab.data.splitting": "split_rows",
        "gemma_colab.core.chat": "tokenize_row",
        "gemma_colab.handover.rows": "prepare_rows save_rows ensure_rows",
    },
)
