"""Fit a scaling law to points, say how far it can be trusted, and what it calls for at a given compute.

The method is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556): a Huber loss of the residuals of the log loss,
minimised from many starts. `isoflop` is their approach 2, `frontier` the closed form of section 3.3.

Axes: n points, p parameters, B resamples, k budgets.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.special import fdtri, stdtrit

from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling.laws import HIGHEST, LOWEST, Law, Units, in_units, named, units_of
from affectgpt_jax.scaling.points import Points, refusal, take

LEAST_DELTA = 1e-6
"""Numbers in tables have hardly more digits."""
EFFICIENT = 1.345
"""Delta in standard deviations at which Huber's estimate keeps 95% of the efficiency of least squares."""
SYMBOLS = {"parameters": "N", "samples": "D"}
SLICE = 1.1
"""Compute of the rows of one isoFLOP slice agrees within this factor."""


class Fit(NamedTuple):
    """A fitted law."""

    law: Law
    theta: np.ndarray
    """[p], of the points as they are: logarithms, and exponents as such."""
    values: dict[str, float]
    """By name, in the points' units."""
    units: Units
    """In which the fit was made."""
    delta: float
    """Of the Huber loss, in log loss."""
    sigma: float
    """Robust standard deviation of the residuals."""
    residuals: np.ndarray
    """[n], log of measured over predicted loss."""
    cost: float
    starts: int
    agreeing: int
    """Starts that came to the same optimum."""


def _in_fit(fit: Fit) -> np.ndarray:
    """Theta [p] in the units of the fit."""
    return fit.law.plain(fit.theta, Units(*(1 / unit for unit in fit.units)))


def predict(fit: Fit, points: Points) -> np.ndarray:
    """The loss [n] that a fit predicts; the points' own losses are not looked at."""
    return np.exp(fit.law.predict(fit.theta, points))


def _slopes(law: Law, theta: np.ndarray, points: Points) -> np.ndarray:
    """Derivatives of the log loss by theta [n, p]: complex steps, all in one call."""
    steps = theta[:, None] + 1e-20j * np.eye(len(theta))
    return law.predict(steps[:, :, None], points).imag.T / 1e-20


def _solve(law: Law, start: np.ndarray, points: Points, delta: float, weights: np.ndarray | float = 1.0) -> Any:
    """The optimum near a start, in units near 1; `weights` [n] of the points' losses."""
    logs = np.log(points.loss)

    def huber(squares: np.ndarray) -> np.ndarray:
        """The loss of squares in units of delta^2 and its two derivatives [3, n], each times its weight."""
        far = np.maximum(squares, 1.0)
        loss = np.where(squares <= 1, squares, 2 * np.sqrt(far) - 1)
        return np.stack([loss, far**-0.5, np.where(squares <= 1, 0, -0.5 * far**-1.5)]) * weights

    return least_squares(
        lambda theta: logs - law.predict(theta, points),
        np.clip(start, law.low, law.high),
        jac=lambda theta: -_slopes(law, theta, points),
        bounds=(law.low, law.high),
        loss=huber,
        f_scale=delta,
        ftol=1e-10,
        xtol=1e-10,
        gtol=1e-12,
        max_nfev=100,
    )


def _spread(residuals: np.ndarray, parameters: int) -> float:
    """Median absolute residual, scaled to a standard deviation.

    The p - 1 smallest do not count: near least absolute residuals a fit passes through about p points exactly.
    """
    return float(np.median(np.sort(np.abs(residuals))[parameters - 1 :]) / 0.6745)


def _delta(residuals: np.ndarray, parameters: int) -> float:
    return max(LEAST_DELTA, EFFICIENT * _spread(residuals, parameters))


def _starts(law: Law, points: Points) -> list[np.ndarray]:
    """A law's starts, the best first."""
    logs = np.log(points.loss)
    return sorted(law.starts(points), key=lambda start: _spread(logs - law.predict(start, points), len(start)))


