"""What a run folder holds, read without a model: settings, curves, scores, answers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.calibration import FOLDER, SUMMARY

Scores = Mapping[str, Any]
"""A scores.json (`inference.evaluate.write_evaluation`)."""


@dataclass(frozen=True)
class RunRecord:
    """A run, as far as its folder tells.

    Attributes:
      folder: the run folder.
      config: its settings.
      curves: metric -> float64 [n], `step` among them; empty if nothing was logged.
      scores: what evaluation found; None if it has not run.
      answers: lines of answers.jsonl; empty if there are none.
      scored: what `affectgpt labels` left of the newest checkpoint that it scored.
      others: other evaluations below the run folder, by folder name.
      facts: what the newest checkpoint says about its training; empty if there is none.
      gaps: what is missing or damaged, in sentences, each with what to do about it.
    """

    folder: Path
    config: RunConfig
    curves: Mapping[str, npt.NDArray[np.float64]]
    scores: Scores | None
    answers: Sequence[Mapping[str, Any]]
    scored: "Scored"
    others: Mapping[str, Scores]
    facts: Mapping[str, Any]
    gaps: Sequence[str]

    @property
    def corpus(self) -> Path | None:
        """The folder of clips that was answered, if it can be found here."""
        named = [self.scores.get("corpus", "")] if self.scores else []
        return next((Path(p) for p in (*named, self.config.prepare.corpus) if p and (Path(p) / "video").is_dir()), None)


class Scored(NamedTuple):
    """Labels by scores of a vocabulary, as far as `affectgpt labels` has made them.

    Attributes:
      calibration: calibration.json; empty if there is none.
      summary: SPLIT.summary.json, of the answered split if there is one of it; empty if there is none.
      clips: lines of SPLIT.jsonl by the clip's name.
    """

    calibration: Mapping[str, Any]
    summary: Mapping[str, Any]
    clips: Mapping[str, Mapping[str, Any]]


def read_record(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
      UserError: it is none, or its config cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; train first, or name another folder")
    gaps: list[str] = []
    metrics = _lines(folder / "metrics.jsonl", "`affectgpt train` writes it", gaps)
    scores = _scores(folder / "scores.json")
    if scores is None:
        gaps.append(f"scores.json is missing or damaged: run `affectgpt evaluate {folder}`.")
    others = {path.parent.name: _scores(path) for path in sorted(folder.glob("*/scores.json"))}
    return RunRecord(
        folder=folder,
        config=load_config(folder / "config.yaml"),
        curves=_curves(metrics),
        scores=scores,
        answers=_lines(folder / "answers.jsonl", f"run `affectgpt evaluate {folder}`", gaps),
        scored=_scored(folder / FOLDER, scores, gaps),
        others={name: found for name, found in others.items() if found is not None},
        facts=_facts(folder / "checkpoints"),
        gaps=gaps,
    )


def _scored(folder: Path, scores: Scores | None, gaps: list[str]) -> Scored:
    places = sorted({path.parent for path in folder.glob("step*/*.json")})
    if not places:
        return Scored({}, {}, {})
    summaries = {path.name.removesuffix(SUMMARY): path for path in sorted(places[-1].glob(f"*{SUMMARY}"))}
    split = (scores or {}).get("split")
    if split not in summaries:
        split = next(iter(summaries), None)
    calibration = _json(places[-1] / "calibration.json")
    if split is None:
        return Scored(calibration, {}, {})
    lines = _lines(places[-1] / f"{split}.jsonl", "`affectgpt labels` writes it", gaps)
    return Scored(calibration, _json(summaries[split]), {line["name"]: line for line in lines if "name" in line})


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lines(path: Path, remedy: str, gaps: list[str]) -> list[dict[str, Any]]:
    """Lines of a JSONL file; one that was cut off by a kill is left out."""
    if not path.is_file():
        gaps.append(f"{path.name} is missing: {remedy}.")
        return []
    lines = []
    damaged = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            damaged += 1
    if damaged:
        gaps.append(f"{path.name} has {damaged} unreadable line{'s' * (damaged > 1)}, left out here.")
    return lines


def _curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Metrics by name; where a run that went on repeats a step, its last word counts."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in metrics:
        if "step" in line:
            by_step[line["step"]] = {**by_step.get(line["step"], {}), **line}
    steps = sorted(by_step)
    names = dict.fromkeys(name for step in steps for name in by_step[step])
    return {name: np.array([by_step[step].get(name, np.nan) for step in steps], np.float64) for name in names}


def _scores(path: Path) -> Scores | None:
    found = _json(path)
    return found if found.get("scores") else None


def _facts(checkpoints: Path) -> dict[str, Any]:
    """Facts of the newest checkpoint. The file is read as it lies: opening the folder for Orbax would tidy it up, which
    must not happen below a training that is under way."""
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    return _json(checkpoints / str(max(steps, default=0)) / "facts" / "metadata")
