"""Decoding of clips: frames, sound and stored face crops, from files to plain arrays.

Video frames come out exactly as decord's `VideoReader(path, width=224, height=224)` gives them to the reference:
rotation metadata applied first, then one bilinear swscale pass that scales the decoder's YUV picture and converts it to
RGB, aspect ratio ignored. (Scaling after the conversion to RGB is not the same picture.)

Every failure is a `MediaError` that names the file. Its subclass `AbsentStream` says that the file itself is sound and
just holds no picture or no sound, which is a missing modality and not a broken clip.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import soundfile
import soxr

from affectgpt_jax.data.preprocess import SAMPLE_RATE, frame_indices
from affectgpt_jax.errors import UserError

FRAME_SIZE = 224
"""Side of a decoded frame in pixels: what the vision tower of the reference reads."""

SOUND_FILES = (".wav", ".flac")
"""File endings that hold samples and nothing else; any other file is opened as a container."""


class MediaError(UserError):
    """A media file that cannot be used.

    Attributes:
        path: The file.
        reason: What is wrong with it, in words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class AbsentStream(MediaError):
    """The file is sound but holds no such stream (no picture, no sound track)."""


class Audio(NamedTuple):
    """Decoded sound.

    Attributes:
        samples: float32 [channels, n], full scale is -1 to 1.
        rate: Samples per second of each channel.
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples.shape[1] / self.rate


def frame_count(path: Path) -> int:
    """Counts the frames of a video without decoding them: one packet is one frame, as decord counts.

    Args:
        path: A container with a video stream.

    Returns:
        The number of frames, at least 1.

    Raises:
        AbsentStream: There is no video stream.
        MediaError: The file is missing, no media file, cut short, or its video stream is empty.
    """
    with media_errors(path):
        count = sum(1 for packet in _packets(path, "video") if packet.size and not packet.is_discard)
    if not count:
        raise MediaError(path, "the video stream holds no frame")
    return count


def read_frames(path: Path, n: int = 8, *, indices: Sequence[int] | None = None, size: int = FRAME_SIZE) -> np.ndarray:
    """Reads frames of a video, scaled to a square as decord scales them.

    Args:
        path: A container with a video stream.
        n: How many frames to take, spread by `preprocess.frame_indices`. Unused when `indices` are given.
        indices: Frames to take, in any order, repeats allowed, 0 is the first.
        size: Height and width of the result in pixels.

    Returns:
        uint8 [n, size, size, 3], RGB, upright.

    Raises:
        AbsentStream: There is no video stream.
        MediaError: The file is missing, no media file, cut short, damaged, or has no frame of that index.
    """
    count = frame_count(path)
    frames, decoded = _decode(path, _wanted(path, count, n, indices), size)
    if frames is None:  # packets without a picture, such as those before the first key frame: what decodes, counts
        frames, decoded = _decode(path, _wanted(path, decoded, n, indices), size)
    if frames is None:
        raise MediaError(path, f"{count} frames announced, only {decoded} can be decoded")
    return frames


def read_audio(path: Path, rate: int = SAMPLE_RATE) -> Audio:
    """Reads the sound of a wav or flac file, or the sound track of any container, resampled with soxr (HQ).

    Args:
        path: The file.
        rate: Wanted samples per second. A file that has this rate already comes back sample for sample.

    Returns:
        The sound with all of its channels.

    Raises:
        AbsentStream: A container without a sound track.
        MediaError: The file is missing, no media file, cut short, damaged, holds no sample or values that are not
            finite.
    """
    samples, native = _sound_file(path) if path.suffix.lower() in SOUND_FILES else _sound_track(path)
    if not samples.size:
        raise MediaError(path, "holds no sound sample (length zero)")
    if not np.isfinite(samples).all():
        raise MediaError(path, "holds sound samples that are not finite numbers")
    if native != rate:
        samples = np.ascontiguousarray(soxr.resample(samples.T, native, rate).T)
    return Audio(samples, rate)


def read_faces(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Reads stored face crops, one per video frame in which a face was found (OpenFace folders of the release).

    Args:
        path: A .npy file.
        mapped: Leave it on disk, and read what is looked at.

    Returns:
        uint8 [n, h, w, 3] with n >= 1, channels in the order in which they were stored.

    Raises:
        MediaError: The file is missing, no .npy file, or not a uint8 array of that form.
    """
    try:
        faces = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise MediaError(path, "there is no such file") from error
    except (ValueError, EOFError, OSError) as error:
        raise MediaError(path, f"cannot be read as a numpy array ({error})") from error
    if not isinstance(faces, np.ndarray) or faces.ndim != 4 or faces.shape[3] != 3 or faces.dtype != np.uint8:
        found = f"{faces.dtype} {list(faces.shape)}" if isinstance(faces, np.ndarray) else type(faces).__name__
        raise MediaError(path, f"face crops must be uint8 [n, height, width, 3], found {found}")
    if 0 in faces.shape:
        raise MediaError(path, f"holds no face crop (shape {list(faces.shape)})")
    return faces


