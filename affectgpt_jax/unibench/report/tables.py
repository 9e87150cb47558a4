"""What a report says, as plain tables; `render` and `html` give them a form."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, Dataset
from affectgpt_jax.unibench.evaluation import CheckpointResult, DatasetResult, Settings, SystemResult
from affectgpt_jax.unibench.intervals import Score, paired_differences
from affectgpt_jax.unibench.metrics import SENTIMENT_CLASSES, class_sets, values, wheel_values
from affectgpt_jax.unibench.paper import COLUMNS, TABLE_2
from affectgpt_jax.unibench.predictions import sentiment_signs
from affectgpt_jax.unibench.wheel import RULESETS, Ruleset, WheelTable, label_rows

NOTHING = "-"
METRIC_TITLES: Mapping[str, str] = {
    "hit_rate": "hit rate",
    "m_score": "m-score",
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "f_score": "F",
    "precision": "precision",
    "recall": "recall",
}
RULESET_NOTE = (
    "reference: the published rules (neutral clips not scored; best checkpoint on the test clips). "
    "strict: neutral is scored, a word's own place on a wheel comes before its synonyms', a neutral sentiment is an "
    "error, the checkpoint is not chosen on the test clips. Brackets: 95% bootstrap interval."
)
MOST_ERRORS = 10


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        header: column titles.
        rows: cells.
        note: what to know when reading it.
        breaks: indices of the rows before which a line is drawn.
        names: how many columns at the left hold text; the others hold numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    breaks: tuple[int, ...] = ()
    names: int = 1


@dataclass(frozen=True)
class Report:
    """One or more systems, scored alike.

    Attributes:
        systems: the first is the one that others are compared with.
        table: the emotion table they were scored with.
        settings: how they were scored.
    """

    systems: tuple[SystemResult, ...]
    table: WheelTable
    settings: Settings


def percent(value: float) -> str:
    """A score in percent, as the paper prints it."""
    return NOTHING if np.isnan(value) else f"{100 * value:.2f}"


def with_interval(score: Score) -> str:
    """A score in percent with its interval."""
    if np.isnan(score.low):
        return percent(score.value)
    return f"{percent(score.value)} [{percent(score.low)}, {percent(score.high)}]"


def short_name(checkpoint: str) -> str:
    """A checkpoint's name without what all share: "checkpoint_000030_loss_0.602" becomes "000030"."""
    parts = checkpoint.split("_")
    return parts[1] if len(parts) > 1 and parts[0] == "checkpoint" else checkpoint


def scored_datasets(report: Report) -> list[Dataset]:
    """The datasets of a report in the order of the paper's table; the synthetic one comes last."""
    known = (*DATASETS, SYNTHETIC)
    return [dataset for dataset in known if any(dataset.key in system.datasets for system in report.systems)]


def summary(report: Report) -> Table:
    """Both rulesets side by side: every dataset of every system."""
    rows = []
    for system in report.systems:
        for result in system.datasets.values():
            dataset = result.dataset
            row = [system.name, dataset.title, METRIC_TITLES[dataset.primary]]
            for ruleset in RULESETS:
                best = result.best(ruleset)
                row += [
                    with_interval(best.scores[ruleset][dataset.primary]),
                    f"{short_name(best.name)} ({result.rule[ruleset]})",
                    f"{int(best.measures[ruleset].scored.sum()):,}",
                ]
            rows.append(tuple(row))
    columns = [f"{ruleset}{what}" for ruleset in RULESETS for what in ("", " checkpoint", " clips")]
    note = f"{RULESET_NOTE} Emotion table: {report.table.name}."
    return Table("Scores under both rulesets", ("System", "Dataset", "Metric", *columns), tuple(rows), note, names=3)


def main_table(report: Report, *, paper: bool = True) -> Table:
    """All nine datasets and their mean, beside the paper's table."""
    shown = [dataset for dataset in scored_datasets(report) if dataset in DATASETS]
    partial = 1 < len(shown) < len(DATASETS)
    rows = []
    for system in report.systems:
        for ruleset in RULESETS:
            scores = {
                key: result.best(ruleset).scores[ruleset][result.dataset.primary].value
                for key, result in system.datasets.items()
            }
            means = [_mean(scores, DATASETS), *([_mean(scores, shown)] if partial else [])]
            cells = [scores.get(dataset.key, np.nan) for dataset in DATASETS]
            rows.append((f"{system.name}, {ruleset}", *map(percent, cells + means)))
    own = len(rows)
    for row in TABLE_2 if paper else ():
        published = {key: score / 100 for key, score in zip(COLUMNS, row.scores, strict=True)}
        means = [row.mean / 100, *([_mean(published, shown)] if partial else [])]
        cells = [published[dataset.key] for dataset in DATASETS]
        rows.append((f"{row.system} ({row.inputs}+T), paper", *map(percent, cells + means)))
    header = ("System", *(dataset.title for dataset in DATASETS), "Mean")
    return Table(
        "MER-UniBench",
        (*header, f"Mean of {len(shown)}") if partial else header,
        tuple(rows),
        "Hit rate for MER2023 to IEMOCAP, weighted F1 for CMU-MOSI to CH-SIMS v2, F of label sets for OV-MERD+; "
        "percent. Rows of the paper: Table 2, best checkpoint on the test clips for AffectGPT.",
        (own,) if paper else (),
    )


