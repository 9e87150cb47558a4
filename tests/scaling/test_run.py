"""Carrying out a plan: what is trained when, what becomes of failures, and a study from its file to its page."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.optimize import nnls

from affectgpt_jax.cli import main
from affectgpt_jax.config import load_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling import run as running
from affectgpt_jax.scaling.draw import make_plan
from affectgpt_jax.scaling.plan import Plan, write_plan
from affectgpt_jax.scaling.rows import Row, read_row, read_rows, row_path, seconds_left, write_csv, write_row
from affectgpt_jax.scaling.run import Ways, run_all
from affectgpt_jax.scaling.study import as_study
from affectgpt_jax.scaling.tables import status_lines
from data_prep.synth import SplitCounts
from data_prep.synth.features import write_features

STUB = """
import json, os, sys, time
from pathlib import Path
from affectgpt_jax.config import load_config, save_config
command, path, *rest = sys.argv[1:]
folder = Path(path) if command == "evaluate" else Path(load_config(path).train.output)
told = json.loads(os.environ["STUB"])
tries = folder / "tries"
number = int(tries.read_text()) if tries.is_file() else 0
if command == "evaluate":
    output = Path(rest[rest.index("--output") + 1])
    output.mkdir()
    scores = {"hit_rate": {"value": 0.5}, "f_score": {"value": 0.25}}
    (output / "scores.json").write_text(json.dumps({"scores": {"all modalities": scores}}))
    sys.exit(0)
tries.write_text(str(number + 1))
config = load_config(path)
kind = told.get(folder.name.split("-s")[0], "fine")
kind = kind[min(number, len(kind) - 1)] if isinstance(kind, list) else kind
print("a line")
if kind == "error":
    print("affectgpt train: data.shards: nothing there", file=sys.stderr)
    sys.exit(2)
if kind == "crash":
    sys.exit("Traceback: out of luck")
if kind == "killed":
    os.kill(os.getpid(), 9)
if kind == "slow":
    (folder / "begun").touch()
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    time.sleep(60)
steps, every = config.train.steps, config.validation.every
save_config(config, folder / "config.yaml")
lines = [{"step": s, "samples_per_s": 10.0 + s, "loss": 1.0} for s in range(1, steps + 1)]
lines += [{"step": s, "validation_loss": 5.0 / s} for s in {*range(every, steps, every), steps}]
if kind == "diverged":
    lines = [*lines[:3], {"step": 4, "bad_loss": 1.0}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
if kind == "diverged":
    print("affectgpt train: step 4: loss nan", file=sys.stderr)
    sys.exit(2)
(folder / "checkpoints" / "9" / "facts").mkdir(parents=True)
(folder / "checkpoints" / "9" / "facts" / "metadata").write_text(json.dumps({"devices": "1 cpu"}))
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_features(folder, SplitCounts(64, 16, 8), workers=1)
    return folder


@pytest.fixture
def plan(tmp_path: Path, features: Path) -> Plan:
    """Six runs whose trainings are a stub's."""
    return plan_of(tmp_path, features)


def plan_of(tmp_path: Path, features: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "tried",
        "base": "smoke",
        "set": [f"data.shards={features}", f"weights.tokenizer={features / 'tokenizer'}"],
        "parts": {"law": {"size": ["0.1M", "0.2M", "0.5M"], "captions": [16, 32]}},
        "points": 3,
        "output": str(tmp_path / "study"),
    }
    plan = make_plan(as_study(values | changes, "study.yaml"), tmp_path / "study.yaml")
    write_plan(plan)
    return plan


@pytest.fixture
def ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ways]:
    """How runs are started: by a stub that does what it is told for each size and number of captions."""
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(running, "_affectgpt", lambda command: [sys.executable, str(script), command])

    def make(told: dict[str, Any] | None = None, **changes: Any) -> Ways:
        environ = dict(os.environ) | {"STUB": json.dumps(told or {})}
        said: list[str] = []
        return Ways((), 2, False, said.append, lambda line: None, environ)._replace(**changes)

    return make


def rows_of(plan: Plan) -> dict[str, Row]:
    """By size and captions."""
    return {f"{row.setting.size}-c{row.setting.captions}": row for row in read_rows(plan).values()}


