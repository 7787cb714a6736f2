"""Save the adapter, and load it again on a fresh base."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.workspace import Workspace

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace, state_dict: dict | None = None
) -> Path:
    """Write adapter and tokenizer to `workspace/adapter`; an older one is replaced when the new one is whole.

    state_dict: the weights, where the model itself holds only a part of them (FSDP).
    """
    with workspace.writing("adapter") as part:
        model.save_pretrained(part, state_dict=state_dict)
        tokenizer.save_pretrained(part)
        (part / "README.md").unlink(missing_ok=True)  # peft's template of a card, with nothing filled in
    return workspace.path / "adapter"


def load_adapter(model: PreTrainedModel, workspace: Workspace) -> PeftModel:
    """Put the saved adapter on a base model. Raises `WorkspaceError` if there is none, or if it is of a model of other dimensions."""
    path = workspace.need("adapter")
    try:
        return PeftModel.from_pretrained(model, path)
    except (RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0][:120]
        raise WorkspaceError(f"{path} doesn't fit this base model ({reason}); load the base it was trained on") from None


def check_adapter(folder: Path) -> None:
    """Raise `WorkspaceError` unless the folder holds a whole LoRA adapter."""
    try:
        kind = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["peft_type"]
        with safe_open(folder / WEIGHTS, framework="pt"):
            pass
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        kind = f"{type(e).__name__}: {e}"[:200]
    if kind != "LORA":
        raise WorkspaceError(f"{folder} is not a whole LoRA adapter ({kind}); save it again (notebook 04, or gemma-colab train)")


def is_hub_id(name: str) -> bool:
    """Whether a base is named by its id on the Hub, and not by a folder of this machine."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()
