"""The plan: every sample once a pass, rows within limits, the same on every host and after any stop."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.data.plan import (
    Ints,
    Limits,
    LossWeighting,
    Part,
    Plan,
    Row,
    alternate_types,
    draw_types,
    loss_weights,
    pack,
)
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
        rows = plan.epoch(epoch)
        assert sorted(rows.samples) == list(range(count))
        assert set(rows.turns) == {epoch}
        for i in range(len(rows)):
            asks = rows.row(i).asks
            assert 1 <= len(asks) <= samples
            assert sum(plan.tokens[ask.label_type, ask.sample] for ask in asks) <= 128
            assert sum(plan.targets[ask.label_type, ask.sample] for ask in asks) <= 60
    first = plan.epoch_steps(0)
    assert [ask for row in run_rows(plan, range(first)) for ask in row.asks] == [
        ask for i in range(len(plan.epoch(0))) for ask in plan.epoch(0).row(i).asks
    ]
    assert plan.locate(first) == (1, 0)
    seen = [sum(len(row.asks) for row in run_rows(plan, range(step, step + 1))) for step in range(2 * first)]
    assert [plan.samples_before(step) for step in range(2 * first + 1)] == [0, *np.cumsum(seen)]


def plain_packing(tokens: Ints, targets: Ints, limits: Limits, window: int) -> list[list[int]]:
    """Best fit decreasing, sample by sample."""
    rows = []
    for start in range(0, len(tokens), window):
        group = np.arange(start, min(start + window, len(tokens)))
        open_rows: list[tuple[list[int], list[int]]] = []
        for place in group[np.argsort(-tokens[group], kind="stable")].tolist():
            need = (tokens[place], targets[place], 1)
            fitting = [row for row in open_rows if all(room >= part for room, part in zip(row[1], need, strict=True))]
            if not fitting:
                fitting = [([], list(limits))]
                open_rows += fitting
            best = min(fitting, key=lambda row: row[1][0])
            best[0].append(place)
            best[1][:] = [room - part for room, part in zip(best[1], need, strict=True)]
        rows += [members for members, _ in open_rows]
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 7), st.integers(0, 999))
def test_packing_is_best_fit_decreasing(count: int, window: int, samples: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(1, 100, count)
    targets = np.random.default_rng(seed + 1).integers(1, 50, count)
    limits = Limits(128, 60, samples)
    members, starts = pack(tokens, targets, limits, window)
    rows = [members[a:b].tolist() for a, b in pairwise(starts)]
    assert rows == plain_packing(tokens, targets, limits, window)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 3))
def test_a_subset_is_the_same_for_every_seed_and_part_of_a_larger_one(count: int, more: int, seed: int) -> None:
    total = 70

    def seen(subset: int, seed: int, epoch: int) -> Counter[int]:
        return Counter(make_plan(total, seed=seed, parts=(Part(total, 1.0, subset),)).epoch(epoch).samples.tolist())

    chosen = seen(count, 0, 0)
    assert len(chosen) == count
    assert set(chosen.values()) == {1}
    assert chosen == seen(count, seed, 2)
    assert set(chosen) <= set(seen(count + more, seed, 0))
    # Beside another corpus.
    both = make_plan(total + 9, parts=(Part(total, 1.0, count), Part(9))).epoch(0).samples
    assert Counter(both.tolist()) == chosen + Counter(range(total, total + 9))
    with pytest.raises(UserError, match=r"data\.samples=71 is more than the 70"):
        make_plan(total, parts=(Part(total, 1.0, 71),))


def test_a_plan_is_a_function_of_its_arguments() -> None:
    whole = run_rows(make_plan(), range(40))
    assert run_rows(make_plan(), range(17, 40)) == whole[17 * 4 :]
    assert run_rows(make_plan(seed=4), range(40)) != whole


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.1, 0.25, 1.0, 1.5, 3.0])), min_size=1, max_size=3))
def test_a_mixture_goes_through_each_corpus_sample_by_sample(more: list[tuple[int, float]]) -> None:
    parts = (Part(20), *(Part(*entry) for entry in more))
    plan = make_plan(sum(part.samples for part in parts), parts=parts)
    asked: Counter[tuple[int, int]] = Counter()
    kinds: dict[tuple[int, int], int] = {}
    for epoch in range(8):
        rows = plan.epoch(epoch)
        asked.update(zip(rows.samples.tolist(), rows.turns.tolist(), strict=True))
        kinds |= zip(zip(rows.samples.tolist(), rows.turns.tolist(), strict=True), rows.types.tolist(), strict=True)
        assert Counter(rows.samples[rows.samples < 20].tolist()) == dict.fromkeys(range(20), 1)
    assert set(asked.values()) == {1}
    assert plan.samples_before(sum(map(plan.epoch_steps, range(8)))) == len(asked)
    offset = 0
    for part in parts:
        times = Counter(sample for sample, _ in asked if offset <= sample < offset + part.samples)
        assert sum(times.values()) == round(8 * part.weight * part.samples)
        counts = [times[sample] for sample in range(offset, offset + part.samples)]
        assert max(counts) - min(counts) <= 1
        offset += part.samples
    # Whatever a corpus's weight, a sample is asked the other question the next time.
    assert all(kinds[sample, turn] != kinds[sample, turn - 1] for sample, turn in kinds if turn)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=6),
    st.sampled_from(["token", "sample", "reference"]),
    st.integers(1, 4),
)
def test_loss_weights_give_the_mean_they_name(batches: list[list[int]], weighting: LossWeighting, group: int) -> None:
    targets = np.array([count for batch in batches for count in batch], int)
    numbers = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    weights = loss_weights(targets, numbers, weighting, group)
    rng = np.random.default_rng(0)
    costs = [[rng.uniform(size=count) for count in batch] for batch in batches]
    size = {"token": len(targets), "sample": 1, "reference": group}[weighting]
    groups = [
        np.concatenate(batch[first : first + size])
        for batch in (costs if weighting == "reference" else [[cost for batch in costs for cost in batch]])
        for first in range(0, len(batch), max(size, 1))
    ]
    found = [cost.sum() for batch in costs for cost in batch]
    if groups:
        mean = np.dot(weights, found) / np.dot(weights, targets)
        assert mean == pytest.approx(np.mean([cost.mean() for cost in groups]), rel=1e-6)


def test_groups_of_the_reference_end_with_their_round() -> None:
    """Two rounds of two rows, one sample each: groups of three are cut at the round's end, whoever makes the rows."""
    plan = make_plan(8, samples=1, step_rows=4, rounds=2, weighting="reference", group=3)
    for step in range(2):
        asks = [plan.row(step, i).asks[0] for i in range(4)]
        targets = [plan.targets[ask.label_type, ask.sample] for ask in asks]
        assert [ask.weight for ask in asks] == pytest.approx([1 / sum(targets[:2])] * 2 + [1 / sum(targets[2:])] * 2)


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
    """MER-Caption's likely lengths: prompts of 108 tokens, half the answers 12, half about 170."""
    rng = np.random.default_rng(0)
    tokens = 110 + np.where(rng.random(20000) < 0.5, 12, rng.normal(170, 60, 20000).clip(30, 500)).astype(int)[None]
    plan = Plan(tokens, tokens - 109, Limits(2048, 2048, 32), 8, 0, (1.0,))
    assert tokens.sum() / (len(plan.epoch(0)) * 2048) >= 0.95


def test_unpacked_rows_hold_one_sample() -> None:
    assert set(np.diff(make_plan(samples=1).epoch(0).starts)) == {1}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"sample number \d+ has \d+ tokens, a row holds 20; raise data.row_length"):
        make_plan(limits=Limits(20, 60, 1))
    with pytest.raises(UserError, match="no samples"):
        Plan(np.zeros((1, 0), int), np.zeros((1, 0), int), Limits(9, 9, 9), 1, 0, (1.0,))
    with pytest.raises(UserError, match="no samples"):
        make_plan(20, parts=(Part(20), Part(0)))
