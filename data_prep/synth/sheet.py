"""A picture of the corpus at a glance: a row for each emotion, with what was said and how."""

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np

from data_prep.synth.render import render_frames
from data_prep.synth.specs import ClipSpec
from data_prep.synth.vocabulary import EMOTIONS

_CELL = 192
_CAPTION = 64
_LINE = 15


def contact_sheet(specs: Sequence[ClipSpec], columns: int = 6) -> np.ndarray:
    """Draw the middle frame of the first clips of each emotion, with scene, sentence and labels below.

    Args:
      specs: clips to choose from.
      columns: clips an emotion.

    Returns:
      uint8 [H, W, 3] RGB.
    """
    rows = []
    for emotion in EMOTIONS:
        row = np.full((_CELL + _CAPTION, columns * _CELL, 3), 250, np.uint8)
        chosen = [spec for spec in specs if spec.emotion == emotion][:columns]
        for column, spec in enumerate(chosen):
            row[:, column * _CELL : (column + 1) * _CELL] = _cell(spec)
        rows.append(row)
    return np.concatenate(rows)


def _cell(spec: ClipSpec) -> np.ndarray:
    picture = render_frames(spec, np.array([spec.frames // 2]))[0]
    picture = cv2.resize(picture, (_CELL, _CELL), interpolation=cv2.INTER_CUBIC)
    caption = np.full((_CAPTION, _CELL, 3), 250, np.uint8)
    said = textwrap.wrap(spec.english, 34)[:2]
    lines = [", ".join(spec.labels), f"{spec.scene.voice} voice, {spec.scene.text} words:", *said]
    for number, line in enumerate(lines):
        at, colour = (4, 13 + _LINE * number), (160, 30, 30) if number == 0 else (40, 40, 40)
        cv2.putText(caption, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, colour, 1, cv2.LINE_AA)
    return np.concatenate([picture, caption])