def tries(plan: Plan) -> dict[str, int]:
    found = {}
    for run in plan.runs:
        file = plan.study.folder / "runs" / run.id / "tries"
        found[run.id.split("-e")[0]] = int(file.read_text()) if file.is_file() else 0
    return found


def test_every_run_becomes_a_row_once(plan: Plan, ways: Callable[..., Ways]) -> None:
    said: list[str] = []
    ended = run_all(plan, plan.runs, ways(say=said.append))
    assert not ended.stopped
    assert not ended.busy
    assert [row.status for row in ended.rows] == ["done"] * 6
    assert len(said) == 6
    assert said[-1].startswith("6/6")
    for run in plan.runs:
        row = read_row(row_path(plan.study.folder, run.id))
        assert row is not None
        config = load_config(plan.study.folder / "runs" / run.id / "study.yaml")
        assert (row.samples, row.parameters, row.attempts, row.chip) == (
            run.cost.samples,
            run.cost.parameters,
            1,
            "1 cpu",
        )
        assert row.steps == config.train.steps
        assert row.tokens > row.targets > 0
        assert [samples for samples, _ in row.losses] == sorted({samples for samples, _ in row.losses})
        assert len(row.losses) in (2, 3)
        assert row.losses[-1] == (run.cost.samples, round(5 / row.steps, 6))
        assert row.loss == row.losses[-1][1]
        # Planned with an assumed length, carried out with the corpus's own.
        assert row.flops != run.cost.flops
        assert 0.2 < row.flops / run.cost.flops < 2
        assert not (plan.study.folder / "runs" / run.id / "checkpoints").exists()
    again = run_all(plan, plan.runs, ways())
    assert again.rows == ended.rows
    assert set(tries(plan).values()) == {1}


def test_runs_train_on_so_many_captions_in_whole_passes(
    tmp_path: Path, features: Path, ways: Callable[..., Ways]
) -> None:
    part = {"size": "0.1M", "captions": [16, 48], "epochs": [1, 3]}
    plan = plan_of(tmp_path, features, parts={"law": part})
    for row in run_all(plan, plan.runs, ways()).rows:
        assert row.samples == row.setting.captions * row.setting.epochs == row.losses[-1][0]
    more = {row.setting.epochs: row.steps for row in read_rows(plan).values() if row.setting.captions == 48}
    assert abs(more[3] - 3 * more[1]) <= 2


def test_failures_are_rows_with_reasons(plan: Plan, ways: Callable[..., Ways]) -> None:
    told = {"0.1M-c16-e1": "error", "0.1M-c32-e1": "crash", "0.2M-c16-e1": ["crash", "fine"]}
    told |= {"0.2M-c32-e1": "killed", "0.5M-c16-e1": "diverged"}
    run_all(plan, plan.runs, ways(told))
    rows = rows_of(plan)
    found = {name: (row.status, row.attempts) for name, row in rows.items()}
    assert found == {
        "0.1M-c16": ("failed", 1),  # an error that would come again
        "0.1M-c32": ("failed", 2),
        "0.2M-c16": ("done", 2),
        "0.2M-c32": ("failed", 2),
        "0.5M-c16": ("diverged", 1),
        "0.5M-c32": ("done", 1),
    }
    assert rows["0.1M-c16"].reason == "affectgpt train: data.shards: nothing there"
    assert "status 1" in rows["0.1M-c32"].reason
    assert "out of luck" in rows["0.1M-c32"].reason
    assert "SIGKILL" in rows["0.2M-c32"].reason
    assert rows["0.5M-c16"].reason == "affectgpt train: step 4: loss nan"
    assert {row.loss for row in rows.values() if row.status != "done"} == {None}
    lines = status_lines(plan, read_rows(plan))
    assert "2 done, 3 failed, 1 diverged" in lines[1]
    assert any("loss nan" in line for line in lines)
    # What failed as often as it may is left alone; told to, it is tried again.
    before = tries(plan)
    run_all(plan, plan.runs, ways())
    assert tries(plan) == before | {"0.1M-c16": 2}
    run_all(plan, plan.runs, ways(again=True))
    assert {row.status for row in rows_of(plan).values()} == {"done"}


