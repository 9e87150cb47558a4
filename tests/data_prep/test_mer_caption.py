"""The corpus as a TFDS dataset: what TFDS opens is what our reader and the files say, and needs no TensorFlow."""

import argparse
import csv
import io
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

import data_prep.mer_caption
from affectgpt_jax.cli import tfds as command
from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import TextRecord, config_name, parse_stream, shard_name, stream_directory
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.mer_caption import MerCaption, config_streams
from data_prep.readers import ClipRecord, Listing
from tests.conftest import ROOT
from tests.media_files import tone, write_faces, write_wav

SHARDS = {"train": (3, 0, 4), "test": (2,)}  # clips in each; an empty one stands for a range of broken clips
WIDTH = 6
SET = "face_8_audio_4"
STREAMS = ("face@8", "audio@4")
OVERWRITE = tfds.download.DownloadConfig(download_mode=tfds.download.GenerateMode.FORCE_REDOWNLOAD)


def _texts(split: str) -> list[TextRecord]:
    return [
        TextRecord(f"{i:04d} 你好", split, f"line {i}", f"第{i}", ("happy", "calm")[: i % 3], f"In the text, {i}.")
        for i in range(sum(SHARDS[split]))
    ]


def write_streams(root: Path, *streams: str, weights: str = "0123") -> None:
    """A corpus of made-up features, or some streams of it anew."""
    for stream in streams:
        splits = {}
        for split, lengths in SHARDS.items():
            texts, start = _texts(split), 0
            rng = np.random.default_rng(len(split) + len(stream) + int(weights))
            for index, length in enumerate(lengths):
                part, place = texts[start : start + length], (root / "staged", split, index, len(lengths))
                start += length
                if stream == "text":
                    entry = write_text_shard(*place, part)
                else:
                    present = rng.random(length) < 0.7
                    features = rng.standard_normal((length, parse_stream(stream).count, WIDTH)).astype(np.float16)
                    features[~present] = 0
                    entry = write_feature_shard(*place, [text.name for text in part], features, present)
                splits.setdefault(split, []).append(entry)
        facts = {"texts": "abc"} if stream == "text" else {"encoder": "fake", "weights": weights, "width": WIDTH}
        shape = None if stream == "text" else (parse_stream(stream).count, WIDTH)
        publish_stream(root / "staged", root, stream, splits, facts, shape)


def write_clips(folder: Path) -> str:
    """Seven clips of few bytes, of which most end in zeros, and the manifest that names them."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(7):
        name = f"{i:04d} 好"
        (folder / f"{name}.mp4").write_bytes(bytes(range(60)) * (i + 1) + bytes(i))
        write_wav(folder / f"{name}.wav", tone(0.01 * (i + 1)))
        write_faces(folder / f"{name}.npy", np.full((i + 1, 3, 2, 3), i, np.uint8))
        files = [f"{name}.{ending}" if i != lacking else "" for lacking, ending in ((9, "mp4"), (1, "wav"), (2, "npy"))]
        rows.append((name, *files, f"line {i}", "happy, calm" if i else "", f"Text {i}.", "test" if i == 3 else ""))
    with (folder / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "video", "audio", "faces", "subtitle", "labels", "description", "split"))
        writer.writerows(rows)
    return str(folder / "clips.csv")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus, made once."""
    root = tmp_path_factory.mktemp("prepared")
    write_streams(root, "text", *STREAMS, "frame@2.siglip")
    return root


