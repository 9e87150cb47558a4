"""The forms of scaling laws, as data: what is predicted from which parameters, and where a fit starts.

`chinchilla` is approach 3 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3), `repeats` the data-constrained law
of Muennighoff et al. 2023 (arXiv 2305.16264, section 3.1), `saturating` the same curve in one variable.

A fit's parameters, `theta`, are logarithms of what must be positive, and the exponents as they are. Functions of theta
are analytic, so that derivatives may be taken with complex steps.

Axes: n points, p parameters, S starts.
"""

from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.scaling.points import Points

LOWEST, HIGHEST = 1e-3, 4.0
"""Of an exponent; nothing measured comes near them."""
GRID = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2)
"""Exponents that a fit starts from."""


class Units(NamedTuple):
    """What N, D and the loss are counted in during a fit, so that the fit does not depend on the table's units."""

    parameters: float
    samples: float
    loss: float


class Law(NamedTuple):
    """One form of law."""

    name: str
    parameters: tuple[str, ...]
    """Names [p], in theta's order."""
    exponents: tuple[str, ...]
    """Those of them that theta holds as they are; of the others it holds the logarithm."""
    axes: tuple[str, ...]
    """Fields of `Points` that must vary."""
    predict: Callable[[np.ndarray, Points], np.ndarray]
    """Of theta [p] and points in some units: log of the loss [n]; of theta [p, m, 1]: [m, n]."""
    starts: Callable[[Points], np.ndarray]
    """Of points in units near 1: theta [S, p]."""
    low: np.ndarray
    """Lower bounds of theta [p] in units near 1."""
    high: np.ndarray
    plain: Callable[[np.ndarray, Units], np.ndarray]
    """Theta [..., p] of points in these units, turned into theta of the points as they are."""


def units_of(points: Points) -> Units:
    """Geometric means of N, D and the loss."""
    return Units(*(float(np.exp(np.log(x).mean())) for x in (points.parameters, points.samples, points.loss)))


def in_units(points: Points, units: Units) -> Points:
    """The points with N, D, U and loss counted in these units."""
    return points._replace(
        parameters=points.parameters / units.parameters,
        samples=points.samples / units.samples,
        unique=points.unique / units.samples,
        loss=points.loss / units.loss,
    )


