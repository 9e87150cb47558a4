"""Truth and predictions: every form that is read, and every fault that is named."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, Task, find_dataset
from affectgpt_jax.unibench.evaluation import Settings, align, evaluate, measures
from affectgpt_jax.unibench.lexicon import small_table
from affectgpt_jax.unibench.metrics import values
from affectgpt_jax.unibench.predictions import Predictions, find_checkpoints, read_answers, read_predictions
from affectgpt_jax.unibench.safe_npz import load_npz
from affectgpt_jax.unibench.truth import Truth, read_truth

MELD, MOSI, OVMERD = find_dataset("meld"), find_dataset("cmumosi"), find_dataset("ovmerdplus")


# ---- npz without trust


class Touch:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Call:
    """A pickle that would call something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    payload = np.array({"clip": {"emo": Touch(trap)}}, dtype=object)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(payload))
    with zipfile.ZipFile(tmp_path / "label.npz", "w") as archive:
        archive.writestr("test_corpus.npy", header.getvalue() + pickle.dumps(payload, protocol))
    with pytest.raises(UserError, match=r"label\.npz holds a pickle that asks for posix\.mkdir.*nothing of it was run"):
        read_truth(MELD, tmp_path / "label.npz")
    assert not trap.exists()


@pytest.mark.parametrize(
    "evil", [Call(eval, "1"), Call(getattr, "a", "upper"), Call(bytes.fromhex, "00"), np.random.default_rng, Path("x")]
)
def test_only_plain_data(tmp_path: Path, evil: Any) -> None:
    np.savez(tmp_path / "a.npz", name2reason=np.array({"clip": evil}, dtype=object))
    with pytest.raises(UserError, match="only plain dictionaries, lists, strings and numbers"):
        read_answers(tmp_path / "a.npz")


def test_plain_data_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    value = {
        "a": [1, 2.5, None, True],
        "b": (np.float64(0.5), np.int32(3)),
        "c": np.arange(3),
        "d": "\u00e4\u4f60",
        "e": b"x",
    }
    for protocol in (0, 2, 4):
        np.savez(
            tmp_path / "a.npz", plain=np.arange(4.0), text=np.array(["x", "\u00e9"]), value=np.array(value, object)
        )
        with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
            header = io.BytesIO()
            np.lib.format.write_array_header_2_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
            archive.writestr("value.npy", header.getvalue() + pickle.dumps(np.array(value, object), protocol))
        first, second = load_npz(tmp_path / "a.npz"), load_npz(tmp_path / "b.npz")
        assert first["plain"].tolist() == [0, 1, 2, 3]
        assert first["text"].tolist() == ["x", "\u00e9"]
        for found in (first["value"].item(), second["value"].item()):
            assert repr(found) == repr(value)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_broken_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz is not a readable npz file"):
        load_npz(tmp_path / "a.npz")


def test_truncated_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("name2reason.npy", b"\x93NUMPY\x01\x00\x05\x00{'de")
    with pytest.raises(UserError, match="not a readable npz"):
        load_npz(tmp_path / "a.npz")


def test_npz_without_the_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", other=np.arange(3))
    with pytest.raises(UserError, match="has no 'name2reason'; it holds other"):
        read_answers(tmp_path / "a.npz")
    with pytest.raises(UserError, match="has no 'filenames'; it holds other"):
        read_predictions(tmp_path / "a.npz", "basic")
    with pytest.raises(UserError, match="has no 'test_corpus'"):
        read_truth(MELD, tmp_path / "a.npz")


# ---- truth


def write_corpus(path: Path, **corpora: dict[str, Any]) -> Path:
    np.savez(path, **{name: np.array(entries, object) for name, entries in corpora.items()})
    return path


def test_every_label_file_there(unibench: Path) -> None:
    """Counts, splits and classes of all label files of the fixtures."""
    seen = 0
    for dataset in DATASETS:
        if not (unibench / "labels" / dataset.folder).is_dir():
            continue
        truth = read_truth(dataset, unibench / "labels")
        assert len(truth.names) == len(set(truth.names)) == dataset.clips
        if dataset.task == "basic":
            assert {words[0] for words in truth.labels} == set(dataset.classes)
        if dataset.task == "sentiment":
            assert {-1, 1} <= set(np.sign(truth.values))
        if dataset.validation:
            assert read_truth(dataset, unibench / "labels", "validation").names
        seen += 1
    assert seen


