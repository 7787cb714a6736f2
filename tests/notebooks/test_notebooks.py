"""Each notebook is well-formed, runs alone in an empty folder, and all run in sequence to the result we promise."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace, samples
from gemma_colab.evaluation import evaluate
from gemma_colab.evaluation.candidates import Evaluation
from gemma_colab.handover.rows import save_rows
from gemma_colab.model import memory_plan
from gemma_colab.training import settings_for, token_lengths
from gemma_colab.training.short import Trial

SAMPLE = samples() / "support_ru_raw.csv"
ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
NAMES = ["00_quickstart", "01_dataset_prep", "02_load_model", "03_lora", "04_train", "05_evaluate", "06_exit_ramp"]
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
        assert all(f"esson{word}" in prose for word in (" 01 ", " 02 ", " 03 ", "s 03 and 04", " 05 "))
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
    assert sum(cell.cell_type == "code" for cell in read(path).cells) <= 18
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            in_a_row = 0
            continue
        in_a_row += 1
        assert in_a_row <= 2, cell.source
        assert len(cell.source.splitlines()) <= 12 or cell.source.startswith("# On Colab and Kaggle"), cell.source
        keep = "keep_output" in cell.metadata.get("tags", [])
        kept += keep
        assert keep or not cell.outputs, cell.source
        assert cell.execution_count is None or keep
    assert 1 <= kept <= 14  # what the text speaks of is there to be seen; the size of a notebook is held elsewhere


def test_notebook_05_reads_test_rows_once_says_when_to_ship_and_ends_with_the_merged_model():
    cells = [cell.source for cell in read(NOTEBOOKS[5]).cells if cell.cell_type == "code"]
    assert [source.count('rows["test"]') for source in cells if 'rows["test"]' in source] == [2]
    assert "result = evaluate(" in next(source for source in cells if 'rows["test"]' in source)
    prose = "\n".join(cell.source for cell in read(NOTEBOOKS[5]).cells if cell.cell_type == "markdown")
    assert re.findall(r"^\| (no|not yet|ask a reader|yes) \|", prose, re.MULTILINE) == ["no", "not yet", "ask a reader", "yes"]
    assert 'workspace.path / "merged"' in cells[-1]
    assert "gemma_colab" not in cells[-1]


@pytest.mark.parametrize("own", [True, False])
def test_the_checks_of_the_shop_are_for_its_own_sample_only(own, workspace, support_rows):
    rows = support_rows[:12]
    save_rows({"train": rows[:4], "validation": rows[4:8], "test": rows[8:]}, workspace, None if own else SAMPLE)
    answers = pd.DataFrame({"answer": [row["messages"][-1]["content"] for row in rows[8:]]})
    result = Evaluation(rows[8:], {"base": answers, "tuned": answers})
    exec(cell_with(5, "def right_order_number"), names := {"workspace": workspace, "result": result, "pd": pd})
    exec(cell_with(5, "def full_stop"), names)
    mine = {"full stop"} if own else {"right order number", "house tone"}
    assert result.metrics.keys() - {"exact match", "token F1", "ROUGE-L", "chrF"} == mine
    assert names["MATTERS"] == ["full stop" if own else "right order number", "chrF"]


def test_notebook_04_is_18_cells_of_12_lines():
    cells = [cell.source for cell in read(NOTEBOOKS[4]).cells if cell.cell_type == "code"]
    assert len(cells) <= 18
    assert max(len(source.splitlines()) for source in cells[1:]) <= 12  # the first installs, and is the same everywhere


def test_the_experiments_of_notebook_04_touch_no_test_row(support_rows, monkeypatch):
    """Nor anything like one; where the rows are the learner's own, the shop's are compared all the same."""
    from gemma_colab.data import clean, read_rows, split_rows
    from gemma_colab.handover.experiments import apart

    splits, told = split_rows(support_rows)[0], []
    for rows in (splits, {"train": [], "validation": [], "test": []}):

        def compare_sets(model, tokenizer, sets, held, settings, lora, dtype, rows=rows, apart_from=(), **how):
            trained, tested = ([row["messages"] for row in rows[name]] for name in ("train", "test"))
            assert len(held) == 16
            assert not [row for row in held if row["messages"] in tested + trained]
            assert list(apart_from) == rows["test"]
            cleaned = {n: clean(some[0], also=some[1])[0] if isinstance(some, tuple) else some for n, some in sets.items()}
            told.append({name: len(apart(some, [*held, *apart_from])) for name, some in cleaned.items()})
            return ["a table"]

        names = {"rows": rows, "tiny": False, "samples": samples, "read_rows": read_rows, "compare_sets": compare_sets}
        names |= {"how": {"lora": None, "dtype": None}, "model": None, "tokenizer": None, "base": TrainSettings()}
        exec(cell_with(4, "as exported"), names)
        exec(cell_with(4, "many poor rows"), names)
    for states, few in (told[:2], told[2:]):
        assert list(states) == ["as exported", "cleaned by a program", "reviewed"]
        assert min(states.values()) > 250
        good, poor, as_few, again, more = few.values()
        assert good == again
        assert 0.8 * good <= as_few <= good  # for each of the same situations one
        assert 8 * good <= poor <= 12 * good
        assert 0.8 * poor <= more <= poor  # the fair comparison: about as many good ones


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_kept_outputs_are_there_and_clean(path):
    for cell in read(path).cells:
        if "keep_output" in cell.metadata.get("tags", []):
            assert cell.outputs, f"{path.stem}: run `make outputs` after `make demo`"
            text = json.dumps(cell.outputs)
            assert "Traceback" not in text
            assert str(ROOT) not in text


@pytest.mark.parametrize(
    ("cell", "file", "more"),
    [("x06conf1", "train_settings.json", "push_to_hub"), ("x06lora1", "lora_settings.json", "megatron_core")],
)
def test_notebook_06_takes_only_known_settings_from_a_workspace(cell, file, more, tmp_path):
    import torch

    from gemma_colab.core.settings import LoraSettings, TrainSettings
    from gemma_colab.core.workspace import Workspace

    workspace = Workspace(tmp_path)
    for settings in (LoraSettings(), TrainSettings()):
        settings.save(workspace)
    saved = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(saved | {more: "somebody/else"}))
    (source,) = (one.source for one in read(ROOT / "notebooks" / "06_exit_ramp.ipynb").cells if one.id == cell)
    names = {"workspace": workspace, "TrainSettings": TrainSettings, "torch": torch, "dtype": torch.float32, "gpu": False}
    exec(source, names)
    assert "somebody/else" not in str(vars(names.get("adapter") or names["args"]))


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


def cell_with(number: int, text: str) -> str:
    """The code cell of a notebook that holds this text."""
    (found,) = (cell.source for cell in read(NOTEBOOKS[number]).cells if cell.cell_type == "code" and text in cell.source)
    return found


def test_questions_with_a_system_prompt_are_split_and_asked_as_they_stand(workspace, support_rows, tokenizer):
    system = {"role": "system", "content": "You are the shop's clerk."}
    own = [row | {"messages": [system, *row["messages"]]} for row in support_rows[:120]]
    exec(cell_with(1, "= split_rows("), names := {"rows": own, "pd": pd})
    rows = names["splits"] | {"validation": names["splits"]["validation"][:2]}
    first = ModelSettings(load_in_4bit=False)  # the tiny model, as the first cells load it
    first.save(workspace)
    names = {
        "rows": rows,
        "workspace": workspace,
        "pd": pd,
        "evaluate": evaluate,
        "first": first,
        "chosen": first,
        "dtype": torch.float32,
    }
    exec(cell_with(2, "prompts = "), names)
    assert names["prompts"][-1] == [system, rows["validation"][0]["messages"][-2]]
    exec(cell_with(2, "untuned = evaluate("), names)
    assert list(names["untuned"].answers) == ["base", "few-shot"]


def test_the_pace_of_notebook_03_and_the_preset_that_was_saved_are_on_the_panel_of_04(workspace, support_rows, tokenizer):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen, machine = ModelSettings(model="tiny-gemma3"), Machine(False, None, None, 0.0, 12.0, 50.0, 2)
    saved = settings_for(workspace, chosen, machine)
    strong = saved.train.replace(learning_rate=2.5 * saved.start.learning_rate, num_train_epochs=1.67)
    saved.save(saved.lora, strong)
    how = {"tokens": 300, "dtype": torch.float32, "load_in_4bit": True, "gpu": False}
    plan = memory_plan(saved.dimensions, saved.lora, saved.train, **how)
    names = {"saved": saved, "trial": Trial(float(plan.sum()), 0.0, 2.5, 6), "plan": plan, "how": how, "memory_plan": memory_plan}
    exec(cell_with(3, "trial.correction("), names | {"train": saved.train, "lora": saved.lora, "dimensions": saved.dimensions})
    saved = settings_for(workspace, chosen, machine)
    names = {"saved": saved, "settings": saved.train, "chosen": chosen, "machine": machine, "dtype": torch.float32}
    names |= {"train": support_rows[:24], "lengths": token_lengths(support_rows[:32], tokenizer, 1024)}
    exec(cell_with(4, "settings_panel("), names)
    assert "time: <b>about 25 seconds</b>" in names["panel"].note.value  # 1.67 passes of 6 steps, 2.5 s each
    assert names["panel"].presets.value == "strong"


@pytest.mark.parametrize(
    "there",
    [
        "thesis.txt",
        "notebooks/thesis.ipynb",
        "notebooks/a.ipynb .git/HEAD",
        "demo.json thesis.txt",
        "demo.json .git/HEAD",
        "demo.json",
        "demo.json ",
    ],
)
def test_the_runner_never_empties_a_strangers_folder(there, tmp_path):
    mark = {"model": None, "complete": True, "done": {}} | (
        {"seconds": {}} if " " in there else {}
    )  # alone, some other demo.json
    mark |= {"complete": False, "done": [], "seconds": []} if there == "demo.json " else {}  # or a spoilt one
    for name in there.split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(mark))
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, ROOT / "tools" / "run_notebooks.py", "--workspace", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "of no earlier run; name a new folder" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_earlier_run_is_moved_aside_with_all_that_its_owner_put_there(tmp_path, monkeypatch, capsys):
    import run_notebooks

    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", [])  # nothing runs: only what happens before
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--workspace", str(tmp_path / "demo")])
    assert run_notebooks.main() == 0
    mine = ("notebooks/my_experiment.ipynb", "adapter/README.md", "review/blind_base_tuned.csv")
    for again in (1, 2):  # the second time beside the first
        for name in mine:
            (tmp_path / "demo" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "demo" / name).write_text(f"mine {again}")
        assert run_notebooks.main() == 0
        assert f"{tmp_path / 'demo'} is now in {tmp_path / 'demo'}-{again}; delete it when" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["demo.json", "workspace.json"]
    assert [(tmp_path / f"demo-{again}" / name).read_text() for again in (1, 2) for name in mine] == ["mine 1"] * 3 + [
        "mine 2"
    ] * 3
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(16, "Device or resource busy")))
    assert run_notebooks.main() == 2
    assert f"--workspace {tmp_path / 'demo'} can't be moved aside (Device or resource busy)" in capsys.readouterr().err


def test_one_notebook_alone_is_no_reason_to_replace_somebodys(tmp_path, monkeypatch, capsys):
    import run_notebooks

    ran = []
    monkeypatch.setattr(run_notebooks, "run_notebook", lambda *given: ran.append(given) or 1.0)
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--only", "01", "--workspace", str(tmp_path)])
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_dataset_prep.ipynb").write_text("mine")
    assert run_notebooks.main() == 2  # before a kernel makes it a workspace
    assert "holds notebooks of no earlier run; name a new folder" in capsys.readouterr().err
    assert (ran, sorted(path.name for path in tmp_path.iterdir())) == ([], ["notebooks"])
    (tmp_path / "notebooks").rename(tmp_path / "elsewhere")
    assert run_notebooks.main() == 0
    assert len(ran) == 1


@pytest.mark.parametrize("there", ["outputs", "cells", "no notebook"])
def test_a_notebook_that_somebody_wrote_into_is_moved_aside(there, tmp_path, monkeypatch):
    import run_notebooks

    monkeypatch.setattr(run_notebooks.NotebookClient, "execute", lambda *_, **__: None)
    notebook, work = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), Workspace(tmp_path / "work")
    nbformat.write(notebook, tmp_path / "00_a.ipynb")
    notebook.cells[0] |= {"execution_count": 7, "source": "1" if there == "outputs" else "mine"}
    work.write_text("notebooks/00_a.ipynb", "mine" if there == "no notebook" else nbformat.writes(notebook))
    run_notebooks.run_notebook(tmp_path / "00_a.ipynb", work.path)
    assert nbformat.read(work.path / "notebooks" / "00_a.ipynb", 4).cells[0].execution_count is None
    aside = [path.read_text() for path in work.path.glob("notebooks/00_a-1.ipynb")]
    assert ["mine" in text for text in aside] == ([] if there == "outputs" else [True])


PLANTED = "hf_" + 17 * "Pl"  # a token that must not be found in anything that the demo leaves


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "tools" / "run_notebooks.py", "--beside", "--workspace", workspace]
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
    assert summary["verdict"]["word"] != "better"  # read one by one, none of them could be sent
    assert summary["peak_memory_gib"] <= 4
    assert set(summary["seconds"]) == {*NAMES, "total"}
    quick = {line["metric"]: line for line in summary["quickstart"]["tuned_against_base"]}
    assert quick["valid JSON"]["after"] >= 0.9
    assert quick["valid JSON"]["rows"] == 24  # on the tiny model it is a look
    assert quick["all fields"]["before"] == 0
    assert [line["metric"] for line in summary["quickstart"]["tuned_against_few_shot"]] == list(quick)
    assert summary["versions"]["trl"] != "missing"


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GEMMA_COLAB_MODEL", "tiny-gemma3")  # the runner sets another, which must not stay
    import run_notebooks

    work = tmp_path / "work"
    here = f"import os; os.makedirs({str(work / 'notebooks')!r}, exist_ok=True); os.chdir({str(work / 'notebooks')!r}); "
    cells = {"00_a": "print('a', file=open('ran', 'a'))", "01_b": "open('missing')", "02_c": "print('c', file=open('ran', 'a'))"}
    for name, source in cells.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(here + source)]), tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", sorted(tmp_path.glob("*.ipynb")))
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--workspace", str(work), "--model", "tiny-gemma3"])
    assert run_notebooks.main() == 1
    assert (work / "notebooks" / "ran").read_text() == "a\n"
    (work / "notebooks" / "missing").touch()
    assert run_notebooks.main() == 0
    assert (work / "notebooks" / "ran").read_text() == "a\nc\n"  # the first one did not run again
    assert "going on with the run that was cut off; done: 00_a\n" in capsys.readouterr().out
    # a notebook that was changed since runs again, and so does what follows it; so does everything for another model
    (work / "demo.json").write_text(json.dumps(json.loads((work / "demo.json").read_text()) | {"complete": False}))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "01_b.ipynb")
    assert run_notebooks.main() == 0
    assert (work / "notebooks" / "ran").read_text() == "a\nc\nc\n"
    # nothing depends on the quick start: where only that was cut off, only that runs again, here beside nothing
    mark = json.loads((work / "demo.json").read_text())
    del mark["done"]["00_a"]
    (work / "demo.json").write_text(json.dumps(mark | {"complete": False}))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--beside"])
    assert run_notebooks.main() == 0
    assert (work / "notebooks" / "ran").read_text() == "a\nc\nc\na\n"
    sys.argv.pop()
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "gemma-3-270m"])
    (tmp_path / "01_b.ipynb").unlink()
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", sorted(tmp_path.glob("*.ipynb")))
    assert run_notebooks.main() == 0
    assert (work / "notebooks" / "ran").read_text() == "a\nc\n"


def run_beside(tmp_path, monkeypatch, sources):
    """Run notebooks of one cell each, name -> source, in the rows of `make demo`; returns what the runner returned."""
    import run_notebooks

    for name, source in sources.items():
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", sorted(tmp_path.glob("*.ipynb")))
    monkeypatch.setattr(sys, "argv", ["run_notebooks", "--workspace", str(tmp_path / "work"), "--beside"])
    return run_notebooks.main()


@pytest.mark.parametrize("names", [("00_a", "01_b"), ("02_a", "03_b"), ("06_a", "05_b")])
def test_two_notebooks_run_side_by_side_and_one_of_them_gives_way(names, tmp_path, monkeypatch):
    # each waits until the other is there
    wait = "import os, time; open({!r}, 'w').close()\nwhile not os.path.exists({!r}): time.sleep(0.1)\nassert os.nice(0) == {}"
    there = [str(tmp_path / name) for name in names]
    here = os.nice(0)
    sources = {names[0]: wait.format(*there, 19), names[1]: wait.format(*there[::-1], here)}
    assert run_beside(tmp_path, monkeypatch, sources) == 0
    assert json.loads((tmp_path / "work" / "demo.json").read_text())["seconds"].keys() == {*names}


@pytest.mark.parametrize("names", [("01_a", "02_b"), ("02_a", "05_b"), ("04_a", "06_b")])
def test_what_needs_another_notebook_waits_for_it(names, tmp_path, monkeypatch):
    cell = f"import os, time\nfile = {str(tmp_path / 'made')!r}\n"
    codes = ("time.sleep(2)\nopen(file, 'w').close()", "assert os.path.exists(file)")
    assert run_beside(tmp_path, monkeypatch, {name: cell + code for name, code in zip(names, codes, strict=True)}) == 0


def test_nobody_waits_for_a_notebook_that_failed(tmp_path, monkeypatch, capsys):
    cells = {"02_a": "open('missing')", "03_b": "1", "05_c": f"open({str(tmp_path / 'ran')!r}, 'w')"}
    assert run_beside(tmp_path, monkeypatch, cells) == 1
    assert not (tmp_path / "ran").exists()
    assert "02_a stopped (CellExecutionError)" in capsys.readouterr().err


def test_nobody_waits_for_a_notebook_that_never_began(tmp_path, monkeypatch):
    import run_notebooks

    def no_kernel(path, *rest):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr(run_notebooks, "run_notebook", no_kernel)
    with pytest.raises(RuntimeError, match="didn't respond"):
        run_beside(tmp_path, monkeypatch, {"02_a": "1", "05_b": "1"})


def test_a_picture_stands_in_for_each_panel_of_a_saved_notebook():
    shown = []
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        for cell, below in pairwise(cells):
            if cell.cell_type == "code" and re.search(r"^(panel|chat|blind)$", cell.source, re.MULTILINE):
                (picture,) = re.findall(r"!\[[^]]+\]\((\S+\.png)\)", below.source)
                assert (path.parent / picture).is_file()
                shown.append(Path(picture).stem)
    assert Counter(shown) == Counter(f"{name}_panel" for name in "chat review model lora train review blind".split())


def test_a_kernel_imports_nothing_that_lies_in_a_workspace(tmp_path):
    import run_notebooks

    (tmp_path / "pandas.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import pandas; pandas.DataFrame")])
    nbformat.write(notebook, tmp_path / "00_a.ipynb")
    run_notebooks.run_notebook(tmp_path / "00_a.ipynb", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_demo_leaves_what_the_readme_says(demo):
    import run_notebooks

    assert {
        path.name for path in demo.iterdir()
    } <= run_notebooks.OWN  # else its own folder would be a stranger's to the next run
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
