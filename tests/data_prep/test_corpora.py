"""One way to name a corpus: what a folder is by its files, KIND:PATH, and what to do where it could be several."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, find_dataset
from data_prep.benchmarks import read_benchmark
from data_prep.corpora import TITLES, Corpus, find_corpus, read_corpus
from data_prep.manifest import read_manifest_file
from data_prep.readers import read_mer_caption, read_mer_caption_plus, read_ov_merd
from data_prep.synth import SplitCounts, write_corpus
from tests.data_prep.test_benchmarks import LAYOUTS, Media, make_media, write_layout
from tests.media_files import tone, write_faces, write_wav

PLUS = {
    "track2_train_mercaptionplus.csv": "name,openset\n0012,\"['happy', 'calm']\"\nsample two,[]\n",
    "track3_train_mercaptionplus.csv": "name,reason\n0012,She smiles.\nsample two,Calm.\n",
}
OV_MERD = {
    "track2_train_ovmerd.csv": "name,openset\nsample_1,\"['sad']\"\n0012,[worried]\n",
    "track3_train_ovmerd.csv": 'name,reason\nsample_1,"In the text, ""no"", she weeps."\n0012,He frowns.\n',
}
SUBTITLES = {"subtitle_chieng.csv": "name,chinese,english\n0012,你好,Hello\nsample_1,不,No\nsample two,,nan\n"}


def write_tables(root: Path, *tables: dict[str, str]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for table in (*tables, SUBTITLES):
        for name, content in table.items():
            (root / name).write_text(content, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return make_media(tmp_path_factory.mktemp("media"))


# ---- the releases in the layout of MER2025


def test_ov_merd(tmp_path: Path) -> None:
    """Its tables lie beside those of MER-Caption+, as in the release; it is no part of that."""
    root = write_tables(tmp_path, PLUS, OV_MERD)
    write_wav(root / "audio" / "sample_1.wav", tone(0.1))
    write_faces(root / "openface_face" / "0012" / "0012.npy", np.zeros((1, 2, 2, 3), np.uint8))
    records, problems = read_ov_merd(root)
    assert problems == ()
    assert [record.text for record in records] == [
        TextRecord("sample_1", "train", "No", "不", ("sad",), 'In the text, "no", she weeps.'),
        TextRecord("0012", "train", "Hello", "你好", ("worried",), "He frowns."),
    ]
    assert [record.files for record in records] == [
        (None, root / "audio" / "sample_1.wav", None),
        (None, None, root / "openface_face" / "0012" / "0012.npy"),
    ]
    assert [record.name for record in read_mer_caption_plus(root).records] == ["0012", "sample two"]
    (root / "track3_train_ovmerd.csv").unlink()
    with pytest.raises(UserError, match=r"There is no .*track3_train_ovmerd\.csv\. An OV-MERD folder holds track2_tr"):
        read_ov_merd(root)


def test_mer_caption_by_its_table(tmp_path: Path) -> None:
    root = write_tables(tmp_path, PLUS)
    (root / "all.csv").write_text("name,reason\nsample two,Calm.\n0012,She smiles.\n")
    (root / "both.csv").write_text("name,reason,openset\n0012,She smiles.,\"['happy']\"\nx,,\n")
    texts = [record.text for record in read_mer_caption(root / "all.csv").records]
    assert texts == [TextRecord("sample two", "train", description="Calm."),
                     TextRecord("0012", "train", "Hello", "你好", (), "She smiles.")]  # fmt: skip
    assert read_mer_caption(root / "all.csv").problems == ()
    records, problems = read_mer_caption(root / "both.csv")
    assert records[0].text == TextRecord("0012", "train", "Hello", "你好", ("happy",), "She smiles.")
    assert [(it.name, it.file, it.reason) for it in problems] == [
        ("x", "subtitle_chieng.csv", "no line for this clip, which is kept without that text"),
        ("x", "both.csv", "line 3: no label, which trains as neutral"),
    ]
    # A pair that is called like the other releases' is one.
    assert read_mer_caption(root / "track2_train_mercaptionplus.csv") == read_mer_caption_plus(root)


def test_mer_caption_tables_that_cannot_be_used(tmp_path: Path) -> None:
    root = write_tables(tmp_path, PLUS)
    with pytest.raises(UserError, match=r"there is no file .*all\.csv; name MER-Caption's table \(columns name, and"):
        read_mer_caption(root / "all.csv")
    (root / "all.csv").write_text("name,text\n0012,x\n")
    with pytest.raises(UserError, match=r"neither a column 'openset' nor 'reason'; .*found 'name', 'text'"):
        read_mer_caption(root / "all.csv")
    (root / "all.csv").write_text("name,openset\n")
    with pytest.raises(UserError, match=r"all\.csv lists no clip"):
        read_mer_caption(root / "all.csv")


# ---- what a folder is


def test_a_release_is_known_by_its_tables(tmp_path: Path) -> None:
    plus, ov_merd = write_tables(tmp_path / "a", PLUS), write_tables(tmp_path / "b", OV_MERD)
    assert find_corpus(str(plus)) == Corpus("mercaptionplus", plus)
    assert find_corpus(str(ov_merd)) == Corpus("ovmerd", ov_merd)
    assert read_corpus(str(plus)) == read_mer_caption_plus(plus)
    assert read_corpus(str(ov_merd)) == read_ov_merd(ov_merd)


def test_a_folder_of_two_releases_asks_which(tmp_path: Path) -> None:
    root = write_tables(tmp_path, PLUS, OV_MERD)
    with pytest.raises(UserError) as caught:
        read_corpus(str(root))
    assert str(caught.value) == (
        f"{root} could be several corpora; name one of them: mercaptionplus:{root} or ovmerd:{root}"
    )
    assert read_corpus(f"mercaptionplus:{root}") == read_mer_caption_plus(root)
    assert read_corpus(f"OV-MERD:{root}") == read_ov_merd(root)


def test_a_synthetic_corpus_is_read_whole(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_corpus(root, SplitCounts(2, 1, 1), seed=5, workers=1)
    assert find_corpus(str(root)).kind == "synthetic"
    assert [record.split for record in read_corpus(str(root)).records] == ["train", "train", "validation", "test"]
    assert read_corpus(f"synthetic:{root}") == read_corpus(str(root)) == read_mer_caption_plus(root)
    assert find_corpus(str(root)).clips is None


@pytest.mark.parametrize("key", LAYOUTS)
def test_a_folder_of_the_benchmark(tmp_path: Path, media: Media, key: str) -> None:
    """By its name, as the only one in a folder of data sets, and explicitly, whatever it is called."""
    dataset = find_dataset(key)
    root = write_layout(tmp_path, key, media)
    expected = read_benchmark(dataset, root, any_count=True)
    for name in (str(root), str(tmp_path), f"{key}:{root}", f"{dataset.title}:{tmp_path}"):
        assert find_corpus(name) == Corpus(key, root)
        assert read_corpus(name) == expected
    renamed = root.rename(tmp_path / "mine")
    assert read_corpus(f"{key}:{renamed}").records[0].text == expected.records[0].text
    assert (find_corpus(f"{key}:{renamed}").dataset, find_corpus(f"{key}:{renamed}").clips) == (dataset, dataset.clips)


def test_a_folder_that_could_be_several(tmp_path: Path, media: Media) -> None:
    renamed = write_layout(tmp_path, "meld", media).rename(tmp_path / "mine")
    with pytest.raises(UserError, match=rf"several corpora; name one of them: meld:{renamed} or cmumosi:{renamed} or "):
        find_corpus(str(renamed))
    write_layout(tmp_path, "sims", media)
    write_layout(tmp_path, "iemocap", media)
    root = tmp_path
    with pytest.raises(UserError, match=rf"name one of them: iemocap:{root}/iemocap-process or sims:{root}/sims-proc"):
        find_corpus(str(root))


def test_a_manifest_and_its_explicit_name(tmp_path: Path) -> None:
    for file in ("m.csv", "m.jsonl", "a:b.csv", "meld:x.csv"):
        content = '{"name": "a", "subtitle": "x"}\n' if file.endswith("l") else "name,subtitle\na,x\n"
        (tmp_path / file).write_text(content)
        assert find_corpus(str(tmp_path / file)) == Corpus("manifest", tmp_path / file)
    assert read_corpus(f"manifest:{tmp_path / 'm.csv'}") == read_manifest_file(tmp_path / "m.csv")


def test_a_file_that_is_there_goes_before_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("manifest:x.csv").write_text("name,subtitle\na,x\n")
    assert find_corpus("manifest:x.csv") == Corpus("manifest", Path("manifest:x.csv"))


def test_mer_caption_is_named_by_its_table(tmp_path: Path) -> None:
    root = write_tables(tmp_path, PLUS)
    (root / "all.csv").write_text("name,reason\n0012,x\n")
    assert read_corpus(f"mercaption:{root / 'all.csv'}") == read_mer_caption(root / "all.csv")
    with pytest.raises(UserError, match=r"is no file; name MER-Caption's table, .*: mercaption:DIR/TABLE\.csv with"):
        read_corpus(f"mercaption:{root}")


def test_every_kind_has_a_title_and_the_releases_a_count() -> None:
    counts = {kind: Corpus(kind, Path()).clips for kind in TITLES}
    own = {"mercaptionplus": 31_327, "mercaption": 115_595, "ovmerd": 332, "synthetic": None, "manifest": None}
    assert counts == own | {dataset.key: dataset.clips for dataset in DATASETS}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{root}/nowhere", r"there is no corpus .*nowhere; expected a folder, a manifest or KIND:PATH"),
        (
            "meldd:{root}",
            r"there is no corpus meldd:.*; 'meldd' is no kind of corpus, expected one of mercaptionplus, ",
        ),
        ("{root}/notes.txt", r"notes\.txt is no corpus; expected a folder or a manifest \(\.csv, \.jsonl, \.parquet\)"),
        ("{root}", r"no corpus that is known by its files \(found notes\.txt\); .*Otherwise say what it is: KIND:/"),
        ("{root}/empty", r"known by its files \(found nothing\)"),
        ("mercaptionplus:{root}/nowhere", r"mercaptionplus:.*: there is no folder .*nowhere"),
        ("manifest:{root}", r"manifest:.*: there is no file .*; expected a manifest"),
        ("meld:{root}", r"there is no folder of MELD at .*; expected the reference's layout"),
        ("ovmerd:{root}", r"There is no .*track2_train_ovmerd\.csv\. An OV-MERD folder holds"),
    ],
)
def test_names_that_name_nothing(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message.replace("found notes", "found empty, notes")):
        read_corpus(name.format(root=tmp_path))
