"""Long recordings, read from beginning to end in bounded memory, as far as they can be read.

Where `media` refuses a clip that is damaged, since half a clip is another clip, a recording of an hour is worth having
without its bad places: what cannot be decoded is told and passed over.

Times are seconds on the clock of players: 0 is where the container begins.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import soundfile
import soxr

from affectgpt_jax.data.media import CUT_SHORT, SOUND_FILES, MediaError, best_stream, cut_short, media_errors
from affectgpt_jax.data.preprocess import SAMPLE_RATE, mono

GAP = 0.1
"""Seconds of missing sound from which on silence takes their place; below, sound is taken as it comes."""

BLOCK = SAMPLE_RATE
"""Samples of a sound file that are read at a time."""

IN_FLIGHT = 32
"""More frames than a decoder has at work at a time; it takes 16 threads at most."""

Told = Callable[[str], None]
"""Is told what is wrong with a file."""


class Recording(NamedTuple):
    """What a recording holds, told from its packets, without decoding.

    Attributes:
        times: float64 [n], when each of its frames is shown, ascending; empty without pictures.
        stamped: whether the file says so; else they are counted.
        sound: whether it has a sound track.
        seconds: its length, as far as it can be read.
        problem: why that is not all of it; empty in most cases.
    """

    times: np.ndarray
    stamped: bool
    sound: bool
    seconds: float
    problem: str = ""


def survey(path: Path) -> Recording:
    """Goes through the packets of a recording.

    Args:
        path: a media file.

    Raises:
        MediaError: it is missing, no media file, or has neither a picture nor a sound in what can be read of it.
    """
    if path.suffix.lower() in SOUND_FILES:
        with media_errors(path):
            return Recording(np.zeros(0), True, True, soundfile.info(path).duration)
    stamps: list[float | None] = []
    end, rate, problem, sound = 0.0, 25.0, "", False
    with media_errors(path), av.open(str(path)) as container:
        start = _start(container)
        pictures, track = best_stream(container, "video"), best_stream(container, "audio")
        if isinstance(pictures, av.VideoStream):
            rate = float(pictures.average_rate or pictures.guessed_rate or rate)
        if cut_short(container):
            problem = CUT_SHORT
        try:
            for packet in container.demux([stream for stream in (pictures, track) if stream is not None]):
                if packet.is_corrupt:
                    problem = problem or "is cut short or damaged: a packet is incomplete"
                    break
                if not packet.size or packet.is_discard:
                    continue
                stamp = None if packet.pts is None else float(packet.pts * packet.time_base) - start
                length = float((packet.duration or 0) * packet.time_base)
                if pictures is not None and packet.stream_index == pictures.index:
                    stamps.append(stamp)
                    end = max(end, (stamp or 0.0) + (length or 1 / rate))
                else:
                    sound = True
                    end = max(end, (stamp or 0.0) + length)
        except av.error.FFmpegError as error:
            problem = problem or f"cannot be read to its end ({error.strerror})"
    stamped = None not in stamps
    times = np.sort(np.array(stamps, np.float64)) if stamped else np.arange(len(stamps)) / rate
    if not stamped:
        end = max(end, len(times) / rate)
    if not len(times) and not sound:
        raise MediaError(path, f"{problem or 'has neither pictures nor sound'}; nothing of it can be read")
    return Recording(times, stamped, sound, end, problem)


def read_pictures(
    path: Path, recording: Recording, wanted: Sequence[int], told: Told
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes some frames of a recording.

    Args:
        path: the file.
        recording: its `survey`.
        wanted: numbers of frames, ascending, each once.
        told: is told what could not be decoded.

    Yields:
        The number and the frame. For one that cannot be decoded the next one stands in; after the last one that can be
        decoded, nothing comes.
    """
    place, position = 0, 0
    with media_errors(path), av.open(str(path)) as container:
        start = _start(container)
        for frame in _frames(container, "video", told):
            assert isinstance(frame, av.VideoFrame)
            if recording.stamped and frame.time is not None:
                time = frame.time - start
            else:
                time = float(recording.times[min(position, len(recording.times) - 1)])
            position += 1
            while place < len(wanted) and recording.times[wanted[place]] < time + 1e-4:
                yield wanted[place], frame
                place += 1
            if place == len(wanted):
                return
    if place < len(wanted):
        told(f"its pictures end at {recording.times[wanted[place]]:.2f} s")


