"""The metrics of MER-UniBench as pure functions over arrays of class ids.

Every metric is a sum over clips followed by a small formula, so each comes in two halves: `*_terms` gives the terms
of every clip, `*_scores` turns their sums into scores. A bootstrap (`unibench.intervals`) resamples the clips by
weighting the sums; nothing else has to know how a metric works.

Axes: N clips, K wheels, M 64-bit words of a class set, S terms of a clip.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from affectgpt_jax.unibench.wheel import Grouping, LabelRows, Ruleset

Scores = dict[str, np.ndarray]
"""Name of a score -> float64 [..., K], its value on each wheel; NaN on a wheel where no clip could be scored."""

SENTIMENT_CLASSES = ("negative", "positive")


class Measure(NamedTuple):
    """What a group of scores is made of.

    Attributes:
        terms: float64 [N, S], the terms of each clip.
        scores: sums of the terms [..., S] -> scores [..., K].
        scored: bool [N], whether the clip enters the scores on at least one wheel.
        right: bool [N], whether its answer shares a class with the truth on at least one wheel.
    """

    terms: np.ndarray
    scores: Callable[[np.ndarray], Scores]
    scored: np.ndarray
    right: np.ndarray

    def only(self, keep: np.ndarray) -> "Measure":
        """The measure of a selection of clips, bool [N]; the others stay, with nothing to add to the sums."""
        return Measure(self.terms * keep[:, None], self.scores, self.scored & keep, self.right & keep)


def class_sets(labels: LabelRows, grouping: Grouping) -> np.ndarray:
    """The set of classes that each clip's words map to.

    Args:
        labels: N lists of words as rows of the table.
        grouping: classes of the table's words.

    Returns:
        uint64 [K, N, M], a set of class ids as bits.
    """
    _, _, width = grouping.bits.shape
    sets = np.zeros((len(grouping.classes), len(labels.offsets) - 1, width), np.uint64)
    starts, ends = labels.offsets[:-1], labels.offsets[1:]
    # reduceat has no empty segments: only clips with words take part
    worded = starts < ends
    if worded.any():
        sets[:, worded] = np.bitwise_or.reduceat(grouping.bits[:, labels.rows], starts[worded], axis=1)
    return sets


def _size(sets: np.ndarray) -> np.ndarray:
    """Number of classes in each set: [K, N, M] -> int64 [K, N]."""
    return np.bitwise_count(sets).sum(axis=-1, dtype=np.int64)


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    """part / whole, and `empty` where whole is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, empty), where=whole != 0)


def hit_measure(truth: np.ndarray, predicted: np.ndarray) -> Measure:
    """Hit rate and m-score (paper, Eq. 13).

    A clip counts on a wheel where its true word has a class. It is hit when that class is among the predicted ones.
    The m-score divides a hit by the number of predicted classes that are some clip's true class.

    Args:
        truth: uint64 [K, N, M], the class of each clip's one true label.
        predicted: uint64 [K, N, M], classes of its predicted labels.

    Returns:
        Scores `hit_rate` and `m_score`.
    """
    scored = (truth != 0).any(axis=-1)
    hit = ((truth & predicted) != 0).any(axis=-1)
    candidates = np.bitwise_or.reduce(truth, axis=1, keepdims=True)
    m_score = _ratio(hit, _size(predicted & candidates), empty=0.0)
    terms = np.concatenate([scored, hit, m_score]).T.astype(np.float64)
    return Measure(terms, hit_scores, scored.any(axis=0), hit.any(axis=0))


def hit_scores(sums: np.ndarray) -> Scores:
    """Hit rate and m-score per wheel from the sums [..., 3K] of `hit_measure`."""
    scored, hit, m_score = np.split(sums, 3, axis=-1)
    return {"hit_rate": _ratio(hit, scored, np.nan), "m_score": _ratio(m_score, scored, np.nan)}


