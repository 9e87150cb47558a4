"""Training by several processes: the same numbers as by one, however often it is stopped, killed and started again."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.distributed import Given, Limits, Machine, Place, find_place, part_of_batch, start_jax
from affectgpt_jax.distributed.job import Found, check_devices
from affectgpt_jax.errors import UserError
from affectgpt_jax.training import data, loop
from tests.multiprocess.launch import (
    KILL,
    TERM,
    Running,
    do,
    free_port,
    note_rows,
    rows_of,
    running,
    train,
    wait_until,
)
from tests.tiny_run import make_tiny, tiny_config

pytestmark = pytest.mark.slow

HOST = socket.gethostname()
FLAGS = ["--start-timeout", "60", "--peer-timeout", "30"]
MINUTES = 240.0
"""Seconds that JAX may take to start and compile on a machine that is busy; a test fails after that."""


def smallest(folder: Path, **changes: object) -> RunConfig:
    """The least that trains, at one learning rate however many steps there are.

    AdamW divides by the gradient's size, and where that is rounding error another order of sums moves entries either
    way; a larger eps keeps them still.
    """
    model = {"mode": "face_text", "prefusion": "none", "video": "mean", "audio": "mean", "decoder__layers": 1}
    given = {f"model__{key}": value for key, value in model.items()}
    optimizer = {"train__optimizer__eps": 1e-3, "train__optimizer__end": 1e-3}
    return tiny_config(folder, **{**given, **optimizer, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def train_here(folder: Path, config: RunConfig) -> dict[int, float]:
    """Train in this process, noting rows; gives the losses by step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "training_batches", note_rows(data.training_batches, folder / "rows"))
        loop.train(config, folder)
    return losses(folder)


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; every step must have been written once."""
    lines = [line for line in logged(folder) if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss"] for line in lines}


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_written(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def command(config: Path, processes: int, *words: str) -> list[tuple]:
    """Arguments of `launch.train` for each process; its rows go beside the run."""
    where = ["--coordinator", f"localhost:{free_port()}", "--processes", str(processes)]
    return [
        ([str(config), *where, "--process", str(number), *FLAGS, *words], config.parent / "rows")
        for number in range(processes)
    ]


def assert_close(found: dict[int, float], expected: dict[int, float], tolerance: float) -> None:
    assert found
    steps = sorted(found)
    np.testing.assert_allclose([found[i] for i in steps], [expected[i] for i in steps], rtol=tolerance)


def test_two_processes_train_as_one_and_stop_together(tiny: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two: both save the same step. Losses and answers are those of one process."""
    folder = tmp_path / "run"
    # Their answers go over the devices in batches of three, which two do not divide.
    validates = {"validation": {"every": 2, "answers": 2}, "evaluate__batch": 3, "evaluate__split": "test"}
    config = smallest(tiny, train__steps=100_000, train__output=str(folder), **validates)
    save_config(config, tmp_path / "run.yaml")
    with running(train, command(tmp_path / "run.yaml", 2, "--expect-devices", "2"), tmp_path / "said") as processes:
        wait_until(lambda: steps_written(folder) >= 3, MINUTES, processes)
        processes[1].signal(TERM)
        assert [process.wait(60.0) for process in processes] == [130, 130], [process.said() for process in processes]
        said = processes[0].said()
    together = losses(folder)
    last = max(together)
    assert sorted(together) == list(range(1, last + 1))
    assert f"stopped and saved at step {last}" in said
    assert ", 0 of them after the first step" in said
    assert max(int(path.name) for path in (folder / "checkpoints").iterdir()) == last
    for number in range(2):
        rows = (tmp_path / "rows" / f"rows-{number}.jsonl").read_text().splitlines()
        assert json.loads(rows[-1])["step"] >= last  # made ahead of the step
        assert (folder / "logs" / f"process-{number:04d}.log").is_file()

    alone = train_here(tmp_path / "alone", smallest(tiny, train__steps=last, **validates))
    assert_close(together, alone, 1e-5)
    ours, theirs = (
        [line for line in logged(each) if "validation_loss" in line] for each in (folder, tmp_path / "alone")
    )
    assert len(ours) >= 1
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    ours = rows_of(tmp_path / "alone" / "rows", 1)
    found = rows_of(tmp_path / "rows", 2)
    assert all(found[step] == ours[step] for step in together)


def test_fewer_devices_than_expected(tiny: Path, tmp_path: Path) -> None:
    """Process 1 has one device of two."""
    save_config(smallest(tiny), tmp_path / "run.yaml")
    count = "--xla_force_host_platform_device_count="
    environ = [{"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}{devices}"} for devices in (2, 1)]
    arguments = command(tmp_path / "run.yaml", 2, "mesh.data=4")
    with running(train, arguments, tmp_path / "said", environ) as processes:
        assert [process.wait(60.0) for process in processes] == [2, 2]
        for process in processes:
            expected = f"devices: 3 appeared, expected 4: process 1 on {HOST} has 1 (cpu), expected 2."
            assert f"affectgpt train: {expected}" in process.said()


def never_lists_devices(place: Place, folder: Path) -> int:
    """Process 1 hangs in its driver."""
    import jax

    if place.process == 1:
        jax.local_device_count = lambda: time.sleep(60.0)  # type: ignore[assignment]
    start_jax(None)
    return 0


