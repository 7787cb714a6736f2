"""Memory and time of merging an adapter into its 16-bit base, tensor by tensor and with peft's own merge_and_unload.

    python benchmarks/export.py [--sizes 270m,1b] [--keep FOLDER]

For random weights of the true shapes, stored in shards, and an adapter of rank 16 on all linear layers. Each way runs in a process
of its own; its peak is what the system counted for it (ru_maxrss), with Python and the libraries, which are also shown alone: the
weights that a file mapped into memory holds there are counted too. Prints a Markdown table. Needs 3 times the checkpoint on disk.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = ("270m", "1b", "4b", "12b")
SHARD = "500MB"  # of the base as stored
GIB = 2**30
CLOUD = 12.7  # GiB of memory of a free Colab machine


# --------------------------------------------------------------------------------------------- each in a process of its own
def make(folder: Path, size: str) -> dict:
    """A base and an adapter, both random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from gemma_colab.core.catalog import CATALOG, Dimensions
    from gemma_colab.core.workspace import samples

    shape = CATALOG[f"google/gemma-3-{size}-it"]
    config = Gemma3TextConfig(
        **{name: getattr(shape, name) for name in Dimensions.__dataclass_fields__}, query_pre_attn_scalar=256
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Gemma3ForCausalLM(config)
    model.save_pretrained(folder / "base", max_shard_size=SHARD)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja"):
        shutil.copy(samples() / "tiny-gemma3" / name, folder / "base")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    return {}


def nothing(folder: Path, size: str) -> dict:
    """The libraries alone."""
    import gemma_colab.export.merged  # noqa: F401

    return {}


def streamed(folder: Path, size: str) -> dict:
    from gemma_colab.export.merged import merge

    return {"predicted": merge(str(folder / "base"), folder / "adapter", folder / "streamed")}


def plain(folder: Path, size: str) -> dict:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16, trust_remote_code=False)
    PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(folder / "plain")
    return {}


def farthest(folder: Path, size: str) -> dict:
    """The largest difference between the two results, in steps of bfloat16: of two neighbouring numbers it is one."""
    import torch
    from transformers import AutoModelForCausalLM

    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.bfloat16, trust_remote_code=False).state_dict()
        for name in ("streamed", "plain")
    )
    assert ours.keys() == theirs.keys()
    share = max(((ours[n].float() - theirs[n].float()).norm() / theirs[n].float().norm()).item() for n in ours)
    return {"off": share}


WAYS = {way.__name__: way for way in (make, nothing, streamed, plain, farthest)}


def run(way: str, folder: Path, size: str) -> dict:
    """What a way returned, with its peak in GiB and its seconds."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, "--sizes", size, "--keep", folder],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="270m,1b", help="of {}".format(", ".join(SIZES)))
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints, kept (default: a temporary one)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        start = time.monotonic()
        found = WAYS[args.way](args.keep, args.sizes)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        print(json.dumps(found | {"peak": peak, "seconds": time.monotonic() - start}))
        return 0
    print(
        "| shape | files of weights, GiB | libraries alone, GiB | merge, GiB | predicted | merge_and_unload, GiB | ratio | seconds | off by |"
    )
    print("| --- " * 9 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for size in args.sizes.split(","):
            folder = (args.keep or Path(temporary)) / size
            if not (folder / "adapter").exists():
                run("make", folder, size)
            stored = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors")) / GIB
            base, ours, theirs = (run(way, folder, size) for way in ("nothing", "streamed", "plain"))
            off = run("farthest", folder, size)["off"]
            print(
                f"| {size} | {stored:.2f} | {base['peak']:.2f} | {ours['peak']:.2f} | {base['peak'] + ours['predicted']:.2f} "
                f"| {theirs['peak']:.2f} | {theirs['peak'] / ours['peak']:.1f} | {ours['seconds']:.0f} / {theirs['seconds']:.0f} "
                f"| {off:.1e} |",
                flush=True,
            )
            for name in ("streamed", "plain"):
                shutil.rmtree(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