def _mean(scores: Mapping[str, float], datasets: Sequence[Dataset]) -> float:
    """Mean over datasets; NaN unless all of them are scored."""
    return float(np.mean([scores.get(dataset.key, np.nan) for dataset in datasets]))


def checkpoint_table(system: str, result: DatasetResult) -> Table:
    """Every checkpoint on a dataset, both rulesets side by side."""
    dataset = result.dataset
    rows = []
    for i, checkpoint in enumerate(result.checkpoints):
        marks = [ruleset for ruleset in RULESETS if result.chosen[ruleset] == i]
        cells = [
            with_interval(checkpoint.scores[ruleset][name]) if name == dataset.primary
            else percent(checkpoint.scores[ruleset][name].value)
            for ruleset in RULESETS
            for name in dataset.metrics
        ]  # fmt: skip
        rows.append((short_name(checkpoint.name), *cells, ", ".join(marks)))
    columns = [f"{METRIC_TITLES[name]} {ruleset}" for ruleset in RULESETS for name in dataset.metrics]
    rules = "; ".join(f"{ruleset}: {result.rule[ruleset]}" for ruleset in RULESETS)
    best = percent(result.best("reference").scores["reference"][dataset.primary].value)
    return Table(
        f"{dataset.title}: checkpoints of {system}",
        ("Checkpoint", *columns, "counts for"),
        tuple(rows),
        f"Best {METRIC_TITLES[dataset.primary]} under the reference rules: {best}. Checkpoint that counts: {rules}.",
    )


def wheel_table(result: DatasetResult) -> Table | None:
    """The metrics on each wheel, of the checkpoints that count; None where a dataset is scored without wheels."""
    if result.dataset.task == "sentiment":
        return None
    by_ruleset = {ruleset: wheel_values(result.best(ruleset).measures[ruleset]) for ruleset in RULESETS}
    wheels = len(by_ruleset["reference"][result.dataset.primary])
    rows = []
    for k in range(wheels):
        scores = [by_ruleset[r][name][k] for r in RULESETS for name in result.dataset.metrics]
        rows.append((f"wheel {k + 1}", *map(percent, scores)))
    columns = [f"{METRIC_TITLES[name]} {ruleset}" for ruleset in RULESETS for name in result.dataset.metrics]
    return Table(f"{result.dataset.title}: wheels", ("Wheel", *columns), tuple(rows))


def class_table(result: DatasetResult, table: WheelTable, settings: Settings) -> Table:
    """The score of each class, of the checkpoints that count."""
    task = result.dataset.task
    if task == "basic":
        return _hit_classes(result)
    return _sentiment_classes(result) if task == "sentiment" else _set_classes(result, table, settings)


def _hit_classes(result: DatasetResult) -> Table:
    labels = np.array([words[0] for words in result.truth.labels])
    rows = []
    for name in result.dataset.classes:
        inside = labels == name
        scores = [values(result.best(r).measures[r].only(inside))["hit_rate"] for r in RULESETS]
        rows.append((name, f"{int(inside.sum()):,}", *map(percent, scores)))
    header = ("Class", "clips", *(f"hit rate {ruleset}" for ruleset in RULESETS))
    return Table(f"{result.dataset.title}: classes", header, tuple(rows))


def _sentiment_classes(result: DatasetResult) -> Table:
    rows = []
    for sign, name in zip((-1, 1), SENTIMENT_CLASSES, strict=True):
        inside = np.sign(result.truth.values) == sign
        for ruleset in RULESETS:
            best = result.best(ruleset)
            answers = sentiment_signs(best.answers)[inside]
            counts = [f"{int((answers == answer).sum()):,}" for answer in (-1, 0, 1)]
            recall = values(best.measures[ruleset].only(inside))["accuracy"]
            rows.append((f"{name}, {ruleset}", f"{int(inside.sum()):,}", *counts, percent(recall)))
    header = ("Class", "clips", "answered negative", "neither", "positive", "recall")
    return Table(f"{result.dataset.title}: classes", header, tuple(rows))