def duration(path: Path) -> float:
    """Length of a media file in seconds, from its header.

    Raises:
        MediaError: The file is missing, no media file, or its header states no length.
    """
    if path.suffix.lower() in SOUND_FILES:
        with media_errors(path):
            return soundfile.info(path).duration
    with media_errors(path), av.open(str(path)) as container:
        if container.duration is None:
            raise MediaError(path, "its header states no duration")
        return container.duration / av.time_base


@contextmanager
def media_errors(path: Path) -> Iterator[None]:
    """Turns what the decoding libraries raise inside the block into a `MediaError`."""
    if not path.is_file():
        raise MediaError(path, "there is no such file")
    try:
        yield
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be decoded: damaged, cut short or no media file ({error.strerror})") from error
    except soundfile.LibsndfileError as error:
        raise MediaError(path, f"cannot be read as a sound file ({error.error_string})") from error


def _packets(path: Path, kind: Literal["video", "audio"]) -> Iterator[av.Packet]:
    """Yields the packets of a container's best stream of a kind, and an empty one at its end that flushes the decoder.

    All packets of the file are looked at, for FFmpeg marks the one in which a file ends too early. A file that ends
    just between two packets is told by its index, where it has one.
    """
    with av.open(str(path)) as container:
        if cut_short(container):
            raise MediaError(path, CUT_SHORT)
        stream = best_stream(container, kind)
        if stream is None:
            raise AbsentStream(path, f"has no {kind} stream")
        if isinstance(stream, av.VideoStream):
            stream.thread_type = "NONE"  # many clips are decoded side by side: one thread each is the faster way
        for packet in container.demux():
            if packet.is_corrupt:
                raise MediaError(path, "is cut short or damaged: a packet is incomplete")
            if packet.stream_index == stream.index:
                yield packet


CUT_SHORT = "is cut short: its index points past its end"


def cut_short(container: av.container.InputContainer) -> bool:
    """Whether the index of a container points past the end of its file."""
    last = [stream.index_entries[-1] for stream in container.streams if len(stream.index_entries)]
    size = container.size
    return size is not None and any(entry.pos + entry.size > size for entry in last)


def best_stream(container: av.container.InputContainer, kind: Literal["video", "audio"]) -> av.stream.Stream | None:
    """The pictures or the sound track of a container; a cover is no picture."""
    stream = container.streams.best(kind)
    return None if stream is None or stream.disposition & av.stream.Disposition.attached_pic else stream


def _wanted(path: Path, count: int, n: int, indices: Sequence[int] | None) -> np.ndarray:
    """Frame numbers to decode from a video of `count` frames."""
    if count < 1:
        raise MediaError(path, "no frame can be decoded")
    if indices is None:
        return np.asarray(frame_indices(count, n))
    wanted = np.asarray(indices, dtype=int)
    if wanted.min() < 0 or wanted.max() >= count:
        raise MediaError(path, f"frames {wanted.min()} to {wanted.max()} wanted, the video has 0 to {count - 1}")
    return wanted


