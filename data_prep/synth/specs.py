"""What each clip of a corpus is, before anything is drawn: every choice, as plain values.

A clip is a function of (seed, split, index): the corpus may be made larger, in any order and on any number of
processes, and each clip stays the same. People belong to one split of one seed; sentences to one split of all seeds.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from data_prep.synth import face as face_module
from data_prep.synth import language, scenes
from data_prep.synth import voice as voice_module
from data_prep.synth.face import ACTIONS, Camera, Face, FaceIdentity
from data_prep.synth.scenes import MODALITIES, SCENES, Scene
from data_prep.synth.voice import VOICE_LATENTS, Speaker, Voice

FRAME_RATE = 25
"""Frames a second."""
SPLITS = ("train", "validation", "test")
PEOPLE = {"train": 400, "validation": 40, "test": 120}
"""Faces, and as many voices, that the clips of a split are cast from."""


@dataclass(frozen=True)
class ClipSpec:
    """All there is to know about a clip."""

    name: str
    seed: int
    split: str
    index: int  # within the split
    scene: Scene
    emotion: str  # group of `vocabulary.EMOTIONS`
    needs: tuple[str, ...]  # modalities without which the emotion cannot be told
    labels: tuple[str, ...]  # the group's name first
    english: str
    chinese: str
    description: str
    frames: int  # at 25 a second
    face_id: str
    voice_id: str
    identity: FaceIdentity
    speaker: Speaker
    camera: Camera
    face: Face[float]
    voice: Voice


def stream(seed: int, *words: str | int) -> np.random.Generator:
    """An independent source of random numbers for each purpose."""
    return np.random.default_rng([seed, *(w if isinstance(w, int) else zlib.crc32(w.encode()) for w in words)])


def clip_spec(seed: int, split: str, index: int) -> ClipSpec:
    """The `index`-th clip of a split.

    Args:
      seed: the corpus, >= 0.
      split: train, validation or test.
      index: >= 0.
    """
    scene = scenes.draw_scene(index, (seed, zlib.crc32(split.encode())))
    emotion = SCENES[scene]
    rng = stream(seed, split, "clip", index)
    english, chinese = language.draw_sentence(scene.text, split, rng)
    labels = language.draw_labels(emotion, rng)
    face_number, voice_number = (int(n) for n in rng.integers(PEOPLE[split], size=2))
    return ClipSpec(
        name=f"synth{seed}_{split}_{index:05d}",
        seed=seed,
        split=split,
        index=index,
        scene=scene,
        emotion=emotion,
        needs=scenes.needs(scene),
        labels=labels,
        english=english,
        chinese=chinese,
        description=language.draw_description(scene, labels, rng),
        frames=round(FRAME_RATE * (2.0 + 3.0 * rng.beta(1.0, 4.5))),
        face_id=f"{seed}-{split}-face-{face_number:03d}",
        voice_id=f"{seed}-{split}-voice-{voice_number:03d}",
        identity=face_module.draw_identity(stream(seed, split, "face", face_number)),
        speaker=voice_module.draw_speaker(stream(seed, split, "voice", voice_number)),
        camera=face_module.draw_camera(rng),
        face=face_module.draw_actions(scene.face, rng),
        voice=voice_module.draw_voice(scene.voice, rng),
    )


def sample_specs(seed: int, split: str, count: int) -> list[ClipSpec]:
    """The first `count` clips of a split."""
    return [clip_spec(seed, split, index) for index in range(count)]


def attributes(spec: ClipSpec) -> dict[str, str | int | float]:
    """A clip's latents as one flat row: identities, cues, actions of the face, latents of the voice, what is needed.

    Returns:
      Keys in a fixed order: name, split, face_id, voice_id, text_class, voice_style, expression, primary_label,
      needs_text, needs_voice, needs_face (0 or 1), seconds, face_* (see `ACTIONS`), voice_* (see `VOICE_LATENTS`),
      pitch (Hz, of the clip), speaker_* and camera_*.
    """
    row: dict[str, str | int | float] = {
        "name": spec.name,
        "split": spec.split,
        "face_id": spec.face_id,
        "voice_id": spec.voice_id,
        "text_class": spec.scene.text,
        "voice_style": spec.scene.voice,
        "expression": spec.scene.face,
        "primary_label": spec.emotion,
    }
    row |= {f"needs_{modality}": int(modality in spec.needs) for modality in MODALITIES}
    row["seconds"] = spec.frames / FRAME_RATE
    row |= {f"face_{name}": round(value, 4) for name, value in zip(ACTIONS, spec.face, strict=True)}
    row |= {f"voice_{name}": round(value, 4) for name, value in zip(VOICE_LATENTS, spec.voice, strict=True)}
    row["pitch"] = round(spec.speaker.pitch * 2 ** (spec.voice.pitch_shift / 12), 2)
    row |= {f"speaker_{name}": round(value, 4) for name, value in spec.speaker._asdict().items()}
    row |= {f"camera_{name}": round(getattr(spec.camera, name), 4) for name in ("x", "y", "scale", "side_light")}
    return row
