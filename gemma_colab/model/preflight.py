"""What stands between this machine and a first training run, and the next step for each such thing. Takes a few seconds."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from threading import Thread
from time import monotonic

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError
from jinja2 import Environment

from gemma_colab.core.catalog import (
    INSTALL,
    ON_A_CPU,
    PACKAGED,
    TINY,
    download_gib,
    known_shape,
    packaged_here,
    pick_model,
    source_of,
)
from gemma_colab.core.hub import KAGGLES_SWITCH, NEW_TOKEN, SITE, cached_gib, explain, in_its_place, token_source, where_to_store
from gemma_colab.core.lent import DRIVE, HIDDEN, KAGGLE, driver_gpus, on_colab, on_kaggle
from gemma_colab.core.machine import TESTED, Machine, describe_machine, existing, free_gib, pick_dtype, stack_versions
from gemma_colab.model.planner import light, smallest_peak

OK, WARN, FAIL = "ok", "warn", "fail"
HUB_SECONDS = 5  # how long the Hub may take for both questions together
RESTART = (
    "restart the runtime (Colab: Runtime -> Restart session; Kaggle: Run -> Restart session) and run the notebook from the top"
)

_TABLE = Environment(autoescape=True, trim_blocks=True).from_string(
    """<p><b>{{ verdict }}</b></p><table style="text-align:left; border-collapse:collapse">
{% for check in checks %}<tr>
{% for cell in (check.status, check.what, check.found, check.next_step) %}
<td style="text-align:left; vertical-align:top; padding:4px 10px; max-width:36em">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table>"""
)


@dataclass(frozen=True)
class Check:
    """One thing looked at. status: "ok", "warn" (it works, with a drawback) or "fail". next_step: one sentence, or ""."""

    what: str
    found: str
    status: str = OK
    next_step: str = ""


@dataclass(frozen=True)
class Preflight:
    """All checks; a notebook shows them as a table, a terminal as lines."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> str:
        """The worst one."""
        return max((check.status for check in self.checks), key=(OK, WARN, FAIL).index)

    @property
    def verdict(self) -> str:
        names = ", ".join(check.what for check in self.checks if check.status == self.status)
        return {OK: "ready", WARN: f"ready, but look at: {names}", FAIL: f"not ready: {names}"}[self.status]

    def to_dict(self) -> dict:
        return {"status": self.status, "verdict": self.verdict, "checks": [dataclasses.asdict(c) for c in self.checks]}

    def __str__(self) -> str:
        width = max(len(check.what) for check in self.checks)
        lines = [self.verdict]
        for check in self.checks:
            lines.append(f"{check.status:4}  {check.what:{width}}  {check.found}")
            lines += [f"{'':{width + 8}}-> {check.next_step}"] * bool(check.next_step)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _TABLE.render(verdict=self.verdict, checks=self.checks)


def preflight(model: str | None = None, workspace: str | Path = ".", load_in_4bit: bool = True) -> Preflight:
    """Check this machine, its libraries, and whether `model` can be had; nothing is downloaded or written.

    model, load_in_4bit: as in `ModelSettings`; no model means "auto". Raises `ModelError` for a name that is not known.
    """
    libraries = [_python(), _libraries(), *_torchao(), *_changed()]
    try:
        machine = describe_machine(str(workspace))
    except Exception as e:  # a torch that doesn't fit this machine may raise anything when it is imported
        reason = f"torch can't be used ({type(e).__name__}: {e})"
        return Preflight((*libraries, Check("GPU", reason, FAIL, f"run `pip install --force-reinstall torch`, then {RESTART}")))
    name, _ = pick_model(model or "auto", machine)
    return Preflight(
        (
            *libraries,
            _gpu(machine, name if model else None),
            *_shared(machine),
            *_training(machine, name, load_in_4bit),
            _memory(machine, name),
            *_disks(name, workspace),
            *_kept(machine),
            *_internet(name),
            *_hub(name),
        )
    )


