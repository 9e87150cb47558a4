"""Checks of corpora: every fault that a corpus can have is found, named, and weighed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import find_dataset
from affectgpt_jax.unibench.truth import read_truth
from data_prep.check import CheckReport, CheckSettings, Finding, benchmark_names, check
from data_prep.corpora import find_corpus
from data_prep.prepare import PrepareSettings, prepare
from data_prep.synth import SplitCounts, write_corpus
from tests.conftest import reference_folder
from tests.data_prep.test_benchmarks import LAYOUTS, Media, make_media, write_layout
from tests.data_prep.test_corpora import OV_MERD, PLUS, write_tables
from tests.data_prep.test_manifest import write_manifest
from tests.data_prep.test_prepare import FakeEncoders
from tests.media_files import tone, truncate, write_faces, write_video, write_wav

FASTSTART = {"movflags": "faststart"}  # the index first: the header survives a cut


class Bars:
    """A progress that remembers its stages: title, and what it was told last."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []

    def __call__(self, title: str) -> Callable[[int, int], None]:
        self.stages.append([title, 0, 0])
        return lambda done, total: self.stages[-1].__setitem__(slice(1, None), [done, total])


def checked(name: Path | str, **settings: Any) -> CheckReport:
    return check(find_corpus(str(name)), CheckSettings(**settings), Bars())


def findings(report: CheckReport, topic: str) -> list[Finding]:
    return list(next(it for it in report.topics if it.name == topic).findings)


def facts(report: CheckReport, topic: str) -> dict[str, Any]:
    return dict(next(it for it in report.topics if it.name == topic).facts)


def lines(report: CheckReport, topic: str) -> list[str]:
    return list(next(it for it in report.topics if it.name == topic).lines)


def manifest(folder: Path, **clips: dict[str, Any]) -> Path:
    """A manifest of clips by name; each says something, so that it is no fault that it has no media."""
    return write_manifest(folder / "m.jsonl", [{"name": name, "subtitle": "x"} | clip for name, clip in clips.items()])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return make_media(tmp_path_factory.mktemp("media"))


# ---- a corpus without faults


def test_a_synthetic_corpus_is_sound(tmp_path: Path) -> None:
    write_corpus(tmp_path, SplitCounts(3, 1, 2), seed=3, workers=1)
    bars = Bars()
    report = check(find_corpus(str(tmp_path)), CheckSettings(), bars)
    assert [it for topic in report.topics for it in topic.findings] == []
    assert [report.count(severity) for severity in ("error", "warning", "note")] == [0, 0, 0]
    assert facts(report, "clips") == {
        "clips": 6, "splits": {"train": 3, "validation": 1, "test": 2}, "released": None
    }  # fmt: skip
    assert facts(report, "media") == {"opened": 6, "fast": False, "usable": {"picture": 6, "sound": 6, "face": 6}}
    assert facts(report, "texts") == {"subtitle": 6, "description": 6}
    assert [stage[0] for stage in bars.stages] == [
        "media",
        *(f"identical files of {it}" for it in ("video", "audio", "faces")),
    ]
    assert len(bars.stages) == CheckSettings().stages
    assert bars.stages[0] == ["media", 6, 6]
    fast = checked(tmp_path, fast=True)
    assert facts(fast, "durations") == facts(report, "durations")
    assert facts(fast, "faces") == facts(report, "faces")
    assert CheckSettings(fast=True).stages == 1


# ---- counts


@pytest.mark.parametrize(("tables", "released"), [(PLUS, "MER-Caption+ has 31,327"), (OV_MERD, "OV-MERD has 332")])
def test_a_count_that_is_not_the_releases(tmp_path: Path, tables: dict[str, str], released: str) -> None:
    (found,) = findings(checked(write_tables(tmp_path, tables)), "clips")
    assert found.severity == "error"
    assert found.text.startswith(f"{released} clips, here are 2 (-3")


