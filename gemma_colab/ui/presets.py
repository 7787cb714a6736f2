"""Starting points near the one that was put in, for a learner who wants less or more of it at once."""

from __future__ import annotations

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import TrainSettings

# What each does to a starting point: (times the learning rate, times the epochs).
PRESETS = {"cautious": (0.25, 2 / 3), "normal": (1.0, 1.0), "strong": (2.5, 5 / 3)}


def preset(settings: TrainSettings, name: str) -> TrainSettings:
    """Return `settings` with the learning rate and the epochs of a preset: "cautious" forgets little and learns little, "strong" learns
    fast and may overfit. Everything else stays. Raises `SettingsError` for another name."""
    if name not in PRESETS:
        raise SettingsError(f"preset={name!r} must be one of {', '.join(PRESETS)}; try preset='normal'")
    rate, epochs = PRESETS[name]
    if rate == epochs == 1:
        return settings
    return settings.replace(
        learning_rate=float(f"{min(0.1, max(1e-6, settings.learning_rate * rate)):.3g}"),
        num_train_epochs=min(100.0, max(0.01, round(settings.num_train_epochs * epochs, 2))),
    )
