"""The keeper of a process: it starts the training process, hears of the others, and ends it when one of them is lost.

Why a process of its own: JAX's C++ code aborts the process as soon as process 0 is gone, a collective waits for ever
for a peer that is dead, and Python threads stand still while C++ holds the interpreter. A keeper survives all of that,
names the one that is lost, and gives a defined exit status. It holds no device and loads nothing but Python's library.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from affectgpt_jax.distributed import job
from affectgpt_jax.distributed.places import Place
from affectgpt_jax.distributed.register import LINE, Limits, Register, pack
from affectgpt_jax.errors import UserError


class _Verdict(NamedTuple):
    """Why a job cannot go on; `causes` are the processes that failed. No reason: it is over, and all is well."""

    why: str
    causes: tuple[int, ...] = ()
    status: int = job.LOST


def supervise(place: Place, limits: Limits, work: Callable[[], int], program: str = "affectgpt train") -> int:
    """Do this process's part of a job in a process of its own, and end it when the job cannot go on.

    What it prints comes out of this one, each line with the process's number before it except process 0's.

    Args:
      place: which process of which job this is.
      limits: how long to wait for the others.
      work: the part; returns the exit status. There, `job.barrier` and what else that module offers work.
      program: what messages begin with.

    Returns:
      The exit status: that of `work` if it ended by itself, 128 and the signal's number if it was killed, 3 if it was
      another process's fault.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = socket.socketpair()
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        ours.close()
        _work(place, limits, work, program, theirs, out_end, err_end, keeper)
    theirs.close()
    os.close(out_end)
    os.close(err_end)
    return asyncio.run(_Keeper(place, limits, program, worker).run(ours, out, err))


