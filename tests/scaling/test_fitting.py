"""Known laws come back, impossible fits are refused with their reason, and intervals hold what they say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling.fitting import (
    Fit,
    bootstrap,
    check,
    fit,
    frontier,
    isoflop,
    leave_out,
    predict,
    profile,
    screened_fit,
    warnings,
)
from affectgpt_jax.scaling.laws import LAWS
from affectgpt_jax.scaling.points import Points, make_points, take

CHINCHILLA = LAWS["chinchilla"]
TRUE = {"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28}
"""Hoffmann et al. 2022, equation 10."""
THETA = np.array([np.log(1.69), np.log(406.4), np.log(410.7), 0.34, 0.28])


def grid(sizes: int = 10, data: int = 10, seeds: int = 1, **columns: Any) -> Points:
    """All sizes with all amounts of data, losses not yet known."""
    n, d, _ = np.meshgrid(np.geomspace(1e7, 1e10, sizes), np.geomspace(1e9, 1e12, data), np.arange(seeds))
    return points_at(n.ravel(), d.ravel(), **columns)


def points_at(n: np.ndarray, d: np.ndarray, **columns: Any) -> Points:
    rows = [{"parameters": n_, "samples": d_, "flops": 6 * n_ * d_, "loss": 1.0} for n_, d_ in zip(n, d)]
    return make_points(rows)[0]._replace(**columns)


def measured(points: Points, noise: float = 0.0, seed: int = 0, law: str = "chinchilla", theta: Any = THETA) -> Points:
    """The points with a law's losses, times lognormal noise."""
    draws = np.random.default_rng(seed).normal(size=len(points.loss))
    return points._replace(loss=np.exp(LAWS[law].predict(theta, points) + noise * draws))


def told(fitted: Fit, points: Points) -> list[str]:
    return warnings(fitted, points, {name: profile(fitted, points, name) for name in fitted.law.parameters})


def warned(points: Points, text: str, law: str = "chinchilla") -> bool:
    return any(text in line for line in told(fit(LAWS[law], points), points))


@pytest.mark.parametrize("seed", range(20))
def test_the_published_law_is_recovered(seed: int):
    rng = np.random.default_rng(seed)
    n, d = np.exp(rng.uniform(np.log([[1e7], [1e9]]), np.log([[1e10], [1e12]]), (2, 400)))
    points = grid(20, 20) if seed % 2 else points_at(n, d)
    found = fit(CHINCHILLA, measured(points, 0.002, seed))
    assert found.values["a"] == pytest.approx(0.34, abs=0.01)
    assert found.values["b"] == pytest.approx(0.28, abs=0.01)
    assert found.values["E"] == pytest.approx(1.69, abs=0.02)
    assert found.sigma == pytest.approx(0.002, rel=0.2)
    assert found.agreeing > found.starts / 2


def coverage(points: Points, trials: int, resamples: int) -> dict[str, int]:
    """How many intervals hold the truth."""
    hits = dict.fromkeys(TRUE, 0)
    for seed in range(trials):
        trial = measured(points, 0.01, 1000 + seed)
        ends = bootstrap(fit(CHINCHILLA, trial), trial, resamples, seed).ends
        for name, (low, high) in ends.items():
            hits[name] += low <= TRUE[name] <= high
    return hits


def test_intervals_hold_the_truth():
    assert min(coverage(grid(6, 6), 40, 60).values()) >= 34


def test_intervals_of_predictions_hold_the_truth_and_are_narrow_where_there_are_runs():
    """Also at the smallest of few sizes, which a bootstrap that draws runs would often leave out."""
    points = grid(5, 4, seeds=2)
    truth = CHINCHILLA.predict(THETA, points)
    held = []
    for seed in range(10):
        trial = measured(points, 0.01, seed)
        found = fit(CHINCHILLA, trial)
        ends = bootstrap(found, trial, 60, seed)
        every = np.array([CHINCHILLA.predict(theta, points) for theta in ends.samples])
        low, high = ends.around(CHINCHILLA.predict(found.theta, points), every)
        assert np.all(high - low < 0.06)
        held.append((low < truth) & (truth < high))
    assert np.mean(held) > 0.85


