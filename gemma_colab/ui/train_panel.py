"""The panel of notebook 04: learning rate, batch size and epochs first, the rest folded, and below what they come to.

Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from IPython.display import HTML

from gemma_colab.core.catalog import Shape
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import ENVIRONMENT, LIGHTS, PART_COLOURS
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import OPTIMIZERS, SCHEDULERS, LoraSettings, TrainSettings
from gemma_colab.core.sliders import Controls, SettingsPanel
from gemma_colab.model.planner import cost
from gemma_colab.ui.panels import memory_note
from gemma_colab.ui.presets import PRESETS, preset

FIRST: Controls = {
    "learning_rate": (
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2],
        "size of each step; too low: nothing is learnt; too high: what was there is destroyed",
    ),
    "per_device_train_batch_size": (
        [1, 2, 4, 8, 16, 32, 64],
        "rows computed at once; too low: a GPU has little to do; too high: it runs out of memory",
    ),
    "gradient_accumulation_steps": (
        [1, 2, 4, 8, 16, 32, 64],
        "batches added up before a step; too low: shaky steps; too high: few steps, and little is learnt",
    ),
    "num_train_epochs": (
        [0.5, 1, 2, 3, 4, 5, 8, 10, 15, 20],
        "passes over the rows; too few: little is learnt; too many: it is learnt by heart",
    ),
}
FOLDED: Controls = {
    "lr_scheduler_type": (
        list(SCHEDULERS),
        "how the rate ends; linear and cosine: calmly, at 0; constant: still in motion, but good to go on from",
    ),
    "warmup_steps": (
        [0, 2, 5, 10, 20, 50, 100, 200],
        "steps up to the full rate; too few: the first ones may do damage; too many: the full rate comes too late",
    ),
    "weight_decay": (
        [0.0, 0.001, 0.01, 0.05, 0.1],
        "pulls the adapter back to zero; 0: not at all; too high: it stays near the model you began with",
    ),
    "max_grad_norm": (
        [0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0],
        "a longer gradient is cut to this; too low: all are cut alike; too high: one odd batch can throw it off",
    ),
    "max_length": (
        [64, 128, 256, 512, 768, 1024, 2048, 4096, 8192],
        "tokens kept of a row; too low: answers lose their end; too high: a few long ones take all the memory",
    ),
    "packing": (None, "several rows in one sequence; off: padding is computed; on: no padding, and fewer, larger steps"),
    "gradient_checkpointing": (
        None,
        "computes again instead of keeping; off: faster; on: far less memory, about half as long again",
    ),
    "optim": (
        list(OPTIMIZERS),
        "how Adam remembers; torch: exactly, 8 bytes a weight; 8bit: rounded, 2 bytes; paged: and may move to RAM",
    ),
    "neftune_noise_alpha": (
        [None, 1.0, 2.0, 5.0, 10.0, 15.0],
        "noise on the embeddings, against learning by heart; off: none; too high: the text drowns in it",
    ),
    "seed": (
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        "which random order and start; none is better: two runs with different ones show what is chance",
    ),
    "replay": (
        [0.0, 0.1, 0.2, 0.3, 0.5],
        "share of general rows mixed in; 0: the rest may be forgotten; too high: your own rows get lost among them",
    ),
    "evals_per_epoch": (
        [1, 2, 3, 4, 6, 8, 12],
        "looks at the validation rows; too few: the turn is seen late; too many: they take longer than training",
    ),
    "save_minutes": (
        [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0],
        "longest time between checkpoints; too short: always writing; too long: much is lost with the machine",
    ),
    "early_stopping_patience": (
        [0, 1, 2, 3, 5, 8, 12],
        "looks without a new best before it stops; 1: a chance bump ends it; too many: time wasted; 0: never stops",
    ),
}
PRESETS_HINT = "for rate and epochs at once; cautious: forgets little, learns little; strong: learns fast, may overfit"
POINTS = 200  # of the curve at most: more than its pixels would show

_NOTE = ENVIRONMENT.from_string(
    """<div style="display:flex; flex-wrap:wrap; align-items:center">
