"""What stands between this machine and a first training run, and the next step for each such thing. Takes a few seconds."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from threading import Thread

import pandas as pd
from huggingface_hub import HfApi, constants, get_token
from packaging.requirements import Requirement
from packaging.version import Version

from gemma_colab.core import catalog
from gemma_colab.core import machine as local
from gemma_colab.core.machine import Machine, existing, free_gib, on_kaggle
from gemma_colab.model import choice, planner
from gemma_colab.model.hub import SITE, explain
from gemma_colab.model.lent import HIDDEN, describe_machine, driver_gpus
from gemma_colab.model.libraries import TESTED, stack_versions
from gemma_colab.model.planner import fits, smallest_peak

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
        return {"status": self.status, "verdict": self.verdict, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        width, lines = max(len(check.what) for check in self.checks), [self.verdict]
        for check in self.checks:
            lines.append(f"{check.status:4}  {check.what:{width}}  {check.found}")
            lines += [f"{'':{width + 8}}-> {check.next_step}"] * bool(check.next_step)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = pd.DataFrame(self.to_dict()["checks"])
        style = table.style.hide(axis="index").format(escape="html").set_caption(self.verdict)
        return style.set_properties(**{"text-align": "left", "vertical-align": "top", "max-width": "36em"}).to_html()


def preflight(model: str | None = None, workspace: str | Path = ".", load_in_4bit: bool = True) -> Preflight:
    """Check this machine, its libraries, and whether `model` can be had; nothing is downloaded or written.

    model, load_in_4bit: as in `ModelSettings`; no model means "auto". Raises `ModelError` for a name that is not known.
    """
    checks = list(_libraries())
    try:
        machine = describe_machine(str(workspace))
    except Exception as e:  # a torch that doesn't fit this machine may raise anything when it is imported
        step = f"run `pip install --force-reinstall torch`, then {RESTART}"
        return Preflight((*checks, Check("GPU", f"torch can't be used ({type(e).__name__}: {e})", FAIL, step)))
    name, _ = choice.pick_model(model or "auto", machine)
    checks += [_gpu(machine, name if model else None), *_other_gpus(machine), *_training(machine, name, load_in_4bit)]
    checks += [_memory(machine, name), *_disks(name, Path(workspace).expanduser().resolve()), *_lent(machine, name), _model(name)]
    return Preflight(tuple(checks))


# --------------------------------------------------------------------------------------------- the libraries
def _needed() -> dict[str, Requirement]:
    """Name -> what this package asks of it; empty if it is not installed, only on the path."""
    try:
        found = map(Requirement, requires("gemma_colab") or [])
    except PackageNotFoundError:
        return {}
    return {requirement.name: requirement for requirement in found if requirement.marker is None}


def _libraries() -> Iterator[Check]:
    versions, needed = stack_versions(), _needed()
    found = ", ".join(f"{name} {installed}" for name, installed in versions.items())
    there = [name for name in TESTED if versions[name] != "missing"]
    right = [n for n in there if n not in needed or needed[n].specifier.contains(versions[n], prereleases=True)]
    if wrong := [name for name in TESTED if name not in right]:
        install = " ".join(f"'{needed.get(name, name)}'" for name in wrong)
        yield Check("libraries", found, FAIL, f"run `pip install {install}`, then {RESTART}")
    elif newer := [n for n in TESTED if Version(Version(versions[n]).public) > Version(TESTED[n][-1])]:
        tested = ", ".join(f"{name} {TESTED[name][-1]}" for name in newer)
        yield Check("libraries", found, WARN, f"go on; should they fail, install what was tested: {tested}")
    else:
        yield Check("libraries", found)
    loaded = {name: getattr(sys.modules.get(name), "__version__", versions[name]) for name in TESTED}
    if changed := [name for name in TESTED if loaded[name].split("+")[0] != versions[name].split("+")[0]]:
        in_use = "; ".join(f"{name} {loaded[name]} is in use, {versions[name]} is installed" for name in changed)
        yield Check("session", in_use, FAIL, RESTART)
    try:
        if Version(torchao := version("torchao")) < Version("0.16"):
            yield Check("torchao", f"{torchao} is too old for peft, which passes it over: nothing here needs it")
    except PackageNotFoundError:
        pass


# --------------------------------------------------------------------------------------------- the machine
def _gpu(machine: Machine, asked: str | None) -> Check:
    if machine.gpu:
        dtype, why = local.dtype_name(machine)
        return Check("GPU", f"{machine.gpu_gib} GiB usable; computes in {dtype}: {why}")
    if driver_gpus():
        step = (
            "install a torch with CUDA, as https://pytorch.org/get-started says, update the driver, or unset CUDA_VISIBLE_DEVICES"
        )
        return Check("GPU", f"there is one, but torch {version('torch')} can't use it", FAIL, f"{step}; then {RESTART}")
    if asked in choice.ON_A_CPU:
        return Check("GPU", f"none, and {asked} needs none")
    step = f"choose {catalog.PACKAGED if choice.packaged_here() else catalog.TINY} here, which trains in minutes, and a machine with a GPU for larger models"
    if machine.colab:
        step = "choose Runtime -> Change runtime type -> T4 GPU, and run the notebook from the top"
    elif on_kaggle():
        step = "choose GPU T4 x2 under Session options -> Accelerator, and run the notebook from the top"
    return Check("GPU", f"none; a CPU trains {' and '.join(choice.ON_A_CPU)}, for larger models it is far too slow", WARN, step)


def _other_gpus(machine: Machine) -> Iterator[Check]:
    if machine.gpu and machine.gpu_free_gib is not None and machine.gpu_free_gib < 0.9 * machine.gpu_gib:
        found = f"only {machine.gpu_free_gib} of {machine.gpu_gib} GiB are free"
        yield Check("GPU, others", found, WARN, "close other notebooks that use this GPU, or restart their sessions")
    if gpus := os.environ.get(HIDDEN):
        found = f"{gpus}; this process computes on the first one (CUDA_VISIBLE_DEVICES=0)"
        yield Check("GPUs", found, OK, "`accelerate launch` trains on all of them (docs/recipes.md)")
    elif machine.gpus > 1 and "LOCAL_RANK" not in os.environ:
        found = f"{machine.gpus}, and torch has looked at them all; one process trains on one"
        yield Check("GPUs", found, WARN, f"set CUDA_VISIBLE_DEVICES=0 before anything asks torch for a GPU, and {RESTART}")


def _training(machine: Machine, name: str, load_in_4bit: bool) -> Iterator[Check]:
    """Whether the smallest training fits, where that is known without the network, and without unpacking a GGUF file."""
    if (
        not machine.gpu
        or name.endswith(".gguf")
        or not (catalog.known_dimensions(name) or (Path(catalog.source_of(name)) / "config.json").is_file())
    ):
        return
    gib = smallest_peak(name, machine, load_in_4bit, tokens=512)
    word, bits = fits(gib, machine.gpu_gib), 4 if load_in_4bit else 16
    found = f"{name} in {bits} bit takes {gib:.1f} GiB at least (predicted: one row of 512 tokens) of {machine.gpu_gib}: {word}"
    step = (
        f"choose a smaller model{'' if load_in_4bit else ', or 4 bit'}, or a larger GPU; `gemma-colab plan` shows what fits where"
    )
    yield Check("training", found, {"fits": OK, "tight": WARN, "no": FAIL}[word], "" if word == "fits" else step)


def _memory(machine: Machine, name: str) -> Check:
    # Python with torch and CUDA, and one file of weights on its way to the GPU: the Hub's are 4.7 GiB at most. Without a GPU
    # all weights stay in memory, twice as large in float32 as they were downloaded.
    size = planner.download_gib(name) or 0
    need = 3 + (min(size, 4.7) if machine.gpu else 2 * size)
    found = f"{machine.ram_gib} GiB; loading {name} takes about {need:.0f} GiB"
    if machine.ram_gib >= need:
        return Check("memory", found)
    return Check("memory", found, WARN, "take a smaller model, or a machine with more memory")


def cached_gib(name: str) -> float:
    """Return the GiB of weights of this model that were downloaded before, all of its versions together."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    files = {path.resolve() for path in folder.glob("*/*.safetensors")}  # links, from each version
    return sum(file.stat().st_size for file in files if file.exists()) / local.GIB


def _disks(name: str, work: Path) -> Iterator[Check]:
    cache, size = constants.HF_HUB_CACHE, planner.download_gib(name)
    need, free = max(0.0, (size or 0) - cached_gib(name)), free_gib(cache)
    wants = "size not known" if size is None else f"{need:.1f} GiB to download" if need else "nothing to download"
    found, lacks = f"{free:.1f} GiB free in {cache}; {name}: {wants}", need and need + 0.5 - free
    step = f"make room for {lacks:.1f} GiB there, set HF_HOME to a folder on a larger disk and restart, or take a smaller model"
    yield Check("disk, model", found, FAIL, step) if lacks > 0 else Check("disk, model", found)
    if not os.access(existing(work), os.W_OK):
        yield Check("disk, workspace", f"{work} can't be written to", FAIL, "name a workspace that you may write to")
        return
    left = free_gib(work) - (need if existing(work).stat().st_dev == existing(cache).stat().st_dev else 0)
    step = "make room for 1 GiB there, or name a workspace on another disk"  # an adapter with checkpoints, rows and reports
    found = f"{left:.1f} GiB left in {work}"
    yield Check("disk, workspace", found, FAIL, step) if left < 1 else Check("disk, workspace", found)


def _lent(machine: Machine, name: str) -> Iterator[Check]:
    """On Colab and Kaggle: whether the work outlives the machine; and Kaggle's network, without which a notebook starts there."""
    if on_kaggle():
        step = "press Save Version, or choose Files under Session options -> Persistence"
        yield Check("Kaggle", f"{local.KAGGLE} is kept, if you say so; all else goes with this machine", OK, step)
        if _error(lambda: socket.getaddrinfo(SITE.removeprefix("https://"), 443)) is None:
            yield Check("internet", "on")
            return
        status = WARN if name in choice.ON_A_CPU or Path(name).exists() else FAIL
        step = "switch on Internet in the panel on the right, under Session options (Kaggle asks for a phone number, once)"
        yield Check("internet", "off, or the Hugging Face Hub can't be found", status, step)
    elif machine.colab and local.DRIVE.is_dir():
        yield Check("Google Drive", f"mounted: your work is kept in {local.DRIVE}")
    elif machine.colab:
        step = "run `from google.colab import drive; drive.mount('/content/drive')` in a cell before you open the workspace"
        yield Check("Google Drive", "not mounted: Colab erases this machine, and your work with it, when you leave", WARN, step)


# --------------------------------------------------------------------------------------------- the model
def _model(name: str) -> Check:
    """Whether it can be had: where from, and with which token and license."""
    if name == catalog.PACKAGED and not choice.packaged_here():
        return Check("model", f"{name} comes from PyPI, and its package is not installed", FAIL, choice.INSTALL)
    if name == catalog.PACKAGED:
        return Check("model", f"{name} comes from PyPI and is installed: no token, no account, under the Gemma terms")
    if name == catalog.TINY or Path(name).exists():
        return Check("model", f"{name} is on this machine: no token, no license, no network needed")
    error, source, size = _error(lambda: HfApi().auth_check(name)), token_source(), planner.download_gib(name)
    token = f" (token: {source})" if source else ""
    if error is None:
        return Check("model", f"{name}: yours to download{token}")
    if size and cached_gib(name) > 0.98 * size:
        return Check("model", f"{name} is downloaded already and works without the Hub")
    if source is None and local.on_colab() and "google.colab" not in sys.modules:
        return Check("model", "a command can't see Colab's secrets", WARN, "run `preflight()` of gemma_colab in a cell")
    found, step = explain(name, error)
    return Check("model", found + token, FAIL, step)


def token_source() -> str | None:
    """Name where the token comes from that huggingface_hub sends; None if it has none. Never the token itself."""
    if not get_token():
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"{name} in the environment"
    saved = Path(constants.HF_TOKEN_PATH)
    return f"the login saved in {saved}" if saved.is_file() else "the Colab secret HF_TOKEN"


def _error(question: Callable[[], object]) -> BaseException | None:
    """What asking the network raises; `TimeoutError` after `HUB_SECONDS`, for it may hang, even in looking up an address."""
    error = [TimeoutError()]

    def ask():
        try:
            question()
            error[0] = None
        except BaseException as e:
            error[0] = e

    thread = Thread(target=ask, daemon=True)  # not an executor: Python waits for its threads before it ends
    thread.start()
    thread.join(HUB_SECONDS)
    return error[0]
