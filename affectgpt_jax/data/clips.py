"""From the files of a clip to what an encoder reads: the one way for preparation, training on media and prediction.

What reaches the encoders is what the reference feeds them when it answers about a single clip: the same frames, the
same pixels, clips of sound without their mean (QUIRKS 2), normalised over the clips of this one sample (QUIRKS 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.data.media import FRAME_SIZE, AbsentStream, read_audio, read_faces, read_frames
from affectgpt_jax.data.preprocess import (
    SAMPLE_RATE,
    audio_clips,
    clip_pixels,
    mono,
    normalise_audio,
    pick_faces,
)
from affectgpt_jax.data.shard_schema import Stream, parse_stream
from affectgpt_jax.errors import UserError

AUDIO_SECONDS = 2.0
"""Length of one clip of sound."""

CANDIDATES = 2
"""Frames shown to a face detector for each crop wanted."""

FRAME_SIDE = 1280
"""Longer side of a frame that it is shown at most, in pixels; larger videos are scaled down."""

PREPROCESSING = {
    "frame": f"v1: {FRAME_SIZE}x{FRAME_SIZE} bilinear in YUV, RGB, upright, spread evenly over the video",
    "face": f"v1: stored crops, {FRAME_SIZE}x{FRAME_SIZE} bilinear, channels as stored, spread evenly over the crops",
    "audio": f"v1: {SAMPLE_RATE} Hz, channels averaged, {AUDIO_SECONDS:g} s clips spread evenly, without their means, "
    "normalised over the clips of the sample",
}
"""What is done to each modality before its encoder, with a version: part of the provenance of features."""


class ClipFiles(NamedTuple):
    """The files of a clip; None for what it lacks.

    Attributes:
        video: any container that FFmpeg reads.
        audio: a sound file. Without one the sound is that of the video.
        faces: face crops, .npy uint8 [n, h, w, 3].
    """

    video: Path | None = None
    audio: Path | None = None
    faces: Path | None = None

    def source(self, modality: str) -> Path | None:
        """The file that a modality is read from.

        Raises:
            UserError: no such modality.
        """
        sources = {"frame": self.video, "face": self.faces, "audio": self.audio or self.video}
        if modality not in sources:
            raise UserError(f"A clip has no modality {modality!r}, only {', '.join(sources)}.")
        return sources[modality]


class DetectedFaces(NamedTuple):
    """Faces that a detector found in a video.

    Attributes:
        crops: uint8 [n, height, width, 3], RGB.
        frames: the frame that each was found in, 0 is the first.
        boxes: of each, left, top, width, height in pixels of the upright picture; they may reach beyond it.
    """

    crops: np.ndarray
    frames: tuple[int, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def read_modality(files: ClipFiles, stream: Stream) -> np.ndarray | None:
    """Reads what the encoder of a stream needs of a clip.

    Args:
        files: the clip's files.
        stream: the stream; its count is the number of frames, faces or clips of sound.

    Returns:
        `frame` and `face`: uint8 [count, 224, 224, 3]. `audio`: float32 [count, 32000]. None if the clip lacks the
        modality: there is no file, or the file is sound but has no picture or no sound track.

    Raises:
        MediaError: the file is broken.
        UserError: no such modality.
    """
    path = files.source(stream.modality)
    if path is None:
        return None
    try:
        match stream.modality:
            case "frame":
                return read_frames(path, stream.count)
            case "face":
                return pick_faces(read_faces(path), stream.count, FRAME_SIZE)
            case _:
                samples = mono(read_audio(path).samples)
                clips = audio_clips(samples, clips=stream.count, seconds=AUDIO_SECONDS, compat="reference")
                return normalise_audio(clips)
    except AbsentStream:
        return None


@dataclass(frozen=True)
class MediaReader:
    """What encoders in the loop read of a corpus's samples; picklable, for worker processes.

    Attributes:
        clips: files of each sample.
        image_size: side of the pictures that the vision encoder reads.
        media: reads one modality of a clip.
    """

    clips: tuple[ClipFiles, ...]
    image_size: int
    media: Callable[[ClipFiles, Stream], np.ndarray | None] = read_modality

    def shape(self, stream: Stream) -> tuple[int, ...]:
        """Shape of one sample's media."""
        if stream.modality == "audio":
            return stream.count, round(AUDIO_SECONDS * SAMPLE_RATE)
        return stream.count, 3, self.image_size, self.image_size

    def __call__(self, stream: str, samples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads media of some samples.

        Returns:
            float32 [n, *shape], zeros where a sample lacks the modality; and bool [n], whether it has it.

        Raises:
            MediaError: a file is broken.
        """
        parsed = parse_stream(stream)
        media = np.zeros((len(samples), *self.shape(parsed)), np.float32)
        present = np.zeros(len(samples), np.bool_)
        for i, sample in enumerate(samples):
            found = self.media(self.clips[sample], parsed)
            if found is not None:
                media[i] = found if parsed.modality == "audio" else clip_pixels(found, self.image_size)
                present[i] = True
        return media, present
