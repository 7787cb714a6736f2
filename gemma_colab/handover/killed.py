"""A lost session, rehearsed: a run in another process, which is killed without a warning."""

import atexit
import shutil
import subprocess
import sys
import tempfile
import time

from tqdm.auto import tqdm

from gemma_colab.core.errors import say
from gemma_colab.core.rows import Row
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import SOURCE, UNNAMED, save_rows
from gemma_colab.training.checkpoints import whole_checkpoints


def killed_run(rows: dict[str, list[Row]], whose: dict, *settings: ModelSettings | TrainSettings | LoraSettings) -> Workspace:
    """Train on these rows (whose: of `saved_source`) in a process and a workspace of their own, kill the process as soon as a checkpoint is
    whole (or see it end before), and return the workspace: what a lost session leaves. It is deleted when this program ends."""
    workspace = Workspace(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, workspace.path, ignore_errors=True)
    save_rows({"test": []} | rows, workspace)
    workspace.write_json(f"rows/{SOURCE}", UNNAMED | whose)
    for part in settings:
        part.save(workspace)
    command = [sys.executable, "-P", "-m", "gemma_colab", "train", "--workspace", workspace.path]
    bar = tqdm(desc="a second process loads the model and trains", bar_format="{desc}: {elapsed}", leave=False)
    with bar, tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None and not whole_checkpoints(workspace.path / "checkpoints"):
            time.sleep(0.1)
            bar.refresh()
        process.kill()  # SIGKILL: it is told nothing, and saves nothing more
        code = process.wait()
        log.seek(0)
        said = log.read().decode(errors="replace")
    say(f"The second process was killed: its exit code is {code}." if code < 0 else f"The second process ended by itself: {said}")
    return workspace