def test_settings_that_do_not_fit_are_a_row_too(tmp_path: Path, features: Path, ways: Callable[..., Ways]) -> None:
    plan = plan_of(tmp_path, features, parts={"law": {"size": "0.1M", "captions": [16, 65]}})
    run_all(plan, plan.runs, ways())
    rows = rows_of(plan)
    assert rows["0.1M-c16"].status == "done"
    assert rows["0.1M-c65"].status == "failed"
    assert "data.samples=65 is more than the 64" in rows["0.1M-c65"].reason


def test_scores_come_from_evaluate(tmp_path: Path, features: Path, ways: Callable[..., Ways]) -> None:
    part = {"size": "0.1M", "captions": 16}
    plan = plan_of(tmp_path, features, parts={"law": part}, metrics=["loss", "hit_rate"], keep_checkpoints=True)
    (row,) = run_all(plan, plan.runs, ways()).rows
    assert row.scores == {"hit_rate": 0.5}
    assert (plan.study.folder / "runs" / row.id / "checkpoints").is_dir()
    write_csv(tmp_path / "rows.csv", [row])
    head, line = (tmp_path / "rows.csv").read_text().splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True))["hit_rate"] == "0.5"


def test_what_another_process_works_on_is_left_to_it(plan: Plan, ways: Callable[..., Ways]) -> None:
    taken = plan.runs[2].id
    lock = plan.study.folder / "runs" / f"{taken}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run_all(plan, plan.runs, ways())
    assert ended.busy == (taken,)
    assert len(ended.rows) == 5
    assert run_all(plan, plan.runs, ways()).busy == ()
    assert len(read_rows(plan)) == 6


def test_what_another_process_has_done_meanwhile_is_not_done_again(
    plan: Plan, ways: Callable[..., Ways], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are looked at again once a run is this process's: between them another one may have finished it."""
    first, claim = plan.runs[0], running.claim

    @contextmanager
    def late(path: Path, *, wait: bool = False) -> Iterator[bool]:
        if path.stem == first.id:
            write_row(plan.study.folder, running._planned(first)._replace(status="done", loss=1.25))
        with claim(path, wait=wait) as mine:
            yield mine

    monkeypatch.setattr(running, "claim", late)
    ended = run_all(plan, plan.runs, ways())
    assert [row.loss for row in ended.rows if row.id == first.id] == [1.25]
    assert tries(plan) == {run.id.split("-e")[0]: int(run != first) for run in plan.runs}


def test_asked_to_stop_it_lets_trainings_save_and_goes_on_later(plan: Plan, ways: Callable[..., Ways]) -> None:
    slow = plan.runs[1]
    begun = plan.study.folder / "runs" / slow.id / "begun"

    def interrupt() -> None:
        while not begun.is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ended = run_all(plan, plan.runs, ways({slow.id.split("-s")[0]: "slow"}, jobs=1))
    thread.join()
    assert ended.stopped
    assert [row.id for row in ended.rows] == [plan.runs[0].id]
    assert not row_path(plan.study.folder, slow.id).exists()
    assert not run_all(plan, plan.runs, ways()).stopped
    assert len(read_rows(plan)) == 6


def test_trainings_get_words_ahead_and_cores_of_their_own(
    plan: Plan, ways: Callable[..., Ways], tmp_path: Path
) -> None:
    script = tmp_path / "before.sh"
    script.write_text(
        f'#!/bin/sh\ntaskset -cp $$ >> {tmp_path}/cores 2>/dev/null || echo none >> {tmp_path}/cores\nexec "$@"\n'
    )
    script.chmod(0o755)
    run_all(plan, plan.runs, ways(before=(str(script),)))
    lines = (tmp_path / "cores").read_text().splitlines()
    assert len(lines) == 6
    cores = len(os.sched_getaffinity(0))
    if cores > 1 and "none" not in lines:
        assert len({line.split(":")[1] for line in lines}) == 2


def test_a_damaged_row_is_named(plan: Plan, ways: Callable[..., Ways]) -> None:
    path = row_path(plan.study.folder, plan.runs[0].id)
    path.parent.mkdir()
    path.write_text('{"id": 1}')
    with pytest.raises(UserError, match=r"is damaged.*delete it"):
        run_all(plan, plan.runs, ways())


def test_the_time_left_counts_starts_and_work(plan: Plan) -> None:
    row = running._planned(plan.runs[0])
    done = [row._replace(flops=flops, seconds=20 + 3e-9 * flops) for flops in (1e9, 2e9, 8e9)]
    assert seconds_left(done, [4e9, 5e9]) == pytest.approx(2 * 20 + 27)
    assert seconds_left(done[:1], [1e9]) == pytest.approx(23)
    assert seconds_left([row._replace(flops=0.0, seconds=5.0)], [0.0]) == pytest.approx(5)  # failed at once


@pytest.mark.parametrize("seed", range(20))
def test_the_time_left_is_that_of_the_nearest_times_that_are_not_negative(plan: Plan, seed: int) -> None:
    row, rng = running._planned(plan.runs[0]), np.random.default_rng(seed)
    flops, seconds = rng.uniform(1e9, 9e9, 4), rng.uniform(10, 90, 4)
    start, work = nnls(np.stack([np.ones(4), flops / 1e9], axis=1), seconds)[0]
    done = [row._replace(flops=f, seconds=s) for f, s in zip(flops, seconds, strict=True)]
    assert seconds_left(done, [3e9, 7e9]) == pytest.approx(2 * start + 10 * work)


def test_a_thousand_rows_are_told_quickly(tmp_path: Path, features: Path) -> None:
    part = {"size": "0.1M", "captions": list(range(10, 60))}
    plan = plan_of(tmp_path, features, parts={"law": part}, seeds=20)
    for run in plan.runs:
        write_row(plan.study.folder, running._planned(run)._replace(status="done", loss=1.0, seconds=1.0))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan.study.model_dump(mode="json")))
    started = time.perf_counter()
    words = [sys.executable, "-m", "affectgpt_jax.cli", "scaling", "status", str(tmp_path / "study.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "1000 done" in done.stdout
    assert "jax" not in done.stderr
    assert time.perf_counter() - started < 20  # about 1.5 s; with jax imported it would be told apart by the next line
    check = "import sys; from affectgpt_jax.cli import main; main(sys.argv[1:]); sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", check, *words[3:]], check=False, stdout=subprocess.DEVNULL).returncode
        == 0
    )


