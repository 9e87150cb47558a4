"""The plan: which samples, asked what, stand in which row of which step; a pure function of lengths and a seed.

The position in a run's data is one integer, the optimizer step. Every host computes the same plan.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Ask(NamedTuple):
    """One sample of a row: which one, and the index of the question type it is asked."""

    sample: int
    label_type: int


class Row(NamedTuple):
    """The samples of one row, in order, and the corpus pass they belong to. An empty row pads the end of a pass."""

    epoch: int
    asks: tuple[Ask, ...]


class Limits(NamedTuple):
    """What a row holds at most."""

    tokens: int
    targets: int
    samples: int


def uniform(seed: int, epoch: int, purpose: str, count: int) -> Floats:
    """`count` numbers in [0, 1), one a sample, that depend on nothing but the arguments and the sample's index."""
    key = np.random.SeedSequence([seed, epoch, *purpose.encode()]).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw_types(seed: int, epoch: int, weights: Sequence[float], count: int) -> Ints:
    """The question type of each sample drawn anew every pass, as the reference does (QUIRKS 30)."""
    edges = np.cumsum(np.asarray(weights) / np.sum(weights))[:-1]
    return np.searchsorted(edges, uniform(seed, epoch, "type", count), side="right")


def alternate_types(seed: int, epoch: int, weights: Sequence[float], count: int) -> Ints:
    """The question type of each sample spread evenly over passes: two equal weights alternate.

    Each sample has a random phase. Type i is taken whenever its share's running total passes a whole number; what is
    left over goes to the types after it by the same rule.
    """
    shares = np.asarray(weights, float) / np.sum(weights)
    phase = uniform(seed, 0, "phase", count)
    types = np.full(count, len(shares) - 1)
    turn = np.full(count, float(epoch))
    left = 1.0
    for i, share in enumerate(shares[:-1]):
        rate = share / left
        before, after = np.floor(phase + turn * rate), np.floor(phase + (turn + 1) * rate)
        types = np.where((types == len(shares) - 1) & (after > before), i, types)
        turn, left = turn - before, left - share
    return types


def pack(order: Ints, tokens: Ints, targets: Ints, limits: Limits, window: int) -> Iterator[list[int]]:
    """Fill rows, best fit decreasing, among `window` consecutive samples at a time.

    Args:
      order: samples in order.
      tokens: length of each sample, by its index.
      targets: target tokens of each sample, by its index.
      limits: what a row holds.
      window: samples considered together.

    Yields:
      The samples of each row, every sample once.
    """
    for start in range(0, len(order), window):
        group = order[start : start + window]
        rows: list[list[int]] = []
        # Room of the open rows; one is the best fit if it leaves the least of its tokens unused.
        room = np.zeros((len(group), 3), np.int64)
        for sample in group[np.argsort(-tokens[group], kind="stable")]:
            need = np.array([tokens[sample], targets[sample], 1])
            fits = np.all(room[: len(rows)] >= need, axis=1)
            if fits.any():
                best = int(np.argmin(np.where(fits, room[: len(rows), 0], np.iinfo(np.int64).max)))
            else:
                best = len(rows)
                rows.append([])
                room[best] = limits
            rows[best].append(int(sample))
            room[best] -= need
        yield from rows


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of every step of a run.

    Attributes:
      tokens: int [types, samples], length of each sample asked each type of question.
      targets: int [types, samples], its target tokens.
      limits: what a row holds.
      step_rows: rows of a step, over all devices and accumulation rounds.
      seed: what order and question types follow from.
      weights: how often each type is asked.
      types: `alternate` spreads them evenly over passes, `draw` draws them.
      window: samples packed together.
    """

    tokens: Ints
    targets: Ints
    limits: Limits
    step_rows: int
    seed: int
    weights: tuple[float, ...]
    types: Literal["alternate", "draw"] = "alternate"
    window: int = 512
    _rows: dict[int, tuple[Row, ...]] = field(default_factory=dict, repr=False, compare=False)
    _steps: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that every sample fits a row.

        Raises:
          UserError: no samples, or one that is too long.
        """
        if not self.tokens.shape[1]:
            raise UserError("the corpus split has no samples to train on")
        for what, lengths, limit in (
            ("tokens", self.tokens, self.limits.tokens),
            ("target tokens", self.targets, self.limits.targets),
        ):
            longest = int(lengths.max())
            if longest > limit:
                sample = int(np.argmax(lengths.max(axis=0)))
                raise UserError(
                    f"sample number {sample} has {longest} {what}, a row holds {limit}; raise "
                    f"data.row_{'length' if what == 'tokens' else 'targets'} or lower data.max_length"
                )

    def epoch_rows(self, epoch: int) -> tuple[Row, ...]:
        """All rows of a corpus pass, each sample exactly once, shuffled."""
        if epoch not in self._rows:
            for old in [key for key in self._rows if key < epoch - 1]:
                self._rows.pop(old, None)
            self._rows[epoch] = self._make_rows(epoch)
        return self._rows[epoch]

    def _make_rows(self, epoch: int) -> tuple[Row, ...]:
        count = self.tokens.shape[1]
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(count)
        choose = alternate_types if self.types == "alternate" else draw_types
        types = choose(self.seed, epoch, self.weights, count)
        if self.limits.samples == 1:
            rows = [[int(sample)] for sample in order]
        else:
            tokens, targets = (lengths[types, np.arange(count)] for lengths in (self.tokens, self.targets))
            rows = list(pack(order, tokens, targets, self.limits, self.window))
            # Packing puts long samples first; neighbours in time should not share a length.
            rows = [rows[i] for i in rng.permutation(len(rows))]
        return tuple(Row(epoch, tuple(Ask(i, int(types[i])) for i in row)) for row in rows)

    def locate(self, step: int) -> tuple[int, int]:
        """The pass that a step belongs to, and its number within the pass."""
        epoch = 0
        while step >= (steps := self.epoch_steps(epoch)):
            step -= steps
            epoch += 1
        return epoch, step

    def epoch_steps(self, epoch: int) -> int:
        """Steps of a pass; the last one may hold empty rows."""
        if epoch not in self._steps:
            self._steps[epoch] = -(-len(self.epoch_rows(epoch)) // self.step_rows)
        return self._steps[epoch]

    def row(self, step: int, index: int) -> Row:
        """Row number `index` of a step."""
        epoch, within = self.locate(step)
        rows = self.epoch_rows(epoch)
        at = within * self.step_rows + index
        return rows[at] if at < len(rows) else Row(epoch, ())
