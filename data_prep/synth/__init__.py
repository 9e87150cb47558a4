"""A synthetic corpus of talking faces, in the on-disk layout of the MER2025 release.

A clip is a short scene: someone says a sentence (kind, neutral, hostile or gloomy words) in a manner of speaking
(warm, flat, sharp or shaky) with an expression (smile, neutral, frown, sad or wide-eyed). `scenes.TABLE` says which
emotion the three together amount to; most answers need two or three of them. What is drawn, said and sung varies with
the speaker; what it means does not, so a small model can learn the corpus in minutes.
"""

from data_prep.synth.corpus import CorpusSummary, SplitCounts, write_corpus
from data_prep.synth.face import ACTIONS, EXPRESSIONS, Face
from data_prep.synth.render import render_clip, render_faces, render_frames, render_sound
from data_prep.synth.scenes import SCENES, Scene
from data_prep.synth.specs import ClipSpec, attributes, sample_specs
from data_prep.synth.vocabulary import EMOTIONS, FAMILIES
from data_prep.synth.voice import MANNERS, SAMPLE_RATE, VOICE_LATENTS, Voice, synthesize

__all__ = [
    "ACTIONS",
    "EMOTIONS",
    "EXPRESSIONS",
    "FAMILIES",
    "MANNERS",
    "SAMPLE_RATE",
    "SCENES",
    "VOICE_LATENTS",
    "ClipSpec",
    "CorpusSummary",
    "Face",
    "Scene",
    "SplitCounts",
    "Voice",
    "attributes",
    "render_clip",
    "render_faces",
    "render_frames",
    "render_sound",
    "sample_specs",
    "synthesize",
    "write_corpus",
]