@pytest.mark.long
@pytest.mark.parametrize(("sizes", "data", "seeds"), [(7, 7, 1), (20, 20, 1), (5, 4, 2)])
def test_95_percent_intervals_hold_the_truth_in_90_of_100_trials(sizes: int, data: int, seeds: int):
    hits = coverage(grid(sizes, data, seeds), 100, 200)
    assert min(hits.values()) >= 90, hits


def test_profile_and_bootstrap_agree_on_normal_noise():
    points = measured(grid(), 0.01)
    found = fit(CHINCHILLA, points)
    ends = bootstrap(found, points).ends
    for name, (low, high) in ends.items():
        lower, upper = profile(found, points, name)
        assert lower < found.values[name] < upper
        assert 0.7 < (upper - lower) / (high - low) < 1.4, name


def test_bootstrap_keeps_cells_whole_and_is_the_same_twice():
    points = measured(grid(4, 4, seeds=2), 0.01)
    found = fit(CHINCHILLA, points)
    assert points.cell.max() == 15
    first, second = bootstrap(found, points, 20, 3), bootstrap(found, points, 20, 3)
    assert first.samples.shape == (20, 5)
    np.testing.assert_array_equal(first.samples, second.samples)
    # Both seeds of a cell told the same twice are no news: the interval must not shrink.
    twin = points._replace(loss=np.repeat(points.loss[::2], 2))
    (low, high), (low_once, high_once) = (
        bootstrap(fit(CHINCHILLA, each), each, 60).ends["a"] for each in (twin, take(twin, np.arange(0, 32, 2)))
    )
    assert high - low == pytest.approx(high_once - low_once, rel=0.5)


@settings(max_examples=3, deadline=None)
@given(st.floats(-9, 9), st.floats(-9, 9), st.floats(-3, 3))
def test_units_change_coefficients_only(size: float, data: float, loss: float):
    points = measured(grid(5, 5), 0.005)
    n, d, c = np.exp([size, data, loss])
    other = points._replace(
        parameters=points.parameters * n, samples=points.samples * d, unique=points.unique * d, loss=points.loss * c
    )
    before, after = (fit(CHINCHILLA, each).values for each in (points, other))
    expected = {**before, "E": c * before["E"], "A": c * before["A"] * n ** before["a"]}
    expected["B"] = c * before["B"] * d ** before["b"]
    assert after == pytest.approx(expected, rel=1e-4)


@settings(max_examples=3, deadline=None)
@given(st.permutations(range(25)))
def test_the_order_of_rows_does_not_matter(order: list[int]):
    points = measured(grid(5, 5), 0.005)
    found = fit(CHINCHILLA, take(points, np.array(order)))
    assert found.values == pytest.approx(fit(CHINCHILLA, points).values, rel=1e-5)


@given(st.integers(1, 5), st.integers(1, 3))
def test_too_few_points_are_refused(cells: int, seeds: int):
    points = measured(take(grid(5, 5, seeds), np.arange(25 * seeds) < cells * seeds))
    with pytest.raises(UserError, match=f"{cells} different points, where the 5 parameters need at least 6"):
        fit(CHINCHILLA, points)


@given(st.floats(1e3, 1e12), st.integers(6, 40))
def test_one_size_or_one_amount_of_data_is_refused(value: float, rows: int):
    with pytest.raises(UserError, match=r"all rows have the same N .*fit the law saturating"):
        check(CHINCHILLA, points_at(np.full(rows, value), np.geomspace(1e9, 1e12, rows)))
    with pytest.raises(UserError, match=r"all rows have the same D .*fit the law saturating-size"):
        check(CHINCHILLA, points_at(np.geomspace(1e7, 1e9, rows), np.full(rows, value)))


def test_two_sizes_are_refused():
    with pytest.raises(UserError, match="2 distinct N, where at least 3 are needed"):
        check(CHINCHILLA, grid(2, 5))
    with pytest.raises(UserError, match="2 distinct D"):
        check(LAWS["saturating"], points_at(np.full(4, 1e6), np.array([1e5, 1e5, 1e6, 1e6])))


