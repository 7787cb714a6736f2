"""From rows to what the model reads: token ids, and which of them are trained."""

from gemma_colab.core.catalog import TINY, from_hub, source_of
from gemma_colab.core.errors import ModelError
from gemma_colab.core.rows import Row
from gemma_colab.core.workspace import samples


def tokenize_row(row: Row, tokenizer, last_answer_only: bool = False) -> dict[str, list[int]]:
    """Tokenize a row as TRL does: {"input_ids", "labels"}, two lists of one length; labels are -100 where nothing is learned.

    Every answer is learned, with the `<end_of_turn>` and line break behind it; with `last_answer_only` just the last one. Raises
    `ModelError` for a template that can't be cut so.
    """

    def ids(turns: int, **options) -> list[int]:
        return tokenizer.apply_chat_template(row["messages"][:turns], return_dict=True, **options)["input_ids"]

    whole = ids(len(row["messages"]))
    labels = [-100] * len(whole)
    answers = [i for i, turn in enumerate(row["messages"]) if turn["role"] == "assistant"]
    for i in answers[-1:] if last_answer_only else answers:
        before = ids(i, add_generation_prompt=True)
        end = len(ids(i + 1)) if i + 1 < len(row["messages"]) else len(whole)
        if whole[: len(before)] != before:
            cause = "writes a turn otherwise when others follow, so it can't be told which tokens are answers"
            remedy = "take a checkpoint with Gemma 3's own template"
            raise ModelError(f"the chat template of {tokenizer.name_or_path} {cause}; {remedy}")
        labels[len(before) : end] = whole[len(before) : end]
    return {"input_ids": whole, "labels": labels}


def stop_token_ids(tokenizer) -> list[int]:
    """Return the ids that end an answer. Base checkpoints and merges often name only the first, and then never stop."""
    return tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])


def load_tokenizer(name: str):
    """Load the tokenizer of a model, with Gemma's padding token, and its chat template where a checkpoint (-pt) brings none.

    Raises `ModelError` when the tokenizer can't be had, or isn't Gemma's.
    """
    from transformers import AutoTokenizer  # seconds to import

    tokenizer = from_hub(AutoTokenizer, name, source_of(name))
    if None in stop_token_ids(tokenizer) or tokenizer.unk_token_id in stop_token_ids(tokenizer):
        raise ModelError(f"the tokenizer of {name} lacks Gemma's chat tokens; take a checkpoint with Gemma 3's own tokenizer")
    return with_template(tokenizer)


def with_template(tokenizer):
    """Return the tokenizer, with Gemma 3's template, which TRL knows by its letters, where its own is missing or writes the same."""
    known = (samples() / TINY / "chat_template.jinja").read_text(encoding="utf-8")
    how = {"conversation": [{"role": role, "content": role} for role in ("user", "assistant") * 2], "tokenize": False}
    own = tokenizer.chat_template
    if not own or tokenizer.apply_chat_template(**how) == tokenizer.apply_chat_template(**how, chat_template=known):
        tokenizer.chat_template = known
    return tokenizer
