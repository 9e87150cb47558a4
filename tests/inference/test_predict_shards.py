"""Prediction from feature shards, and its files: what is broken is reported, an interruption leaves no trace."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.data.shards import Corpus, open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answerer
from affectgpt_jax.inference.clip_files import Source
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.predict import Failed, Prediction, predict_shards
from affectgpt_jax.inference.prediction_files import COLUMNS, PredictionFile
from affectgpt_jax.inference.runs import open_run
from tests.conftest import ROOT
from tests.inference.broken_shards import WAYS, make_broken
from tests.inference.test_predict import Oracle

BROKEN = (3, 9, 20, 21, 33)
COUNT = 40
SHARE = 100  # one of so many is broken


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and shards of 40 samples, five of them broken."""
    return make_broken(tmp_path_factory.mktemp("broken"), COUNT, BROKEN, per_shard=16).parent


def corpus_of(folder: Path) -> Corpus:
    return open_corpus(folder / "shards", "test", ("face@8", "audio@8"), verify=False)


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def command(folder: Path, *more: object) -> list[str]:
    words = ["predict", folder / "run", folder / "shards", "--max-new", 8, "--batch", 4, *more]
    return [str(word) for word in words]


def test_broken_samples_cost_only_themselves(folder: Path) -> None:
    """The good ones are asked what evaluation would ask, with the same features; the bad ones say what is wrong."""
    run, corpus, oracle = open_run(folder / "run"), corpus_of(folder), Oracle()
    outcomes = list(predict_shards(run, corpus, answerer=oracle, batch=4))
    names = [f"clip{i:05d}" for i in range(COUNT)]
    names[20] = "test[20]"  # its text is what cannot be read
    assert [outcome.clip for outcome in outcomes] == names
    reasons = {i: outcome.error for i, outcome in enumerate(outcomes) if isinstance(outcome, Failed)}
    assert tuple(reasons) == BROKEN
    assert len(WAYS) < len(BROKEN)
    assert reasons[3] == reasons[33] == "its features of face are not finite numbers"
    for i, stream in ((9, "face_8"), (20, "text"), (21, "audio_8")):
        assert f"{stream}/1.0.0" in reasons[i]
        assert "cannot be read" in reasons[i]
    good = [i for i in range(COUNT) if i not in BROKEN]
    expected = make_queries(run, corpus, PLAIN, "ovlabel", clips=good)
    for found, query in zip(oracle.queries, expected, strict=True):
        assert (found.name, found.subtitle, found.question) == query[:3]
        assert found.features.keys() == query.features.keys()
        for name, values in query.features.items():
            np.testing.assert_array_equal(found.features[name], values)
    lacking = outcomes[7]
    assert isinstance(lacking, Prediction)
    assert lacking.absent == {"face": "the shards hold none of this sample (face@8)"}
    assert lacking.sources["audio"] == Source(f"{folder / 'shards'}, audio@8")
    first = next(iter(predict_shards(run, corpus, answerer=oracle, words=False)))
    assert isinstance(first, Prediction)
    assert (oracle.queries[-1].subtitle, first.subtitle) == ("", "")


