"""Processes that come, meet, fail and fall silent, without JAX: what is said of it, how soon, and how each one ends."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from affectgpt_jax.distributed import Limits, Place, barrier, log_to
from affectgpt_jax.errors import UserError
from tests.multiprocess.launch import KILL, STOP, TERM, Running, Work, do, free_port, is_alive, running, wait_until

HOST = socket.gethostname()
LIMITS = Limits(start=10.0, silence=8.0)
SOON = 5.0
"""Seconds in which everything must have ended that does not wait for a limit: one for failures to settle, the rest for
a machine that is busy."""


@contextmanager
def job(
    folder: Path, work: Work, processes: int, limits: Limits = LIMITS, start: Sequence[int] | None = None
) -> Iterator[list[Running]]:
    """A job of which only some processes are started, where `start` says so."""
    port = free_port()
    numbers = range(processes) if start is None else start
    places = [Place("flags", f"localhost:{port}", processes, number) for number in numbers]
    with running(do, [(work, place, limits, folder) for place in places], folder) as started:
        yield started


def pid_file(folder: Path, process: int) -> Path:
    return folder / f"pid-{process}"


def wait_for_start(folder: Path, processes: Sequence[Running]) -> None:
    wait_until(lambda: all(pid_file(folder, i).exists() for i in range(len(processes))), 20.0, processes)


def begin(place: Place, folder: Path) -> None:
    """All are there, and say who they are."""
    barrier("begin", 10.0)
    draft = pid_file(folder, place.process).with_suffix(".part")
    draft.write_text(str(os.getpid()))
    draft.rename(pid_file(folder, place.process))


def for_ever(place: Place, folder: Path) -> int:
    begin(place, folder)
    time.sleep(60.0)
    return 0


def meets(place: Place, folder: Path) -> int:
    log_to(folder / "logs")
    print(f"out of {place.process}")
    for _ in range(3):
        barrier("again", 10.0)
    os.write(2, b"C code speaks")  # without a newline, and not by Python's stderr
    return 0


def test_all_meet_and_end(tmp_path: Path) -> None:
    with job(tmp_path, meets, 3) as processes:
        assert [process.wait(20.0) for process in processes] == [0, 0, 0]
        assert sorted(processes[0].said().splitlines()) == ["C code speaks", "out of 0"]
        assert sorted(processes[2].said().splitlines()) == ["[2] C code speaks", "[2] out of 2"]
    for number in range(3):
        told = (tmp_path / "logs" / f"process-{number:04d}.log").read_text()
        assert sorted(told.splitlines()) == ["C code speaks", f"out of {number}"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_training_process_is_killed(tmp_path: Path, victim: int) -> None:
    with job(tmp_path, for_ever, 3) as processes:
        wait_for_start(tmp_path, processes)
        pids = [int(pid_file(tmp_path, number).read_text()) for number in range(3)]
        os.kill(pids[victim], KILL)
        for number, process in enumerate(processes):
            assert process.wait(SOON) == (137 if number == victim else 3)
            assert f"affectgpt train: process {victim} on {HOST} was ended by SIGKILL" in process.said()
        assert not any(map(is_alive, pids))


@pytest.mark.parametrize("victim", [0, 2])
def test_a_keeper_is_killed(tmp_path: Path, victim: int) -> None:
    with job(tmp_path, for_ever, 3) as processes:
        wait_for_start(tmp_path, processes)
        pids = [int(pid_file(tmp_path, number).read_text()) for number in range(3)]
        processes[victim].signal(KILL)
        others = [process for number, process in enumerate(processes) if number != victim]
        for process in others:
            assert process.wait(SOON) == 3
            name = "process 0 at localhost:" if victim == 0 else f"process 2 on {HOST} "
            assert f"affectgpt train: {name}" in process.said()
            assert "is gone: its connection closed without a word" in process.said()
        wait_until(lambda: not any(map(is_alive, pids)), SOON, processes)


@pytest.mark.parametrize(("victim", "whole"), [(1, True), (1, False), (0, True)])
def test_a_process_falls_silent(tmp_path: Path, victim: int, whole: bool) -> None:
    """A frozen machine, or a training process that is frozen under its keeper."""
    with job(tmp_path, for_ever, 2, Limits(10.0, silence=3.0)) as processes:
        wait_for_start(tmp_path, processes)
        os.kill(int(pid_file(tmp_path, victim).read_text()), STOP)
        if whole:
            processes[victim].signal(STOP)
        stopped = time.monotonic()
        other = processes[1 - victim]
        assert other.wait(3.0 + SOON) == 3
        assert time.monotonic() - stopped > 2.2  # the last beat came up to a quarter of the limit before
        assert f"affectgpt train: process {victim} " in other.said()
        assert "has not been heard of for 3 s" in other.said()


def fails_after(place: Place, folder: Path) -> int:
    """Process 1 is killed; 0 sees that as JAX does, in an exception, and 2 by an abort."""
    begin(place, folder)
    while not pid_file(folder, 1).exists():
        time.sleep(0.01)
    victim = int(pid_file(folder, 1).read_text())
    while is_alive(victim) or place.process == 1:
        time.sleep(0.001)
    if place.process == 2:
        os.abort()
    raise ValueError("Connection reset by peer")


def test_the_cause_is_named_not_what_it_caused(tmp_path: Path) -> None:
    with job(tmp_path, fails_after, 3) as processes:
        wait_for_start(tmp_path, processes)
        os.kill(int(pid_file(tmp_path, 1).read_text()), KILL)
        assert [process.wait(SOON) for process in processes] == [3, 137, 3]
        for process in processes:
            last = process.said().splitlines()[-1]
            assert last.endswith(
                f"affectgpt train: process 1 on {HOST} was ended by SIGKILL, perhaps because memory ran out"
            )


def one_refuses(place: Place, folder: Path) -> int:
    begin(place, folder)
    if place.process == 1:
        raise UserError("the shards are damaged")
    time.sleep(60.0)
    return 0


def test_an_error_of_one_is_told_to_all(tmp_path: Path) -> None:
    with job(tmp_path, one_refuses, 2) as processes:
        assert [process.wait(20.0) for process in processes] == [3, 2]
        expected = f"process 1 on {HOST} ended with exit status 2: affectgpt train: the shards are damaged"
        assert processes[0].said() == f"affectgpt train: {expected}\n"
        assert processes[1].said() == "[1] affectgpt train: the shards are damaged\n"


def all_refuse(place: Place, folder: Path) -> int:
    raise UserError("unknown key train.stpes")


def test_an_error_of_all_is_told_once_by_each(tmp_path: Path) -> None:
    with job(tmp_path, all_refuse, 2) as processes:
        assert [process.wait(20.0) for process in processes] == [2, 2]
        assert processes[0].said() == "affectgpt train: unknown key train.stpes\n"


def test_missing_at_the_start(tmp_path: Path) -> None:
    with job(tmp_path, for_ever, 4, Limits(start=3.0), start=[0, 2]) as processes:
        begun = time.monotonic()
        assert [process.wait(20.0) for process in processes] == [3, 3]
        assert 2.0 < time.monotonic() - begun < 3.0 + SOON
        for process in processes:
            assert "of 4 processes, processes 1 and 3 did not come within 3 s (--start-timeout)" in process.said()
            assert f"here are 0 on {HOST}, 2 on {HOST}" in process.said()


@pytest.mark.parametrize("coordinator", ["localhost", "no-such-host.invalid"])
def test_nobody_at_the_address(tmp_path: Path, coordinator: str) -> None:
    where = f"{coordinator}:{free_port()}"
    place = Place("flags", where, 2, 1)
    with running(do, [(for_ever, place, Limits(start=2.0), tmp_path)], tmp_path) as (process,):
        assert process.wait(2.0 + SOON) == 3
        expected = f"process 1 on {HOST} could not reach process 0 at {where} within 2 s (--start-timeout): "
        assert expected in process.said()


def test_somebody_else_at_the_address(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        first, second = (Place("flags", f"localhost:{port}", 2, number) for number in range(2))
        given = [(for_ever, place, LIMITS, tmp_path) for place in (second, first)]
        with running(do, given[:1], tmp_path / "second") as (process,):
            assert process.wait(20.0) == 2
            assert f"what answers at localhost:{port} is no job of this program" in process.said()
        with running(do, given[1:], tmp_path / "first") as (process,):
            assert process.wait(20.0) == 2
            assert f"port {port} of {HOST} cannot be opened" in process.said()


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    port = free_port()
    places = [Place("flags", f"localhost:{port}", *numbers) for numbers in ((2, 0), (2, 0), (3, 1), (2, 1))]
    works = [(for_ever, place, LIMITS, tmp_path) for place in places]
    with running(do, [works[0], works[2]], tmp_path / "a") as (_, other):
        assert other.wait(20.0) == 2
        assert f"process 0 refuses this process: process 1 on {HOST} expects 3 processes, process 0 2" in other.said()
    port = free_port()
    places = [Place("flags", f"localhost:{port}", 3, number) for number in (0, 1, 1)]
    with running(do, [(for_ever, place, LIMITS, tmp_path) for place in places], tmp_path / "b") as processes:
        wait_until(lambda: any("is there twice" in process.said() for process in processes), 20.0, processes)


def one_is_late(place: Place, folder: Path) -> int:
    begin(place, folder)
    if place.process != 2:
        barrier("run folder", 1.0)
    time.sleep(60.0)
    return 0


def test_late_at_a_barrier(tmp_path: Path) -> None:
    with job(tmp_path, one_is_late, 4) as processes:
        assert [process.wait(20.0) for process in processes] == [3, 3, 3, 3]
        for number in (0, 1, 3):
            said = f"affectgpt train: barrier 'run folder': process 2 (on {HOST}) did not come within 1 s"
            assert said in processes[number].said()
        assert (
            f"process 0 on {HOST} ended with exit status 3: affectgpt train: barrier 'run folder'"
            in processes[2].said()
        )


def stops_when_asked(place: Place, folder: Path) -> int:
    asked = threading.Event()
    signal.signal(TERM, lambda *_: asked.set())
    begin(place, folder)
    while not asked.is_set() and not (folder / "stop").exists():
        time.sleep(0.01)
    (folder / "stop").touch()
    return 130


@pytest.mark.parametrize("number", [TERM, signal.SIGINT])
def test_asked_to_stop(tmp_path: Path, number: int) -> None:
    with job(tmp_path, stops_when_asked, 2) as processes:
        wait_for_start(tmp_path, processes)
        processes[1].signal(number)
        assert [process.wait(SOON) for process in processes] == [130, 130]
        assert [process.said() for process in processes] == ["", ""]


def test_asked_to_stop_before_it_can_save(tmp_path: Path) -> None:
    with job(tmp_path, for_ever, 2) as processes:
        wait_for_start(tmp_path, processes)
        processes[1].signal(TERM)
        assert [process.wait(SOON) for process in processes] == [3, 130]
        assert f"process 1 on {HOST} was ended by SIGTERM" in processes[0].said()
