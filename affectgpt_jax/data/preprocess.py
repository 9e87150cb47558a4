"""What happens to decoded media before the encoders see it: which frames, which clips of sound, pixels, loudness."""

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from affectgpt_jax.data.prompts import Compat
from affectgpt_jax.errors import UserError

SAMPLE_RATE = 16_000
"""Samples per second that the audio encoder reads."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Pixel statistics of the public CLIP models, red, green, blue."""

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


# ---------------------------------------------------------------------------------------------------------------------
# Which frames


def frame_indices(total: int, count: int = 8, *, compat: Compat = "strict") -> npt.NDArray[np.int64]:
    """Picks frames spread evenly over a video (QUIRKS 10).

    Args:
        total: frames of the video, at least 1.
        count: frames to pick.
        compat: with a `count` that is no power of two the step may round to one frame too many; `strict` drops it,
            `reference` keeps it.

    Returns:
        Indices [count], ascending; a video of fewer frames repeats its last one.

    Raises:
        UserError: when there is no frame to pick.
    """
    if total < 1 or count < 1:
        raise UserError(f"Cannot pick {count} frames of {total}; both numbers must be at least 1.")
    picked = np.arange(0, total, total / min(total, count)).astype(np.int64)
    padded = np.pad(picked, (0, max(count - len(picked), 0)), mode="edge")
    return padded if compat == "reference" else padded[:count]


# ---------------------------------------------------------------------------------------------------------------------
# Sound


def mono(samples: FloatArray, *, compat: Compat = "strict") -> FloatArray:
    """Reduces channels to one.

    Args:
        samples: float32 [channels, n].
        compat: stereo is averaged. Of any other number of channels the reference's encoder sees the first only
            (QUIRKS 4), which in surround sound is not the one with the voice; `strict` averages all.

    Returns:
        float32 [n].
    """
    averaged: FloatArray = samples.mean(axis=0)
    first: FloatArray = samples[0]
    return averaged if len(samples) == 2 or compat == "strict" else first


def clip_starts(samples: int, *, clips: int = 8, seconds: float = 2.0, rate: int = SAMPLE_RATE) -> tuple[Fraction, ...]:
    """Spreads clips of fixed length evenly over a recording (QUIRKS 3).

    Args:
        samples: samples of the recording.
        clips: number of clips.
        seconds: length of a clip.
        rate: samples per second.

    Returns:
        Starts in seconds, exact; all 0 for a recording no longer than a clip. The sample index is the integer part of
        start * rate: the duration is a binary fraction, so 3.3 s end one sample early.
    """
    slack = max(Fraction(samples / rate) - Fraction(seconds), Fraction(0))
    return tuple(slack * i / max(clips - 1, 1) for i in range(clips))


def audio_clips(
    samples: FloatArray,
    *,
    clips: int = 8,
    seconds: float = 2.0,
    rate: int = SAMPLE_RATE,
    compat: Compat = "strict",
) -> FloatArray:
    """Cuts a recording into clips.

    Args:
        samples: float32 [n], one channel. A recording shorter than a clip is padded with zeros.
        clips: number of clips.
        seconds: length of a clip.
        rate: samples per second.
        compat: `reference` takes each clip's mean off, as a by-product of an unused branch does there (QUIRKS 2).

    Returns:
        float32 [clips, seconds * rate].
    """
    length = int(seconds * rate)
    padded = np.pad(samples, (0, max(length - len(samples), 0)))
    starts = [int(start * rate) for start in clip_starts(len(padded), clips=clips, seconds=seconds, rate=rate)]
    cut = np.stack([padded[start : start + length] for start in starts])
    return cut - cut.mean(axis=1, keepdims=True) if compat == "reference" else cut


def normalise_audio(clips: FloatArray) -> FloatArray:
    """Brings sound to zero mean and unit variance over the whole array (QUIRKS 1).

    What belongs together is the caller's choice: the clips of one sample, or, as the reference's training does, those
    of a whole batch.

    Args:
        clips: float32, any shape.

    Returns:
        The same shape, (x - mean) / sqrt(variance + 1e-7) with the population variance.
    """
    normalised: FloatArray = (clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)
    return normalised


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def pick_faces(faces: ByteArray, count: int = 8, size: int = 224, *, compat: Compat = "strict") -> ByteArray:
    """Picks face crops and brings them to the encoder's size, bilinearly, aspect ignored (QUIRKS 11).

    Args:
        faces: uint8 [n, h, w, 3], one crop per video frame, channels as stored.
        count: crops to pick.
        size: height and width wanted.
        compat: see `frame_indices`.

    Returns:
        uint8 [count, size, size, 3].

    Raises:
        UserError: when the array is of another rank or type, or empty.
    """
    import cv2

    if faces.ndim != 4 or faces.shape[-1] != 3 or faces.dtype != np.uint8 or 0 in faces.shape:
        raise UserError(f"Face crops must be uint8 [n, h, w, 3] with n > 0, found {faces.dtype} {list(faces.shape)}.")
    picked = faces[frame_indices(len(faces), count, compat=compat)]
    return np.stack([cv2.resize(face, (size, size), interpolation=cv2.INTER_LINEAR) for face in picked])


def truncate_frames(frames: FloatArray) -> ByteArray:
    """Turns frames of fractional values 0..255 into bytes, dropping the fractions as the reference does (QUIRKS 8)."""
    return frames.astype(np.uint8)


def clip_pixels(
    images: ByteArray,
    size: int = 224,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> npt.NDArray[np.float32]:
    """Prepares images as the processor of CLIP models does (QUIRKS 8).

    The shorter edge is resized to `size` with Pillow's antialiased bicubic filter, the middle is cut out, and values
    are scaled to 0..1 and standardised. Images of the right size are not resampled.

    Args:
        images: uint8 [n, h, w, 3].
        size: the vision tower's image size.
        mean: per channel.
        std: per channel.

    Returns:
        float32 [n, 3, size, size].
    """
    if images.shape[1:3] != (size, size):
        images = np.stack([_resize_and_crop(image, size) for image in images])
    pixels = images.transpose(0, 3, 1, 2) * np.float32(1 / 255)
    pixels -= np.asarray(mean, np.float32)[:, None, None]
    pixels /= np.asarray(std, np.float32)[:, None, None]
    return np.ascontiguousarray(pixels)


def _resize_and_crop(image: ByteArray, size: int) -> ByteArray:
    from PIL import Image

    height, width = image.shape[:2]
    shorter = min(height, width)
    resized = (int(size * width / shorter), int(size * height / shorter))
    picture = Image.fromarray(image).resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))
