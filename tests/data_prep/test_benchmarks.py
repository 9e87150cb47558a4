"""The nine folders of MER-UniBench in the reference's layout, each written here by hand, and the synthetic corpus."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.shard_schema import Stream
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, find_dataset
from affectgpt_jax.unibench.truth import read_truth
from data_prep.benchmarks import find_benchmark_folder, read_benchmark
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import Listing
from data_prep.synth import SplitCounts, write_corpus
from tests.conftest import reference_folder
from tests.data_prep.test_prepare import FakeEncoders
from tests.media_files import tone, write_faces, write_video, write_wav

POLISHED = "transcription-engchi-polish.csv"


class Layout(NamedTuple):
    """A folder as the reference has it, and clips to put into it: name -> class, value or words, and what they mean."""

    folder: str
    labels: str
    video: str
    ending: str
    audio: str
    table: str
    column: str
    test: Mapping[str, Any]
    expected: tuple[tuple[str, ...], ...]
    corpus: str = "test_corpus"
    validation: Mapping[str, Any] | None = None


LAYOUTS = {
    "mer2023": Layout(
        "mer2023-dataset-process", "label-6way.npz", "video", ".avi", "audio", POLISHED, "english",
        {"sample_00001998": "worried", "samplenew_00003564": "surprised"}, (("worried",), ("surprise",)),
        "test1_corpus",
    ),
    "mer2024": Layout(
        "mer2024-dataset-process", "label-6way.npz", "video", ".mp4", "audio", "transcription_merge.csv", "chinese",
        {"samplenew3_00000002": "angry", "samplenew3_00000001": "neutral"}, (("angry",), ("neutral",)),
        "test1_corpus",
    ),
    "meld": Layout(
        "meld-process", "label.npz", "subvideo", ".mp4", "subaudio", POLISHED, "english",
        {"test_dia0_utt0": 6, "test_dia0_utt1": np.int64(0)}, (("surprise",), ("anger",)),
        validation={"val_dia0_utt0": 2},
    ),
    "iemocap": Layout(
        "iemocap-process", "label_4way.npz", "subvideo-tgt", ".avi", "subaudio", POLISHED, "english",
        {"Ses05M_impro02_F001": 1, "Ses05F_script01_1_M012": 3}, (("sad",), ("anger",)), "whole_corpus",
    ),
    "cmumosi": Layout(
        "cmumosi-process", "label.npz", "subvideo", ".mp4", "subaudio", POLISHED, "english",
        {"k5Y_838nuGo_1": np.float64(-1.6), "-cEhr0cQcDM_2": np.float64(1.2)}, ((), ()),
        validation={"atnd_PF-Lbs_1": np.float64(-3.0)},
    ),
    "cmumosei": Layout(
        "cmumosei-process", "label.npz", "subvideo_new", ".mp4", "subaudio", POLISHED, "english",
        {"zk2jTlAtvSU_0": np.float64(0.3), "-6rXp3zJ3kc_10": np.float64(0.0)}, ((), ()),
        validation={"_4K620KW_Is_3": np.float64(1.0)},
    ),
    "sims": Layout(
        "sims-process", "label.npz", "video", ".mp4", "audio", POLISHED, "english",
        {"video_0003_0006": np.float64(-1.0), "video_0010_0038": np.float64(0.8)}, ((), ()),
        validation={"video_0038_0028": np.float64(0.0)},
    ),
    "simsv2": Layout(
        "simsv2-process", "label.npz", "video_new", ".mp4", "audio", POLISHED, "english",
        {"aqgy3_0001_00000": np.float64(0.4), "video_0001_0001": np.float64(-0.4)}, ((), ()),
        validation={"aqgy4_0002_00001": np.float64(0.2)},
    ),
    "ovmerdplus": Layout(
        "ovmerdplus-process", "ovlabel.csv", "video", ".mp4", "audio", "subtitle_eng.csv", "sentence",
        {"sample_00000000": "['happy', 'very calm']", "0012": "[]"}, (("happy", "very calm"), ("neutral",)),
    ),
}  # fmt: skip


class Media(NamedTuple):
    """One tiny file of each kind."""

    mp4: Path
    avi: Path
    wav: Path
    npy: Path


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return make_media(tmp_path_factory.mktemp("media"))


def make_media(folder: Path) -> Media:
    """Write them."""
    sound = tone(0.5, 44_100)[None]
    return Media(
        write_video(folder / "a.mp4", 6, height=48, width=64, sound=sound),
        write_video(folder / "a.avi", 5, height=48, width=64, codec="mpeg4"),
        write_wav(folder / "a.wav", tone(0.3)),
        write_faces(folder / "a.npy", np.full((3, 8, 9, 3), 7, np.uint8)),
    )


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write_labels(path: Path, key: str, **corpora: Mapping[str, Any]) -> None:
    """Labels as the reference pickles them; words as CSV."""
    (entries, *_) = corpora.values()
    if path.suffix == ".csv":
        _write_table(path, ("name", "openset"), list(entries.items()))
        return
    sentiment = find_dataset(key).task == "sentiment"
    pickled = {
        corpus: {
            name: {"emo": 0, "val": value} if sentiment else {"emo": value, "val": -10} for name, value in part.items()
        }
        for corpus, part in corpora.items()
    }
    np.savez_compressed(path, **{corpus: np.array(part, object) for corpus, part in pickled.items()})


def write_layout(data_root: Path, key: str, media: Media) -> Path:
    """A dataset's folder, whole: also with clips of the label file and lines of the table that are not scored."""
    layout = LAYOUTS[key]
    root = data_root / layout.folder
    root.mkdir(parents=True)
    unscored = "Ses01F_impro01_F000" if key == "iemocap" else "unscored"
    corpora: dict[str, Mapping[str, Any]] = {layout.corpus: layout.test}
    if key == "iemocap":
        corpora[layout.corpus] = {unscored: 0, **layout.test}
    elif layout.labels.endswith(".npz"):
        corpora["train_corpus"] = {unscored: next(iter(layout.test.values()))}
    if layout.validation is not None:
        corpora["val_corpus"] = layout.validation
    _write_labels(root / layout.labels, key, **corpora)
    names = [*layout.test, *(layout.validation or {})]
    other = "english" if layout.column == "chinese" else "chinese"
    rows = [(name, f"{other} {name}", f'"So," {name}') for name in (unscored, *reversed(names))]
    _write_table(root / layout.table, ("name", other, layout.column), rows)
    for name in (*names, unscored):
        _copy(media.avi if layout.ending == ".avi" else media.mp4, root / layout.video / f"{name}{layout.ending}")
        _copy(media.wav, root / layout.audio / f"{name}.wav")
        _copy(media.npy, root / "openface_face" / f"{name}.npy")
    return root