def test_meld_classes_by_id(tmp_path: Path) -> None:
    entries = {f"c{i}": {"emo": np.int64(i), "val": -10} for i in range(7)}
    truth = read_truth(MELD, write_corpus(tmp_path / "label.npz", test_corpus=entries), any_count=True)
    assert truth.labels == tuple((name,) for name in MELD.classes)


def test_iemocap_is_its_fifth_session(tmp_path: Path) -> None:
    entries = {f"Ses0{s}F_impro0{i}": {"emo": i, "val": 0} for s in (1, 4, 5) for i in range(4)}
    path = write_corpus(tmp_path / "label_4way.npz", whole_corpus=entries)
    truth = read_truth(find_dataset("IEMOCAPFour"), path, any_count=True)
    assert truth.names == tuple(f"Ses05F_impro0{i}" for i in range(4))
    assert truth.labels == (("happy",), ("sad",), ("neutral",), ("anger",))


@pytest.mark.parametrize("emotion", [7, -1, "boredom", None, 1.5, [1]])
def test_unknown_class(tmp_path: Path, emotion: Any) -> None:
    path = write_corpus(tmp_path / "label.npz", test_corpus={"c1": {"emo": emotion, "val": 0}})
    with pytest.raises(UserError, match=r"label\.npz, clip 'c1': unknown class .*MELD has anger, joy.*another dataset"):
        read_truth(MELD, path, any_count=True)


@pytest.mark.parametrize("value", [np.nan, np.float64("inf"), None, "high"])
def test_nan_sentiment(tmp_path: Path, value: Any) -> None:
    path = write_corpus(tmp_path / "label.npz", test_corpus={"c1": {"emo": 0, "val": value}})
    with pytest.raises(UserError, match="clip 'c1': expected a number for its sentiment"):
        read_truth(MOSI, path, any_count=True)


def test_wrong_count(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "label.npz", test_corpus={"c1": {"emo": 0, "val": 1.0}})
    with pytest.raises(UserError, match=r"expected the 686 clips.*CMU-MOSI, found 1; --any-count"):
        read_truth(MOSI, path)


def test_no_label_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no labels of MELD.*meld-process/label\.npz"):
        read_truth(MELD, tmp_path)


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffname,other,label\n0012,x,Joy\n7,y,3\n", encoding="utf-8")
    truth = read_truth(MELD, tmp_path / "a.csv", any_count=True)
    assert truth.names == ("0012", "7")
    assert truth.labels == (("joy",), ("neutral",))
    (tmp_path / "ovlabel.csv").write_text("name,openset\na,\"['happy', 'very sad']\"\nb,[]\n")
    assert read_truth(OVMERD, tmp_path, any_count=True).labels == (("happy", "very sad"), ("neutral",))
    path = write_openset(tmp_path / "label.npz", {"a": "[happy, very sad]", "b": "[]"})
    assert read_truth(OVMERD, path, any_count=True).labels == (("happy", "very sad"), ("neutral",))
    (tmp_path / "v.csv").write_text("name,value\na,-0.5\nb,2\n")
    assert read_truth(MOSI, tmp_path / "v.csv", any_count=True).values.tolist() == [-0.5, 2]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name,emotion\na,joy\n", "expected the columns name, label for MELD; found name, emotion"),
        ("", "found none"),
        ("name,label\na,joy\na,joy\n", "line 3: the name 'a' occurs twice"),
        ("name,label\n,joy\n", "line 2: the name is empty"),
        ("name,label\na\n", "line 2: expected 2 cells, found 1"),
        ("name,label\na,\n", "clip 'a': unknown class ''"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=fault):
        read_truth(MELD, tmp_path / "a.csv", any_count=True)


# ---- predictions


def write_openset(path: Path, labels: dict[str, str]) -> Path:
    np.savez(path, filenames=np.array(list(labels)), fileitems=np.array(list(labels.values())))
    return path