def check(law: Law, points: Points) -> None:
    """Refuse points that a law cannot be fitted to, before any fit.

    Raises:
        UserError: too few points, sizes or amounts of data, or (for `repeats`) of repeats; says which.
    """
    found = []
    cells, least = len(np.unique(points.cell)), len(law.parameters) + 1
    if cells < least:
        found.append(
            f"{cells} different points, where the {len(law.parameters)} parameters need at least {least} "
            "(runs with other seeds do not count): run more sizes and amounts of data"
        )
    for field in law.axes:
        distinct = np.unique(getattr(points, field))
        symbol = SYMBOLS[field]
        if len(distinct) == 1 and len(law.axes) > 1:
            other = "saturating" if field == "parameters" else "saturating-size"
            found.append(f"all rows have the same {symbol} ({distinct[0]:g}): vary it, or fit the law {other}")
        elif len(distinct) < 3:
            found.append(f"{len(distinct)} distinct {symbol}, where at least 3 are needed: run another {symbol}")
    if law.name == "repeats":
        ratios = np.unique(points.samples / points.unique)
        if ratios.max(initial=1) == 1:
            found.append("no row repeats its data (unique below samples): fit the law chinchilla")
        elif len(ratios) == 1:
            found.append(f"all rows repeat their data {ratios[0]:g} times: run other numbers of repeats")
    if found:
        raise UserError(f"the law {law.name} cannot be fitted to {len(points.loss)} rows: {'; '.join(found)}")


def fit(law: Law, points: Points, *, huber: float | None = None) -> Fit:
    """Fit a law.

    Delta says from which residual on a point counts as an outlier. Hoffmann's 1e-3 is far below the noise between
    seeds of most runs; there it makes the fit one of least absolute residuals, which throws away a third of what
    normal noise tells, and is slow to find. So delta follows the noise: it is 1.345 robust standard deviations of the
    residuals (95% efficiency under normal noise), at first of those of the best start, then of the fit's own.

    Args:
        law: its form.
        points: n.
        huber: a delta to be kept to, in log loss; found if None.

    Raises:
        UserError: of `check`.
    """
    check(law, points)
    units = units_of(points)
    scaled = in_units(points, units)
    starts = _starts(law, scaled)
    delta = _delta(np.log(scaled.loss) - law.predict(starts[0], scaled), len(starts[0]))
    tries = [_solve(law, start, scaled, delta) for start in starts]
    best = min(tries, key=lambda each: each.cost)
    # Without noise costs are sums of squares of rounding errors.
    agreeing = sum(bool(each.cost <= 1.001 * best.cost + 1e-12 * len(points.loss) * delta**2) for each in tries)
    for _ in range(1 if huber else 3):
        delta = huber or _delta(best.fun, len(best.x))
        best = _solve(law, best.x, scaled, delta)
    theta = law.plain(best.x, units)
    return Fit(
        law=law,
        theta=theta,
        values={name: float(value) for name, value in named(law, theta).items()},
        units=units,
        delta=delta,
        sigma=_spread(best.fun, len(best.x)),
        residuals=best.fun,
        cost=float(best.cost),
        starts=len(tries),
        agreeing=agreeing,
    )