def _names(listing: Listing, split: str) -> list[str]:
    return [record.name for record in listing.records if record.split == split]


def _told(listing: Listing) -> list[tuple[str, str, str]]:
    return [(problem.name, problem.file, problem.reason) for problem in listing.problems]


def test_there_is_a_layout_of_every_dataset() -> None:
    assert list(LAYOUTS) == [dataset.key for dataset in DATASETS]


@pytest.mark.parametrize("key", LAYOUTS)
def test_every_folder_is_read_as_it_is(tmp_path: Path, media: Media, key: str) -> None:
    layout, dataset = LAYOUTS[key], find_dataset(key)
    root = write_layout(tmp_path, key, media)
    assert find_benchmark_folder(dataset, tmp_path) == find_benchmark_folder(dataset, str(root)) == root
    listing = read_benchmark(dataset, root, any_count=True)
    assert listing.problems == ()
    assert _names(listing, "test") == list(layout.test) == list(read_truth(dataset, root, any_count=True).names)
    assert _names(listing, "validation") == list(layout.validation or {})
    assert len(listing.records) == len(layout.test) + len(layout.validation or {})
    assert tuple(record.text.labels for record in listing.records[:2]) == layout.expected
    for record in listing.records:
        name = record.name
        assert record.text.subtitle == f'"So," {name}'
        assert record.text.chinese == (record.text.subtitle if layout.column == "chinese" else f"chinese {name}")
        assert record.text.description == ""
        assert record.files == ClipFiles(
            root / layout.video / f"{name}{layout.ending}",
            root / layout.audio / f"{name}.wav",
            root / "openface_face" / f"{name}.npy",
        )
    files = listing.records[0].files
    frames = read_modality(files, Stream("frame", 3))
    source = media.avi if layout.ending == ".avi" else media.mp4
    np.testing.assert_array_equal(frames, read_modality(ClipFiles(video=source), Stream("frame", 3)))
    assert frames is not None
    assert (frames.shape, frames.std() > 10) == ((3, 224, 224, 3), True)
    faces, sound = (read_modality(files, Stream(modality, 2)) for modality in ("face", "audio"))
    assert faces is not None
    assert sound is not None
    assert (faces.shape, np.unique(faces).tolist()) == ((2, 224, 224, 3), [7])
    assert (sound.shape, np.abs(sound).max() > 1) == ((2, 32_000), True)


