"""The plan: which samples, asked what, stand in which row of which step; a pure function of lengths and a seed.

The position in a run's data is one integer, the optimizer step. Every host computes the same plan.
"""

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.errors import UserError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LossWeighting = Literal["token", "sample", "reference"]

_KEPT = 2
"""Passes whose rows are kept: reading threads work on both sides of a pass's end."""


class Ask(NamedTuple):
    """One sample of a row: which one, and the index of the question type it is asked.

    Attributes:
      sample: its index.
      label_type: index of the question type.
      turn: how often its corpus has been gone through before; what is drawn for a sample depends on it.
      weight: weight of each of its targets in the loss.
    """

    sample: int
    label_type: int
    turn: int
    weight: float


class Row(NamedTuple):
    """The samples of one row, in order. An empty row pads the end of a pass."""

    asks: tuple[Ask, ...]


class Limits(NamedTuple):
    """What a row holds at most."""

    tokens: int
    targets: int
    samples: int


class Part(NamedTuple):
    """One corpus of a mixture: its samples follow those of the parts before it.

    Attributes:
      samples: how many it has.
      weight: how often it is gone through in a pass; 0.25 takes a quarter of it each time, and all of it in four.
      subset: so many of its samples are gone through; 0: all.
    """

    samples: int
    weight: float = 1.0
    subset: int = 0

    @property
    def used(self) -> Ints:
        """Which of its samples are gone through: the same in every run, all of them among those of a larger subset."""
        if not self.subset:
            return np.arange(self.samples)
        return np.sort(generator(0, 0, "subset").permutation(self.samples)[: self.subset])

    def before(self, epoch: int) -> int:
        """Samples that all passes before this one have taken of it."""
        return round(epoch * self.weight * (self.subset or self.samples))


@dataclass(frozen=True, eq=False)
class Pass:
    """The rows of one pass; row i holds the asks `starts[i] : starts[i + 1]`.

    Attributes:
      samples: int [n], row by row.
      types: int [n], question type of each.
      turns: int [n].
      weights: float32 [n], loss weight of each target of the sample.
      starts: int [rows + 1].
    """

    samples: Ints
    types: Ints
    turns: Ints
    weights: npt.NDArray[np.float32]
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, index: int) -> Row:
        """Row number `index`; those after the last are empty."""
        if index >= len(self):
            return Row(())
        part = slice(self.starts[index], self.starts[index + 1])
        columns = (column[part].tolist() for column in (self.samples, self.types, self.turns, self.weights))
        return Row(tuple(Ask(*values) for values in zip(*columns, strict=True)))


def generator(seed: int, turn: int, purpose: str) -> np.random.Generator:
    """Random numbers that depend on nothing but the arguments."""
    key = np.random.SeedSequence([seed, turn, *purpose.encode()]).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def uniform(seed: int, turn: int, purpose: str, count: int) -> Floats:
    """`count` numbers in [0, 1), one a sample, that depend on nothing but the arguments and the sample's index."""
    return generator(seed, turn, purpose).random(count)


def draw_types(seed: int, turn: int, weights: Sequence[float], count: int) -> Ints:
    """The question type of each sample drawn anew every turn, as the reference does (QUIRKS 30)."""
    edges = np.cumsum(np.asarray(weights) / np.sum(weights))[:-1]
    return np.searchsorted(edges, uniform(seed, turn, "type", count), side="right")


def alternate_types(seed: int, turn: int, weights: Sequence[float], count: int) -> Ints:
    """The question type of each sample spread evenly over turns: two equal weights alternate.

    Each sample has a random phase. Type i is taken whenever its share's running total passes a whole number; what is
    left over goes to the types after it by the same rule.
    """
    shares = np.asarray(weights, float) / np.sum(weights)
    phase = uniform(seed, 0, "phase", count)
    types = np.full(count, len(shares) - 1)
    place = np.full(count, float(turn))
    left = 1.0
    for i, share in enumerate(shares[:-1]):
        rate = share / left
        before, after = np.floor(phase + place * rate), np.floor(phase + (place + 1) * rate)
        types = np.where((types == len(shares) - 1) & (after > before), i, types)
        place, left = place - before, left - share
    return types