def screened_fit(
    law: Law, points: Points, *, huber: float | None = None, skip_bad: bool = False
) -> tuple[Fit, Points, list[str]]:
    """Fit a law to rows of which some may have diverged.

    Suspected is what lies above the fit by more than 6 robust standard deviations and more than 5%, and as far above
    another seed of its cell if there is one: where all seeds agree it is the law that misses them.

    Args:
        law: its form.
        points: n.
        huber: as of `fit`.
        skip_bad: leave suspected rows out and fit once more, instead of refusing the table.

    Returns:
        The fit, the points it was made to, and a note for each row left out.

    Raises:
        UserError: of `check`; rows that seem to have diverged.
    """
    fitted = fit(law, points, huber=huber)
    limit = max(6 * fitted.sigma, np.log(1.05))
    suspect = fitted.residuals > limit
    for i in np.flatnonzero(suspect):
        seeds = fitted.residuals[points.cell == points.cell[i]]
        suspect[i] = len(seeds) == 1 or fitted.residuals[i] - seeds.min() > limit
    lines = [
        f"{points.names[i]}: its loss {points.loss[i]:.4g} lies {np.expm1(fitted.residuals[i]):.0%} above the fit, "
        f"it seems to have diverged"
        for i in np.flatnonzero(suspect)
    ]
    if not lines:
        return fitted, points, []
    if not skip_bad:
        raise refusal(lines, len(points.loss))
    kept = take(points, ~suspect)
    return fit(law, kept, huber=huber), kept, [f"Left out: {line}." for line in lines]


class Intervals(NamedTuple):
    """A bootstrap of a fit."""

    samples: np.ndarray
    """Theta of each refit [B, p], as in `Fit`."""
    stretch: float
    """By how much refits of so few cells vary too little."""
    ends: dict[str, tuple[float, float]]
    """95% interval by name."""

    def around(self, value: np.ndarray, values: np.ndarray) -> np.ndarray:
        """95% interval of anything that follows from theta [2, ...]: of its value at the fit and at `samples` [B, ...].

        In logs for what is a product of powers. Each quantity is stretched by itself: thetas of which all entries are
        stretched would be no fits any more. Weibull's percentiles leave 2.5% of what might have been drawn on each
        side, where numpy's own leave 3% of 200.
        """
        return np.percentile(value + self.stretch * (values - value), [2.5, 97.5], axis=0, method="weibull")


def bootstrap(fit: Fit, points: Points, resamples: int = 200, seed: int = 0) -> Intervals:
    """Fit again with a random weight for each cell, which all of its rows share: Rubin's Bayesian bootstrap.

    Weights are exponentially distributed, about 1. Drawing cells with replacement would vary as much, but leave out all
    runs of one size in a third of the draws from five sizes, whose fits then say anything of it.

    A fit of few cells takes up part of their noise, so its refits vary too little: their distance from the fit is
    stretched by cells / (cells - p), 1 / (1 - leverage) of a cell on average, as a jackknife does. With the root of
    that 95% intervals of 20 cells hold 83% of E, with this 91%.

    Args:
        fit: whose delta is kept; each refit starts from its optimum, and from the best of the law's starts.
        points: that it was made to.
        resamples: B.
        seed: of the weights.
    """
    law = fit.law
    rng = np.random.default_rng(seed)
    numbers, member = np.unique(points.cell, return_inverse=True)
    cells = len(numbers)
    scaled = in_units(points, fit.units)
    centre = _in_fit(fit)
    starts = centre, _starts(law, scaled)[0]

    def refit() -> np.ndarray:
        weights = rng.dirichlet(np.ones(cells))[member] * cells
        return min((_solve(law, start, scaled, fit.delta, weights) for start in starts), key=lambda each: each.cost).x

    samples = law.plain(np.array([refit() for _ in range(resamples)]), fit.units)
    found = Intervals(samples, cells / (cells - len(centre)), {})
    ends = found.around(fit.theta, samples)
    exponents = np.isin(law.parameters, law.exponents)
    ends = np.where(exponents, np.clip(ends, law.low, law.high), ends)
    return found._replace(ends={name: (float(low), float(high)) for name, (low, high) in named(law, ends).items()})


