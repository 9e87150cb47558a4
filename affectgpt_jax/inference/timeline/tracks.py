"""Who is who among the faces of a recording: boxes that overlap from one frame to the next are one person.

The rule is simple and always decides alike. Frames are gone through in order. Boxes of a frame are matched with the
last boxes of the people who were seen not long ago, the pair that overlaps most (intersection over union) first; what
no pair is left for is somebody new. Whoever leaves for longer than `GAP`, or is elsewhere after a cut, counts as
somebody new: faces are followed, never recognised.
"""

from itertools import pairwise

import numpy as np

OVERLAP = 0.1
"""Intersection over union from which on two boxes can be one person's. Low, since between two frames that are looked at
a head moves far, and two heads hardly ever overlap."""

GAP, MISSED = 2.0, 2
"""Seconds, and frames that are looked at, for which a face may be lost: turned away, covered, or missed. The longer of
the two counts."""

SIGHTINGS, SEEN = 4, 1.0
"""Frames, and seconds from the first to the last of them, that make a person; what is less is taken for a mistake of
the detector."""


def track(times: np.ndarray, boxes: np.ndarray, spacing: float = 0.0) -> np.ndarray:
    """Follow faces.

    Args:
      times: float64 [m], when each face is seen, ascending; faces of one frame have the same.
      boxes: float [m, 4], left, top, width, height.
      spacing: seconds between frames that are looked at.

    Returns:
      int64 [m], the track of each face; tracks are numbered as they begin.
    """
    tracks = np.full(len(times), -1)
    last: dict[int, int] = {}  # of each track that may go on, its last face
    begun, gap = 0, max(GAP, (MISSED + 1.5) * spacing)
    starts = np.flatnonzero(np.diff(times, prepend=-np.inf) > 0).tolist()
    for start, end in pairwise([*starts, len(times)]):
        last = {name: face for name, face in last.items() if times[start] - times[face] <= gap}
        names = list(last)
        shared = overlap(boxes[[last[name] for name in names]], boxes[start:end])
        # Of pairs that overlap alike the older track goes first, then the face that comes first.
        for pair in np.argsort(-shared, axis=None, kind="stable").tolist():
            row, column = divmod(pair, end - start)
            name, face = names[row], start + column
            if shared[row, column] >= OVERLAP and tracks[face] < 0 and last[name] < start:
                tracks[face], last[name] = name, face
        for face in range(start, end):
            if tracks[face] < 0:
                tracks[face], last[begun] = begun, face
                begun += 1
    return tracks


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4] (left, top, width, height): float64 [n, m]."""
    a, b = np.asarray(a, np.float64).reshape(-1, 1, 4), np.asarray(b, np.float64).reshape(1, -1, 4)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    return shared / np.maximum(np.prod(a[..., 2:], axis=-1) + np.prod(b[..., 2:], axis=-1) - shared, 1e-12)


def people(times: np.ndarray, boxes: np.ndarray, spacing: float = 0.0) -> np.ndarray:
    """Tell people apart where several are seen.

    If no two people (`SIGHTINGS`, `SEEN`) are ever seen in one frame, there is one person, whose face is the largest of
    each frame: what prediction on a clip takes, and what a cut between two cameras does not break.

    Args:
      times: float64 [m], as in `track`.
      boxes: float [m, 4]; those of a frame from the largest to the smallest.
      spacing: as in `track`.

    Returns:
      int64 [m], the person of each face, numbered from 1 in the order in which they appear; 0 for faces that are
      nobody's.
    """
    tracks = track(times, boxes, spacing)
    kept = [name for name in range(tracks.max(initial=-1) + 1) if _counts(times[tracks == name])]
    together = np.diff(times[np.isin(tracks, kept)]) == 0
    if not together.any():
        return (np.diff(times, prepend=-np.inf) > 0).astype(np.int64)
    numbers = np.zeros(len(times), np.int64)
    for number, name in enumerate(kept, 1):
        numbers[tracks == name] = number
    return numbers


def _counts(times: np.ndarray) -> bool:
    return len(times) >= SIGHTINGS and float(times[-1] - times[0]) >= SEEN
