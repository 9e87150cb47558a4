"""`affectgpt labels` on a run of the smallest size."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import affectgpt_jax.inference.benchmark
import affectgpt_jax.inference.predict
from affectgpt_jax.cli import main
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.calibration import LIKELIEST, TOP_K, label_record, make_vocabulary, probabilities
from affectgpt_jax.inference.evaluate import PLAIN, Condition, make_queries
from affectgpt_jax.inference.label_scores import LabelScorer, Scores
from affectgpt_jax.inference.runs import Trained, open_run, open_shards, write_run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.unibench.lexicon import small_table
from affectgpt_jax.unibench.table_cache import wheel_words
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from tests.inference.clip_run import random_tree
from tests.tiny_run import make_shards, make_tokenizer, tiny_config

STEP, MAX_NEW = 7, 8
ABSENT = ("without face", "without audio", "without text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random parameters, and shards of which the second clip lacks a face."""
    folder = tmp_path_factory.mktemp("run")
    make_tokenizer(folder / "tokenizer")
    make_shards(folder / "shards", {"train": 4, "validation": 12, "test": 6}, frozenset({1}))
    save(folder, 1)
    return folder


def save(folder: Path, seed: int, name: str = "run") -> None:
    config, tokenizer = resolve(tiny_config(folder))
    params = jax.tree.map(jnp.asarray, random_tree(parameter_shapes(AffectGPT(config.model)), seed))
    write_run(Trained(config, tokenizer, params, STEP, str(folder)), folder / name)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def labels(folder: Path, out: Path, *more: str) -> int:
    return main(["labels", str(folder / "run"), "--out", str(out), "--max-new", str(MAX_NEW), *more])


def scored(folder: Path, split: str, words: Sequence[str], condition: Condition = PLAIN) -> np.ndarray:
    run = open_run(folder / "run")
    queries = make_queries(run, open_shards(run.config, split), condition, "ovlabel")
    found = LabelScorer(run, words, batch=4, max_new=MAX_NEW)(queries)
    return np.stack([one.logs for one in found if isinstance(one, Scores)])


