"""The command line: exit status, JSON, and what is saved."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_colab.cli import COMMANDS, main
from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.rows import answer
from gemma_colab.core.settings import ModelSettings, TrainSettings
from gemma_colab.core.workspace import WRITTEN, Workspace, samples
from gemma_colab.data.cleaning import STEPS
from gemma_colab.data.looking import question, with_texts
from gemma_colab.data.review import Review
from gemma_colab.export.adapter import check_adapter
from gemma_colab.handover.rows import ensure_rows, prepare_rows, save_rows
from gemma_colab.model.hub import explain

RAW = str(samples() / "support_ru_raw.csv")


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.fixture
def good(tmp_path, support_rows):
    return write(tmp_path / "good.jsonl", [{"messages": row["messages"]} for row in support_rows])


@pytest.mark.parametrize("name", [None, "/full/adapter/README.md"])
def test_a_full_disk_is_named_and_what_to_do(name, tmp_path, monkeypatch, capsys):
    """Who writes to a file that is open isn't told its name."""

    def full(args):
        raise OSError(28, "No space left on device", name)

    monkeypatch.setitem(COMMANDS, "export", (full, *COMMANDS["export"][1:]))
    assert main(["export", "--workspace", str(tmp_path), "--to", "adapter"]) == 4
    assert capsys.readouterr().err == f"No space left on device: {name or tmp_path}; make room there, or name another place\n"


def test_ready_warnings_blocked_unreadable_usage(good, tmp_path, support_rows, capsys):
    rows = read(good)
    assert main(["check", good]) == 0
    assert "ready: no errors, no warnings" in capsys.readouterr().out
    assert main(["check", write(tmp_path / "twice.jsonl", [*rows, rows[5]])]) == 1
    assert main(["check", write(tmp_path / "empty.jsonl", [*rows, with_texts(rows[5], {"answer": ""})])]) == 2
    assert main(["check", str(tmp_path / "nothing.jsonl")]) == 3
    assert "is not there" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["check"])
    assert caught.value.code == 4
    assert main(["check", good, "--accept", "magic"]) == 4


