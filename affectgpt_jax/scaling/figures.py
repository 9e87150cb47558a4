"""The pictures of a study's report; each law as lines with the band of its bootstrap, each run as a mark."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from affectgpt_jax.inference.report.figures import Picture, Theme, drawing
from affectgpt_jax.scaling.findings import Difference, Finding
from affectgpt_jax.scaling.fitting import IsoFlop, frontier
from affectgpt_jax.scaling.points import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = 60
"""Of a curve."""
BEYOND = 3.0
"""How far curves go beyond the runs, as a factor."""
MARGIN = 1.1
"""Of a picture, around runs and lines, as a factor."""
DECADE = 10.0
"""Up to this factor an axis has plain numbers, beyond it powers of ten."""


def law_picture(finding: Finding) -> Picture:
    """Loss over captions (or parameters): runs, the law, its 95% band; a line for each size."""
    points, fitted = finding.points, finding.fit
    assert fitted is not None
    by_size = fitted.law.axes == ("parameters",)
    across = points.parameters if by_size else points.samples
    sizes = [None] if by_size else sorted(set(points.parameters.tolist()))

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.add_subplot()
        seen = [points.loss.min(), points.loss.max()]
        for colour, size in zip(_colours(len(sizes), theme), sizes, strict=True):
            mine = np.ones(len(across), bool) if size is None else points.parameters == size
            line = np.geomspace(across[mine].min(), across[mine].max() * BEYOND, PLACES)
            curve = _along(points, line, size, float(np.max(points.samples / points.unique)))
            low, middle, high = _band(finding, curve)
            axes.fill_between(line, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(line, middle, color=colour, linewidth=1.4, label=size and f"{_short(size)} parameters")
            axes.plot(across[mine], points.loss[mine], "o", color=colour, markersize=4)
            seen += [middle.min(), middle.max()]
        axes.set_ylim(min(seen) / MARGIN, max(seen) * MARGIN)  # however wide the bands are
        _log_axes(axes, "parameters" if by_size else "captions seen", _metric(finding))
        if sizes[0] is not None:
            figure.legend(loc="outside right upper", frameon=False, fontsize=8)

    told = f"{len(points.loss)} runs, {_metric(finding)} from {points.loss.max():.3g} to {points.loss.min():.3g}"
    return drawing(draw, (7.2, 4.4), f"{finding.title}: {told}; lines are the law {fitted.law.name}.")


def residual_picture(finding: Finding) -> Picture:
    """By how much each run lies above or below the law, over N and over D."""
    points, fitted = finding.points, finding.fit
    assert fitted is not None
    columns = [name for name in ("parameters", "samples") if len(np.unique(getattr(points, name))) > 1]
    titles = {"parameters": "parameters", "samples": "captions seen"}
    off = 100 * np.expm1(fitted.residuals)

    def draw(figure: "Figure", theme: Theme) -> None:
        for i, name in enumerate(columns):
            axes = figure.add_subplot(1, len(columns), i + 1)
            axes.axhline(0, color=theme.faint, linewidth=0.8)
            axes.axhspan(-196 * fitted.sigma, 196 * fitted.sigma, color=theme.faint, alpha=0.12, linewidth=0)
            axes.plot(getattr(points, name), off, "o", color=theme.series[0], markersize=4, alpha=0.8)
            axes.set_xscale("log")
            axes.set_xlabel(titles[name])
            axes.set_ylabel("measured above the law, %")
            axes.grid(axis="y", linewidth=0.8)

    worst = int(np.argmax(np.abs(off)))
    spread = f"from {off.min():+.1f}% to {off.max():+.1f}%"
    alt = f"Residuals of {finding.title}: {spread}, the largest of {points.names[worst]}."
    return drawing(draw, (7.2, 2.8), alt)


def frontier_picture(finding: Finding) -> Picture:
    """Compute-optimal sizes and captions over compute, with the runs."""
    points, fitted = finding.points, finding.fit
    assert fitted is not None
    budgets = np.geomspace(points.flops.min(), points.flops.max() * 30, PLACES)
    best = frontier(fitted, points, budgets.tolist(), finding.intervals)
    shown = {"parameters": ("parameters", points.parameters), "samples": ("captions seen", points.samples)}

    def draw(figure: "Figure", theme: Theme) -> None:
        for i, (name, (title, measured)) in enumerate(shown.items()):
            axes = figure.add_subplot(1, 2, i + 1)
            if best.ends:
                axes.fill_between(budgets, *best.ends[name], color=theme.series[0], alpha=0.15, linewidth=0)
            axes.plot(budgets, getattr(best, name), color=theme.series[0], label="optimal")
            axes.plot(points.flops, measured, "o", color=theme.series[1], markersize=3, label="runs")
            low, high = min(measured.min(), getattr(best, name).min()), max(measured.max(), getattr(best, name).max())
            axes.set_ylim(low / 3, high * 3)  # however wide the band is
            _log_axes(axes, "FLOPs", title)
            axes.legend(frameon=False, fontsize=8)

    alt = (
        f"Compute-optimal frontier of {finding.title}: parameters grow with compute to the power "
        f"{best.size_exponent:.2f}, captions to {best.data_exponent:.2f}."
    )
    return drawing(draw, (7.2, 3.2), alt)


def slices_picture(slices: IsoFlop, points: Points, title: str) -> Picture:
    """Loss over size at equal compute, with the parabolas and their lowest points."""

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.add_subplot()
        for colour, one in zip(_colours(len(slices.slices), theme), slices.slices, strict=True):
            near = np.abs(np.log(points.flops / one.flops)) < np.log(1.1)
            sizes = points.parameters[near]
            line = np.geomspace(sizes.min(), sizes.max(), PLACES)
            axes.plot(sizes, points.loss[near], "o", color=colour, markersize=4)
            curve = np.exp(np.polyval(one.curve, np.log(line)))
            axes.plot(line, curve, color=colour, linewidth=1.2, label=f"{one.flops:.1e} FLOPs")
            axes.plot([one.parameters], [one.loss], "D", color=theme.ink, markersize=5)
        _log_axes(axes, "parameters", "loss")
        axes.legend(frameon=False, fontsize=8)

    told = "; ".join(f"at {one.flops:.1e} FLOPs {_short(one.parameters)} parameters" for one in slices.slices)
    return drawing(draw, (7.2, 4.0), f"Slices of equal compute of {title}: lowest {told}.")


def difference_picture(found: Sequence[Difference], axis: str, metric: str) -> Picture:
    """What one axis changes, setting by setting, with 95% intervals."""
    rows = [one for one in found if one.setting]

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=theme.faint, linewidth=0.8)
        seconds = list(dict.fromkeys(one.second for one in rows))
        settings = list(dict.fromkeys(one.setting for one in rows))
        for i, second in enumerate(seconds):
            mine = [one for one in rows if one.second == second]
            places = [settings.index(one.setting) + 0.22 * (i - (len(seconds) - 1) / 2) for one in mine]
            reach = [0.0 if np.isnan(one.low) else one.change - one.low for one in mine]
            colour = theme.series[i % len(theme.series)]
            style: Any = {"fmt": "o", "color": colour, "markersize": 5, "capsize": 3, "linewidth": 1.2}
            axes.errorbar(
                [one.change for one in mine], places, xerr=reach, label=f"{second} - {mine[0].first}", **style
            )
        axes.set_yticks(range(len(settings)), settings)
        axes.invert_yaxis()
        axes.set_xlabel(f"change of the {metric}")
        axes.grid(axis="x", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)

    told = "; ".join(f"{one.second} {one.change:+.3f} at {one.setting}" for one in rows[:12])
    return drawing(draw, (7.2, 1.2 + 0.45 * len({one.setting for one in rows})), f"What {axis} changes: {told}.")


# ---------------------------------------------------------------------------------------------------------------------


def _along(points: Points, line: np.ndarray, size: float | None, repeats: float) -> Points:
    """Places on a curve: of one size over data, or (no size) over sizes."""
    ones = np.ones_like(line)
    parameters = line if size is None else size * ones
    samples = points.samples[0] * ones if size is None else line
    unique = samples / repeats
    return Points(parameters, samples, unique, ones, ones, np.arange(len(line)), ("",) * len(line))


def _band(finding: Finding, curve: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low end, law and high end along a curve."""
    fitted = finding.fit
    assert fitted is not None
    middle = fitted.law.predict(fitted.theta, curve)
    low = high = middle
    if finding.intervals is not None:
        every = np.array([fitted.law.predict(theta, curve) for theta in finding.intervals.samples])
        low, high = finding.intervals.around(middle, every)
    return np.exp(low), np.exp(middle), np.exp(high)


def _metric(finding: Finding) -> str:
    return "validation loss" if finding.metric == "loss" else f"1 - {finding.metric.replace('_', ' ')}"


def _log_axes(axes: "Axes", across: str, up: str) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(which="major", linewidth=0.8)
    low, high = axes.get_ylim()
    if high < DECADE * low:
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(NullLocator())


def _colours(count: int, theme: Theme) -> list[Any]:
    """From small to large; readable on light and dark ground."""
    from matplotlib import colormaps

    low, high = (0.0, 0.85) if theme.ground == "#ffffff" else (0.25, 1.0)
    return [colormaps["viridis"](place) for place in np.linspace(low, high, max(count, 1))]


def _short(number: float) -> str:
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"
