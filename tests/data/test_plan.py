"""The plan: every sample once a pass, rows within limits, the same on every host and after any stop."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.data.plan import Limits, Plan, Row, alternate_types, draw_types
from affectgpt_jax.errors import UserError


def make_plan(count: int = 50, seed: int = 3, samples: int = 8, step_rows: int = 4, **changes: object) -> Plan:
    rng = np.random.default_rng(count)
    tokens = rng.integers(10, 90, (2, count))
    values = {"limits": Limits(128, 60, samples), "step_rows": step_rows, "seed": seed, "weights": (1.0, 1.0)}
    return Plan(tokens=tokens, targets=tokens // 3, window=16, **(values | changes))


def run_rows(plan: Plan, steps: range) -> list[Row]:
    return [plan.row(step, i) for step in steps for i in range(plan.step_rows)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.integers(0, 5), st.integers(1, 6), st.integers(1, 8))
def test_each_sample_once_a_pass_and_within_limits(count: int, seed: int, samples: int, step_rows: int) -> None:
    plan = make_plan(count, seed, samples, step_rows)
    for epoch in range(3):
        rows = plan.epoch_rows(epoch)
        asks = [ask for row in rows for ask in row.asks]
        assert sorted(ask.sample for ask in asks) == list(range(count))
        for row in rows:
            assert len(row.asks) <= samples
            assert sum(plan.tokens[ask.label_type, ask.sample] for ask in row.asks) <= 128
            assert sum(plan.targets[ask.label_type, ask.sample] for ask in row.asks) <= 60
    first = plan.epoch_steps(0)
    assert [ask for row in run_rows(plan, range(first)) for ask in row.asks] == [
        ask for row in plan.epoch_rows(0) for ask in row.asks
    ]
    assert plan.locate(first) == (1, 0)


def test_a_plan_is_a_function_of_its_arguments() -> None:
    whole = run_rows(make_plan(), range(40))
    assert run_rows(make_plan(), range(17, 40)) == whole[17 * 4 :]
    assert run_rows(make_plan(seed=4), range(40)) != whole


def test_alternating_types_show_each_in_two_passes() -> None:
    both = [alternate_types(5, epoch, (1.0, 1.0), 300) for epoch in range(4)]
    for first, second in pairwise(both):
        assert np.all(first + second == 1)
    assert 100 < both[0].sum() < 200


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1.0, 1.0, 1.0), (1.0, 2.0, 5.0)])
def test_alternating_types_keep_their_shares(weights: tuple[float, ...]) -> None:
    passes = int(sum(weights)) * 2
    types = np.stack([alternate_types(1, epoch, weights, 100) for epoch in range(passes)])
    for i, weight in enumerate(weights):
        counts = (types == i).sum(axis=0)
        assert np.all(np.abs(counts - passes * weight / sum(weights)) <= 1), (i, np.unique(counts))


def test_drawn_types_are_new_every_pass() -> None:
    first, second = (draw_types(1, epoch, (1.0, 1.0), 1000) for epoch in range(2))
    assert 0.45 < first.mean() < 0.55
    assert 0.4 < np.mean(first == second) < 0.6


def test_packing_fills_rows() -> None:
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(2000) < 0.5, 120, rng.normal(290, 60, 2000).clip(150, 500)).astype(int)[None]
    plan = Plan(tokens, tokens // 10, Limits(2048, 2048, 32), 8, 0, (1.0,))
    rows = plan.epoch_rows(0)
    assert tokens.sum() / (len(rows) * 2048) >= 0.95


def test_unpacked_rows_hold_one_sample() -> None:
    assert all(len(row.asks) == 1 for row in make_plan(samples=1).epoch_rows(0))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"sample number \d+ has \d+ tokens, a row holds 20; raise data.row_length"):
        make_plan(limits=Limits(20, 60, 1))
    with pytest.raises(UserError, match="no samples"):
        Plan(np.zeros((1, 0), int), np.zeros((1, 0), int), Limits(9, 9, 9), 1, 0, (1.0,))