def set_measure(truth: np.ndarray, predicted: np.ndarray) -> Measure:
    """Precision, recall and F of label sets (paper, Eq. 9-12).

    A clip counts on a wheel where at least one of its true words has a class; a clip without a predicted class
    scores 0. F is the harmonic mean of the two averages over clips, not an average of F.

    Args:
        truth: uint64 [K, N, M], classes of each clip's true labels.
        predicted: uint64 [K, N, M], classes of its predicted labels.

    Returns:
        Scores `f_score`, `precision` and `recall`.
    """
    true, found, both = _size(truth), _size(predicted), _size(truth & predicted)
    scored = true != 0
    terms = np.concatenate([scored, _ratio(both, found, empty=0.0), _ratio(both, true, empty=0.0)]).T
    return Measure(terms.astype(np.float64), set_scores, scored.any(axis=0), (both != 0).any(axis=0))


def set_scores(sums: np.ndarray) -> Scores:
    """Precision, recall and F per wheel from the sums [..., 3K] of `set_measure`."""
    scored, precision, recall = np.split(sums, 3, axis=-1)
    precision, recall = (_ratio(precision, scored, np.nan), _ratio(recall, scored, np.nan))
    return {
        "f_score": _ratio(2 * precision * recall, precision + recall, empty=0.0),
        "precision": precision,
        "recall": recall,
    }


def sentiment_measure(truth: np.ndarray, predicted: np.ndarray, ruleset: Ruleset) -> Measure:
    """Weighted F1 and accuracy of the sentiment, negative or positive.

    Clips with a true value of 0 are not scored. A prediction that is neither negative nor positive counts as negative
    under `reference` (which compares value > 0 on both sides) and as an error for either class under `strict`.

    Args:
        truth: float [N], true sentiment; only its sign matters.
        predicted: int [N], predicted sentiment: -1, 0 or +1.
        ruleset: what a predicted 0 means.

    Returns:
        Scores `weighted_f1` and `accuracy`, on one "wheel".
    """
    signs = np.sign(truth)
    answers = np.sign(predicted)
    if ruleset == "reference":
        answers = np.where(answers == 0, -1, answers)
    terms = [(signs == sign) & (answers == answer) for sign in (-1, 1) for answer in (-1, 0, 1)]
    scored = np.not_equal(signs, 0)
    return Measure(np.stack(terms, axis=1).astype(np.float64), sentiment_scores, scored, scored & (signs == answers))


def sentiment_scores(sums: np.ndarray) -> Scores:
    """Weighted F1 and accuracy from the counts [..., 6] of `sentiment_measure`.

    The counts are truth (negative, positive) by answer (negative, neither, positive). The F1 of the two classes is
    weighted by their number of true clips, as scikit-learn's `f1_score(average="weighted")` does.
    """
    counts = sums.reshape(*sums.shape[:-1], 2, 3)
    right = np.stack([counts[..., 0, 0], counts[..., 1, 2]], axis=-1)
    answered = np.stack([counts[..., 0].sum(-1), counts[..., 2].sum(-1)], axis=-1)
    support = counts.sum(axis=-1)
    total = support.sum(axis=-1, keepdims=True)
    f1 = _ratio(2 * right, answered + support, empty=0.0)
    return {
        "weighted_f1": _ratio((f1 * support).sum(-1, keepdims=True), total, np.nan),
        "accuracy": _ratio(right.sum(-1, keepdims=True), total, np.nan),
    }


def mean_over_wheels(values: np.ndarray) -> np.ndarray:
    """Mean of [..., K] over the wheels on which something could be scored; NaN where that is none."""
    scored = ~np.isnan(values)
    return _ratio(np.where(scored, values, 0.0).sum(axis=-1), scored.sum(axis=-1), np.nan)


def wheel_values(measure: Measure) -> Scores:
    """The scores of a measure on each wheel, each [K]."""
    return measure.scores(measure.terms.sum(axis=0))


def values(measure: Measure) -> dict[str, float]:
    """The scores of a measure, averaged over the wheels."""
    return {name: float(mean_over_wheels(value)) for name, value in wheel_values(measure).items()}