@pytest.fixture
def root(tmp_path: Path, prepared: Path) -> Path:
    """A prepared corpus of this test's own."""
    return Path(shutil.copytree(prepared, tmp_path / "shards"))


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Clips for the media, of which two or so make a shard."""
    monkeypatch.setattr(data_prep.mer_caption, "SHARD_BYTES", 1500)
    return write_clips(tmp_path / "clips")


def contents(root: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _prepared(root: Path, config: str, corpus: str | None = None) -> MerCaption:
    builder = MerCaption(config=config, data_dir=root, corpus=corpus)
    builder.download_and_prepare()
    return builder


def _sources(root: Path, config: str, split: str) -> list[Any]:
    """A config as TFDS opens it: by the class, by its folder, by its name, and after pickling."""
    folder = root / "mer_caption" / config / "1.0.0"
    named = tfds.data_source(f"mer_caption/{config}:1.0.0", data_dir=root, split=split)
    return [
        MerCaption(config=config, data_dir=root).as_data_source(split=split),
        tfds.builder_from_directory(folder).as_data_source(split=split),
        named,
        tfds.data_source(f"mer_caption/{config}", data_dir=root, split=split),
        pickle.loads(pickle.dumps(named)),
    ]


def _text(example: Mapping[str, Any]) -> TextRecord:
    texts = {field: example[field] for field in TextRecord._fields}
    labels = tuple(label.decode() for label in texts.pop("labels"))
    return TextRecord(**{field: value.decode() for field, value in texts.items()}, labels=labels)


def _check_info(builder: Any, root: Path, config: str, lengths: Mapping[str, list[int]]) -> None:
    """What the info says is what the files are."""
    folder = root / "mer_caption" / config / "1.0.0"
    assert {name: split.shard_lengths for name, split in builder.info.splits.items()} == lengths
    for name, split in builder.info.splits.items():
        files = [folder / shard_name(name, index, len(lengths[name])) for index in range(len(lengths[name]))]
        assert [Path(path) for path in split.filepaths] == files
        assert split.num_bytes == sum(path.stat().st_size for path in files)
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert str(builder.version) == "1.0.0"
    assert "emotion" in builder.info.description
    assert "arXiv:2501.16566" in builder.info.citation
    known = {"dataset_info.json", "features.json", "metadata.json"}
    shards = {
        shard_name(split, index, len(lengths[split])) for split in lengths for index in range(len(lengths[split]))
    }
    assert {path.name for path in folder.iterdir()} == shards | known


# ---------------------------------------------------------------------------------------------------------------------
# Names of configs


@pytest.mark.parametrize(
    "streams",
    [
        ("face@8",),
        ("face@8", "audio@8"),
        ("face@8.siglip", "audio@16", "frame@2"),
        ("face@8.16", "audio@8.a"),
        ("face@8.16a",),
        ("frame@4", "face@8.audio"),
    ],
)
def test_config_names_say_their_streams(streams: tuple[str, ...]) -> None:
    assert config_streams("_".join(config_name(stream) for stream in streams)) == streams


@pytest.mark.parametrize("config", ["face", "face_8_audio", "face_0", "face_8__audio_8", "8_face", "", "text_face_8"])
def test_refuses_other_config_names(tmp_path: Path, config: str) -> None:
    if config == "face_8_audio":  # a tag
        assert config_streams(config) == ("face@8.audio",)
        return
    with pytest.raises(UserError, match=r"is no config of mer_caption; there are text, media, a stream such as"):
        MerCaption(config=config, data_dir=tmp_path)


def test_refuses_a_stream_twice_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names a stream twice"):
        MerCaption(config="face_8_face_8", data_dir=tmp_path)
    with pytest.raises(UserError, match="mer_caption needs a config: text, media, a stream"):
        MerCaption(data_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def test_streams_open_and_stay_as_they_are(root: Path) -> None:
    before = contents(root)
    for config in ("text", "face_8", "audio_4", "frame_2_siglip"):
        builder = _prepared(root, config)
        other = tfds.builder_from_directory(stream_directory(root, "text").parents[1] / config / "1.0.0")
        assert builder.info.features.keys() == other.info.features.keys()
        for split in SHARDS:
            examples = list(other.as_data_source(split=split))
            for source in _sources(root, config, split):
                np.testing.assert_equal(list(source), examples)
            assert len(examples) == sum(SHARDS[split])
    with pytest.raises(UserError, match="only `affectgpt prepare` writes streams"):
        MerCaption(config="face_8", data_dir=root).download_and_prepare(download_config=OVERWRITE)
    assert contents(root) == before


def test_a_stream_that_is_not_there(root: Path) -> None:
    with pytest.raises(UserError, match=r"no stream 'face@16' in .*; it holds audio_4, face_8, frame_2_siglip, text"):
        MerCaption(config="face_16", data_dir=root)
    with pytest.raises(UserError, match="no stream 'face@16'"):
        MerCaption(config="face_16_audio_4", data_dir=root)


# ---------------------------------------------------------------------------------------------------------------------
# Stream sets


def test_a_set_joins_what_our_reader_reads(root: Path) -> None:
    before = contents(root)
    builder = _prepared(root, SET)
    _check_info(builder, root, SET, {split: list(lengths) for split, lengths in SHARDS.items()})
    for split in SHARDS:
        corpus = open_corpus(root, split, STREAMS)
        for source in _sources(root, SET, split):
            examples = list(source)
            assert [_text(example) for example in examples] == corpus.texts()
            for stream in STREAMS:
                features, present = corpus.features(stream, np.arange(len(corpus)))
                found = np.stack([example["features"][stream] for example in examples])
                assert found.dtype == np.float16
                np.testing.assert_array_equal(found, features)
                assert [example["present"][stream] for example in examples] == present.tolist()
                assert not present.all()
    half = tfds.data_source(f"mer_caption/{SET}:1.0.0", data_dir=root, split="train[50%:]")
    assert [_text(example) for example in half] == _texts("train")[4:]
    assert builder.info.metadata["made_from"]["provenance"]["face@8"]["encoder"] == "fake"
    # What was there is as it was, nothing else lies about, and our reader still takes it.
    after = contents(root)
    assert {path: after[path] for path in before} == before
    assert {Path(path).parts[1] for path in set(after) - set(before)} == {SET}
    assert {path.name for path in root.iterdir()} == {"mer_caption"}
    assert {path.name for path in (root / "mer_caption" / SET).iterdir()} == {"1.0.0"}
    open_corpus(root, "train", (*STREAMS, "frame@2.siglip"))


def test_a_set_with_a_tag(root: Path) -> None:
    _prepared(root, "frame_2_siglip_face_8")
    corpus = open_corpus(root, "test", ("frame@2.siglip",))
    for source in _sources(root, "frame_2_siglip_face_8", "test"):
        found = [example["features"]["frame@2.siglip"] for example in source]
        np.testing.assert_array_equal(found, corpus.features("frame@2.siglip", [0, 1])[0])


def test_the_same_corpus_gives_the_same_bytes(root: Path, prepared: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(prepared, tmp_path / "other"))
    for place in (root, other):
        _prepared(place, SET)
    assert contents(root) == contents(other)


def test_a_set_is_made_once_and_refused_when_its_streams_changed(root: Path) -> None:
    _prepared(root, SET)
    before = contents(root)
    _prepared(root, SET)
    assert contents(root) == before
    write_streams(root, "face@8", weights="4567")
    with pytest.raises(UserError, match=rf"{SET}/1.0.0 was made from other samples or features.*Delete it"):
        _prepared(root, SET)
    MerCaption(config=SET, data_dir=root).as_data_source(split="test")  # whoever only reads is not kept from it
    with pytest.raises(UserError, match="is not written over: delete it, and make it again"):
        MerCaption(config=SET, data_dir=root).download_and_prepare(download_config=OVERWRITE)
    shutil.rmtree(root / "mer_caption" / SET)
    corpus = open_corpus(root, "test", STREAMS)
    found = [example["features"]["face@8"] for example in _prepared(root, SET).as_data_source(split="test")]
    np.testing.assert_array_equal(found, corpus.features("face@8", [0, 1])[0])


def test_damage_is_not_passed_on(root: Path) -> None:
    path = stream_directory(root, "audio@4") / shard_name("train", 0, 3)
    content = bytearray(path.read_bytes())
    content[content.index(b"0002")] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="checksum"):
        _prepared(root, SET)
    assert list((root / "mer_caption" / SET).iterdir()) == []


def test_refuses_what_is_not_whole_or_of_another_format(root: Path) -> None:
    (root / "mer_caption" / SET / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no dataset_info.json: it is not whole. Delete it"):
        MerCaption(config=SET, data_dir=root)
    shutil.rmtree(root / "mer_caption" / SET)
    with pytest.raises(UserError, match="is written as array_record, not as parquet"):
        MerCaption(config=SET, data_dir=root).download_and_prepare(file_format="parquet")


def test_a_full_disk_leaves_nothing(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match="disk is full"):
            _prepared(root, SET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((root / "mer_caption" / SET).iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Media


def test_media_are_the_files(tmp_path: Path, clips: str) -> None:
    out, folder = tmp_path / "out", Path(clips).parent
    builder = _prepared(out, "media", clips)
    _check_info(builder, out, "media", {"train": [3, 1, 1, 1], "test": [1]})
    seen = []
    for split in ("train", "test"):
        for source in _sources(out, "media", split):
            examples = list(source)
        for example in examples:
            name = example["name"].decode()
            seen.append(name)
            number = int(name.split()[0])
            lacking = {1: "audio", 2: "faces"}.get(number)
            assert example["present"] == {kind: kind != lacking for kind in ("video", "audio", "faces")}
            for kind, ending in (("video", "mp4"), ("audio", "wav"), ("faces", "npy")):
                assert example[kind] == (b"" if kind == lacking else (folder / f"{name}.{ending}").read_bytes())
            labels = ("happy", "calm") if number else ()
            assert _text(example) == TextRecord(name, split, f"line {number}", "", labels, f"Text {number}.")
            if lacking != "faces":
                np.testing.assert_array_equal(
                    np.load(io.BytesIO(example["faces"])), np.full((number + 1, 3, 2, 3), number)
                )
    assert seen == [f"{number:04d} 好" for number in (0, 1, 2, 4, 5, 6, 3)]
    before = contents(out)
    _prepared(out, "media", clips)
    _prepared(out, "media")  # the corpus is not needed any more
    assert contents(out) == before


def test_media_of_another_corpus_are_refused(tmp_path: Path, clips: str) -> None:
    _prepared(tmp_path / "out", "media", clips)
    video = next(Path(clips).parent.glob("*.mp4"))
    video.write_bytes(video.read_bytes() + b"more")
    with pytest.raises(UserError, match="was made from other samples"):
        _prepared(tmp_path / "out", "media", clips)


def test_media_need_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"affectgpt tfds media .*out --corpus CORPUS"):
        MerCaption(config="media", data_dir=tmp_path / "out")
    with pytest.raises(UserError, match="there is no corpus"):
        MerCaption(config="media", data_dir=tmp_path / "out", corpus=str(tmp_path / "nothing"))


def test_clips_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def media(*records: ClipRecord) -> None:
        monkeypatch.setattr(data_prep.mer_caption, "read_corpus", lambda name: Listing(records, ()))
        _prepared(tmp_path / "out", "media", "corpus")

    (tmp_path / "1.mp4").mkdir()
    with pytest.raises(UserError, match=r"clip '0001': .*0.mp4 cannot be read \(No such file"):
        media(ClipRecord(TextRecord("0001", "train"), ClipFiles(tmp_path / "0.mp4")))
    with pytest.raises(UserError, match=r"clip '0001': .*1.mp4 cannot be read \(Is a directory"):
        media(ClipRecord(TextRecord("0001", "train"), ClipFiles(tmp_path / "1.mp4")))
    with pytest.raises(UserError, match="2 clips of 1 names"):
        media(*[ClipRecord(TextRecord("0001", "train"), ClipFiles())] * 2)
    with pytest.raises(UserError, match="holds no clip"):
        media()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


# ---------------------------------------------------------------------------------------------------------------------
# What it does not need, and the command


def test_needs_neither_tensorflow_nor_beam(tmp_path: Path, root: Path) -> None:
    script = (
        "import sys\n"
        "import tensorflow_datasets as tfds\n"
        "from data_prep.mer_caption import MerCaption\n"
        "root, corpus = sys.argv[1:]\n"
        f"for config, clips in (('{SET}', None), ('media', corpus), ('face_8', None)):\n"
        "    MerCaption(config=config, data_dir=root, corpus=clips).download_and_prepare()\n"
        "    print(len(list(tfds.data_source(f'mer_caption/{config}:1.0.0', data_dir=root, split='train'))))\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'tensorflow', 'torch', 'apache_beam', 'jax'}))\n"
    )
    words = [sys.executable, "-c", script, str(root), write_clips(tmp_path / "clips")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line[:1] in "[0123456789"] == ["7", "6", "7", "[]"]


def run_command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_command(root: Path, clips: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(SET, str(root)) == 0
    out = capsys.readouterr().out
    rows = [line.split()[1::2] for line in out.splitlines() if "│ t" in line]
    assert [row[:3] for row in rows] == [["train", "7", "3"], ["test", "2", "1"]]
    folder = root / "mer_caption" / SET / "1.0.0"
    sizes = [sum(path.stat().st_size for path in folder.glob(f"*-{row[0]}.*")) for row in rows]
    assert [row[3] for row in rows] == [f"{size / 1e6:.1f}" for size in sizes]
    assert "Downloading" not in out
    assert run_command("media", str(root), "--corpus", clips) == 0
    printed = capsys.readouterr()
    assert "│ train │ 6" in printed.out
    assert "remarks" not in printed.err
    assert len(tfds.data_source("mer_caption/media:1.0.0", data_dir=root, split="train")) == 6
    assert run_command("face_8", str(root)) == 0
    with pytest.raises(UserError, match="face_8_audio_4 is made from the streams in"):
        run_command(SET, str(root), "--corpus", clips)


def test_command_tells_of_problems(tmp_path: Path, clips: str, capsys: pytest.CaptureFixture[str]) -> None:
    next(Path(clips).parent.glob("0005*.wav")).unlink()
    assert run_command("media", str(tmp_path / "out"), "--corpus", clips) == 0
    err = capsys.readouterr().err
    assert "1 remarks on its tables and files" in err
    assert f"affectgpt data check {clips}" in err
    present = [
        example["present"]["audio"]
        for example in tfds.data_source("mer_caption/media:1.0.0", data_dir=tmp_path / "out", split="train")
    ]
    assert present == [True, False, True, True, False, True]


def test_without_beam_the_command_names_the_extra(tmp_path: Path, clips: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"Apache Beam is not installed.*pip install 'affectgpt-jax\[beam\]'"):
        run_command("media", str(tmp_path / "out"), "--corpus", clips, "--beam-runner", "DirectRunner")
    assert not (tmp_path / "out").exists()