@pytest.mark.slow
def test_a_study_from_its_file_to_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four real trainings, by the commands; the plan changes, and what is done stays done."""
    study = {
        "name": "whole",
        "base": "smoke",
        "synthetic": {"validation": 32, "test": 16},
        "parts": {"law": {"size": ["0.05M", "0.1M"], "captions": [48, 96], "prefusion": "attention"}},
        "points": 2,
        "metrics": ["loss", "hit_rate"],
        "learning_rate": {"rate": 3e-3},
        "output": str(tmp_path / "study"),
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    assert main(["scaling", "plan", str(file)]) == 0
    assert "4 runs" in capsys.readouterr().out
    assert main(["scaling", "run", str(file), "--only", "0"]) == 0
    assert main(["scaling", "run", str(file), "--jobs", "2"]) == 0
    assert "4 of 4 runs done" in capsys.readouterr().out
    assert main(["scaling", "fit", str(file)]) == 1  # two sizes carry no law
    assert "carry no law" in capsys.readouterr().out
    parts: dict[str, Any] = study["parts"]  # type: ignore[assignment]
    parts["kinds"] = {"size": ["0.05M", "0.1M"], "captions": 48, "prefusion": ["none", "attention"]}
    file.write_text(yaml.safe_dump(study))
    assert main(["scaling", "run", str(file)]) == 2
    assert "was changed since its plan" in capsys.readouterr().err
    assert main(["scaling", "plan", str(file)]) == 0
    assert main(["scaling", "run", str(file)]) == 0
    assert "6 of 6 runs done" in capsys.readouterr().out
    assert main(["scaling", "report", str(file), "--budget", "1e12", "1 hours"]) == 0
    page = (tmp_path / "study" / "report.html").read_text()
    assert "hit_rate" in page
    assert "<picture>" in page
    rows = (tmp_path / "study" / "results.csv").read_text().splitlines()
    assert len(rows) == 7