def test_repeats_need_repeated_rows():
    points = grid(4, 4)
    with pytest.raises(UserError, match=r"no row repeats its data .*fit the law chinchilla"):
        check(LAWS["repeats"], points)
    with pytest.raises(UserError, match="all rows repeat their data 4 times"):
        check(LAWS["repeats"], points._replace(unique=points.samples / 4))


@given(st.sets(st.integers(0, 35), min_size=1, max_size=2), st.floats(1.15, 10))
@settings(max_examples=3, deadline=None)
def test_diverged_runs_are_refused_or_left_out_by_name(places: set[int], factor: float):
    points = measured(grid(6, 6), 0.003)
    points.loss[list(places)] *= factor
    with pytest.raises(UserError, match=rf"{len(places)} of 36 rows .*seems to have diverged.*--skip-bad") as refused:
        screened_fit(CHINCHILLA, points)
    assert all(f"row {place + 1}: " in str(refused.value) for place in places)
    found, kept, notes = screened_fit(CHINCHILLA, points, skip_bad=True)
    assert len(kept.loss) == 36 - len(places)
    assert [note.split(":")[1].strip() for note in notes] == [f"row {place + 1}" for place in sorted(places)]
    assert found.values["a"] == pytest.approx(0.34, abs=0.03)


def test_a_clean_table_is_kept_whole():
    points = measured(grid(6, 6), 0.01)
    found, kept, notes = screened_fit(CHINCHILLA, points)
    assert kept is points
    assert notes == []
    np.testing.assert_allclose(np.log(points.loss / predict(found, points)), found.residuals, atol=1e-9)


def test_huber_delta_can_be_kept():
    points = measured(grid(), 0.01)
    assert fit(CHINCHILLA, points, huber=1e-3).delta == 1e-3
    assert fit(CHINCHILLA, points).delta == pytest.approx(0.01345, rel=0.3)


def test_repeats_are_recovered():
    theta = np.array([np.log(1.87), np.log(521), np.log(1488), 0.35, 0.35, np.log(15.4), np.log(5.3)])
    n, unique, epochs = (
        x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 4), np.geomspace(1e8, 1e11, 4), [1, 4, 30])
    )
    points = measured(points_at(n, unique * epochs, unique=unique), 0.001, law="repeats", theta=theta)
    found = fit(LAWS["repeats"], points)
    assert found.values["R_D"] == pytest.approx(15.4, rel=0.05)
    assert found.values["R_N"] == pytest.approx(5.3, rel=0.1)
    assert found.values["a"] == pytest.approx(0.35, abs=0.01)
    assert found.values["b"] == pytest.approx(0.35, abs=0.01)
    assert told(found, points) == []
    # Where no size is too large for its captions, nothing is said about sizes that are.
    small = measured(points._replace(parameters=points.parameters / 1e4), 0.001, law="repeats", theta=theta)
    assert warned(small, "R_N is not determined", "repeats")


@pytest.mark.parametrize(("law", "field"), [("saturating", "samples"), ("saturating-size", "parameters")])
def test_one_variable_saturates(law: str, field: str):
    ranks = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    points = points_at(ranks, ranks)
    points = measured(
        points._replace(**{field: 3 * ranks}), 0.0, law=law, theta=np.array([np.log(0.3), np.log(0.5), 0.7])
    )
    found = fit(LAWS[law], points)
    assert found.values == pytest.approx({"E": 0.3, "A": 0.5, "a": 0.7}, rel=1e-6)
    with pytest.raises(UserError, match="no trade of N for D"):
        frontier(found, points, [1.0])


@pytest.mark.parametrize("which", ["size", "data", "compute"])
def test_left_out_runs_of_a_noiseless_law_are_predicted(which: str):
    points = measured(grid(6, 5, seeds=2))
    left, reason = leave_out(CHINCHILLA, points, which)
    assert reason == ""
    assert left is not None
    assert len(left.names) == {"size": 5, "data": 6, "compute": 1}[which]
    np.testing.assert_allclose(left.predicted, left.measured, rtol=1e-6)
    np.testing.assert_allclose(left.error, 0, atol=1e-6)


