"""A lost session, rehearsed: a run in another process, which is killed without a warning."""

import atexit
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tqdm.auto import tqdm

from gemma_colab.core.errors import say
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import save_rows
from gemma_colab.training.checkpoints import whole_checkpoints


def killed_run(
    chosen: ModelSettings, rows: Sequence[dict], eval_rows: Sequence[dict], settings: TrainSettings, lora: LoraSettings, step: int
) -> Workspace:
    """Train on these rows in a process and a workspace of their own, kill the process as soon as the checkpoint of `step` is whole (or
    see it end before), and return the workspace: what a lost session leaves. The process loads the model once more, into memory of its own.
    """
    workspace = Workspace(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, workspace.path, ignore_errors=True)  # the rows in it may be somebody's own
    save_rows({"train": [*rows], "validation": [*eval_rows], "test": []}, workspace)
    for part in (chosen, settings, lora):
        part.save(workspace)
    command = [sys.executable, "-m", "gemma_colab", "train", "--workspace", workspace.path]
    bar = tqdm(desc="a second process loads the model and trains", bar_format="{desc}: {elapsed}", leave=False)
    with bar, tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None and not any(
            whole.step >= step for whole in whole_checkpoints(workspace.path / "checkpoints")
        ):
            time.sleep(0.1)
            bar.refresh()
        process.kill()  # SIGKILL: it is told nothing, and saves nothing more
        code = process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace")
    say(f"The second process was killed: its exit code is {code}." if code < 0 else f"The second process ended by itself: {said}")
    return workspace
