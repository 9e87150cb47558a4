"""The synthetic corpus as a tenth dataset: its truth, and a score of predictions about it."""

import json
from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, find_dataset
from affectgpt_jax.unibench.truth import read_truth
from data_prep.synth import SplitCounts, sample_specs, write_corpus

LABELS = "name,openset\na,\"['happy', 'calm']\"\nb,['sad']\nc,[]\nd,['angry']\n"
SPLITS = "name,split\nd,test\na,train\nb,validation\nc,test\n"


def tables(folder: Path, labels: str = LABELS, splits: str | None = SPLITS) -> Path:
    """The two tables of a corpus that say what is true."""
    folder.mkdir(exist_ok=True)
    (folder / "track2_train_mercaptionplus.csv").write_text(labels, encoding="utf-8")
    if splits is not None:
        (folder / "synth_splits.csv").write_text(splits, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "corpus"
    write_corpus(folder, SplitCounts(train=2, validation=1, test=2), seed=3, workers=1)
    return folder


def test_it_is_found_but_no_part_of_the_benchmark() -> None:
    assert find_dataset("synthetic") is find_dataset("Synthetic") is SYNTHETIC
    assert len(DATASETS) == 9
    assert SYNTHETIC not in DATASETS
    assert len({dataset.key for dataset in (*DATASETS, SYNTHETIC)}) == 10
    assert SYNTHETIC.primary == "f_score"
    with pytest.raises(UserError, match=r"unknown dataset 'mosey'; expected one of mer2023, .*ovmerdplus, synthetic$"):
        find_dataset("mosey")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_truth_is_what_the_generator_drew(corpus: Path, split: str) -> None:
    truth = read_truth(SYNTHETIC, corpus, "test" if split == "test" else "validation")
    drawn = sample_specs(3, split, 2 if split == "test" else 1)
    assert truth.names == tuple(spec.name for spec in drawn)
    assert truth.labels == tuple(spec.labels for spec in drawn)
    assert truth.path == corpus / "track2_train_mercaptionplus.csv"


def test_order_splits_and_empty_labels(tmp_path: Path) -> None:
    truth = read_truth(SYNTHETIC, tables(tmp_path / "synthetic").parent)  # the folder above will do
    assert dict(zip(truth.names, truth.labels, strict=True)) == {"c": ("neutral",), "d": ("angry",)}
    assert truth.names == ("c", "d")
    assert read_truth(SYNTHETIC, tmp_path / "synthetic", "validation").labels == (("sad",),)
    unlisted = tables(tmp_path / "unlisted", splits="name,split\nd,test\n")
    assert read_truth(SYNTHETIC, unlisted).names == ("d",)  # as preparation has it: what is in no split is for training


@pytest.mark.parametrize(
    ("labels", "splits", "fault"),
    [
        (LABELS, None, r"there is no .*synth_splits\.csv, which says which clips of track2.* are scored"),
        (LABELS, "name,split\na,test\nb,dev\n", r"synth_splits\.csv, clip 'b': unknown split 'dev'; .* train, valid"),
        (LABELS, "name,part\na,test\n", r"synth_splits\.csv: expected the columns name, split"),
        (LABELS, "name,split\na,test\na,test\n", r"synth_splits\.csv, line 3: the name 'a' occurs twice"),
        (LABELS, "name,split\na,train\nb,validation\n", r"track2.*\.csv has no test clip of synthetic"),
        ("name,labels_\na,x\n", SPLITS, r"track2.*\.csv: expected the columns name, openset"),
    ],
)
def test_what_is_wrong_with_a_corpus(tmp_path: Path, labels: str, splits: str | None, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        read_truth(SYNTHETIC, tables(tmp_path / "corpus", labels, splits))


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labels of synthetic at .*track2_train_mercaptionplus\.csv"):
        read_truth(SYNTHETIC, tmp_path)


def test_a_label_file_without_scored_clips(tmp_path: Path) -> None:
    entries = {"Ses01F_impro01_F000": {"emo": 0, "val": -10}}
    np.savez_compressed(tmp_path / "label_4way.npz", whole_corpus=np.array(entries, object))
    with pytest.raises(UserError, match=r"label_4way\.npz has no test clip of IEMOCAP"):
        read_truth(find_dataset("iemocap"), tmp_path, any_count=True)


def test_score(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One checkpoint says what is true of both clips, the other nothing of the first."""
    truth = read_truth(SYNTHETIC, corpus)
    records = [{"name": name, "labels": list(labels)} for name, labels in zip(truth.names, truth.labels, strict=True)]
    folder = tmp_path / "run" / "synthetic"
    folder.mkdir(parents=True)
    (folder / "right.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    records[0]["labels"] = []
    (folder / "half.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = ["score", str(folder.parent), "--dataset", "synthetic", "--labels", str(corpus), "--resamples", "0"]
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert next(row for row in rows if row[:1] == ["right"])[1:7] == ["100.00"] * 6
    assert next(row for row in rows if row[:1] == ["half"])[1:7] == ["50.00"] * 6
