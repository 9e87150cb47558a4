"""Timelines: a window sees what the clip cut out there shows, everything is encoded once, people are told apart."""

import tracemalloc
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from affectgpt_jax.data.clips import ClipFiles, DetectedFaces, read_modality
from affectgpt_jax.data.long_media import survey
from affectgpt_jax.data.shard_schema import Stream, parse_stream
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.timeline import number_in
from affectgpt_jax.inference.timeline import windows as grid
from affectgpt_jax.inference.timeline.features import Inputs, cut_sound, fingerprint, key
from affectgpt_jax.inference.timeline.tracks import overlap, people, track
from affectgpt_jax.inference.timeline.windows import Window, spread
from data_prep.faces import Cascade, FaceCrops
from tests.data_prep.test_faces import Bright
from tests.media_files import pictures, tone, truncate, write_faces, write_video, write_wav

RATE = 16_000


class Watching:
    """Towers that give back some of what they see, exactly, and count it; after `stop_after` calls the user
    interrupts."""

    def __init__(self, stop_after: int = 1_000_000) -> None:
        self.seen = {"vision": 0, "audio": 0}
        self.calls, self.stop_after = 0, stop_after

    def vision(self, frames: np.ndarray) -> np.ndarray:
        self._called("vision", len(frames))
        return frames.reshape(len(frames), -1)[:, ::997].astype(np.float32)

    def audio(self, clips: np.ndarray) -> np.ndarray:
        self._called("audio", len(clips))
        return clips[:, :, ::501]

    def _called(self, tower: str, count: int) -> None:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.seen[tower] += count


