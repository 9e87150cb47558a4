"""What the model sees of a recording's windows: decoded once, encoded once, kept on disk.

Pictures and faces are encoded one by one, whichever windows see them; sound is normalised over the clips of its window,
as in training, so that each window has its own. Everything is kept in pieces that are on disk whole or not at all: an
interrupted pass loses one. A pass that goes on decodes from the beginning, which is exact and cheap against the
detector and the towers, whose work is not done again.

n pictures, k faces, w windows, c clips of sound, F feature width.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from affectgpt_jax.data.clips import AUDIO_SECONDS, CANDIDATES, FRAME_SIDE, PREPROCESSING, DetectedFaces
from affectgpt_jax.data.long_media import Recording, read_pictures, read_sound
from affectgpt_jax.data.media import FRAME_SIZE, Scaler, Upright, read_faces
from affectgpt_jax.data.preprocess import (
    SAMPLE_RATE,
    audio_clips,
    clip_starts,
    frame_indices,
    normalise_audio,
    pick_faces,
)
from affectgpt_jax.data.shard_schema import FEATURE_DTYPE, Stream, digest, file_digest
from affectgpt_jax.inference.clip_files import Source
from affectgpt_jax.inference.predict import PICTURES, groups
from affectgpt_jax.inference.timeline.tracks import people
from affectgpt_jax.inference.timeline.windows import Window, frames_between, spread
from affectgpt_jax.replacing import replacing

PIECE = PICTURES
"""Pictures, or stored crops, of a piece."""

WINDOWS = 32
"""Windows of a piece of sound."""

SHOWN = 16
"""Frames that wait for the detector at a time."""

CROWD = 8
"""Faces of a frame at most, the largest ones."""

FORMAT = "v1"
"""Of what is kept."""

Find = Callable[[Sequence[int], np.ndarray, float], DetectedFaces]
"""Detects all faces in some frames, see `data_prep.faces.FaceCrops.find_all`."""

Report = Callable[[int, int], None]


class Towers(Protocol):
    """What encodes, see `inference.encoders.Encoders`."""

    def vision(self, frames: np.ndarray) -> np.ndarray: ...

    def audio(self, clips: np.ndarray) -> np.ndarray: ...


class Seen(NamedTuple):
    """What a window has.

    Attributes:
      features: float32 [count, F] by stream, rounded as those of shards.
      sources: where they were read, by stream.
      absent: why there are none, by stream.
    """

    features: dict[str, np.ndarray]
    sources: dict[str, Source]
    absent: dict[str, str]


class Pieces:
    """Arrays in files of a folder, written in order."""

    def __init__(self, folder: Path, name: str, total: int, size: int) -> None:
        """Take what is there.

        Args:
          folder: where they are.
          name: of the files.
          total: things that they are about.
          size: things of one piece.
        """
        self._folder, self._name = folder, name
        self.size, self.total = size, total
        self.count = -(-total // size)
        self.read = functools.lru_cache(maxsize=4)(self._read)

    @property
    def done(self) -> int:
        """Pieces that are there."""
        return next((i for i in range(self.count) if not self._file(i).is_file()), self.count)

    def write(self, piece: int, **arrays: np.ndarray) -> None:
        """Keep a piece."""
        with replacing(self._file(piece)) as draft, draft.open("wb") as out:
            np.savez(out, **arrays)  # type: ignore[arg-type]

    def _read(self, piece: int) -> dict[str, np.ndarray]:
        with np.load(self._file(piece), allow_pickle=False) as arrays:
            return dict(arrays)

    def _file(self, piece: int) -> Path:
        return self._folder / f"{self._name}-{piece:05d}.npz"


class Inputs:
    """The windows of a recording, with what the model needs of them.

    Attributes:
      windows: the windows.
      recording: what the file holds.
    """

    def __init__(
        self,
        folder: Path,
        video: Path,
        recording: Recording,
        windows: Sequence[Window],
        streams: Mapping[str, Stream],
        *,
        crops: Path | None = None,
        find: Find | None = None,
        detector: str = "",
        threads: int = 1,
    ) -> None:
        """Say what is needed.

        Args:
          folder: where features are kept; of this recording, these windows, streams, towers and faces alone
            (`fingerprint`).
          video: the recording.
          recording: its `survey`.
          windows: in order, of one length.
          streams: the model's, by modality.
          crops: stored face crops of the whole recording.
          find: detects faces where no crops are stored; None leaves them absent.
          detector: its name.
          threads: frames that are looked at side by side.

        Raises:
          MediaError: the crops cannot be read.
        """
        self.windows, self.recording = windows, recording
        self._folder, self._video, self._streams = folder, video, streams
        self._find, self._detector, self._threads = find, detector, threads
        self._crops = None if crops is None or "face" not in streams else read_faces(crops, mapped=True)
        self._crops_file = crops
        times = recording.times

        def wanted(count: int) -> list[int]:
            return sorted({frame for window in windows for frame in spread(times, window, count)})

        self._frames = wanted(streams["frame"].count) if "frame" in streams else []
        self._detects = "face" in streams and self._crops is None and find is not None
        self._looked = wanted(CANDIDATES * streams["face"].count) if self._detects else []
        self._numbers = np.array(sorted({*self._frames, *self._looked}), np.int64)
        self._chosen = sorted({crop for window in windows for crop in self._crops_of(window)})
        self._pictures = Pieces(folder, "pictures", len(self._numbers), PIECE)
        self._stored = Pieces(folder, "crops", len(self._chosen), PIECE)
        sound = len(windows) if "audio" in streams and recording.sound else 0
        self._sound = Pieces(folder, "sound", sound, WINDOWS)

    # ---- encoding

    @property
    def complete(self) -> bool:
        """Whether everything is on disk."""
        return all(pieces.done == pieces.count for pieces in self._all)

    @property
    def problems(self) -> list[str]:
        """What could not be read or decoded; known once everything is on disk."""
        told = [text for pieces in self._all if pieces.count for text in pieces.read(pieces.count - 1)["told"].tolist()]
        return list(dict.fromkeys(filter(None, [self.recording.problem, *told])))

    def encode(self, towers: Towers, report: Report = lambda done, total: None) -> None:
        """Decode and encode what is not on disk.

        Args:
          towers: the towers.
          report: is told how many pictures, crops and windows of sound are done, and of how many.

        Raises:
          MediaError: the file cannot be opened any more.
        """
        total, before = sum(pieces.total for pieces in self._all), 0
        for pieces, work in zip(
            self._all, (self._encode_pictures, self._encode_crops, self._encode_sound), strict=True
        ):
            first = pieces.done
            report(before + min(first * pieces.size, pieces.total), total)
            for piece in work(towers, first) if first < pieces.count else ():
                report(before + min((piece + 1) * pieces.size, pieces.total), total)
            before += pieces.total

    @property
    def _all(self) -> tuple[Pieces, Pieces, Pieces]:
        return self._pictures, self._stored, self._sound

    def _encode_pictures(self, towers: Towers, first: int) -> Iterator[int]:
        pieces = self._pictures
        told: list[str] = []
        decoded = read_pictures(self._video, self.recording, self._numbers[first * PIECE :].tolist(), told.append)
        frames, looked = set(self._frames), set(self._looked)
        scaler, upright = Scaler(FRAME_SIZE), Upright(FRAME_SIDE)
        with ThreadPoolExecutor(self._threads) as pool:
            for piece in range(first, pieces.count):
                here = min(PIECE, pieces.total - piece * PIECE)
                numbers: list[int] = []
                scaled: list[np.ndarray] = []
                faces: list[tuple[int, np.ndarray, tuple[float, ...]]] = []
                for some in groups(islice(decoded, here), SHOWN):
                    numbers += [number for number, _ in some if number in frames]
                    scaled += [scaler(frame) for number, frame in some if number in frames]
                    shown = [(number, upright(frame)) for number, frame in some if number in looked]
                    for found in pool.map(lambda one: self._look(one[0], one[1], upright.scale), shown):
                        faces += zip(found.frames, found.crops, found.boxes, strict=True)
                pieces.write(
                    piece,
                    frames=np.array(numbers, np.int64),
                    frame=_encoded(towers, scaled),
                    places=np.array([place for place, _, _ in faces], np.int64),
                    boxes=np.array([box for _, _, box in faces], np.float64).reshape(-1, 4),
                    face=_encoded(towers, [crop for _, crop, _ in faces]),
                    told=np.array(told, np.str_),
                )
                yield piece

    def _look(self, number: int, picture: np.ndarray, scale: float) -> DetectedFaces:
        assert self._find is not None
        found = self._find([number], picture[None], scale)
        return DetectedFaces(found.crops[:CROWD], found.frames[:CROWD], found.boxes[:CROWD])

    def _encode_crops(self, towers: Towers, first: int) -> Iterator[int]:
        for piece in range(first, self._stored.count):
            assert self._crops is not None
            chosen = self._crops[self._chosen[piece * PIECE : (piece + 1) * PIECE]]
            self._stored.write(piece, face=_encoded(towers, list(chosen)), told=np.zeros(0, np.str_))
            yield piece

    def _encode_sound(self, towers: Towers, first: int) -> Iterator[int]:
        pieces = self._sound
        told: list[str] = []
        count = self._streams["audio"].count
        cut = cut_sound(read_sound(self._video, told.append), self.windows[first * WINDOWS :])
        for piece in range(first, pieces.count):
            here = list(islice(cut, min(WINDOWS, pieces.total - piece * WINDOWS)))
            clips = [window_clips(samples, count) for samples in here if len(samples)]
            values = towers.audio(np.stack(clips)).astype(FEATURE_DTYPE) if clips else np.zeros(0, FEATURE_DTYPE)
            lengths = np.array([len(samples) for samples in here])
            pieces.write(piece, samples=lengths, audio=values, told=np.array(told, np.str_))
            yield piece

    # ---- windows

    @functools.cached_property
    def _sightings(self) -> dict[str, np.ndarray]:
        """Of all faces that were found, in order: frame, box, piece, row in it, and person."""
        parts = []
        for piece in range(self._pictures.count):
            kept = self._pictures.read(piece)
            where = np.full(len(kept["places"]), piece), np.arange(len(kept["places"]))
            parts.append((kept["places"], kept["boxes"], *where))
        places, boxes, pieces, rows = (
            np.concatenate(own) for own in zip((_NOTHING, np.zeros((0, 4)), _NOTHING, _NOTHING), *parts, strict=True)
        )
        looked = self.recording.times[self._looked]
        spacing = float(np.median(np.diff(looked))) if len(looked) > 1 else 0.0
        found = people(self.recording.times[places], boxes, spacing)
        return {"place": places, "box": boxes, "piece": pieces, "row": rows, "person": found}

    @property
    def several(self) -> bool:
        """Whether several people were seen."""
        return bool(self._sightings["person"].max(initial=0) > 1)

    def people(self, window: int) -> list[str]:
        """Who is seen in a window: numbers, in their order; where several are seen in the recording and none here, "";
        else just "1"."""
        if not self.several:
            return ["1"]
        found = np.unique(self._sightings["person"][self._within(window)]).tolist()
        return [str(person) for person in found if person] or [""]

    def seen(self, window: int, person: str) -> Seen:
        """What a window has, for one person."""
        found = Seen({}, {}, {})
        for name, stream in self._streams.items():
            features: np.ndarray | None
            match name:
                case "audio":
                    features, source, why = self._hear(window, stream.count)
                case "frame":
                    features, source, why = self._frame(window, stream.count)
                case _ if self._crops is not None:
                    features, source, why = self._crop(window)
                case _:
                    features, source, why = self._face(window, person, stream.count)
            if features is not None and not np.isfinite(features).all():
                features, why = None, "its features are not finite numbers"
            if features is None:
                found.absent[name] = why
            else:
                found.features[name], found.sources[name] = features.astype(np.float32), source
        return found

    def _hear(self, window: int, count: int) -> tuple[np.ndarray | None, Source, str]:
        if not self.recording.sound:
            return None, _NOWHERE, "the file has no sound track"
        kept = self._sound.read(window // WINDOWS)
        place = window % WINDOWS
        samples = kept["samples"].tolist()
        if not samples[place]:
            return None, _NOWHERE, "there is no sound here"
        row = sum(length > 0 for length in samples[:place])
        start = self.windows[window].start
        starts = clip_starts(samples[place], clips=count, seconds=AUDIO_SECONDS)
        return kept["audio"][row], self._seconds([start + float(begin) for begin in starts]), ""

    def _frame(self, window: int, count: int) -> tuple[np.ndarray | None, Source, str]:
        if not len(self.recording.times):
            return None, _NOWHERE, "the file has no picture"
        found = []
        for number in spread(self.recording.times, self.windows[window], count):
            kept = self._pictures.read(int(np.searchsorted(self._numbers, number)) // PIECE)
            row = int(np.searchsorted(kept["frames"], number))
            if row < len(kept["frames"]) and kept["frames"][row] == number:
                found.append((number, kept["frame"][row]))
        if not found:
            return None, _NOWHERE, "there is no picture here that can be decoded"
        chosen = [found[i] for i in frame_indices(len(found), count).tolist()]
        return np.stack([row for _, row in chosen]), self._seconds(self._times(number for number, _ in chosen)), ""

    def _face(self, window: int, person: str, count: int) -> tuple[np.ndarray | None, Source, str]:
        if self._find is None:
            return None, _NOWHERE, "no face crops are stored, and no detector looks"
        if not len(self.recording.times):
            return None, _NOWHERE, "the file has no picture"
        all_of_them = self._sightings
        within = self._within(window)
        own = within[all_of_them["person"][within] == int(person or -1)]
        if not len(own):
            return None, _NOWHERE, f"{self._detector or 'the detector'} found no face here"
        chosen = own[frame_indices(len(own), count)].tolist()
        rows = [self._pictures.read(int(all_of_them["piece"][i]))["face"][all_of_them["row"][i]] for i in chosen]
        source = self._seconds(self._times(all_of_them["place"][chosen].tolist()))
        boxes = tuple(tuple(all_of_them["box"][i].round(1).tolist()) for i in chosen)
        return np.stack(rows), Source(source.origin, source.unit, source.places, boxes, self._detector), ""

    def _crop(self, window: int) -> tuple[np.ndarray | None, Source, str]:
        chosen = self._crops_of(self.windows[window])
        places = np.searchsorted(self._chosen, chosen).tolist()
        rows = [self._stored.read(place // PIECE)["face"][place % PIECE] for place in places]
        return np.stack(rows), Source(str(self._crops_file), "crop", tuple(chosen)), ""

    def _crops_of(self, window: Window) -> list[int]:
        """Stored crops of a window: those of its frames where each frame has one, else as if they lay evenly over the
        recording. Some may come several times."""
        if self._crops is None:
            return []
        stored, times = len(self._crops), self.recording.times
        if stored == len(times):
            first, after = frames_between(times, window)
        else:
            first, after = (int(stored * min(x / self.recording.seconds, 1)) for x in window)
        first = min(first, stored - 1)
        return (first + frame_indices(max(after - first, 1), self._streams["face"].count)).tolist()

    def _within(self, window: int) -> np.ndarray:
        """Sightings in the frames that a window shows to the detector, in order."""
        looked = spread(self.recording.times, self.windows[window], CANDIDATES * self._streams["face"].count)
        places = self._sightings["place"]
        first, after = np.searchsorted(places, [looked[0], looked[-1] + 1]).tolist() if looked else (0, 0)
        return first + np.flatnonzero(np.isin(places[first:after], looked))

    def _times(self, numbers: Iterable[int]) -> list[float]:
        return [float(self.recording.times[number]) for number in numbers]

    def _seconds(self, places: Iterable[float]) -> Source:
        return Source(str(self._video), "second", tuple(round(place, 2) for place in places))


_NOTHING = np.zeros(0, np.int64)
_NOWHERE = Source("")


def cut_sound(sound: Iterable[np.ndarray], windows: Sequence[Window]) -> Iterator[np.ndarray]:
    """The sound of each window, float32 [n], from sound that comes piece by piece; no more of it is held than a window.

    Args:
      sound: float32 [n] each, 16,000 samples a second, from the beginning.
      windows: their beginnings ascend, and their ends.

    Yields:
      For each window its samples; fewer or none where the sound ends before it.
    """
    coming = iter(sound)
    held: list[np.ndarray] = []
    begins = ends = 0  # of what is held, in samples
    for window in windows:
        start, end = (round(x * SAMPLE_RATE) for x in window)
        while ends < end and (block := next(coming, None)) is not None:
            held.append(block)
            ends += len(block)
            while held and begins + len(held[0]) <= start:
                begins += len(held.pop(0))
        joined = np.concatenate(held) if held else np.zeros(0, np.float32)
        held = [joined]
        yield joined[max(start - begins, 0) : max(end - begins, 0)]
        held = [joined[max(start - begins, 0) :]]
        begins = min(max(start, begins), ends)


def window_clips(samples: np.ndarray, count: int) -> np.ndarray:
    """What the encoder reads of a window's sound: float32 [count, 32000], as `data.clips.read_modality` gives it."""
    return normalise_audio(audio_clips(samples, clips=count, seconds=AUDIO_SECONDS, compat="reference"))


