"""From a clip's specification to pictures and sound, in memory."""

import numpy as np

from data_prep.synth import face as face_module
from data_prep.synth import voice as voice_module
from data_prep.synth.specs import FRAME_RATE, ClipSpec, stream

CROP_SIZE = 64
"""Width and height of a face crop, pixels."""
CROP_STRIDE = 3
"""Every third frame of the video has a face crop."""


def render_clip(spec: ClipSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw and sing a clip; a pure function of `spec`.

    Returns:
      frames: uint8 [n, 128, 128, 3] RGB at 25 a second, n = `spec.frames`.
      faces: uint8 [ceil(n / 3), 64, 64, 3], the face of every third frame.
      wave: float32 [n * 640] at 16 kHz.
    """
    tracks = _tracks(spec)
    frames, boxes = _draw(spec, tracks, np.arange(spec.frames))
    wanted = np.arange(0, spec.frames, CROP_STRIDE)
    faces = _crop(frames[wanted], boxes[wanted], spec, wanted)
    wave = voice_module.synthesize(tracks, spec.voice, spec.speaker, stream(spec.seed, spec.name, "sound"))
    return frames, faces, wave


def render_frames(spec: ClipSpec, frames: np.ndarray) -> np.ndarray:
    """Some frames only, as `render_clip` would draw them.

    Args:
      spec: the clip.
      frames: [k] frame numbers, each below `spec.frames`.

    Returns:
      uint8 [k, 128, 128, 3] RGB.
    """
    return _draw(spec, _tracks(spec), frames)[0]


def render_faces(spec: ClipSpec, frames: np.ndarray) -> np.ndarray:
    """Face crops of some frames only, as `render_clip` would cut them, without the sound.

    Args:
      spec: the clip.
      frames: [k] frame numbers, each below `spec.frames`.

    Returns:
      uint8 [k, 64, 64, 3].
    """
    pictures, boxes = _draw(spec, _tracks(spec), frames)
    return _crop(pictures, boxes, spec, frames)


def render_sound(spec: ClipSpec) -> np.ndarray:
    """The sound alone, as `render_clip` would sing it; float32 [samples] at `SAMPLE_RATE`."""
    return voice_module.synthesize(_tracks(spec), spec.voice, spec.speaker, stream(spec.seed, spec.name, "sound"))


def _tracks(spec: ClipSpec) -> voice_module.Tracks:
    return voice_module.compose(
        spec.voice, spec.speaker, spec.frames / FRAME_RATE, stream(spec.seed, spec.name, "tracks")
    )


def _draw(spec: ClipSpec, tracks: voice_module.Tracks, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    loudness = tracks.loudness_at(frames / FRAME_RATE)
    animated = face_module.animate(spec.face, loudness, frames, FRAME_RATE, stream(spec.seed, spec.name, "animation"))
    return face_module.draw_faces(animated, spec.identity, spec.camera, frames, stream(spec.seed, spec.name, "grain"))


def _crop(pictures: np.ndarray, boxes: np.ndarray, spec: ClipSpec, frames: np.ndarray) -> np.ndarray:
    """Cut the faces out, a little unsteadily, as a face detector does."""
    import cv2

    unsteady = stream(spec.seed, spec.name, "crop").uniform(-1.5, 1.5, (spec.frames, 2))[frames]
    corners = boxes[:, :2] + unsteady
    scale = CROP_SIZE / (boxes[:, 2:] - boxes[:, :2])
    faces = np.empty((len(frames), CROP_SIZE, CROP_SIZE, 3), np.uint8)
    for i, picture in enumerate(pictures):
        matrix = np.array(
            [[scale[i, 0], 0, -scale[i, 0] * corners[i, 0]], [0, scale[i, 1], -scale[i, 1] * corners[i, 1]]]
        )
        cv2.warpAffine(picture, matrix, (CROP_SIZE, CROP_SIZE), faces[i], cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return faces