def _work(
    place: Place,
    limits: Limits,
    work: Callable[[], int],
    program: str,
    link: socket.socket,
    out: int,
    err: int,
    keeper: int,
) -> None:
    """Runs in the training process; never returns."""
    status = 1
    try:
        os.setpgid(0, 0)  # Ctrl-C is the keeper's
        _end_with(keeper)
        os.dup2(out, 1)
        os.dup2(err, 2)
        job.enter(place, limits, link)
        status = work()
        if status in (0, 130):
            job.leave()
    except job.JobError as error:
        print(f"{program}: {error}", file=sys.stderr)
        status = job.LOST
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        # No exit handlers: JAX's waits minutes for peers that are gone.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with(keeper: int) -> None:
    """Let Linux kill this process when its keeper is killed; elsewhere it ends when it next hears nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(job.LOST)


class _Keeper:
    def __init__(self, place: Place, limits: Limits, program: str, worker: int) -> None:
        self._place, self._limits, self._program, self._worker = place, limits, program, worker
        self._host = socket.gethostname()
        self._register: Register | None = None
        self._up: asyncio.StreamWriter | None = None
        self._waiting: list[bytes] = []
        self._log: BinaryIO | None = None
        self._early: list[bytes] = []
        self._said = ""
        self._stops = 0

    async def run(self, link: socket.socket, out: int, err: int) -> int:
        """Until the job is over or lost; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        below_reader, self._below = await asyncio.open_unix_connection(sock=link, limit=LINE)
        relays = [
            asyncio.create_task(self._relay(fd, stream, fd == err))
            for fd, stream in ((out, sys.stdout.buffer), (err, sys.stderr.buffer))
        ]
        listening = asyncio.create_task(self._listen(below_reader))
        following = asyncio.create_task(self._follow())
        ending = asyncio.create_task(asyncio.to_thread(os.waitpid, self._worker, 0))
        await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
        status = None
        if ending.done():
            await asyncio.wait(relays, timeout=2.0)
            status = os.waitstatus_to_exitcode(ending.result()[1])
            self._tell({"ended": status, "said": self._said})
            if status not in (0, 130):
                await asyncio.wait({following}, timeout=10.0)
        verdict = _Verdict("", (self._place.process,))
        if status in (None, 0, 130) or following.done():
            verdict = await following
        if not ending.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker, signal.SIGKILL)
            await ending
            await asyncio.wait(relays, timeout=2.0)
        for task in (listening, following, *relays):
            task.cancel()
        own = status is not None and self._place.process in verdict.causes
        if verdict.why and not (own and status in (1, 2, job.LOST)):
            self._say(verdict.why)
        if self._register:
            with contextlib.suppress(TimeoutError):
                await self._register.close()
        if status == -signal.SIGTERM and self._stops:
            return 130  # asked to stop before it could save anything
        if status is not None and (own or not verdict.why or status == 2):
            return 128 - status if status < 0 else status
        return verdict.status

    def _stop(self, number: int) -> None:
        self._stops += 1
        hard = number == signal.SIGINT and self._stops > 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._worker, signal.SIGKILL if hard else signal.SIGTERM)

    def _say(self, text: str) -> None:
        self._write(sys.stderr.buffer, f"{self._program}: {text}\n".encode())

    def _write(self, stream: BinaryIO, line: bytes) -> None:
        if self._log:
            self._log.write(line)
        else:
            self._early.append(line)
        prefix = b"[%d] " % self._place.process if self._place.process else b""
        with contextlib.suppress(OSError):
            stream.write(prefix + line)
            stream.flush()

    async def _relay(self, fd: int, stream: BinaryIO, is_error: bool) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
        )
        rest = b""
        while chunk := await reader.read(2**16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._write(stream, line + b"\n")
            if is_error and (told := [line for line in lines if line.strip() and not line.startswith(b"    @ ")]):
                self._said = told[-1].decode(errors="replace").strip()
        if rest:
            self._write(stream, rest + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """What the training process says: where its log shall lie, and what is passed on."""
        while line := await reader.readline():
            message = json.loads(line)
            if "log" in message:
                path = Path(message["log"])
                with contextlib.suppress(OSError):  # the terminal has it all
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._log = path.open("ab", 0)
                    self._log.write(b"".join(self._early))
            else:
                self._tell(message)

    def _tell(self, message: dict[str, Any]) -> None:
        """Tell the register, as soon as it is there."""
        if self._up:
            self._up.write(pack(message))
        elif "beat" not in message:
            self._waiting.append(pack(message))

    async def _follow(self) -> _Verdict:
        """Go to the register and hear what it says, to the end of the job."""
        place, limits = self._place, self._limits
        host, _, port = place.coordinator.rpartition(":")
        where = f"process 0 at {place.coordinator}"
        if place.process == 0:
            register = Register(place.processes, limits)
            try:
                await register.open(int(port))
            except OSError as error:
                why = f"port {port} of {self._host} cannot be opened ({error.strerror}); name another: --coordinator"
                return _Verdict(why, status=2)
            self._register, host = register, "localhost"
        try:
            reader, self._up = await self._connect(host.strip("[]"), int(port))
        except OSError as error:
            return _Verdict(
                f"process {place.process} on {self._host} could not reach {where} within {limits.start:g} s "
                f"(--start-timeout): {error}. Is it started, and is the address the same everywhere?"
            )
        name = {"process": place.process, "host": self._host, "processes": place.processes}
        self._up.write(b"".join([pack(name), *self._waiting]))
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), limits.silence)
                message = json.loads(line)
            except TimeoutError:
                return _Verdict(f"{where} has not been heard of for {limits.silence:g} s", (0,))
            except ValueError:
                if line:
                    return _Verdict(f"what answers at {place.coordinator} is no job of this program", status=2)
                return _Verdict(f"{where} is gone: its connection closed without a word", (0,))
            except OSError as error:
                return _Verdict(f"{where} is gone: {error}", (0,))
            if "refused" in message:
                return _Verdict(f"process 0 refuses this process: {message['refused']}", status=2)
            if "lost" in message:
                return _Verdict(message["why"], tuple(message["lost"]))
            if "over" in message:
                return _Verdict("")
            if "beat" not in message:
                self._below.write(line)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = asyncio.get_running_loop().time() + self._limits.start
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await asyncio.wait_for(asyncio.open_connection(host, port, limit=LINE), max(0.1, min(5.0, left)))
            except TimeoutError:
                error: OSError = OSError("no answer")
            except OSError as failed:
                error = failed
            if left <= 0.5:
                raise error
            await asyncio.sleep(0.5)
