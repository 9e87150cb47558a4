"""A system on a dataset: every checkpoint under both rulesets, and which of them counts.

The two rulesets differ in what is scored (`unibench.wheel`, `unibench.metrics`) and in which checkpoint is reported:
`reference` reports the best one on the test clips themselves, metric by metric of the primary score, as the paper
does; `strict` one that was fixed beforehand or chosen on validation clips.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import Dataset
from affectgpt_jax.unibench.intervals import Score, intervals
from affectgpt_jax.unibench.metrics import Measure, class_sets, hit_measure, sentiment_measure, set_measure, values
from affectgpt_jax.unibench.predictions import Predictions, find_checkpoints, read_predictions, sentiment_signs
from affectgpt_jax.unibench.truth import Truth
from affectgpt_jax.unibench.wheel import RULESETS, Level, Ruleset, WheelTable, label_rows

Missing = Literal["error", "wrong", "skip"]
"""What to do about clips without a prediction: refuse, count as answered with nothing, or leave out of the scores."""

Answers = tuple[tuple[str, ...], ...]
"""The predicted labels of each clip."""

LONG_LIST = 50
"""A label list with more words than this is reported: it inflates recall and the hit rate."""


@dataclass(frozen=True)
class Settings:
    """How to score.

    Attributes:
        level: ring of the wheels, or a case without wheels.
        resamples: bootstrap resamples; 0 for no intervals.
        seed: of the bootstrap.
        missing: what to do about clips without a prediction.
        checkpoint: for `strict`, the checkpoint fixed beforehand: a part of its name; None for the last one.
        drop: for `strict`, names of clips that are not scored because training has seen them.
    """

    level: Level = "level1"
    resamples: int = 1000
    seed: int = 0
    missing: Missing = "error"
    checkpoint: str | None = None
    drop: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CheckpointResult:
    """One checkpoint on one dataset.

    Attributes:
        name: of the checkpoint.
        answers: the predicted labels of each clip, in the order of the truth.
        measures: ruleset -> terms of the clips.
        scores: ruleset -> score name -> value and interval.
    """

    name: str
    answers: Answers
    measures: Mapping[Ruleset, Measure]
    scores: Mapping[Ruleset, Mapping[str, Score]]


@dataclass(frozen=True)
class DatasetResult:
    """A system on one dataset.

    Attributes:
        truth: the ground truth.
        checkpoints: the results of each checkpoint.
        chosen: ruleset -> index of the checkpoint that counts.
        rule: ruleset -> how it was chosen, in words.
        findings: what the data held that a reader should know.
    """

    truth: Truth
    checkpoints: tuple[CheckpointResult, ...]
    chosen: Mapping[Ruleset, int]
    rule: Mapping[Ruleset, str]
    findings: tuple[str, ...]

    @property
    def dataset(self) -> Dataset:
        """The dataset."""
        return self.truth.dataset

    def best(self, ruleset: Ruleset) -> CheckpointResult:
        """The checkpoint that counts under a ruleset."""
        return self.checkpoints[self.chosen[ruleset]]


@dataclass(frozen=True)
class SystemResult:
    """A system on every dataset it was scored on.

    Attributes:
        name: of the system.
        datasets: dataset key -> result.
    """

    name: str
    datasets: Mapping[str, DatasetResult]


def measures(
    truth: Truth, runs: Sequence[Answers], table: WheelTable, ruleset: Ruleset, level: Level = "level1"
) -> list[Measure]:
    """The terms of a dataset's metrics for several checkpoints, whose words are looked up in one go.

    Args:
        truth: of N clips.
        runs: per checkpoint, the predicted labels (sentiment: the one sentiment word) of the same clips.
        table: emotion table; not used for sentiment.
        ruleset: the rules.
        level: ring of the wheels, or a case without wheels.
    """
    if truth.dataset.task == "sentiment":
        return [sentiment_measure(truth.values, sentiment_signs(answers), ruleset) for answers in runs]
    grouping = table.grouping(ruleset, level)
    true = class_sets(label_rows(truth.labels, table), grouping)
    found = class_sets(label_rows(list(chain.from_iterable(runs)), table), grouping)
    measure = hit_measure if truth.dataset.task == "basic" else set_measure
    clips = len(truth.names)
    return [measure(true, found[:, i * clips : (i + 1) * clips]) for i in range(len(runs))]


def evaluate(
    truth: Truth,
    predictions: Path,
    table: WheelTable,
    settings: Settings,
    validation: tuple[Truth, Path] | None = None,
) -> DatasetResult:
    """Score every checkpoint of a system on a dataset under both rulesets.

    Args:
        truth: the ground truth.
        predictions: the system's prediction files (`find_checkpoints`).
        table: emotion table.
        settings: how to score.
        validation: truth and predictions of validation clips, on which `strict` then chooses its checkpoint.

    Returns:
        The results, with the checkpoint that counts under either ruleset.

    Raises:
        UserError: a file is broken, predictions are missing (`Settings.missing`), or no checkpoint fits.
    """
    loaded = [read_predictions(path, truth.dataset.task) for path in find_checkpoints(predictions, truth.dataset.task)]
    return evaluate_loaded(truth, loaded, table, settings, validation)


def evaluate_loaded(
    truth: Truth,
    loaded: Sequence[Predictions],
    table: WheelTable,
    settings: Settings,
    validation: tuple[Truth, Path] | None = None,
) -> DatasetResult:
    """`evaluate` on predictions that are already read."""
    aligned = [align(truth, predictions, settings.missing) for predictions in loaded]
    unseen = np.fromiter((clip not in settings.drop for clip in truth.names), bool, len(truth.names))
    runs = [answers for answers, _, _ in aligned]
    terms = {ruleset: measures(truth, runs, table, ruleset, settings.level) for ruleset in RULESETS}
    checkpoints = []
    for i, (answers, present, _) in enumerate(aligned):
        keep = {"reference": present, "strict": present & unseen}
        kept = {ruleset: terms[ruleset][i].only(keep[ruleset]) for ruleset in RULESETS}
        scores = {ruleset: intervals(kept[ruleset], settings.resamples, settings.seed) for ruleset in RULESETS}
        name = loaded[i].checkpoint
        checkpoints.append(CheckpointResult(name, answers, MappingProxyType(kept), MappingProxyType(scores)))
    findings = [finding for _, _, found in aligned for finding in found]
    if dropped := int((~unseen).sum()):
        findings.append(f"{dropped:,} clips shared with training are left out under strict")
    primary = [result.scores["reference"][truth.dataset.primary].value for result in checkpoints]
    strict, rule = _strict_choice([result.name for result in checkpoints], table, settings, validation)
    return DatasetResult(
        truth,
        tuple(checkpoints),
        MappingProxyType({"reference": int(np.argmax(np.nan_to_num(primary))), "strict": strict}),
        MappingProxyType({"reference": f"best of {len(checkpoints)} on the test clips", "strict": rule}),
        tuple(findings),
    )


def align(truth: Truth, predictions: Predictions, missing: Missing) -> tuple[Answers, np.ndarray, list[str]]:
    """Put predictions in the order of the truth.

    Args:
        truth: of N clips.
        predictions: by clip name.
        missing: what to do about clips without a prediction.

    Returns:
        The N answers (empty where missing), bool [N] saying which clips are scored, and findings in words.

    Raises:
        UserError: no name is in common, or predictions are missing and `missing` is `error`.
    """
    where, names = predictions.path.name, truth.names
    found = [predictions.labels.get(name) for name in names]
    present = np.fromiter((words is not None for words in found), bool, len(names))
    absent = [names[i] for i in np.flatnonzero(~present)]
    # names are unique on both sides, so only a difference in number needs a look at the rest
    extra = set(predictions.labels).difference(names) if len(predictions.labels) != present.sum() else set()
    if names and not present.any():
        raise UserError(
            f"{predictions.path}: none of its {len(predictions.labels):,} names is a clip of {truth.dataset.title} "
            f"(which has {names[0]!r}, ...; the file has {min(extra, default='none')!r}). "
            "Are these predictions for another dataset?"
        )
    findings = []
    if absent:
        text = f"{where}: {len(absent):,} of {len(names):,} clips have no prediction: {_some(absent)}"
        if missing == "error":
            raise UserError(f"{text}. Predict them, or score with --missing wrong or --missing skip")
        findings.append(f"{text}; {'counted as wrong' if missing == 'wrong' else 'left out of the scores'}")
    if extra:
        findings.append(
            f"{where}: {len(extra):,} predictions are for no clip of {truth.dataset.title}: {_some(sorted(extra))}"
        )
    answers = tuple(words or () for words in found)
    lengths = np.fromiter(map(len, answers), np.int64, len(answers))
    if empty := int((lengths[present] == 0).sum()):
        findings.append(f"{where}: {empty:,} answers hold no label and are scored as such")
    if (long := lengths[lengths > LONG_LIST]).size:
        findings.append(f"{where}: {long.size:,} answers list more than {LONG_LIST} labels, the longest {long.max():,}")
    return answers, present if missing == "skip" else np.ones_like(present), findings


def _some(names: Collection[str], most: int = 10) -> str:
    """The first names, and how many more."""
    text = ", ".join(list(names)[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most:,} more"


def _strict_choice(
    names: Sequence[str], table: WheelTable, settings: Settings, validation: tuple[Truth, Path] | None
) -> tuple[int, str]:
    """Index of the checkpoint that `strict` reports, and why."""
    if settings.checkpoint is not None:
        fits = [i for i, name in enumerate(names) if settings.checkpoint in name]
        if len(fits) != 1:
            raise UserError(
                f"--checkpoint {settings.checkpoint!r} fits {len(fits)} checkpoints; expected one of {', '.join(names)}"
            )
        return fits[0], "fixed beforehand"
    if validation is None:
        return len(names) - 1, "the last one"
    truth, folder = validation
    best: dict[str, float] = {}
    for path in find_checkpoints(folder, truth.dataset.task):
        predictions = read_predictions(path, truth.dataset.task)
        answers, present, _ = align(truth, predictions, settings.missing)
        (terms,) = measures(truth, [answers], table, "strict", settings.level)
        best[predictions.checkpoint] = values(terms.only(present))[truth.dataset.primary]
    known = [name for name in names if name in best]
    if not known:
        raise UserError(f"{folder} has validation predictions of none of the checkpoints {', '.join(names)}")
    return names.index(max(known, key=lambda name: best[name])), f"best of {len(known)} on the validation clips"