def profile(fit: Fit, points: Points, name: str) -> tuple[float, float]:
    """95% profile-likelihood interval of one parameter: how far it can be moved while the others make up for it.

    The rise of the Huber loss is held against Student's t, in units of E[psi^2] / E[psi'] (psi the loss's derivative),
    which is what it is distributed by.

    Args:
        fit: of the points.
        points: n.
        name: of the parameter.

    Returns:
        Its ends; 0 or infinity where the loss never rises enough.
    """
    law, (n, p) = fit.law, (len(points.loss), len(fit.theta))
    i = law.parameters.index(name)
    free = np.arange(p) != i
    scaled = in_units(points, fit.units)
    psi = np.clip(fit.residuals, -fit.delta, fit.delta)
    scale = max((psi @ psi) / (n - p) / np.mean(np.abs(fit.residuals) < fit.delta), LEAST_DELTA**2)
    limit = fit.cost + scale * float(stdtrit(n - p, 0.975)) ** 2 / 2
    # What units do not change has bounds of its own.
    changed = law.plain(np.zeros(p), Units(np.e, np.e, np.e))[i] != 0
    low, high = (fit.theta[i] - 30, fit.theta[i] + 30) if changed else (law.low[i], law.high[i])

    def held(value: float, start: np.ndarray) -> Any:
        """The others' optimum with the parameter at this value, which is one of the points as they are."""

        def of_others(others: np.ndarray, points: Points) -> np.ndarray:
            theta = np.insert(others, i, 0, axis=0)
            theta[i] = value - law.plain(theta.T, fit.units).T[i]
            return law.predict(theta, points)

        rest = law._replace(predict=of_others, low=law.low[free], high=law.high[free])
        return _solve(rest, start, scaled, fit.delta)

    slopes = _slopes(law, fit.theta, points)
    error = np.sqrt(scale * np.linalg.pinv(slopes.T @ slopes)[i, i])

    def end(sign: int) -> float:
        """Outward in growing steps until the loss has risen to the limit, then halfway back and forth."""
        inner, start = fit.theta[i], _in_fit(fit)[free]
        for step in max(error, 1e-6) * 2.0 ** np.arange(30):
            outer = float(np.clip(inner + sign * step, low, high))
            if outer == inner:
                return sign * np.inf
            found = held(outer, start)
            if found.cost > limit:
                break
            inner, start = outer, found.x
        else:
            return sign * np.inf
        for _ in range(10):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if held(middle, start).cost > limit else (middle, outer)
        return inner

    lower, upper = float(end(-1)), float(end(1))
    return (max(lower, 0.0), upper) if name in law.exponents else (float(np.exp(lower)), float(np.exp(upper)))


def warnings(fit: Fit, points: Points, profiles: Mapping[str, tuple[float, float]]) -> list[str]:
    """What a reader of a fit must know, a sentence each.

    Intervals are profile-likelihood ones: in directions that the points say nothing about, a bootstrap's refits stay
    where they start, and seem sure.

    Args:
        fit: of the points.
        points: n.
        profiles: intervals of `profile` by parameter.
    """
    law, found = fit.law, []
    for field in law.axes:
        values = getattr(points, field)
        if (factor := values.max() / values.min()) < 4:
            found.append(
                f"{SYMBOLS[field]} spans a factor of only {factor:.3g}: exponents need at least 4, better 10 or more."
            )
    if len(law.axes) == 2:
        correlation = np.corrcoef(np.log(points.parameters), np.log(points.samples))[0, 1]
        if abs(correlation) > 0.98:
            found.append(
                f"N and D lie on one line (correlation of their logs {correlation:.3f}): the two terms cannot be told "
                "apart; run sizes with other amounts of data."
            )

    for name, value in fit.values.items():
        if name in ("A", "B"):
            continue
        low, high = profiles[name]
        if name in law.exponents:
            if not 2 * LOWEST < value < HIGHEST - LOWEST:
                found.append(f"The exponent {name} is at its bound ({value:.3g}).")
            elif low < 2 * LOWEST:
                found.append(f"The exponent {name} cannot be told from 0 (interval {low:.3g} to {high:.3g}).")
            elif high > HIGHEST - LOWEST:
                found.append(f"The exponent {name} is hardly determined (interval {low:.3g} to {high:.3g}).")
        elif name == "E":
            if value < 0.01 * points.loss.min():
                found.append(f"E is close to 0 ({value:.3g}): no floor of the loss is visible at these sizes.")
            elif high - low > value:
                found.append(f"E is hardly determined (interval {low:.3g} to {high:.3g}): the law foretells no floor.")
        elif high > 100 * low:
            found.append(f"{name} is not determined (interval {low:.3g} to {high:.3g}).")
    return found + _lack_of_fit(fit, points)