def test_devices_that_never_appear(tmp_path: Path) -> None:
    where = f"localhost:{free_port()}"
    given = [(never_lists_devices, Place("flags", where, 2, i), Limits(start=5.0), tmp_path) for i in range(2)]
    with running(do, given, tmp_path) as processes:
        assert [process.wait(30.0) for process in processes] == [3, 3]
        for number, process in enumerate(processes):
            expected = f"process {number} on {HOST}: the devices of all processes did not appear within 5 s"
            assert expected in process.said()


@pytest.mark.parametrize(
    ("found", "expect", "message"),
    [
        ([Found("a", 8, "gpu", 8), Found("b", 7, "gpu", 8)], None, "15 appeared, expected 16: process 1 on b has 7 "),
        ([Found("a", 8, "gpu", 8), Found("b", 1, "cpu", 8)], 16, "9 appeared, expected 16: process 1 on b has 1 .cpu."),
        ([Found("a", 1, "gpu", None)] * 4, 32, "4 appeared, expected 32: process 0 on a has 1 .gpu., expected 8; pro"),
        ([Found("a", 4, "tpu", None)] * 2, 4, "8 appeared, expected 4: process 0 on a has 4 .tpu., expected 2"),
        ([Found("a", 4, "tpu", None)] * 3, 16, "12 appeared, expected 16: process 0 on a has 4 .tpu.; pro"),
        ([Found("a", 1, "cpu", None)], 8, "1 appeared, expected 8: process 0 on a has 1"),
    ],
)  # fmt: skip
def test_devices_that_do_not_fit(found: list[Found], expect: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_devices(found, expect)


def test_devices_that_fit() -> None:
    check_devices([Found("a", 8, "gpu", 8), Found("b", 8, "gpu", 8)], 16)
    for expect in (None, 12):
        check_devices([Found("a", 8, "gpu", None), Found("b", 4, "gpu", None)], expect)
    place = find_place(Machine({}), Given("a:1", 2, 0, (0, 1)))
    assert place is not None
    assert place.expected == 2


class Device(NamedTuple):
    """A device of a process."""

    number: int
    process_index: int


class Rows(NamedTuple):
    """A sharding, of which only the rows of each process's devices are known."""

    of: dict[int, list[slice]]

    def devices_indices_map(self, shape: tuple[int, int]) -> dict[Any, tuple[slice, slice]]:
        pairs = [(process, part) for process, parts in self.of.items() for part in parts]
        return {Device(number, process): (slice(None), part) for number, (process, part) in enumerate(pairs)}


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        # A part for each process; two processes that share a model; one whose devices hold everything.
        ({0: [slice(0, 2), slice(2, 4)], 1: [slice(4, 6), slice(6, 8)]}, [(0, 2), (1, 2)]),
        ({0: [slice(0, 4)], 1: [slice(0, 4)], 2: [slice(4, 8)], 3: [slice(4, 8)]}, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ({0: [slice(None)] * 4, 1: [slice(None)] * 4}, [(0, 1), (0, 1)]),
        ({1: [slice(0, 4)], 0: [slice(4, 8)]}, [(1, 2), (0, 2)]),
    ],
)
def test_part_of_batch(rows: dict, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    for process, expected in enumerate(parts):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        assert part_of_batch(Rows(rows), 8) == expected  # type: ignore[arg-type]


@pytest.mark.long
def test_one_of_four_is_killed(tiny: Path, tmp_path: Path) -> None:
    """The others end and name it; four go on, or one does, and fifty steps are those of an undisturbed run."""
    undisturbed = train_here(tiny / "fifty", smallest(tiny, train__steps=50))
    folder = tmp_path / "run"
    config = smallest(tiny, train__steps=50, train__checkpoint_every=5, train__output=str(folder))
    save_config(config, tmp_path / "run.yaml")

    def is_there() -> bool:
        saved = folder / "checkpoints"
        return saved.exists() and any(path.name.isdigit() for path in saved.iterdir())

    def kill(processes: list[Running]) -> None:
        wait_until(is_there, MINUTES, processes)
        processes[2].signal(KILL)

    said = run_four(tmp_path, kill, expected=[3, 3, -KILL, 3])
    for number in (0, 1, 3):
        assert f"affectgpt train: process 2 on {HOST} is gone: its connection closed without a word" in said[number]
    reached = steps_written(folder)
    assert reached < 50
    (folder / "metrics.jsonl").rename(tmp_path / "before.jsonl")
    shutil.rmtree(tmp_path / "rows")
    shutil.copytree(folder, tmp_path / "one")

    run_four(tmp_path, lambda processes: None, expected=[0] * 4)
    resumed = losses(folder)
    assert max(resumed) == 50
    assert min(resumed) % 5 == 1
    assert_close(resumed, undisturbed, 1e-6)
    ours = rows_of(tiny / "fifty" / "rows", 1)
    assert rows_of(tmp_path / "rows", 4) == {step: ours[step] for step in resumed}

    taken_over = train_here(tmp_path / "one", config)
    assert set(taken_over) == set(resumed)
    assert_close(taken_over, undisturbed, 1e-4)
    assert rows_of(tmp_path / "one" / "rows", 1) == {step: ours[step] for step in resumed}


def run_four(folder: Path, meanwhile: Callable[[list[Running]], None], expected: list[int]) -> list[str]:
    """Four processes of `folder`/run.yaml; gives what each has said."""
    with running(train, command(folder / "run.yaml", 4), folder / "said") as processes:
        meanwhile(processes)
        statuses = [process.wait(MINUTES) for process in processes]
        said = [process.said() for process in processes]
        assert statuses == expected, said
    return said
