"""Scores of label lists: from words to numbers with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt_jax.unibench.intervals import Score, intervals
from affectgpt_jax.unibench.lexicon import polarity
from affectgpt_jax.unibench.metrics import Measure, class_sets, hit_measure, sentiment_measure, set_measure
from affectgpt_jax.unibench.wheel import Level, Ruleset, WheelTable, label_rows

Labels = Sequence[Sequence[str]]
"""One list of emotion words per clip."""


@dataclass(frozen=True)
class LabelScores:
    """All that can be said of predicted label lists beside true ones.

    Attributes:
        scores: `hit_rate`, `m_score` (the first true label against all predicted ones), `f_score`, `precision`,
            `recall` (label sets), `weighted_f1`, `accuracy` (sentiment of the words, by the built-in lexicon), each
            with its interval.
        clips: number of clips.
        scored: score family (`hit`, `set`, `sentiment`) -> clips that entered it on at least one wheel.
        table: name of the emotion table.
        ruleset: the rules.
    """

    scores: Mapping[str, Score]
    clips: int
    scored: Mapping[str, int]
    table: str
    ruleset: Ruleset


def hits(truth: Labels, predicted: Labels, table: WheelTable, ruleset: Ruleset, level: Level = "level1") -> Measure:
    """Hit rate and m-score of N clips; the first true label of a clip is its primary one."""
    primary = [labels[:1] for labels in truth]
    grouping = table.grouping(ruleset, level)
    return hit_measure(
        class_sets(label_rows(primary, table), grouping), class_sets(label_rows(predicted, table), grouping)
    )


def set_overlap(
    truth: Labels, predicted: Labels, table: WheelTable, ruleset: Ruleset, level: Level = "level1"
) -> Measure:
    """Precision, recall and F of the label sets of N clips."""
    grouping = table.grouping(ruleset, level)
    return set_measure(
        class_sets(label_rows(truth, table), grouping), class_sets(label_rows(predicted, table), grouping)
    )


def word_sentiment(truth: Labels, predicted: Labels, ruleset: Ruleset) -> Measure:
    """Weighted F1 and accuracy of the sentiment that the words of N clips carry by the built-in lexicon."""
    return sentiment_measure(_polarities(truth), _polarities(predicted), ruleset)


def _polarities(labels: Iterable[Sequence[str]]) -> np.ndarray:
    return np.array([polarity(words) for words in labels], np.int64)


def score_labels(
    truth: Labels,
    predicted: Labels,
    table: WheelTable,
    ruleset: Ruleset = "strict",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> LabelScores:
    """Score predicted label lists against true ones.

    Args:
        truth: true labels of N clips, the primary one first.
        predicted: predicted labels of the same clips.
        table: emotion table, `unibench.lexicon.small_table()` or the official wheels.
        ruleset: `strict` scores neutral clips, `reference` leaves them out.
        resamples: bootstrap resamples; 0 for no intervals.
        seed: of the bootstrap.

    Returns:
        The scores, each from 0 to 1.

    Raises:
        ValueError: the two have different lengths.
    """
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true and {len(predicted)} predicted label lists")
    measures = {
        "hit": hits(truth, predicted, table, ruleset),
        "set": set_overlap(truth, predicted, table, ruleset),
        "sentiment": word_sentiment(truth, predicted, ruleset),
    }
    scores: dict[str, Score] = {}
    for measure in measures.values():
        scores |= intervals(measure, resamples, seed)
    scored = {name: int(measure.scored.sum()) for name, measure in measures.items()}
    return LabelScores(scores, len(truth), scored, table.name, ruleset)
