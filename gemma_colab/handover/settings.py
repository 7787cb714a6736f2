"""What notebooks 02 and 03 leave: the model and the settings that were chosen, and what they were made for."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_colab.core.catalog import ON_A_CPU, known_shape, pick_model, shape_of
from gemma_colab.core.errors import ModelError
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings, starting_point
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import ROW_FILES
from gemma_colab.model.planner import plan_training, smallest_peak


def chosen_model(workspace: Workspace, machine: Machine, *, anyway: bool = False) -> tuple[ModelSettings, str]:
    """The model that was chosen in this workspace, or the one that suits this machine, which is then saved; and why.

    A choice outlives the machine it was made on: raises `ModelError` when a known model is too large for this one, before it is
    downloaded, unless `anyway`.
    """
    if not workspace.has(ModelSettings.file):
        name, why = pick_model("auto", machine)
        print("Notebook 02 has not run in this workspace: taking the model that suits this machine.")
        ModelSettings(model=name).save(workspace)
        return ModelSettings.load(workspace), why
    chosen = ModelSettings.load(workspace)
    if known_shape(chosen.model) and not anyway and not (machine.gpu is None and chosen.model in ON_A_CPU):
        gib, there = smallest_peak(chosen.model, machine, chosen.load_in_4bit, tokens=256), machine.gpu_gib
        if machine.gpu is None or gib > there:
            has = f"a GPU of {there:.1f} GiB, and training takes {gib:.1f} at least" if machine.gpu else "no GPU"
            raise ModelError(
                f"{chosen.model} was chosen in this workspace, but this machine has {has}; choose another in notebook 02, or "
                "change the machine (Colab: Runtime -> Change runtime type)"
            )
    return chosen, "it is the choice saved in this workspace"


def save_settings(
    workspace: Workspace,
    chosen: ModelSettings,
    machine: Machine,
    lora: LoraSettings,
    train: TrainSettings,
    trial: dict | None = None,
    *,
    seconds_per_step: float | None = None,
) -> None:
    """Save both kinds of settings, and what they were made for. trial: what `model.memory.correction` found, for later plans;
    without it an earlier one is kept, if it was for the same model and GPU. seconds_per_step: measured with these settings; without
    it an earlier figure is kept, if it was for the same settings."""
    made_for, pace = _made_for(workspace, chosen, machine), pace_of(workspace, chosen, machine)
    same = workspace.has(TrainSettings.file) and TrainSettings.load(workspace) == train
    made_for |= {"correction": trial or _correction(workspace, made_for)}
    made_for |= {"seconds_per_step": seconds_per_step or (pace if same else None)}
    lora.save(workspace), train.save(workspace)
    workspace.write_json("settings_for.json", made_for)


def pace_of(workspace: Workspace, chosen: ModelSettings, machine: Machine) -> float | None:
    """Seconds a step, as measured on this machine's GPU with the training settings saved here; None if they were not."""
    saved = _saved_for(workspace)
    return saved.get("seconds_per_step") if _same_place(saved, _made_for(workspace, chosen, machine)) else None


def _correction(workspace: Workspace, made_for: dict) -> dict:
    """What was measured for this model on this GPU, whatever the rows."""
    saved = _saved_for(workspace)
    return saved["correction"] if _same_place(saved, made_for) else {}


def _same_place(saved: dict, made_for: dict) -> bool:
    return all(saved.get(key) == made_for[key] for key in ("model", "load_in_4bit", "gpu"))


def _made_for(workspace: Workspace, chosen: ModelSettings, machine: Machine) -> dict:
    return {
        "model": chosen.model,
        "load_in_4bit": chosen.load_in_4bit,
        "gpu": machine.gpu,
        "rows": workspace.fingerprint(*ROW_FILES),
    }


def _saved_for(workspace: Workspace) -> dict:
    """What the settings in this workspace were made for; {} where that was not saved."""
    return workspace.read_json("settings_for.json") if workspace.has("settings_for.json") else {}


def ensure_lora(workspace: Workspace, chosen: ModelSettings) -> LoraSettings:
    """The settings for LoRA that were saved for this model, or the starting point for it."""
    made_for = _saved_for(workspace)
    if workspace.has(LoraSettings.file) and made_for.get("model", chosen.model) == chosen.model:
        return LoraSettings.load(workspace)
    print(f"No settings for LoRA on {chosen.model} in this workspace yet: taking the starting point.")
    return starting_point(chosen.model)[0]


def ensure_train(workspace: Workspace, chosen: ModelSettings, machine: Machine, lengths: Sequence[int]) -> TrainSettings:
    """The settings for training that were saved for this model, GPU and rows; else the starting point, on a GPU planned for it.

    lengths: tokens of each training and validation row.
    """
    made_for = _saved_for(workspace)
    now = _made_for(workspace, chosen, machine)
    if workspace.has(TrainSettings.file) and all(made_for.get(key, value) == value for key, value in now.items()):
        return TrainSettings.load(workspace)
    if made_for:
        print("The settings saved here were made for another model, GPU or other rows: planning anew.")
    lora, train = ensure_lora(workspace, chosen), starting_point(chosen.model)[1]
    if machine.gpu is None:
        return train
    how = {"dtype": dtype_name(machine, shape_of(chosen.model))[0], "load_in_4bit": chosen.load_in_4bit}
    how |= _correction(workspace, now)
    return plan_training(shape_of(chosen.model), lora, train, lengths, machine.gpu_gib, fixed=["packing"], **how)[0]