def test_the_count_of_a_benchmark_is_that_of_its_scored_clips(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "meld", media)
    report = checked(root)
    assert findings(report, "clips") == [Finding("error", "MELD has 2,610 scored clips, here are 2 (-2,608)")]
    assert facts(report, "clips")["splits"] == {"test": 2, "validation": 1}


def test_the_released_label_files_are_found_whole(tmp_path: Path) -> None:
    """The count of each label file of the benchmark that is there; the classes of those that have some."""
    labels = reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench") / "labels"
    for key in ("meld", "mer2023", "sims"):
        dataset = find_dataset(key)
        if not (labels / dataset.folder / dataset.label_file).is_file():
            continue
        root = tmp_path / dataset.folder
        root.mkdir()
        (root / dataset.label_file).symlink_to(labels / dataset.folder / dataset.label_file)
        (root / dataset.media.subtitles).write_text(f"name,{dataset.media.column}\n")
        report = checked(root)
        assert findings(report, "clips") == []
        if dataset.classes:
            classes = facts(report, "labels")["classes"]["test"]
            assert (list(classes), sum(classes.values())) == (list(dataset.classes), dataset.clips)
            assert min(classes.values()) > 0
        *_, nothing = findings(report, "files")
        assert (nothing.severity, nothing.text) == ("error", "clips with neither media nor a subtitle")
        assert len(nothing.where) == facts(report, "clips")["clips"]


# ---- tables


def test_the_same_fault_of_many_lines_is_one_finding(tmp_path: Path) -> None:
    labels = "name,openset\n" + "".join(f"c{i},['joy']\n" for i in range(7)) + "c0,['sad']\nc1,['sad']\na/b,x\n.,x\n"
    tables = {
        "track2_train_mercaptionplus.csv": labels,
        "track3_train_mercaptionplus.csv": "name,reason\nc0,x\n",
        "subtitle_chieng.csv": "name,english\n" + "".join(f"c{i},x\n" for i in range(7)),
    }
    report = checked(write_tables(tmp_path, tables, {}), fast=True)
    (tmp_path / "subtitle_chieng.csv").write_text(tables["subtitle_chieng.csv"])
    report = checked(tmp_path, fast=True)
    labels, descriptions = "track2_train_mercaptionplus.csv", "track3_train_mercaptionplus.csv"
    assert findings(report, "tables") == [
        Finding("warning", f"{labels}: repeats ... and says something else; the last one counts",
                ("c0, line 9: repeats line 2 and says something else; the last one counts",
                 "c1, line 10: repeats line 3 and says something else; the last one counts")),
        Finding("warning", f"{labels}: ... cannot name a clip; the line is skipped",
                ("a/b, line 11: 'a/b' cannot name a clip; the line is skipped",
                 "., line 12: '.' cannot name a clip; the line is skipped")),
        Finding("warning", f"{descriptions}: no line for this clip, which is kept without that text",
                tuple(f"c{i}" for i in range(1, 7))),
    ]  # fmt: skip
    assert (
        f"warning: {descriptions}: no line for this clip, which is kept without that text: 6 (c1, c2, c3, c4, c5, ...)"
        in report.text()
    )


def test_what_a_reader_says_about_media_is_told_with_them(tmp_path: Path, media: Media) -> None:
    root = write_layout(tmp_path, "meld", media)
    (root / "subvideo" / "test_dia0_utt0.mp4").unlink()
    report = checked(root)
    assert lines(report, "tables") == ["as expected"]
    assert findings(report, "files") == [Finding("warning", "clips without a file of video", ("test_dia0_utt0",))]


def test_unknown_columns_and_skipped_rows_of_a_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path, a={"fold": 3, "age": 4}, b={"split": "dev"})
    assert [str(it).partition("; known")[0] for it in findings(checked(path), "tables")] == [
        "warning: m.jsonl: unknown split 'dev', expected one of train, validation, test; the line is skipped: "
        "1 (b, line 2)",
        "warning: m.jsonl: column ..., first in ..., is not known and left out",
    ]
    unknown = findings(checked(path), "tables")[1]
    assert [it.partition(",")[0] for it in unknown.where] == ["column 'fold'", "column 'age'"]


