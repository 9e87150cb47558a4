"""What is in the media files of a clip: their headers, and whether `prepare` could use them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile

from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.media import SOUND_FILES, AbsentStream, MediaError
from affectgpt_jax.data.shard_schema import Stream

MODALITIES = ("frame", "audio", "face")


class Header(NamedTuple):
    """What the header of a file says of one modality.

    Attributes:
        seconds: length; None where it is not stated, and of faces.
        rate: samples or frames per second; None where it is not stated, and of faces.
        form: channels of sound, size of pictures and of crops.
        crops: face crops.
    """

    seconds: float | None
    rate: float | None
    form: str
    crops: int = 0


class Probe(NamedTuple):
    """What became of the media of a clip, by modality: `frame`, `audio`, `face`.

    Attributes:
        headers: of what is there and can be used.
        broken: files that cannot be used, and why.
    """

    headers: Mapping[str, Header]
    broken: Mapping[str, tuple[Path, str]]


def probe_clip(files: ClipFiles, fast: bool) -> Probe:
    """Opens the media of a clip, and decodes them as `prepare` does unless it is to be fast."""
    headers: dict[str, Header] = {}
    broken: dict[str, tuple[Path, str]] = {}
    for modality in MODALITIES:
        if (path := files.source(modality)) is None:
            continue
        try:
            header = _HEADERS[modality](path)
            if fast or read_modality(files, Stream(modality, 8)) is not None:
                headers[modality] = header
        except AbsentStream:
            continue
        except MediaError as error:
            broken[modality] = (error.path, error.reason)
        except (OSError, ValueError) as error:  # what a decoding library lets through must not end a long check
            broken[modality] = (path, f"{type(error).__name__}: {error}")
    return Probe(headers, broken)


def _video_header(path: Path) -> Header:
    with _open(path) as container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            raise AbsentStream(path, "has no video stream")
        assert isinstance(stream, av.VideoStream)
        rate = stream.average_rate
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        return Header(_length(container, stream), float(rate) if rate else None, size)


def _audio_header(path: Path) -> Header:
    if path.suffix.lower() in SOUND_FILES:
        try:
            info = soundfile.info(path)
        except soundfile.LibsndfileError as error:
            raise MediaError(path, f"cannot be read as a sound file ({error.error_string})") from error
        if not info.frames:
            raise MediaError(path, "holds no sound sample (length zero)")
        return Header(info.duration, info.samplerate, _channels(info.channels))
    with _open(path) as container:
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream):
            raise AbsentStream(path, "has no audio stream")
        return Header(_length(container, stream), stream.rate, _channels(stream.channels))


def _face_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            start = file.tell()
    except (ValueError, EOFError, OSError) as error:
        raise MediaError(path, f"cannot be read as a numpy array ({error})") from error
    if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
        raise MediaError(path, f"face crops must be uint8 [n, height, width, 3], found {dtype} {list(shape)}")
    if 0 in shape:
        raise MediaError(path, f"holds no face crop (shape {list(shape)})")
    if path.stat().st_size < start + int(np.prod(shape, dtype=np.int64)):
        raise MediaError(path, "is cut short: it holds fewer crops than its header says")
    return Header(None, None, f"{shape[2]}x{shape[1]}", shape[0])


_HEADERS: Mapping[str, Callable[[Path], Header]] = {
    "frame": _video_header,
    "audio": _audio_header,
    "face": _face_header,
}


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise MediaError(path, f"cannot be decoded: damaged, cut short or no media file ({error.strerror})") from error


def _length(container: av.container.InputContainer, stream: av.VideoStream | av.AudioStream) -> float | None:
    """Seconds of a stream, else of its container."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def _channels(count: int) -> str:
    return {1: "mono", 2: "stereo"}.get(count, f"{count} channels")