def test_leaving_out_says_why_it_cannot():
    assert leave_out(CHINCHILLA, measured(grid(3, 4)), "size")[0] is None
    assert "2 distinct N" in leave_out(CHINCHILLA, measured(grid(3, 4)), "size")[1]


def law_optimum(flops: float) -> float:
    """N of the lowest loss at a compute, by search."""
    a, b = np.exp(THETA[1:3])
    return np.exp(
        minimize_scalar(
            lambda n: a * np.exp(-0.34 * n) + b * (flops / 6 / np.exp(n)) ** -0.28,
            bounds=(np.log(1e5), np.log(1e13)),
            method="bounded",
            options={"xatol": 1e-10},
        ).x
    )


def isoflop_points(budgets: np.ndarray) -> Points:
    """Five sizes on both sides of the optimum of each budget."""
    n = np.concatenate([law_optimum(budget) * np.geomspace(0.25, 4, 5) for budget in budgets])
    return points_at(n, np.repeat(budgets, 5) / 6 / n)


def test_isoflop_finds_the_optimum():
    budgets = np.geomspace(1e18, 1e21, 4)
    points = measured(isoflop_points(budgets), 0.0005, seed=1)
    found = isoflop(points)
    assert found.notes == []
    np.testing.assert_allclose([each.flops for each in found.slices], budgets)
    np.testing.assert_allclose([each.parameters for each in found.slices], [*map(law_optimum, budgets)], rtol=0.15)
    np.testing.assert_allclose([6 * each.parameters * each.samples for each in found.slices], budgets)
    assert found.size_exponent == pytest.approx(0.28 / 0.62, abs=0.03)
    assert found.data_exponent == pytest.approx(0.34 / 0.62, abs=0.03)
    assert found.size_factor * 1e20**found.size_exponent == pytest.approx(law_optimum(1e20), rel=0.1)
    assert found.data_factor * 1e20**found.data_exponent == pytest.approx(1e20 / 6 / law_optimum(1e20), rel=0.1)
    assert found.size_interval[0] < 0.28 / 0.62 < found.size_interval[1]
    assert found.size_interval[1] - found.size_interval[0] < 0.1
    assert [each.flops for each in isoflop(points, [1e19, 1e20]).slices] == pytest.approx([1e19, 1e20])
    assert np.isnan(isoflop(points, [1e19, 1e20]).size_interval).all()
    assert np.isnan(isoflop(points, [1e19]).size_exponent)


def test_isoflop_leaves_out_what_has_no_lowest_point():
    budgets = np.geomspace(1e18, 1e21, 4)
    points = measured(isoflop_points(budgets))
    points.loss[:5] = points.loss[:5].max() + points.loss[:5].min() - points.loss[:5]
    points = take(points, ~((points.flops > 0.9e21) & (points.parameters > law_optimum(1e21))))
    points = take(
        points, ~((points.flops > 0.9e20) & (points.flops < 1.1e20) & (points.parameters > law_optimum(1e20) / 1.1))
    )
    found = isoflop(points, budgets)
    assert [each.flops for each in found.slices] == pytest.approx([1e19])
    assert "1e+18 FLOPs is left out: its parabola opens downward" in found.notes[0]
    assert "2 sizes, 4 are needed" in found.notes[1]
    assert len(found.notes) == 3
    right = measured(isoflop_points(budgets)._replace(parameters=isoflop_points(budgets).parameters * 20))
    with pytest.raises(UserError, match="outside of the sizes measured"):
        isoflop(right)
    with pytest.raises(UserError, match="no 4 sizes have the same compute"):
        isoflop(take(points, np.arange(3)))


def test_frontier_is_where_the_loss_is_lowest():
    points = measured(grid(5, 5))
    budgets = np.geomspace(1e19, 1e25, 4)
    found = frontier(fit(CHINCHILLA, points), points, budgets)
    assert found.ends == {}
    assert found.cost == pytest.approx((6, 1))
    np.testing.assert_allclose(found.parameters, [*map(law_optimum, budgets)], rtol=1e-4)
    np.testing.assert_allclose(6 * found.parameters * found.samples, budgets)
    np.testing.assert_allclose(np.diff(np.log(found.parameters)) / np.diff(np.log(budgets)), found.size_exponent)
    assert found.size_exponent + found.data_exponent == pytest.approx(1)


