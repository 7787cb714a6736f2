"""What notebooks 02 and 03 leave: the model and the settings that were chosen, and what they were made for."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_colab.core.catalog import dimensions_of, known_dimensions
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import SPLIT_FILES, Workspace
from gemma_colab.model.choice import ON_A_CPU, pick_model, starting_point
from gemma_colab.model.planner import plan_training, smallest_peak

MADE_FOR = "settings_for.json"  # what LoRA's and the training settings of this workspace were made for


def choose_model(
    workspace: Workspace,
    machine: Machine,
    model: str | None = None,
    *,
    load_in_4bit: bool | None = None,
    anyway: bool = False,
) -> tuple[ModelSettings, str]:
    """Return the model of this workspace, and why it is: the one named here, else the choice saved there, else the one that suits this
    machine. What is new is saved.

    model: "auto", "tiny-gemma3", "gemma-3-270m", a Hub id, a folder, a GGUF file. load_in_4bit: None leaves it
    as it is. A choice outlives the machine it was made on: raises `ModelError` when a known model is too large for this one, before
    it is downloaded, unless `anyway`.
    """
    chosen, why = None, "it is the choice saved in this workspace"
    if workspace.has(ModelSettings.file):
        chosen = ModelSettings.load(workspace)
    elif model is None:
        print("No model was chosen in this workspace yet: taking the one that suits this machine.")
    new = chosen
    if model or chosen is None:
        name, why = pick_model(model or "auto", machine)
        new = ModelSettings(model=name)
    if load_in_4bit is not None:
        new = new.replace(load_in_4bit=load_in_4bit)
    if new != chosen:
        new.save(workspace)
    return _refuse_too_large(new, machine, anyway), why


def _refuse_too_large(chosen: ModelSettings, machine: Machine, anyway: bool) -> ModelSettings:
    if known_dimensions(chosen.model) and not anyway and not (machine.gpu is None and chosen.model in ON_A_CPU):
        gib, there = smallest_peak(chosen.model, machine, chosen.load_in_4bit, tokens=256), machine.gpu_gib
        if machine.gpu is None or gib > there:
            has = f"a GPU of {there:.1f} GiB, and training takes {gib:.1f} at least" if machine.gpu else "no GPU"
            raise ModelError(
                f"{chosen.model} was chosen in this workspace, but this machine has {has}; choose another in notebook 02, or "
                "change the machine (Colab: Runtime -> Change runtime type)"
            )
    return chosen


class SavedSettings:
    """The settings for LoRA and for training in a workspace, made for one model, GPU and set of rows.

    dimensions: of the model. lora, train: to change with `replace`, and to hand to a panel. seconds_per_step: as measured
    with these settings on this GPU, or None. correction: what `training.trial_run` found out about the memory of this model on
    this GPU, for `memory_plan`; {} before.
    """

    def __init__(self, workspace: Workspace, chosen: ModelSettings, machine: Machine, lengths: Sequence[int] | None = None):
        self.workspace, self._chosen, self.dimensions = workspace, chosen, dimensions_of(chosen.model)
        saved = workspace.read_json(MADE_FOR) if workspace.has(MADE_FOR) else {}
        self._made_for = {"model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "gpu": machine.gpu}
        same_place = all(saved.get(key) == value for key, value in self._made_for.items())
        self.correction = saved.get("correction", {}) if same_place else {}
        self.seconds_per_step = saved.get("seconds_per_step") if same_place else None
        self._made_for["rows"] = workspace.fingerprint(*SPLIT_FILES)
        self.lora = self._saved_lora(saved)
        self.train = self._saved_train(saved, machine, lengths)

    def _saved_lora(self, saved: dict) -> LoraSettings:
        if self.workspace.has(LoraSettings.file) and saved.get("model", self._chosen.model) == self._chosen.model:
            return LoraSettings.load(self.workspace)
        print(f"No settings for LoRA on {self._chosen.model} in this workspace yet: taking the starting point.")
        return starting_point(self._chosen.model)[0]

    def _saved_train(self, saved: dict, machine: Machine, lengths: Sequence[int] | None) -> TrainSettings:
        same = all(saved.get(key, value) == value for key, value in self._made_for.items())
        if self.workspace.has(TrainSettings.file) and same:
            return TrainSettings.load(self.workspace)
        if saved:
            print("The settings saved here were made for another model, GPU or other rows: planning anew.")
        train = starting_point(self._chosen.model)[1]
        if machine.gpu is None or lengths is None:
            return train
        how = {"dtype": dtype_name(machine, self.dimensions)[0], "load_in_4bit": self._chosen.load_in_4bit} | self.correction
        fixed = ["packing", "load_in_4bit", "r"]  # the first is the learner's, the others were chosen already
        planned, steps = plan_training(self.dimensions, self.lora, train, lengths, machine.gpu_gib, fixed=fixed, **how)
        if steps["GiB"].isna().any():
            raise SettingsError(
                f"{self._chosen.model} can't be trained within {machine.gpu_gib:g} GiB, 15 % to spare; choose a smaller model or a "
                "larger GPU, or set max_length and r yourself"
            )
        return planned

    def save(
        self,
        lora: LoraSettings | None = None,
        train: TrainSettings | None = None,
        *,
        correction: dict | None = None,
        seconds_per_step: float | None = None,
    ) -> None:
        """Save what is given, and the rest as it is. A pace that was measured with other training settings is forgotten."""
        same = train in (None, self.train) and self.workspace.has(TrainSettings.file)
        self.lora, self.train = lora or self.lora, train or self.train
        self.correction = correction or self.correction
        self.seconds_per_step = seconds_per_step or (self.seconds_per_step if same else None)
        self.lora.save(self.workspace), self.train.save(self.workspace)
        measured = {"correction": self.correction, "seconds_per_step": self.seconds_per_step}
        self.workspace.write_json(MADE_FOR, self._made_for | measured)


def settings_for(
    workspace: Workspace, chosen: ModelSettings, machine: Machine, lengths: Sequence[int] | None = None
) -> SavedSettings:
    """Return the settings saved in the workspace for this model, GPU and rows; else the starting point, on a GPU planned for it.

    lengths: tokens of each training and validation row, which a plan depends on.
    """
    return SavedSettings(workspace, chosen, machine, lengths)
