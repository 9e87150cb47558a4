"""A training process's part in its job: starting JAX with the others, barriers with names and time limits.

JAX is imported inside functions, because the process is forked off before JAX may be loaded.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from affectgpt_jax.distributed.places import Place
from affectgpt_jax.distributed.register import Limits, pack
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Sharding


LOST = 3
"""Exit status: another process of the job is missing, silent or ended. Starting the job again may help."""


class JobError(UserError):
    """Other processes of the job are late or missing; the exit status is `LOST`."""


class _Job:
    """The line to this process's keeper, and what is waited for."""

    def __init__(self, place: Place, limits: Limits, link: socket.socket) -> None:
        self.place, self.limits = place, limits
        self._link = link
        self._lock = threading.Lock()
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to the keeper."""
        with self._lock:
            self._link.sendall(pack(message))

    def gather(self, name: str, value: Any, seconds: float) -> list[Any]:
        """What all processes give under a name, by their number."""
        self.tell({"gather": name, "value": value, "seconds": seconds})
        answer = self._answers.get()
        if "late" in answer:
            raise JobError(f"barrier {answer['late']!r}: {answer['why']}")
        return answer["values"]

    def _listen(self) -> None:
        with self._link.makefile("rb") as lines:
            for line in lines:
                self._answers.put(json.loads(line))
        os._exit(LOST)  # no keeper any more

    def _beat(self) -> None:
        while True:
            time.sleep(self.limits.beat)
            self.tell({"beat": True})


_job: _Job | None = None
"""A process has at most one, as it has one JAX."""


def enter(place: Place, limits: Limits, link: socket.socket) -> None:
    """Take this process's place in its job; its keeper is at the other end of the link."""
    global _job
    _job = _Job(place, limits, link)


def leave() -> None:
    """Leave the job together with all others: JAX's service at process 0 must outlive its clients."""
    if "jax" in sys.modules:
        sys.modules["jax"].distributed.shutdown()


def log_to(folder: Path) -> None:
    """Keep what this process prints in `folder`/process-0003.log too, and what it has printed so far."""
    if _job:
        _job.tell({"log": str(folder.absolute() / f"process-{_job.place.process:04d}.log")})


def barrier(name: str, seconds: float) -> None:
    """Wait until all processes have come here; a process of its own goes on at once.

    Args:
      name: for messages; the same on all processes.
      seconds: how long, from the first that comes.

    Raises:
      JobError: some did not come in time; names them.
    """
    if _job:
        _job.gather(name, None, seconds)
        return
    import jax

    if jax.process_count() > 1:
        # Started by other means than `supervise`: JAX's own barrier, which has no time limit.
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def start_jax(expect: int | None) -> None:
    """Connect JAX with the other processes, and check that all devices are there.

    Args:
      expect: devices of all processes together; None takes what is there, as far as nothing else is known.

    Raises:
      JobError: others did not come in time.
      UserError: fewer or more devices than expected.
    """
    if _job is None:
        if expect is not None:
            import jax

            check_devices([Found(socket.gethostname(), jax.local_device_count(), jax.default_backend(), None)], expect)
        return
    place, seconds = _job.place, _job.limits.start
    host = place.coordinator.rpartition(":")[0]
    if any(key.lower() in ("http_proxy", "https_proxy", "grpc_proxy") for key in os.environ):
        # gRPC would ask the proxy, which does not know the hosts of a cluster.
        os.environ.setdefault("no_grpc_proxy", host)
    import jax

    # JAX's own port is any that is free on process 0's host.
    port = _job.gather("start of JAX", _free_port() if place.process == 0 else 0, seconds)[0]
    jax.distributed.initialize(
        f"{host}:{port}",
        place.processes,
        place.process,
        local_device_ids=place.local_devices,
        # What JAX finds out itself gives one GPU to each process of Slurm and Open MPI.
        cluster_detection_method="deactivate",
        initialization_timeout=int(seconds) + 1,
        # The keepers notice first, and say it better.
        heartbeat_timeout_seconds=max(100, int(4 * _job.limits.silence)),
    )
    watch = threading.Timer(seconds, _no_devices, [place, seconds])
    watch.daemon = True
    watch.start()
    count = jax.local_device_count()
    watch.cancel()
    platform = jax.default_backend()
    # Whoever says JAX_PLATFORMS=cpu does not expect the GPUs of the host.
    expected = place.expected if os.environ.get("JAX_PLATFORMS") != "cpu" else None
    found = [
        Found(*values) for values in _job.gather("devices", [socket.gethostname(), count, platform, expected], seconds)
    ]
    check_devices(found, expect)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _no_devices(place: Place, seconds: float) -> None:
    """JAX waits until all processes have listed their devices; one that sees no accelerator makes another list."""
    print(
        f"process {place.process} on {socket.gethostname()}: the devices of all processes did not appear within "
        f"{seconds:g} s (--start-timeout); one of them hangs, or found no accelerator and took the CPU: look at what "
        "JAX says of devices in the log of each, and set JAX_PLATFORMS (cuda, tpu) so that it fails at once",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


class Found(NamedTuple):
    """The devices that a process has found; `expected` is what its launcher gave it."""

    host: str
    devices: int
    platform: str
    expected: int | None


def check_devices(found: Sequence[Found], expect: int | None) -> None:
    """Compare devices with what was expected.

    Args:
      found: by process.
      expect: of all processes together.

    Raises:
      UserError: names the processes that have others than they should.
    """
    total = sum(process.devices for process in found)
    wanted = sum(process.devices if process.expected is None else process.expected for process in found)
    wanted = wanted if expect is None else expect
    # Where nothing else is known, processes have equal shares.
    share = None if total == wanted or wanted % len(found) else wanted // len(found)
    expected = [share if process.expected is None else process.expected for process in found]
    if total == wanted and all(x is None or x == process.devices for x, process in zip(expected, found, strict=True)):
        return
    told = [
        f"process {number} on {process.host} has {process.devices} ({process.platform})"
        + (f", expected {x}" if x is not None else "")
        for number, (process, x) in enumerate(zip(found, expected, strict=True))
        if x is None or x != process.devices
    ]
    raise UserError(
        f"devices: {total} appeared, expected {wanted}: {'; '.join(told)}. Look for GPUs that are "
        "taken, hidden (CUDA_VISIBLE_DEVICES, --local-devices) or broken (nvidia-smi), for a JAX without CUDA or TPU "
        "support, or correct --expect-devices and the sizes of mesh"
    )


def part_of_batch(sharding: "Sharding", rows: int) -> tuple[int, int]:
    """Which part of each batch's rows this process loads, and how many parts there are.

    Processes whose devices hold the same rows, such as those that one model is spread over, load the same part.

    Args:
      sharding: of arrays [rounds, rows, ...].
      rows: of a batch.
    """
    import jax

    rows_of: dict[int, set[int]] = {}
    device: Any
    for device, (_, part) in sharding.devices_indices_map((1, rows)).items():
        rows_of.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    parts = sorted({tuple(sorted(held)) for held in rows_of.values()})
    return parts.index(tuple(sorted(rows_of[jax.process_index()]))), len(parts)