def test_frontier_of_a_cost_that_is_no_product():
    points = measured(grid(5, 5))
    points = points._replace(flops=40 * points.parameters**0.8 * points.samples)
    found = frontier(fit(CHINCHILLA, points), points, [1e20])
    sizes = np.geomspace(found.parameters[0] / 3, found.parameters[0] * 3, 20001)
    losses = np.exp(CHINCHILLA.predict(THETA, points_at(sizes, 1e20 / 40 / sizes**0.8)))
    assert sizes[losses.argmin()] == pytest.approx(found.parameters[0], rel=1e-3)
    assert losses.min() == pytest.approx(found.loss[0], rel=1e-9)


def test_frontier_intervals_hold_the_truth():
    points = measured(grid(8, 8), 0.005)
    fitted = fit(CHINCHILLA, points)
    found = frontier(fitted, points, [1e20, 1e22], bootstrap(fitted, points))
    truth = np.array([law_optimum(1e20), law_optimum(1e22)])
    assert found.ends["parameters"].shape == (2, 2)
    assert (found.ends["parameters"][0] < truth).all()
    assert (found.ends["parameters"][1] > truth).all()
    low, high = found.ends["size_exponent"]
    assert low < 0.28 / 0.62 < high


def test_good_data_raises_no_warning():
    points = measured(grid(5, 5, seeds=2), 0.005)
    assert told(fit(CHINCHILLA, points), points) == []


def test_warnings_appear_where_they_should():
    n, d = np.geomspace(1e8, 3e8, 5), np.geomspace(1e9, 1e12, 5)
    assert warned(measured(points_at(np.repeat(n, 5), np.tile(d, 5)), 0.001), "N spans a factor of only 3")
    assert warned(measured(points_at(np.geomspace(1e7, 1e10, 20), np.geomspace(1e9, 1e12, 20)), 0.001), "on one line")
    floorless = THETA - np.array([20, 0, 0, 0, 0])
    assert warned(measured(grid(5, 5), 0.001, theta=floorless), "E is close to 0")
    assert warned(measured(grid(3, 5), 0.05), "E is hardly determined")
    sizeless = THETA - np.array([0, 4, 0, 0, 0])
    assert warned(measured(grid(4, 5), 0.05, seed=5, theta=sizeless), "a cannot be told from 0")
    steps = 2.0 ** np.arange(8)
    steep = points_at(np.full(8, 1e6), steps)._replace(loss=1 + 0.5 * steps**-6)
    assert warned(steep, "The exponent a is at its bound (4)", "saturating")
    blurred = measured(steep, 0.03, law="saturating", theta=np.array([0.0, -0.7, 3.0]))
    assert warned(blurred, "The exponent a is hardly determined", "saturating")


def test_a_wrong_law_is_told_from_noise():
    points = measured(grid(5, 5, seeds=3), 0.002)
    assert not warned(points, "more than seeds explain")
    bent = points._replace(loss=points.loss * (1 + 0.03 * np.sin(2 * np.log(points.parameters))))
    assert warned(bent, "more than seeds explain")


def test_seeds_that_agree_have_not_diverged():
    """A cell that the law misses is fitted, with a warning; one seed far above the other is refused."""
    points = measured(grid(6, 6, seeds=2), 0.005)
    both = points.cell == points.cell[0]
    missed = points._replace(loss=np.where(both, 1.15 * points.loss, points.loss))
    fitted, kept, _ = screened_fit(CHINCHILLA, missed)
    assert len(kept.loss) == len(points.loss)
    assert any("more than seeds explain" in line for line in told(fitted, missed))
    one = np.flatnonzero(both)[0]
    alone = points._replace(loss=np.where(np.arange(len(both)) == one, 1.15 * points.loss, points.loss))
    with pytest.raises(UserError, match=f"{points.names[one]}: .* seems to have diverged"):
        screened_fit(CHINCHILLA, alone)