def pack(tokens: Ints, targets: Ints, limits: Limits, window: int) -> tuple[Ints, Ints]:
    """Fill rows, best fit decreasing, among `window` consecutive samples at a time.

    All windows are filled side by side, one sample of each at a time.

    Args:
      tokens: int [n], length of each sample in the order of the pass; none is longer than a row.
      targets: int [n], its target tokens.
      limits: what a row holds.
      window: samples considered together.

    Returns:
      Places in that order [n], row by row, and where each row starts among them [rows + 1].
    """
    count = len(tokens)
    window = min(window, count)
    windows = -(-count // window)
    padded = np.full(windows * window, -1)
    padded[:count] = tokens
    longest_first = np.argsort(-padded.reshape(windows, window), axis=1, kind="stable")
    room = [np.full((windows, window), limit) for limit in limits]
    row_of, nth = np.zeros(count, np.int64), np.zeros(count, np.int64)
    width = 1  # rows open in some window, and one more
    for i in range(window):
        places = longest_first[:, i] + np.arange(windows) * window
        places = places[places < count]  # the last window may be short
        here = np.arange(len(places))
        need = tokens[places], targets[places], np.ones(len(places), np.int64)
        free = [part[: len(places), :width] for part in room]
        fits = (free[0] >= need[0][:, None]) & (free[1] >= need[1][:, None]) & (free[2] >= 1)
        # The row that is left with the least room; an empty row has the most.
        best = np.argmin(np.where(fits, free[0], np.iinfo(np.int64).max), axis=1)
        for part, used in zip(room, need, strict=True):
            part[here, best] -= used
        row_of[places], nth[places] = here * window + best, i
        width = min(max(width, int(best.max()) + 2), window)
    members = np.lexsort((nth, row_of))
    starts = np.flatnonzero(np.diff(row_of[members], prepend=-1, append=windows * window))
    return members, starts


def loss_weights(targets: Ints, batches: Ints, weighting: LossWeighting, group: int) -> npt.NDArray[np.float32]:
    """The weight of each target of each sample: the loss is sum(weight * cross entropy) / sum(weight).

    Args:
      targets: int [n], target tokens of each sample, batch by batch.
      batches: int [n], number of each sample's batch, ascending.
      weighting: what the loss is a mean over. "token": all targets; "sample": samples, each the mean of its targets;
        "reference": groups of `group` consecutive samples of a batch, each the mean of its targets, which is what the
        reference does batch by batch (QUIRKS 33).
      group: samples of a group; only used by "reference".
    """
    if weighting == "token" or not len(targets):
        return np.ones(len(targets), np.float32)
    totals = targets
    if weighting == "reference":
        within = np.arange(len(batches)) - np.searchsorted(batches, batches)
        groups = np.cumsum(within % group == 0) - 1
        totals = np.bincount(groups, targets).astype(np.int64)[groups]
    return (1.0 / np.maximum(totals, 1)).astype(np.float32)


class _Made:
    """What a plan has worked out so far; a copy in another process begins anew."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.passes: dict[int, Pass] = {}
        self.first_steps = [0]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Made, ()


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
      types: `alternate` spreads them evenly over turns, `draw` draws them.
      window: samples packed together.
      rounds: accumulation rounds; the first `step_rows / rounds` rows of a step are the first round's.
      weighting: what the loss is a mean over, see `loss_weights`; a batch is one round.
      group: see `loss_weights`.
      parts: the corpora of a mixture; empty means one corpus, once a pass.
    """

    tokens: Ints
    targets: Ints
    limits: Limits
    step_rows: int
    seed: int
    weights: tuple[float, ...]
    types: Literal["alternate", "draw"] = "alternate"
    window: int = 512
    rounds: int = 1
    weighting: LossWeighting = "token"
    group: int = 1
    parts: tuple[Part, ...] = ()
    _made: _Made = field(default_factory=_Made, repr=False)

    def __post_init__(self) -> None:
        """Check that there is something to do and that every sample fits a row.

        Raises:
          UserError: no samples, or one that is too long.
        """
        if not self.tokens.shape[1] or any(not part.samples for part in self.parts):
            raise UserError("the corpus split has no samples to train on")
        for part in self.parts:
            if part.subset > part.samples:
                raise UserError(
                    f"data.samples={part.subset} is more than the {part.samples} usable samples of the corpus split"
                )
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

    @property
    def _corpora(self) -> tuple[Part, ...]:
        return self.parts or (Part(self.tokens.shape[1]),)

    def epoch(self, epoch: int) -> Pass:
        """All rows of a pass, shuffled. Each corpus is gone through sample by sample before it begins again."""
        with self._made.lock:
            return self._epoch(epoch)

    def _epoch(self, epoch: int) -> Pass:
        passes = self._made.passes
        if epoch not in passes:
            passes[epoch] = self._make(epoch)
            for old in sorted(passes, key=lambda other: abs(other - epoch))[_KEPT:]:
                del passes[old]
        return passes[epoch]

    def _make(self, epoch: int) -> Pass:
        samples, turns, types = self._order(epoch)
        tokens, targets = self.tokens[types, samples], self.targets[types, samples]
        if self.limits.samples == 1:
            members, starts = np.arange(len(samples)), np.arange(len(samples) + 1)
        else:
            members, starts = pack(tokens, targets, self.limits, self.window)
            # Packing puts long samples first; neighbours in time should not share a length.
            sizes = np.diff(starts)
            shuffled = generator(self.seed, epoch, "rows").permutation(len(sizes))
            row_of = np.repeat(np.argsort(shuffled), sizes)
            members = members[np.argsort(row_of, kind="stable")]
            starts = np.concatenate([[0], np.cumsum(sizes[shuffled])])
        batches = np.repeat(np.arange(len(starts) - 1), np.diff(starts)) // (self.step_rows // self.rounds)
        weights = loss_weights(targets[members], batches, self.weighting, self.group)
        return Pass(samples[members], types[members], turns[members], weights, starts)

    def _order(self, epoch: int) -> tuple[Ints, Ints, Ints]:
        """Samples of a pass in random order, how often each one's corpus was gone through before, and what is asked."""
        total = self.tokens.shape[1]
        choose = alternate_types if self.types == "alternate" else draw_types
        offset = 0
        chosen: list[tuple[Ints, Ints, Ints]] = []
        for number, part in enumerate(self._corpora):
            # A corpus is one endless sequence of its permutations; a pass takes the next stretch of it.
            first, last, used = part.before(epoch), part.before(epoch + 1), part.used
            for turn in range(first // len(used), -(-last // len(used))):
                start = turn * len(used)
                order = used[generator(self.seed, turn, f"order {number}").permutation(len(used))]
                stretch = order[max(first - start, 0) : last - start] + offset
                types = choose(self.seed, turn, self.weights, total)[stretch]
                chosen.append((stretch, np.full(len(stretch), turn), types))
            offset += part.samples
        samples, turns, types = (np.concatenate(column) for column in zip(*chosen, strict=True))
        if len(chosen) > 1:
            mixed = generator(self.seed, epoch, "mix").permutation(len(samples))
            samples, turns, types = samples[mixed], turns[mixed], types[mixed]
        return samples, turns, types

    def locate(self, step: int) -> tuple[int, int]:
        """The pass that a step belongs to, and its number within the pass."""
        with self._made.lock:
            known = self._made.first_steps
            while known[-1] <= step:
                known.append(known[-1] + -(-len(self._epoch(len(known) - 1)) // self.step_rows))
            epoch = bisect_right(known, step) - 1
            return epoch, step - known[epoch]

    def samples_before(self, step: int) -> int:
        """Samples that all steps before this one have gone through."""
        epoch, within = self.locate(step)
        rows = self.epoch(epoch)
        whole = sum(part.before(epoch) for part in self._corpora)
        return whole + int(rows.starts[within * self.step_rows])

    def epoch_steps(self, epoch: int) -> int:
        """Steps of a pass; the last one may hold empty rows."""
        return -(-len(self.epoch(epoch)) // self.step_rows)

    def row(self, step: int, index: int) -> Row:
        """Row number `index` of a step."""
        epoch, within = self.locate(step)
        return self.epoch(epoch).row(within * self.step_rows + index)