@pytest.mark.parametrize("key", LAYOUTS)
def test_the_number_of_scored_clips_is_the_benchmarks(tmp_path: Path, media: Media, key: str) -> None:
    dataset = find_dataset(key)
    with pytest.raises(UserError, match=rf"expected the {dataset.clips:,} clips that MER-UniBench .* found 2; --any"):
        read_benchmark(dataset, write_layout(tmp_path, key, media))


def test_the_released_label_files(tmp_path: Path) -> None:
    """Counts of every label file of the benchmark that is there, in a folder with nothing else but its table."""
    labels = reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench") / "labels"
    splits = {}
    for dataset in DATASETS:
        if not (labels / dataset.folder / dataset.label_file).is_file():
            continue
        root = tmp_path / dataset.folder
        _copy(labels / dataset.folder / dataset.label_file, root / dataset.label_file)
        _write_table(root / LAYOUTS[dataset.key].table, ("name", LAYOUTS[dataset.key].column), [])
        listing = read_benchmark(dataset, root)
        splits[dataset.key] = {split: len(_names(listing, split)) for split in ("test", "validation")}
        assert splits[dataset.key]["test"] == dataset.clips
        assert len({record.name for record in listing.records}) == len(listing.records)
    assert splits
    known = {"mer2023": (411, 0), "meld": (2610, 1109), "cmumosi": (686, 229), "sims": (457, 456)}
    assert {key: tuple(counts.values()) for key, counts in splits.items()} == {key: known[key] for key in splits}


# ---- subtitles


def test_subtitles_that_are_missing(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "meld", media)
    rows = [
        ("val_dia0_utt0", "None"),
        ("test_dia0_utt1", "nan"),
        ("unscored", "x"),
        ("unscored", "y"),
        ("test_dia0_utt1", ""),
    ]
    _write_table(root / POLISHED, ("name", "english"), rows)
    with (root / POLISHED).open("a") as file:
        file.write("unscored,a,b\n")
    listing = read_benchmark(find_dataset("meld"), root, any_count=True)
    assert [record.text.subtitle for record in listing.records] == ["", "", "None"]
    assert _told(listing) == [
        ("test_dia0_utt1", POLISHED, "line 6: repeats line 3 and says something else; the last one counts"),
        ("", POLISHED, "line 7: 3 cells under 2 columns; the line is skipped"),
        ("test_dia0_utt0", POLISHED, "no line for this clip, which is kept without that text"),
    ]