def fingerprint(
    video: Path,
    length: float,
    hop: float,
    streams: Mapping[str, Stream],
    weights: Mapping[str, str],
    faces: Mapping[str, Any],
) -> dict[str, Any]:
    """All that features depend on.

    Args:
      video: the recording.
      length: of the windows.
      hop: of the windows.
      streams: the model's.
      weights: `weights_hash` of each tower.
      faces: what detects, or the digest of stored crops.
    """
    return {
        "format": FORMAT,
        "video": file_digest(video),
        "window": length,
        "hop": hop,
        "streams": {name: [stream.name, PREPROCESSING[name]] for name, stream in sorted(streams.items())},
        "weights": dict(weights),
        "faces": dict(faces),
    }


def key(facts: Mapping[str, Any]) -> str:
    """A short name for facts."""
    return digest(json.dumps(facts, sort_keys=True).encode())[:16]


def _encoded(towers: Towers, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures, uint8 [height, width, 3] each, brought to the encoder's size and encoded: float16 [n, F]."""
    parts = []
    for start in range(0, len(pictures), PICTURES):
        some = np.stack(pictures[start : start + PICTURES])
        parts.append(towers.vision(pick_faces(some, len(some), FRAME_SIZE)).astype(FEATURE_DTYPE))
    return np.concatenate(parts) if parts else np.zeros((0, 0), FEATURE_DTYPE)