RECORDS = [
    {"name": "0012", "labels": ["happy", " calm "], "sentiment": "positive"},
    {"name": "b", "labels": [], "sentiment": ""},
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "large.parquet"])
@pytest.mark.parametrize("task", ["basic", "sentiment"])
def test_own_records(tmp_path: Path, suffix: str, task: Task) -> None:
    path = tmp_path / f"run.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, RECORDS)) + "\n")
    else:
        table = pa.Table.from_pylist(RECORDS)
        if suffix == "large.parquet":
            large = {
                "name": pa.large_string(),
                "labels": pa.large_list(pa.large_string()),
                "sentiment": pa.large_string(),
            }
            table = table.cast(pa.schema(large))
        pyarrow.parquet.write_table(table, path)
    labels = read_predictions(path, task).labels
    assert labels == {"0012": ("positive",), "b": ()} if task == "sentiment" else {"0012": ("happy", "calm"), "b": ()}


def test_labels_as_one_string(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"name": "2020-01-01", "labels": "[happy, very sad]"}\n')
    assert read_predictions(tmp_path / "a.jsonl", "basic").labels == {"2020-01-01": ("happy", "very sad")}


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (['{"name": "a", "labels": ["x"]}', "{"], "not readable as records"),
        (['{"name": 12, "labels": ["x"]}'], "not readable as records"),
        (['{"name": "a"}'], "expected objects with the fields name and labels, found {'name': 'a'}"),
        (["[1, 2]"], "expected objects with the fields name and labels"),
        ([], "expected objects with the fields name and labels"),
        (['{"name": "a", "labels": ["x"]}', '{"name": "b"}'], "record 2: labels is missing"),
        (['{"name": "a", "labels": ["x"]}', '{"name": "b", "labels": "x"}'], "not readable as records"),
        (['{"name": "a", "labels": ["x", null]}'], "a label in labels is missing"),
        (['{"name": "a", "labels": ["x"]}', '{"name": "a", "labels": ["y"]}'], "1 names occur twice, such as a"),
    ],
)
def test_bad_jsonl(tmp_path: Path, lines: list[str], fault: str) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(UserError, match=fault):
        read_predictions(tmp_path / "a.jsonl", "basic")


@pytest.mark.parametrize("columns", [{"name": ["a"]}, {"name": [1], "labels": [["x"]]}, {"name": ["a"], "labels": [3]}])
def test_bad_parquet(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="expected"):
        read_predictions(tmp_path / "a.parquet", "basic")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not readable"):
        read_predictions(tmp_path / "a.parquet", "basic")


def test_duplicate_names_in_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a-openset.npz", filenames=np.array(["a", "b", "a"]), fileitems=np.array(["[x]"] * 3))
    with pytest.raises(UserError, match="1 names occur twice, such as a"):
        read_predictions(tmp_path / "a-openset.npz", "basic")
    np.savez(tmp_path / "a-openset.npz", filenames=np.array(["a", "b"]), fileitems=np.array(["[x]"]))
    with pytest.raises(UserError, match="not two lists of one length"):
        read_predictions(tmp_path / "a-openset.npz", "basic")
    np.savez(tmp_path / "a-openset.npz", filenames=np.array([12]), fileitems=np.array(["[x]"]))
    with pytest.raises(UserError, match="name is 12, not a string"):
        read_predictions(tmp_path / "a-openset.npz", "basic")


def test_which_files_are_checkpoints(tmp_path: Path) -> None:
    for name in ("e2-openset", "e1-openset", "e1", "e1-openset-sentiment"):
        write_openset(tmp_path / f"{name}.npz", {"a": "[x]"})
    assert [file.name for file in find_checkpoints(tmp_path, "basic")] == ["e1-openset.npz", "e2-openset.npz"]
    (file,) = find_checkpoints(tmp_path, "sentiment")
    assert read_predictions(file, "sentiment").checkpoint == "e1"
    with pytest.raises(UserError, match="do not exist"):
        find_checkpoints(tmp_path / "nowhere", "basic")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected \*-openset.npz, \*.jsonl or \*.parquet, found nothing"):
        find_checkpoints(tmp_path / "empty", "basic")