def _lack_of_fit(fit: Fit, points: Points) -> list[str]:
    """An F test of the cells' mean residuals against the spread of seeds within the cells."""
    cell = np.unique(points.cell, return_inverse=True)[1]
    rows = np.bincount(cell)
    means = np.bincount(cell, fit.residuals) / rows
    between, within = len(rows) - len(fit.theta), len(cell) - len(rows)
    if between < 1 or within < 1:
        return []
    misfit = rows @ means**2 / between
    seeds = np.sum((fit.residuals - means[cell]) ** 2) / within
    if misfit <= max(seeds, LEAST_DELTA**2) * float(fdtri(between, within, 0.999)):
        return []
    return [
        f"The law misses the points by more than seeds explain (a run's spread {np.sqrt(seeds):.2%}, the misfit "
        f"{np.sqrt(misfit):.2%}): intervals and extrapolation are too sure of themselves."
    ]


class LeaveOut(NamedTuple):
    """What a law predicts of the largest runs when it was fitted without them, by cell."""

    names: tuple[str, ...]
    """Of each cell's first row."""
    measured: np.ndarray
    """Mean over seeds."""
    predicted: np.ndarray
    error: np.ndarray
    """Predicted over measured, less 1."""


def leave_out(law: Law, points: Points, which: str, *, huber: float | None = None) -> tuple[LeaveOut | None, str]:
    """Fit without the largest runs, and predict these.

    Args:
        law: its form.
        points: n.
        which: "size" (all rows of the largest N), "data" (of the largest D) or "compute" (the cell of the largest C).
        huber: as of `fit`.

    Returns:
        The prediction; or None and why what is left cannot be fitted.
    """
    key = {"size": points.parameters, "data": points.samples, "compute": points.flops}[which]
    out = points.cell == points.cell[key.argmax()] if which == "compute" else key == key.max()
    try:
        rest = fit(law, take(points, ~out), huber=huber)
    except UserError as error:
        return None, str(error)
    left = take(points, out)
    _, first, cell = np.unique(left.cell, return_index=True, return_inverse=True)
    measured = np.bincount(cell, left.loss) / np.bincount(cell)
    predicted = predict(rest, left)[first]
    return LeaveOut(tuple(left.names[i] for i in first), measured, predicted, predicted / measured - 1), ""


class Slice(NamedTuple):
    """Runs of one compute."""

    flops: float
    """Geometric mean."""
    parameters: float
    """Where the parabola is lowest."""
    samples: float
    loss: float
    sizes: int
    """How many were measured."""
    curve: np.ndarray
    """[3], the parabola of log loss in log N, highest power first."""


class IsoFlop(NamedTuple):
    """Compute-optimal sizes read off slices of equal compute: N = size_factor C^size_exponent, D alike."""

    slices: tuple[Slice, ...]
    size_exponent: float
    """NaN from one slice alone, as are the factor and those of D."""
    size_factor: float
    size_interval: tuple[float, float]
    """95%, of the exponent; NaN from fewer than 3 slices."""
    data_exponent: float
    data_factor: float
    data_interval: tuple[float, float]
    notes: list[str]
    """Slices left out, and why."""


class _Cells(NamedTuple):
    """A slice's cells, one a size and amount of data, in logs."""

    flops: float
    size: np.ndarray
    data: np.ndarray
    loss: np.ndarray
    """Mean over seeds."""


