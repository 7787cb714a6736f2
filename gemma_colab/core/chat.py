"""From rows to what the model reads: token ids, and which of them are trained."""

from functools import cache

from gemma_colab.core.catalog import TINY, from_hub, source_of
from gemma_colab.core.errors import ModelError, say
from gemma_colab.core.rows import Row
from gemma_colab.core.workspace import samples

gemmas = cache(lambda: (samples() / TINY / "chat_template.jinja").read_text(encoding="utf-8"))
MOST = 200  # answers of a row that are found in another template: for each, all before it is written again
REMEDY = "take a checkpoint with Gemma 3's own template"


def tokenize_row(row: Row, tokenizer, last_answer_only: bool = False) -> dict[str, list[int]]:
    """Tokenize a row as TRL does: {"input_ids", "labels"}, two lists of one length; labels are -100 where nothing is learned.

    Every answer is learned, with the `<end_of_turn>` and line break behind it; with `last_answer_only` just the last one. Raises
    `ModelError` for a template that can't be cut so.
    """

    def ids(turns: int, **options) -> list[int]:
        return tokenizer.apply_chat_template(row["messages"][:turns], return_dict=True, **options)["input_ids"]

    turns, whole = row["messages"], ids(len(row["messages"]))
    later = [i for i, turn in enumerate(turns) if i > 1 and turn["role"] == "user"]
    if later and not last_answer_only and tokenizer.chat_template == gemmas():
        # It writes an exchange the same wherever it stands, behind one <bos>: each is written once, else a long talk takes the square.
        parts = zip([0, *later], [*later, len(turns)], strict=True)
        first, *others = [tokenize_row({"messages": turns[start:end]}, tokenizer) for start, end in parts]
        joined = {name: first[name] + [n for part in others for n in part[name][1:]] for name in first}
        if joined["input_ids"] == whole:  # a tokenizer may take the line break before a turn for a part of it
            return joined
    labels, template = [-100] * len(whole), f"the chat template of {tokenizer.name_or_path}"
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"][-1 if last_answer_only else 0 :]
    if len(answers) > MOST:
        raise ModelError(f"a row has {len(answers)} answers, and {MOST} is the most with {template}; split the row, or {REMEDY}")
    for i in answers:
        before = ids(i, add_generation_prompt=True)
        end = len(ids(i + 1)) if i + 1 < len(turns) else len(whole)
        if whole[: len(before)] != before:
            cause = "writes a turn otherwise when others follow, so it can't be told which tokens are answers"
            raise ModelError(f"{template} {cause}; {REMEDY}")
        labels[len(before) : end] = whole[len(before) : end]
    return {"input_ids": whole, "labels": labels}


def stop_token_ids(tokenizer) -> list[int]:
    """Return the ids that end an answer. Base checkpoints and merges often name only the first, and then never stop."""
    return tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])


def load_tokenizer(name: str):
    """Load the tokenizer of a model, with Gemma's padding token and chat template, also where a checkpoint (-pt) brings none.

    Raises `ModelError` when the tokenizer can't be had, or isn't Gemma's.
    """
    from transformers import AutoTokenizer  # seconds to import

    tokenizer = from_hub(AutoTokenizer, name, source_of(name))
    if None in stop_token_ids(tokenizer) or tokenizer.unk_token_id in stop_token_ids(tokenizer):
        raise ModelError(f"the tokenizer of {name} lacks Gemma's chat tokens; take a checkpoint with Gemma 3's own tokenizer")
    return tokenizer


def with_template(tokenizer, name: str):
    """Return the tokenizer with Gemma 3's own chat template, which TRL knows by its letters. Another one is a program in Jinja that might
    run for ever, so it is never run; that it was replaced is said."""
    if (own := tokenizer.chat_template) and str(own).split() != gemmas().split():
        say(f"{name} has another chat template than Gemma 3; it is not used, Gemma 3's own takes its place.")
    tokenizer.chat_template = gemmas()
    return tokenizer
