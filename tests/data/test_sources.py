"""What others give: a folder reads nothing outside itself, and a small file unpacks to no more than it may."""

import contextlib
import gzip
import json
import re
import struct
import zipfile

import datasets
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.data import sources
from gemma_colab.data.reading import read_rows

ROW = {"question": "Where is my order?", "answer": "It is on its way."}
SECRET = {"question": "PIN?", "answer": "1234"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.jsonl").write_text(json.dumps(SECRET))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps(ROW))
    return tmp_path / "set"


def answers(path, **how) -> list[str]:
    return [row["messages"][-1]["content"] for row in read_rows(path, **how).rows]


@pytest.mark.parametrize(
    "place",
    [
        "../secret.jsonl",
        "{there}/secret.jsonl",
        "../*.jsonl",
        "../**",
        "file://{there}/secret.jsonl",
        "hf://datasets/a/b/c.jsonl",
        "http://127.0.0.1:9/a",
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_readme_of_a_folder_brings_in_no_other_file(folder, place, split):
    place = place.format(there=folder.parent)
    written = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: {place!r}\n---\n"
    (folder / "README.md").write_text(written)
    (folder / "set.py").write_text("raise SystemExit('a program in the folder ran')")
    assert answers(folder) == [ROW["answer"]]


@pytest.mark.parametrize("jump", [16_384, 2**31 - 100])
def test_a_saved_dataset_whose_texts_lie_outside_the_file_is_refused(tmp_path, jump):
    """Arrow checks no offset when it reads: it gave other memory of the process as an answer, or ended Python."""
    rows = [{"question": "Что?", "answer": None}, {"question": "Где?", "answer": "Да, это так."}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    begins = struct.pack("<3i", 0, 0, len("Да, это так.".encode()))
    assert file.read_bytes().count(begins) == 1
    file.write_bytes(file.read_bytes().replace(begins, struct.pack("<3i", 0, jump, jump + 64)))
    with pytest.raises(DatasetError, match=r"set is damaged \(.*\); save the dataset again"):
        answers(tmp_path / "set")


def test_the_csv_files_of_a_folder_are_read_as_one_alone_is(tmp_path):
    (tmp_path / "set").mkdir()
    lines = "instruction,input,output\nWhich region?,NA,None\nWhich number?,null,nan\nWhich day?,N/A,2026-01-02\n"
    for name in ("one.csv", "set/train.csv"):
        (tmp_path / name).write_text(lines)
    alone, folder = (read_rows(tmp_path / name).rows for name in ("one.csv", "set"))
    assert [row["messages"] for row in folder] == [row["messages"] for row in alone]
    assert folder[0]["messages"][0]["content"].endswith("NA")
    assert [row["messages"][1]["content"] for row in folder] == ["None", "nan", "2026-01-02"]


def test_a_csv_file_without_the_header_of_the_others_costs_no_row_in_silence(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nQ,A\n")
    (tmp_path / "b.csv").write_text("Когда привезут?,Завтра\n")
    with pytest.raises(
        DatasetError, match=r"b\.csv: its first line is 'Когда привезут\?', 'Завтра', and a\.csv has other columns; give every"
    ):
        read_rows(tmp_path)
    (tmp_path / "b.csv").write_text("answer,question,more\nB,Q2,x\n")  # another order, and a column more
    assert [[turn["content"] for turn in row["messages"]] for row in read_rows(tmp_path).rows] == [["Q", "A"], ["Q2", "B"]]


def test_a_row_of_a_folders_csv_that_is_too_long_is_not_shifted(tmp_path):
    (tmp_path / "train.csv").write_text("id,question,answer\n1,How do I return it?,Within 14 days.,web\n2,And later?,No.\n")
    found = read_rows(tmp_path, on_bad="aside")
    assert [row["messages"][0]["content"] for row in found.rows] == ["And later?"]
    assert "4 cells where the header has 3" in str(found.aside)


def test_what_a_folder_holds_and_is_not_read_is_named(tmp_path):
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROW))
    (tmp_path / "c.csv").write_text("question,answer\nq,a\n")
    (tmp_path / "more" / "and" / "more").mkdir(parents=True)
    for name in ("more/d.xlsx", "e.ods", "more/and/more/f.jsonl.zst", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes(b"PK")
    found = read_rows(tmp_path)
    assert len(found.rows) == 2
    assert found.notes == (
        "not read, as a folder is read in one kind and one split: 'c.csv', 'e.ods', 'more/and/more/f.jsonl.zst', 'more/d.xlsx', 'test.jsonl'",
    )


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / "train-2.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(
        DatasetError, match=r"set takes its rows from '.*train-2.jsonl', which is not in it; .* give that file itself"
    ):
        read_rows(folder)
    (folder / "train-2.jsonl").unlink()
    (folder / "data").symlink_to(folder.parent)
    with contextlib.suppress(DatasetError):
        assert answers(folder) == [ROW["answer"]]


def test_a_snapshot_in_the_cache_of_the_hub_links_to_its_blobs(tmp_path):
    (snapshot := tmp_path / "datasets--a--b" / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "datasets--a--b" / "blobs").mkdir()
    (tmp_path / "datasets--a--b" / "blobs" / "f00").write_text(json.dumps(ROW))
    (snapshot / "train.jsonl").symlink_to("../../blobs/f00")
    assert answers(snapshot) == [ROW["answer"]]


def test_a_saved_dataset_names_no_file_outside_itself(tmp_path):
    datasets.Dataset.from_list([SECRET]).save_to_disk(tmp_path / "mine")
    datasets.DatasetDict({"train": datasets.Dataset.from_list([ROW])}).save_to_disk(tmp_path / "set")
    assert answers(tmp_path / "set") == [ROW["answer"]]
    parts, state = tmp_path / "set" / "dataset_dict.json", tmp_path / "set" / "train" / "state.json"
    parts.write_text('{"splits": ["../mine", "train"]}')
    with pytest.raises(DatasetError, match=r"from '.*mine', which is not in it"):
        read_rows(tmp_path / "set", split="../mine")
    parts.write_text('{"splits": ["train"]}')
    file = next((tmp_path / "mine").glob("*.arrow"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": f"../../mine/{file.name}"}]}))
    with pytest.raises(DatasetError, match=r"from '.*arrow', which is not in it"):
        read_rows(tmp_path / "set")


# --- unpacked


@pytest.fixture
def small(monkeypatch):
    """Room for a mebibyte. Beyond it, no more than a chunk is unpacked: the counter of what zlib gave says so."""
    monkeypatch.setattr(sources, "ROOM", 2**20)
    monkeypatch.setattr(sources, "TIMES", 2)


def packed(path, text: bytes):
    path.write_bytes(gzip.compress(text))
    return path


def parquet(path, rows: int, text: str, **how):
    pq.write_table(pa.table({"question": ["a"] * rows, "answer": [text] * rows}), path, **how)
    return path


def workbook(path, sheet: str):
    """A workbook whose one sheet is this XML."""
    book = openpyxl.Workbook()
    book.active.append(["question", "answer"])
    book.save(path)
    with zipfile.ZipFile(path) as old:
        files = {name: old.read(name) for name in old.namelist()}
    start, end = re.split(rb"<row.*</row>", files["xl/worksheets/sheet1.xml"])
    head = b'<row r="1"><c t="inlineStr"><is><t>question</t></is></c><c t="inlineStr"><is><t>answer</t></is></c></row>'
    files["xl/worksheets/sheet1.xml"] = start + head + sheet.encode() + end
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in files.items():
            new.writestr(name, content)
    return path


LINE = json.dumps(ROW).encode() + b"\n"
BOMBS = {
    "a.jsonl.gz": lambda path: packed(path, LINE * 40_000),
    "a.json.gz": lambda path: packed(path, b"[" + b",".join([LINE] * 40_000) + b"]"),
    "a.csv.gz": lambda path: packed(path, b"question,answer\n" + b"a,b\n" * 500_000),
    "short.csv.gz": lambda path: packed(path, b"question,answer\n" + b"a,b\n" * 15_000),  # 60 kB, and each row takes time
    "one_line.jsonl.gz": lambda path: packed(path, b'{"question": "' + b"a" * 3_000_000 + b'", "answer": "b"}'),
    "a.parquet": lambda path: parquet(path, 40, "ab" * 40_000, use_dictionary=False, compression="zstd"),
    "once.parquet": lambda path: parquet(path, 400, "ab" * 4000),  # stored once, and in every row
    "nothing.parquet": lambda path: parquet(path, 200_000, ""),
    "a.parquet.gz": lambda path: packed(
        path, parquet(path, 40, "ab" * 40_000, use_dictionary=False, compression="none").read_bytes()
    ),
    "long.xlsx": lambda path: workbook(path, f'<row r="2"><c t="inlineStr"><is><t>{"a" * 3_000_000}</t></is></c></row>'),
    "wide.xlsx": lambda path: workbook(path, "".join(f'<row r="{n}"><c r="XFD{n}"/></row>' for n in range(2, 300))),
    "a.xlsx.gz": lambda path: packed(path, workbook(path, "").read_bytes() + b"\0" * 3_000_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, small, name):
    path = BOMBS[name](tmp_path / name)
    with pytest.raises(DatasetError, match=rf"{re.escape(name)} unpacks to more than 1 MiB, and .*; unpack it yourself, look at"):
        read_rows(path, on_bad="aside")


def test_a_row_far_below_makes_no_empty_rows_without_end(tmp_path):
    row = '<row r="999999999999"><c t="inlineStr"><is><t>a</t></is></c></row>'
    with pytest.raises(DatasetError, match=r"row 999999999999, has rows or cells .* below row 1,048,576; open it in Excel"):
        read_rows(workbook(tmp_path / "far.xlsx", row))


def test_no_more_is_unpacked_than_has_room(tmp_path, small, monkeypatch):
    taken = []
    fits = sources._fits
    monkeypatch.setattr(sources, "_fits", lambda name, size, room: (taken.append(size), fits(name, size, room)))
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read_rows(packed(tmp_path / "a.jsonl.gz", LINE * 400_000))
    assert max(taken) <= 2**20 + sources.CHUNK


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
def test_what_has_room_is_read_whole_and_a_few_rows_of_what_has_not(tmp_path, small, name):
    path = tmp_path / name
    if name.endswith("gz"):
        packed(path, LINE * 4000)
    else:
        parquet(path, 4000, "It is on its way.")
    assert len(answers(path)) == 4000
    if name.endswith("parquet"):
        assert len(answers(parquet(path, 4000, "ab" * 4000), limit=3)) == 3


def test_a_folder_is_bounded_too(tmp_path, small):
    parquet(tmp_path / "train.parquet", 40, "ab" * 40_000, use_dictionary=False, compression="zstd")
    with pytest.raises(DatasetError, match="unpacks to more than 1 MiB"):
        read_rows(tmp_path)


def test_the_parquet_files_of_a_folder_are_read_in_parts_as_one_alone_is(tmp_path, monkeypatch):
    """`datasets` would unpack a row group at once: 600 bytes, where all rows share one text, can be gigabytes."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("it was unpacked"))
    for part, text in enumerate("ab"):
        parquet(tmp_path / f"train-0000{part}-of-00002.parquet", 3, text)
    assert answers(tmp_path) == ["a"] * 3 + ["b"] * 3
    with pytest.raises(DatasetError, match=r"has no split 'test'; it has 'train'"):
        read_rows(tmp_path, split="test")


# --- what a row only names


def media(kind: str) -> pa.Table:
    """Its metadata say that a column holds media, of which it holds the address; and a list of objects too."""
    shown = {"bytes": None, "path": "http://127.0.0.1:9/a"}
    stored = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = {"question": ["a b?"], "answer": ["c d."], "shown": pa.array([shown], stored)}
    table = pa.table(cells | {"more": pa.array([[{"it": shown}]], pa.list_(pa.struct({"it": stored})))})
    text, it = {"dtype": "string", "_type": "Value"}, {"_type": kind}
    what = {"question": text, "answer": text, "shown": it, "more": {"feature": {"it": it}, "_type": "List"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": what}})})


def write_arrow(path, table):
    with pa.ipc.new_stream(str(path), table.schema) as out:
        out.write_table(table)


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf", "Nifti"])
@pytest.mark.parametrize("form", ["parquet", "arrow", "saved", "hub", "hub, a few rows"])
def test_media_that_a_row_names_are_not_opened(tmp_path, monkeypatch, kind, form):
    feature, load, path, how = getattr(datasets.features, kind), datasets.load_dataset, tmp_path, {}
    monkeypatch.setattr(feature, "decode_example", lambda *a, **k: pytest.fail("it was opened"))
    if form == "parquet":
        pq.write_table(media(kind), tmp_path / "train.parquet")
    elif form == "saved":
        datasets.Dataset(pa.table({"a": [1]})).save_to_disk(tmp_path)
        write_arrow(next(tmp_path.glob("*.arrow")), media(kind))
        (tmp_path / "dataset_info.json").write_text(json.dumps(json.loads(media(kind).schema.metadata[b"huggingface"])["info"]))
    else:
        write_arrow(tmp_path / "train.arrow", media(kind))
    if "hub" in form:
        file, path, how = str(tmp_path / "train.arrow"), "hf://datasets/a/b", {"limit": 5} if "few" in form else {}
        config = type("Config", (), {"data_files": None})
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a: type("Builder", (), {"config": config}))
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *a, **k: load("arrow", data_files=file, cache_dir=str(tmp_path / "cache"), **k)
        )
    assert answers(path, **how) == ["c d."]


def test_what_is_stored_as_json_is_still_read_as_what_it_is(tmp_path):
    """`datasets` keeps so a field that is a text in one row and a list in another."""
    features = datasets.Features({"messages": datasets.Json()})
    chat = [{"role": "user", "content": "a b?"}, {"role": "assistant", "content": "c d."}]
    datasets.Dataset.from_list([{"messages": chat}], features=features).save_to_disk(tmp_path / "set")
    assert answers(tmp_path / "set") == ["c d."]