def test_calibrated_labels_with_evidence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert labels(folder, tmp_path, "--calibrate", "validation", "--coverage", "0.5", "--evidence") == 0
    told = capsys.readouterr().out
    assert "12 clips of validation, 211 words: temperature" in told
    assert "labels in free words: hit rate" in told
    assert all(name in told for name in ABSENT)
    place = tmp_path / f"step{STEP:08d}"
    calibration = json.loads((place / "calibration.json").read_text())
    assert calibration["coverage"] == 0.5
    assert calibration["after"]["nll"] < calibration["before"]["nll"]
    assert f"temperature {calibration['temperature']:.3f}" in told

    vocabulary = make_vocabulary(wheel_words(), small_table())
    scores = scored(folder, "test", vocabulary.words).round(4)
    found = lines(place / "test.jsonl")
    run = open_run(folder / "run")
    answerer = Answerer(run, batch=4, max_new=MAX_NEW)
    corpus = open_shards(run.config, "test")
    answers = {
        name: answerer(make_queries(run, corpus, Condition(name, modality), "ovlabel"))
        for name, modality in ((PLAIN.name, ""), ("without audio", "audio"))
    }
    for i, record in enumerate(found):
        expected = label_record(scores[i], vocabulary, calibration["temperature"], calibration["threshold"])
        assert {key: record[key] for key in expected} == expected
        plain, changed = answers[PLAIN.name][i], answers["without audio"][i]
        assert isinstance(plain, Answer)
        assert isinstance(changed, Answer)
        assert record["name"] == plain.name
        assert (record["answer"], record["answer_labels"]) == (plain.text, plain.labels)
        assert record["truth"] == list(corpus.text(i).labels)
        assert list(record["evidence"]) == list(ABSENT)
        assert record["evidence"]["without audio"]["answer"] == changed.text
    other = probabilities(scored(folder, "test", vocabulary.words, Condition("", "audio")), calibration["temperature"])
    own = found[0]["evidence"]["without audio"]
    assert own["probability"] == pytest.approx(other[0, vocabulary.words.index(own["label"])], abs=1e-4)
    assert own["change"] != 0
    assert found[1]["evidence"]["without face"]["change"] == 0  # it has none

    summary = json.loads((place / "test.summary.json").read_text())
    moved = [record["evidence"]["without audio"]["change"] for record in found]
    assert summary["evidence"]["without audio"] == {"clips": 6, "change": pytest.approx(np.mean(moved))}
    assert summary["systems"]["scored labels"]["none"] == sum(record["abstained"] for record in found)
    assert sum(clips for clips, _, _ in calibration["after"]["bins"]) == calibration["n"] == 12
    for fit in (calibration["before"], calibration["after"]):
        gaps = [clips * abs(confidence - right) for clips, confidence, right in fit["bins"]]
        assert sum(gaps) / 12 == pytest.approx(fit["ece"], abs=1e-5)

    # What is there is not scored again, whatever is chosen of it.
    monkeypatch.setattr(affectgpt_jax.inference.benchmark, "LabelScorer", None)
    assert labels(folder, tmp_path, "--evidence", "--threshold", "1", "--top-k", "1") == 0
    silent = lines(place / "test.jsonl")
    assert all(record["abstained"] and not record["labels"] for record in silent)
    assert "6 of 6 clips have none" in capsys.readouterr().out
    assert labels(folder, tmp_path, "--evidence", "--threshold", "0", "--top-k", "1") == 0
    assert [len(record["labels"]) for record in lines(place / "test.jsonl")] == [1] * 6
    shutil.copy(place / "scores" / "test-answers-evidence.jsonl", place / "scores" / "test-answers.jsonl")
    plain = place / "scores" / "test-answers.jsonl"
    facts, *rest = lines(plain)
    rest = [record | {"found": {PLAIN.name: record["found"][PLAIN.name]}} for record in rest]
    plain.write_text("".join(json.dumps(x) + "\n" for x in [facts | {"conditions": [PLAIN.name]}, *rest]))
    assert labels(folder, tmp_path, "--evidence", "3") == 0
    assert "on average over 3 clips" in capsys.readouterr().out
    assert [i for i, record in enumerate(lines(place / "test.jsonl")) if "evidence" in record] == [0, 2, 5]
    assert labels(folder, tmp_path, "--evidence", "-1") == 2
    assert "--evidence -1: expected a number of clips" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_with_scores_and_evidence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of predictions say what those of labels say, in every kind of file, and after an interruption."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    assert main(["labels", str(run), "--calibrate", "validation", "--evidence", "--max-new", str(MAX_NEW)]) == 0
    place = run / "labels" / f"step{STEP:08d}"
    expected, calibration = lines(place / "test.jsonl"), json.loads((place / "calibration.json").read_text())
    command = ["predict", str(run), str(folder / "shards"), "--max-new", str(MAX_NEW)]
    assert main([*command, "--evidence", "--output", str(tmp_path / "a.jsonl")]) == 0
    assert "not calibrated" not in capsys.readouterr().out
    found = lines(tmp_path / "a.jsonl")
    for record, other in zip(found, expected, strict=True):
        scores = record["scores"]
        shared = ("labels", "abstained", "confidence", "entropy", "in_vocabulary")
        assert {key: scores[key] for key in shared} == {key: other[key] for key in shared}
        assert len(scores["likeliest"]) == LIKELIEST
        assert scores["likeliest"][: len(other["likeliest"])] == other["likeliest"]
        assert (scores["words"], scores["calibrated"]) == (211, True)
        assert {key: scores[key] for key in ("temperature", "threshold")}.items() <= calibration.items()
        absent = {f"without {name}" for name in record["absent"]}
        assert [f"without {name}" for name in record["evidence"]] == [name for name in ABSENT if name not in absent]
        for name, changed in record["evidence"].items():
            there = other["evidence"][f"without {name}"]
            assert (changed["answer"], changed["labels"]) == (there["answer"], there["answer_labels"])
            changes = {word["label"]: word for word in changed["changes"]}
            assert {word["label"] for word in scores["likeliest"]} <= changes.keys()
            assert len(changes) <= LIKELIEST + TOP_K
            assert changes[there["label"]] == {key: there[key] for key in ("label", "probability", "change")}
            assert any(word["change"] for word in changes.values())
    assert found[1]["absent"]  # it lacks a face

    # Four of six are there; the table of all is of the same records.
    monkeypatch.setattr(affectgpt_jax.inference.predict, "TOGETHER", 1)
    for name, kept in (("a.jsonl", 4), ("a.jsonl.timing.jsonl", 5)):
        there = (tmp_path / name).read_bytes().splitlines(keepends=True)[:kept]
        name = name.replace("a.jsonl", "a.csv") if kept == 5 else "a.csv.part.jsonl"
        (tmp_path / name).write_bytes(b"".join(there))
    assert main([*command, "--evidence", "--output", str(tmp_path / "a.csv")]) == 0
    assert "4 of 6 clips are answered" in capsys.readouterr().out
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = [(json.loads(row["scores"]), json.loads(row["evidence"])) for row in csv.DictReader(file)]
    assert rows == [(record["scores"], record["evidence"]) for record in found]

    words = tmp_path / "words.txt"
    words.write_text("happy\nsad\nangry\n")
    for other in (["--scores"], [], ["--evidence", "--scores", str(words)]):
        assert main([*command, "--output", str(tmp_path / "a.jsonl"), *other]) == 2
        assert "scores " in capsys.readouterr().err
    assert main([*command, "--question", "sentiment", "--evidence", "--scores", str(words)]) == 0
    shown = capsys.readouterr().out
    assert f"not calibrated: affectgpt labels {run} --calibrate validation --vocabulary {words}" in shown
    counts = {name: shown.count(f"\n  {name} ") for name in ("scores", *ABSENT)}
    assert counts == {"scores": 6, "without face": 5, "without audio": 6, "without text": 6}


