"""Bootstrap intervals and paired differences: how far a score would move with other clips of the same kind.

Clips are drawn with replacement, the score is computed again, and the middle 95% of the results is the interval
(percentile bootstrap). All systems scored on the same clips share the draws, so their differences are paired.

Axes: B resamples, N clips, U units that are drawn (clips, or random blocks of clips), S terms of a clip.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from affectgpt_jax.unibench.metrics import Measure, mean_over_wheels, values

MAX_UNITS = 10_000
"""More clips than this are first put into as many random blocks: the interval stays, the work does not grow."""


class Score(NamedTuple):
    """A score, from 0 to 1 (a difference: from -1 to 1), with its 95% bootstrap interval; NaN if nothing was scored."""

    value: float
    low: float
    high: float


@lru_cache(maxsize=4)
def draws(clips: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each unit is drawn in each resample.

    Args:
        clips: N.
        resamples: B.
        seed: of the draws; the same seed gives the same draws on every machine.

    Returns:
        int64 [N], the unit of each clip, and float64 [B, U], the counts; neither may be written to.
    """
    rng = np.random.default_rng(seed)
    units = min(clips, MAX_UNITS)
    unit = np.arange(clips) if clips == units else rng.permutation(np.arange(clips) % units)
    picks = rng.integers(0, units, (resamples, units)) + units * np.arange(resamples)[:, None]
    counts = np.bincount(picks.reshape(-1), minlength=resamples * units).reshape(resamples, units).astype(np.float64)
    unit.setflags(write=False)
    counts.setflags(write=False)
    return unit, counts


def resampled(measure: Measure, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Every score of a measure on resampled clips, each float64 [B]."""
    unit, counts = draws(len(measure.terms), resamples, seed)
    terms = measure.terms
    if len(terms) != counts.shape[1]:
        terms = np.stack([np.bincount(unit, column, counts.shape[1]) for column in terms.T], axis=1)
    return {name: mean_over_wheels(value) for name, value in measure.scores(counts @ terms).items()}


def _score(value: float, samples: np.ndarray) -> Score:
    samples = samples[~np.isnan(samples)]
    if not len(samples) or np.isnan(value):
        return Score(value, np.nan, np.nan)
    low, high = np.percentile(samples, [2.5, 97.5])
    return Score(value, float(low), float(high))


def intervals(measure: Measure, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
    """Every score of a measure with its interval.

    Args:
        measure: terms of N clips.
        resamples: number of bootstrap resamples; 0 leaves the intervals empty (NaN).
        seed: of the draws.
    """
    values_ = values(measure)
    samples = resampled(measure, resamples, seed) if resamples and len(measure.terms) else {}
    return {name: _score(value, samples.get(name, np.empty(0))) for name, value in values_.items()}


def paired_differences(first: Measure, second: Measure, resamples: int = 1000, seed: int = 0) -> dict[str, Score]:
    """Second minus first, for two systems scored on the same clips in the same order.

    Args:
        first: terms of N clips.
        second: terms of the same clips.
        resamples: number of bootstrap resamples.
        seed: of the draws, shared by both.

    Returns:
        Each score's difference with its interval; an interval without 0 is a difference that other clips would
        most likely show too.
    """
    before, after = values(first), values(second)
    if not resamples or not len(first.terms):
        return {name: Score(after[name] - before[name], np.nan, np.nan) for name in before}
    a, b = resampled(first, resamples, seed), resampled(second, resamples, seed)
    return {name: _score(after[name] - before[name], b[name] - a[name]) for name in before}