def _set_classes(result: DatasetResult, table: WheelTable, settings: Settings) -> Table:
    """Precision and recall of each class of the first wheel, over clips."""
    rows = []
    for ruleset in RULESETS:
        grouping = table.grouping(ruleset, settings.level)
        true = class_sets(label_rows(result.truth.labels, table), grouping)[0]
        found = class_sets(label_rows(result.best(ruleset).answers, table), grouping)[0]
        for i, name in enumerate(grouping.classes[0]):
            word, bit = divmod(i, 64)
            t, f = ((sets[:, word] >> np.uint64(bit)) & np.uint64(1) == 1 for sets in (true, found))
            if not (t.any() or f.any()):
                continue
            both = float((t & f).sum())
            shares = [both / n if n else np.nan for n in (f.sum(), t.sum())]
            rows.append((f"{name}, {ruleset}", f"{t.sum():,}", f"{f.sum():,}", *map(percent, shares)))
    header = ("Class", "clips true", "clips predicted", "precision", "recall")
    return Table(f"{result.dataset.title}: classes of wheel 1", header, tuple(rows))


def error_table(result: DatasetResult) -> Table:
    """The most frequent errors of the checkpoint that counts under `strict`."""
    best = result.best("strict")
    pairs = Counter(_errors(result, best))
    rows = tuple((truth, answer, f"{count:,}") for (truth, answer), count in pairs.most_common(MOST_ERRORS))
    what = {
        "basic": "Clips that are hit on no wheel, and a label they were given.",
        "sentiment": "Clips with the wrong sentiment, and what they were given.",
        "fine-grained": "True labels of clips that share no class with the answer on any wheel, and a label given.",
    }
    return Table(
        f"{result.dataset.title}: most frequent errors",
        ("Truth", "Answer", "times"),
        rows,
        what[result.dataset.task],
        names=2,
    )


def _errors(result: DatasetResult, checkpoint: CheckpointResult) -> Iterator[tuple[str, str]]:
    """(truth, answered label) of each error."""
    measure = checkpoint.measures["strict"]
    for i in np.flatnonzero(measure.scored & ~measure.right):
        truths = result.truth.labels[i] or (SENTIMENT_CLASSES[int(result.truth.values[i] > 0)],)
        for truth in truths:
            for answer in sorted(set(map(str.lower, checkpoint.answers[i]))) or ["(none)"]:
                yield truth.lower(), answer


def difference_tables(report: Report) -> list[Table]:
    """The first system against each other one, on the datasets that both have."""
    first, *others = report.systems
    tables = []
    for other in others:
        rows = []
        for key, result in first.datasets.items():
            if key not in other.datasets:
                continue
            cells = [_difference(result, other.datasets[key], ruleset, report.settings) for ruleset in RULESETS]
            rows.append((result.dataset.title, METRIC_TITLES[result.dataset.primary], *cells))
        note = f"{other.name} minus {first.name}, same clips, paired. An interval without 0 is a difference."
        title = f"Difference of {other.name} to {first.name}"
        tables.append(Table(title, ("Dataset", "Metric", *RULESETS), tuple(rows), note, names=2))
    return tables


def _difference(first: DatasetResult, second: DatasetResult, ruleset: Ruleset, settings: Settings) -> str:
    before, after = (result.best(ruleset).measures[ruleset] for result in (first, second))
    differences = paired_differences(before, after, settings.resamples, settings.seed)
    return with_interval(differences[first.dataset.primary])


def overview_tables(report: Report, *, paper: bool = True) -> list[Table]:
    """The tables that come first: both rulesets, the benchmark beside the paper, differences."""
    tables = [summary(report), *difference_tables(report)]
    if any(dataset in DATASETS for dataset in scored_datasets(report)):  # the synthetic corpus is no part of it
        tables.insert(1, main_table(report, paper=paper))
    return tables


def dataset_tables(report: Report, system: SystemResult, result: DatasetResult, *, details: bool) -> list[Table]:
    """The tables of one dataset: checkpoints, and in detail classes, wheels and errors."""
    tables: list[Table | None] = [checkpoint_table(system.name, result)]
    if details:
        tables += [
            class_table(result, report.table, report.settings),
            wheel_table(result),
            error_table(result),
        ]
    return [table for table in tables if table is not None]
