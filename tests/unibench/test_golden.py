"""Every published score, from the released predictions, to the last digit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from affectgpt_jax.unibench.datasets import DATASETS, METRICS, find_dataset
from affectgpt_jax.unibench.evaluation import DatasetResult, Settings, evaluate
from affectgpt_jax.unibench.metrics import values
from affectgpt_jax.unibench.paper import COLUMNS, TABLE_2
from affectgpt_jax.unibench.predictions import find_checkpoints, read_answers, read_predictions
from affectgpt_jax.unibench.scoring import set_overlap
from affectgpt_jax.unibench.truth import read_truth
from affectgpt_jax.unibench.wheel import WheelTable

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def golden(unibench: Path) -> dict[str, Any]:
    return json.loads((unibench / "golden.json").read_text())


@pytest.fixture(scope="module")
def results(unibench: Path, official: WheelTable, golden: dict[str, Any]) -> dict[str, DatasetResult]:
    """Every dataset that the golden file has scores of against its labels."""
    keys = {entry.split("/")[0] for task in ("basic", "sentiment") for entry in golden[task]} | set(
        golden["paper_table"]
    )
    found = {}
    for key in sorted(keys):
        dataset = find_dataset(key)
        truth = read_truth(dataset, unibench / "labels")
        found[key] = evaluate(truth, unibench / "predictions" / key, official, Settings(resamples=0))
    return found


@pytest.mark.parametrize("task", ["basic", "sentiment"])
def test_every_checkpoint(task: str, golden: dict[str, Any], results: dict[str, DatasetResult]) -> None:
    assert golden[task]
    for entry, expected in golden[task].items():
        key, epoch = entry.split("/")
        (checkpoint,) = [c for c in results[key].checkpoints if c.name.startswith(f"checkpoint_{epoch}_")]
        for name, value in expected.items():
            assert checkpoint.scores["reference"][name].value == pytest.approx(value, abs=TOLERANCE), (entry, name)


def test_fine_grained(unibench: Path, official: WheelTable, golden: dict[str, Any]) -> None:
    """The labels of one checkpoint (or the dataset's own) as truth, those of another as prediction, at every level."""
    assert golden["fine_grained"]
    for entry, expected in golden["fine_grained"].items():
        key, truth, predicted, level = entry.split("/")
        true, found = (_labels(unibench, key, part.split("=")[1]) for part in (truth, predicted))
        measure = set_overlap(list(true.values()), [found[name] for name in true], official, "reference", level)
        assert values(measure) == pytest.approx(expected, abs=TOLERANCE), entry


def _labels(unibench: Path, key: str, epoch: str) -> Mapping[str, tuple[str, ...]]:
    """Labels of a checkpoint, or the dataset's own where there is no such checkpoint."""
    for file in (unibench / "predictions" / key).glob(f"checkpoint_{epoch}_*-openset.npz"):
        return read_predictions(file, "fine-grained").labels
    truth = read_truth(find_dataset(key), unibench / "labels")
    return dict(zip(truth.names, truth.labels, strict=True))


def test_paper_table(golden: dict[str, Any], results: dict[str, DatasetResult]) -> None:
    assert golden["paper_table"]
    published = dict(zip(COLUMNS, TABLE_2[-1].scores, strict=True))
    for key, printed in golden["paper_table"].items():
        result = results[key]
        best = result.best("reference").scores["reference"][result.dataset.primary].value
        assert f"{100 * best:.2f}" == f"{printed:.2f}"
        assert published[result.dataset.key] == printed


def test_own_labels_score_one(unibench: Path, official: WheelTable) -> None:
    """A perfect prediction scores 1 on real labels, for every dataset whose labels lie there."""
    for folder in sorted((unibench / "predictions").iterdir()):
        labels = read_predictions(find_checkpoints(folder, "basic")[0], "basic").labels
        scores = values(set_overlap(list(labels.values()), list(labels.values()), official, "strict"))
        assert scores == pytest.approx({"f_score": 1, "precision": 1, "recall": 1}, abs=TOLERANCE)


def test_raw_answers_and_labels_are_of_the_same_clips(unibench: Path) -> None:
    for folder in sorted((unibench / "predictions").iterdir()):
        for file in find_checkpoints(folder, "basic"):
            answers = read_answers(file.with_name(file.name.replace("-openset", "")))
            assert answers.keys() == read_predictions(file, "basic").labels.keys()


def test_strict_scores_neutral_clips(results: dict[str, DatasetResult]) -> None:
    for result in results.values():
        best = result.best("strict")
        if result.dataset.task == "basic":
            assert best.measures["strict"].scored.all()
            neutral = [words == ("neutral",) for words in result.truth.labels]
            assert not (result.best("reference").measures["reference"].scored & neutral).any()
        assert result.chosen["strict"] == len(result.checkpoints) - 1


def test_published_means() -> None:
    """The paper's means are unweighted ones over its nine columns."""
    assert set(COLUMNS) == {dataset.key for dataset in DATASETS}
    for row in TABLE_2:
        assert sum(row.scores) / len(COLUMNS) == pytest.approx(row.mean, abs=0.011), row


def test_counts_of_the_benchmark() -> None:
    clips = {dataset.key: dataset.clips for dataset in DATASETS}
    assert [clips[key] for key in ("mer2023", "mer2024", "meld", "iemocap")] == [411, 1169, 2610, 1241]
    assert [clips[key] for key in ("cmumosi", "cmumosei", "sims", "simsv2", "ovmerdplus")] == [
        686,
        4659,
        457,
        1034,
        532,
    ]
    assert all(dataset.metrics == METRICS[dataset.task] for dataset in DATASETS)