@pytest.mark.parametrize("key", LAYOUTS)
def test_no_table_of_subtitles(tmp_path: Path, media: Media, key: str) -> None:
    layout, dataset = LAYOUTS[key], find_dataset(key)
    root = write_layout(tmp_path, key, media)
    _write_table(root / layout.table, ("name", "text"), [])
    with pytest.raises(UserError, match=rf"{layout.table} has no column '{layout.column}'; expected at least name"):
        read_benchmark(dataset, root, any_count=True)
    (root / layout.table).unlink()
    with pytest.raises(UserError) as caught:
        read_benchmark(dataset, root, any_count=True)
    assert str(caught.value).startswith(f"there is no {root / layout.table}; expected the reference's layout:")
    for part in (
        f"{layout.folder}/ with {layout.labels}, {layout.table} (columns name, {layout.column})",
        f"{layout.video}/NAME.",
        layout.ending,
        f"{layout.audio}/NAME.wav and openface_face/NAME.npy",
    ):
        assert part in str(caught.value)


# ---- media


@pytest.mark.parametrize("key", ["mer2023", "mer2024"])
def test_mp4_goes_before_avi(tmp_path: Path, media: Media, key: str) -> None:
    """As in the reference; the others have videos of one kind."""
    root = write_layout(tmp_path, key, media)
    first, second = LAYOUTS[key].test
    for name in (first, second):
        (root / "video" / f"{name}{LAYOUTS[key].ending}").unlink()
    _copy(media.avi, root / "video" / f"{first}.avi")
    _copy(media.avi, root / "video" / f"{second}.avi")
    _copy(media.mp4, root / "video" / f"{second}.mp4")
    videos = [record.files.video for record in read_benchmark(find_dataset(key), root, any_count=True).records]
    assert videos == [root / "video" / f"{first}.avi", root / "video" / f"{second}.mp4"]


def test_faces_in_a_folder_a_clip(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "sims", media)
    faces = root / "openface_face"
    shutil.rmtree(faces)
    first, second, third = (
        record.name for record in read_benchmark(find_dataset("sims"), root, any_count=True).records
    )
    nested = _copy(media.npy, faces / first / f"{first}.npy")
    _copy(media.npy, faces / second / f"{second}.npy")
    flat = _copy(media.npy, faces / f"{second}.npy")
    (faces / third).mkdir()
    listing = read_benchmark(find_dataset("sims"), root, any_count=True)
    assert [record.files.faces for record in listing.records] == [nested, flat, None]
    assert _told(listing) == [("", "openface_face", f"1 of 3 clips have no file here: {third}")]


def test_absent_media_are_told(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "meld", media)
    (root / "subvideo" / "test_dia0_utt0.mp4").unlink()
    (root / "subaudio" / "test_dia0_utt0.wav").unlink()
    (root / "subaudio" / "val_dia0_utt0.wav").unlink()
    listing = read_benchmark(find_dataset("meld"), root, any_count=True)
    assert [[path is not None for path in record.files] for record in listing.records] == [
        [False, False, True],
        [True, True, True],
        [True, False, True],
    ]
    assert _told(listing) == [
        ("test_dia0_utt0", "subvideo/test_dia0_utt0.mp4", "not there; the clip is kept without video"),
        ("test_dia0_utt0", "subaudio/test_dia0_utt0.wav", "not there; the clip is kept without audio"),
        ("val_dia0_utt0", "subaudio/val_dia0_utt0.wav", "not there; the clip is heard from its video"),
    ]
    sound = read_modality(listing.records[2].files, Stream("audio", 1))
    assert sound is not None
    assert read_modality(listing.records[0].files, Stream("audio", 1)) is None


def test_a_folder_that_is_missing_is_told_once(tmp_path: Path, media: Media) -> None:
    layout = LAYOUTS["mer2023"]
    root = write_layout(tmp_path, "mer2023", media)
    many = {f"sample_{number}": "happy" for number in range(7)}
    _write_labels(root / layout.labels, "mer2023", test1_corpus=many)
    _write_table(root / layout.table, ("name", "english"), [(name, "Yes.") for name in many])
    for folder in ("video", "audio", "openface_face"):
        shutil.rmtree(root / folder)
    listing = read_benchmark(find_dataset("mer2023"), root, any_count=True)
    assert {record.files for record in listing.records} == {ClipFiles()}
    reason = "7 of 7 clips have no file here: sample_0, sample_1, sample_2, sample_3, sample_4, ..."
    assert _told(listing) == [("", folder, reason) for folder in ("video", "audio", "openface_face")]


