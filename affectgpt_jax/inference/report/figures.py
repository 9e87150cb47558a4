"""The report's pictures, each drawn twice: for light and for dark pages."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.inference.report.groups import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = npt.NDArray[np.float64]


PAGE_DPI = 96
"""Pixels of a page to an inch."""
COLOURS = 128
"""Of a picture, shades of its edges included."""


class Theme(NamedTuple):
    """Colours of one page ground."""

    ink: str
    faint: str
    grid: str
    series: tuple[str, str, str]
    ground: str


LIGHT = Theme("#1d2433", "#667085", "#e3e7ee", ("#2563c9", "#c4501b", "#0f8a68"), "#ffffff")
DARK = Theme("#e7eaf0", "#98a2b3", "#2b313d", ("#82aaff", "#ff9e6b", "#5fd3ad"), "#181c24")


class Picture(NamedTuple):
    """A drawing.

    Attributes:
      light: PNG for light pages.
      dark: PNG for dark pages.
      size: width and height in pixels of a page.
      alt: what it shows, in words.
    """

    light: bytes
    dark: bytes
    size: tuple[int, int]
    alt: str


def drawing(draw: Callable[["Figure", Theme], None], size: tuple[float, float], alt: str) -> Picture:
    """Draw under both themes; the ground stays transparent."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = []
    for theme in (LIGHT, DARK):
        colours: dict[Any, Any] = {
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.faint,
            "xtick.color": theme.faint,
            "ytick.color": theme.faint,
            "grid.color": theme.grid,
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "font.size": 9,
        }
        with rc_context(colours):
            figure = Figure(figsize=size, layout="constrained")
            draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=1.5 * PAGE_DPI, transparent=True)
        drawn.append(_small(buffer))
    width, height = (round(length * PAGE_DPI) for length in size)
    return Picture(drawn[0], drawn[1], (width, height), alt)


def _small(drawn: io.BytesIO) -> bytes:
    """A PNG with a palette, a third of the bytes."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(drawn) as image:
        image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Training


def smooth(values: Curve, width: float) -> Curve:
    """Average around each point under a Gaussian; what is not finite is passed over.

    Args:
      values: [n].
      width: standard deviation in points.
    """
    reach = int(np.ceil(3 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    finite = np.isfinite(values)

    def spread(x: Curve) -> Curve:
        return np.convolve(x, kernel)[reach : reach + len(x)]

    weights = spread(finite.astype(np.float64))
    sums = spread(np.where(finite, values, 0.0))
    return np.divide(sums, weights, out=np.full_like(sums, np.nan), where=weights > 0)


_PANELS = {
    "loss": "loss (nats a target token)",
    "accuracy": "target tokens right",
    "learning_rate": "learning rate",
    "samples_per_s": "samples a second",
}
_NOISY = ("loss", "accuracy", "samples_per_s")


def training_curves(curves: Mapping[str, Curve], expected: Sequence[tuple[int, float]]) -> Picture | None:
    """Loss, accuracy, learning rate and speed over steps; raw and smoothed. None if nothing was logged.

    Args:
      curves: what was logged, by name.
      expected: samples seen and loss then of another run, drawn where this run has seen or will have seen as many.
    """
    names = [name for name in _PANELS if name in curves]
    if not names or not len(curves["step"]):
        return None
    marks = _steps_at([samples for samples, _ in expected], curves)

    def draw(figure: "Figure", theme: Theme) -> None:
        for i, name in enumerate(names):
            axes = figure.add_subplot(2, 2, i + 1)
            _curve(axes, curves["step"], curves[name], theme, noisy=name in _NOISY)
            if (held_out := curves.get(f"validation_{name}")) is not None:
                known = np.isfinite(held_out)
                style: Any = {"marker": "o", "markersize": 3, "linewidth": 1, "color": theme.series[1]}
                axes.plot(curves["step"][known], held_out[known], label="held out", **style)
            if name == "loss" and len(marks):
                style = {"marker": "D", "markersize": 4, "linewidth": 1, "linestyle": "--", "color": theme.series[2]}
                axes.plot(marks, [loss for _, loss in expected], label="expected", **style)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
            axes.set_title(_PANELS[name])
            axes.set_xlabel("optimizer step")

    def ends(name: str) -> str:
        values = smooth(curves[name], _width(curves[name]))
        start = curves[name][np.isfinite(curves[name])][:1]
        return f"{_PANELS[name]} {start.sum():.3g} at the start, {values[-1]:.3g} at the end (smoothed)"

    first, last = curves["step"][[0, -1]].astype(int)
    alt = f"Training curves from step {first} to {last}: " + "; ".join(map(ends, names)) + "."
    if len(marks):
        told = (f"{loss:.3g} at step {mark:,.0f}" for mark, (_, loss) in zip(marks, expected, strict=True))
        alt += f" Expected losses: {', '.join(told)}."
    return drawing(draw, (10.2, 5.8), alt)


def _steps_at(samples: Sequence[int], curves: Mapping[str, Curve]) -> Curve:
    """The steps that go, or at the run's mean pace will go, through so many samples; none if it does not say."""
    known = np.isfinite(curves["samples"]) if "samples" in curves else np.zeros(0, bool)
    if not samples or not known.any():
        return np.zeros(0)
    seen, steps = (np.concatenate([[0.0], curves[name][known]]) for name in ("samples", "step"))
    inside = np.interp(samples, seen, steps)
    return np.where(np.asarray(samples) > seen[-1], np.asarray(samples) * steps[-1] / seen[-1], inside)


