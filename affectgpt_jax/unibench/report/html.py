"""The report as one HTML page that needs nothing else: tables, bars with intervals, checkpoint curves."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from affectgpt_jax.unibench.evaluation import DatasetResult
from affectgpt_jax.unibench.paper import COLUMNS, TABLE_2
from affectgpt_jax.unibench.report.tables import (
    METRIC_TITLES,
    Report,
    Table,
    dataset_tables,
    overview_tables,
    scored_datasets,
    short_name,
)
from affectgpt_jax.unibench.wheel import RULESETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"reference": "#4477aa", "strict": "#cc6677"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 78rem; margin: 2rem auto;
       padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; } th, td { padding: .2rem .6rem; text-align: right;
white-space: nowrap; } .name { text-align: left; } thead { border-bottom: 2px solid #888; }
tr.break { border-top: 2px solid #888; } tbody tr:hover { background: #f3f3f3; } p.note, li { color: #555; }
svg { max-width: 100%; height: auto; }
"""
_BREAK, _NAME = ' class="break"', ' class="name"'


def page(report: Report, *, paper: bool = True) -> str:
    """The whole report.

    Args:
        report: the systems and how they were scored.
        paper: show the paper's table beside them.

    Returns:
        An HTML document without references to other files.
    """
    names = ", ".join(system.name for system in report.systems)
    body = [f"<h1>MER-UniBench: {escape(names)}</h1>", _settings(report)]
    body += [table_html(table) for table in overview_tables(report, paper=paper)]
    body += ["<h2>Scores with their intervals</h2>", _svg(bars(report, paper=paper))]
    for system in report.systems:
        for result in system.datasets.values():
            body.append(f"<h2>{escape(result.dataset.title)}: {escape(system.name)}</h2>")
            if len(result.checkpoints) > 1:
                body.append(_svg(curve(result)))
            body += [table_html(table) for table in dataset_tables(report, system, result, details=True)]
            if result.findings:
                body.append(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in result.findings)}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>MER-UniBench</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _settings(report: Report) -> str:
    settings = report.settings
    return (
        f'<p class="note">Emotion table: {escape(report.table.name)} ({report.table.fingerprint[:12]}), '
        f"{escape(settings.level)}. Intervals: {settings.resamples} bootstrap resamples of the clips, "
        f"seed {settings.seed}. Clips without a prediction: {escape(settings.missing)}.</p>"
    )


def table_html(table: Table) -> str:
    """A table as HTML."""
    head = _cells("th", table.header, table.names)
    rows = "\n".join(
        f"<tr{_BREAK if i in table.breaks else ''}>{_cells('td', row, table.names)}</tr>"
        for i, row in enumerate(table.rows)
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _cells(tag: str, cells: Sequence[str], names: int) -> str:
    return "".join(f"<{tag}{_NAME if i < names else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells))


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # slow to import, and only the page needs it

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: "Figure") -> str:
    """A figure as an SVG element."""
    import matplotlib as mpl

    buffer = io.StringIO()
    # text as text, a fixed salt and no date: the same report is the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "affectgpt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)


def bars(report: Report, *, paper: bool = True) -> "Figure":
    """The primary score of every dataset with its interval, both rulesets, and the paper's AffectGPT as a line."""
    shown = scored_datasets(report)
    keys = [dataset.key for dataset in shown]
    series = [(system, ruleset) for system in report.systems for ruleset in RULESETS]
    figure = _figure(4 + len(keys), 3.6)
    axes = figure.subplots()
    width = 0.8 / len(series)
    for i, (system, ruleset) in enumerate(series):
        for x, key in enumerate(keys):
            if key not in system.datasets:
                continue
            result = system.datasets[key]
            score = result.best(ruleset).scores[ruleset][result.dataset.primary]
            low, high = 100 * (score.value - score.low), 100 * (score.high - score.value)
            axes.bar(
                x - 0.4 + width * (i + 0.5), 100 * score.value, width * 0.9, yerr=[[max(low, 0)], [max(high, 0)]],
                color=COLOURS[ruleset], alpha=1 - 0.5 * (i // 2) / len(report.systems), capsize=3,
                label=f"{system.name}, {ruleset}" if key == next(iter(system.datasets)) else "",
            )  # fmt: skip
    if paper:
        published = dict(zip(COLUMNS, TABLE_2[-1].scores, strict=True))
        for x, key in enumerate(key for key in keys if key in published):
            axes.hlines(published[key], x - 0.42, x + 0.42, color="#333333", linestyle="--", linewidth=1,
                        label="AffectGPT, paper" if x == 0 else "")  # fmt: skip
    axes.set_xticks(range(len(keys)), [dataset.title for dataset in shown])
    axes.set_ylabel("primary score, %")
    axes.set_ylim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def curve(result: DatasetResult) -> "Figure":
    """The primary score of each checkpoint with its interval, both rulesets."""
    figure = _figure(7, 2.8)
    axes = figure.subplots()
    names = [short_name(checkpoint.name) for checkpoint in result.checkpoints]
    for ruleset in RULESETS:
        scores = [checkpoint.scores[ruleset][result.dataset.primary] for checkpoint in result.checkpoints]
        _band(axes, [score.low for score in scores], [score.high for score in scores], COLOURS[ruleset])
        axes.plot(
            range(len(scores)), [100 * score.value for score in scores], "o-", color=COLOURS[ruleset], label=ruleset
        )
        chosen = result.chosen[ruleset]
        axes.plot(
            [chosen], [100 * scores[chosen].value], "o", markersize=11, markerfacecolor="none", color=COLOURS[ruleset]
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(f"{METRIC_TITLES[result.dataset.primary]}, %")
    axes.set_xlabel("checkpoint (circle: the one that counts)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _band(axes: "Axes", low: Sequence[float], high: Sequence[float], colour: str) -> None:
    axes.fill_between(range(len(low)), [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.15)
