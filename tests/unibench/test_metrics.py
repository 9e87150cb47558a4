"""The metrics: against scikit-learn, a plain version, and their own invariants."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from affectgpt_jax.unibench.intervals import MAX_UNITS, draws, intervals, paired_differences
from affectgpt_jax.unibench.lexicon import GROUP_OF, small_table
from affectgpt_jax.unibench.metrics import Measure, sentiment_measure, set_scores, values
from affectgpt_jax.unibench.scoring import hits, score_labels, set_overlap
from affectgpt_jax.unibench.wheel import RULESETS, Ruleset, WheelTable, build_table

WORDS = [*sorted(GROUP_OF)[::7], "neutral", "Happy ", "ANGRY", "nowhere", "no word"]


def wide_table() -> WheelTable:
    """Two wheels, one of them with more than 64 classes."""
    words = sorted({word.strip().lower() for word in WORDS} | {f"w{i}" for i in range(150)})
    many = {word: f"class {word}" for word in words if word != "nowhere"}
    few = {word: word[0] for word in words[::2]}
    return build_table("wide", "", words, {(ruleset, "level1"): [many, few] for ruleset in RULESETS})


TABLES = {"small": small_table(), "wide": wide_table()}
label_lists = st.lists(st.sampled_from([*WORDS, "w3", "w77", "w149"]), max_size=6)
clips = st.lists(st.tuples(label_lists, label_lists), min_size=1, max_size=12)
tables = st.sampled_from(sorted(TABLES)).map(TABLES.__getitem__)
rulesets = st.sampled_from(RULESETS)


def plain_scores(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]], table: WheelTable, ruleset: Ruleset
) -> list[float]:
    """Hit rate, F, precision and recall with sets, clip by clip."""
    wheels = len(table.grouping(ruleset).classes)
    rows = []
    for k in range(wheels):
        place = lambda words, k=k: {table.classes_of(word, ruleset)[k] for word in words} - {None}  # noqa: E731
        sets = [(place(true), place(found)) for true, found in pairs]
        first = [(place(true[:1]), place(found)) for true, found in pairs]
        hit = [bool(t & f) for t, f in first if t]
        p = [len(t & f) / len(f) if f else 0.0 for t, f in sets if t]
        r = [len(t & f) / len(t) for t, f in sets if t]
        if not p:
            rows.append([math.nan] * 4)
            continue
        mp, mr = sum(p) / len(p), sum(r) / len(r)
        rows.append([sum(hit) / len(hit) if hit else math.nan, 2 * mp * mr / (mp + mr) if mp + mr else 0.0, mp, mr])
    return [float(np.nanmean(column)) if not np.isnan(column).all() else math.nan for column in np.array(rows).T]


def all_values(
    pairs: Sequence[tuple[Sequence[str], Sequence[str]]], table: WheelTable, ruleset: Ruleset
) -> dict[str, float]:
    truth, predicted = [true for true, _ in pairs], [found for _, found in pairs]
    return {**values(hits(truth, predicted, table, ruleset)), **values(set_overlap(truth, predicted, table, ruleset))}


@settings(max_examples=60, deadline=None)
@given(clips, tables, rulesets)
def test_agrees_with_a_plain_version(pairs, table, ruleset) -> None:
    found = all_values(pairs, table, ruleset)
    expected = plain_scores(pairs, table, ruleset)
    assert [found[name] for name in ("hit_rate", "f_score", "precision", "recall")] == pytest.approx(
        expected, abs=1e-12, nan_ok=True
    )


@settings(max_examples=60, deadline=None)
@given(clips, tables, rulesets, st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_matter(pairs, table, ruleset, random) -> None:
    shuffled = []
    for true, found in pairs:
        # the first true label is the primary one and stays in front; more of the same must change nothing
        true = true[:1] + random.sample(true[1:], len(true[1:])) + true
        shuffled.append((true, random.sample(found, len(found)) + found))
    random.shuffle(shuffled)
    assert all_values(shuffled, table, ruleset) == pytest.approx(
        all_values(pairs, table, ruleset), abs=1e-12, nan_ok=True
    )


@settings(max_examples=60, deadline=None)
@given(clips, tables, rulesets)
def test_scores_stay_between_0_and_1(pairs, table, ruleset) -> None:
    scores = score_labels([t for t, _ in pairs], [f for _, f in pairs], table, ruleset, resamples=20).scores
    for name, score in scores.items():
        assert math.isnan(score.value) or 0 <= score.value <= 1, name
        assert math.isnan(score.low) or 0 <= score.low <= score.high <= 1, name


@settings(max_examples=60, deadline=None)
@given(st.lists(label_lists, min_size=1), tables, rulesets)
def test_a_perfect_prediction_scores_1(truth, table, ruleset) -> None:
    scores = all_values([(words, words) for words in truth], table, ruleset)
    # with several true labels the m-score counts all but the first as misses
    scores |= {"m_score": all_values([(words[:1], words[:1]) for words in truth], table, ruleset)["m_score"]}
    assert all(math.isnan(value) or value == pytest.approx(1, abs=1e-12) for value in scores.values()), scores
    scored = score_labels(truth, truth, table, ruleset, resamples=0).scored
    mapped = [any(any(c is not None for c in table.classes_of(w, ruleset)) for w in words) for words in truth]
    assert scored["set"] == sum(mapped)


signs = st.lists(st.tuples(st.floats(-3, 3), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(signs)
def test_sentiment_as_scikit_learn_has_it(pairs) -> None:
    truth, predicted = np.array([t for t, _ in pairs]), np.array([p for _, p in pairs])
    kept = truth != 0
    reference = values(sentiment_measure(truth, predicted, "reference"))
    strict = values(sentiment_measure(truth, predicted, "strict"))
    if not kept.any():
        assert all(map(math.isnan, [*reference.values(), *strict.values()]))
        return
    true, found = truth[kept] > 0, predicted[kept] > 0
    assert reference["weighted_f1"] == pytest.approx(f1_score(true, found, average="weighted"), abs=1e-12)
    assert reference["accuracy"] == pytest.approx(accuracy_score(true, found), abs=1e-12)
    true, found = np.sign(truth[kept]).astype(int), predicted[kept]
    f1 = f1_score(true, found, labels=[-1, 1], average="weighted", zero_division=0)
    assert strict["weighted_f1"] == pytest.approx(f1, abs=1e-12)
    assert strict["accuracy"] == pytest.approx(accuracy_score(true, found), abs=1e-12)


def test_no_clip_at_all() -> None:
    scores = score_labels([], [], small_table())
    assert scores.clips == 0
    assert all(math.isnan(score.value) for score in scores.scores.values())


def test_neutral_is_scored_only_under_strict() -> None:
    truth, predicted = [["neutral"], ["happy"]], [["happy"], ["joyful"]]
    assert score_labels(truth, predicted, small_table(), "reference").scores["hit_rate"].value == 1
    assert score_labels(truth, predicted, small_table(), "strict").scores["hit_rate"].value == 0.5


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 true and 2 predicted"):
        score_labels([["sad"]], [["sad"], []], small_table())


def coin(clips: int, share: float) -> Measure:
    """A measure whose one score is the share of ones among the clips."""
    ones = (np.arange(clips) < share * clips).astype(float)
    terms = np.stack([np.ones(clips), ones, ones], axis=1)
    return Measure(terms, set_scores, np.ones(clips, bool), ones > 0)


@pytest.mark.parametrize("clips", [400, 4 * MAX_UNITS])
def test_interval_of_a_share(clips: int) -> None:
    """The bootstrap of a mean is its normal interval, also where clips are put into blocks."""
    score = intervals(coin(clips, 0.3), resamples=2000, seed=1)["recall"]
    half = 1.96 * math.sqrt(0.3 * 0.7 / clips)
    assert score.value == pytest.approx(0.3)
    assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.08)
    assert (score.high + score.low) / 2 == pytest.approx(0.3, abs=0.15 * half)


def test_intervals_are_seeded() -> None:
    first, again, other = (intervals(coin(100, 0.4), 200, seed)["recall"] for seed in (0, 0, 1))
    assert first == again != other
    draws.cache_clear()
    assert intervals(coin(100, 0.4), 200, 0)["recall"] == first


def test_paired_difference_of_a_system_with_itself_is_nothing() -> None:
    same = paired_differences(coin(100, 0.4), coin(100, 0.4))
    assert all(score == (0, 0, 0) for score in same.values())


def test_paired_difference() -> None:
    """Pairing: the second system is right wherever the first is, and on 5% more, so the interval lies above 0."""
    score = paired_differences(coin(400, 0.4), coin(400, 0.45), resamples=500)["recall"]
    assert score.value == pytest.approx(0.05)
    assert 0 < score.low < 0.05 < score.high < 0.1
