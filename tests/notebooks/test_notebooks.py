"""Each notebook is well-formed, runs alone in an empty folder, and all run in sequence to the result we promise."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
NAMES = ["00_quickstart", "01_dataset_prep", "02_load_model", "03_lora", "04_train", "05_evaluate"]
sys.path.insert(0, str(ROOT / "tools"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook) -> str:
    """All code of a notebook as Python: lines with a magic are left out."""
    cells = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return "\n".join(line for source in cells for line in source.splitlines() if not line.lstrip().startswith("%"))


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_well_formed(path):
    notebook = read(path)
    nbformat.validate(notebook)
    metadata = notebook.metadata
    assert metadata["language_info"]["name"] == "python"  # ruff passes a notebook without it unread
    assert "widgets" not in metadata  # GitHub and Colab would say "Invalid Notebook"
    assert (metadata["accelerator"], metadata["colab"]["gpuType"]) == ("GPU", "T4")
    assert path.stat().st_size < 300_000
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "colab-badge.svg" in notebook.cells[0].source
    assert f"notebooks/{path.name})" in notebook.cells[0].source
    for part in ("**Goal**", "**Needs**", "**Comes in**", "**Goes out**", "**Predict"):
        assert part in prose, part
    if path.stem == "00_quickstart":  # no lesson: it names, for each of its cells, the lesson and the command that do the same
        assert all(f"esson{word}" in prose for word in ("s 01 and 02", " 01 ", "s 03 and 04", " 05 "))
        assert {f"`gemma-colab {name}" for name in ("doctor", "prepare", "train", "evaluate", "export")} <= set(
            re.findall(r"`gemma-colab \w+", prose)
        )
        return
    for part in ("## Five questions", "## Two exercises"):
        assert part in prose, part
    assert prose.count("<details><summary>Solution</summary>") == 2
    questions, answers = (
        prose.split("## Five questions")[1].split("## Two exercises")[0].split("<details><summary>Answers</summary>")
    )
    for part in (questions, answers):
        assert [line[:3] for line in part.splitlines() if line[:2].rstrip(".").isdigit()] == [f"{i}. " for i in range(1, 6)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_and_prose_is_never_far(path):
    in_a_row, kept = 0, 0
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            in_a_row = 0
            continue
        in_a_row += 1
        assert in_a_row <= 2, cell.source
        assert len(cell.source.splitlines()) <= 25, cell.source
        keep = "keep_output" in cell.metadata.get("tags", [])
        kept += keep
        assert keep or not cell.outputs, cell.source
        assert cell.execution_count is None or keep
    assert 1 <= kept <= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kept_outputs_are_there_and_clean(path):
    for cell in read(path).cells:
        if "keep_output" in cell.metadata.get("tags", []):
            assert cell.outputs, f"{path.stem}: run `make outputs` after `make demo`"
            text = json.dumps(cell.outputs)
            assert "Traceback" not in text
            assert str(ROOT) not in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_keywords_exist_in_the_installed_libraries(path):
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    classes = {c.__name__: set(inspect.signature(c).parameters) for c in (SFTConfig, LoraConfig, BitsAndBytesConfig, SFTTrainer)}
    for node in ast.walk(ast.parse(code_of(read(path)))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in classes:
            unknown = {k.arg for k in node.keywords} - classes[node.func.id] - {None}
            if node.func.id == "BitsAndBytesConfig":
                continue  # it takes **kwargs and drops unknown ones
            assert not unknown, node.func.id


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_nothing_hides_in_the_imports(path):
    for node in ast.walk(ast.parse(code_of(read(path)))):
        if isinstance(node, ast.ImportFrom):
            assert [alias.name for alias in node.names] != ["*"]


def test_notebook_01_imports_no_torch_before_the_tokenizer(tmp_path):
    code = code_of(read(NOTEBOOKS[1]))
    before, found, _ = code.partition("from transformers import AutoTokenizer")
    assert found
    check = "\nimport sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = os.environ | {"GEMMA_COLAB_WORKSPACE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", before + check], env=environment, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr


def test_the_runner_never_empties_a_strangers_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    command = [sys.executable, ROOT / "tools" / "run_notebooks.py", "--workspace", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


PLANTED = "hf_" + 17 * "Pl"  # a token that must not be found in anything that the demo leaves


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "tools" / "run_notebooks.py", "--workspace", workspace]
    subprocess.run(command, check=True, env=os.environ | {"MPLBACKEND": "", "HF_TOKEN": PLANTED})
    return workspace


def test_demo_keeps_its_promises(demo):
    summary = json.loads((demo / "summary.json").read_text())
    loss = summary["loss"]["test"]
    assert loss["tuned"] <= 0.5 * loss["base"]
    metrics = {line["metric"]: line for line in summary["tuned_against_base"]}
    assert metrics["loss on right answers"]["high"] < 0
    assert metrics["right order number"]["after"] >= 0.6
    assert metrics["right order number"]["rows"] >= 15
    assert len(summary["forgetting"]) == 4
    assert summary["verdict"]["ship"] != "ask a reader"  # such answers must not pass
    assert summary["exit_ramp_largest_loss_difference"] < 1e-3
    assert summary["peak_memory_gib"] <= 4
    assert set(summary["seconds"]) == {*NAMES, "total"}
    quick = {line["metric"]: line for line in summary["quickstart"]["tuned_against_base"]}
    assert quick["valid JSON"]["after"] >= 0.9
    assert quick["valid JSON"]["rows"] >= 75
    assert quick["all fields"]["before"] == 0
    assert [line["metric"] for line in summary["quickstart"]["tuned_against_few_shot"]] == list(quick)
    assert summary["versions"]["trl"] != "missing"


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    import run_notebooks

    cells = {"00_a": "print('a', file=open('ran', 'a'))", "01_b": "open('missing')", "02_c": "print('c', file=open('ran', 'a'))"}
    for name, source in cells.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    work = tmp_path / "work"
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", sorted(tmp_path.glob("*.ipynb")))
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--workspace", str(work), "--model", "tiny-gemma3"])
    assert run_notebooks.main() == 1
    assert (work / "ran").read_text() == "a\n"
    (work / "missing").touch()
    assert run_notebooks.main() == 0
    assert (work / "ran").read_text() == "a\nc\n"  # the first one did not run again
    assert "going on with the run that was cut off; done: 00_a\n" in capsys.readouterr().out
    # a notebook that was changed since runs again, and so does what follows it; so does everything for another model
    (work / "demo.json").write_text(json.dumps(json.loads((work / "demo.json").read_text()) | {"complete": False}))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "01_b.ipynb")
    assert run_notebooks.main() == 0
    assert (work / "ran").read_text() == "a\nc\nc\n"
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "gemma-3-270m"])
    (tmp_path / "01_b.ipynb").unlink()
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", sorted(tmp_path.glob("*.ipynb")))
    assert run_notebooks.main() == 0
    assert (work / "ran").read_text() == "a\nc\n"


def test_demo_leaves_what_the_readme_says(demo):
    ran = {path.stem: read(path) for path in (demo / "notebooks").glob("*.ipynb")}
    assert set(ran) == set(NAMES)
    for notebook in ran.values():  # what fails while it is displayed stops no cell
        assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
    for name in (
        "report.html",
        "loss_curve.png",
        "summary.json",
        "adapter/adapter_model.safetensors",
        "merged/model.safetensors",
        "quickstart/report.html",
        "quickstart/summary.json",
        "quickstart/merged/model.safetensors",
    ):
        assert (demo / name).stat().st_size > 1000, name
    assert not list(demo.rglob("*.part"))


def test_demo_proves_what_it_exports(demo):
    export = json.loads((demo / "export.json").read_text())
    assert export["same"] is True
    assert [line["form"] for line in export["parity"]] == ["adapter on the 4-bit base", "adapter on the 16-bit base", "merged"]
    assert export["sentence"] in (demo / "report.html").read_text()
    assert "Taken home" in (demo / "report.html").read_text()
    card = (demo / "merged" / "README.md").read_text()
    assert "# tiny-gemma3, tuned" in card
    assert "loss on right answers" in card  # the evaluation, which notebook 05 wrote before it exported
    assert (demo / "ollama" / "Modelfile").read_text().startswith("FROM ")


def test_no_token_is_left_behind(demo):
    for path in demo.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path