def _decode(path: Path, wanted: np.ndarray, size: int) -> tuple[np.ndarray | None, int]:
    """Decodes up to the last wanted frame.

    Returns:
        The frames, uint8 [len(wanted), size, size, 3], or None if the stream ends before the last of them; and how
        many frames were decoded.
    """
    last = int(wanted.max())
    needed = set(wanted.tolist())
    pictures: dict[int, np.ndarray] = {}
    scaler = Scaler(size)
    position = 0
    with media_errors(path):
        for packet in _packets(path, "video"):
            for frame in packet.decode():
                if position in needed and isinstance(frame, av.VideoFrame):
                    pictures[position] = scaler(frame)
                position += 1
            if position > last:
                return np.stack([pictures[index] for index in wanted.tolist()]), position
    return None, position


_UPRIGHT: Mapping[int, tuple[str, ...]] = {90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
"""Directions of FFmpeg's `transpose` that undo a clockwise rotation of so many degrees; decord skips other angles."""


class Upright:
    """Decoded frames as pictures in the video's proportions, uint8 [height, width, 3], RGB, upright, and not larger
    than need be. The first one decides the size, to which all others are brought.

    Attributes:
        scale: by how much they are scaled.
    """

    def __init__(self, longest: int) -> None:
        """Takes the longer side at most, in pixels."""
        self._longest = longest
        self._size: tuple[int, int] | None = None
        self.scale = 1.0

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self._size is None:
            self.scale = min(1.0, self._longest / max(frame.width, frame.height))
            self._size = (round(frame.width * self.scale), round(frame.height * self.scale))
        rgb = frame.reformat(*self._size, format="rgb24", interpolation="BILINEAR").to_ndarray()
        # FFmpeg states the rotation counterclockwise; angles between are left alone, as decord does.
        turns = frame.rotation // 90 if frame.rotation % 90 == 0 else 0
        return np.ascontiguousarray(np.rot90(rgb, turns))


class Scaler:
    """Turns decoded frames upright, scales them to a square and converts them to RGB, uint8 [size, size, 3].

    decord turns the picture by its rotation metadata and ignores mirroring; FFmpeg states the angle counterclockwise.
    """

    def __init__(self, size: int) -> None:
        """Takes the side of the square in pixels."""
        self._size = size
        self._form: tuple[int, int, str, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        form = (frame.width, frame.height, frame.format.name, frame.rotation)
        if form != self._form:  # the first frame, or one of another form than those before
            self._build(frame)
            self._form = form
        self._source.push(frame)
        picture = self._sink.pull()
        assert isinstance(picture, av.VideoFrame)
        return picture.to_ndarray(format="rgb24")

    def _build(self, frame: av.VideoFrame) -> None:
        graph = av.filter.Graph()
        node = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        self._source = node
        size = f"{self._size}:{self._size}:flags=bilinear"
        steps = [("transpose", direction) for direction in _UPRIGHT.get(-frame.rotation % 360, ())]
        for step in (*steps, ("scale", size), ("format", "rgb24"), ("buffersink",)):
            following = graph.add(*step)
            node.link_to(following)
            node = following
        graph.configure()
        self._graph, self._sink = graph, node


def _sound_file(path: Path) -> tuple[np.ndarray, int]:
    """Samples [channels, n] and rate of a file that libsndfile reads."""
    with media_errors(path):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T), rate


def _sound_track(path: Path) -> tuple[np.ndarray, int]:
    """Samples [channels, n] and rate of a container's sound track, converted to planar float and nothing else."""
    parts: list[av.AudioFrame] = []
    planar = av.AudioResampler(format="fltp")
    with media_errors(path):
        for packet in _packets(path, "audio"):
            for frame in packet.decode():
                assert isinstance(frame, av.AudioFrame)
                try:
                    parts.extend(planar.resample(frame))
                except ValueError as error:
                    raise MediaError(path, "the sound track changes its rate or channels on the way") from error
    if not parts:
        raise MediaError(path, "the sound track holds no sample")
    return np.concatenate([part.to_ndarray() for part in parts], axis=1), parts[0].sample_rate
