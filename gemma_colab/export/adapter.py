"""Save the adapter, and load it again on a fresh base."""

import json
import re
import shlex
import warnings
from collections import defaultdict
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.errors import SPOILT, WorkspaceError, first_line
from gemma_colab.core.settings import PLAIN
from gemma_colab.core.trainer import unload_adapters
from gemma_colab.core.workspace import ADAPTER_FILES, Workspace
from gemma_colab.export.folders import carry

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them
KNOWN = "peft_type task_type base_model_name_or_path revision inference_mode auto_mapping r lora_alpha lora_dropout target_modules bias"
KNOWN += " use_rslora use_dora fan_in_fan_out modules_to_save init_lora_weights layers_to_transform layers_pattern rank_pattern"
KNOWN = (KNOWN + " alpha_pattern exclude_modules alora_invocation_tokens lora_bias peft_version").split()
MOST = 1024  # the rank of an adapter of somebody else's
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # values of init_lora_weights that leave the base as it was
BLOCK = r"model\\\.\(language_model\\\.\)\?layers\\\.\([\d|]+\)\\\.\([\w\\.|]+\)"  # as `name_for_whole_model` writes it
BLOCKS = re.compile(rf"(?!.{{3001}}){BLOCK}(?:\|{BLOCK})*")
TEXT = re.compile(r"^base_model\.model\.model\.(?!language_model\.)")  # of an adapter of the text part alone


def save_adapter(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, workspace: Workspace, state_dict: dict | None = None
) -> Path:
    """Write adapter and tokenizer to `workspace/adapter`; an older one is replaced when the new one is whole.

    state_dict: the weights, where the model itself holds only a part of them (FSDP). An adapter of the text part of a model that sees
    images gets the names of that whole model: `AutoModelForCausalLM` loads it, and peft and vLLM look for them.
    """
    with workspace.writing("adapter") as part:
        model.save_pretrained(part, state_dict=state_dict)
        if getattr(model.get_base_model(), "_checkpoint_conversion_mapping", None):  # as `load_model` leaves it
            name_for_whole_model(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").unlink(missing_ok=True)  # peft's template of a card, with nothing filled in
        carry(workspace.path / "adapter", part, "adapter")
    model.peft_config["default"].saved_as = workspace.fingerprint(*ADAPTER_FILES)  # for `kept_answers`; it is no field
    return workspace.path / "adapter"


def name_for_whole_model(folder: Path) -> None:
    """Rename an adapter of the text part as `Gemma3ForConditionalGeneration` names it, in place.

    Its layers become a pattern that finds them in both classes. Their last names alone would find those of the vision part too.
    """
    weights = {TEXT.sub("base_model.model.model.language_model.", k): v for k, v in load_file(folder / WEIGHTS).items()}
    blocks, kinds = defaultdict(set), defaultdict(set)
    for name in weights:
        if found := re.search(r"\.layers\.(\d+)\.(.+)\.lora_", name):
            blocks[found[2]].add(int(found[1]))
    for kind, numbers in blocks.items():
        kinds["|".join(map(str, sorted(numbers)))].add(re.escape(kind))
    patterns = (rf"model\.(language_model\.)?layers\.({n})\.({'|'.join(sorted(k))})" for n, k in kinds.items())
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    settings |= {"target_modules": "|".join(patterns), "layers_to_transform": None, "layers_pattern": None}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, workspace: Workspace) -> PeftModel:
    """Put the saved adapter on a base model. Raises `WorkspaceError` if there is none, or if not every weight of it finds its place."""
    check_adapter(path := workspace.need("adapter"))
    saved_as = workspace.fingerprint(*ADAPTER_FILES)  # before it is read: one that takes its place meanwhile is another
    try:
        with warnings.catch_warnings():  # of missing keys peft only warns, and leaves them as if nothing was trained
            warnings.filterwarnings("error", ".*missing adapter keys")
            tuned = PeftModel.from_pretrained(model, path)
        with safe_open(path / WEIGHTS, framework="pt") as file:
            more = len(file.keys()) - len(get_peft_model_state_dict(tuned, save_embedding_layers=False))
        if more:
            raise ValueError(f"it lacks layers for {more} of the adapter's weights")
        tuned.peft_config["default"].saved_as = saved_as
        return tuned
    except (RuntimeError, ValueError, UserWarning) as e:
        unload_adapters(model)  # it must not stay on the base in part
        reason = first_line(e)[:120]
        raise WorkspaceError(f"{path} doesn't fit this base model ({reason}); load the base it was trained on") from None


def check_adapter(folder: Path) -> None:
    """Raise `WorkspaceError` unless the folder holds a whole LoRA adapter, whose settings ask nothing of peft but what is known here:
    others let it import modules, repeat layers, make matrices of any size, and search names by any pattern."""
    try:
        if absent := [name for name in (SETTINGS, WEIGHTS) if not (folder / name).is_file()]:  # but a pipe, which never ends
            raise FileNotFoundError(f"No such file: {absent[0]}")
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        kind = f"what it says of {odd} is not taken from others" if (odd := _odd(settings)) else settings["peft_type"]
        with safe_open(folder / WEIGHTS, framework="pt"):
            pass
    except (OSError, SafetensorError, *SPOILT) as e:
        kind = f"{type(e).__name__}: {e}"[:200]
    if kind != "LORA":
        again = f"save it again (notebook 04, or gemma-colab train --workspace {shlex.quote(str(folder.parent))})"
        again = "convert it to a plain LoRA with peft" if "init_lora_weights" in kind else again
        raise WorkspaceError(f"{folder} is not a whole LoRA adapter ({kind}); {again}")


def _odd(settings: dict) -> str:
    """Name what is set and not known here, and lists too long for peft, which searches some for each layer."""
    stock = LoraConfig().to_dict()
    odd = [k for k, v in settings.items() if k in stock and k not in KNOWN and v not in (stock[k], None, False, [], {})]
    odd += [f"{k} ({len(v):,} of at most 300)" for k, v in settings.items() if isinstance(v, list | dict) and len(v) > 300]
    odd += ["init_lora_weights"] * (settings.get("init_lora_weights", True) not in PLAIN_STARTS)
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern"):
        texts = [settings[name]] if isinstance(settings.get(name), str) else settings.get(name) or []
        odd += [name] * any(not (PLAIN.fullmatch(t) or BLOCKS.fullmatch(t)) for t in texts if t != "all-linear")
    ranks = (settings.get("r", 8), *(settings.get("rank_pattern") or {}).values())
    return ", ".join(odd) or "r" * any(rank > MOST for rank in ranks)


def of_text_part(adapter: Path) -> bool:
    """Whether an adapter is of the text part of a model that sees images; its names say so."""
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        return any(".language_model." in name for name in file.keys())  # noqa: SIM118 - the file is no dict