# ---- labels


def test_a_label_file_without_validation_clips(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "cmumosi", media)
    _write_labels(root / "label.npz", "cmumosi", test_corpus=LAYOUTS["cmumosi"].test)
    listing = read_benchmark(find_dataset("cmumosi"), root, any_count=True)
    assert _names(listing, "validation") == []
    assert _told(listing) == [("", "label.npz", "no val_corpus, so there are no validation clips")]
    (root / "label.npz").unlink()
    (root / "label.csv").write_text("name,value\nk5Y_838nuGo_1,-1.6\n")
    listing = read_benchmark(find_dataset("cmumosi"), root, any_count=True)
    assert [(record.name, record.split) for record in listing.records] == [("k5Y_838nuGo_1", "test")]
    assert _told(listing) == [("", "label.csv", "no val_corpus, so there are no validation clips")]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "."])
def test_names_that_no_file_can_have(tmp_path: Path, media: Media, name: str) -> None:
    root = write_layout(tmp_path, "meld", media)
    _write_labels(root / "label.npz", "meld", test_corpus={name: 0})
    with pytest.raises(UserError, match=r"label\.npz: '.*' cannot name a clip"):
        read_benchmark(find_dataset("meld"), root, any_count=True)


@pytest.mark.parametrize("name", ["name with blanks", "第三", "a.b", "{0}", "-x", "100%"])
def test_names_that_files_can_have(tmp_path: Path, media: Media, name: str) -> None:
    root = write_layout(tmp_path, "meld", media)
    _write_labels(root / "label.npz", "meld", test_corpus={name: 0})
    _write_table(root / POLISHED, ("name", "english"), [(name, "Yes.")])
    _copy(media.mp4, root / "subvideo" / f"{name}.mp4")
    (record,) = read_benchmark(find_dataset("meld"), root, any_count=True).records
    assert (record.name, record.text.subtitle) == (name, "Yes.")
    assert record.files == ClipFiles(video=root / "subvideo" / f"{name}.mp4")


def test_no_folder_and_no_labels(tmp_path: Path, media: Media) -> None:
    dataset = find_dataset("simsv2")
    with pytest.raises(UserError, match=r"there is no folder .*elsewhere; expected .*simsv2-process/ .*video_new/NAME"):
        read_benchmark(dataset, tmp_path / "elsewhere")
    root = write_layout(tmp_path, "simsv2", media)
    (root / "label.npz").unlink()
    with pytest.raises(UserError, match=r"no labels of CH-SIMS v2 at .*label\.npz"):
        read_benchmark(dataset, root)


# ---- where folders are found


def test_a_folder_of_another_name_is_known_by_its_labels(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "ovmerdplus", media).rename(tmp_path / "mine")
    assert find_benchmark_folder(find_dataset("ovmerdplus"), root) == root
    with pytest.raises(UserError, match=r"there is no folder of MELD at .*mine; expected .*meld-process/ with label"):
        find_benchmark_folder(find_dataset("meld"), root)


