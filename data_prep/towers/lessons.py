"""What the towers learn from: rendered crops and sounds, preprocessed as preparation does it, and their latents."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.data.clips import FRAME_SIZE
from affectgpt_jax.data.preprocess import audio_clips, clip_pixels, frame_indices, normalise_audio, pick_faces
from data_prep.synth import (
    ACTIONS,
    EXPRESSIONS,
    MANNERS,
    VOICE_LATENTS,
    ClipSpec,
    attributes,
    render_faces,
    render_sound,
)

SEEN = 8
"""Views of a clip that AffectGPT sees."""
_CROP_STRIDE = 3
"""A corpus keeps the crop of every third frame."""
_STEPS = 32768
"""Steps of a 16-bit sample from 0 to full scale."""


class Lesson(NamedTuple):
    """Inputs of n clips with v views each, and what a tower is asked about them.

    Attributes:
        inputs: float32 [n, v, ...], as the tower takes them.
        classes: int32 [n], the expression or the manner of speaking.
        names: of the classes.
        values: float32 [n, k], latents of the generator.
    """

    inputs: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]
    names: tuple[str, ...]
    values: npt.NDArray[np.float32]


def _chosen(views: int) -> npt.NDArray[np.int64]:
    """Which of the views AffectGPT sees are learned from: evenly spread, both ends among them."""
    return np.linspace(0, SEEN - 1, views).round().astype(int)


def face_lesson(specs: Sequence[ClipSpec], views: int, size: int, on_clip: Callable[[], None]) -> Lesson:
    """Crops of each clip, spread as preparation spreads them; inputs [n, views, size, size, 3]."""
    inputs = []
    for spec in specs:
        stored = np.arange(0, spec.frames, _CROP_STRIDE)
        faces = render_faces(spec, stored[frame_indices(len(stored), SEEN)[_chosen(views)]])
        inputs.append(np.moveaxis(clip_pixels(pick_faces(faces, views, FRAME_SIZE), size), 1, -1))
        on_clip()
    rows = [attributes(spec) for spec in specs]
    names = tuple(EXPRESSIONS)
    return Lesson(
        np.stack(inputs).astype(np.float32),
        np.array([names.index(str(row["expression"])) for row in rows], np.int32),
        names,
        np.array([[float(row[f"face_{action}"]) for action in ACTIONS] for row in rows], np.float32),
    )


def voice_lesson(specs: Sequence[ClipSpec], views: int, on_clip: Callable[[], None]) -> Lesson:
    """Clips of 2 s of each utterance, normalised over all eight; inputs [n, views, 32000].

    The pitch is asked for as it is heard, in octaves, and not as the speaker's shift of it.
    """
    inputs = []
    for spec in specs:
        samples = (np.floor(render_sound(spec) * _STEPS) / _STEPS).astype(np.float32)  # what is left in a wave file
        inputs.append(normalise_audio(audio_clips(samples, clips=SEEN, compat="reference"))[_chosen(views)])
        on_clip()
    rows = [attributes(spec) for spec in specs]
    names = tuple(MANNERS)
    asked = [f"voice_{latent}" for latent in VOICE_LATENTS if latent != "pitch_shift"]
    return Lesson(
        np.stack(inputs),
        np.array([names.index(str(row["voice_style"])) for row in rows], np.int32),
        names,
        np.array([[np.log2(float(row["pitch"])), *(float(row[key]) for key in asked)] for row in rows], np.float32),
    )
