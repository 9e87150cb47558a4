"""Carries out a plan: trains each run by the program's own command, and writes its row.

What is done is not done again, what was interrupted goes on from its checkpoint, a run that fails becomes a row that
says why. Any number of these may work on the same study at the same time, on one machine or many that see the same
folder: a run that another one works on is left to it.
"""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.config.loading import RUN_CONFIG
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.report.record import RunRecord, read_record
from affectgpt_jax.machine import NoLocks, lock
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.scaling.plan import Plan, Run
from affectgpt_jax.scaling.rows import Row, read_row, row_path, seconds_left, write_row
from affectgpt_jax.training.data import RunData, make_data, open_training_shards
from affectgpt_jax.training.flops import decoder_work, lengths_work
from affectgpt_jax.training.telemetry import clock
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from affectgpt_jax.weights.trainable import split

RUNS, LOG, SCORES = "runs", "log.txt", "scores"
LOGGED = 50
"""Lines of metrics of a training, about."""
STOPPED = 130
"""Exit status of a training that was asked to stop and has saved."""
FAULT = 2
"""Exit status of an error that would come again."""
SHOWN = 600
"""Characters of a reason."""


class Ways(NamedTuple):
    """How runs are started.

    Attributes:
      before: words ahead of the training's command, such as ("srun", "--nodes", "4").
      jobs: runs at a time; on a CPU each gets its share of the cores.
      again: also try what has failed as often as the study allows.
      say: told of each run.
      echo: told each line that a training prints.
      environment: of the trainings.
    """

    before: tuple[str, ...]
    jobs: int
    again: bool
    say: Callable[[str], None]
    echo: Callable[[str], None]
    environment: Mapping[str, str]


class Ended(NamedTuple):
    """How a study's running ended.

    Attributes:
      rows: of the runs that were asked for, as far as there are any.
      busy: runs that another process works on.
      stopped: whether it was asked to stop.
    """

    rows: tuple[Row, ...]
    busy: tuple[str, ...]
    stopped: bool


class _Wanted(NamedTuple):
    """A run as it is trained.

    Attributes:
      config: everything of it.
      data: what it goes through.
      steps: optimizer steps, whole passes.
      tokens: of all samples.
      targets: of them.
      flops: of the training.
    """

    config: RunConfig
    data: RunData
    steps: int
    tokens: int
    targets: int
    flops: float


def run_all(plan: Plan, runs: Sequence[Run], ways: Ways) -> Ended:
    """Train what is not done yet.

    Args:
      plan: the study's.
      runs: those of its runs that are asked for.
      ways: how.

    Raises:
      UserError: a run's data or settings do not fit; nothing that only one training says.
    """
    folder = plan.study.folder
    rows = {run.id: read_row(row_path(folder, run.id)) for run in runs}

    def is_open(run: Run) -> bool:
        """Whether a run is still to be trained."""
        row = rows[run.id]
        if row is None or row.status == "done":
            return row is None
        return ways.again or (row.status == "failed" and row.attempts <= plan.study.retries)

    left = list(filter(is_open, runs))
    busy: list[str] = []
    counter = _Counter(left, len(runs), ways.say)
    preparing = threading.Lock()  # one after the other: the first fills the cache of tokens
    with _Children(ways.environment) as children:

        def work(run: Run) -> None:
            if children.stopped:
                return
            with claim(folder / RUNS / f"{run.id}.lock") as mine:
                if not mine:
                    busy.append(run.id)
                    return
                rows[run.id] = read_row(row_path(folder, run.id))
                if not is_open(run):
                    return  # another process has done it since
                with preparing:
                    wanted = _prepare(plan, run)
                row = _train(plan, run, wanted, ways, children, rows[run.id])
                if row is not None:
                    write_row(folder, row)
                    rows[run.id] = row
                    counter.done(run, row)

        with ThreadPoolExecutor(ways.jobs, initializer=_share_cores(ways.jobs)) as threads:
            for future in [threads.submit(work, run) for run in left]:
                try:
                    future.result()
                except BaseException:
                    children.stop()
                    raise
    found = tuple(row for row in rows.values() if row is not None)
    return Ended(found, tuple(busy), children.stopped)


