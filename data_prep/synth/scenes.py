"""What words, voice and face mean together: one table, and which modalities an answer needs, counted from it."""

import functools
from typing import NamedTuple

import numpy as np

from data_prep.synth.vocabulary import EMOTIONS, FAMILIES

TEXTS = ("kind", "neutral", "hostile", "gloomy")
VOICES = ("warm", "flat", "sharp", "shaky")
FACES = ("smile", "neutral", "frown", "sad", "wide")
MODALITIES = ("text", "voice", "face")

# Rows: what is said and how; columns: the face. A combination in parentheses has a meaning (the count of needs below
# asks for it) but is not filmed: it is either plain from every side or would look contrived.
TABLE = """
words    voice   smile        neutral      frown        sad          wide
kind     warm    happy        happy        sarcastic    sad          surprised
kind     flat    (happy)      calm         sarcastic    sad          surprised
kind     sharp   sarcastic    sarcastic    sarcastic    (sarcastic)  surprised
kind     shaky   happy        worried      worried      sad          surprised
neutral  warm    happy        calm         worried      sad          surprised
neutral  flat    calm         calm         angry        sad          surprised
neutral  sharp   sarcastic    angry        angry        (angry)      angry
neutral  shaky   worried      worried      worried      sad          worried
hostile  warm    sarcastic    sarcastic    angry        (sad)        (worried)
hostile  flat    sarcastic    angry        (angry)      sad          worried
hostile  sharp   (angry)      (angry)      (angry)      (angry)      angry
hostile  shaky   (worried)    worried      angry        sad          (worried)
gloomy   warm    sarcastic    worried      worried      (sad)        (worried)
gloomy   flat    (sarcastic)  sad          sad          (sad)        worried
gloomy   sharp   sarcastic    angry        angry        (angry)      worried
gloomy   shaky   sad          sad          sad          (sad)        (worried)
"""


class Scene(NamedTuple):
    """A combination of cues: class of the words, manner of the voice, expression of the face."""

    text: str
    voice: str
    face: str


def _parse(table: str) -> tuple[dict[Scene, str], tuple[Scene, ...]]:
    header, *rows = table.strip().splitlines()
    faces = header.split()[2:]
    emotions: dict[Scene, str] = {}
    filmed: list[Scene] = []
    for row in rows:
        text, voice, *cells = row.split()
        for face, cell in zip(faces, cells, strict=True):
            scene = Scene(text, voice, face)
            emotions[scene] = cell.strip("()")
            if not cell.startswith("("):
                filmed.append(scene)
    return emotions, tuple(filmed)


SCENES, FILMED = _parse(TABLE)
"""Every scene -> emotion group, and the scenes a corpus is made of."""

FILMED_BY_EMOTION = {emotion: tuple(s for s in FILMED if SCENES[s] == emotion) for emotion in EMOTIONS}


@functools.cache
def needs(scene: Scene) -> tuple[str, ...]:
    """Modalities without which the scene's answer cannot be told.

    A modality is needed when changing it alone leads to another emotion family (`vocabulary.FAMILIES`) for more
    than half of its other values.

    Returns:
      The needed ones among `MODALITIES`, in that order; empty when any two modalities give the answer away.
    """
    family = FAMILIES[SCENES[scene]]
    found = []
    for modality, values in zip(MODALITIES, (TEXTS, VOICES, FACES), strict=True):
        others = [scene._replace(**{modality: value}) for value in values if value != getattr(scene, modality)]
        changed = sum(FAMILIES[SCENES[other]] != family for other in others)
        if 2 * changed > len(others):
            found.append(modality)
    return tuple(found)


def draw_scene(index: int, seed_words: tuple[int, ...]) -> Scene:
    """The scene of a split's `index`-th clip.

    Emotions come in shuffled rounds of all groups and each group's scenes in shuffled rounds of their own, so that
    even a short corpus is balanced, while a clip still depends on nothing but its index and the seed.
    """
    emotions = tuple(EMOTIONS)
    round_, place = divmod(index, len(emotions))
    emotion = emotions[np.random.default_rng([*seed_words, 0, round_]).permutation(len(emotions))[place]]
    scenes = FILMED_BY_EMOTION[emotion]
    cycle, turn = divmod(round_, len(scenes))
    order = np.random.default_rng([*seed_words, 1, emotions.index(emotion), cycle]).permutation(len(scenes))
    return scenes[order[turn]]