def read_sound(path: Path, told: Told) -> Iterator[np.ndarray]:
    """Decodes the sound of a recording.

    Args:
        path: the file.
        told: is told what could not be decoded.

    Yields:
        float32 [n], one after the other, of one channel with 16,000 samples a second: what `mono` makes of
        `media.read_audio`, sample for sample, where nothing is wrong or missing.
    """
    resampler: soxr.ResampleStream | None = None
    native = 0
    for samples, native in _sound_file(path, told) if path.suffix.lower() in SOUND_FILES else _sound_track(path, told):
        if native == SAMPLE_RATE:
            yield mono(samples)
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(native, SAMPLE_RATE, len(samples), dtype="float32", quality="HQ")
        yield mono(resampler.resample_chunk(np.ascontiguousarray(samples.T)).T)
        channels = len(samples)
    if resampler is not None:
        yield mono(resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True).T)


def _start(container: av.container.InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _frames(
    container: av.container.InputContainer, kind: Literal["video", "audio"], told: Told
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Frames of the best stream of a kind; packets that cannot be decoded are passed over."""
    stream = best_stream(container, kind)
    if not isinstance(stream, av.VideoStream):
        yield from _decoded(container, stream, _tell_first(kind, told))
        return
    stream.thread_type = "AUTO"  # one file is decoded at a time
    held: deque[av.VideoFrame | av.AudioFrame] = deque()
    seen = 0
    try:
        for frame in _decoded(container, stream, _damaged):
            held.append(frame)
            if len(held) > IN_FLIGHT:
                yield held.popleft()
                seen += 1
    except _Damaged:
        # Several threads lose or spoil good frames beside a damaged one, now these, now those. One does not.
        with av.open(container.name) as again:
            found = _decoded(again, best_stream(again, kind), _tell_first(kind, told))
            yield from islice(found, seen, None)
        return
    yield from held


def _decoded(
    container: av.container.InputContainer,
    stream: av.stream.Stream | None,
    failed: Callable[[av.Packet], None],
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Frames of a stream; `failed` is called with each packet that cannot be decoded."""
    if stream is None:
        return
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                break
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                failed(packet)
                continue
            for frame in frames:
                assert isinstance(frame, av.VideoFrame | av.AudioFrame)
                yield frame
    except av.error.FFmpegError:  # where reading ends; the survey has told
        pass


def _tell_first(kind: str, told: Told) -> Callable[[av.Packet], None]:
    """Tells of the first packet that cannot be decoded."""
    lost = False

    def failed(packet: av.Packet) -> None:
        nonlocal lost
        if not lost:
            place = "" if packet.pts is None else f" at {float(packet.pts * packet.time_base):.2f} s"
            told(f"its {kind} cannot be decoded everywhere, first{place}; such places are passed over")
        lost = True

    return failed


class _Damaged(Exception):
    """A packet that cannot be decoded."""


def _damaged(packet: av.Packet) -> None:
    raise _Damaged


def _sound_file(path: Path, told: Told) -> Iterator[tuple[np.ndarray, int]]:
    """Samples [channels, n] and their rate, block by block."""
    with media_errors(path), soundfile.SoundFile(path) as file:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield _finite(block.T, told), file.samplerate


def _sound_track(path: Path, told: Told) -> Iterator[tuple[np.ndarray, int]]:
    """Samples [channels, n] and their rate, frame by frame; silence where frames are missing."""
    planar = av.AudioResampler(format="fltp")
    done = 0
    with media_errors(path), av.open(str(path)) as container:
        start = _start(container)
        for frame in _frames(container, "audio", told):
            assert isinstance(frame, av.AudioFrame)
            time = None if frame.time is None else frame.time - start
            try:
                parts = planar.resample(frame)
            except ValueError:
                told(
                    f"its sound changes rate or channels after {done / max(frame.sample_rate, 1):.2f} s, and ends there"
                )
                return
            for part in parts:
                samples = part.to_ndarray()
                missing = 0.0 if time is None else time - done / part.sample_rate
                if missing > GAP:
                    silence = np.zeros((len(samples), round(missing * part.sample_rate)), np.float32)
                    samples = np.concatenate([silence, samples], axis=1)
                time = None
                done += samples.shape[1]
                yield _finite(samples, told), part.sample_rate


def _finite(samples: np.ndarray, told: Told) -> np.ndarray:
    if np.isfinite(samples).all():
        return samples
    told("it has sound samples that are not finite numbers; they are taken as silence")
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0)
