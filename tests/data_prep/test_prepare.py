"""Preparation from media to shards, with towers that anyone can recompute, and everything that may go wrong."""

import resource
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

import data_prep.prepare
from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.shard_schema import Manifest, TextRecord, parse_stream, stream_directory
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import ClipRecord, Problem
from tests.media_files import tone, truncate, write_faces, write_video, write_wav

SETTINGS = PrepareSettings(batch_clips=2, shard_clips=3, progress=False)


@dataclass
class FakeEncoders:
    """Means over parts of the input, and a count of the calls; `stop_after` so many, the user interrupts."""

    weights: str = "0123"
    stop_after: int = 1_000_000
    scale: float = 1.0
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def vision_provenance(self) -> Mapping[str, Any]:
        return {"encoder": "fake-vision", "weights": self.weights, "width": 7}

    @property
    def audio_provenance(self) -> Mapping[str, Any]:
        return {"encoder": "fake-audio", "weights": "4567", "width": 5}

    def vision(self, frames: np.ndarray) -> np.ndarray:
        self._called("vision", frames)
        return self.scale * frames.reshape(len(frames), 7, -1).mean(2, dtype=np.float32) / 255

    def audio(self, clips: np.ndarray) -> np.ndarray:
        self._called("audio", clips)
        return self.scale * clips.reshape(*clips.shape[:2], 5, -1).std(3)

    def _called(self, tower: str, inputs: np.ndarray) -> None:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((tower, inputs.shape))


def _clip(root: Path, name: str, split: str = "train", faces: int = 10, sound: bool = True) -> ClipRecord:
    number = int(name)
    video = write_video(
        root / f"{name}.mp4", 10 + number, height=48, width=64, sound=tone(0.5, 44_100, 200 + 20 * number)[None]
    )
    crops = np.random.default_rng(number).integers(0, 256, (faces, 9, 8, 3), np.uint8)
    return ClipRecord(
        TextRecord(name, split, f"line {name}", "", ("happy",), f"In the text, {name}."),
        ClipFiles(
            video,
            write_wav(root / f"{name}.wav", tone(1 + number / 4, 16_000, 100 + 10 * number)) if sound else None,
            write_faces(root / f"{name}.npy", crops) if faces else None,
        ),
    )


