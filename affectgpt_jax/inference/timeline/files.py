"""A timeline on disk: a table, records, a plot."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from affectgpt_jax.inference.calibration import Vocabulary, group_probabilities
from affectgpt_jax.inference.report.figures import LIGHT
from affectgpt_jax.inference.timeline import Timeline, clock
from affectgpt_jax.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOP = 8
"""Labels that are shown at most: more curves cannot be told apart."""

FAINT = 0.01
"""Labels that are never likelier are not shown."""

PEOPLE = 6
"""People who are plotted, those who are seen in most windows."""

COLOURS = (
    ("#2563c9", "#82aaff"),
    ("#c4501b", "#ff9e6b"),
    ("#0f8a68", "#5fd3ad"),
    ("#8b5cc7", "#c4a5ee"),
    ("#97750a", "#e4c05a"),
    ("#c2337f", "#f48fc0"),
    ("#2b86b0", "#7cc8ea"),
    ("#6b7280", "#a9b1be"),
)
"""Of the labels, on light and on dark ground."""

DASHES = ("-", "-", "-", "-", "--", "--", "--", "--")

By = Literal["wheel", "words"]


class Curves(NamedTuple):
    """What is drawn.

    Attributes:
      names: of the labels, the likeliest on average first.
      values: float64 [n, labels], their probabilities by record; not a number where there is none.
    """

    names: tuple[str, ...]
    values: np.ndarray


def curves(timeline: Timeline, vocabulary: Vocabulary, by: By) -> Curves:
    """The labels with the largest mean probability, without those that never have any to speak of.

    Args:
      timeline: what was found.
      vocabulary: its words.
      by: `words`, or `wheel`: groups of words on the (first) emotion wheel.
    """
    names, values = vocabulary.words, timeline.words
    if by == "wheel":
        names, values = vocabulary.names[0], group_probabilities(values, vocabulary)[0]
    known = ~np.isnan(values).any(axis=1)
    means, most = (values[known].mean(axis=0), values[known].max(axis=0)) if known.any() else np.zeros((2, len(names)))
    order = [i for i in np.argsort(-means, kind="stable")[:TOP].tolist() if most[i] >= FAINT]
    return Curves(tuple(names[i] for i in order), values[:, order])


def valences(timeline: Timeline) -> np.ndarray | None:
    """The valence by record, not a number where the answer has none: float64 [n]; None if it was not asked for."""
    if not any("valence" in record for record in timeline.records):
        return None
    numbers = [record.get("valence") for record in timeline.records]
    return np.array([np.nan if number is None else number for number in numbers], np.float64)


def write_csv(path: Path, timeline: Timeline, shown: Curves) -> None:
    """One row a window and person; a column p_LABEL for each label that is shown."""
    valence = valences(timeline)
    with replacing(path) as draft, draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file)
        columns = ("start", "end", "person", "labels", "answer", *([] if valence is None else ["valence"]))
        table.writerow([*columns, "words", "absent", "error", *(f"p_{name}" for name in shown.names)])
        for record, values in zip(timeline.records, shown.values, strict=True):
            row = [f"{record['start']:g}", f"{record['end']:g}", record["person"], ", ".join(record["labels"])]
            number = record.get("valence")
            row += [record["answer"], *([] if valence is None else ["" if number is None else f"{number:g}"])]
            row += [record["words"], ", ".join(record["absent"]), record.get("error", "")]
            table.writerow([*row, *("" if np.isnan(x) else f"{x:.6f}" for x in values)])


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines."""
    with replacing(path) as draft, draft.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def spans(timeline: Timeline, person: str) -> list[list[int]]:
    """Numbers of a person's records, in runs of windows that follow each other."""
    starts = sorted({record["start"] for record in timeline.records})
    place = {start: i for i, start in enumerate(starts)}
    runs: list[list[int]] = []
    for number, record in enumerate(timeline.records):
        if record["person"] != person:
            continue
        if runs and place[record["start"]] - place[timeline.records[runs[-1][-1]]["start"]] == 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def plotted(timeline: Timeline) -> list[str]:
    """Who is drawn: those who are seen in most windows, in the order in which they appear."""
    counts: dict[str, int] = {}
    for record in timeline.records:
        counts[record["person"]] = counts.get(record["person"], 0) + 1
    most = sorted(counts, key=lambda person: (person == "", -counts[person]))[:PEOPLE]
    return sorted(most, key=lambda person: (person == "", int(person or 0)))


def person_name(person: str, timeline: Timeline) -> str:
    """How a person is called."""
    several = len({record["person"] for record in timeline.records}) > 1
    if not several:
        return "all windows"
    return f"person {person}" if person else "nobody in the picture"


def middle(record: Mapping[str, Any]) -> float:
    """Where a window is drawn, in seconds."""
    return float(record["start"] + record["end"]) / 2


def write_plot(path: Path, timeline: Timeline, shown: Curves) -> None:
    """Curves of probabilities over time, one panel a person; below each the valence, where it was asked for."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    people = plotted(timeline)
    valence = valences(timeline)
    heights = [height for _ in people for height in ((2.6,) if valence is None else (2.6, 1.2))]
    style: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(11, 0.9 + sum(heights)), layout="constrained", facecolor=LIGHT.ground)
        panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        rest = iter(panels)
        for person in people:
            axes = next(rest)
            runs = spans(timeline, person)
            for k, name in enumerate(shown.names):
                _line(axes, timeline, runs, shown.values[:, k], k, name)
            axes.set_ylim(0, ceiling(shown.values))
            axes.set_ylabel("probability")
            axes.set_title(person_name(person, timeline), loc="left", fontsize=10, fontweight="bold")
            if axes is panels[0]:
                axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
            if valence is not None:
                axes = next(rest)
                _line(axes, timeline, runs, valence, 0, "valence")
                axes.set_ylim(*timeline.limits)
                axes.axhline(0, color=LIGHT.faint, linewidth=0.8)
                axes.set_ylabel("valence")
        for axes in panels:
            axes.grid(axis="y", linewidth=0.6, color=LIGHT.grid)
        panels[-1].set_xlim(0, timeline.seconds)
        panels[-1].xaxis.set_major_formatter(lambda value, _: clock(max(value, 0)))
        panels[-1].set_xlabel("time; each point is the middle of a window")
        figure.suptitle(f"{timeline.video.name}   ({timeline.run}, step {timeline.step})", fontsize=11)
        with replacing(path) as draft:
            figure.savefig(draft, format="png", dpi=144, metadata={"Software": None})


def _line(
    axes: "Axes", timeline: Timeline, runs: Sequence[Sequence[int]], values: np.ndarray, k: int, name: str
) -> None:
    for number, run in enumerate(runs):
        x, y = [middle(timeline.records[i]) for i in run], values[list(run)]
        style: Any = {"color": COLOURS[k][0], "linestyle": DASHES[k], "linewidth": 1.6}
        # A point alone has no line.
        axes.plot(x, y, marker="o" if len(run) < 30 else None, markersize=3, label=None if number else name, **style)


def ceiling(values: np.ndarray) -> float:
    """The top of the axis: the largest probability, rounded up to a tenth."""
    known = values[~np.isnan(values)]
    return float(min(1.0, np.ceil(known.max(initial=0.0) * 10 + 0.2) / 10)) if known.size else 1.0
