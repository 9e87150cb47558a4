"""Emotion wheels: one immutable lookup from a word to its class on every wheel and level.

The rules (SPEC: Eq. 8 and appendix K of the AffectGPT paper) are worked out once, for every word of the tables, when
the lookup is built; scoring afterwards only indexes arrays. The table compiled from the official folder
(`unibench.official`) and the small built-in one (`unibench.lexicon`) are of this one type, so one scoring path serves
both.

Axes: V words of the table, K wheels, M 64-bit words of a class set, N clips, L labels of all clips.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np

from affectgpt_jax.errors import UserError

Ruleset = Literal["reference", "strict"]
"""`reference`: the published scorer's rules. `strict`: neutral is a class of its own on every wheel, and a word's own
place on a wheel comes before its synonyms'."""

Level = Literal["level1", "level2", "case1", "case2"]
"""`level1`, `level2`: the inner and the middle ring of each wheel. `case1`: base form of the word, no wheel.
`case2`: base form and synonym, no wheel."""

RULESETS: tuple[Ruleset, ...] = get_args(Ruleset)
LEVELS: tuple[Level, ...] = get_args(Level)
NEUTRAL = "neutral"
NO_CLASS = -1


@dataclass(frozen=True)
class Grouping:
    """The classes of all words on K wheels, under one ruleset and at one level.

    Attributes:
        classes: per wheel, the names of its classes; a class id is an index into them.
        ids: int16 [V + 1, K], class id of each word on each wheel, `NO_CLASS` where it lies on none; the last row
            stands for every word that the table does not know.
    """

    classes: tuple[tuple[str, ...], ...]
    ids: np.ndarray

    @cached_property
    def bits(self) -> np.ndarray:
        """uint64 [K, V + 1, M], the set of each word's one class as bits; empty where it has none."""
        width = max(1, -(-max(map(len, self.classes), default=0) // 64))
        ids = self.ids.T.astype(np.int64)
        bit = np.left_shift(np.uint64(1), (ids & 63).astype(np.uint64))
        bits = np.where((ids >> 6)[..., None] == np.arange(width), bit[..., None], np.uint64(0))
        bits.setflags(write=False)
        return bits


@dataclass(frozen=True)
class WheelTable:
    """Word -> class, on every wheel, at every level, under both rulesets.

    Attributes:
        name: what a report calls it.
        fingerprint: hash of what it was built from.
        rows: word (lower case) -> its row in every grouping's `ids`.
        groupings: (ruleset, level) -> grouping; a table may hold fewer than all levels.
    """

    name: str
    fingerprint: str
    rows: Mapping[str, int]
    groupings: Mapping[tuple[Ruleset, Level], Grouping]

    def grouping(self, ruleset: Ruleset, level: Level = "level1") -> Grouping:
        """The grouping of a ruleset and level.

        Raises:
            UserError: the table lacks that level.
        """
        if (ruleset, level) not in self.groupings:
            raise UserError(
                f"emotion table {self.name!r} has no {level!r} (it has {', '.join(sorted(self.levels))}); "
                "give the official wheel folder with --wheel-dir or AFFECTGPT_WHEEL_DIR"
            )
        return self.groupings[ruleset, level]

    @property
    def levels(self) -> frozenset[Level]:
        """The levels that the table holds."""
        return frozenset(level for _, level in self.groupings)

    def classes_of(self, word: str, ruleset: Ruleset, level: Level = "level1") -> tuple[str | None, ...]:
        """Names of a word's classes, one per wheel, None where it lies on none."""
        grouping = self.grouping(ruleset, level)
        ids = grouping.ids[self.rows.get(word.strip().lower(), -1)]
        return tuple(names[i] if i != NO_CLASS else None for names, i in zip(grouping.classes, ids, strict=True))


class LabelRows(NamedTuple):
    """Lists of words, one per clip, as rows of a table.

    Attributes:
        rows: int32 [L], the row of each word, clip after clip; -1 (the last row) for an unknown word.
        offsets: int64 [N + 1], where the words of each clip begin; a clip without words ends where it begins.
    """

    rows: np.ndarray
    offsets: np.ndarray


class _RowOf(dict[str, int]):
    """Row of a word as written, remembered: most words of a benchmark occur many times."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        super().__init__()
        self._rows = rows

    def __missing__(self, word: str) -> int:
        row = self[word] = self._rows.get(word.strip().lower(), -1)
        return row


def label_rows(labels: Sequence[Collection[str]], table: WheelTable) -> LabelRows:
    """Look up every word of every clip.

    Args:
        labels: N lists of words; case and outer blanks do not matter.
        table: where to look.

    Returns:
        Their rows in the table.
    """
    offsets = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, labels), np.int64, len(labels)), out=offsets[1:])
    row_of = _RowOf(table.rows)
    rows = map(row_of.__getitem__, chain.from_iterable(labels))
    return LabelRows(np.fromiter(rows, np.int32, int(offsets[-1])), offsets)


def build_grouping(words: Sequence[str], classes_of: Sequence[Mapping[str, str]]) -> Grouping:
    """Number the classes of each wheel.

    Args:
        words: the V words of the table, in row order.
        classes_of: per wheel, word -> class name; a word that is absent lies on no class of that wheel.

    Returns:
        The grouping; class names are in alphabetical order.
    """
    classes = tuple(tuple(sorted(set(wheel.values()))) for wheel in classes_of)
    ids = np.full((len(words) + 1, len(classes)), NO_CLASS, np.int16)
    for k, (wheel, names) in enumerate(zip(classes_of, classes, strict=True)):
        number = {name: i for i, name in enumerate(names)}
        ids[:-1, k] = [number[wheel[word]] if word in wheel else NO_CLASS for word in words]
    ids.setflags(write=False)
    return Grouping(classes, ids)


def build_table(
    name: str,
    fingerprint: str,
    words: Sequence[str],
    classes: Mapping[tuple[Ruleset, Level], Sequence[Mapping[str, str]]],
) -> WheelTable:
    """Build a table from the class of every word.

    Args:
        name: what a report calls it.
        fingerprint: hash of what it is built from.
        words: the V words, lower case.
        classes: (ruleset, level) -> per wheel, word -> class name.
    """
    return WheelTable(
        name,
        fingerprint,
        MappingProxyType({word: row for row, word in enumerate(words)}),
        MappingProxyType({key: build_grouping(words, wheels) for key, wheels in classes.items()}),
    )