def _slices(points: Points, budgets: Sequence[float] | None) -> list[_Cells]:
    """Cells of each slice: near given budgets, or upwards from the smallest compute, all within a factor."""
    if budgets is not None:
        groups = [np.flatnonzero(np.abs(np.log(points.flops / budget)) <= np.log(SLICE)) for budget in budgets]
    else:
        groups = []
        rest = np.argsort(points.flops, kind="stable")
        while len(rest):
            near = points.flops[rest] <= SLICE * points.flops[rest[0]]
            if len(np.unique(points.parameters[rest[near]])) >= 4:
                groups.append(rest[near])
            rest = rest[~near]
    slices = []
    for rows in filter(len, groups):
        _, first, cell = np.unique(points.cell[rows], return_index=True, return_inverse=True)
        loss = np.bincount(cell, np.log(points.loss[rows])) / np.bincount(cell)
        flops, size, data = (np.log(x[rows]) for x in (points.flops, points.parameters, points.samples))
        slices.append(_Cells(float(flops.mean()), size[first], data[first], loss))
    return slices


def _lowest(cells: _Cells, curve: np.ndarray) -> tuple[float, float]:
    """log N where a parabola is lowest, and log D of the slice there; NaN if it opens downward."""
    size = -curve[1] / (2 * curve[0]) if curve[0] > 0 else np.nan
    return size, float(np.polyval(np.polyfit(cells.size, cells.data, 1), size))


def _powers(compute: np.ndarray, optima: np.ndarray) -> np.ndarray:
    """Exponents and log factors of N and D in C, [2, 2], of optima [slices, 2]; NaN from fewer than two."""
    known = ~np.isnan(optima[:, 0])
    return np.polyfit(compute[known], optima[known], 1) if known.sum() > 1 else np.full((2, 2), np.nan)


def isoflop(points: Points, slices: Sequence[float] | None = None, resamples: int = 200, seed: int = 0) -> IsoFlop:
    """Compute-optimal sizes without a law of the loss: a parabola of log loss in log N at each compute.

    Intervals come from a bootstrap of the parabolas' residuals, pooled over the slices and freed of the shrinkage of
    few points; with 4 or 5 sizes a slice, draws of whole rows would seldom leave a parabola.

    Args:
        points: n.
        slices: their compute; else rows whose compute agrees within 10%, in at least 4 sizes, are found.
        resamples: B.
        seed: of the draws.

    Raises:
        UserError: no slice can be used; says why each.
    """
    used, cells, notes = [], [], []
    for each in _slices(points, slices):
        name = f"The slice at {np.exp(each.flops):.3g} FLOPs is left out:"
        if (sizes := len(np.unique(each.size))) < 4:
            notes.append(f"{name} it has {sizes} sizes, 4 are needed.")
            continue
        curve = np.polyfit(each.size, each.loss, 2)
        size, data = _lowest(each, curve)
        if np.isnan(size):
            notes.append(f"{name} its parabola opens downward.")
        elif not each.size.min() <= size <= each.size.max():
            notes.append(
                f"{name} its parabola is lowest outside of the sizes measured; run sizes nearer {np.exp(size):.3g}."
            )
        else:
            flops, size, data, loss = np.exp([each.flops, size, data, float(np.polyval(curve, size))]).tolist()
            used.append(Slice(flops, size, data, loss, sizes, curve))
            cells.append(each)
    if not used:
        why = " ".join(notes) or "no 4 sizes have the same compute within 10%, run some that do."
        raise UserError(f"no slice of equal compute can be used. {why}")

    compute = np.array([each.flops for each in cells])
    powers = _powers(compute, np.log([(each.parameters, each.samples) for each in used]))
    ends = np.full((2, 2), np.nan)
    if len(used) > 2:
        fitted = [np.polyval(each.curve, each_cells.size) for each, each_cells in zip(used, cells)]
        residuals = np.concatenate([(c.loss - f) * np.sqrt(len(f) / (len(f) - 3)) for c, f in zip(cells, fitted)])
        rng = np.random.default_rng(seed)

        def resample() -> np.ndarray:
            losses = [f + rng.choice(residuals, len(f)) for f in fitted]
            optima = [_lowest(c, np.polyfit(c.size, loss, 2)) for c, loss in zip(cells, losses)]
            return _powers(compute, np.array(optima))[0]

        ends = np.nanpercentile([resample() for _ in range(resamples)], [2.5, 97.5], axis=0)
    return IsoFlop(
        slices=tuple(used),
        size_exponent=float(powers[0, 0]),
        size_factor=float(np.exp(powers[1, 0])),
        size_interval=(float(ends[0, 0]), float(ends[1, 0])),
        data_exponent=float(powers[0, 1]),
        data_factor=float(np.exp(powers[1, 1])),
        data_interval=(float(ends[0, 1]), float(ends[1, 1])),
        notes=notes,
    )


