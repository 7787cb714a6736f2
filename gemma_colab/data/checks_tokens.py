"""Checks that need the tokenizer: what the chat template makes of a row, how long that is, and what of it is trained."""

from collections.abc import Iterator

from gemma_colab.data.finding import CheckContext, Finding, Hit, check


@check("too long", counts_tokens=True)
def too_long(context: CheckContext, most: float = 0.05) -> Iterator[Finding]:
    """Rows beyond `max_length`: a warning, and an error when more than the share `most` of all rows is."""
    lengths, limit = context.lengths, context.max_length
    long = lengths[lengths["total"] > limit]
    if len(long):
        cut = zip(long.index, long["total"], long["answer_tokens_cut"], long["answer"], strict=True)
        hits = [Hit(row, "answer", note=f"{total} tokens, {lost} of {of} answer tokens are cut") for row, total, lost, of in cut]
        lost = (long["answer_tokens_cut"] / long["answer"].clip(lower=1)).mean()
        advice = f"beyond max_length={limit}, {lost:.0%} of their answers is lost on average; "
        advice += f"raise it (the longest row has {lengths['total'].max()} tokens), or drop or split these rows with `fit`"
        yield Finding("too long", "E" if len(long) > most * len(lengths) else "W", advice, hits)


@check(
    "nothing trained", severity="E", advice="the question alone fills max_length: shorten it or raise that", counts_tokens=True
)
def nothing_trained(context: CheckContext) -> Iterator[Hit]:
    """Rows of which no answer token is left: their loss is empty."""
    return (Hit(row.Index) for row in context.lengths.itertuples() if row.answer <= row.answer_tokens_cut)


@check("end not trained", severity="E", advice="the model would never stop; use Gemma's own chat template", counts_tokens=True)
def end_untrained(context: CheckContext) -> Iterator[Hit]:
    """Rows whose `<end_of_turn>` is not trained although they fit: the template at hand is not one for training."""
    fits = context.lengths["total"] <= context.max_length
    return (Hit(i) for i in context.lengths.index[fits & ~context.lengths["end_trained"]])


@check("not one <bos>", severity="E", advice="the template adds the only <bos>; take it out of the text", counts_tokens=True)
def beginnings(context: CheckContext) -> Iterator[Hit]:
    return (Hit(i, note=f"{n} times") for i, n in context.lengths["bos"].items() if n != 1)


@check("budget", counts_tokens=True)
def budget(context: CheckContext, batch: int = 8) -> Iterator[Finding]:
    """What training will cost: tokens over all epochs, and steps of an effective batch."""
    lengths, epochs = context.lengths, context.num_train_epochs
    tokens, steps = int(lengths["total"].clip(upper=context.max_length).sum() * epochs), -(-len(lengths) // batch) * epochs
    advice = f"{tokens:,} tokens in {epochs:g} epochs, about {steps:,.0f} steps of {batch} rows, if all rows are trained"
    yield Finding("budget", "I", advice)
