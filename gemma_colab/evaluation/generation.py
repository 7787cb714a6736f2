"""Answers in batches: left padding, sorted by length, stopped at either of Gemma's two stop tokens."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.chat import stop_token_ids
from gemma_colab.core.errors import SPOILT, ModelError, WorkspaceError
from gemma_colab.core.workspace import private

GREEDY = {"do_sample": False}  # to measure: everybody gets the same answers
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}  # to chat: what Google recommends for Gemma 3

Turns = list[dict[str, str]]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Turns],
    *,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    sampling: dict = GREEDY,
    save: Path | None = None,
    made_by: str = "",
    description: str | None = "answers",
) -> pd.DataFrame:
    """Answer each prompt (a list of chat turns); one line each, in their order: `answer`, `tokens`, and `finished`, whether it ended by itself.

    batch_size: left out, 32 on a GPU, and 96 on a CPU, where a step of 96 rows takes little longer than one of 32.
    sampling: `GREEDY`, or settings of `transformers.GenerationConfig` such as `SAMPLING`; the random numbers are torch's.
    save: a JSONL file to which each batch is added when it is done, and from which answers are taken that are there already: after
    a disconnect, run the same again. made_by: what made the answers (a model, an adapter's checksum); those of another are not
    taken. description: of the progress bar; None for no bar.
    """
    stops = stop_token_ids(tokenizer)
    config = GenerationConfig(max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, eos_token_id=stops, **sampling)
    encoded = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    keys = _keys(encoded, made_by, max_new_tokens, sampling)
    if save and (save.is_symlink() or (save.exists() and not save.is_file())):
        raise WorkspaceError(f"save={str(save)!r} is a link or no file, and answers are added to files only; name another one")
    known = _read(save) if save else {}
    # Rows of like length together: little padding. The longest first: if the memory does not suffice, it shows at once.
    order = sorted((i for i in range(len(prompts)) if keys[i] not in known), key=lambda i: -len(encoded[i]))
    # On a CPU, torch multiplies the last positions of a batch, cut out of a larger tensor, by a copy of the head for each row: ten
    # GiB at 270M, and nine tenths of the time.
    whole = model.get_output_embeddings().register_forward_pre_hook(lambda head, args: (args[0].contiguous(),))
    was_training, batch_size = model.training, batch_size or (32 if model.device.type == "cuda" else 96)
    model.eval()
    bar = tqdm(total=len(keys), initial=len(keys) - len(order), desc=description, leave=False, disable=description is None)
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            out = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :].tolist()
            lines = []
            for i, ids in zip(rows, out, strict=True):
                end = next((n for n, token in enumerate(ids) if token in stops), None)  # behind it a batch holds padding
                text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
                known[keys[i]] = {"answer": text, "tokens": len(ids[:end]), "finished": end is not None}
                lines.append(json.dumps({"key": keys[i]} | known[keys[i]], ensure_ascii=False))
            if save:
                save.parent.mkdir(parents=True, exist_ok=True)
                with open(save, "a", encoding="utf-8", opener=private) as f:
                    f.write("".join("\n" + line for line in lines))  # a new line first: the last one may have been cut off
            bar.update(len(rows))
    finally:
        bar.close()
        whole.remove()
        model.train(was_training)
    return pd.DataFrame([known[key] for key in keys], columns=["answer", "tokens", "finished"])


def generate_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Turns], **options) -> list[str]:
    """Return the model's answers to prompts (lists of chat turns), in their order. options: those of `generate`, such as
    max_new_tokens=128 or batch_size=32."""
    return list(generate(model, tokenizer, prompts, **options)["answer"])


def chat_candidates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int, do_sample=True, seed=0, **sampling
) -> dict[str, Callable[[Turns], str]]:
    """Return {"base": ..., "tuned": ...}: each takes chat turns and gives an answer. The base is the same model, its adapter switched off.

    sampling: changes to `SAMPLING`, such as temperature=0.7. Both start each answer from the same seed, plus the number of turns;
    the random state outside is left as it was. Raises `ModelError` if the model has no adapter.
    """
    if not hasattr(model, "disable_adapter"):  # a method of peft's models
        raise ModelError(f"model={type(model).__name__} has no adapter; load one with load_adapter(base, workspace)")
    options = {"max_new_tokens": max_new_tokens, "sampling": SAMPLING | sampling if do_sample else GREEDY, "description": None}
    devices = [model.device] if model.device.type == "cuda" else []

    def answering(adapter: Callable, turns: Turns) -> str:
        with torch.random.fork_rng(devices), adapter():
            torch.manual_seed(seed + len(turns))
            return generate_answers(model, tokenizer, [turns], **options)[0]

    return {"base": partial(answering, model.disable_adapter), "tuned": partial(answering, nullcontext)}


def _keys(encoded: list[list[int]], made_by: str, max_new_tokens: int, sampling: dict) -> list[str]:
    """Make the keys by which answers are found again. A prompt that is asked twice has two: by chance the answers may differ."""
    seen, keys = Counter(), []
    for ids in encoded:
        seen[tuple(ids)] += 1
        what = [ids, seen[tuple(ids)], made_by, max_new_tokens, sampling]
        keys.append(hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32])
    return keys


def _read(path: Path) -> dict[str, dict]:
    """Read key -> answer. A last line that was cut off in the middle is left out: that row is asked again."""
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        try:
            saved = json.loads(line)
            known[saved["key"]] = {"answer": "" + saved["answer"], "tokens": saved["tokens"], "finished": saved["finished"]}
        except SPOILT:
            continue
    return known
