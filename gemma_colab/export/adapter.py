"""Save the adapter, load it again on a fresh base."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.errors import WorkspaceError
from gemma_colab.workspace import Workspace


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace, state_dict: dict | None = None
) -> Path:
    """Write adapter and tokenizer to `workspace/adapter` (safetensors); an older one is replaced when the new one is whole.

    state_dict: the weights, where the model itself holds a part of them only.
    """
    with workspace.writing("adapter") as part:
        model.save_pretrained(part, state_dict=state_dict)
        tokenizer.save_pretrained(part)
        (part / "README.md").unlink(missing_ok=True)  # peft's template of a card, with nothing filled in
    return workspace.path / "adapter"


def load_adapter(base: PreTrainedModel, workspace: Workspace) -> PeftModel:
    """The saved adapter on `base`. Raises `WorkspaceError` if there is none, or if it was made for another shape."""
    path = workspace.need("adapter")
    try:
        return PeftModel.from_pretrained(base, path)
    except (RuntimeError, ValueError) as e:
        raise WorkspaceError(
            f"{path} doesn't fit this base model ({str(e).splitlines()[0][:120]}); load the base it was trained on"
        ) from None