def _corpus(media: Path) -> list[ClipRecord]:
    """Eight clips: 0002 has no faces, 0003 no wav (but sound in its video), 0005 is for testing."""
    return [
        *(_clip(media, f"000{i}", faces=0 if i == 2 else 10, sound=i != 3) for i in range(5)),
        _clip(media, "0005", "test"),
        *(_clip(media, f"000{i}") for i in (6, 7)),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[ClipRecord]:
    """The clips, made once."""
    return _corpus(tmp_path_factory.mktemp("made"))


@pytest.fixture
def clips(tmp_path: Path, made: list[ClipRecord]) -> list[ClipRecord]:
    """The clips in a folder of this test's own, `media`, to be broken at will."""
    media = tmp_path / "media"
    shutil.copytree(Path(made[0].files.video or "").parent, media)
    moved = (ClipFiles(*(path and media / path.name for path in clip.files)) for clip in made)
    return [replace(clip, files=files) for clip, files in zip(made, moved, strict=True)]


def _contents(out: Path) -> dict[str, bytes]:
    """All files of all streams."""
    files = (path for path in (out / "mer_caption").rglob("1.0.0/*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def _without(clip: ClipRecord, **files: Path | None) -> ClipRecord:
    return replace(clip, files=clip.files._replace(**files))


def test_features_are_those_of_each_clip_alone(tmp_path: Path, clips: list[ClipRecord]) -> None:
    streams = ("face@8", "frame@4", "audio@8")
    encoders = FakeEncoders()
    report = prepare(clips, encoders, replace(SETTINGS, streams=streams), tmp_path / "out")
    assert (report.clips, report.kept, report.splits) == (8, 8, {"train": 7, "test": 1})
    assert report.present == {"face@8": 7, "frame@4": 8, "audio@8": 8}
    assert (report.broken, report.dropped) == ((), ())
    assert report.megabytes > 0
    assert report.clips_per_second > 0
    # One size of batch, whatever is left over: an encoder compiles once per stream.
    sizes = {(16, 224, 224, 3), (8, 224, 224, 3), (2, 8, 32_000)}
    assert {shape for _, shape in encoders.calls} == sizes
    for split in ("train", "test"):
        expected = [clip for clip in clips if clip.split == split]
        corpus = open_corpus(tmp_path / "out", split, streams)
        assert corpus.texts() == [clip.text for clip in expected]
        for stream in streams:
            features, present = corpus.features(stream, np.arange(len(corpus)))
            for i, clip in enumerate(expected):
                alone = read_modality(clip.files, parse_stream(stream))
                assert present[i] == (alone is not None)
                if alone is None:
                    assert not features[i].any()
                elif stream == "audio@8":
                    np.testing.assert_array_equal(features[i], FakeEncoders().audio(alone[None])[0].astype(np.float16))
                else:
                    np.testing.assert_array_equal(features[i], FakeEncoders().vision(alone).astype(np.float16))
    source = tfds.data_source("mer_caption/face_8:1.0.0", data_dir=tmp_path / "out", split="train")
    assert [example["name"].decode() for example in source] == [c.name for c in clips if c.split == "train"]


def test_clips_that_lack_a_modality_are_dropped_on_request(tmp_path: Path, clips: list[ClipRecord]) -> None:
    report = prepare(clips, FakeEncoders(), replace(SETTINGS, missing="drop"), tmp_path)
    assert report.dropped == ("0002",)
    assert "0002" not in open_corpus(tmp_path, "train").names
    assert report.present == {"face@8": 7, "audio@8": 7}


def test_broken_clips_are_listed_and_left_out(tmp_path: Path, clips: list[ClipRecord]) -> None:
    media = tmp_path / "media"
    write_wav(media / "0000.wav", np.zeros(0, np.float32))
    truncate(media / "0003.mp4", 0.5)  # the only sound of this clip
    write_faces(media / "0006.npy", np.zeros((4, 4, 3), np.uint8))
    (media / "0007.mp4").write_text("no video, but not needed either: it has a wav file")
    told = Problem("0009", "table.csv", "line 3: repeats line 2")
    report = prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out", [told])
    assert [(problem.name, Path(problem.file).name) for problem in report.broken] == [
        ("0000", "0000.wav"),
        ("0003", "0003.mp4"),
        ("0006", "0006.npy"),
    ]
    assert "length zero" in report.broken[0].reason
    assert "uint8 [4, 4, 3]" in report.broken[2].reason
    assert open_corpus(tmp_path / "out", "train", SETTINGS.streams).names == ("0001", "0002", "0004", "0007")
    files = {path.suffix: path.read_text() for path in (tmp_path / "out" / "mer_caption").glob("prepare-*")}
    for words in ("8 listed, 5 kept (train 4, test 1)", "3 broken", "0006.npy: face crops must be", "repeats line 2"):
        assert words in files[".txt"]
        assert words in report.summary()
    assert type(report).model_validate_json(files[".json"]) == report


def test_bytes_depend_on_the_clips_alone(tmp_path: Path, clips: list[ClipRecord]) -> None:
    prepare(clips, FakeEncoders(), replace(SETTINGS, decode_threads=1), tmp_path / "a")
    prepare(clips, FakeEncoders(), replace(SETTINGS, decode_threads=5), tmp_path / "b")
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


def test_two_batches_are_at_work_at_once(tmp_path: Path, clips: list[ClipRecord]) -> None:
    class Meeting(FakeEncoders):
        """Towers of which each call waits for another one."""

        barrier = threading.Barrier(2, timeout=30)

        def _called(self, tower: str, inputs: np.ndarray) -> None:
            self.barrier.wait()
            super()._called(tower, inputs)

    train = [clip for clip in clips if clip.split == "train" and clip.name != "0002"]
    settings = replace(SETTINGS, shard_clips=6)  # three batches of each of two streams
    report = prepare(train, Meeting(), settings, tmp_path / "out")
    prepare(train, FakeEncoders(), settings, tmp_path / "alone")
    assert _contents(tmp_path / "out") == _contents(tmp_path / "alone")
    assert 0 < report.encoders_busy <= 1
    assert f"encoders busy {report.encoders_busy:.0%}" in report.summary()


def test_clips_are_decoded_while_an_encoder_is_at_work(
    tmp_path: Path, clips: list[ClipRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()

    def reading(files: ClipFiles, stream: Any) -> np.ndarray | None:
        if files.audio and files.audio.stem == "0006":  # of the second batch and later
            read.set()
        return read_modality(files, stream)

    class Waiting(FakeEncoders):
        """A tower that is not done with its first batch before a clip of another one is read."""

        def _called(self, tower: str, inputs: np.ndarray) -> None:
            assert read.wait(30)
            super()._called(tower, inputs)

    monkeypatch.setattr("data_prep.faces.read_modality", reading)
    settings = replace(SETTINGS, streams=("audio@8",), shard_clips=8, decode_threads=1)
    assert prepare(clips, Waiting(), settings, tmp_path).kept == 8


def test_goes_on_where_it_was_interrupted(tmp_path: Path, clips: list[ClipRecord]) -> None:
    whole = FakeEncoders()
    prepare(clips, whole, SETTINGS, tmp_path / "whole")
    calls = 0
    for stop in (3, 1, 4):
        encoders = FakeEncoders(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(clips, encoders, SETTINGS, tmp_path / "out")
        calls += len(encoders.calls)
        with pytest.raises(UserError, match="no stream 'text'"):
            open_corpus(tmp_path / "out", "train")
    last = FakeEncoders()
    report = prepare(clips, last, SETTINGS, tmp_path / "out")
    assert len(last.calls) < len(whole.calls)
    assert report.kept == 8
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")
    assert not list((tmp_path / "out" / "mer_caption").glob(".*"))


def test_goes_on_after_a_kill_between_two_streams(
    tmp_path: Path, clips: list[ClipRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "whole")
    publish = data_prep.prepare.publish_stream
    published: list[Manifest] = []

    def killed(staged: Path, out: Path, stream: str, *rest: Any) -> None:
        if published:
            raise KeyboardInterrupt
        published.append(publish(staged, out, stream, *rest))

    with monkeypatch.context() as patched:
        patched.setattr(data_prep.prepare, "publish_stream", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    assert stream_directory(tmp_path / "out", published[0].stream).is_dir()
    encoders = FakeEncoders()
    prepare(clips, encoders, SETTINGS, tmp_path / "out")
    assert encoders.calls == []
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


def test_what_is_there_is_not_done_again(tmp_path: Path, clips: list[ClipRecord]) -> None:
    first = prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    encoders = FakeEncoders()
    assert prepare(clips, encoders, SETTINGS, tmp_path / "out") == first
    assert encoders.calls == []


def test_a_stream_joins_and_leaves_the_others_alone(tmp_path: Path, clips: list[ClipRecord]) -> None:
    write_faces(tmp_path / "media" / "0001.npy", np.zeros(3, np.uint8))
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    before = _contents(tmp_path / "out")
    truncate(tmp_path / "media" / "0004.mp4", 0.5)
    report = prepare(clips, FakeEncoders(), replace(SETTINGS, streams=("frame@4",), shard_clips=100), tmp_path / "out")
    after = _contents(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    assert report.written == ("frame@4",)
    # The clips are settled: 0001 stays out, and 0004, whose video broke since, has no frames.
    corpus = open_corpus(tmp_path / "out", "train", ("face@8", "frame@4"))
    assert corpus.names == ("0000", "0002", "0003", "0004", "0006", "0007")
    assert corpus.present("frame@4").tolist() == [True, True, True, False, True, True]
    assert [problem.name for problem in report.broken] == ["0004"]


@pytest.mark.parametrize("stream", ["face@16", "frame@16", "face@8.other"])
def test_more_frames_or_another_encoder_join_and_leave_the_others_alone(
    tmp_path: Path, clips: list[ClipRecord], stream: str
) -> None:
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path)
    before = _contents(tmp_path)
    report = prepare(clips, FakeEncoders("9999"), replace(SETTINGS, streams=(stream,)), tmp_path)
    after = _contents(tmp_path)
    assert report.written == (stream,)
    assert {path: after[path] for path in before} == before
    corpus = open_corpus(tmp_path, "train", ("face@8", stream))
    assert [corpus.provenance(name)["weights"] for name in ("face@8", stream)] == ["0123", "9999"]
    assert corpus.shape(stream) == (parse_stream(stream).count, 7)


def test_refuses_to_mix_encoders(tmp_path: Path, clips: list[ClipRecord]) -> None:
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    audio = _contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"weights is '0123' there and '9999' now.*--overwrite"):
        prepare(clips, FakeEncoders("9999"), SETTINGS, tmp_path / "out")
    report = prepare(clips, FakeEncoders("9999"), replace(SETTINGS, overwrite=True), tmp_path / "out")
    assert report.written == ("face@8",)
    assert open_corpus(tmp_path / "out", "train", ("face@8",)).provenance("face@8")["weights"] == "9999"
    kept = {path: content for path, content in _contents(tmp_path / "out").items() if "face_8" not in path}
    assert kept == {path: content for path, content in audio.items() if "face_8" not in path}


def test_changed_files_are_noticed(tmp_path: Path, clips: list[ClipRecord]) -> None:
    truncate(tmp_path / "media" / "0006.npy", 0.5)
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    mended = [*clips[:-2], _clip(tmp_path / "media", "0006"), clips[-1]]
    with pytest.raises(UserError, match=r"media is .* now"):
        prepare(mended, FakeEncoders(), SETTINGS, tmp_path / "out")
    report = prepare(mended, FakeEncoders(), replace(SETTINGS, overwrite=True), tmp_path / "out")
    assert report.kept == 8
    relabelled = [replace(clips[0], text=clips[0].text._replace(labels=("sad",))), *mended[1:]]
    with pytest.raises(UserError, match=r"texts is .* now"):
        prepare(relabelled, FakeEncoders(), SETTINGS, tmp_path / "out")
    prepare(relabelled, FakeEncoders(), replace(SETTINGS, overwrite=True), tmp_path / "out")
    assert open_corpus(tmp_path / "out", "train").text(0).labels == ("sad",)


def test_disk_full_loses_nothing(tmp_path: Path, clips: list[ClipRecord]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="disk is full: free some space and run it again"):
            prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").rglob("*array_record*"))
    assert prepare(clips, FakeEncoders(), SETTINGS, tmp_path / "out").kept == 8


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        (FakeEncoders(scale=1e6), "clip '0000' that float16 cannot hold"),
        (FakeEncoders(scale=float("nan")), "float16 cannot hold"),
    ],
)
def test_features_must_be_finite(tmp_path: Path, clips: list[ClipRecord], encoders: FakeEncoders, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(clips, encoders, SETTINGS, tmp_path / "out")


def test_encoders_must_keep_their_word(tmp_path: Path, clips: list[ClipRecord]) -> None:
    class Other(FakeEncoders):
        """Says something else than it does."""

        says: ClassVar[Mapping[str, Any]] = {"encoder": "x", "weights": "y", "width": 9}

        @property
        def vision_provenance(self) -> Mapping[str, Any]:
            return self.says

    with pytest.raises(UserError, match=r"features of shape \[16, 7\] .* states a width of 9"):
        prepare(clips, Other(), SETTINGS, tmp_path / "out")
    Other.says = {"encoder": "x", "width": 9}
    with pytest.raises(UserError, match="'face@8' does not state its weights"):
        prepare(clips, Other(), SETTINGS, tmp_path / "out")


def test_unusable_requests(tmp_path: Path, clips: list[ClipRecord]) -> None:
    with pytest.raises(UserError, match="no clip to prepare"):
        prepare([], FakeEncoders(), SETTINGS, tmp_path / "out")
    with pytest.raises(UserError, match="Two clips are named '0001'"):
        prepare([*clips, clips[1]], FakeEncoders(), SETTINGS, tmp_path / "out")
    with pytest.raises(UserError, match="names a stream twice"):
        prepare(clips, FakeEncoders(), replace(SETTINGS, streams=("face@8", "face@8")), tmp_path / "out")
    with pytest.raises(UserError, match="no modality 'smell', only frame, face, audio"):
        prepare(clips, FakeEncoders(), replace(SETTINGS, streams=("smell@8",)), tmp_path / "out")
    silent = [_without(clip, faces=None) for clip in clips]
    with pytest.raises(UserError, match="No clip is left: all were broken or lack a modality"):
        prepare(silent, FakeEncoders(), replace(SETTINGS, missing="drop"), tmp_path / "out")
    assert prepare(silent, FakeEncoders(), replace(SETTINGS, missing="keep"), tmp_path / "out").kept == 8


def test_text_alone(tmp_path: Path, clips: list[ClipRecord]) -> None:
    report = prepare(clips, FakeEncoders(), replace(SETTINGS, streams=()), tmp_path / "out")
    assert (report.written, report.kept) == (("text",), 8)
    assert "text only" in report.summary()