def write_lossless(path: Path, frames: Sequence[np.ndarray], sound: np.ndarray) -> Path:
    """A recording of 25 frames a second, RGB [height, width, 3] or YUV, and int16 samples; nothing is lost."""
    yuv = frames[0].ndim == 2
    height, width = (frames[0].shape[0] * 2 // 3, frames[0].shape[1]) if yuv else frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        track = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        video = container.add_stream("ffv1", rate=Fraction(25))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p" if yuv else "bgr0"
        for number, picture in enumerate(frames):
            chunk = sound[number * RATE // 25 : (number + 1) * RATE // 25]
            frame = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            frame.rate, frame.pts = RATE, number * RATE // 25
            container.mux(track.encode(frame))
            shown = av.VideoFrame.from_ndarray(picture, format="yuv420p" if yuv else "rgb24")
            container.mux(video.encode(shown if yuv else shown.reformat(format="bgr0")))
        container.mux(track.encode())
        container.mux(video.encode())
    return path


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-9_000, 9_000, frames * RATE // 25).astype(np.int16)


def make(
    folder: Path,
    video: Path,
    streams: Sequence[str] = ("frame@8", "audio@8"),
    length: float = 4.0,
    hop: float = 2.0,
    **more: Any,
) -> Inputs:
    folder.mkdir(parents=True, exist_ok=True)
    recording = survey(video)
    parsed: dict[str, Stream] = {stream.partition("@")[0]: parse_stream(stream) for stream in streams}
    return Inputs(folder, video, recording, grid(recording.seconds, length, hop), parsed, **more)


# ---------------------------------------------------------------------------------------------------------------------
# Windows


def test_windows() -> None:
    assert grid(10.0, 4.0, 2.0) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert grid(10.4, 4.0, 2.0)[-1] == (6, 10)  # too little is left
    assert grid(11.0, 4.0, 2.0)[-2:] == [(6, 10), (7, 11)]
    assert grid(2.5, 4.0, 2.0) == [(0, 2.5)]
    assert grid(4.0, 4.0, 2.0) == [(0, 4)]
    assert grid(9.0, 2.0, 4.0) == [(0, 2), (4, 6), (7, 9)]
    assert grid(7.0, 2.0, 4.0) == [(0, 2), (4, 6)]
    many = grid(3600.0, 4.0, 0.1)
    assert many[-1] == (3596, 3600)
    assert many[12_345].start == 1234.5
    for length, hop, name in ((0, 1, "window"), (4, -1, "hop"), (float("nan"), 1, "window"), (4, float("inf"), "hop")):
        with pytest.raises(UserError, match=f"--{name} .*: expected seconds, more than 0"):
            grid(10.0, length, hop)


def test_windows_share_frames_where_distances_divide_the_hop() -> None:
    times = np.arange(1_000) / 25
    picked = [spread(times, window, 8) for window in grid(40.0, 4.0, 2.0)]
    assert picked[0] == [0, 12, 25, 37, 50, 62, 75, 87]
    assert all(now[4:] == following[:4] for now, following in pairwise(picked))
    assert spread(times, Window(0.0, 0.1), 8) == [0, 1, 2]
    assert spread(times, Window(50.0, 54.0), 8) == []


def test_sound_of_windows_however_it_comes() -> None:
    rng = np.random.default_rng(1)
    sound = rng.normal(size=10 * RATE + 77).astype(np.float32)
    for length, hop in ((4.0, 2.0), (0.5, 1.3), (3.0, 0.7), (20.0, 1.0)):
        parts = [*grid(10.0, length, hop), Window(30.0, 34.0)]
        blocks = np.split(sound, np.sort(rng.integers(0, len(sound), 40)))
        for window, found in zip(parts, cut_sound(blocks, parts), strict=True):
            start, end = (round(x * RATE) for x in window)
            np.testing.assert_array_equal(found, sound[start:end])


# ---------------------------------------------------------------------------------------------------------------------
# What a window sees


def test_a_window_is_the_clip_cut_out_there(tmp_path: Path) -> None:
    frames, sound = pictures(187, 48, 64), noise(187)
    video = write_lossless(tmp_path / "long.mkv", list(frames), sound)
    inputs = make(tmp_path / "cache", video, length=2.0, hop=1.0)
    towers = Watching()
    inputs.encode(towers)
    assert [window.start for window in inputs.windows] == [0, 1, 2, 3, 4, 5, 5.48]
    for number, window in enumerate(inputs.windows):
        first, after = round(window.start * 25), round(window.end * 25)
        samples = sound[first * RATE // 25 : after * RATE // 25]
        clip = ClipFiles(write_lossless(tmp_path / f"{number}.mkv", list(frames[first:after]), samples))
        seen = inputs.seen(number, "1")
        assert not seen.absent
        for name, tower in (("frame", Watching().vision), ("audio", lambda x: Watching().audio(x[None])[0])):
            cut = read_modality(clip, parse_stream(f"{name}@8"))
            assert cut is not None
            expected = tower(cut).astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(seen.features[name], expected)
        assert len(set(seen.sources["frame"].places)) == 8
        assert seen.sources["frame"].places[0] == seen.sources["audio"].places[0] == pytest.approx(window.start)
    # Each picture once, though most are in two windows.
    assert towers.seen == {
        "vision": len({i for w in inputs.windows for i in spread(inputs.recording.times, w, 8)}),
        "audio": 7,
    }
    assert towers.seen["vision"] < 7 * 8 * 0.75


def moving(frames: int, *, second: range = range(0)) -> list[np.ndarray]:
    """A white square that wanders to the right, and in some frames a smaller one that wanders down."""
    found = []
    for i in range(frames):
        picture = np.full((96, 192, 3), 40, np.uint8)
        left = 10 + i // 3
        picture[20:50, left : left + 30] = 230
        if i in second:
            picture[30 + i // 8 : 50 + i // 8, 150:170] = 230
        found.append(picture)
    return found


def test_detected_faces_of_a_window_are_those_of_the_clip(tmp_path: Path) -> None:
    frames = moving(100)
    video = write_lossless(tmp_path / "long.mkv", frames, noise(100))
    crops = FaceCrops("detect", Bright())
    inputs = make(tmp_path / "cache", video, ["face@8"], 2.0, 1.0, find=crops.find_all, detector="bright", threads=2)
    towers = Watching()
    inputs.encode(towers)
    assert [inputs.people(window) for window in range(3)] == [["1"]] * 3
    for number, first in enumerate((0, 25, 50)):
        clip = write_lossless(tmp_path / f"{number}.mkv", frames[first : first + 50], noise(50))
        found = crops.find(ClipFiles(clip), 8)
        assert found is not None
        seen = inputs.seen(number, "1")
        np.testing.assert_array_equal(seen.features["face"], Watching().vision(found.crops).astype(np.float16))
        np.testing.assert_allclose(seen.sources["face"].boxes, found.boxes)
        np.testing.assert_allclose(seen.sources["face"].places, (np.array(found.frames) + first) / 25, atol=0.006)
        assert seen.sources["face"].detector == "bright"


def test_two_faces_are_two_people(tmp_path: Path) -> None:
    """The second one is there for a while only, and each keeps their own face."""
    video = write_lossless(tmp_path / "a.mkv", moving(250, second=range(80, 180)), noise(250))
    crops = FaceCrops("detect", Bright())
    inputs = make(tmp_path / "cache", video, ["face@4", "audio@2"], 2.0, 2.0, find=crops.find_all)
    inputs.encode(Watching())
    assert inputs.several
    assert [inputs.people(window) for window in range(5)] == [["1"], ["1", "2"], ["1", "2"], ["1", "2"], ["1"]]
    one, two = inputs.seen(2, "1"), inputs.seen(2, "2")
    np.testing.assert_array_equal(one.features["audio"], two.features["audio"])
    assert (one.features["face"] != two.features["face"]).any()
    assert {round(box[2]) for box in one.sources["face"].boxes} == {30}
    assert {round(box[2]) for box in two.sources["face"].boxes} == {20}
    assert len(two.sources["face"].places) == 4


def test_nobody_is_seen_for_a_while(tmp_path: Path) -> None:
    frames = moving(150, second=range(50))
    frames[60:] = [np.full((96, 192, 3), 40, np.uint8)] * 90
    video = write_lossless(tmp_path / "a.mkv", frames, noise(150))
    inputs = make(
        tmp_path / "cache", video, ["face@4", "audio@2"], 2.0, 2.0, find=FaceCrops("detect", Bright()).find_all
    )
    inputs.encode(Watching())
    assert [inputs.people(window) for window in range(3)] == [["1", "2"], ["1"], [""]]
    seen = inputs.seen(2, "")
    assert (list(seen.features), seen.absent) == (["audio"], {"face": "the detector found no face here"})


def test_the_built_in_detector_tells_people_apart(tmp_path: Path) -> None:
    """A portrait, twice in one picture; no wider than the detector looks at, for a resize rounds by the machine."""
    data = pytest.importorskip("skimage.data")
    portrait = data.astronaut()[8:216, 120:328]
    picture = np.concatenate([portrait, np.zeros((208, 64, 3), np.uint8), portrait], axis=1)
    video = write_lossless(tmp_path / "a.mkv", [picture] * 50, noise(50))
    inputs = make(tmp_path / "cache", video, ["face@2"], 2.0, 2.0, find=FaceCrops("detect", Cascade()).find_all)
    inputs.encode(Watching())
    assert inputs.people(0) == ["1", "2"]
    lefts = [inputs.seen(0, person).sources["face"].boxes[0][0] for person in ("1", "2")]
    assert abs(abs(lefts[0] - lefts[1]) - 272) < 10


def test_stored_crops(tmp_path: Path) -> None:
    """One for each frame lies where the frame does; fewer lie evenly over the recording."""
    video = write_video(tmp_path / "a.mp4", 100)
    for count, first in ((100, 50), (40, 20)):
        faces = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 9, 8, 3))
        crops = write_faces(tmp_path / f"{count}.npy", faces)
        inputs = make(tmp_path / str(count), video, ["face@4"], 2.0, 1.0, crops=crops)
        towers = Watching()
        inputs.encode(towers)
        seen = inputs.seen(2, "1")
        assert seen.sources["face"].places[0] == first
        np.testing.assert_array_equal(seen.features["face"][:, 0], seen.sources["face"].places)
        assert towers.seen["vision"] == 8


# ---------------------------------------------------------------------------------------------------------------------
# Interrupted, broken, absent


def test_going_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk is not encoded again, and what is written is the same byte for byte."""
    monkeypatch.setattr("affectgpt_jax.inference.timeline.features.PIECE", 16)
    monkeypatch.setattr("affectgpt_jax.inference.timeline.features.WINDOWS", 2)
    video = write_lossless(tmp_path / "a.mkv", moving(200, second=range(50, 150)), noise(200))
    shown: list[int] = []

    def find(places: Sequence[int], frames: np.ndarray, scale: float) -> DetectedFaces:
        shown.extend(places)
        return FaceCrops("detect", Bright()).find_all(places, frames, scale)

    streams = ["frame@8", "face@8", "audio@8"]
    whole = make(tmp_path / "whole", video, streams, 2.0, 1.0, find=find)
    towers = Watching()
    whole.encode(towers)
    assert len(shown) == len(set(shown))
    total, all_shown = dict(towers.seen), len(shown)
    done = 0
    for stop_after in (1, 3, 6, towers.calls - 1):
        part = make(tmp_path / "part", video, streams, 2.0, 1.0, find=find)
        stopping = Watching(stop_after - done)
        done = stop_after
        with pytest.raises(KeyboardInterrupt):
            part.encode(stopping)
        assert not part.complete
    shown.clear()
    again, rest = make(tmp_path / "part", video, streams, 2.0, 1.0, find=find), Watching()
    again.encode(rest)
    assert again.complete
    assert rest.calls < towers.calls / 2
    assert len(shown) < all_shown / 2
    assert total["vision"] > 100
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "part").iterdir())
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()
    nothing = Watching(0)
    again.encode(nothing)


def test_a_recording_that_is_cut_short(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 200, sound=tone(8, 44_100)[None], movflags="faststart")
    inputs = make(tmp_path / "cache", truncate(path, 0.7), length=2.0, hop=1.0)
    inputs.encode(Watching())
    assert any("cut short" in problem for problem in inputs.problems)
    assert 3 <= len(inputs.windows) < 7
    for number in range(len(inputs.windows)):
        assert set(inputs.seen(number, "1").features) == {"frame", "audio"}


def test_what_is_absent(tmp_path: Path) -> None:
    silent = make(tmp_path / "1", write_video(tmp_path / "silent.mp4", 50), ["frame@8", "audio@8", "face@8"])
    blind = make(tmp_path / "2", write_wav(tmp_path / "a.wav", tone(5)), find=FaceCrops("detect", Bright()).find_all)
    for inputs in (silent, blind):
        inputs.encode(Watching())
        assert inputs.people(0) == ["1"]
    seen = silent.seen(0, "1")
    assert seen.absent == {
        "audio": "the file has no sound track",
        "face": "no face crops are stored, and no detector looks",
    }
    seen = blind.seen(0, "1")
    assert (list(seen.features), seen.absent) == (["audio"], {"frame": "the file has no picture"})
    short = make(tmp_path / "3", write_video(tmp_path / "late.mp4", 25, sound=tone(5, 44_100)[None]))
    short.encode(Watching())
    assert short.seen(1, "1").absent == {"frame": "there is no picture here that can be decoded"}


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(minutes: int) -> int:
        video = write_wav(tmp_path / f"{minutes}.wav", np.tile(tone(60.0), minutes))
        inputs = make(tmp_path / str(minutes), video, ["audio@2"], 4.0, 4.0)
        tracemalloc.start()
        inputs.encode(Watching())
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    short, long = peak(4), peak(20)
    assert long < 1.1 * short


def test_features_are_known_by_all_that_they_depend_on(tmp_path: Path) -> None:
    video = write_wav(tmp_path / "a.wav", tone(1))
    other = write_wav(tmp_path / "b.wav", tone(1, frequency=300))
    twin = write_wav(tmp_path / "c.wav", tone(1))
    streams = {"audio": parse_stream("audio@8")}
    weights, faces = {"audio": "01"}, {"detector": "bright"}
    base = key(fingerprint(video, 4.0, 2.0, streams, weights, faces))
    assert key(fingerprint(twin, 4.0, 2.0, streams, weights, faces)) == base
    changed: list[tuple[Any, ...]] = [
        (other, 4.0, 2.0, streams, weights, faces),
        (video, 3.0, 2.0, streams, weights, faces),
        (video, 4.0, 1.0, streams, weights, faces),
        (video, 4.0, 2.0, {"audio": parse_stream("audio@4")}, weights, faces),
        (video, 4.0, 2.0, streams, {"audio": "02"}, faces),
        (video, 4.0, 2.0, streams, weights, {}),
    ]
    assert len({base, *(key(fingerprint(*arguments)) for arguments in changed)}) == 7


# ---------------------------------------------------------------------------------------------------------------------
# People, numbers


def faces(path: Mapping[float, Sequence[Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(time, box) for time, boxes in path.items() for box in boxes]
    return np.array([time for time, _ in pairs], np.float64), np.array([box for _, box in pairs], np.float64)


def test_tracks() -> None:
    one, two = (0, 0, 10, 10), (50, 0, 10, 10)
    assert overlap(np.array([one]), np.array([one, two, (5, 0, 10, 10)])).round(3).tolist() == [[1, 0, 0.333]]
    crossing = {t: [(4 * t, 0, 10, 10), (50, 40 - 4 * t, 10, 10)] for t in range(10)}
    assert track(*faces(crossing)).tolist() == [0, 1] * 10
    swapped = {0.0: [one, two], 0.5: [two, one], 1.0: [one], 1.5: [two, one]}
    assert track(*faces(swapped)).tolist() == [0, 1, 1, 0, 0, 1, 0]
    gone = {0.0: [one], 1.9: [one], 4.0: [one]}
    assert track(*faces(gone)).tolist() == [0, 0, 1]
    assert track(*faces(gone), spacing=1.0).tolist() == [0, 0, 0]  # two frames were missed
    # The pair that overlaps most goes first, though the other face comes first.
    close = {0.0: [one], 0.5: [(6, 0, 10, 10), (1, 0, 10, 10)]}
    assert track(*faces(close)).tolist() == [0, 1, 0]
    assert track(np.zeros(0), np.zeros((0, 4))).tolist() == []


def test_people() -> None:
    big, small = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 8.0, 8.0)
    times = np.arange(0, 3, 0.5)
    both = people(*faces({t: [big, small] for t in times}))
    assert both.tolist() == [1, 2] * 6
    # A mistake of the detector makes nobody; and cuts between two cameras do not make two people.
    flicker = {t: [big, small] if t in (0.5, 1.0) else [big] for t in times}
    assert people(*faces(flicker)).tolist() == [1, 1, 0, 1, 0, 1, 1, 1]
    cuts = {t: [big] if t < 1.5 else [small] for t in times}
    assert people(*faces(cuts)).tolist() == [1] * 6
    crowd = {t: [big, small, (100.0, 0.0, 5.0, 5.0)] if t == 1.0 else [big, small] for t in times}
    assert sorted(people(*faces(crowd)).tolist()) == [0] + [1] * 6 + [2] * 6
    assert people(np.zeros(0), np.zeros((0, 4))).tolist() == []


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("The valence score is -0.46.", -0.46),
        ("\u22120.5", -0.5),
        ("about .25 or so", 0.25),
        ("+1", 1.0),
        ("I would say 0.", 0.0),
        ("7 out of 10", None),
        ("neutral", None),
        ("", None),
    ],
)
def test_numbers_of_answers(answer: str, number: float | None) -> None:
    assert number_in(answer, -1.0, 1.0) == number