# ---- files


def test_files_that_are_missing(tmp_path: Path) -> None:
    root = write_tables(tmp_path, OV_MERD)
    write_wav(root / "audio" / "sample_1.wav", tone(0.5))
    report = checked(root)
    assert findings(report, "files") == [
        Finding("warning", "clips without a file of video", ("sample_1", "0012")),
        Finding("warning", "clips without a file of audio", ("0012",)),
        Finding("warning", "clips without a file of faces", ("sample_1", "0012")),
    ]
    assert facts(report, "files") == {"video": 0, "audio": 1, "faces": 0}
    (root / "audio" / "sample_1.wav").unlink()
    nothing = Finding("error", "no clip has any media; their folders belong beside the tables")
    assert nothing in findings(checked(root), "files")
    lists = findings(checked(manifest(tmp_path, a={"audio": "lost.wav"})), "files")
    assert [it.severity for it in lists] == ["warning", "note", "note", "note"]


def test_files_that_a_manifest_names_and_that_are_not_there(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(0.5))
    path = manifest(
        tmp_path, a={"audio": "a.wav"}, b={"audio": "b.wav"}, c={"audio": "c.csv", "video": "c.mp4", "subtitle": ""}
    )
    report = checked(path)
    named, *_, nothing = findings(report, "files")
    assert named == Finding(
        "warning",
        "named files that are not there",
        (f"b: {tmp_path}/b.wav", f"c: {tmp_path}/c.mp4", f"c: {tmp_path}/c.csv"),
    )
    assert nothing == Finding("error", "clips with neither media nor a subtitle", ("c",))
    assert lines(report, "tables") == ["as expected"]


# ---- media


