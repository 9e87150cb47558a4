"""Temperature, groups, thresholds and what is written about a clip, on scores whose truth is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.calibration import (
    Calibration,
    best,
    calibrate,
    changes,
    choose_threshold,
    confidence_and_truth,
    fit,
    fit_temperature,
    given_labels,
    group_probabilities,
    label_record,
    make_vocabulary,
    measure_threshold,
    probabilities,
    read_calibration,
    read_words,
    support,
    targets,
)
from affectgpt_jax.unibench.lexicon import small_table
from affectgpt_jax.unibench.wheel import build_table

TABLE = small_table()
WORDS = ("happy", "cheerful", "sad", "angry", "furious", "calm", "wistful")
VOCABULARY = make_vocabulary(WORDS, TABLE)
TWO_WHEELS = build_table(
    "two", "0", ["a", "b", "c", "d"],
    {("strict", "level1"): [{"a": "x", "b": "x", "c": "y"}, {"a": "p", "b": "q", "c": "q", "d": "q"}]},
)  # fmt: skip


def drawn(clips: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, list[list[str]]]:
    """Scores, and true labels drawn from them at a temperature."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2.0, size=(clips, len(WORDS)))
    words = probabilities(scores, temperature)
    return scores, [[WORDS[rng.choice(len(WORDS), p=p)]] for p in words]


def base() -> Calibration:
    return Calibration("model", 7, VOCABULARY.words, VOCABULARY.identity, VOCABULARY.table, split="validation")


def test_words_are_grouped_by_the_table() -> None:
    assert make_vocabulary([" Happy", "happy ", "", "sad"], TABLE).words == ("happy", "sad")
    (names,) = VOCABULARY.names
    assert [names[g] for g in VOCABULARY.groups[0]] == ["joy", "joy", "sadness", "anger", "anger", "calm", "wistful"]
    two = make_vocabulary("abcde", TWO_WHEELS)
    assert [[names[g] for g in own] for names, own in zip(two.names, two.groups, strict=True)] == [
        ["x", "x", "y", "d", "e"],
        ["p", "q", "q", "q", "e"],
    ]
    with pytest.raises(UserError, match="two or more"):
        make_vocabulary(["happy", "HAPPY"], TABLE)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20))
def test_probabilities_are_probabilities(seed: int, temperature: float) -> None:
    scores = np.random.default_rng(seed).normal(scale=5, size=(3, len(WORDS))) - 30
    words = probabilities(scores, temperature)
    np.testing.assert_allclose(words.sum(axis=-1), 1)
    assert (words.argmax(axis=-1) == scores.argmax(axis=-1)).all()
    for groups in group_probabilities(words, VOCABULARY):
        np.testing.assert_allclose(groups.sum(axis=-1), 1)
    np.testing.assert_allclose(probabilities(scores + 7, temperature), words, atol=1e-12)


def test_support_is_the_mean_over_wheels() -> None:
    words = np.array([0.1, 0.2, 0.3, 0.4])
    two = make_vocabulary("abcd", TWO_WHEELS)
    expected = [(0.3 + 0.1) / 2, (0.3 + 0.9) / 2, (0.3 + 0.9) / 2, (0.4 + 0.9) / 2]
    np.testing.assert_allclose(support(words, two), expected)
    # Of words that say the same, the likeliest.
    assert WORDS[int(best(np.array([0.3, 0.1, 0.35, 0.1, 0.15, 0, 0]), support(np.eye(7)[0], VOCABULARY)))] == "happy"


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_again(temperature: float) -> None:
    scores, truth = drawn(6000, temperature)
    found = calibrate(scores, truth, VOCABULARY, TABLE, base())
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.n == 6000
    assert found.before is not None
    assert found.after is not None
    assert found.after.ece < 0.02
    assert found.after.nll <= found.before.nll
    if temperature != 1.0:
        assert found.before.ece > 0.04
    # Nothing near it is better.
    wanted = targets(truth, VOCABULARY, TABLE)
    near = [fit(scores, wanted, VOCABULARY, found.temperature * x).nll for x in (0.99, 1.01)]
    assert found.after.nll <= min(near)


def test_fit_by_hand() -> None:
    """Two clips: 0.75 and 0.9 for the likeliest group, of which the second one is wrong."""
    shares = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0], [0, 0, 0.9, 0.05, 0.05, 0, 0]])
    scores = np.log(shares + 1e-30)
    wanted = targets([["cheerful"], ["angry", "furious", "unheard of"]], VOCABULARY, TABLE)
    found = fit(scores, wanted, VOCABULARY, 1.0)
    assert found.nll == pytest.approx(-(np.log(0.75) + np.log(0.1)) / 2)
    assert found.ece == pytest.approx((0.25 + 0.9) / 2)