def _train(
    plan: Plan, run: Run, wanted: "_Wanted | UserError", ways: Ways, children: "_Children", before: Row | None
) -> Row | None:
    """One run, as often as the study allows; None if it was asked to stop."""
    attempts = 0 if before is None or ways.again else before.attempts
    if isinstance(wanted, UserError):
        return _planned(run)._replace(reason=str(wanted)[:SHOWN], attempts=attempts + 1)
    folder = plan.study.folder / RUNS / run.id
    started, earlier = time.perf_counter(), before.seconds if before else 0.0
    config_file = folder / "study.yaml"
    save_config(wanted.config, config_file)
    command = [*ways.before, *_affectgpt("train"), str(config_file)]
    with (folder / LOG).open("a", encoding="utf-8") as log:
        while True:
            attempts += 1
            code, last = children.run(command, log, ways.echo)
            if code == STOPPED or children.stopped:
                children.stop()
                return None
            if code == 0 or code == FAULT or attempts > plan.study.retries:
                break
            ways.say(f"{run.id}: {_reason(code, last)}; trying again")
        if code == 0 and plan.study.metrics != ("loss",):
            command = [*_affectgpt("evaluate"), str(folder), "--plain", "--output", str(folder / SCORES)]
            code, last = children.run(command, log, ways.echo)
            if children.stopped:
                return None
    seconds = round(earlier + time.perf_counter() - started, 3)
    row = _planned(run)._replace(attempts=attempts, seconds=seconds, reason=_reason(code, last) if code else "")
    if not (folder / RUN_CONFIG).is_file():
        return row  # it did not come to train
    record = read_record(folder)
    row = _measured(plan, row, wanted, record)
    if code:
        return row._replace(status="diverged" if _diverged(record) else "failed")
    if not plan.study.keep_checkpoints:
        for name in ("checkpoints", "best"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return row._replace(status="done", loss=row.losses[-1][1])


def _affectgpt(command: str) -> list[str]:
    return [sys.executable, "-m", "affectgpt_jax.cli", command]


def _prepare(plan: Plan, run: Run) -> "_Wanted | UserError":
    """What a run goes through, and its config with what follows from that; or what is wrong with it."""
    try:
        return _resolve(plan, run)
    except UserError as error:
        return error


def _resolve(plan: Plan, run: Run) -> _Wanted:
    study = plan.study
    data_settings = []
    if (shards := plan.shards) is not None:
        data_settings = [f"data.shards={shards}", f"weights.tokenizer={shards / 'tokenizer'}"]
    config, tokenizer = resolve(plan.config(run, data_settings))
    # The training looks at every byte itself.
    data = make_data(config, tokenizer, open_training_shards(config, verify=False), lambda line: None)
    epochs = [data.plan.epoch(epoch) for epoch in range(run.setting.epochs)]
    steps = sum(map(data.plan.epoch_steps, range(run.setting.epochs)))
    types, samples = (np.concatenate([getattr(rows, name) for rows in epochs]) for name in ("types", "samples"))
    work = lengths_work(data.plan.tokens[types, samples], data.plan.targets[types, samples])
    trees = split(config.model, parameter_shapes(AffectGPT(config.model)), config.train.trainable)
    form = decoder_work(config.model.decoder, *trees)
    every = math.ceil(steps / study.points)
    more = [
        f"name={run.id}",
        f"train.output={study.folder / RUNS / run.id}",
        f"train.steps={steps}",
        f"train.optimizer.warmup_steps={round(study.learning_rate.warmup * steps)}",
        f"train.checkpoint_every={every}",
        "train.keep=1",
        f"train.log_every={math.ceil(steps / LOGGED)}",
        f"validation.every={every}",
    ]
    final = plan.config(run, [*data_settings, *more])
    return _Wanted(final, data, steps, int(work.tokens), int(work.targets), form.flops(work))


def _planned(run: Run) -> Row:
    """The row of a run of which nothing is known but its plan."""
    cost = run.cost
    return Row(
        id=run.id,
        parts=run.parts,
        setting=run.setting,
        seed=run.seed,
        status="failed",
        reason="",
        attempts=0,
        parameters=cost.parameters,
        body=cost.body,
        trained=cost.trained,
        samples=cost.samples,
        tokens=0,
        targets=0,
        flops=cost.flops,
        steps=0,
        rate=0.0,
        loss=None,
        losses=(),
        scores={},
        seconds=0.0,
        samples_per_s=None,
        predicted=cost.samples_per_s,
        chip="",
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _measured(plan: Plan, row: Row, wanted: _Wanted, record: RunRecord) -> Row:
    """A row with what its run's folder says, as far as it came."""
    curves, nothing = record.curves, np.empty(0)
    measured = curves.get("validation_loss", nothing)
    losses = [
        (wanted.data.plan.samples_before(int(curves["step"][i])), round(float(measured[i]), 6))
        for i in np.flatnonzero(np.isfinite(measured))
    ]
    speeds = curves.get("samples_per_s", nothing)
    speeds = speeds[np.isfinite(speeds)][1:]  # the first step's compiles
    scores = next(iter(record.others[SCORES]["scores"].values())) if SCORES in record.others else {}
    return row._replace(
        tokens=wanted.tokens,
        targets=wanted.targets,
        flops=wanted.flops,
        steps=wanted.steps,
        rate=wanted.config.train.optimizer.peak,
        losses=tuple(losses),
        scores={name: scores[name]["value"] for name in plan.study.metrics if name in scores},
        samples_per_s=round(float(np.median(speeds)), 3) if len(speeds) else None,
        chip=str(record.facts.get("devices", "")),
    )


def _diverged(record: RunRecord) -> bool:
    """Whether the last step that was noted was a bad one."""
    return bool(np.isfinite(record.curves.get("bad_loss", np.array([np.nan]))[-1]))


def _reason(code: int, last: Sequence[str]) -> str:
    """Why a command ended, by its status and its last words."""
    said = " ".join(line.strip() for line in last if line.strip())
    errors = said.rfind("affectgpt train: "), said.rfind("affectgpt evaluate: ")
    if max(errors) >= 0:
        return said[max(errors) :][:SHOWN]
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"killed by {name}{', mostly for want of memory' if name == 'SIGKILL' else ''}"
    return f"ended with status {code}: {said[-SHOWN:]}"


# ---------------------------------------------------------------------------------------------------------------------
# Processes


class _Children:
    """Commands at work; a first SIGTERM or Ctrl-C lets them save and stop. Use it in the main thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.stopped = False
        self._at_work: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> "_Children":
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask all of them to stop, and start none any more."""
        self.stopped = True
        for child in list(self._at_work):
            child.terminate()

    def run(self, command: Sequence[str], log: Any, echo: Callable[[str], None]) -> tuple[int, list[str]]:
        """Run one to its end; its status, and the last lines that it printed."""
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        # A group of its own: Ctrl-C comes through `stop`, once.
        child = subprocess.Popen(
            command,
            env=dict(self._environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._at_work.add(child)
        if self.stopped:
            child.terminate()
        last: deque[str] = deque(maxlen=20)
        assert child.stdout is not None
        for line in child.stdout:
            log.write(line)
            log.flush()
            echo(line.rstrip("\n"))
            last.append(line)
        code = child.wait()
        child.stdout.close()
        self._at_work.discard(child)
        return code, list(last)


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone may work on something; given up when it ends, however it ends.

    Args:
      path: a file that stands for the work.
      wait: until whoever works on it is done.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            mine = lock(file, wait=wait)
        except NoLocks as error:
            raise UserError(
                f"the file system of {path.parent} has no locks ({error}), by which runs are shared out: put the "
                "study's output on another one"
            ) from error
        yield mine


def _share_cores(jobs: int) -> Callable[[], None]:
    """What gives each worker thread, and what it starts, its own part of this process's cores."""
    if jobs == 1 or not hasattr(os, "sched_setaffinity"):
        return lambda: None
    cores = sorted(os.sched_getaffinity(0))
    shares = [cores[i::jobs] for i in range(jobs)]
    taken = iter([share or cores for share in shares])
    lock = threading.Lock()

    def take() -> None:
        with lock:
            os.sched_setaffinity(0, next(taken))  # of the calling thread

    return take


class _Counter:
    """Says how far a study is."""

    def __init__(self, left: Sequence[Run], total: int, say: Callable[[str], None]) -> None:
        self._left, self._total, self._say = {run.id: run.cost.flops for run in left}, total, say
        self._rows: list[Row] = []
        self._started = time.perf_counter()
        self._lock = threading.Lock()

    def done(self, run: Run, row: Row) -> None:
        """A run has its row."""
        with self._lock:
            del self._left[run.id]
            self._rows.append(row)
            told = f"loss {row.loss:.4f}" if row.loss is not None else f"{row.status}: {row.reason}"
            eta = ""
            if self._left:
                passed, worked = time.perf_counter() - self._started, sum(row.seconds for row in self._rows)
                left = seconds_left(self._rows, list(self._left.values())) * (passed / worked if worked else 1.0)
                eta = f", about {clock(left)} left"
            self._say(f"{self._total - len(self._left)}/{self._total}  {run.id}: {told}  ({clock(row.seconds)}{eta})")
