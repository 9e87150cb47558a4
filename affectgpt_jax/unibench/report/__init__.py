"""Reports of MER-UniBench scores: terminal, Markdown, LaTeX, one HTML page, JSON."""

import json
import math
from pathlib import Path
from typing import Any

from affectgpt_jax.unibench.report.html import page
from affectgpt_jax.unibench.report.render import latex, markdown
from affectgpt_jax.unibench.report.tables import Report, Table, dataset_tables, overview_tables
from affectgpt_jax.unibench.wheel import RULESETS


def all_tables(report: Report, *, paper: bool = True) -> list[Table]:
    """Every table of a report, in reading order."""
    tables = overview_tables(report, paper=paper)
    for system in report.systems:
        for result in system.datasets.values():
            tables += dataset_tables(report, system, result, details=True)
    return tables


def scores(report: Report) -> dict[str, Any]:
    """All scores as plain data, from 0 to 1; None where nothing was scored."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "emotion_table": report.table.name,
        "fingerprint": report.table.fingerprint,
        "level": report.settings.level,
        "resamples": report.settings.resamples,
        "seed": report.settings.seed,
        "systems": {
            system.name: {
                key: {
                    "checkpoints": {
                        checkpoint.name: {
                            ruleset: {
                                name: {"value": plain(score.value), "low": plain(score.low), "high": plain(score.high)}
                                for name, score in checkpoint.scores[ruleset].items()
                            }
                            for ruleset in RULESETS
                        }
                        for checkpoint in result.checkpoints
                    },
                    "counts": {ruleset: result.best(ruleset).name for ruleset in RULESETS},
                    "rule": dict(result.rule),
                    "findings": list(result.findings),
                }
                for key, result in system.datasets.items()
            }
            for system in report.systems
        },
    }


def write(report: Report, folder: Path, *, paper: bool = True) -> list[Path]:
    """Write the report in every form.

    Args:
        report: the systems and how they were scored.
        folder: where; made if missing.
        paper: show the paper's table beside them.

    Returns:
        The files: report.html, report.md, report.tex, scores.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = all_tables(report, paper=paper)
    content = {
        "report.html": page(report, paper=paper),
        "report.md": "# MER-UniBench\n\n" + "\n".join(map(markdown, tables)),
        "report.tex": "\n".join(map(latex, tables)),
        "scores.json": json.dumps(scores(report), indent=2, ensure_ascii=False) + "\n",
    }
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in content]
