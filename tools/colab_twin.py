"""In the twin of Colab (tools/colab_twin.sh): the install cell, then every notebook as a learner opens it there, alone on an empty
disk, then the tests that depend on versions. Ends with 1 when anything there is not as it should be."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import distributions
from pathlib import Path

import nbformat
from colab_check import UNTOUCHED
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.utils import canonicalize_name

REPO, CONTENT, DRIVE = Path("/repo"), Path("/content"), Path("/content/drive/MyDrive/gemma_colab")
# What Colab's kernel imports when it starts, by the source of its google.colab. pandas is not among it: that would load pyarrow, too.
AT_START = "import google.colab, IPython, PIL, anywidget, ipywidgets, numpy, packaging, psutil, requests, tornado, traitlets"
IN_USE = """import json, sys, importlib.metadata as metadata
print(json.dumps(sorted({d for top, ds in metadata.packages_distributions().items() if top in sys.modules for d in ds})))"""
# What meets other versions here: Gemma 3 and its training, tables and files, panels, and what is asked of the Hub.
TESTS = """test_model test_training test_generation test_export test_reading test_ui test_live test_settings_panels test_train_panel
test_review_panel test_chat_panel test_blind test_hub test_hub_push test_preflight test_lent test_unpack""".split()
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "playwright", "gguf", "packaging")


def versions() -> dict[str, str]:
    return {canonicalize_name(d.name): d.version for d in distributions()}


def complaints() -> set[str]:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines()) if done.returncode else set()


def execute(cells: list[str] | Path, **environment: str) -> tuple[list[str], float]:
    """Run a notebook in a kernel of its own, in /content; returns what its code cells printed, and seconds."""
    if isinstance(cells, Path):
        notebook = nbformat.read(cells, as_version=4)
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    start = time.monotonic()
    where = {"metadata": {"path": str(CONTENT)}}
    dot = lambda **_: print(".", end="", flush=True)  # noqa: E731  # one a cell
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, on_cell_executed=dot)
    client.execute(env=os.environ | {"GEMMA_COLAB_MODEL": "tiny-gemma3", "PYDEVD_DISABLE_FILE_VALIDATION": "1"} | environment)
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    # What fails while it is displayed stops no cell.
    if errors := [output.evalue for cell in outputs for output in cell if output.output_type == "error"]:
        raise RuntimeError(f"among the outputs: {errors}")
    printed = ["".join(output.get("text", "") for output in cell if output.output_type == "stream") for cell in outputs]
    return printed, time.monotonic() - start


def install() -> list[str]:
    """Run the install cell twice in a kernel that has Colab's own imports behind it; returns what is wrong afterwards."""
    before, grumbles = versions(), complaints()
    notebook = nbformat.read(REPO / "notebooks" / "00_quickstart.ipynb", as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    clock = "import time; start = time.monotonic()", "print(time.monotonic() - start)"
    printed, _ = execute([AT_START, IN_USE, clock[0], cell, clock[1], clock[0], cell, clock[1]])
    after = versions()
    print(f"\nthe install cell, {float(printed[4]):.0f} s:\n{printed[3]}a second time, {float(printed[7]):.1f} s:\n{printed[6]}")
    changed = {name for name in before if after.get(name) != before[name]}
    loaded = set(map(canonicalize_name, json.loads(printed[1])))
    wrong = [f"{name} must stay as it is" for name in UNTOUCHED if name in changed]
    wrong += [f"{name} was in use and is another one now: a restart would be needed" for name in sorted(changed & loaded)]
    wrong += [f"pip check: {line}" for line in sorted(complaints() - grumbles)]
    return wrong + ["the second time changed something"] * ("Installed" in printed[6])


def learn(name: str) -> tuple[str, str]:
    """Run one of the series with nothing from another before it; returns what went well, and what did not."""
    # The Drive holds what the quick start and lesson 05 leave; each of the others has an empty folder of its own.
    own = {} if name[:2] in ("00", "05") else {"GEMMA_COLAB_WORKSPACE": str(CONTENT / name)}
    try:
        printed, seconds = execute(REPO / "notebooks" / f"{name}.ipynb", OMP_NUM_THREADS="1", **own)
    except (CellExecutionError, RuntimeError) as e:
        return f" {name} stopped", f"{name}: {e}"
    # It says what is missing before it makes it.
    silent = name[:2] in ("02", "04", "05", "06") and "Notebook 01 has not run in this workspace" not in "".join(printed)
    return f" {name}, {seconds:.0f} s", f"{name}: not a word on what is missing" * silent


def main() -> int:
    wrong = install()
    order = ["05", "04", "00", "06", "02", "03", "01"]  # the longest first
    series = sorted((path.stem for path in (REPO / "notebooks").glob("0*.ipynb")), key=lambda name: order.index(name[:2]))
    with ProcessPoolExecutor(2) as pool:  # a core each
        for done in as_completed([pool.submit(learn, name) for name in series]):
            said, failure = done.result()
            print(said, flush=True)
            wrong += [failure] * bool(failure)
    # Without an account this is what the lessons train there; here only its unpacking is tried, for the time it takes.
    try:
        _, seconds = execute(["from gemma_colab.core.catalog import source_of; print(source_of('gemma-3-270m'))"])
        print(f" the real 270M is unpacked, {seconds:.0f} s", flush=True)
    except (CellExecutionError, RuntimeError) as e:
        wrong.append(f"gemma-3-270m: {e}")
    wrong += [f"{name} is not on the Drive" for name in ("quickstart/report.html", "report.html") if not (DRIVE / name).exists()]
    print("\n".join(["", *wrong]) if wrong else "the install cell and all notebooks: as they should be", flush=True)
    pins = CONTENT / "pins.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in versions().items() if name != "gemma-colab"))
    tools = ["uv", "pip", "install", "-q", "--python", sys.executable, "-c", pins, *TEST_TOOLS]
    subprocess.run(tools, check=True)
    tests = [f"tests/{name}.py" for name in TESTS] + ["tests/browser"]
    # None of these tests may be skipped. What Colab lacks (Go, llama.cpp, lm_eval, a server, accelerate 1.15), only others need.
    env = {name: value for name, value in os.environ.items() if name != "COLAB_RELEASE_TAG"}
    env |= {"OMP_NUM_THREADS": "1", "NO_SKIPS": "1"}

    def test(*options: str) -> int:
        command = [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider", *options]
        return subprocess.run(command, cwd=REPO, env=env, check=False).returncode

    # It wants sentencepiece 0.2.3 and protobuf 7 (pyproject.toml, pretrain), which nobody needs on Colab.
    built = "tests/test_model.py::test_the_script_that_built_it_still_works"
    side_by_side = ["--deselect", built, "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    failed = test(*side_by_side, "-m", "(learner or not long) and not plain_peft", "--durations=10", *tests)
    # What the cards of our models tell a reader on Colab to do.
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchao"], check=True)
    failed += test("-m", "plain_peft", "tests/test_export.py", "tests/test_hub_push.py")
    return int(bool(wrong or failed))


if __name__ == "__main__":
    sys.exit(main())
