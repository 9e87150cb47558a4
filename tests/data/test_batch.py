"""Packing rows: everything lands once and where it should."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape, Example, Sample, collate_rows
from affectgpt_jax.errors import UserError

SOFT = 3
STREAMS = {"face": (2, 4), "audio": (3, 5)}
UNATTENDED = 7


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A sample with soft tokens somewhere in its prompt and its targets at the end."""
    prompt, answer = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    ids = draw(st.lists(st.integers(1, 50), min_size=prompt + answer, max_size=prompt + answer))
    tokens = np.asarray(ids, np.int32)
    soft_index = np.zeros(len(ids), np.int32)
    places = draw(st.lists(st.integers(0, prompt - 1), max_size=min(SOFT, prompt), unique=True))
    soft_index[places] = range(1, len(places) + 1)
    positions = np.arange(prompt - 1, prompt + answer - 1, dtype=np.int32)
    seed = draw(st.integers(0, 999))
    features = {
        stream: np.random.default_rng([seed, i]).normal(size=size).astype(np.float32)
        for i, (stream, size) in enumerate(STREAMS.items())
        if draw(st.booleans())
    }
    return Sample(
        Example(tokens, soft_index, positions, tokens[positions + 1]), features, draw(st.sampled_from([1.0, 0.3]))
    )


ROWS = st.lists(st.lists(samples(), max_size=4), min_size=1, max_size=4)


def _shape(rows: list[list[Sample]], spare: int = 2) -> BatchShape:
    return BatchShape(
        rows=len(rows) + 1,
        length=max(sum(len(x.example.tokens) for x in row) for row in rows) + spare,
        targets=max(sum(len(x.example.target_ids) for x in row) for row in rows) + spare,
        samples=max(len(row) for row in rows) + 1,
        soft=SOFT,
        streams=STREAMS,
    )


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_every_sample_can_be_read_back_out_of_its_row(rows: list[list[Sample]]) -> None:
    shape = _shape(rows)
    batch = collate_rows(rows, shape)
    assert batch.tokens.shape == batch.segment_ids.shape == (shape.rows, shape.length)
    for r in range(shape.rows):
        row = rows[r] if r < len(rows) else []
        assert set(batch.segment_ids[r]) - {0} == set(range(1, len(row) + 1))
        weighted = batch.loss_weight[r] > 0
        target_segments = batch.segment_ids[r][batch.target_positions[r]]
        for i, (example, features, weight) in enumerate(row):
            here = np.flatnonzero(batch.segment_ids[r] == i + 1)
            assert here.tolist() == list(range(here[0], here[0] + len(example.tokens)))
            np.testing.assert_array_equal(batch.tokens[r, here], example.tokens)
            np.testing.assert_array_equal(batch.positions[r, here], np.arange(len(here)))
            soft = batch.soft_index[r, here]
            np.testing.assert_array_equal(soft > 0, example.soft_index > 0)
            np.testing.assert_array_equal(soft[soft > 0] - i * SOFT, example.soft_index[example.soft_index > 0])
            mine = weighted & (target_segments == i + 1)
            assert set(batch.loss_weight[r, mine]) == {np.float32(weight)}
            np.testing.assert_array_equal(batch.target_ids[r, mine], example.target_ids)
            # The token after the position that predicts is the token predicted.
            np.testing.assert_array_equal(batch.tokens[r, batch.target_positions[r, mine] + 1], example.target_ids)
            for stream, size in STREAMS.items():
                assert batch.present[stream][r, i] == (stream in features)
                expected = features.get(stream, np.zeros(size))
                np.testing.assert_array_equal(batch.features[stream][r, i], expected)
        assert weighted.sum() == sum(len(sample.example.target_ids) for sample in row)
        padding = batch.segment_ids[r] == 0
        for array in (batch.tokens, batch.positions, batch.soft_index):
            assert not array[r, padding].any()
        assert not any(present[r, len(row) :].any() for present in batch.present.values())


@settings(max_examples=20, deadline=None)
@given(ROWS)
def test_unattended_tokens_belong_to_no_segment(rows: list[list[Sample]]) -> None:
    plain = collate_rows(rows, _shape(rows))
    masked = collate_rows(rows, _shape(rows), unattended=UNATTENDED)
    np.testing.assert_array_equal(masked.segment_ids, np.where(plain.tokens == UNATTENDED, 0, plain.segment_ids))
    np.testing.assert_array_equal(masked.positions, plain.positions)
    np.testing.assert_array_equal(masked.target_positions, plain.target_positions)


def _sample(tokens: int = 6, targets: int = 2, slot: int = 1, **features: Any) -> Sample:
    soft_index = np.zeros(tokens, np.int32)
    soft_index[1] = slot
    positions = np.arange(tokens - targets - 1, tokens - 1, dtype=np.int32)
    return Sample(Example(np.ones(tokens, np.int32), soft_index, positions, np.ones(targets, np.int32)), features)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[_sample()]] * 3, "has 2 rows, but 3 were given"),
        ([[_sample(), _sample(), _sample()]], "Row 0 of the batch has 3 samples, but a row holds 2"),
        ([[], [_sample(9), _sample(9)]], "Row 1 of the batch has 18 tokens, but a row holds 16"),
        ([[_sample(8, 4), _sample(8, 4)]], "Row 0 of the batch has 8 targets, but a row holds 6"),
        ([[_sample(slot=4)]], "uses soft token 4, but a sample has 3"),
        ([[_sample(face=np.zeros((3, 4)))]], r"face features of shape \(3, 4\), expected \(2, 4\)"),
    ],
)
def test_what_does_not_fit_is_said(rows: list[list[Sample]], message: str) -> None:
    shape = BatchShape(rows=2, length=16, targets=6, samples=2, soft=SOFT, streams=STREAMS)
    with pytest.raises(UserError, match=message):
        collate_rows(rows, shape)


def test_a_batch_is_a_pytree_of_static_shape() -> None:
    shape = BatchShape(2, 16, 6, 2, SOFT, STREAMS, np.float16)
    full = collate_rows([[_sample(face=np.ones((2, 4))), _sample()], [_sample()]], shape)
    empty = collate_rows([], shape)
    shapes = [jax.tree.map(lambda array: (array.shape, array.dtype), batch) for batch in (full, empty)]
    assert shapes[0] == shapes[1]
    assert isinstance(jax.tree.map(np.asarray, full), Batch)
    assert full.features["face"].dtype == np.float16
