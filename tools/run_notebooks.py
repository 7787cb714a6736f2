"""Execute the notebooks in order, each in a fresh kernel, in one workspace; show where it is; sum it all up.

    python tools/run_notebooks.py --workspace runs/demo --model tiny-gemma3 [--beside] [--only 04_train]

Leaves in the workspace: notebooks/*.ipynb as executed, report.html, loss_curve.png, summary.json; and quickstart/ with the same of
notebook 00. A run that was cut off goes on at the notebook where it stopped: `demo.json` says which are done. Any other run that is
there, and a notebook in it whose cells are not those that run now, is moved aside first, to a name with a number, and never deleted.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from gemma_colab.core.workspace import SPLIT_FILES, WRITTEN, Workspace

ROOT = Path(__file__).resolve().parent.parent
DONE = "demo.json"  # also the mark by which a run knows a folder as an earlier run's
# All that a run leaves, by its first name: where something else lies, nothing is touched.
OWN = {DONE, *WRITTEN, *"cache checkpoints checkpoints-before notebooks plain quickstart workspace.json".split()}
# With --beside: those that may come later than the others, and for which one a notebook waits if that is in another row.
BESIDE, NEEDS = {"00", "02", "06"}, {"02": "01", "05": "02", "06": "04"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


class PeakMemory(threading.Thread):
    """Highest resident memory of this process and its children together, sampled five times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.stop = 0, threading.Event()

    def run(self):
        me = psutil.Process()
        while not self.stop.wait(0.2):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


class Progress:
    """One line a notebook: which cell, how many seconds. On a terminal it moves in place, unless two notebooks run side by side."""

    def __init__(self, name: str, cells: int, alone: bool):
        self.name, self.cells, self.done, self.start = name, cells, 0, time.monotonic()
        self.moves = alone and sys.stdout.isatty()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)
        self.thread.start()

    def cell_executed(self, **_):
        self.done += 1

    def _line(self):
        return f"{self.name:<16} cell {self.done:>2} of {self.cells}  {time.monotonic() - self.start:6.1f} s"

    def _tick(self):
        while not self.stop.wait(0.5 if self.moves else 10):
            print(self._line(), end="\r" if self.moves else "\n", flush=True)

    def finish(self) -> float:
        self.stop.set()
        self.thread.join()
        print(self._line(), flush=True)
        return round(time.monotonic() - self.start, 1)


def run_notebook(path: Path, workspace: Path, alone: bool = True, patient: bool = False) -> float:
    """Execute one notebook and keep it, with its outputs, in the workspace, whether or not it fails; returns seconds."""
    with tempfile.TemporaryDirectory() as neutral:  # a kernel imports what its folder holds: a pandas.py in a workspace would run
        return _run(path, workspace, neutral, alone, patient)


def _run(path: Path, workspace: Path, cwd: str, alone: bool, patient: bool) -> float:
    notebook = nbformat.read(path, as_version=4)
    progress = Progress(path.stem, sum(cell.cell_type == "code" for cell in notebook.cells), alone)
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": cwd}},
        on_cell_executed=progress.cell_executed,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no word on how it talks to us, on this machine alone
    )
    env = os.environ | {"GEMMA_COLAB_WORKSPACE": str(workspace), "TOKENIZERS_PARALLELISM": "false"}
    env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else each kernel warns that its debugger may miss breakpoints
    if patient:
        client.on_notebook_start = lambda **_: _after_all_others(client.km.provisioner.pid)
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // 2))
    try:
        client.execute(env=env)
    finally:
        seconds = progress.finish()
        ws = Workspace(workspace)
        if (there := ws.own("notebooks") / path.name).exists() and not _same_cells(there, notebook):
            move_aside(there)
        ws.write_text(f"notebooks/{path.name}", nbformat.writes(notebook))
    return seconds


def _same_cells(path: Path, notebook: nbformat.NotebookNode) -> bool:
    """Whether nobody wrote anything into the notebook there: all but its outputs is the same."""
    with suppress(Exception):  # where it is no notebook; nbformat raises many
        here, there = ([(c.cell_type, c.source) for c in one.cells] for one in (notebook, nbformat.read(path, as_version=4)))
        return here == there
    return False


def move_aside(path: Path) -> None:
    """Give what is there a free name with a number: somebody may have put work of his own into it."""
    aside = next(free for n in count(1) if not (free := path.with_name(f"{path.stem}-{n}{path.suffix}")).exists())
    path.rename(aside)
    print(f"what was in {path} is now in {aside}; delete it when you no longer need it", flush=True)


def _after_all_others(pid: int) -> None:
    """Let a process wait while another wants the core: the threads of a notebook that share their cores wait for one another."""
    psutil.Process(pid).nice(19)
    with suppress(OSError):  # not everywhere; a kernel has a session of its own, and Linux may weigh sessions, not processes
        Path(f"/proc/{pid}/autogroup").write_text("19")


