"""Answers by emotion group of the built-in lexicon: which group was taken for which."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.unibench.lexicon import GROUP_OF

UNKNOWN = "no known word"


def group(words: Sequence[str]) -> str:
    """Group of the first word that the lexicon knows."""
    return next((GROUP_OF[word.strip().lower()] for word in words if word.strip().lower() in GROUP_OF), UNKNOWN)


def is_hit(truth: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether one of the labels is of the group of the first true one."""
    true = group(truth[:1])
    return true != UNKNOWN and any(group([label]) == true for label in labels)


class Confusion(NamedTuple):
    """Clips by true and answered group.

    Attributes:
      rows: true groups.
      columns: answered groups.
      counts: int [rows, columns].
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: np.ndarray

    def mistakes(self, most: int) -> list[tuple[str, str, int]]:
        """The most frequent (true, answered, clips) that differ."""
        found = [
            (row, column, int(self.counts[i, j]))
            for i, row in enumerate(self.rows)
            for j, column in enumerate(self.columns)
            if row != column and self.counts[i, j]
        ]
        return sorted(found, key=lambda mistake: -mistake[2])[:most]


def confusion(answers: Sequence[Mapping[str, Any]], condition: str) -> Confusion:
    """Count the clips of a condition: first true label against first answered one."""
    pairs = [(group(line["truth"][:1]), group(line["answers"][condition]["labels"])) for line in answers]
    order = [*dict.fromkeys(GROUP_OF.values()), UNKNOWN]
    rows = tuple(name for name in order if any(name == true for true, _ in pairs))
    columns = tuple(name for name in order if name in rows or any(name == found for _, found in pairs))
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for true, found in pairs:
        counts[rows.index(true), columns.index(found)] += 1
    return Confusion(rows, columns, counts)
