"""Processes of a job on this machine, forked from a small server that has imported everything once."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from affectgpt_jax.cli import main
from affectgpt_jax.cli import train as command
from affectgpt_jax.distributed import Limits, Place, supervise

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])

Work = Callable[[Place, Path], int]
"""What a process does: given its place and a folder, returns the exit status."""


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Running:
    """One process, that is its keeper; what it prints goes to a file."""

    def __init__(
        self, target: Callable[..., int], args: tuple[Any, ...], file: Path, environ: Mapping[str, str]
    ) -> None:
        self._file = file
        self._process = CHILDREN.Process(target=_run, args=(target, args, str(file), dict(environ)))
        self._process.start()

    def signal(self, number: int) -> None:
        """Send the keeper a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit status; the process must end within some seconds."""
        self._process.join(seconds)
        status = self._process.exitcode
        assert status is not None, f"still running after {seconds} s: {self.said()}"
        return status

    def said(self) -> str:
        """All that it has printed."""
        return self._file.read_text(errors="replace") if self._file.exists() else ""

    def kill(self) -> None:
        """End it if it still runs; its training process goes with it."""
        self._process.kill()
        self._process.join()


def _run(target: Callable[..., int], args: tuple[Any, ...], file: str, environ: dict[str, str]) -> None:
    sink = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.environ.update(environ)
    sys.exit(target(*args))


@contextlib.contextmanager
def running(
    target: Callable[..., int],
    args: Sequence[tuple[Any, ...]],
    folder: Path,
    environ: Sequence[Mapping[str, str]] | None = None,
) -> Iterator[list[Running]]:
    """Processes with their arguments, none of which outlives the block."""
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[Running] = []
    try:
        for number, given in enumerate(args):
            extra = environ[number] if environ else {}
            processes.append(Running(target, given, folder / f"{number}.txt", extra))
        yield processes
    finally:
        for process in processes:
            process.kill()


def do(work: Work, place: Place, limits: Limits, folder: Path) -> int:
    """A keeper over a piece of work."""
    return supervise(place, limits, lambda: work(place, folder))


def train(words: Sequence[str], folder: Path) -> int:
    """`affectgpt train`, which notes the rows of each step in `folder`."""
    original = command.train_here

    from affectgpt_jax.training import data

    def noting(args: Any) -> int:
        without_tensorboard()
        data.training_batches = note_rows(data.training_batches, folder)
        return original(args)

    command.train_here = noting
    return main(["train", *words])


def without_tensorboard() -> None:
    """Its writer imports torch where that is installed: seconds for each process, for nothing that is looked at."""
    nothing = types.ModuleType("tensorboardX")
    methods = {name: lambda self, *args, **options: None for name in ("__init__", "add_scalar", "close")}
    nothing.SummaryWriter = type("SummaryWriter", (), methods)  # type: ignore[attr-defined]
    sys.modules["tensorboardX"] = nothing


def note_rows(batches: Callable[..., Iterator[Any]], folder: Path) -> Callable[..., Iterator[Any]]:
    """A `training_batches` that writes what every row of every step holds, as a hash of all of it.

    Only of its first use, which is the run's own; the others validate.
    """
    used = False

    def noted(*args: Any, start: int, process: int, **options: Any) -> Iterator[Any]:
        nonlocal used
        if used:
            yield from batches(*args, start=start, process=process, **options)
            return
        used = True
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rows-{process}.jsonl").open("a", buffering=1) as file:
            for step, batch in enumerate(batches(*args, start=start, process=process, **options), start + 1):
                leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
                rounds, rows = leaves[0].shape[:2]
                hashes = [
                    [hashlib.md5(b"".join(leaf[r, i].tobytes() for leaf in leaves)).hexdigest() for i in range(rows)]
                    for r in range(rounds)
                ]
                file.write(json.dumps({"step": step, "rows": hashes}) + "\n")
                yield batch

    return noted


def rows_of(folder: Path, processes: int) -> dict[int, list[list[str]]]:
    """What the rows of each step held, [rounds][rows] over all processes, from what `note_rows` wrote."""
    steps: dict[int, list[list[str]]] = {}
    for process in range(processes):
        for line in map(json.loads, (folder / f"rows-{process}.jsonl").read_text().splitlines()):
            rounds = steps.setdefault(line["step"], [[] for _ in line["rows"]])
            for rows, more in zip(rounds, line["rows"], strict=True):
                rows += more
    return steps


def wait_until(true: Callable[[], bool], seconds: float, processes: Sequence[Running]) -> None:
    """Wait for something that the processes do."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "\n".join(process.said() for process in processes)
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


KILL, STOP, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