# --------------------------------------------------------------------------------------------- the machine
def _gpu(machine: Machine, name: str | None) -> Check:
    """`name`: the model that was asked for."""
    import torch

    if machine.gpu:
        dtype, why = pick_dtype(machine)
        return Check("GPU", f"{machine.gpu_gib} GiB usable; computes in {str(dtype).removeprefix('torch.')}: {why}")
    if driver_gpus():
        if torch.version.cuda is None:
            found = f"there is one, but torch {torch.__version__} is a build for CPUs"
            return Check(
                "GPU", found, FAIL, f"install a torch with CUDA, as https://pytorch.org/get-started says, then {RESTART}"
            )
        found = f"there is one, but torch {torch.__version__} can't use it: its driver is too old or it is hidden"
        return Check("GPU", found, FAIL, f"update the driver to one for CUDA {torch.version.cuda}, or unset CUDA_VISIBLE_DEVICES")
    if name in ON_A_CPU:
        return Check("GPU", f"none, and {name} needs none")
    found = f"none; a CPU trains {' and '.join(ON_A_CPU)}, for larger models it is far too slow"
    if machine.colab:
        return Check("GPU", found, WARN, "choose Runtime -> Change runtime type -> T4 GPU, and run the notebook from the top")
    if on_kaggle():
        return Check(
            "GPU", found, WARN, "choose GPU T4 x2 under Session options -> Accelerator, and run the notebook from the top"
        )
    return Check(
        "GPU",
        found,
        WARN,
        f"choose {PACKAGED if packaged_here() else TINY} here, which trains in minutes, and a machine with a GPU for larger models",
    )


def _shared(machine: Machine) -> list[Check]:
    """Others on the same GPU, and more GPUs than one."""
    checks = []
    if machine.gpu and machine.gpu_free_gib is not None and machine.gpu_free_gib < 0.9 * machine.gpu_gib:
        found = f"only {machine.gpu_free_gib} of {machine.gpu_gib} GiB are free"
        checks.append(Check("GPU, others", found, WARN, "close other notebooks that use this GPU, or restart their sessions"))
    if machine.gpus > 1 and "LOCAL_RANK" not in os.environ:
        found = f"{machine.gpus}, and torch has looked at them all; one process trains on one"
        go_on = f"set CUDA_VISIBLE_DEVICES=0 before anything asks torch for a GPU, and {RESTART}; TRL refuses to train otherwise"
        checks.append(Check("GPUs", found, WARN, go_on))
    if gpus := os.environ.get(HIDDEN):
        found = f"{gpus}; this process computes on the first one (CUDA_VISIBLE_DEVICES=0)"
        checks.append(Check("GPUs", found, OK, f"`gemma-colab launch-config ddp --gpus {gpus}` trains on all of them"))
    return checks


def _training(machine: Machine, name: str, load_in_4bit: bool) -> list[Check]:
    """Whether the smallest training fits, where the shape is known without the network, and without unpacking a GGUF file."""
    if machine.gpu is None or name.endswith(".gguf"):
        return []
    if not known_shape(name) and not (Path(source_of(name)) / "config.json").is_file():
        return []
    gib = smallest_peak(name, machine, load_in_4bit, tokens=512)
    word, bits = light(gib, machine.gpu_gib), 4 if load_in_4bit else 16
    found = f"{name} in {bits} bit takes {gib:.1f} GiB at least (predicted: one row of 512 tokens) of {machine.gpu_gib}: {word}"
    smaller = (
        f"choose a smaller model{'' if load_in_4bit else ', or 4 bit'}, or a larger GPU; `gemma-colab plan` shows what fits where"
    )
    return [Check("training", found, {"fits": OK, "tight": WARN, "no": FAIL}[word], "" if word == "fits" else smaller)]


def _memory(machine: Machine, name: str) -> Check:
    # Python with torch and CUDA, and one file of weights on its way to the GPU: the Hub's are 4.7 GiB at most. Without a GPU
    # all weights stay in memory, twice as large in float32 as they were downloaded.
    size = download_gib(name) or 0
    need = 3 + (min(size, 4.7) if machine.gpu else 2 * size)
    found = f"{machine.ram_gib} GiB; loading {name} takes about {need:.0f} GiB"
    if machine.ram_gib >= need:
        return Check("memory", found)
    return Check("memory", found, WARN, "take a smaller model, or a machine with more memory")


