"""A few clips of the answered split with their pictures: chosen by place, never by how well they were answered."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from affectgpt_jax.data.media import MediaError, read_frames
from affectgpt_jax.inference.report.record import RunRecord

EXAMPLES = 10
FRAMES = 4
FRAME_SIZE = 176
_GAP = 2
_QUALITY = 80


@dataclass(frozen=True)
class Example:
    """One clip.

    Attributes:
      line: its line of answers.jsonl.
      picture: JPEG of frames side by side; None if there is none.
      why: why there is no picture.
    """

    line: Mapping[str, Any]
    picture: bytes | None
    why: str = ""


def choose_examples(record: RunRecord, corpus: Path | None = None) -> list[Example]:
    """Clips spread evenly over the answers, the first and the last among them.

    Args:
      record: the run.
      corpus: folder of the clips; the record's own by default.
    """
    answers = record.answers
    corpus = corpus or record.corpus
    return [_example(answers[place], corpus) for place in spread(len(answers), EXAMPLES)]


def spread(total: int, count: int) -> list[int]:
    """So many numbers below a total, evenly over all of them, the first and the last among them."""
    places: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return places


def _example(line: Mapping[str, Any], corpus: Path | None) -> Example:
    if corpus is None:
        return Example(line, None, "the clips are not at hand; name their folder with --corpus")
    try:
        return Example(line, _strip(read_frames(corpus / "video" / f"{line['name']}.mp4", FRAMES, size=FRAME_SIZE)))
    except MediaError as error:
        return Example(line, None, error.reason)


def _strip(frames: Sequence[np.ndarray] | np.ndarray) -> bytes:
    """Frames side by side, as JPEG."""
    strip = Image.new("RGB", (len(frames) * (FRAME_SIZE + _GAP) - _GAP, FRAME_SIZE), "gray")
    for i, frame in enumerate(frames):
        strip.paste(Image.fromarray(frame), (i * (FRAME_SIZE + _GAP), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