# ---- truth beside predictions


def meld_truth(tmp_path: Path, *labels: str) -> Truth:
    rows = "".join(f"c{i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "truth.csv").write_text(f"name,label\n{rows}")
    return read_truth(MELD, tmp_path / "truth.csv", any_count=True)


def predicted(tmp_path: Path, **labels: tuple[str, ...]) -> Predictions:
    return Predictions("e1", tmp_path / "e1.jsonl", labels)


def test_predictions_for_another_dataset(tmp_path: Path) -> None:
    truth = meld_truth(tmp_path, "joy")
    with pytest.raises(UserError, match=r"none of its 1 names is a clip of MELD.*'c0'.*'zz'.*another dataset"):
        align(truth, predicted(tmp_path, zz=("happy",)), "wrong")


def test_missing_extra_empty_and_long(tmp_path: Path) -> None:
    truth = meld_truth(tmp_path, "joy", "sadness", "anger", "fear")
    found = predicted(tmp_path, c0=("happy",), c1=(), c3=("afraid",) * 500, zz=("calm",))
    with pytest.raises(UserError, match=r"1 of 4 clips have no prediction: c2. Predict them, or score with --missing"):
        align(truth, found, "error")
    answers, scored, findings = align(truth, found, "wrong")
    assert answers == (("happy",), (), (), ("afraid",) * 500)
    assert scored.tolist() == [True] * 4
    assert [finding.split(": ", 1)[1] for finding in findings] == [
        "1 of 4 clips have no prediction: c2; counted as wrong",
        "1 predictions are for no clip of MELD: zz",
        "1 answers hold no label and are scored as such",
        "1 answers list more than 50 labels, the longest 500",
    ]
    _, scored, findings = align(truth, found, "skip")
    assert scored.tolist() == [True, True, False, True]
    assert "left out of the scores" in findings[0]
    (measure,) = measures(truth, [answers], small_table(), "strict")
    assert values(measure)["hit_rate"] == 2 / 4
    assert values(measure.only(scored))["hit_rate"] == 2 / 3


def write_run(folder: Path, **checkpoints: list[str]) -> Path:
    folder.mkdir()
    for name, labels in checkpoints.items():
        write_openset(folder / f"{name}-openset.npz", {f"c{i}": f"[{label}]" for i, label in enumerate(labels)})
    return folder


def test_which_checkpoint_counts(tmp_path: Path) -> None:
    truth = meld_truth(tmp_path, "joy", "sadness", "anger")
    run = write_run(tmp_path / "run", e1=["happy", "sad", "angry"], e2=["happy", "calm", "calm"], e3=["calm"] * 3)
    table = small_table()
    result = evaluate(truth, run, table, Settings(resamples=0))
    assert [result.best(ruleset).name for ruleset in ("reference", "strict")] == ["e1", "e3"]
    result = evaluate(truth, run, table, Settings(resamples=0, checkpoint="2"))
    assert (result.best("strict").name, result.rule["strict"]) == ("e2", "fixed beforehand")
    with pytest.raises(UserError, match="--checkpoint 'e' fits 3 checkpoints; expected one of e1, e2, e3"):
        evaluate(truth, run, table, Settings(checkpoint="e"))
    validation = (
        truth,
        write_run(tmp_path / "val", e1=["calm"] * 3, e2=["happy", "sad", "calm"], e9=["happy", "sad", "mad"]),
    )
    result = evaluate(truth, run, table, Settings(resamples=0), validation)
    assert (result.best("strict").name, result.rule["strict"]) == ("e2", "best of 2 on the validation clips")


def test_clips_shared_with_training_are_dropped_under_strict_only(tmp_path: Path) -> None:
    truth = meld_truth(tmp_path, "joy", "sadness")
    run = write_run(tmp_path / "run", e1=["happy", "calm"])
    result = evaluate(truth, run, small_table(), Settings(resamples=0, drop=frozenset({"c1", "elsewhere"})))
    scores = result.checkpoints[0].scores
    assert (scores["reference"]["hit_rate"].value, scores["strict"]["hit_rate"].value) == (0.5, 1.0)
    assert result.findings == ("1 clips shared with training are left out under strict",)