def _still_good(done: dict, model: str | None) -> dict[str, float]:
    """Notebook -> seconds, of a run with this model that was cut off: those before the first that wasn't run, or was changed since.
    The quick start has a workspace of its own, so nothing depends on it."""
    good = {}
    for path in NOTEBOOKS if not done.get("complete", True) and done["model"] == model else []:
        if done["done"].get(path.stem) == _checksum(path) and path.stem in done["seconds"]:  # else a spoilt mark
            good[path.stem] = done["seconds"][path.stem]
        elif not path.stem.startswith("00"):
            break
    return good


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--model", help="what the notebooks choose where the machine decides, as GEMMA_COLAB_MODEL")
    parser.add_argument(
        "--beside", action="store_true", help="run 00, 02 and 06 beside the others, on what those leave of the cores"
    )
    parser.add_argument("--only", help="run only the notebooks whose name starts so, in the workspace as it is")
    args = parser.parse_args()
    workspace = args.workspace.resolve()
    if args.model:
        os.environ["GEMMA_COLAB_MODEL"] = args.model
    seconds, done, peak = {}, {}, 0.0
    if not args.only and workspace.exists() and any(workspace.iterdir()):
        ws = Workspace(workspace)
        strange = sorted(path.name for path in workspace.iterdir() if path.name not in OWN)
        before = None if strange or not ws.has(DONE) else ws.read_json(DONE)
        if (
            not isinstance(before, dict)
            or not {"model", "complete"} <= before.keys()
            or not all(isinstance(before.get(name), dict) for name in ("done", "seconds"))
        ):
            print(
                f"--workspace {workspace} holds {strange[0] if strange else 'files'} of no earlier run; name a new folder",
                file=sys.stderr,
            )
            return 2
        if seconds := _still_good(before, args.model):
            done, peak = {name: before["done"][name] for name in seconds}, before.get("peak_memory_gib", 0.0)
            print(f"going on with the run that was cut off; done: {', '.join(seconds)}")
        else:
            try:
                move_aside(workspace)
            except OSError as e:  # a disk of its own, say
                print(f"--workspace {workspace} can't be moved aside ({e.strerror}); name a new folder", file=sys.stderr)
                return 2
    ws = Workspace(workspace)
    # The first kernel makes any folder a workspace, in which what is there may be replaced.
    if args.only and ws.has("notebooks") and not any(map(ws.has, ("workspace.json", *SPLIT_FILES))):
        print(f"--workspace {workspace} holds notebooks of no earlier run; name a new folder", file=sys.stderr)
        return 2
    memory = PeakMemory()
    memory.start()

    def note(complete: bool) -> None:
        state = {"model": args.model, "complete": complete, "done": done, "seconds": seconds, "peak_memory_gib": peak}
        ws.write_json(DONE, state)

    if not args.only:
        note(False)
    paths = [p for p in NOTEBOOKS if p.stem.startswith(args.only or "") and p.stem not in seconds]
    lanes = [[path for path in paths if args.beside and path.stem[:2] in BESIDE]]
    lanes.append([path for path in paths if path not in lanes[0]])
    over = {path.stem[:2]: threading.Event() for path in paths}

    def run_all(some: list[Path], patient: bool) -> None:
        nonlocal peak
        for path in some:
            if args.beside and (needed := over.get(NEEDS.get(path.stem[:2]))):
                needed.wait()
            if failed:
                return
            done_with = _checksum(path)  # it may be changed while it runs
            try:
                took = run_notebook(path, workspace, not all(lanes), patient)
            except BaseException as e:
                failed.append(path)
                for event in over.values():  # nobody waits for what doesn't come
                    event.set()
                if not isinstance(e, (CellExecutionError, CellTimeoutError, DeadKernelError)):
                    raise
                # an error, an hour in a cell, or no memory left
                print(f"\n{path.stem} stopped ({type(e).__name__}):\n{e}", file=sys.stderr)
                return
            with lock:
                seconds[path.stem], done[path.stem] = took, done_with
                peak = max(peak, round(memory.peak / 2**30, 2))
                if not args.only:
                    note(False)
            over[path.stem[:2]].set()

    lock, begin, failed = threading.Lock(), time.monotonic(), []
    with ThreadPoolExecutor() as pool:
        [*pool.map(run_all, lanes, [all(lanes), False])]
    if failed:
        return 1
    memory.stop.set()
    memory.join()
    if args.only:  # the cost is of a whole run
        return 0
    note(True)
    if not ws.has("summary.json"):
        return 0
    total = time.monotonic() - begin if args.beside and len(paths) == len(seconds) else sum(seconds.values())
    cost = {"seconds": seconds | {"total": round(total, 1)}, "peak_memory_gib": peak}
    quick = {"quickstart": ws.read_json("quickstart/summary.json")} if ws.has("quickstart/summary.json") else {}
    path = ws.write_json("summary.json", ws.read_json("summary.json") | cost | quick)
    print(json.dumps(cost, indent=1))
    print(f"\nReports: {ws.path / 'quickstart' / 'report.html'}, {ws.path / 'report.html'}\nFigures: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
