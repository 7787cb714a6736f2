"""Which rows make the better model: short runs on several sets of rows, judged on the same held-out rows."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill, shorten

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gemma_colab.core.curve import BEST, TRAIN, VALIDATION, new_axes
from gemma_colab.core.errors import say
from gemma_colab.core.rows import Row, answer, prompt, to_messages
from gemma_colab.data.checks_set import contradictions
from gemma_colab.data.cleaning import clean
from gemma_colab.data.finding import CheckContext
from gemma_colab.data.report import check_rows
from gemma_colab.data.splitting import group_rows
from gemma_colab.evaluation.compare import paired_bootstrap, share_interval
from gemma_colab.evaluation.generation import generate
from gemma_colab.evaluation.loss import answer_losses
from gemma_colab.model.choice import shown_name
from gemma_colab.training import short

SHARES = (0.25, 0.5, 1.0)  # of rows that are compared with more of their kind
PAIRS = 24  # questions with two answers that are looked at, at most
ARTEFACTS = ("HTML", "mojibake", "chat markers", "placeholder", "placeholder in use", "merged examples", "repetition")


def artefacts(answers: Sequence[str]) -> list[bool]:
    """True where an answer holds what the report of rows finds wrong in any answer: `ARTEFACTS`."""
    report = check_rows([to_messages({"instruction": "?", "output": text}) for text in answers])
    bad = {hit.row for finding in report.findings if finding.check in ARTEFACTS for hit in finding.hits}
    return [i in bad for i in range(len(answers))]


def in_form(text: str, answers: Sequence[str]) -> bool:
    """Tell whether a text has the form of these answers: as long as one of them, ends on such a sign, and uses no other signs."""
    strange = {sign for sign in set(text) - set("".join(answers)) if not sign.isalnum() and not sign.isspace()}
    lengths, ends = [*map(len, answers)], {a[-1:] for a in answers}
    return min(lengths) <= len(text) <= max(lengths) and text[-1:] in ends and not strange


def apart(rows: Sequence[Row], held: Sequence[Row]) -> list[Row]:
    """Leave out the rows that a split would keep on one side with one of `held`: the same question, and look-alikes."""
    groups, n = group_rows([*held, *rows])[0], len(held)
    return [rows[i - n] for i in sorted(i for group in groups if min(group) >= n for i in group)]


def two_ways(sets: Mapping[str, Sequence[Row]]) -> Iterator[tuple[Row, Row]]:
    """Yield (row, contradicting row) for questions that a set answers in more than one way, and the last set in one: the right way."""
    *others, last = map(CheckContext, sets.values())
    right = dict(zip(last.same_questions, last.rows, strict=True))
    seen = {*zip(last.same_questions, last.same_answers, strict=True)}
    for context in others:
        for i in [hit.row for finding in contradictions(context) for hit in finding.hits]:
            key = context.same_questions[i], context.same_answers[i]
            if key[0] in right and key not in seen:
                seen.add(key)
                yield right[key[0]], context.rows[i]


def compare_sets(
    model, tokenizer, sets, held, settings, lora, dtype, *, max_steps=None, seeds=(0,), apart_from=(), ask=False
) -> tuple:
    """Train a fresh adapter on each set of rows with `short_run`, and lay the losses on `held`, rows that none of them trains on, side by side.

    sets: name -> rows, the best last, or (rows, what `data.clean` should do `also`); or just rows, of which a quarter, a half and all are
    compared: would more of them help? What is like a row of `held`, or of `apart_from`, is left out of all sets. max_steps: of each run, or by the name of the set, a number or the name of
    a set before it whose number it has; unless given, the epochs of the settings, and for a quarter, a half and all as many steps as one
    pass over all has. seeds: each draws other rows for a part, another order and another start. ask: have the held-out rows answered too, also by the untrained model.

    Returns a table, one line a set: rows, steps, the mean loss (nats per token) and its range over the seeds, how much it is above that
    of the last set, with a 95 % interval over the held-out rows; and shares of answers, "k of n (95 % interval)": `in_form`, with
    `artefacts`, and of questions that a set answers in two ways, and the last in one, those where another answer got the lower loss.
    And matplotlib's axes. What came out is printed, and is in `table.attrs["sentence"]`. With ask, an answer of each is printed too, one
    with artefacts if there is one.
    """
    grows, kept = not isinstance(sets, Mapping), {}
    for name, rows in {"rows": sets}.items() if grows else sets.items():
        rows = clean(rows[0], also=rows[1])[0] if isinstance(rows, tuple) else rows
        kept[name] = apart(rows, [*held, *apart_from])
        if lost := len(rows) - len(kept[name]):
            say(f"{name}: {lost} of {len(rows)} rows are like held-out ones, and are left out.")
    if grows:
        (every,) = kept.values()
        kept = {f"{share:.0%}": every[: round(share * len(every))] for share in SHARES}
        max_steps = max_steps or settings.steps_per_epoch(len(every))
    elif ask:
        kept = {"untrained": []} | kept
    (*others, last), pairs = kept, [] if grows else [*two_ways(kept)][:PAIRS]

    def measured(tuned) -> tuple[pd.DataFrame, dict[str, list], str]:
        losses, shares, such = answer_losses(tuned, tokenizer, [*held, *(row for pair in pairs for row in pair)]), {}, ""
        if ask:
            said = generate(tuned, tokenizer, [prompt(row) for row in held], max_new_tokens=96, description=None)["answer"]
            right = [*map(answer, kept[last])]
            shares = {"in the right form": [in_form(text, right) for text in said], "artefacts": artefacts(said)}
            such = next((text for text, found in zip(said, shares["artefacts"], strict=True) if found), said[0])
        if pairs:
            each = (losses["loss"] / losses["tokens"]).to_numpy()[len(held) :]
            shares["prefers a wrong answer"] = list(each[1::2] < each[::2])
        return losses.head(len(held)), shares, such

    lines, rowwise, dots, said, shares, examples = {}, {}, {}, [], [], {}
    for name, rows in kept.items():
        usual = math.ceil(settings.num_train_epochs * settings.steps_per_epoch(len(rows)))
        runs, steps = [], (max_steps.get(name) if isinstance(max_steps, Mapping) else max_steps) or usual
        steps = lines[steps]["steps"] if isinstance(steps, str) else steps if rows else 0
        for seed in seeds:  # no more rows than the steps take: all are tokenized
            some = random.Random(seed).sample(every if grows else rows, min(len(rows), steps * settings.effective_batch))
            how = {"measure": measured, "max_steps": steps, "say": lambda sentence: None}
            now = settings.replace(seed=seed)
            runs.append(short.short_run(model, tokenizer, some, now, lora, dtype, **how) if rows else measured(model))
        tokens, rowwise[name] = runs[0][0]["tokens"], np.mean([losses["loss"] for losses, *_ in runs], axis=0)
        shares.append(runs[0][1])
        examples[name] = runs[0][2]
        dots[name] = [losses["loss"].sum() / tokens.sum() for losses, *_ in runs]
        lines[name] = {"rows": len(rows), "steps": steps, "loss": np.mean(dots[name])}
        lines[name] |= {"lowest": min(dots[name]), "highest": max(dots[name])} if len(seeds) > 1 else {}
        for score in runs[0][1]:
            hits = [hit for _, shares, _ in runs for hit in shares[score]]
            lines[name][score] = "{} of {} ({:.0%} to {:.0%})".format(sum(hits), len(hits), *share_interval(hits))
    for before, after in [(others[-1], last)] if grows else [(last, name) for name in others]:
        gap, low, high = paired_bootstrap(rowwise[before], rowwise[after], weights=tokens)
        loss = lines[after][f"loss above “{before}”"] = f"{gap:+.2f} ({low:+.2f} to {high:+.2f})"
        if grows:
            fell = sum(b < a for a, b in zip(dots[before], dots[after], strict=True))
            word = "more rows would help" if high < 0 and fell == len(seeds) else "more rows of this kind would hardly help"
            said.append(f"Twice the rows: loss {loss}, lower for {fell} of {len(seeds)} seeds: {word}")
        else:
            word = "worse" if low > 0 else "better" if high < 0 else "no clear difference"
            said.append(f"“{after}” against “{before}”: loss {loss}, {word}")
    say("\n".join(said))
    if ask:
        say("\n".join(f"An answer after “{name}”: {shorten(text, 160, placeholder=' …')}" for name, text in examples.items()))
    table = pd.DataFrame.from_dict(lines, orient="index").round(3).fillna("–").rename_axis("set")
    table.attrs["sentence"] = "\n".join(said)
    names = [fill(name, 80 // len(kept)) + f"\n{len(rows)} rows" for name, rows in kept.items()]
    title = f"{shown_name(model.name_or_path)} on {len(held)} held-out rows, each dot a run"
    shares = pd.DataFrame(shares, names).map(np.mean) if ask else None
    return table, _draw(title, dict(zip(names, dots.values(), strict=True)), grows, shares)


def _draw(title: str, dots: dict[str, list[float]], joined: bool, shares: pd.DataFrame | None) -> Axes:
    """Plot the losses of all runs by set, and below them, if there are any, two shares of answers."""
    ax, *below = np.atleast_1d(new_axes(8, 3 if shares is None else 4.6, 1 if shares is None else 2))
    ax.plot(range(len(dots)), [*dots.values()], "o", color=TRAIN, alpha=0.7)
    ax.plot([*map(np.mean, dots.values())], color=TRAIN, linewidth=int(joined))
    ax.set_title(title, parse_math=False)
    ax.set_ylabel("loss (nats per token)")
    ax.margins(x=0.2)
    ax.grid(alpha=0.3)
    for last in below:
        scale = {"ylim": (0, 1.3), "yticks": (0, 0.5, 1), "ylabel": "share of answers"}
        shares[["artefacts", "in the right form"]].plot.bar(ax=last, color=[VALIDATION, BEST], **scale)
        for bars in last.containers:
            last.bar_label(bars, fmt="{:.0%}", fontsize=8)
        last.legend(fontsize=8, ncols=2, loc="upper left")
    [ax, *below][-1].set_xticks(range(len(dots)), [*dots], rotation=0, parse_math=False)
    return ax
