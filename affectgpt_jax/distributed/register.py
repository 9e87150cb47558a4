"""The register of a job: who came, who is heard of, who waits where. It runs beside process 0.

It speaks with the keeper of each process over TCP, in lines of JSON. From a keeper: `process` (once, with its host and
the number of processes), `beat`, `gather`, `ended`. To a keeper: `beat`, `gather`, `late`, `refused`, `lost`, `over`.
"""

import asyncio
import json
import signal
from typing import Any, NamedTuple

LINE = 2**24
"""Longest line, in bytes."""
SETTLE = 1.0
"""Seconds in which failures count as one: the first to be heard of need not be the one that caused the others."""


class Limits(NamedTuple):
    """Time limits, in seconds.

    Attributes:
      start: until all processes have come and see each other's devices.
      silence: a process that has not been heard of for so long counts as lost.
    """

    start: float = 120.0
    silence: float = 60.0

    @property
    def beat(self) -> float:
        """How often each one makes itself heard."""
        return self.silence / 4


class Failure(NamedTuple):
    """How a process failed. The gravest of several is taken for the cause of the others."""

    gravity: int
    process: int
    host: str
    what: str


class _Gathering:
    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.values: dict[int, Any] = {}


def pack(message: dict[str, Any]) -> bytes:
    """A message as a line."""
    return json.dumps(message).encode() + b"\n"


def numbered(numbers: list[int]) -> str:
    """`process 3`, or `processes 1, 2 and 5`."""
    *others, last = map(str, sorted(numbers))
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"


class Register:
    """The register of one job."""

    def __init__(self, processes: int, limits: Limits) -> None:
        self._processes, self._limits = processes, limits
        self._hosts: dict[int, str] = {}
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._gatherings: dict[str, _Gathering] = {}
        self._ended: set[int] = set()
        self._failures: list[Failure] = []
        self._decided = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> None:
        """Listen on a port of every address of this host.

        Raises:
          OSError: the port is taken.
        """
        self._server = await asyncio.start_server(self._meet, None, port, limit=LINE)
        loop = asyncio.get_running_loop()
        loop.call_later(self._limits.start, self._check_start)
        self._tasks.add(asyncio.create_task(self._beat()))

    async def close(self) -> None:
        """Send what is still to be sent, and stop."""
        for task in self._tasks:
            task.cancel()
        self._server.close()
        for writer in self._writers.values():
            writer.close()
        closing = [writer.wait_closed() for writer in self._writers.values()]
        await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), 5.0)

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), self._limits.silence))
            process, host = int(hello["process"]), str(hello["host"])
        except (ValueError, KeyError, TypeError, OSError, TimeoutError):
            writer.close()  # a port scanner, not one of ours
            return
        if refusal := self._refusal(process, host, hello):
            writer.write(pack({"refused": refusal}))
            writer.close()
            return
        self._hosts[process], self._writers[process] = host, writer
        try:
            while not self._decided:
                silence = None if process in self._ended else self._limits.silence
                line = await asyncio.wait_for(reader.readline(), silence)
                if not line.endswith(b"\n"):
                    raise ConnectionError
                self._hear(process, json.loads(line))
        except TimeoutError:
            self._fail(process, 0, f"has not been heard of for {self._limits.silence:g} s")
        except (OSError, ValueError):
            if process not in self._ended:
                self._fail(process, 0, "is gone: its connection closed without a word")

    def _refusal(self, process: int, host: str, hello: dict[str, Any]) -> str | None:
        if hello.get("processes") != self._processes:
            return (
                f"process {process} on {host} expects {hello.get('processes')} processes, process 0 {self._processes}"
            )
        if not 0 <= process < self._processes:
            return f"there is no process {process} in a job of {self._processes}"
        if process in self._hosts:
            return f"process {process} is there twice: on {self._hosts[process]} and on {host}"
        return None

    def _hear(self, process: int, message: dict[str, Any]) -> None:
        if "gather" in message:
            self._gather(process, message)
        elif "ended" in message:
            self._end(process, message["ended"], message["said"])

    def _gather(self, process: int, message: dict[str, Any]) -> None:
        name = message["gather"]
        if name not in self._gatherings:
            timer = asyncio.get_running_loop().call_later(message["seconds"], self._late, name, message["seconds"])
            self._gatherings[name] = _Gathering(timer)
        found = self._gatherings[name]
        found.values[process] = message["value"]
        if len(found.values) == self._processes:
            found.timer.cancel()
            del self._gatherings[name]
            self._tell_all({"gather": name, "values": [found.values[i] for i in range(self._processes)]})

    def _late(self, name: str, seconds: float) -> None:
        came = self._gatherings.pop(name).values
        self._tell_all({"late": name, "why": f"{self._name_missing(came)} did not come within {seconds:g} s"})

    def _name_missing(self, came: dict[int, Any]) -> str:
        missing = [i for i in range(self._processes) if i not in came]
        hosts = sorted({self._hosts[i] for i in missing if i in self._hosts})
        return numbered(missing) + (f" (on {', '.join(hosts)})" if hosts else "")

    def _check_start(self) -> None:
        if len(self._hosts) == self._processes or self._decided:
            return
        here = ", ".join(f"{process} on {host}" for process, host in sorted(self._hosts.items()))
        self._decide(
            [],
            f"of {self._processes} processes, {self._name_missing(self._hosts)} did not come within "
            f"{self._limits.start:g} s (--start-timeout); here are {here}. Look at how the missing ones were started",
        )

    def _end(self, process: int, status: int, said: str) -> None:
        if status in (0, 130):
            self._ended.add(process)
            if len(self._ended) == self._processes:
                self._decided = True
                self._tell_all({"over": True})
        elif status < 0 and status != -signal.SIGABRT:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
            memory = ", perhaps because memory ran out" if -status == signal.SIGKILL else ""
            self._fail(process, 0, f"was ended by {name}{memory}")
        else:
            # JAX aborts whenever another process is gone, and its errors may be caused by one that is.
            gravity = 3 if status == -signal.SIGABRT else 2 if status == 1 else 1
            how = f"ended with exit status {status}" + (f": {said}" if said else "")
            self._fail(process, gravity, "was aborted by C++ code, whose last lines say why" if status < 0 else how)

    def _fail(self, process: int, gravity: int, what: str) -> None:
        if not self._failures and not self._decided:
            asyncio.get_running_loop().call_later(SETTLE, self._judge)
        self._failures.append(Failure(gravity, process, self._hosts[process], what))

    def _judge(self) -> None:
        gravest = min(failure.gravity for failure in self._failures)
        causes = {failure.process: failure for failure in self._failures[::-1] if failure.gravity == gravest}
        told = [f"process {cause.process} on {cause.host} {cause.what}" for cause in causes.values()]
        self._decide(sorted(causes), "; ".join(sorted(told)))

    def _decide(self, causes: list[int], why: str) -> None:
        if not self._decided:
            self._decided = True
            self._tell_all({"lost": causes, "why": why})

    def _tell_all(self, message: dict[str, Any]) -> None:
        for writer in self._writers.values():
            writer.write(pack(message))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._limits.beat)
            self._tell_all({"beat": True})