def test_targets_share_equally_and_leave_out_what_is_not_there() -> None:
    (share,) = targets([["happy", "cheerful", "sad"], ["startled"], ["Wistful"], []], VOCABULARY, TABLE)
    (names,) = VOCABULARY.names
    assert dict(zip(names, share[0], strict=True)) == {"joy": 0.5, "sadness": 0.5, "anger": 0, "calm": 0, "wistful": 0}
    assert not share[1].any()
    assert share[2, names.index("wistful")] == 1
    assert not share[3].any()
    with pytest.raises(UserError, match="no clip has a true label"):
        fit_temperature(np.zeros((1, 7)), targets([["startled"]], VOCABULARY, TABLE), VOCABULARY)


def test_thresholds_reach_what_was_asked_for() -> None:
    scores, truth = drawn(800, 1.0, seed=3)
    wanted = targets(truth, VOCABULARY, TABLE)
    confidence, right = confidence_and_truth(scores, wanted, VOCABULARY, 1.0)
    for precision in (0.7, 0.8, 0.9):
        found = choose_threshold(confidence, right, precision=precision)
        assert found.precision >= precision
        lower = np.unique(confidence[confidence < found.threshold])
        assert all(measure_threshold(confidence, right, x).precision < precision for x in lower)
    for coverage in (0.25, 0.5, 1.0):
        found = choose_threshold(confidence, right, coverage=coverage)
        assert found.coverage == pytest.approx(coverage)
        assert found == measure_threshold(confidence, right, found.threshold)
    with pytest.raises(UserError, match=r"the best one is 0\.500"):
        choose_threshold(np.array([0.9, 0.9]), np.array([1.0, 0.0]), precision=0.9)


def test_labels_are_the_likeliest_word_of_each_likely_group() -> None:
    words = np.array([0.3, 0.1, 0.35, 0.1, 0.15, 0.0, 0.0])
    assert given_labels(words, VOCABULARY, 0.2) == ["sad", "happy", "furious"]
    assert given_labels(words, VOCABULARY, 0.2, top_k=1) == ["sad"]
    assert given_labels(words, VOCABULARY, 0.38) == ["happy"]  # with cheerful, 0.4
    assert given_labels(words, VOCABULARY, 0.41) == []


def test_what_is_written_about_a_clip() -> None:
    scores = np.log([0.15, 0.05, 0.2, 0.04, 0.04, 0.01, 0.01])
    found: dict[str, Any] = label_record(scores, VOCABULARY, 1.0, 0.3, top_k=2)
    assert found["labels"] == ["sad", "happy"]
    assert found["abstained"] is False
    assert found["confidence"] == pytest.approx(0.4)
    assert [one["label"] for one in found["likeliest"]] == ["sad", "happy"]
    assert found["likeliest"][1]["probability"] == pytest.approx(0.3)
    assert found["likeliest"][1]["support"] == pytest.approx(0.4)
    assert list(found["groups"][0])[2:] == ["anger", "calm", "wistful"]
    assert sum(found["groups"][0].values()) == pytest.approx(1)
    assert found["in_vocabulary"] == pytest.approx(0.5)
    words = np.exp(scores) / 0.5
    assert found["entropy"] == pytest.approx(-(words * np.log(words)).sum(), abs=1e-6)
    silent = label_record(scores, VOCABULARY, 1.0, 0.5)
    assert (silent["labels"], silent["abstained"]) == ([], True)
    moved = changes(np.log([0.01, 0.01, 0.2, 0.1, 0.1, 0.04, 0.04]), scores, VOCABULARY, 1.0)
    assert moved["label"] == "sad"
    assert (moved["probability"], moved["change"]) == (pytest.approx(0.4), 0)
    assert moved["groups"][0]["joy"] == pytest.approx(0.04 - 0.4)
    assert sum(moved["groups"][0].values()) == pytest.approx(0, abs=1e-5)


def test_a_calibration_is_of_one_model(tmp_path: Path) -> None:
    scores, truth = drawn(50, 1.0)
    made = calibrate(scores, truth, VOCABULARY, TABLE, base(), coverage=0.5)
    file = tmp_path / "below" / "calibration.json"
    made.write(file)
    assert read_calibration(file, "model") == made
    with pytest.raises(UserError, match=r"calibrates another model \(step 7\)"):
        read_calibration(file, "other")
    file.write_text(json.dumps({"model": "model"}))
    with pytest.raises(UserError, match="no calibration"):
        read_calibration(file, "model")


def test_a_vocabulary_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("# ours\nhappy\n\nill at ease\n")
    assert make_vocabulary(read_words(file), TABLE).words == ("happy", "ill at ease")
    with pytest.raises(UserError, match="not readable"):
        read_words(tmp_path / "none.txt")
