"""What notebooks 02 and 03 leave: the model and the settings that were chosen, and what they were made for."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gemma_colab.core.catalog import Dimensions, dimensions_of, known_dimensions
from gemma_colab.core.errors import ModelError, SettingsError, say
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import SPLIT_FILES, Workspace
from gemma_colab.model.choice import ON_A_CPU, pick_model, starting_point
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import plan_training, smallest_peak

MADE_FOR = "settings_for.json"  # what LoRA's and the training settings of this workspace were made for


def choose_model(
    workspace: Workspace, machine: Machine, model: str | None = None, *, load_in_4bit: bool | None = None, anyway=False, save=True
) -> tuple[ModelSettings, str]:
    """Return the model of this workspace, and why it is: the one named here, else the choice saved there, else the one that suits this
    machine. What is new is saved, unless `save` is False.

    model: "auto", "tiny-gemma3", "gemma-3-270m", a Hub id, a folder, a GGUF file. load_in_4bit: None leaves it
    as it is. A choice outlives the machine it was made on: raises `ModelError` when a known model is too large for this one, before
    it is downloaded, unless `anyway`.
    """
    saved = ModelSettings.load(workspace) if workspace.has(ModelSettings.file) else None
    if saved is None and model is None:
        say("No model was chosen in this workspace yet: taking the one that suits this machine.")
    chosen, why = saved, "it is the choice saved in this workspace"
    if model or saved is None:
        name, why = pick_model(model or "auto", machine)
        chosen = ModelSettings(model=name)
    if load_in_4bit is not None:
        chosen = chosen.replace(load_in_4bit=load_in_4bit)
    if known_dimensions(chosen.model) and not anyway and not (machine.gpu is None and chosen.model in ON_A_CPU):
        gib, there = smallest_peak(chosen.model, machine, chosen.load_in_4bit, tokens=256), machine.gpu_gib
        if machine.gpu is None or gib > there:
            has = f"a GPU of {there:.1f} GiB, and training takes {gib:.1f} at least" if machine.gpu else "no GPU"
            remedy = "choose another in notebook 02, or change the machine (Colab: Runtime -> Change runtime type)"
            raise ModelError(f"{chosen.model} was chosen in this workspace, but this machine has {has}; {remedy}")
    if save and chosen != saved:
        chosen.save(workspace)
    return chosen, why


@dataclass
class SavedSettings:
    """The settings for LoRA and for training in a workspace, made for one model, GPU and set of rows.

    dimensions: of the model. lora, train: to change with `replace`, and to hand to a panel. start: what training of this model
    begins with, for the panel's presets. seconds_per_step: as measured with these settings and rows on this GPU, or None.
    correction: what `training.trial_run` found out about the memory of this model on this GPU, for `memory_plan`; {} before.
    """

    workspace: Workspace
    made_for: dict
    dimensions: Dimensions
    lora: LoraSettings
    train: TrainSettings
    start: TrainSettings
    correction: dict
    seconds_per_step: float | None

    def plan(self, train: TrainSettings | None = None, **how) -> pd.Series:
        """Return the `memory_plan` of these settings, or of another `train`. how: as there."""
        return memory_plan(self.dimensions, self.lora, train or self.train, **how)

    def save(
        self,
        lora: LoraSettings | None = None,
        train: TrainSettings | None = None,
        *,
        correction: dict | None = None,
        seconds_per_step: float | None = None,
    ) -> None:
        """Save what is given, and the rest as it is. A pace that was measured with other settings is forgotten."""
        same = lora in (None, self.lora) and train in (None, self.train)
        self.lora, self.train = lora or self.lora, train or self.train
        self.correction = correction or self.correction
        self.seconds_per_step = seconds_per_step or (self.seconds_per_step if same else None)
        self.lora.save(self.workspace), self.train.save(self.workspace)
        measured = {"correction": self.correction, "seconds_per_step": self.seconds_per_step}
        self.workspace.write_json(MADE_FOR, self.made_for | measured | {"measured_with": repr((self.lora, self.train))})


def settings_for(
    workspace: Workspace, chosen: ModelSettings, machine: Machine, lengths: Sequence[int] | None = None
) -> SavedSettings:
    """Return the settings saved in the workspace for this model, GPU and rows; else the starting point, on a GPU planned for it.

    lengths: tokens of each training and validation row, which a plan depends on.
    """
    saved, dimensions = workspace.read_json(MADE_FOR) if workspace.has(MADE_FOR) else {}, dimensions_of(chosen.model)
    made_for = {"model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "gpu": machine.gpu}
    made_for["rows"] = workspace.fingerprint(*SPLIT_FILES)
    others = {key for key, value in made_for.items() if saved.get(key, value) != value}
    measured_here = saved if saved and others <= {"rows"} else {}
    correction, (lora, start) = measured_here.get("correction", {}), starting_point(chosen.model)
    if workspace.has(LoraSettings.file) and "model" not in others:
        lora = LoraSettings.load(workspace)
    else:
        say(f"No settings for LoRA on {chosen.model} in this workspace yet: taking the starting point.")
    train = TrainSettings.load(workspace) if workspace.has(TrainSettings.file) and not others else start
    if train is start:
        if saved:
            say("The settings saved here were made for another model, GPU or other rows: planning anew.")
        if machine.gpu and lengths is not None:
            how = {"dtype": dtype_name(machine, dimensions)[0], "load_in_4bit": chosen.load_in_4bit} | correction
            fixed = ["packing", "load_in_4bit", "r"]  # the first is the learner's, the others were chosen already
            train, steps = plan_training(dimensions, lora, train, lengths, machine.gpu_gib, fixed=fixed, **how)
            if steps["GiB"].isna().any():
                remedy = "choose a smaller model or a larger GPU, or set max_length and r yourself"
                raise SettingsError(f"{chosen.model} can't be trained within {machine.gpu_gib:g} GiB, 15 % to spare; {remedy}")
    pace = saved.get("seconds_per_step") if not others and saved.get("measured_with") == repr((lora, train)) else None
    return SavedSettings(workspace, made_for, dimensions, lora, train, start, correction, pace)