def test_a_file_of_broken_lines_only_is_unreadable(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "out\n{"x')
    assert main(["check", str(tmp_path / "a.jsonl")]) == 3
    assert "a.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "prepare"])
def test_no_more_rows_are_read_than_asked(good, tmp_path, capsys, command):
    main([command, good, "--limit", "30", "--json", *["--workspace", str(tmp_path / "ws")] * (command == "prepare")])
    assert json.loads(capsys.readouterr().out)["counts"]["rows"] == 30


def test_an_accepted_finding_no_longer_counts(good, tmp_path, capsys):
    rows = read(good)
    twice = write(tmp_path / "twice.jsonl", [*rows, rows[5]])
    assert main(["check", twice, "--accept", "exact duplicate"]) == 0
    assert "accepted by you (W)" in capsys.readouterr().out


def test_json_has_check_severity_and_rows_of_every_finding(capsys):
    assert main(["check", RAW, "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "blocked"
    assert "Windows-1251" in report["details"]
    by_check = {f["check"]: f for f in report["findings"]}
    assert by_check["exact duplicate"]["severity"] == "W"
    assert len(by_check["exact duplicate"]["rows"]) == len(by_check["exact duplicate"]["lines"]) == 14
    assert by_check["unreadable row"]["lines"] == [153, 425]


def test_columns_can_be_named(tmp_path, support_rows, capsys):
    columns = [(*question(row).split("\n\n"), answer(row)) for row in support_rows[2:122]]
    table = "\n".join(["a;b;c", *(f'"{asked}";"{more}";"{said}"' for asked, more, said in columns)])
    (tmp_path / "odd.csv").write_text(table, "utf-8")
    path = str(tmp_path / "odd.csv")
    assert main(["check", path]) == 3
    assert "mapping=" in capsys.readouterr().err
    assert main(["check", path, "--map", "instruction=a", "--map", "input=b", "--map", "output=c"]) == 0
    with pytest.raises(SystemExit) as caught:
        main(["check", path, "--map", "a"])
    assert caught.value.code == 4


def test_tokens_are_counted_when_a_model_is_named(good, capsys):
    assert main(["check", good, "--model", "tiny-gemma3", "--max-length", "200", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["tokens max"] > 200
    assert next(f for f in report["findings"] if f["check"] == "too long")["severity"] == "E"


def test_prepare_cleans_splits_and_saves(tmp_path, capsys):
    before = (samples() / "support_ru_raw.csv").read_bytes()
    folder = tmp_path / "ws"
    assert main(["prepare", RAW, "--workspace", str(folder)]) == 2  # two rows can't be read
    assert not (folder / "rows" / "train.jsonl").exists()
    assert main(["prepare", RAW, "--workspace", str(folder), "--accept", "unreadable row", "--seed", "3"]) == 1
    out = capsys.readouterr().out
    assert "cleaning_log.jsonl" in out
    assert "I  cleaned: mojibake in 12 rows (line 11, 158, 190, 299, 303 ...): such as line 11: answer “РќРµС‚" in out
    assert (
        "I  cleaned: drop_exact_duplicates in 14 rows (line 117, 229, 362, 397, 411 ...): such as line 117: left out, like line 114"
        in out
    )
    assert "I  not cleaned: mask_personal_data in 20 rows" in out
    assert (
        "such as line 13: answer “… 000 до 50 000 &#8381;, можно оформить рассрочку и…” became “… 000 до 50 000 ₽, можно" in out
    )
    assert sum(map(len, ensure_rows(Workspace(folder)).values())) == 621 == 643 - 8 - 14  # read, empty, exact duplicates
    command = ["prepare", RAW, "--workspace", str(folder), "--accept", "unreadable row", "--seed", "3", "--also", *STEPS]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "not cleaned" not in out
    assert "I  cleaned: mask_personal_data in 20 rows" in out
    rows = ensure_rows(Workspace(folder))
    assert sum(map(len, rows.values())) == 618
    assert rows["train"][0].keys() >= {"messages", "line", "label"}
    log = [json.loads(line) for line in (folder / "rows" / "cleaning_log.jsonl").read_text("utf-8").splitlines()]
    assert {line["step"] for line in log} >= {"html_to_text", "drop_exact_duplicates", "mask_personal_data"}
    saved = [json.loads(line) for line in (folder / "rows" / "test.jsonl").read_text("utf-8").splitlines()]
    assert all(isinstance(row["line"], int) and row["label"] for row in saved)
    aside = [json.loads(line) for line in (folder / "rows" / "aside.jsonl").read_text("utf-8").splitlines()]
    assert [bad["line"] for bad in aside] == [153, 425]
    assert json.loads((folder / "split_settings.json").read_text())["seed"] == 3
    assert (samples() / "support_ru_raw.csv").read_bytes() == before


def test_prepare_does_only_the_steps_asked_for(tmp_path, capsys):
    command = ["prepare", RAW, "--workspace", str(tmp_path / "ws"), "--accept", "unreadable row", "--accept", "empty text"]
    assert main([*command, "--steps", "entities"]) == 1
    log = (tmp_path / "ws" / "rows" / "cleaning_log.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["step"] for line in log} == {"entities"}


WORDS = "lamp sofa chair table mirror carpet shelf blanket pillow curtain vase clock towel candle basket kettle mug bowl plate frame".split()


def test_own_contacts_are_kept_and_an_allow_list_decides(tmp_path, capsys):
    ours = "Write to help@lampa-home.example or call +7 495 123-45-67."
    lines = [{"instruction": f"Where is order {word}?", "output": f"Your {word} is on its way. {ours}"} for word in WORDS]
    file, folder = tmp_path / "shop.jsonl", tmp_path / "ws"
    file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    command = ["prepare", str(file), "--workspace", str(folder)]

    def saved():
        return "".join((folder / "rows" / f"{split}.jsonl").read_text("utf-8") for split in ("train", "validation", "test"))

    main(command)
    out = capsys.readouterr().out
    assert "own contacts in 20 rows" in out
    assert "help@lampa-home.example (20 rows), +7 495 123-45-67 (20 rows): kept" in out
    assert "leak" not in out  # a telephone that all answers give makes no two alike
    assert saved().count(ours) == 20
    main([*command, "--also", "mask_personal_data", "--keep", "only", "--keep", "8 (495) 123-45-67"])
    assert saved().count("Write to [e-mail] or call +7 495 123-45-67.") == 20
    main([*command, "--keep", "Me@lampa-home.example"])
    assert "--keep names Me@lampa-home.example, which no row holds" in capsys.readouterr().out
    main(["check", str(file), "--keep", "me@lampa-home.example"])
    assert "--keep names me@lampa-home.example, which no row holds" in capsys.readouterr().out


def test_a_review_holds_whatever_steps_follow_and_what_fits_no_row_is_said(tmp_path, support_rows, capsys):
    """A row that was dropped after one cleaning may not come back with another."""
    records = [{"instruction": question(row), "output": f"<b>{answer(row)}</b>&nbsp;"} for row in support_rows[:60]]
    path, folder = write(tmp_path / "a.jsonl", records), str(tmp_path / "ws")
    report, _ = prepare_rows(path, Workspace(folder), also=["html_to_text", "entities"])
    Review(Workspace(folder)).decide(report.rows[7], "drop", why="wrong")
    for steps in ([], ["--also", "entities", "white_space"], ["--steps", "white_space"]):
        assert main(["prepare", path, "--workspace", folder, *steps]) == 1  # tags are left
        assert "I  cleaned: review in 1 row (line 8): such as line 8: left out, wrong" in capsys.readouterr().out
        assert 8 not in [row["line"] for rows in ensure_rows(Workspace(folder)).values() for row in rows]
    records[7]["output"] = "В пути."
    write(tmp_path / "a.jsonl", records)
    main(["prepare", path, "--workspace", folder])
    assert "W  unused decision in 1 row (line 8): 1 in review.json fit no row, as its text changed" in capsys.readouterr().out
    main(["prepare", path, "--workspace", folder, "--accept", "unused decision"])
    assert "I  unused decision in 1 row (line 8): accepted by you (W)" in capsys.readouterr().out


def test_rows_left_out_as_too_long_are_counted_and_named(tmp_path, support_rows, capsys):
    records = [{"instruction": question(row), "output": answer(row)} for row in support_rows[:60]]
    records[5]["output"] *= 9
    path = write(tmp_path / "a.jsonl", records)
    command = ["prepare", path, "--workspace", str(tmp_path / "ws"), "--model", "tiny-gemma3", "--max-length", "400"]
    main([*command, "--too-long", "drop"])
    assert "I  too long: drop in 1 row (line 6): as you asked; too_long.jsonl has them whole" in capsys.readouterr().out


def test_it_is_installed_and_starts_without_torch(tmp_path):
    code = "import sys, gemma_colab.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from gemma_colab.cli import main; sys.exit(main())", "check", RAW],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    from importlib.metadata import entry_points

    assert [e.value for e in entry_points(group="console_scripts") if e.name == "gemma-colab"] == ["gemma_colab.cli:main"]


def test_rows_too_long_are_dropped_only_when_asked(good, tmp_path, capsys):
    command = ["prepare", good, "--workspace", str(tmp_path / "ws"), "--model", "tiny-gemma3", "--max-length", "200"]
    assert main(command) == 2  # most rows would be cut
    assert main([*command, "--too-long", "drop"]) <= 1
    dropped = [json.loads(line) for line in (tmp_path / "ws" / "rows" / "too_long.jsonl").read_text("utf-8").splitlines()]
    assert len(dropped) > 50
    assert all(one["tokens"] > 200 and one["done"] == "dropped" for one in dropped)
    assert sum(map(len, ensure_rows(Workspace(tmp_path / "ws")).values())) == 514 - len(dropped)


def test_each_unreadable_row_is_explained(capsys):
    main(["check", RAW])
    out = capsys.readouterr().out
    assert "line 153: 5 cells where the header has 7" in out
    assert "line 425: 5 cells where the header has 7" in out


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -c 'import sys; from gemma_colab.cli import main; sys.exit(main())' check {RAW} --json | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_conversations_stay_whole(tmp_path, support_rows, capsys):
    pairs = zip(support_rows[2:122:2], support_rows[3:123:2], strict=True)
    path = write(tmp_path / "talks.jsonl", [{"messages": a["messages"] + b["messages"]} for a, b in pairs])
    assert main(["check", path]) == 0
    assert main(["prepare", path, "--workspace", str(tmp_path / "ws"), "--accept", "validation too small"]) == 0
    splits = ensure_rows(Workspace(tmp_path / "ws"))
    assert [len(row["messages"]) for rows in splits.values() for row in rows] == [4] * 60


def test_rows_of_the_workspace_are_never_their_own_source(good, tmp_path, capsys):
    assert main(["prepare", good, "--workspace", str(tmp_path / "ws")]) == 0
    before = (tmp_path / "ws" / "rows" / "train.jsonl").read_bytes()
    assert main(["prepare", str(tmp_path / "ws" / "rows" / "train.jsonl"), "--workspace", str(tmp_path / "ws")]) == 4
    assert "would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "ws" / "rows" / "train.jsonl").read_bytes() == before


def test_rows_that_cannot_be_split_are_blocked_with_their_report(tmp_path, capsys):
    same = {
        "instruction": "Где мой заказ?",
        "input": "",
        "output": "Статус заказа виден в разделе «Мои заказы» в любое время дня.",
    }
    path = write(tmp_path / "same.jsonl", [same | {"instruction": f"Где мой заказ{'!' * i}"} for i in range(12)])
    steps = ["--steps", "white_space"]
    assert main(["prepare", path, "--workspace", str(tmp_path / "ws"), *steps]) == 2
    done = capsys.readouterr()
    assert "too few for train" in done.err
    assert "exact duplicate" in done.out
    assert (tmp_path / "ws" / "blocked" / "report.json").exists()


def test_rows_that_only_cannot_be_split_are_blocked_too(tmp_path, good, capsys):
    path = write(tmp_path / "one.jsonl", [row | {"customer": "7"} for row in read(good)[2:122]])
    command = [path, "--map", "conversation=customer"]
    assert main(["check", *command]) == 0
    assert main(["prepare", *command, "--workspace", str(tmp_path / "ws")]) == 2
    assert "too few for train" in capsys.readouterr().err


def test_a_console_without_cyrillic(tmp_path):
    command = [sys.executable, "-c", "import sys; from gemma_colab.cli import main; sys.exit(main())", "check", RAW]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_prepare_says_when_a_part_is_too_small(good, tmp_path, capsys):
    few = write(tmp_path / "few.jsonl", read(good)[2:122])
    assert main(["prepare", few, "--workspace", str(tmp_path / "ws")]) == 1
    assert "W  validation too small: 12 rows" in capsys.readouterr().out
    report = json.loads((tmp_path / "ws" / "rows" / "report.json").read_text("utf-8"))
    assert "validation too small" in {f["check"] for f in report["findings"]}


@pytest.fixture
def trainable(tmp_path, random_gemma, support_rows):
    """A workspace with 12 rows to train on and the random model."""
    workspace = Workspace(tmp_path / "ws")
    save_rows({"train": support_rows[1:13], "validation": support_rows[13:17], "test": support_rows[17:19]}, workspace)
    ModelSettings(model=random_gemma).save(workspace)
    return workspace


def train(workspace, *more):
    sets = ["--set=warmup_steps=0", "--set=num_train_epochs=2", "--set=per_device_train_batch_size=4"]
    return main(["train", "--workspace", str(workspace.path), *sets, *more])


def test_train_leaves_an_adapter_and_says_how_it_went(trainable, random_gemma, capsys):
    changes = "num_train_epochs=5 learning_rate=0.01 gradient_accumulation_steps=1 max_length=300 neftune_noise_alpha=None"
    assert train(trainable, *(f"--set={change}" for change in changes.split()), "--model", random_gemma, "--json") == 0
    found = json.loads(capsys.readouterr().out)  # nothing else on it
    assert (found["status"], found["steps"], found["model"], found["processes"]) == ("finished", 15, random_gemma, 1)
    assert found["verdict"]["word"] in ("learning", "finished")
    used = TrainSettings.load(trainable)
    assert found["settings"] == dataclasses.asdict(used)
    assert (used.learning_rate, used.max_length, used.num_train_epochs, used.neftune_noise_alpha) == (0.01, 300, 5, None)
    assert (trainable.path / "adapter" / "adapter_model.safetensors").is_file()
    assert len(trainable.read_json("training.json")["log_history"]) > 15

    resume = ["train", "--workspace", str(trainable.path), "--resume"]
    files = [path for path in trainable.path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert main([*resume, "--set=learning_rate=0.02"]) == 4  # made with another one
    refused = capsys.readouterr().err
    assert "learning_rate: 0.01 then, 0.02 now" in refused
    assert "or go on in spite of it with anyway=True (--anyway)" in refused
    assert main([*resume, "--16bit"]) == main([*resume, "--model", "tiny-gemma3"]) == 4
    assert {path: path.read_bytes() for path in trainable.path.rglob("*") if path.is_file()} == before
    assert main(resume) == 0  # nothing of what was refused is remembered
    assert main([*resume, "--set=learning_rate=0.02", "--anyway"]) <= 1
    assert "resumed from step 15" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["models/tiny copy", "./tiny", "models/tiny", "{}/models/tiny copy"])
def test_a_model_from_a_folder_goes_all_the_way_from_any_folder(trainable, random_gemma, tmp_path, monkeypatch, capsys, named):
    """With a space in its path, named from where one is; what is given away doesn't tell where it lies."""
    named = named.format(tmp_path)
    shutil.copytree(random_gemma, tmp_path / named)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", named]) == 0
    assert main(["check", RAW, "--model", named]) == 2
    assert train(trainable, "--model", named) <= 1
    monkeypatch.chdir("/")

    def run(command, *more):
        return main([command, "--workspace", str(trainable.path), *more])

    assert run("train", "--resume") <= 1
    assert run("evaluate", "--rows", "1", "--max-new-tokens", "4", "--anyway") <= 2
    for form in ("adapter", "merged", "ollama"):
        assert run("export", "--to", form, "--rows", "1") == 0
    assert trainable.read_json("summary.json")["model"] == Path(named).name
    assert {path.name for path in trainable.path.iterdir()} <= {*WRITTEN, "checkpoints", "checkpoints-before", "workspace.json"}
    assert "Not evaluated" not in (trainable.path / "merged" / "README.md").read_text("utf-8")
    for file in ("summary.json", "report.html", "export.json", "adapter/README.md", "merged/README.md", "merged/config.json"):
        assert str(tmp_path) not in (trainable.path / file).read_text("utf-8"), file
    shutil.move(tmp_path / named, tmp_path / "elsewhere")
    capsys.readouterr()
    gone = f"the model folder {tmp_path / named} is not there, or no longer; put it back, or a link to it"
    again = [("train",), ("train", "--resume"), ("evaluate", "--rows", "1"), ("export", "--to", "merged")]
    for words in again:
        assert run(*words) == 4
        assert gone in capsys.readouterr().err
    assert run("export", "--to", "adapter") == 0
    assert run("export", "--to", "ollama") == 0  # of merged/, which is there
    assert main(["plan", str(tmp_path / named)]) == main(["check", RAW, "--model", str(tmp_path / named)]) == 4
    assert capsys.readouterr().err.count(gone) == 2
    assert main(["doctor", str(tmp_path / named)]) == run("train", "--model", str(tmp_path / named)) == 4
    assert capsys.readouterr().err.count("there is no such file or folder, or no longer") == 2
    (tmp_path / named).symlink_to(tmp_path / "elsewhere")
    assert run("export", "--to", "merged", "--rows", "1") == 0


def test_16_bit_needs_no_model_beside_it(trainable, random_gemma, capsys):
    assert train(trainable, "--16bit") <= 1
    assert f"{random_gemma} in 16 bit" in capsys.readouterr().out
    assert trainable.read_json("training.json")["load_in_4bit"] is ModelSettings.load(trainable).load_in_4bit is False


def test_train_warns_of_a_run_that_did_not_learn(trainable, capsys):
    assert train(trainable, "--set=learning_rate=1e-6") == 1
    out = capsys.readouterr().out
    assert "\nnot learning: " in out
    assert f"the adapter is in {trainable.path / 'adapter'}" in out
    assert TrainSettings.load(trainable).learning_rate == 1e-6


def test_train_says_that_a_run_broke(trainable, tmp_path, random_gemma, capsys):
    folder = shutil.copytree(random_gemma, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert train(trainable, "--model", str(folder)) == 2
    assert "TrainingError: the loss is no number since step 1" in capsys.readouterr().err
    assert not trainable.has("adapter")


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["--set=rank=8"], 4, "unknown settings ['rank']"),
        (["--set=packing=perhaps"], 4, "packing='perhaps'"),
        (["--set=num_train_epochs=0"], 4, "num_train_epochs=0 must be"),
        (["--model", "gemma-7"], 4, "gemma-7"),
        (["--resume"], 4, "train_settings.json"),
        (["--report-to", "wandb"], 4, "pip install wandb"),
    ],
)
def test_train_refuses_what_it_cannot_do(trainable, arguments, status, named, capsys):
    assert main(["train", "--workspace", str(trainable.path), *arguments]) == status
    assert named in capsys.readouterr().err
    assert not trainable.has("adapter")


def test_train_needs_rows(tmp_path, capsys):
    assert main(["train", "--workspace", str(tmp_path / "ws")]) == 4
    assert "gemma-colab prepare" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["train", "--workspace", str(tmp_path / "ws"), "--set", "packing"])
    assert caught.value.code == 4


@pytest.mark.parametrize("wrong", [("--batch", "0"), ("--rows", "-1"), ("--max-new-tokens", "many"), ("--examples", "-1")])
def test_evaluate_counts_from_one_or_none(tmp_path, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--workspace", str(tmp_path), *wrong])
    assert caught.value.code == 4
    assert f"argument {wrong[0]}: '{wrong[1]}' must be a whole number from" in capsys.readouterr().err


def test_the_package_is_a_command_too():
    done = subprocess.run([sys.executable, "-m", "gemma_colab", "check", RAW], capture_output=True, check=False)
    assert done.returncode == 2


def test_every_command_that_is_printed_can_be_pasted(tmp_path, capsys, monkeypatch):
    odd = tmp_path / "мои данные & it's; $HOME"
    printed = []
    for command in (["evaluate"], ["train"]):
        assert main([*command, "--workspace", str(odd)]) == 4
        printed.append(capsys.readouterr().err)
    printed += ["; ".join(explain(str(odd), torch.OutOfMemoryError("full")))]
    (odd / "adapter").mkdir(parents=True)
    (odd / "training.json").write_text("{}")
    with pytest.raises(WorkspaceError) as caught:
        check_adapter(odd / "adapter")
    printed.append(str(caught.value))
    monkeypatch.setattr("gemma_colab.export.export_workspace", lambda *args, **options: {"ollama": {"MiB": 1.0}})
    assert main(["evaluate", "--workspace", str(odd)]) == 4
    printed.append(capsys.readouterr().err)
    assert main(["export", "--workspace", str(odd), "--to", "ollama"]) == 0
    printed.append(capsys.readouterr().out)
    for text in printed:
        command = re.search(r"(?:gemma-colab|cd) .*", text)[0]
        words = shlex.split(command.split("`")[0].rstrip(")"))
        assert str(odd) in words or f"{odd}/ollama" in words, command


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            ["export", "--workspace", "w", "--to", "adapter", "--outtype", "f16"],
            "--outtype is for --to gguf, not for --to adapter",
        ),
        (["export", "--workspace", "w", "--to", "merged", "--repo", "me/x"], "--repo is for --to hub"),
        (["export", "--workspace", "w", "--to", "ollama", "--form", "merged"], "--form is for --to hub"),
        (["export", "--workspace", "w", "--to", "gguf", "--public"], "--public is for --to hub"),
        (["export", "--workspace", "w", "--to", "gguf", "--exist-ok"], "--exist-ok is for --to hub"),
        (["export", "--workspace", "w", "--to", "adapter", "--whole"], "--whole is for --to merged, ollama, gguf or hub"),
        (["export", "--workspace", "w", "--to", "gguf", "--system", "Be brief."], "--system is for --to ollama"),
        (["prepare", "x.csv", "--workspace", "w", "--map", "output=a", "--map", "output=b"], "--map names something twice"),
        (["prepare", "x.csv", "--workspace", ""], "--workspace '' must be the name of a folder"),
        (["check", "x.csv", "--max-length", "-5"], "argument --max-length: '-5' must be a whole number from 16"),
        (["prepare", "x.csv", "--workspace", "w", "--too-long", "drop"], "--too-long drop needs --model"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(wrong, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 4
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train"], ["evaluate"], ["export", "--to", "merged"]])
def test_a_mistyped_workspace_is_said_and_not_made(command, tmp_path, capsys):
    missing = tmp_path / "typo"
    assert main([*command, "--workspace", str(missing)]) == 4
    assert f"there is no folder {missing}; check the name" in capsys.readouterr().err
    assert not missing.exists()