def test_answers_are_those_of_evaluation_and_files_agree(folder: Path, tmp_path: Path) -> None:
    """One set of answers as lines, CSV and Parquet, the same as evaluation gives."""
    names = [tmp_path / f"a.{ending}" for ending in ("jsonl", "csv", "parquet")]
    for name in names:
        assert main(command(folder, "--output", name)) == 1
    lines = records(names[0])
    run, corpus = open_run(folder / "run"), corpus_of(folder)
    good = [i for i in range(COUNT) if i not in BROKEN]
    expected = Answerer(run, batch=4, max_new=8)(make_queries(run, corpus, PLAIN, "ovlabel", clips=good))
    assert [line["answer"] for line in lines if "answer" in line] == [answer.text for answer in expected]  # type: ignore[union-attr]
    assert len({line.get("answer") for line in lines}) > 5
    with names[1].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(names[2]).to_pylist()
    assert tuple(rows[0]) == tuple(table[0]) == COLUMNS
    for line, row, entry in zip(lines, rows, table, strict=True):
        for key in COLUMNS:
            text = line.get(key, "")
            assert row[key] == (text if isinstance(text, str) else json.dumps(text, ensure_ascii=False))
            nested = key in line and isinstance(line[key], dict)
            assert (json.loads(entry[key]) if nested else entry[key]) == line.get(key)
    assert {"seed": 0, "step": 7}.items() <= lines[0].items()
    assert len(lines[0]["model"]) == 64
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [*(name.name for name in names), *(f"{name.name}.timing.jsonl" for name in names)]
    )
    times = records(tmp_path / "a.jsonl.timing.jsonl")[1:]
    assert [time["clip"] for time in times] == [line["clip"] for line in lines]
    assert all(time["failed"] or time["seconds"] > 0 for time in times)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_interrupted_anywhere_the_file_is_the_same(
    ending: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut at a line, within a line, before the times are written; drawn answers, whose draws are numbered."""
    drawn = ("--temperature", 1, "--top-k", 50, "--top-p", 0.9, "--seed", 5)
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    assert main(command(folder, "--output", whole, *drawn)) == 1
    content = whole.read_bytes()
    asked: list[int] = []
    answer = Answerer.__call__

    def watch(self: Answerer, queries: Any, report: Any = None) -> Any:
        asked.extend(query.number for query in queries)
        return answer(self, queries, report)

    class Enough(Exception):
        pass

    write = PredictionFile.write

    def stop(self: PredictionFile, outcomes: Any) -> None:
        write(self, outcomes)
        if self.done == 32:
            raise Enough

    monkeypatch.setattr(PredictionFile, "write", stop)
    with pytest.raises(Enough):
        main(command(folder, "--output", cut, *drawn))
    monkeypatch.setattr(PredictionFile, "write", write)
    monkeypatch.setattr(Answerer, "__call__", watch)
    lines = cut if ending == "jsonl" else cut.with_name("cut.csv.part.jsonl")
    timing = cut.with_name(f"{cut.name}.timing.jsonl")
    assert cut.exists() == (ending == "jsonl")
    with lines.open("ab") as file:
        file.write(b'{"clip": "half a li')
    assert main(command(folder, "--output", cut, *drawn)) == 1
    assert cut.read_bytes() == content
    assert asked == [32, *range(34, 40)]
    assert len(records(timing)) == 1 + COUNT
    asked.clear()
    assert main(command(folder, "--output", cut, *drawn)) == 1  # nothing is left
    assert (asked, cut.read_bytes()) == ([], content)
    if ending == "jsonl":  # a window of which some lines are there, and times of fewer
        lines.write_bytes(b"".join(content.splitlines(keepends=True)[:21]))
        times = timing.read_bytes().splitlines(keepends=True)
        timing.write_bytes(b"".join(times[:19]) + times[19][:9])
        assert main(command(folder, "--output", cut, *drawn)) == 1
        assert asked[0] == 16
        assert cut.read_bytes() == content
    other = tmp_path / f"greedy.{ending}"
    assert main(command(folder, "--output", other)) == 1
    assert other.read_bytes() != content
    capsys.readouterr()
    for change, message in (
        (("--seed", 6), "seed 5 instead of 6"),
        (("--question", "sentiment"), "question "),
        (("--max-new", 7), "max_new 8 instead of 7"),
        (("--batch", 5), "batch 4 instead of 5"),
        (("--no-subtitle",), "words True instead of False"),
    ):
        assert main(command(folder, "--output", cut, *drawn, *change)) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert "begin it anew with --overwrite" in shown
    timing.unlink()
    assert main(command(folder, "--output", cut, *drawn)) == 2
    assert "says what it comes from" in capsys.readouterr().err
    assert main(command(folder, "--output", cut, *drawn, "--overwrite")) == 1
    assert cut.read_bytes() == content


def test_one_process_writes_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second one is refused, whatever it asks for, until the first has ended."""
    output = tmp_path / "a.csv"
    with PredictionFile(output, {}, 2, 1) as first:
        first.write([Failed("one", "no")])
        for more in ((), ("--overwrite",)):
            assert main(command(folder, "--output", output, *more)) == 2
            assert "is being written by another process" in capsys.readouterr().err
        first.write([Failed("two", "no")])
        first.finish()
    with PredictionFile(output, {}, 2, 1) as again:
        assert (again.done, again.failed) == (2, 2)
    with PredictionFile(output, {"model": "another"}, 2, 1, overwrite=True) as anew:
        assert (anew.done, output.exists()) == (0, False)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name of arbitrary bytes goes into every kind of file."""
    name = os.fsdecode(b"caf\xe9.mp4")
    for ending in ("jsonl", "csv", "parquet"):
        with PredictionFile(tmp_path / f"a.{ending}", {}, 1, 4) as file:
            file.write([Failed(name, f"{name} is no media file")])
            file.finish()
    assert records(tmp_path / "a.jsonl") == [{"clip": name, "error": f"{name} is no media file"}]
    assert "caf\\udce9.mp4" in (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert pq.read_table(tmp_path / "a.parquet")["clip"].to_pylist() == ["caf\\udce9.mp4"]
    with pytest.raises(UserError, match=r"a name that ends in \.jsonl, \.csv, \.parquet"):
        PredictionFile(tmp_path / "a.xlsx", {}, 1, 4)


def memory(process: int) -> int:
    """Resident memory in MiB; 0 of a process that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS")), 0)


@pytest.mark.parametrize(
    "many", [pytest.param(2000, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.long)]
)
def test_thousands_of_clips_killed_on_the_way(tmp_path: Path, many: int) -> None:
    """All good ones are answered, all bad ones reported, SIGKILL leaves no trace, and memory does not grow."""
    broken = range(37, many, SHARE)
    make_broken(tmp_path, many, broken)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    words = [*command(tmp_path)[:-2], "--batch", "64", "--output"]
    program = [sys.executable, "-m", "affectgpt_jax.cli", *words]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([*program, str(cut)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    killed = start()
    while not (cut.exists() and cut.read_bytes().count(b"\n") >= many // 4):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    there = cut.read_bytes().count(b"\n")
    assert there < many
    with cut.open("ab") as file:
        file.write(b'{"clip": "half a li')
    again = start()
    seen: dict[int, int] = {}
    while again.poll() is None:
        written = cut.read_bytes().count(b"\n")
        if written > there and (found := memory(again.pid)):
            seen.setdefault(written, found)
        time.sleep(0.05)
    assert again.returncode == 1
    assert main([*words, str(whole)]) == 1
    assert cut.read_bytes() == whole.read_bytes()
    lines = records(whole)
    assert [i for i, record in enumerate(lines) if "error" in record] == list(broken)
    assert sum("answer" in record for record in lines) == many - len(broken)
    early, late = seen[min(seen)], seen[max(seen)]
    print(f"{many} clips, {len(broken)} broken: MiB from {early} to {late}, at most {max(seen.values())}")
    assert len(seen) > 2
    assert late - early < 32, seen
