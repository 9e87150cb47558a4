"""Prediction on files: the inputs are those of preparation, what is absent is said, a bad clip stops nothing."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.clips import ClipFiles, DetectedFaces
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import QUESTIONS
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Query
from affectgpt_jax.inference.clip_files import Beside, Clip, Item, file_item, find_clip, identity, list_clips, places
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.inference.predict import Failed, Prediction, open_encoders, predict, question_text
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.inference.subtitles import read_table
from tests.inference.clip_run import make_clip_shards, write_towers
from tests.media_files import tone, truncate, write_faces, write_video, write_wav
from tests.tiny_run import tiny_config

STREAMS = {"face": parse_stream("face@8"), "audio": parse_stream("audio@8")}


class FlatEncoders:
    """Towers that cost nothing and remember how they were called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def vision(self, frames: np.ndarray) -> np.ndarray:
        self.calls.append(("vision", len(frames)))
        return np.repeat(frames.reshape(len(frames), -1).mean(axis=1, keepdims=True), 12, axis=1)

    def audio(self, clips: np.ndarray) -> np.ndarray:
        self.calls.append(("audio", len(clips)))
        return np.repeat(clips.std(axis=-1, keepdims=True), 10, axis=-1)


class Oracle:
    """Answers with labels; refuses samples of some names."""

    def __init__(self, refused: Sequence[str] = ()) -> None:
        self.queries: list[Query] = []
        self.refused = refused

    def __call__(self, queries: Sequence[Query]) -> list[Answer | Rejected]:
        self.queries += queries
        return [
            Rejected(query.name, "cannot be asked")
            if query.name in self.refused
            else Answer(query.name, f"It sounds like {query.name}.", ["calm"], (), 5)
            for query in queries
        ]


def fake_run(config: RunConfig) -> Run:
    return Run(Path("runs/fake"), config, None, None, None, 3)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fake_run(tiny_config(tmp_path, prepare__decode_threads=1, evaluate__batch=2))


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """Makes a clip of a corpus, by default with a second of sound."""

    def make(name: str, sound: bool = True) -> Path:
        samples = np.stack([tone(1.0, 44_100)] * 2) if sound else None
        return write_video(tmp_path / "corpus" / "video" / f"{name}.mp4", 25, sound=samples)

    return make


def write_table(folder: Path, text: str) -> None:
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "corpus" / "subtitle_chieng.csv").write_text(text, encoding="utf-8")