<div style="flex:1 1 380px; margin-right:16px">
<div>effective batch <b style="font-size:1.3em">{{ batch }}</b> {{ what }}</div>
<div>{{ about }}<b>{{ '{:,}'.format(per_epoch) }}</b> step{{ 's' * (per_epoch != 1) }} an epoch,
 {{ about }}<b style="font-size:1.3em">{{ '{:,}'.format(steps) }}</b> in all</div>
<div>{{ about_tokens }}<b>{{ '{:,}'.format(tokens) }}</b> tokens in all{% if answers is not none %}, {{ answers_word }} {{ '{:,}'.format(answers) }} of them answers{% endif %}</div>
<div>{% if cut %}<b style="color:{{ lights.tight }}">{{ cut }} of {{ rows }} rows</b> are longer than max_length: they lose their end; TRL leaves out those that lose all of their answer
{%- else %}no row is cut{% endif %}</div>
<div>time: {% if time %}<b>{{ time }}</b>, without validation{% else %}not measured yet: notebook 03 measures it{% endif %}</div>
</div>
<div style="flex:0 0 auto">{{ curve }}</div>
</div>
{% if late %}<div><b style="color:{{ lights.tight }}">Never at the full rate:</b> {{ late }}</div>{% endif %}
{{ memory }}"""
)
# Text and lines take the colour of the page's text, so that they can be read on white and on black.
_CURVE = ENVIRONMENT.from_string(
    """<svg viewBox="0 0 400 116" width="400" height="116" role="img" aria-label="learning rate over the steps" font-size="11" fill="currentColor" style="max-width:100%">
