"""Manifests: the same clips from all three formats, and rows that are wrong in every way we know of."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.manifest import COLUMNS, read_manifest_file
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import Listing
from tests.data_prep.test_prepare import FakeEncoders
from tests.media_files import tone, write_faces, write_video, write_wav

FORMATS = ("csv", "jsonl", "parquet")
Row = Mapping[str, Any]


def write_manifest(path: Path, rows: Sequence[Row], encoding: str = "utf-8") -> Path:
    """Writes rows in the format of the path's ending; a list of labels goes into CSV as Python prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows]), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    return path


def told(listing: Listing) -> list[tuple[str, str, str]]:
    return [(problem.name, problem.file, problem.reason) for problem in listing.problems]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of media, some with names that need care."""
    folder = tmp_path / "my clips"
    write_video(folder / "video" / "0012.mp4", 4, height=32, width=32, sound=tone(0.3, 44_100)[None])
    write_wav(folder / "sound" / "一.wav", tone(0.4))
    write_faces(folder / "faces.npy", np.full((2, 4, 5, 3), 9, np.uint8))
    return folder


def rows(folder: Path) -> list[Row]:
    return [
        {
            "name": "0012", "video": "video/0012.mp4", "audio": str(folder / "sound" / "一.wav"), "faces": "faces.npy",
            "subtitle": "None, he said.", "chinese": "没有", "labels": ["happy", "very calm"],
            "description": 'In the text, "None",\nhe smiles.', "split": "validation",
        },
        {"name": "第 三", "audio": "sound/一.wav", "labels": [], "split": "test"},
        {"name": "words only", "subtitle": "Yes.", "labels": ["sad"]},
    ]  # fmt: skip


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_same_clips(clips: Path, ending: str) -> None:
    listing = read_manifest_file(write_manifest(clips / f"list.{ending}", rows(clips)))
    assert listing.problems == ()
    assert [record.text for record in listing.records] == [
        TextRecord(
            "0012", "validation", "None, he said.", "没有", ("happy", "very calm"), 'In the text, "None",\nhe smiles.'
        ),
        TextRecord("第 三", "test"),
        TextRecord("words only", "train", "Yes.", labels=("sad",)),
    ]
    sound = clips / "sound" / "一.wav"
    assert [record.files for record in listing.records] == [
        ClipFiles(clips / "video" / "0012.mp4", sound, clips / "faces.npy"),
        ClipFiles(audio=sound),
        ClipFiles(),
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_relative_path_and_an_upper_case_ending(clips: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    write_manifest(clips / f"list.{ending}", rows(clips)).rename(clips / f"list.{ending.upper()}")
    monkeypatch.chdir(clips)
    records = read_manifest_file(f"list.{ending.upper()}").records
    assert records[1].files.audio == Path("sound/一.wav")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_byte_order_mark_and_blank_lines_say_nothing(clips: Path, ending: str) -> None:
    plain = read_manifest_file(write_manifest(clips / f"a.{ending}", rows(clips)))
    path = write_manifest(clips / f"b.{ending}", rows(clips), "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    path.write_bytes(path.read_bytes() + b"\n\n")
    assert read_manifest_file(path) == plain


@pytest.mark.parametrize("ending", FORMATS)
def test_labels_as_text(tmp_path: Path, ending: str) -> None:
    texts = ["['happy', 'sad']", "happy, very sad", "[]", "", "nan"]
    path = write_manifest(
        tmp_path / f"m.{ending}", [{"name": str(i), "subtitle": "x", "labels": text} for i, text in enumerate(texts)]
    )
    found = [record.text.labels for record in read_manifest_file(path).records]
    assert found == [("happy", "sad"), ("happy", "very sad"), (), (), ()]


@pytest.mark.parametrize("ending", FORMATS)
def test_cells_that_say_nothing(tmp_path: Path, ending: str) -> None:
    """Empty, null, and what pandas writes for either; a subtitle "None" is one."""
    nothing = {"csv": ["", "nan", "NaN"], "jsonl": [None, float("nan"), "", "nan"], "parquet": [None, "", "NaN"]}[
        ending
    ]
    listed = [{"name": f"n{i}", "subtitle": "None", "video": x, "split": x, "labels": x} for i, x in enumerate(nothing)]
    listing = read_manifest_file(write_manifest(tmp_path / f"m.{ending}", listed))
    assert listing.problems == ()
    assert {(record.files, record.split, record.text.subtitle) for record in listing.records} == {
        (ClipFiles(), "train", "None")
    }
    assert len(listing.records) == len(nothing)


def test_labels_as_numbers_in_parquet_are_no_labels(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.parquet", [{"name": "a", "subtitle": "x", "labels": [1, 2]}])
    with pytest.raises(UserError, match=r"row 1: labels must be a list of text, or text, found \[1, 2\]"):
        read_manifest_file(path)


@pytest.mark.parametrize("ending", FORMATS)
def test_unknown_columns_are_told_and_left_out(tmp_path: Path, ending: str) -> None:
    listed = [{"name": "a", "subtitle": "x"}, {"name": "b", "subtitle": "x", "emotion": "joy", "fold": "3"}]
    listing = read_manifest_file(write_manifest(tmp_path / f"m.{ending}", listed))
    assert len(listing.records) == 2
    first = {"csv": ", first in line 2,", "jsonl": ", first in line 2,", "parquet": ""}[ending]
    assert told(listing) == [
        ("", f"m.{ending}", f"column {column!r}{first} is not known and left out; known: {', '.join(COLUMNS)}")
        for column in ("emotion", "fold")
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_that_cannot_be_used_are_told_and_skipped(tmp_path: Path, ending: str) -> None:
    listed = [
        {"name": "", "subtitle": "x", "split": None},
        {"name": "../up", "subtitle": "x"},
        {"name": "b", "subtitle": "x", "split": "dev"},
        {"name": "c", "subtitle": " ", "split": "train"},
        {"name": "d", "subtitle": "x"},
    ]
    listing = read_manifest_file(write_manifest(tmp_path / f"m.{ending}", listed))
    assert [record.name for record in listing.records] == ["d"]
    row, first = {"csv": ("line", 2), "jsonl": ("line", 1), "parquet": ("row", 1)}[ending]
    reasons = [
        ("", "'' cannot name a clip"),
        ("", "'../up' cannot name a clip"),
        ("b", "unknown split 'dev', expected one of train, validation, test"),
        ("c", "has none of video, audio, faces, subtitle"),
    ]
    assert told(listing) == [
        (name, f"m.{ending}", f"{row} {i}: {reason}; the {row} is skipped")
        for i, (name, reason) in enumerate(reasons, first)
    ]


def test_rows_that_only_one_format_can_have(tmp_path: Path) -> None:
    lines = ["name,subtitle", "a,x,y", "b,x"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    listing = read_manifest_file(tmp_path / "m.csv")
    assert told(listing) == [("", "m.csv", "line 2: 3 cells under 2 columns; the line is skipped")]
    lines = [
        '{"name": "a", "subtitle": ',
        '["a"]',
        '{"name": 12, "subtitle": "x"}',
        '{"subtitle": "x"}',
        '{"name": "e", "subtitle": 5}',
        '{"name": "f", "subtitle": "x", "labels": {"joy": 1}}',
        '{"name": "g", "video": ["x.mp4"]}',
        '{"name": "0012", "subtitle": "x"}',
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    listing = read_manifest_file(tmp_path / "m.jsonl")
    assert [record.name for record in listing.records] == ["0012"]
    assert [(name, reason) for name, _, reason in told(listing)] == [
        ("", "line 1: no JSON (Expecting value); the line is skipped"),
        ("", "line 2: no JSON object; the line is skipped"),
        ("", "line 3: the name 12 is no text; write it in quotes; the line is skipped"),
        ("", "line 4: '' cannot name a clip; the line is skipped"),
        ("e", "line 5: subtitle must be text, found 5; the line is skipped"),
        ("f", "line 6: labels must be a list of text, or text, found {'joy': 1}; the line is skipped"),
        ("g", "line 7: video must be text, found ['x.mp4']; the line is skipped"),
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_files_that_are_not_there(clips: Path, ending: str) -> None:
    listed = [
        {"name": "a", "video": "video/0012.mp4", "audio": "sound/lost.wav", "faces": ""},
        {"name": "b", "video": "video", "audio": "", "faces": str(clips / "lost.npy")},
    ]
    path = write_manifest(clips / f"m.{ending}", listed)
    listing = read_manifest_file(path)
    assert [record.files for record in listing.records] == [ClipFiles(clips / "video" / "0012.mp4"), ClipFiles()]
    places = {"csv": ("line 2", "line 3"), "jsonl": ("line 1", "line 2"), "parquet": ("row 1", "row 2")}[ending]
    gone = f"{path.name}, {{}}: no such file; the clip is kept without this {{}}"
    assert told(listing) == [
        ("a", str(clips / "sound" / "lost.wav"), gone.format(places[0], "audio")),
        ("b", str(clips / "video"), gone.format(places[1], "video")),
        ("b", str(clips / "lost.npy"), gone.format(places[1], "faces")),
    ]


@pytest.mark.parametrize("ending", FORMATS)
def test_two_rows_of_one_name(tmp_path: Path, ending: str) -> None:
    listed = [{"name": name, "subtitle": "x"} for name in ("12", "0012", "b", "0012")]
    first, second = {"csv": ("line 3", "line 5"), "jsonl": ("line 2", "line 4"), "parquet": ("row 2", "row 4")}[ending]
    with pytest.raises(
        UserError, match=rf"m\.{ending}: {first} and {second} have one name, '0012'; .*Rename or remove"
    ):
        read_manifest_file(write_manifest(tmp_path / f"m.{ending}", listed))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("m.txt", b"name", r"m\.txt: a manifest is a file that ends in \.csv, \.jsonl, \.parquet"),
        ("m.csv", b"name,labels\na,x\n", r"has the column name and at least one of video, .*; found 'name', 'labels'"),
        ("m.csv", b"clip,video\na,x\n", r"m\.csv has no column 'name'"),
        ("m.csv", b"name,video,video\na,x,y\n", r"m\.csv has two columns 'video'; rename or remove one"),
        ("m.csv", b"name,subtitle\n", r"m\.csv has no clip that can be used$"),
        ("m.csv", b"name,subtitle\n,x\n", r"no clip that can be used; the first fault: line 2: '' cannot name a clip"),
        ("m.csv", b"name,subtitle\na,\xff\xfe\n", r"m\.csv is not UTF-8 text"),
        ("m.csv", b'name,subtitle\na,"x\n', r"m\.csv, line 2: .*Mend the quotes"),
        ("m.jsonl", b'{"name": "a", "subtitle": "\xff"}\n', r"m\.jsonl is not UTF-8 text"),
        ("m.jsonl", b"", r"m\.jsonl has no clip that can be used$"),
        ("m.jsonl", b'{"name": "a"}\n', r"the first fault: line 1: has none of video, audio, faces, subtitle"),
        ("m.parquet", b"no parquet", r"m\.parquet cannot be read as Parquet .*write it anew"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest_file(tmp_path / file)


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*m\.csv; expected a manifest with the columns name, video"):
        read_manifest_file(tmp_path / "m.csv")


def test_parquet_columns(tmp_path: Path) -> None:
    """Names that are numbers have lost their zeros; a dictionary of text, as pandas has it, is text."""
    table = pa.table({"name": [12, 13], "subtitle": ["x", "y"]})
    pq.write_table(table, tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match=r"the column name is int64, which loses leading zeros; write names as text"):
        read_manifest_file(tmp_path / "numbers.parquet")
    pq.write_table(table.drop_columns("name"), tmp_path / "nameless.parquet")
    with pytest.raises(UserError, match=r"has the column name and at least one of .*; found 'subtitle'"):
        read_manifest_file(tmp_path / "nameless.parquet")
    for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        names = pa.array(["0012", "13"]).cast(kind)
        pq.write_table(table.set_column(0, "name", names), tmp_path / "text.parquet")
        assert [record.name for record in read_manifest_file(tmp_path / "text.parquet").records] == ["0012", "13"]


def test_a_manifest_is_prepared(clips: Path, tmp_path: Path) -> None:
    listing = read_manifest_file(write_manifest(clips / "list.csv", rows(clips)))
    settings = PrepareSettings(streams=("face@2", "audio@2"), batch_clips=2, progress=False)
    report = prepare(listing.records, FakeEncoders(), settings, tmp_path / "out", listing.problems)
    assert (report.kept, report.broken, dict(report.present)) == (3, (), {"face@2": 1, "audio@2": 2})
    for record in listing.records:
        assert open_corpus(tmp_path / "out", record.split, ("face@2",)).texts() == [record.text]