def _disks(name: str, workspace: str | Path) -> list[Check]:
    size, have = download_gib(name), cached_gib(name)
    need = max(0.0, (size or 0) - have)
    cache, work = Path(constants.HF_HUB_CACHE), Path(workspace).expanduser().resolve()
    free = free_gib(cache)
    wants = "size not known" if size is None else f"{need:.1f} GiB to download" if need else "nothing to download"
    found = f"{free:.1f} GiB free in {cache}; {name}: {wants}{f', {have:.1f} GiB are there' if have else ''}"
    if need and free < need + 0.5:
        make_room = f"make room for {need + 0.5 - free:.1f} GiB there, or set HF_HOME to a folder on a larger disk and restart"
        checks = [Check("disk, model", found, FAIL, f"{make_room}, or take a smaller model")]
    else:
        checks = [Check("disk, model", found)]
    left = free_gib(work)
    if existing(work).stat().st_dev == existing(cache).stat().st_dev:
        left -= need
    found = f"{left:.1f} GiB {'left' if need else 'free'} in {work}"
    if not os.access(existing(work), os.W_OK):
        checks.append(Check("disk, workspace", f"{work} can't be written to", FAIL, "name a workspace that you may write to"))
    elif left < 1:  # an adapter with its checkpoints, rows and reports
        checks.append(Check("disk, workspace", found, FAIL, "make room for 1 GiB there, or name a workspace on another disk"))
    else:
        checks.append(Check("disk, workspace", found))
    return checks


def _kept(machine: Machine) -> list[Check]:
    """Whether the work outlives a machine that is lent."""
    if on_kaggle():
        keep = "press Save Version, or choose Files under Session options -> Persistence"
        return [Check("Kaggle", f"{KAGGLE} is kept, if you say so; all else goes with this machine", OK, keep)]
    if not machine.colab:
        return []
    if DRIVE.is_dir():
        return [Check("Google Drive", f"mounted: your work is kept in {DRIVE}")]
    mount = "run `from google.colab import drive; drive.mount('/content/drive')` in a cell before you open the workspace"
    return [Check("Google Drive", "not mounted: Colab erases this machine, and your work with it, when you leave", WARN, mount)]


# --------------------------------------------------------------------------------------------- the Hub
def _internet(name: str) -> list[Check]:
    """On Kaggle, where a notebook starts without a network."""
    if not on_kaggle():
        return []
    if _error(_ask(lambda: socket.getaddrinfo(SITE.removeprefix("https://"), 443)), monotonic() + HUB_SECONDS) is None:
        return [Check("internet", "on")]
    needed = not (name in ON_A_CPU or Path(name).exists())
    return [Check("internet", "off, or the Hugging Face Hub can't be found", FAIL if needed else WARN, KAGGLES_SWITCH)]


def _hub(name: str) -> list[Check]:
    """Token and licence. Asked at once, each in a thread: a request may hang, even in looking up the Hub's address."""
    if name == PACKAGED:
        if packaged_here():
            return [Check("model", f"{name} comes from PyPI and is installed: no token, no account, under the Gemma terms")]
        return [Check("model", f"{name} comes from PyPI, and its package is not installed", FAIL, INSTALL)]
    if name == TINY or Path(name).exists():
        return [Check("model", f"{name} is on this machine: no token, no licence, no network needed")]
    source, size = token_source(), download_gib(name)
    deadline = monotonic() + HUB_SECONDS
    who, access = _ask(lambda: HfApi().whoami() if source else {}), _ask(lambda: HfApi().auth_check(name))
    who_error, access_error = _error(who, deadline), _error(access, deadline)
    if access_error is None:
        model = Check("model", f"{name}: yours to download")
    elif size and cached_gib(name) > 0.98 * size:
        model = Check("model", f"{name} is downloaded already and works without the Hub")
    else:
        what, next_step = explain(name, access_error)
        model = Check("model", what, FAIL, next_step)
    if source is None:
        gated = name.startswith("google/") or isinstance(access_error, GatedRepoError)
        return [_no_token(name, needed=gated and model.status == FAIL), model]
    if who_error is None or access_error is None:
        owner = f", of {who.result()['name']}" if who_error is None else ""
        return [Check("token", f"valid, from {source}{owner}"), model]
    what, next_step = explain(name, who_error)
    if what == model.found:  # the same trouble: say it once
        return [dataclasses.replace(model, what="token, model")]
    return [Check("token", f"from {source}; {what}", WARN, next_step), model]