<text x="62" y="11" opacity=".8">learning rate over the steps</text>
<g stroke="currentColor" opacity=".25">{% for x in epochs %}<line x1="{{ x }}" x2="{{ x }}" y1="20" y2="96"/>{% endfor %}</g>
<path d="M60 20 V96 H392" fill="none" stroke="currentColor" opacity=".5"/>
<text x="55" y="25" text-anchor="end">{{ '{:g}'.format(rate) }}</text><text x="55" y="99" text-anchor="end">0</text>
<polyline points="{{ points }}" fill="none" stroke="{{ colour }}" stroke-width="2"/>
<text x="60" y="111">1</text><text x="392" y="111" text-anchor="end">{{ '{:,}'.format(steps) }}</text>
</svg>"""
)


def train_panel(
    settings: TrainSettings,
    lengths: Sequence[int],
    *,
    shape: Shape,
    machine: Machine,
    lora: LoraSettings,
    answer_tokens: int | None = None,
    seconds_per_step: float | None = None,
    start: TrainSettings | None = None,
    **plan,
) -> SettingsPanel:
    """Controls for training; below them steps, tokens, the learning rate over the steps, time and memory.

    lengths: tokens of each training row, uncut. shape, machine, lora: what the memory is predicted for, as in `lora_panel`; plan:
    other arguments of `memory.memory_plan`, tokens being the longest of `lengths` unless given. answer_tokens: how many of the
    tokens are answers. seconds_per_step: measured with `settings`, as by `training.trial`. start: what the presets start from,
    `settings` if left out.

    Raises `SettingsError` if there are no rows.
    """
    if not len(lengths):
        raise SettingsError("lengths is empty: there is no row to train on; take the tokens of each training row")
    lengths = np.asarray(lengths)
    presets = {}
    for name in PRESETS:
        chosen = preset(start or settings, name)
        presets[name] = {field: getattr(chosen, field) for field in ("learning_rate", "num_train_epochs")}
    first = dict(FIRST)
    for field in presets["normal"]:
        values, hint = FIRST[field]
        first[field] = [*values, *(changes[field] for changes in presets.values())], hint
    plan = {"tokens": int(lengths.max())} | plan
    step_cost = _step_cost(settings, lengths)

    def note(s: TrainSettings) -> HTML:
        per_epoch, steps = _steps(s, lengths)
        seconds = None if seconds_per_step is None else seconds_per_step * steps * _step_cost(s, lengths) / step_cost
        cut = int((lengths > s.max_length).sum())
        tokens = np.minimum(lengths, s.max_length).sum() * s.num_train_epochs
        rows = s.effective_batch * len(lengths) / sequences(lengths, s.max_length)
        text = _NOTE.render(
            batch=s.effective_batch,
            what=f"packed sequences, about {rows:.0f} rows" if s.packing else _rows(s),
            about="about " * (s.packing or cut > 0),
            per_epoch=per_epoch,
            steps=steps,
            about_tokens="about " * (s.num_train_epochs % 1 > 0),
            tokens=round(tokens),
            answers=None if answer_tokens is None else round(answer_tokens * s.num_train_epochs),
            answers_word="at most" if cut else "",
            cut=cut,
            rows=len(lengths),
            time=seconds and _duration(seconds),
            curve=schedule_curve(s, steps, per_epoch),
            late=_late(s, steps),
            memory=memory_note(shape, machine, lora, s, **plan),
            lights=LIGHTS,
        )
        return HTML(text)

    return SettingsPanel(settings, first, note, folded=FOLDED, presets=presets, presets_hint=PRESETS_HINT)


def learning_rates(settings: TrainSettings, steps: int) -> np.ndarray:
    """The learning rate of each of `steps` updates in all, shape (steps,), the first update first.

    The formulas are those of `transformers.get_scheduler`. With a warm-up the first update has the rate 0.
    """
    step, warmup = np.arange(steps), 0 if settings.lr_scheduler_type == "constant" else settings.warmup_steps
    left = (steps - step) / max(1, steps - warmup)  # of what comes after the warm-up: from 1 down to 0
    after = {"linear": left, "cosine": (1 - np.cos(np.pi * left)) / 2}.get(settings.lr_scheduler_type, np.ones(steps))
    return settings.learning_rate * np.where(step < warmup, step / max(1, warmup), after)


def schedule_curve(settings: TrainSettings, steps: int, per_epoch: int) -> HTML:
    """`learning_rates` as a small picture, with a line at the end of each epoch of `per_epoch` updates, if there are few."""
    rates = learning_rates(settings, steps)
    corner = min(settings.warmup_steps, steps - 1)
    shown = np.unique([*np.linspace(0, steps - 1, min(steps, POINTS)).astype(int), max(0, corner - 1), corner])

    def x(step: int) -> float:
        return round(60 + 332 * step / max(1, steps - 1), 1)

    points = [(x(i), round(96 - 76 * rates[i] / settings.learning_rate, 1)) for i in shown.tolist()]
    if steps == 1:
        points.append((392, points[0][1]))
    ends = range(per_epoch, steps, per_epoch)
    return HTML(
        _CURVE.render(
            points=" ".join(f"{a:g},{b:g}" for a, b in points),
            epochs=[x(end) for end in ends] if len(ends) <= 20 else [],
            rate=settings.learning_rate,
            steps=steps,
            colour=PART_COLOURS["weights"],
        )
    )


def sequences(lengths: Sequence[int], max_length: int) -> int:
    """About how many sequences of max_length tokens TRL packs rows of these lengths into: at least as many as all tokens fill, and
    one for each row longer than half of it, since two such don't go together."""
    kept = np.minimum(np.asarray(lengths), max_length)
    return max(math.ceil(kept.sum() / max_length), int((kept > max_length / 2).sum()))


def _steps(s: TrainSettings, lengths: np.ndarray) -> tuple[int, int]:
    """Updates in an epoch, and in all, counted as `transformers.Trainer` counts them."""
    rows = sequences(lengths, s.max_length) if s.packing else len(lengths)
    per_epoch = s.steps_per_epoch(round(rows / (1 - s.replay)))
    return per_epoch, math.ceil(s.num_train_epochs * per_epoch)


def _step_cost(s: TrainSettings, lengths: np.ndarray) -> float:
    """What one update costs, for comparison: `planner.cost` counts padding and checkpointing too."""
    return cost(s, lengths) / _steps(s, lengths)[0]


def _rows(s: TrainSettings) -> str:
    return f"row{'s' * (s.effective_batch != 1)} = {s.per_device_train_batch_size} × {s.gradient_accumulation_steps}"


def _late(s: TrainSettings, steps: int) -> str:
    if s.lr_scheduler_type == "constant" or s.warmup_steps < steps:
        return ""
    return f"warmup_steps={s.warmup_steps}, and there are only {steps} steps; try warmup_steps={steps // 10}."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"