def _broken(folder: Path) -> dict[str, dict[str, Any]]:
    """Clips of which each has one file that cannot be used, by what is wrong with it; and one without fault."""
    sound = tone(1.0, 44_100)[None]
    good = write_video(folder / "good.mp4", 25, height=32, width=32, sound=sound)
    truncate(write_video(folder / "cut.mp4", 25, height=32, width=32, sound=sound), 0.5)
    truncate(write_video(folder / "cut_late.mp4", 50, height=96, width=96, sound=sound, **FASTSTART), 0.7)
    (folder / "words.mp4").write_text("no film")
    write_wav(folder / "empty.wav", np.zeros(0, np.float32))
    (folder / "words.wav").write_text("no sound")
    faces = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    write_faces(folder / "good.npy", faces)
    write_faces(folder / "float.npy", faces.astype(np.float32))
    write_faces(folder / "grey.npy", faces[..., 0])
    write_faces(folder / "alpha.npy", np.zeros((2, 4, 4, 4), np.uint8))
    write_faces(folder / "none.npy", faces[:0])
    truncate(write_faces(folder / "cut.npy", faces), 0.9)
    (folder / "words.npy").write_text("no array")
    return {
        "good": {"video": good.name, "faces": "good.npy"},
        **{file: {"video": file} for file in ("cut.mp4", "cut_late.mp4", "words.mp4")},
        **{file: {"audio": file} for file in ("empty.wav", "words.wav")},
        **{
            file: {"faces": file} for file in ("float.npy", "grey.npy", "alpha.npy", "none.npy", "cut.npy", "words.npy")
        },
    }


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is an error with its reason, once a file; what `prepare` leaves out is what the check says it will."""
    clips = _broken(tmp_path)
    report = checked(manifest(tmp_path, **clips))
    (broken,) = (it for it in findings(report, "media") if it.severity == "error")
    assert broken.text == "files that cannot be used"
    reasons = {where.split(":")[0]: where.partition(f"{tmp_path.name}/")[2] for where in broken.where}
    assert list(reasons) == list(clips)[1:]
    assert "cut.mp4: cannot be decoded: damaged, cut short or no media file" in reasons["cut.mp4"]
    assert "cut_late.mp4: is cut short" in reasons["cut_late.mp4"]
    assert "words.mp4: cannot be decoded" in reasons["words.mp4"]
    assert reasons["empty.wav"] == "empty.wav: holds no sound sample (length zero)"
    assert "words.wav: cannot be read as a sound file" in reasons["words.wav"]
    assert (
        reasons["float.npy"] == "float.npy: face crops must be uint8 [n, height, width, 3], found float32 [4, 5, 6, 3]"
    )
    assert reasons["grey.npy"].endswith("found uint8 [4, 5, 6]")
    assert reasons["alpha.npy"].endswith("found uint8 [2, 4, 4, 4]")
    assert reasons["none.npy"] == "none.npy: holds no face crop (shape [0, 5, 6, 3])"
    assert reasons["cut.npy"] == "cut.npy: is cut short: it holds fewer crops than its header says"
    assert "words.npy: cannot be read as a numpy array" in reasons["words.npy"]
    assert facts(report, "media")["usable"] == {"picture": 1, "sound": 1, "face": 1}

    settings = PrepareSettings(streams=("frame@8", "face@8", "audio@8"), batch_clips=2, progress=False)
    prepared = prepare(
        find_corpus(str(tmp_path / "m.jsonl")).read().records, FakeEncoders(), settings, tmp_path / "out"
    )
    assert {problem.name for problem in prepared.broken} == set(reasons)
    assert prepared.kept == 1


def test_fast_reads_headers_only(tmp_path: Path) -> None:
    """What a header tells is found all the same; a file that is cut after it is not."""
    path = manifest(tmp_path, **_broken(tmp_path))
    whole, fast = checked(path), checked(path, fast=True)
    (broken,) = (it for it in findings(fast, "media") if it.severity == "error")
    (all_broken,) = (it for it in findings(whole, "media") if it.severity == "error")
    assert set(all_broken.where) - set(broken.where) == {it for it in all_broken.where if it.startswith("cut_late")}
    assert set(broken.where) < set(all_broken.where)
    assert "headers only" in lines(fast, "media")[0]
    assert "identical" not in str(findings(fast, "duplicates"))
    assert "not looked for" in lines(fast, "duplicates")[0]


def test_clips_without_picture_or_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "silent.mp4", 8, height=32, width=32)
    write_video(tmp_path / "blind.mp4", 0, sound=tone(0.5, 44_100)[None])
    write_video(tmp_path / "both.mp4", 8, height=32, width=32, sound=tone(0.5, 44_100)[None])
    write_wav(tmp_path / "voice.wav", tone(0.5))
    path = manifest(
        tmp_path,
        silent={"video": "silent.mp4"},
        blind={"video": "blind.mp4"},
        both={"video": "both.mp4"},
        dubbed={"video": "silent.mp4", "audio": "voice.wav"},
        voice={"audio": "voice.wav"},
    )
    for fast in (False, True):
        report = checked(path, fast=fast)
        assert findings(report, "media") == [
            Finding("warning", "clips without picture", ("blind", "voice")),
            Finding("warning", "clips without sound", ("silent",)),
        ]
        assert report.count("error") == 0
    path = manifest(tmp_path, silent={"video": "silent.mp4"})
    assert findings(checked(path), "media") == [Finding("note", "clips without sound", ("silent",))]


def test_durations(tmp_path: Path) -> None:
    for name, seconds in {"short": 0.1, "a": 1.0, "b": 3.0, "edge": 60.0, "long": 60.5}.items():
        write_wav(tmp_path / f"{name}.wav", tone(seconds, 8000), 8000)
    write_video(tmp_path / "film.mp4", 50, height=32, width=32)
    names = ("short", "a", "b", "edge", "long")
    path = manifest(tmp_path, **{name: {"audio": f"{name}.wav"} for name in names}, film={"video": "film.mp4"})
    report = checked(path, fast=True)
    assert facts(report, "durations") == {
        "picture": {"min": 2.0, "median": 2.0, "max": 2.0},
        "sound": {"min": 0.1, "median": 3.0, "max": 60.5},
    }
    assert findings(report, "durations") == [
        Finding("warning", "sound shorter than 0.2 s", ("short: 0.10 s",)),
        Finding("warning", "sound longer than 60 s", ("long: 60.5 s",)),
    ]
    assert "sound: min 0.10 s, median 3.00 s, max 60.50 s" in report.text()


def test_rates_and_channels(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(0.5))
    write_wav(tmp_path / "b.wav", np.stack([tone(0.5, 48_000)] * 2), 48_000)
    write_wav(tmp_path / "c.wav", np.stack([tone(0.5)] * 6))
    write_video(tmp_path / "d.mp4", 15, rate=30, height=48, width=64, sound=tone(0.5, 44_100)[None])
    write_video(tmp_path / "e.mp4", 15, height=48, width=64)
    path = manifest(
        tmp_path,
        a={"audio": "a.wav", "video": "e.mp4"},
        b={"audio": "b.wav"},
        c={"audio": "c.wav"},
        d={"video": "d.mp4"},
        e={"audio": "a.wav"},
    )
    report = checked(path)
    assert facts(report, "sound") == {
        "16000 Hz mono": 2, "48000 Hz stereo": 1, "16000 Hz 6 channels": 1, "44100 Hz mono": 1
    }  # fmt: skip
    assert findings(report, "sound") == [
        Finding("warning", "more than two channels, of which the first alone is heard", ("c: 6 channels",))
    ]
    assert facts(report, "picture") == {"rates": {"25 fps": 1, "30 fps": 1}, "sizes": {"64x48": 2}}


def test_faces(tmp_path: Path) -> None:
    for name, shape in {"a": (3, 8, 9, 3), "b": (5, 8, 9, 3), "c": (10, 4, 4, 3)}.items():
        write_faces(tmp_path / f"{name}.npy", np.zeros(shape, np.uint8))
    report = checked(manifest(tmp_path, **{name: {"faces": f"{name}.npy"} for name in "abc"}))
    assert facts(report, "faces") == {"crops": {"min": 3, "median": 5, "max": 10}, "sizes": {"9x8": 2, "4x4": 1}}
    assert lines(report, "faces") == ["crops of a clip: min 3, median 5, max 10; 9x8 2, 4x4 1"]


def test_a_limit_opens_the_first_clips_and_lists_all(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(5)]
    for name in names:
        (tmp_path / f"{name}.wav").write_text(name)
    path = manifest(tmp_path, **{name: {"audio": f"{name}.wav"} for name in names})
    report = checked(path, limit=2)
    assert facts(report, "clips")["clips"] == facts(report, "files")["audio"] == 5
    (broken,) = (it for it in findings(report, "media") if it.severity == "error")
    assert [it.split(":")[0] for it in broken.where] == ["c0", "c1"]
    assert lines(report, "media")[0] == "2 clips opened, decoded as prepare does; the other 3 not"
    assert findings(checked(path), "media")[0].where[:2] == broken.where


def test_any_number_of_threads_finds_the_same(tmp_path: Path) -> None:
    path = manifest(tmp_path, **_broken(tmp_path))
    assert checked(path, threads=1).record() == checked(path, threads=7).record()


# ---- texts and labels


def test_empty_texts_and_labels(tmp_path: Path) -> None:
    path = write_manifest(
        tmp_path / "m.jsonl",
        [
            {"name": "a", "video": "x", "subtitle": " ", "labels": ["joy", "calm"], "description": "x"},
            {"name": "b", "subtitle": "x", "labels": [], "description": " "},
            {"name": "c", "subtitle": "x", "labels": ["joy"], "split": "test"},
        ],
    )
    report = checked(path)
    assert findings(report, "texts") == [
        Finding("note", "clips with an empty subtitle", ("a",)),
        Finding("warning", "clips without a description", ("b", "c")),
    ]
    assert findings(report, "labels") == [Finding("warning", "clips without labels, which train as neutral", ("b",))]
    assert facts(report, "labels") == {"distinct": 2, "per_clip": 1.0, "most_frequent": {"joy": 2, "calm": 1}}
    assert lines(report, "labels") == ["2 distinct, 1.00 a clip", "most frequent: joy 2, calm 1"]
    assert lines(report, "clips") == ["3: train 2, test 1"]


def test_a_corpus_without_any_label_or_description_is_only_noted(tmp_path: Path) -> None:
    report = checked(manifest(tmp_path, a={}, b={}))
    assert [it.severity for it in (*findings(report, "texts"), *findings(report, "labels"))] == ["note", "note"]


def test_the_twenty_most_frequent_labels(tmp_path: Path) -> None:
    path = manifest(tmp_path, **{f"c{i}": {"labels": [f"w{j}" for j in range(i, 25)]} for i in range(25)})
    report = checked(path)
    assert facts(report, "labels")["distinct"] == 25
    assert facts(report, "labels")["most_frequent"] == {f"w{j}": j + 1 for j in range(24, 4, -1)}


def test_histogram_of_classes(tmp_path: Path, media: Media) -> None:
    report = checked(write_layout(tmp_path, "meld", media))
    seen = {"test": {"anger": 1, "surprise": 1}, "validation": {"sadness": 1}}
    classes = find_dataset("meld").classes
    assert facts(report, "labels")["classes"] == {
        split: {name: counts.get(name, 0) for name in classes} for split, counts in seen.items()
    }
    assert findings(report, "labels") == [
        Finding("warning", f"classes without a clip in {split}", tuple(it for it in classes if it not in counts))
        for split, counts in seen.items()
    ]
    assert "test: anger 1, surprise 1, joy 0" in report.text()


def test_labels_of_the_other_benchmarks(tmp_path: Path, media: Media) -> None:
    sentiment = checked(write_layout(tmp_path, "sims", media))
    assert (lines(sentiment, "labels"), findings(sentiment, "labels")) == (
        ["values of sentiment, which are no words"],
        [],
    )
    words = checked(write_layout(tmp_path, "ovmerdplus", media))
    assert facts(words, "labels")["most_frequent"] == {"happy": 1, "very calm": 1, "neutral": 1}
    assert [it for it in findings(words, "texts") if "description" in it.text] == []


# ---- duplicates


def test_names_that_are_nearly_alike(tmp_path: Path) -> None:
    path = manifest(tmp_path, **{name: {} for name in ("0012", "12", "012", "Clip", "clip ", "ｃlip", "120", "第1")})
    found = findings(checked(path, fast=True), "duplicates")
    assert found == [
        Finding(
            "warning",
            "names that differ in case, blanks or leading zeros alone",
            ("'0012' = '12' = '012'", "'Clip' = 'clip ' = 'ｃlip'"),
        )
    ]


def test_identical_media(tmp_path: Path) -> None:
    """The same content, not the same size or the same beginning; different splits are told."""
    long = np.arange(60 * 40 * 30 * 3).astype(np.uint8).reshape(60, 40, 30, 3)
    assert long.nbytes > 1 << 17  # more than the beginning that is compared first
    other = long.copy()
    other[-1, -1, -1, -1] ^= 1
    for name, faces in {"a": long, "b": other, "c": long, "d": long[:2]}.items():
        write_faces(tmp_path / f"{name}.npy", faces)
    for name, frequency in {"a": 220.0, "b": 330.0, "c": 220.0, "d": 220.0}.items():
        write_wav(tmp_path / f"{name}.wav", tone(0.5, frequency=frequency))
    path = manifest(
        tmp_path,
        a={"faces": "a.npy", "audio": "a.wav"},
        b={"faces": "b.npy", "audio": "b.wav"},
        c={"faces": "c.npy", "audio": "c.wav", "split": "test"},
        d={"faces": "d.npy", "audio": "d.wav", "split": "test"},
        again={"faces": "d.npy", "split": "test"},
    )
    report = checked(path)
    assert findings(report, "duplicates") == [
        Finding("warning", "identical files of audio", ("a = c = d (in different splits)",)),
        Finding("warning", "identical files of faces", ("a = c (in different splits)", "d = again")),
    ]
    assert facts(report, "duplicates") == {
        "names": [],
        "media": {"video": [], "audio": [["a", "c", "d"]], "faces": [["a", "c"], ["d", "again"]]},
    }
    assert lines(report, "duplicates") == ["identical files: video 0, audio 1, faces 2"]
    limited = checked(path, limit=2)
    assert findings(limited, "duplicates") == []


# ---- overlap


def test_overlap_with_lists_of_names(tmp_path: Path) -> None:
    path = manifest(tmp_path, **{name: {} for name in ("0012", "第 三", "c", "d", "e", "f", "g")})
    (tmp_path / "names.txt").write_text("0012\n\n 第 三 \n12x\n", encoding="utf-8-sig")
    (tmp_path / "names.csv").write_text("label,name\nx,c\ny,12\nz,0012\n")
    (tmp_path / "more.txt").write_text("c\nd\ne\nf\ng\n0012\n")
    report = checked(path, against=tuple(str(tmp_path / it) for it in ("names.txt", "names.csv", "more.txt")))
    assert findings(report, "overlap") == [
        Finding("warning", "clips that names.txt has, too", ("0012", "第 三")),
        Finding("warning", "clips that names.csv has, too", ("0012", "c")),
        Finding("warning", "clips that more.txt has, too", ("0012", "c", "d", "e", "f", "g")),
    ]
    assert lines(report, "overlap")[:2] == ["names.txt: 2 of its 3 names", "names.csv: 2 of its 3 names"]
    assert facts(report, "overlap")["names.csv"] == {"names": 3, "shared": ["0012", "c"]}
    assert "clips that more.txt has, too: 6 (0012, c, d, e, f, ...)" in report.text()
    assert [topic.name for topic in checked(path).topics].count("overlap") == 0
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "names.txt").write_text("g\n")
    both = checked(path, against=(str(tmp_path / "names.txt"), str(tmp_path / "sub" / "names.txt")))
    assert [it["shared"] for it in facts(both, "overlap").values()] == [["0012", "第 三"], ["g"]]


def test_overlap_with_the_benchmark(tmp_path: Path, media: Media) -> None:
    """A folder of data sets, of which the label files suffice; one of them; a corpus; not with itself."""
    root = tmp_path / "benchmark"
    ov, sims = write_layout(root, "ovmerdplus", media), write_layout(root, "sims", media)
    (sims / "transcription-engchi-polish.csv").unlink()
    path = manifest(tmp_path, **{name: {} for name in ("sample_00000000", "0012", "video_0038_0028", "other")})
    shared = ("sample_00000000", "0012")
    report = checked(path, against=(str(root),))
    assert findings(report, "overlap") == [Finding("warning", "clips that OV-MERD+ has, too", shared)]
    assert {title: it["names"] for title, it in facts(report, "overlap").items()} == {"CH-SIMS": 2, "OV-MERD+": 2}
    for word in (str(ov), f"ovmerdplus:{root}"):
        assert findings(checked(path, against=(word,)), "overlap")[0].where == shared
    itself = checked(ov, against=(str(root),))
    assert list(facts(itself, "overlap")) == ["CH-SIMS"]
    plain = checked(ov, against=(f"manifest:{path}",))
    assert findings(plain, "overlap") == [Finding("warning", f"clips that manifest:{path} has, too", shared)]


def test_overlap_with_released_labels(tmp_path: Path) -> None:
    labels = reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench") / "labels"
    names = read_truth(find_dataset("meld"), labels).names
    path = manifest(tmp_path, mine={}, **{names[0]: {}, names[-1]: {}})
    report = checked(path, against=(str(labels),))
    assert facts(report, "overlap")["MELD"] == {"names": 2610, "shared": [names[0], names[-1]]}
    assert all(not it["shared"] for title, it in facts(report, "overlap").items() if title != "MELD")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere", r"there is no corpus .*nowhere"),
        ("empty.txt", r"empty\.txt names no clip; expected one name a line, or CSV with a column name"),
        ("nameless.csv", r"nameless\.csv has no column 'name'"),
        ("uneven.csv", r"uneven\.csv, line 3: 1 cells under 2 columns; mend that line"),
        ("latin.txt", r"latin\.txt is not UTF-8 text"),
        (".", r"holds no data set of the benchmark; expected folders such as mer2023-dataset-process, a file of"),
        ("mine", r"could be several data sets; say which: meld:.*mine or cmumosi:.*mine or"),
        ("ovmerdplus-process", r"holds only the corpus itself"),
    ],
)
def test_what_a_corpus_cannot_be_held_against(tmp_path: Path, media: Media, word: str, message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "nameless.csv").write_text("clip\na\n")
    (tmp_path / "uneven.csv").write_text("name,x\na,b\nc\n")
    (tmp_path / "latin.txt").write_bytes("Zoë\n".encode("latin-1"))
    own = write_layout(tmp_path / "own" if word == "." else tmp_path, "ovmerdplus", media)
    write_layout(tmp_path / "elsewhere", "meld", media).rename(tmp_path / "mine")
    with pytest.raises(UserError, match=message):
        benchmark_names(str(tmp_path / word), find_corpus(str(own)))


def test_what_cannot_be_read_ends_before_media_are_opened(tmp_path: Path) -> None:
    path = manifest(tmp_path, a={})
    bars = Bars()
    with pytest.raises(UserError, match="there is no corpus"):
        check(find_corpus(str(path)), CheckSettings(against=("nowhere",)), bars)
    assert bars.stages == []


# ---- the report


def test_the_report_in_words_and_for_programs(tmp_path: Path) -> None:
    clips: dict[str, dict[str, Any]] = {f"c{i}": {"audio": f"c{i}.wav", "labels": ["joy"]} for i in range(7)}
    for name in clips:
        (tmp_path / f"{name}.wav").write_text(name)
    report = checked(manifest(tmp_path, **clips))
    text = report.text().splitlines()
    assert text[0] == f"corpus      manifest at {tmp_path / 'm.jsonl'}"
    assert text[-1] == "found       errors 1, warnings 0, notes 4"
    assert max(map(len, {line[:12] for line in text})) == 12
    (error,) = (line for line in text if "error:" in line)
    assert error.startswith("            error: files that cannot be used: 7 (c0: ")
    assert "c4: " in error
    assert "c5" not in error
    assert error.endswith(", ...)")
    record = json.loads(json.dumps(report.record()))
    assert {key: record[key] for key in ("corpus", "kind", "path", "errors", "warnings", "notes")} == {
        "corpus": "manifest", "kind": "manifest", "path": str(tmp_path / "m.jsonl"),
        "errors": 1, "warnings": 0, "notes": 4,
    }  # fmt: skip
    (broken,) = (it for it in record["topics"]["media"]["findings"] if it["severity"] == "error")
    assert [it.split(":")[0] for it in broken["where"]] == list(clips)


def test_there_is_a_layout_for_every_data_set_that_is_checked(tmp_path: Path, media: Media) -> None:
    """The nine go through as they are, with no fault but their number."""
    for key in LAYOUTS:
        report = checked(write_layout(tmp_path, key, media))
        errors = [it for topic in report.topics for it in topic.findings if it.severity == "error"]
        assert [it.text.partition(" has ")[0] for it in errors] == [find_dataset(key).title]