def test_a_label_file_of_the_same_name_does_not_make_another_dataset(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "meld", media)
    assert find_benchmark_folder(find_dataset("meld"), root) == root
    for place in (tmp_path, root, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no folder of CMU-MOSI"):
            find_benchmark_folder(find_dataset("cmumosi"), place)


def test_a_link_counts_by_its_own_name(tmp_path: Path, media: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_layout(tmp_path, "meld", media).rename(tmp_path / "cmumosi-process")
    (tmp_path / "data").mkdir()
    link = tmp_path / "data" / "meld-process"
    link.symlink_to(store)
    assert find_benchmark_folder(find_dataset("meld"), link) == link
    monkeypatch.chdir(link.parent)
    assert find_benchmark_folder(find_dataset("meld"), ".") == Path("meld-process")


# ---- the synthetic corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "corpus"
    write_corpus(folder, SplitCounts(train=2, validation=1, test=2), seed=5, workers=1)
    return folder


def test_the_synthetic_corpus_is_one_more_dataset(corpus: Path, tmp_path: Path) -> None:
    assert find_benchmark_folder(SYNTHETIC, corpus) == corpus
    (tmp_path / "synthetic").symlink_to(corpus)
    assert find_benchmark_folder(SYNTHETIC, tmp_path) == tmp_path / "synthetic"
    listing = read_benchmark(SYNTHETIC, corpus)
    assert listing.problems == ()
    assert [record.split for record in listing.records] == ["test", "test", "validation"]
    test, validation = read_truth(SYNTHETIC, corpus), read_truth(SYNTHETIC, corpus, "validation")
    assert tuple(record.name for record in listing.records) == (*test.names, *validation.names)
    assert tuple(record.text.labels for record in listing.records) == (*test.labels, *validation.labels)
    for record in listing.records:
        assert record.text.subtitle
        for modality in ("frame", "face", "audio"):
            assert read_modality(record.files, Stream(modality, 1)) is not None


def test_a_synthetic_corpus_that_lacks_something(corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "corpus"
    shutil.copytree(corpus, copy)
    (copy / "video" / "synth5_test_00001.mp4").unlink()
    shutil.rmtree(copy / "openface_face" / "synth5_validation_00000")
    (copy / "audio" / "synth5_train_00000.wav").unlink()
    _write_table(copy / "subtitle_chieng.csv", ("name", "english"), [("synth5_test_00001", "Fine.")])
    listing = read_benchmark(SYNTHETIC, copy)
    assert [record.text.subtitle for record in listing.records] == ["", "Fine.", ""]
    lacking = [name for name, file, _ in _told(listing) if file == "subtitle_chieng.csv"]
    assert sorted(lacking) == ["synth5_test_00000", "synth5_validation_00000"]
    assert len(listing.problems) == 4
    assert _told(listing)[-2:] == [
        ("synth5_test_00001", "video/synth5_test_00001.mp4", "not there; the clip is kept without video"),
        ("", "openface_face", "1 of 3 clips have no file here: synth5_validation_00000"),
    ]
    (copy / "synth_splits.csv").unlink()
    with pytest.raises(UserError, match=r"has no test clip; write a corpus with some: `affectgpt synth DIR --test N`"):
        read_benchmark(SYNTHETIC, copy)
    with pytest.raises(
        UserError, match=r"there is no folder of synthetic at .*; expected a corpus, or synthetic/ with"
    ):
        find_benchmark_folder(SYNTHETIC, copy)


# ---- on to the shards


@pytest.mark.parametrize("key", ["iemocap", "meld"])
def test_a_listing_is_prepared(tmp_path: Path, media: Media, key: str) -> None:
    layout, dataset = LAYOUTS[key], find_dataset(key)
    root = write_layout(tmp_path, key, media)
    listing = read_benchmark(dataset, root, any_count=True)
    streams = ("face@2", "frame@2", "audio@2")
    settings = PrepareSettings(streams=streams, batch_clips=2, progress=False)
    report = prepare(listing.records, FakeEncoders(), settings, tmp_path / "out", listing.problems)
    assert (report.broken, report.dropped) == ((), ())
    assert report.present == dict.fromkeys(streams, len(listing.records))
    shards = open_corpus(tmp_path / "out", "test", streams)
    assert tuple(shards.names) == read_truth(dataset, root, any_count=True).names
    assert shards.texts() == [record.text for record in listing.records if record.split == "test"]
    if layout.validation is not None:
        assert list(open_corpus(tmp_path / "out", "validation", streams).names) == list(layout.validation)