class Frontier(NamedTuple):
    """The lowest loss that a law foretells at given compute, and with how much of what."""

    flops: np.ndarray
    """[k], as asked for."""
    parameters: np.ndarray
    samples: np.ndarray
    loss: np.ndarray
    size_exponent: float
    """Of the optimal N in C."""
    data_exponent: float
    cost: tuple[float, float]
    """k and g of the compute of one sample, k N^g."""
    ends: dict[str, np.ndarray]
    """95% intervals by the names above, [2, k] or [2]; empty without a bootstrap."""


def frontier(fit: Fit, points: Points, flops: Sequence[float], intervals: Intervals | None = None) -> Frontier:
    """Minimise a law at given compute, in closed form: a A / N^a = g b B / D^b, where k N^g D = C.

    The cost of a sample is a line through the rows' log(C / D) in log N; g is near 1. Of the law `repeats` this is the
    frontier of captions that are not repeated.

    Args:
        fit: of a law in N and D.
        points: that it was made to.
        flops: budgets [k].
        intervals: of its bootstrap.

    Raises:
        UserError: the law has not both N and D.
    """
    if len(fit.law.axes) < 2:
        raise UserError(
            f"the law {fit.law.name} has no trade of N for D: fit chinchilla for a compute-optimal frontier"
        )
    budgets = np.asarray(flops, np.float64)
    g, log_k = np.polyfit(np.log(points.parameters), np.log(points.flops / points.samples), 1)

    theta = np.vstack([fit.theta, *([] if intervals is None else [intervals.samples])])
    e, log_a, log_b, a, b = theta.T[:5, :, None]
    # An exponent at 0 has no optimum; its ends become infinite or NaN rather than an error.
    with np.errstate(all="ignore"):
        size_exponent, data_exponent = b / (a + b * g), a / (a + b * g)
        size = (np.log(a) + log_a - np.log(g * b) - log_b + b * (np.log(budgets) - log_k)) / (a + b * g)
        data = np.log(budgets) - log_k - g * size
        logs = {
            "parameters": size,
            "samples": data,
            "loss": np.log(np.exp(e) + np.exp(log_a - a * size) + np.exp(log_b - b * data)),
        }
        powers = {"size_exponent": size_exponent[:, 0], "data_exponent": data_exponent[:, 0]}
        ends = {}
        if intervals is not None:
            ends = {name: np.exp(intervals.around(each[0], each[1:])) for name, each in logs.items()}
            ends |= {name: intervals.around(each[0], each[1:]) for name, each in powers.items()}
    return Frontier(
        flops=budgets,
        parameters=np.exp(logs["parameters"][0]),
        samples=np.exp(logs["samples"][0]),
        loss=np.exp(logs["loss"][0]),
        size_exponent=float(size_exponent[0, 0]),
        data_exponent=float(data_exponent[0, 0]),
        cost=(float(np.exp(log_k)), float(g)),
        ends=ends,
    )