def ask(run: Run, clips: Sequence[Path], question: str = "labels", **options: object) -> list[Prediction | Failed]:
    defaults: dict = {"encoders": FlatEncoders(), "answerer": Oracle()}
    return list(predict(run, clips, question, **defaults | options))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Clips of the synthetic corpus, prepared with random towers."""
    return make_clip_shards(tmp_path_factory.mktemp("clips"))


def test_inputs_are_those_of_preparation(prepared: RunConfig) -> None:
    """The model gets to the bit what the shards hold of the same clips, and their subtitles."""
    corpus = open_corpus(prepared.data.shards, "test", ("face@8", "audio@8"))
    video = Path(prepared.prepare.corpus) / "video"
    oracle = Oracle()
    clips = [video / f"{name}.mp4" for name in corpus.names]
    encoders = Encoders(prepared.weights.vision, prepared.weights.audio, batch=32)
    outcomes = ask(fake_run(prepared), clips, answerer=oracle, encoders=encoders, batch=4)
    assert [outcome.clip for outcome in outcomes] == list(map(str, clips))
    assert [query.subtitle for query in oracle.queries] == [record.subtitle for record in corpus.texts()]
    for name, stream in STREAMS.items():
        features, present = corpus.features(stream.name, np.arange(len(corpus)))
        assert present.all()
        found = np.stack([query.features[name] for query in oracle.queries])
        assert len(np.unique(found.reshape(len(corpus), -1), axis=0)) == len(corpus)
        np.testing.assert_array_equal(found, features.astype(np.float32))


def test_towers_in_half_precision(prepared: RunConfig) -> None:
    """Features differ by some roundings of bfloat16, and their provenance says which they are."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 28, 28, 3), np.uint8)
    sound = rng.normal(size=(2, 3, 3200)).astype(np.float32)
    exact, half = (
        Encoders(prepared.weights.vision, prepared.weights.audio, batch=4, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    pairs = ((half.vision(pictures), exact.vision(pictures)), (half.audio(sound), exact.audio(sound)))
    for found, expected in pairs:
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 8 * 2.0**-8 * np.abs(expected).max()
    for name in ("vision_provenance", "audio_provenance"):
        assert getattr(half, name) == getattr(exact, name) | {"dtype": "bfloat16"}


def test_towers_of_another_training_are_refused(prepared: RunConfig, tmp_path: Path) -> None:
    opened = open_encoders(prepared, STREAMS, 1)
    assert opened.audio_provenance["width"] == 10
    write_towers(tmp_path, seed=5)
    other = prepared.model_copy(
        update={"weights": prepared.weights.model_copy(update={"vision": str(tmp_path / "vision")})}
    )
    with pytest.raises(UserError, match=r"learned from face@8 .* with weights"):
        open_encoders(other, STREAMS, 1)
    half = prepared.model_copy(update={"prepare": prepared.prepare.model_copy(update={"dtype": "bfloat16"})})
    with pytest.raises(UserError, match=r"with dtype 'float32', but a clip would now be read with 'bfloat16'.*prepare"):
        open_encoders(half, STREAMS, 1)
    nothing = prepared.model_copy(update={"weights": prepared.weights.model_copy(update={"audio": None})})
    with pytest.raises(UserError, match=r"weights\.audio is not set"):
        open_encoders(nothing, STREAMS, 1)


def test_bad_clips_stop_nothing(run: Run, clip: Callable[..., Path], tmp_path: Path) -> None:
    """Every kind of broken file gets its reason, in its place, and the others their answers."""
    good, cut, text = clip("good"), truncate(clip("cut"), 0.6), tmp_path / "text.mp4"
    text.write_text("not a video\n")
    bad_faces, last, refused = clip("bad_faces"), clip("0012"), clip("refused")
    write_faces(tmp_path / "corpus" / "openface_face" / "bad_faces" / "bad_faces.npy", np.zeros((4, 8, 8), np.uint8))
    clips = [good, cut, text, tmp_path / "nowhere.mp4", bad_faces, refused, tmp_path, last]
    outcomes = ask(run, clips, answerer=Oracle(refused=["refused"]))
    assert [outcome.clip for outcome in outcomes] == list(map(str, clips))
    reasons = {Path(outcome.clip).name: outcome.error for outcome in outcomes if isinstance(outcome, Failed)}
    bad = [cut, text, tmp_path / "nowhere.mp4", bad_faces, refused, tmp_path]
    assert list(reasons) == [path.name for path in bad]
    assert "cut short" in reasons["cut.mp4"]
    assert "no media file" in reasons["text.mp4"]
    assert reasons["nowhere.mp4"] == "there is no such file"
    assert "bad_faces.npy: face crops must be uint8 [n, height, width, 3]" in reasons["bad_faces.mp4"]
    assert reasons["refused.mp4"] == "cannot be asked"
    assert "folder without a clip" in reasons[tmp_path.name]
    for outcome in outcomes:
        json.dumps(outcome.record())


def test_what_is_absent_is_said(run: Run, clip: Callable[..., Path], tmp_path: Path) -> None:
    """No faces, no sound, no words: each with its reason, and none of them made up."""
    write_table(tmp_path, "name,chinese,english\nfull,,Hello there.\n")
    write_faces(tmp_path / "corpus" / "openface_face" / "full" / "full.npy", np.full((9, 8, 8, 3), 7, np.uint8))
    oracle = Oracle()
    (silent,) = ask(run, [clip("silent", sound=False)], answerer=oracle, beside=Beside(subtitle="Hi"))
    assert isinstance(silent, Prediction)
    assert silent.absent["audio"] == "the file has no sound track"
    assert "--faces" in silent.absent["face"]
    assert "text" not in silent.absent
    assert oracle.queries[0].features == {}
    (empty,) = ask(run, [clip("empty", sound=False)])
    assert isinstance(empty, Failed)
    assert empty.error.startswith("there is nothing to go by")
    (full,) = ask(run, [clip("full")], answerer=oracle)
    assert isinstance(full, Prediction)
    assert full.absent == {}
    assert full.subtitle == "Hello there."
    assert set(oracle.queries[-1].features) == {"face", "audio"}
    np.testing.assert_array_equal(oracle.queries[-1].features["face"], np.full((8, 12), 7.0, np.float32))
    assert full.sources["face"].places == (0, 1, 2, 3, 4, 5, 6, 7)
    assert "not a diagnosis" in full.record()["limits"]
    assert (full.run, full.step, full.labels) == ("runs/fake", 3, ("calm",))


def test_batches(run: Run, clip: Callable[..., Path]) -> None:
    """The towers see whole batches; a clip named twice is asked about once; a short list makes a small batch."""
    clips = [clip(f"c{i}") for i in range(5)]
    encoders = FlatEncoders()
    outcomes = ask(run, [*clips, clips[0]], encoders=encoders, batch=2)
    assert [outcome.clip for outcome in outcomes] == list(map(str, clips))
    assert encoders.calls == [("audio", 2), ("audio", 2), ("audio", 1)]
    assert ask(run, []) == []


def test_cut_answers_are_marked(run: Run, clip: Callable[..., Path]) -> None:
    (whole,) = ask(run, [clip("a")], max_new=6)
    (cut,) = ask(run, [clip("a")], max_new=5)
    assert isinstance(whole, Prediction)
    assert isinstance(cut, Prediction)
    assert (whole.notes, cut.notes) == ((), ("cut off after 5 tokens",))


def test_questions() -> None:
    assert question_text("labels") == QUESTIONS["ovlabel"]
    assert question_text("description") == QUESTIONS["description"]
    assert question_text(" Why is she {sad}? ") == "Why is she {sad}?"
    assert question_text("Why?") == "Why?"
    assert "happy, sad" in question_text("onehot_w_candidates", candidates="happy, sad")
    assert question_text(question_text("labels")) == QUESTIONS["ovlabel"]
    assert question_text("candidates", candidates="happy, sad") == question_text(
        "onehot_w_candidates", candidates="happy, sad"
    )
    assert question_text("sentiment") == QUESTIONS["sentiment"]
    assert "ranging from -1 to 1." in question_text("valence", low="-1", high="1")
    for words, fields, message in (
        ("lables", {}, "did you mean labels"),
        ("valence", {"low": "-1"}, r"takes the fields \['high', 'low'\]"),
        ("What is it?", {"low": "-1"}, "low can only fill in a kind"),
    ):
        with pytest.raises(UserError, match=message):
            question_text(words, **fields)


def test_list_clips(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "notes.txt", "deep/c.webm"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folder = tmp_path / "clips"
    inside = [folder / "a.MOV", folder / "b.mp4", folder / "deep" / "c.webm"]
    assert list_clips([str(folder)]) == inside
    assert list_clips([f"{folder}/*.mp4", f"{folder}/**/*.webm", str(inside[1])]) == inside[1:]
    assert list_clips([str(folder / "notes.txt")]) == [folder / "notes.txt"]
    lost = str(tmp_path / "*.avi")
    assert list_clips([lost]) == [Path(lost)]


def find(path: Path, **beside: object) -> Clip:
    return find_clip(file_item(path), Beside(**beside), read_table)  # type: ignore[arg-type]


def test_subtitles(clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names stay strings, the last line of a name counts, NaN is none; what is given comes first, even if empty."""
    write_table(tmp_path, '\ufeffname,english\n0012,first\n0012,"last, truly"\n12,other\nblank,nan\n')
    table = tmp_path / "corpus" / "subtitle_chieng.csv"
    found = find(clip("0012"))
    assert (found.subtitle, found.subtitle_from) == ("last, truly", str(table))
    assert find(clip("0012"), subtitle="given").subtitle == "given"
    empty = find(clip("0012"), subtitle="")
    assert (empty.subtitle, empty.absent["text"]) == ("", "the subtitle given is empty")
    assert "holds nothing for blank" in find(clip("blank")).absent["text"]
    assert "holds nothing for lost" in find(clip("lost")).absent["text"]
    silent = find(clip("0012"), words=False)
    assert (silent.subtitle, silent.absent["text"]) == ("", "left out on request")
    monkeypatch.chdir(tmp_path / "corpus" / "video")  # a bare file name has a corpus, too
    assert find(Path("0012.mp4")).subtitle == "last, truly"
    table.write_text("name,words\n0012,hello\n")
    with pytest.raises(UserError, match="needs the column name and one of english"):
        find(Path("0012.mp4"))
    table.unlink()
    assert "there is no subtitle" in find(Path("0012.mp4")).absent["text"]


def test_side_cars(clip: Callable[..., Path], tmp_path: Path) -> None:
    """What lies beside a clip comes before its corpus's table; a place that is named is the only one looked at."""
    write_table(tmp_path, "name,english\na,of the corpus\n")
    path = clip("a")
    cue = "00:00:00.000 --> 00:00:01.000\n"
    (path.parent / "subtitles.csv").write_text("name,text\na,of the folder\n")
    assert find(path).subtitle == "of the folder"
    (path.parent / "a.en.vtt").write_text(f"WEBVTT\n\n{cue}English\n")
    (path.parent / "a.zh.srt").write_text(f"1\n{cue}Chinese\n")
    assert find(path).subtitle_from == str(path.parent / "a.en.vtt")
    (path.parent / "a.srt").write_text(f"1\n{cue}Plain\n")
    assert find(path).subtitle == "Plain"
    other = tmp_path / "other"
    other.mkdir()
    assert f"{other} has no a.srt or a.vtt" in find(path, subtitles=other).absent["text"]
    (other / "a.vtt").write_text(f"WEBVTT\n\n{cue}Elsewhere\n")
    assert find(path, subtitles=other).subtitle == find(path, subtitles=other / "a.vtt").subtitle == "Elsewhere"
    (other / "a.vtt").write_text("no cue")
    with pytest.raises(UserError, match=r"a\.vtt has no cue"):
        find(path, subtitles=other)


def test_faces(clip: Callable[..., Path], tmp_path: Path) -> None:
    """A file is taken at its word, a folder looked into, and the clip's corpus is the default."""
    path = clip("a")
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    flat = write_faces(tmp_path / "flat" / "a.npy", crops)
    nested = write_faces(tmp_path / "nested" / "a" / "a.npy", crops)
    for given, expected in ((flat, flat), (flat.parent, flat), (tmp_path / "nested", nested), (None, None)):
        assert find(path, faces=given).files.faces == expected
    own = write_faces(tmp_path / "corpus" / "openface_face" / "a" / "a.npy", crops)
    assert find(path).files.faces == own
    assert find(path, stored=False).files.faces is None
    assert find(path, faces=tmp_path / "lost.npy").files.faces == tmp_path / "lost.npy"
    why = find(path, faces=tmp_path / "corpus").absent["face"]
    assert f"no {tmp_path / 'corpus' / 'a.npy'}" in why


def test_detected_faces(run: Run, clip: Callable[..., Path], tmp_path: Path) -> None:
    """Frames and boxes of a detector are in the record; where it finds none that is said; stored crops come first."""

    def detect(files: ClipFiles, count: int) -> DetectedFaces | None:
        assert files.video is not None
        if files.video.stem == "nobody":
            return None
        crops = np.full((count, 224, 224, 3), 9, np.uint8)
        return DetectedFaces(crops, tuple(range(3, 3 + count)), ((1.0, 2.0, 30.0, 40.0),) * count)

    oracle = Oracle()
    clips = [clip("a"), clip("nobody"), clip("stored")]
    write_faces(tmp_path / "corpus" / "openface_face" / "stored" / "stored.npy", np.full((9, 8, 8, 3), 7, np.uint8))
    beside = Beside(detect=detect, detector="test")
    found, nobody, stored = ask(run, clips, answerer=oracle, beside=beside)
    assert isinstance(found, Prediction)
    face = found.record()["sources"]["face"]
    assert (face["unit"], face["places"], face["detector"]) == ("frame", (3, 4, 5, 6, 7, 8, 9, 10), "test")
    assert face["boxes"] == ((1.0, 2.0, 30.0, 40.0),) * 8
    assert isinstance(nobody, Prediction)
    assert nobody.absent["face"] == f"test found no face in {clips[1]}"
    assert isinstance(stored, Prediction)
    assert stored.sources["face"].unit == "crop"
    assert [float(query.features["face"][0, 0]) for query in oracle.queries if "face" in query.features] == [9.0, 7.0]
    again = ask(run, clips[2:], beside=Beside(detect=detect, detector="test", stored=False))
    assert isinstance(again[0], Prediction)
    assert again[0].sources["face"].unit == "frame"


def test_clips_of_a_manifest(run: Run, clip: Callable[..., Path], tmp_path: Path) -> None:
    """Names, own sound files, words and faults come from it; words alone are enough to go by."""
    sound = write_wav(tmp_path / "a.wav", tone(2.0))
    items = [
        Item("one", ClipFiles(clip("a"), sound), "one", "Hello.", "list.csv", ("list.csv: odd",)),
        Item("words", ClipFiles(), "words", "Only words.", "list.csv"),
        Item("list.csv, line 4", ClipFiles(), "", fault="line 4: no name"),
        Item("nothing", ClipFiles(), "nothing"),
    ]
    one, words, fault, nothing = ask(run, items)
    assert isinstance(one, Prediction)
    assert (one.clip, one.subtitle, one.sources["text"].origin, one.notes) == (
        "one",
        "Hello.",
        "list.csv",
        ("list.csv: odd",),
    )
    assert one.sources["audio"].origin == str(sound)
    assert isinstance(words, Prediction)
    assert set(words.absent) == {"face", "audio"}
    assert fault == Failed("list.csv, line 4", "line 4: no name")
    assert isinstance(nothing, Failed)
    assert identity(items) == identity(list(items))
    write_wav(sound, tone(1.0))
    assert identity(items) != identity(items[::-1])


class Stumbling(Oracle):
    """Cannot answer a batch with some names in it, as a device that runs out of memory."""

    def __call__(self, queries: Sequence[Query]) -> list[Answer | Rejected]:
        if any("bad" in query.name for query in queries):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return super().__call__(queries)


def test_a_failing_batch_costs_only_the_clips_at_fault(run: Run, clip: Callable[..., Path]) -> None:
    clips = [clip(name) for name in ("a", "b", "bad0", "c", "d", "bad1", "e", "f", "g")]
    oracle = Stumbling()
    outcomes = ask(run, clips, answerer=oracle)
    assert [outcome.clip for outcome in outcomes if isinstance(outcome, Failed)] == [str(clips[2]), str(clips[5])]
    assert [o.error for o in outcomes if isinstance(o, Failed)] == [
        "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    ] * 2
    assert [query.number for query in oracle.queries] == [0, 1, 3, 4, 6, 7, 8]
    with pytest.raises(RuntimeError, match="out of memory"):  # not the clips', if none can be answered
        ask(run, [clips[2], clips[5]], answerer=oracle)

    class NoNumber(FlatEncoders):
        def audio(self, clips: np.ndarray) -> np.ndarray:
            found = super().audio(clips)
            found[0] = np.nan
            return found

    first, second = ask(run, clips[:2], encoders=NoNumber())
    assert first == Failed(str(clips[0]), "its features of audio are not finite numbers")
    assert isinstance(second, Prediction)


def test_going_on_keeps_numbers_and_company(run: Run, clip: Callable[..., Path]) -> None:
    clips = [clip(f"c{i}") for i in range(11)]
    whole, rest = Oracle(), Oracle()
    expected = ask(run, clips, answerer=whole)
    found = ask(run, clips, answerer=rest, first=8)
    assert [outcome.clip for outcome in found] == [outcome.clip for outcome in expected[8:]]
    assert [query.number for query in rest.queries] == [query.number for query in whole.queries[8:]] == [8, 9, 10]
    assert ask(run, clips, first=11) == []


def test_places(tmp_path: Path) -> None:
    """Times of frames agree with the container's own; sound starts are spread from 0 to two seconds before the end."""
    path = write_video(tmp_path / "clip.mp4", 75, rate=30, sound=tone(2.5, 44_100)[None])
    with av.open(str(path)) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    found = places(ClipFiles(video=path), parse_stream("frame@5"))
    assert found.unit == "second"
    np.testing.assert_allclose(found.places, times[::15], atol=0.03)
    starts = places(ClipFiles(video=path), parse_stream("audio@3")).places
    np.testing.assert_allclose(starts, [0.0, 0.25, 0.5], atol=0.03)


def test_same_clip_elsewhere(prepared: RunConfig, tmp_path: Path) -> None:
    """A clip that left its corpus keeps its sound, and says that faces and words stayed behind."""
    video = sorted((Path(prepared.prepare.corpus) / "video").iterdir())[0]
    shutil.copy(video, tmp_path / "mine.mp4")
    (outcome,) = ask(fake_run(prepared), [tmp_path / "mine.mp4"])
    assert isinstance(outcome, Prediction)
    assert set(outcome.absent) == {"face", "text"}
    assert set(outcome.sources) == {"audio"}
