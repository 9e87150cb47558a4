"""Where a recording is looked at, and which of its frames a window sees."""

from typing import NamedTuple

import numpy as np

from affectgpt_jax.data.preprocess import frame_indices
from affectgpt_jax.errors import UserError

REST = 0.25
"""Share of a hop from which on what is left at the end gets a window of its own."""

EDGE = 1e-4
"""Seconds that a time may be off: containers round them."""


class Window(NamedTuple):
    """A part of a recording, in seconds; its end is not in it."""

    start: float
    end: float


def windows(seconds: float, length: float, hop: float) -> list[Window]:
    """Windows of one length, a hop apart.

    Args:
      seconds: length of the recording.
      length: of a window.
      hop: from one beginning to the next.

    Returns:
      In order. What is left at the end, if it is `REST` of a hop or more, is in a last window that ends there. A
      recording that is shorter than a window is one.

    Raises:
      UserError: a length that is not positive.
    """
    for name, value in (("window", length), ("hop", hop)):
        if not (np.isfinite(value) and value > 0):
            raise UserError(f"--{name} {value:g}: expected seconds, more than 0")
    if seconds <= length + EDGE:
        return [Window(0.0, round(seconds, 6))]
    count = int((seconds - length + EDGE) // hop) + 1
    # Multiples, not sums: no error adds up.
    found = [Window(round(i * hop, 6), round(i * hop + length, 6)) for i in range(count)]
    if count * hop < seconds and seconds - found[-1].end >= REST * hop:
        found.append(Window(round(seconds - length, 6), round(seconds, 6)))
    return found


def frames_between(times: np.ndarray, window: Window) -> tuple[int, int]:
    """The first frame of a window, and the first one after it; the same where it has none.

    Args:
      times: float64 [n], when frames are shown, ascending.
      window: the window.
    """
    first, after = np.searchsorted(times, [window.start - EDGE, window.end - EDGE]).tolist()
    return first, after


def spread(times: np.ndarray, window: Window, count: int) -> list[int]:
    """The frames that training would have seen of a clip cut out there: spread evenly over the window's own frames.

    Windows share a frame if this gives it to both, as it does where the frames' distance divides the hop; it is never
    moved so that they would.

    Args:
      times: as in `frames_between`.
      window: the window.
      count: frames wanted.

    Returns:
      Their numbers, ascending, each once: fewer than wanted where the window has fewer.
    """
    first, after = frames_between(times, window)
    return sorted({first + i for i in frame_indices(after - first, count).tolist()}) if first < after else []