def _no_token(name: str, needed: bool) -> Check:
    if not needed:
        return Check("token", "none; a public or downloaded model needs none")
    if on_colab() and "google.colab" not in sys.modules:
        return Check(
            "token", "a command can't see Colab's secrets", WARN, "run `preflight()` of gemma_colab.model.preflight in a cell"
        )
    return Check("token", "none", FAIL, f"{NEW_TOKEN}, and {where_to_store()}; or {in_its_place(name)}")


def _ask(question: Callable[[], object]) -> Future:
    answer = Future()

    def run():
        try:
            answer.set_result(question())
        except BaseException as e:
            answer.set_exception(e)

    Thread(target=run, daemon=True).start()  # not an executor: Python waits for its threads before it ends
    return answer


def _error(answer: Future, deadline: float) -> BaseException | None:
    try:
        return answer.exception(timeout=max(0, deadline - monotonic()))
    except TimeoutError as e:
        return e


# --------------------------------------------------------------------------------------------- the libraries
def _numbers(version: str) -> tuple[int, ...]:
    """ "2.11.0+cu128" -> (2, 11, 0)."""
    return tuple([*map(int, re.findall(r"\d+", version.split("+")[0])), 0, 0, 0][:3])


def _allowed(version: str, bounds: str) -> bool:
    """Whether a version lies within ">=2.8,<3"; requirements.txt has bounds of these two kinds only, as a test says."""
    for sign, bound in re.findall(r"(>=|<)\s*([\d.]+)", bounds):
        if (_numbers(version) >= _numbers(bound)) != (sign == ">="):
            return False
    return True


def _requirements() -> dict[str, str]:
    """Name -> bounds, of "python" and the libraries; empty if this package is not installed, only on the path."""
    try:
        found = metadata("gemma_colab")
    except PackageNotFoundError:
        return {}
    lines = [line for line in found.get_all("Requires-Dist") or [] if ";" not in line]
    return {"python": found["Requires-Python"]} | dict(re.match(r"([\w.-]+)\s*(.*)", line).groups() for line in lines)


def _python() -> Check:
    version, bounds = platform.python_version(), _requirements().get("python", "")
    if _allowed(version, bounds):
        return Check("python", version)
    return Check("python", f"{version}; this project needs {bounds}", FAIL, f"install a Python {bounds} and start again with it")


def _libraries() -> Check:
    versions, bounds = stack_versions(), _requirements()
    wrong = [name for name in TESTED if versions[name] == "missing" or not _allowed(versions[name], bounds.get(name, ""))]
    if wrong:
        found = ", ".join(f"{name} {versions[name]} (needed: {bounds.get(name, 'any')})" for name in wrong)
        install = " ".join(f"'{name}{bounds.get(name, '')}'" for name in wrong)
        return Check("libraries", found, FAIL, f"run `pip install {install}`, then {RESTART}")
    untested = [name for name in TESTED if versions[name].split("+")[0] not in TESTED[name]]
    found = ", ".join(
        f"{name} {versions[name]}" + (f" (tested: {', '.join(TESTED[name])})" if name in untested else "") for name in TESTED
    )
    if newer := [name for name in untested if _numbers(versions[name]) > _numbers(TESTED[name][-1])]:
        go_on = f"go on, they should do; should {', '.join(newer)} fail, install the version that was tested"
        return Check("libraries", found, WARN, go_on)
    return Check("libraries", found)  # an older one within the requirements, such as Colab's torch, is no reason to worry


def _torchao() -> list[Check]:
    """Whether there is one that peft would stumble over. Imports neither: they may be what is broken."""
    try:
        found = version("torchao")
    except PackageNotFoundError:
        return []
    check = Check("torchao", f"{found} is too old for peft, which passes it over: nothing here needs it")
    return [check] * (_numbers(found) < (0, 16))


def _changed() -> list[Check]:
    """Libraries that were installed anew after this session had imported them."""
    changed = []
    for name, installed in stack_versions().items():
        loaded = getattr(sys.modules.get(name), "__version__", installed)
        if _numbers(loaded) != _numbers(installed):
            changed.append(f"{name} {loaded} is in use, {installed} is installed")
    return [Check("session", "; ".join(changed), FAIL, RESTART)] * bool(changed)