def named(law: Law, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Values by name, each [...].

    Args:
        law: p parameters.
        theta: of the points as they are, [..., p].
    """
    return {
        name: theta[..., i] if name in law.exponents else np.exp(theta[..., i]) for i, name in enumerate(law.parameters)
    }


def _linear_starts(points: Points, exponents: tuple[float, ...], *terms: np.ndarray) -> list[float]:
    """With the exponents held a law is linear in E, A, B: theta of their least relative squares, kept positive."""
    columns = np.stack([np.ones_like(points.loss), *(x**-a for x, a in zip(terms, exponents))], axis=1)
    solution = np.linalg.lstsq(columns / points.loss[:, None], np.ones_like(points.loss), rcond=None)[0]
    return [*np.log(np.maximum(solution, 0.01)), *exponents]


def _bounds(coefficients: int, exponents: int, repeats: int = 0) -> tuple[np.ndarray, np.ndarray]:
    low = [-15.0] * coefficients + [LOWEST] * exponents + [np.log(0.01)] * repeats
    high = [15.0] * coefficients + [HIGHEST] * exponents + [np.log(1e4)] * repeats
    return np.array(low), np.array(high)


def _log_sum(*logs: np.ndarray) -> np.ndarray:
    """log of the sum of what these are logarithms of; `np.logaddexp` takes no complex numbers."""
    largest = reduce(np.maximum, [x.real for x in logs])
    return largest + np.log(sum(np.exp(x - largest) for x in logs))


def _two_terms(theta: np.ndarray, size: np.ndarray, data: np.ndarray) -> np.ndarray:
    """log(E + A / N^a + B / D^b) of log N and log D."""
    e, log_a, log_b, a, b = theta[:5]
    return _log_sum(e, log_a - a * size, log_b - b * data)


def _two_terms_plain(theta: np.ndarray, units: Units) -> np.ndarray:
    shift = np.zeros_like(theta)
    shift[..., :3] = np.log(units.loss)
    shift[..., 1] += theta[..., 3] * np.log(units.parameters)
    shift[..., 2] += theta[..., 4] * np.log(units.samples)
    return theta + shift


def _chinchilla(theta: np.ndarray, points: Points) -> np.ndarray:
    return _two_terms(theta, np.log(points.parameters), np.log(points.samples))


def _chinchilla_starts(points: Points) -> np.ndarray:
    terms = points.parameters, points.samples
    return np.array([_linear_starts(points, exponents, *terms) for exponents in product(GRID, GRID)])


def _worth(first: np.ndarray, excess: np.ndarray, decay: Any) -> np.ndarray:
    """What repeats are worth: Muennighoff et al., equation 5, F (1 + R* (1 - exp(-R / R*))) with R = T / F - 1.

    Args:
        first: log F, of what is worth its full number.
        excess: log(T / F), of all there is.
        decay: R*.
    """
    return first + np.log(1 - decay * np.expm1(-np.expm1(excess) / decay))


def _repeats(theta: np.ndarray, points: Points) -> np.ndarray:
    _, log_a, log_b, a, b, decay_data, decay_size = theta
    size, unique = np.log(points.parameters), np.log(points.unique)
    # Beyond the size that the distinct captions alone would call for; what is e^50 times too large is worth no more.
    excess = size - (np.log(a) + log_a - np.log(b) - log_b + b * unique) / a
    excess = np.where(excess.real > 0, np.where(excess.real < 50, excess, 50), 0)
    return _two_terms(
        theta,
        _worth(size - excess, excess, np.exp(decay_size)),
        _worth(unique, np.log(points.samples / points.unique), np.exp(decay_data)),
    )


def _repeats_starts(points: Points) -> np.ndarray:
    def start(a: float, b: float, decay: float) -> list[float]:
        data = np.exp(_worth(np.log(points.unique), np.log(points.samples / points.unique), decay))
        return [*_linear_starts(points, (a, b), points.parameters, data), np.log(decay), np.log(5.0)]

    return np.array([start(*each) for each in product(GRID[1:-1], GRID[1:-1], (3.0, 15.0, 60.0))])


def _saturating(field: str, unit: str) -> Law:
    def predict(theta: np.ndarray, points: Points) -> np.ndarray:
        e, log_a, a = theta
        return _log_sum(e, log_a - a * np.log(getattr(points, field)))

    def starts(points: Points) -> np.ndarray:
        grid = np.geomspace(GRID[0] / 2, 2 * GRID[-1], 30)
        return np.array([_linear_starts(points, (a,), getattr(points, field)) for a in grid])

    def plain(theta: np.ndarray, units: Units) -> np.ndarray:
        shift = np.zeros_like(theta)
        shift[..., :2] = np.log(units.loss)
        shift[..., 1] += theta[..., 2] * np.log(getattr(units, field))
        return theta + shift

    return Law(f"saturating{unit}", ("E", "A", "a"), ("a",), (field,), predict, starts, *_bounds(2, 1), plain)


_AXES = ("parameters", "samples")

LAWS = {
    law.name: law
    for law in (
        Law(
            "chinchilla",
            ("E", "A", "B", "a", "b"),
            ("a", "b"),
            _AXES,
            _chinchilla,
            _chinchilla_starts,
            *_bounds(3, 2),
            _two_terms_plain,
        ),
        Law(
            "repeats",
            ("E", "A", "B", "a", "b", "R_D", "R_N"),
            ("a", "b"),
            _AXES,
            _repeats,
            _repeats_starts,
            *_bounds(3, 2, 2),
            _two_terms_plain,
        ),
        _saturating("samples", ""),
        _saturating("parameters", "-size"),
    )
}
"""By name: L = E + A/N^a + B/D^b; the same of what repeated captions are worth; L = E + A/D^a; L = E + A/N^a."""