def test_own_words_without_calibration(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# two\nhappy\nSad\n")
    assert labels(folder, tmp_path, "--vocabulary", str(words), "--split", "validation", "--no-answers") == 0
    assert "not calibrated" in capsys.readouterr().out
    found = lines(tmp_path / f"step{STEP:08d}" / "validation.jsonl")
    expected = probabilities(scored(folder, "validation", ("happy", "sad")))
    for record, own in zip(found, expected, strict=True):
        by = {one["label"]: one["probability"] for one in record["likeliest"]}
        assert by == pytest.approx({"happy": own[0], "sad": own[1]}, abs=1e-3)
        assert "answer" not in record


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.txt"
    words.write_text("happy\nsad\n")
    assert labels(folder, tmp_path, "--calibrate", "validation", "--vocabulary", str(words), "--no-answers") == 0
    assert labels(folder, tmp_path, "--vocabulary", "wheel") == 2
    assert "is of other words" in capsys.readouterr().err
    save(folder, 2, "other")
    assert main(["labels", str(folder / "other"), "--out", str(tmp_path)]) == 2
    assert "calibrates another model" in capsys.readouterr().err
    assert labels(folder, tmp_path, "--precision", "0.9") == 2
    assert "--calibrate" in capsys.readouterr().err
    assert labels(folder, tmp_path, "--top-k", "0") == 2
    assert "--top-k must be at least 1" in capsys.readouterr().err
    words.write_text("happy\nsad, angry\n")
    assert labels(folder, tmp_path / "again", "--vocabulary", str(words)) == 2
    assert "'sad, angry' runs together" in capsys.readouterr().err
