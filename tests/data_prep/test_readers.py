"""The MER-Caption+ layout: texts by the reference's rules, and tables that are wrong in every way we know of."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.errors import UserError
from data_prep.readers import read_mer_caption_plus
from data_prep.synth import SplitCounts, write_corpus
from tests.media_files import tone, write_faces, write_wav

SUBTITLES = "name,chinese,english\n0012,你好,Hello there\nsample two,,\n第三,再见,NaN\n"
LABELS = "name,openset\n0012,\"['happy', 'calm']\"\nsample two,[]\n第三,\"['sad']\"\n"
DESCRIPTIONS = 'name,reason\n0012,"In the text, ""hello"",\nshe smiles."\nsample two,Calm.\n第三,\n'


def _corpus(
    root: Path,
    labels: str = LABELS,
    descriptions: str = DESCRIPTIONS,
    subtitles: str = SUBTITLES,
    splits: str | None = None,
) -> Path:
    tables = {
        "track2_train_mercaptionplus.csv": labels,
        "track3_train_mercaptionplus.csv": descriptions,
        "subtitle_chieng.csv": subtitles,
        **({"synth_splits.csv": splits} if splits is not None else {}),
    }
    for name, content in tables.items():
        (root / name).write_text(content, encoding="utf-8-sig")
    return root


def test_reads_texts_and_media(tmp_path: Path) -> None:
    root = _corpus(tmp_path)
    (root / "video").mkdir()
    (root / "video" / "0012.mp4").touch()
    write_wav(root / "audio" / "sample two.wav", tone(0.1))
    write_faces(root / "openface_face" / "第三" / "第三.npy", np.zeros((1, 2, 2, 3), np.uint8))
    (root / "openface_face" / "0012").mkdir()
    records, problems = read_mer_caption_plus(root)
    assert [record.text for record in records] == [
        TextRecord("0012", "train", "Hello there", "你好", ("happy", "calm"), 'In the text, "hello",\nshe smiles.'),
        TextRecord("sample two", "train", "", "", (), "Calm."),
        TextRecord("第三", "train", "", "再见", ("sad",), ""),
    ]
    assert [record.name for record in records] == ["0012", "sample two", "第三"]
    assert [record.files for record in records] == [
        (root / "video" / "0012.mp4", None, None),
        (None, root / "audio" / "sample two.wav", None),
        (None, None, root / "openface_face" / "第三" / "第三.npy"),
    ]
    assert [(problem.name, problem.reason) for problem in problems] == [
        ("sample two", "line 3: no label, which trains as neutral")
    ]


def test_reads_a_synthetic_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "synth", SplitCounts(2, 1, 1), seed=0, workers=1)
    records, problems = read_mer_caption_plus(tmp_path / "synth")
    assert problems == ()
    assert [record.split for record in records] == ["train", "train", "validation", "test"]
    for record in records:
        assert record.text.subtitle
        assert record.text.labels
        assert record.text.description.startswith("In the text")
        assert all(path is not None and path.is_file() for path in record.files)


def test_splits(tmp_path: Path) -> None:
    records, problems = read_mer_caption_plus(_corpus(tmp_path, splits="name,split\n第三,test\n0012,validation\n"))
    assert [record.split for record in records] == ["validation", "train", "test"]
    assert ("sample two", "no line for this clip, which goes to train") in {(p.name, p.reason) for p in problems}
    with pytest.raises(UserError, match=r"synth_splits.csv, line 2: unknown split 'dev', expected one of train, val"):
        read_mer_caption_plus(_corpus(tmp_path, splits="name,split\n0012,dev\n"))


def test_empty_label_cell_is_no_label(tmp_path: Path) -> None:
    records, problems = read_mer_caption_plus(_corpus(tmp_path, "name,openset\n0012,\nsample two,nan\n第三,[' ']\n"))
    assert [record.text.labels for record in records] == [(), (), ()]
    assert [problem.name for problem in problems] == ["0012", "sample two", "第三"]


def test_duplicate_names_count_once_and_are_told(tmp_path: Path) -> None:
    labels = LABELS + "0012,['angry']\n第三,['sad']\n"
    records, problems = read_mer_caption_plus(_corpus(tmp_path, labels))
    assert [record.name for record in records] == ["0012", "sample two", "第三"]
    assert records[0].text.labels == ("angry",)
    assert [(problem.name, problem.reason) for problem in problems[:2]] == [
        ("0012", "line 5: repeats line 2 and says something else; the last one counts"),
        ("第三", "line 6: repeats line 4 and says the same"),
    ]


def test_lines_that_cannot_be_used(tmp_path: Path) -> None:
    labels = LABELS + ",['happy']\n../0012,['happy']\na,b,c\n\nonly one\n"
    records, problems = read_mer_caption_plus(_corpus(tmp_path, labels))
    assert len(records) == 3
    assert [problem.reason for problem in problems[:4]] == [
        "line 5: '' cannot name a clip; the line is skipped",
        "line 6: '../0012' cannot name a clip; the line is skipped",
        "line 7: 3 cells under 2 columns; the line is skipped",
        "line 9: 1 cells under 2 columns; the line is skipped",
    ]


def test_tables_that_do_not_cover_each_other(tmp_path: Path) -> None:
    root = _corpus(tmp_path, descriptions="name,reason\n0012,x\nother,y\n", subtitles="name,english\n0012,x\n")
    records, problems = read_mer_caption_plus(root)
    assert [record.text.description for record in records] == ["x", "", ""]
    assert [record.text.subtitle for record in records] == ["x", "", ""]
    told = {(problem.name, problem.file) for problem in problems}
    assert {("第三", "track3_train_mercaptionplus.csv"), ("第三", "subtitle_chieng.csv")} <= told
    assert ("other", "track3_train_mercaptionplus.csv") in told


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"labels": "name,labels\n0012,x\n"},
            r"track2.* has no column 'openset'; expected at least name, openset, found 'name', 'labels'",
        ),
        ({"descriptions": "clip,reason\n0012,x\n"}, r"track3.* has no column 'name'"),
        ({"subtitles": ""}, r"subtitle_chieng.csv has no column 'name'; .* found no header at all"),
        ({"labels": "name,openset\n"}, "lists no clip"),
        ({"labels": 'name,openset\n0012,"[happy\n'}, r"track2.*, line 2: .* Mend the quotes"),
    ],
)
def test_unusable_tables(tmp_path: Path, tables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_mer_caption_plus(_corpus(tmp_path, **tables))


def test_missing_and_undecodable_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no .*track2.*A MER-Caption\+ folder holds"):
        read_mer_caption_plus(tmp_path)
    root = _corpus(tmp_path)
    (root / "subtitle_chieng.csv").write_bytes("name,english\n0012,你好\n".encode("gb18030"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_mer_caption_plus(root)