def _width(values: Curve) -> float:
    return max(len(values) / 40, 1.0)


def _curve(axes: "Axes", steps: Curve, values: Curve, theme: Theme, *, noisy: bool) -> None:
    colour = theme.series[0]
    axes.grid(axis="y", linewidth=0.8)
    if noisy:
        axes.plot(steps, values, color=colour, alpha=0.5, linewidth=0.9, label="as logged")
        axes.plot(steps, smooth(values, _width(values)), color=colour, linewidth=2, label="smoothed")
        axes.set_ylim(bottom=0)
    else:
        axes.plot(steps, values, color=colour, linewidth=1.8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def need_bars(by_need: Mapping[str, Mapping[str, Any]], plain: str) -> Picture:
    """Hit rate on the clips that need a modality: with everything, without it, with another clip's."""
    cases = {"with everything": plain, "without it": "without {}", "with another clip's": "shuffled {}"}

    def rate(modality: str, case: str) -> float | None:
        return by_need[modality]["hit_rate"].get(cases[case].format(modality))

    def draw(figure: "Figure", theme: Theme) -> None:
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        width = 0.8 / len(cases)
        for k, (case, colour) in enumerate(zip(cases, theme.series, strict=True)):
            places = [(x + (k - 1) * width, rate(modality, case)) for x, modality in enumerate(by_need)]
            bars = [(x, height) for x, height in places if height is not None]
            axes.bar([x for x, _ in bars], [y for _, y in bars], width * 0.92, color=colour, label=case)
            for x, height in bars:
                axes.text(x, height + 0.015, f"{height:.2f}", ha="center", fontsize=8)
        titles = [f"clips that need {modality}\n({entry['clips']})" for modality, entry in by_need.items()]
        axes.set_xticks(range(len(by_need)), titles)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.1)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.set_ylabel("hit rate")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    parts = [
        f"clips that need {modality}: "
        + ", ".join(f"{case} {value:.2f}" for case in cases if (value := rate(modality, case)) is not None)
        for modality in by_need
    ]
    return drawing(draw, (8.4, 3.2), f"Hit rates. {'; '.join(parts)}.")


def reliability(fits: Mapping[str, Sequence[Sequence[float]]]) -> Picture:
    """How often the likeliest group is true, over its probability.

    Args:
      fits: by name the bins with clips (`calibration.Fit.bins`): clips, mean probability, share that is true.
    """

    def draw(figure: "Figure", theme: Theme) -> None:
        largest = max(clips for bins in fits.values() for clips, _, _ in bins)
        for i, (name, bins) in enumerate(fits.items()):
            axes = figure.add_subplot(1, len(fits), i + 1, aspect="equal")
            axes.grid(linewidth=0.8)
            axes.set_axisbelow(True)
            axes.plot([0, 1], [0, 1], linewidth=1, linestyle="--", color=theme.faint)
            clips, found, right = np.array(bins, np.float64).T
            axes.plot(found, right, linewidth=1.2, color=theme.series[i % 3])
            axes.scatter(found, right, s=12 + 130 * clips / largest, color=theme.series[i % 3], zorder=3)
            axes.set(xlim=(-0.02, 1.04), ylim=(-0.04, 1.06), xlabel="probability", title=name)
            if not i:
                axes.set_ylabel("share that is true")

    parts = [
        f"{name}: " + ", ".join(f"{right:.2f} true at {found:.2f} ({clips:.0f})" for clips, found, right in bins)
        for name, bins in fits.items()
    ]
    return drawing(draw, (3.3 * len(fits), 3.4), f"Reliability. {'; '.join(parts)}.")


def confusion_picture(table: Confusion) -> Picture:
    """True group by answered group: clips, shaded by their share of the row."""
    totals = table.counts.sum(axis=1, keepdims=True)
    shares = table.counts / np.maximum(totals, 1)

    def draw(figure: "Figure", theme: Theme) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.add_subplot()
        shade = LinearSegmentedColormap.from_list("shade", [theme.grid, theme.series[0]])
        axes.imshow(shares, cmap=shade, vmin=0, vmax=1, aspect="auto")
        for i, j in np.argwhere(table.counts):
            ink = theme.ground if shares[i, j] > 0.5 else theme.ink
            axes.text(j, i, str(table.counts[i, j]), ha="center", va="center", color=ink)
        axes.set_xticks(range(len(table.columns)), table.columns, rotation=30, ha="right")
        axes.set_yticks(range(len(table.rows)), _row_titles(table))
        axes.set_xlabel("answered")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(0.5, len(table.columns) - 1), minor=True)
        axes.set_yticks(np.arange(0.5, len(table.rows) - 1), minor=True)
        axes.grid(which="minor", color=theme.ground, linewidth=2)
        axes.tick_params(which="minor", length=0)

    right = {row: table.counts[i, table.columns.index(row)] / totals[i, 0] for i, row in enumerate(table.rows)}
    alt = (
        "Share of clips answered with the true group: " + ", ".join(f"{row} {x:.0%}" for row, x in right.items()) + "."
    )
    return drawing(draw, (1.9 + 0.78 * len(table.columns), 1.3 + 0.42 * len(table.rows)), alt)


def _row_titles(table: Confusion) -> Sequence[str]:
    return [f"{row} ({count})" for row, count in zip(table.rows, table.counts.sum(axis=1), strict=True)]
