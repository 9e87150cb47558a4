"""The machine: Python and packages, accelerators and what they exchange, limits of the process. No config needed."""

import functools
import os
import platform
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from packaging.requirements import Requirement
from packaging.version import Version

from affectgpt_jax import accelerators
from affectgpt_jax.distributed import Place, find_place, this_machine
from affectgpt_jax.doctor.findings import Finding, Question, amount, fault, within
from affectgpt_jax.errors import UserError
from affectgpt_jax.machine import available_cores
from affectgpt_jax.version import __version__

PACKAGE = "affectgpt-jax"
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")
DEVICE_SECONDS = 60.0
"""How long jax may look for devices; a slice whose other hosts are silent lets it wait for ever."""
EXCHANGE_SECONDS = 120.0
EXCHANGE_BYTES = {"cpu": 4 * 2**20}
EXCHANGE_BYTES_ELSEWHERE = 64 * 2**20
OPEN_FILES = 1024


def environment(question: Question) -> Iterator[Finding]:
    """Python, operating system, and whether this is one process of several."""
    found = (
        f"affectgpt {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{available_cores()} cores, {amount(host_memory())} free memory"
    )
    yield Finding("environment", "ok", found)
    try:
        place = own_place()
    except UserError as error:
        yield fault("process", error)
        return
    if place is not None:
        yield Finding(
            "process",
            "ok",
            f"process {place.process} of {place.processes} ({place.launcher}): what follows is about this process on "
            f"{socket.gethostname()} alone",
        )


def own_place() -> Place | None:
    """This process's place in a job; None for a process of its own."""
    return find_place(this_machine(os.environ))


def host_memory() -> int:
    """Bytes that this process may still take, by the kernel and by its control group."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = _text("/proc/meminfo").splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), free)
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def versions(question: Question) -> Iterator[Finding]:
    """What is installed against what the package's own metadata asks for, and jax against what belongs to it."""
    try:
        asked = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        yield Finding(
            "versions", "warning", f"{PACKAGE} runs without being installed: nobody says what it needs", "pip install ."
        )
        return
    wrong = []
    for requirement in asked:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        there, wanted = installed(requirement.name), f"{requirement.name}{requirement.specifier}"
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            state = f"{requirement.name} {there}" if there else f"{requirement.name} is not installed"
            wrong.append(Finding("versions", "fault", f"{state}, needed is {wanted}", f"pip install '{wanted}'"))
    wrong += _belonging()
    yield from wrong
    if not wrong:
        yield Finding("versions", "ok", ", ".join(f"{name} {installed(name)}" for name in SHOWN))


def installed(name: str) -> str | None:
    """The version of a package; None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def plugins() -> list[str]:
    """Packages that bring jax to NVIDIA GPUs."""
    names = {str(found.metadata["Name"]).lower() for found in metadata.distributions()}
    return sorted(name for name in names if name.startswith("jax-cuda"))


def _belonging() -> Iterator[Finding]:
    """jaxlib and the CUDA plugins are made for one version of jax; others load, and fail later."""
    own = installed("jax")
    for name in ("jaxlib", *plugins()):
        there = installed(name)
        if own and there and Version(there).release[:3] != Version(own).release[:3]:
            yield Finding("versions", "fault", f"{name} {there} with jax {own}", f"pip install '{name}=={own}'")


@functools.cache
def find_devices() -> tuple[tuple[Any, ...], str]:
    """The devices that jax finds, or none and why."""
    try:
        return tuple(within(DEVICE_SECONDS, jax.devices)), ""
    except TimeoutError:
        return (), f"jax looked for devices for {DEVICE_SECONDS:g} s and came to no end"
    except Exception as error:  # each backend has errors of its own
        return (), (str(error).strip().splitlines() or [type(error).__name__])[0]


def nvidia_gpus() -> int:
    """NVIDIA GPUs that this machine has, whatever jax sees."""
    files = accelerators.nvidia_gpus()
    if files or shutil.which("nvidia-smi") is None:
        return files
    try:  # within WSL there are no such files
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in shown.splitlines())


def devices(question: Question) -> Iterator[Finding]:
    """Count, kind and memory of what jax finds; an accelerator that it does not find is a fault."""
    found, why = find_devices()
    if not found:
        yield Finding(
            "devices",
            "fault",
            why,
            "start it on all hosts of a TPU slice at once; elsewhere nvidia-smi says what is wrong, and "
            "JAX_PLATFORMS=cpu does without",
        )
        return
    lost = _unused(found[0].platform)
    if lost is not None:
        yield lost
    kinds = sorted({device.device_kind for device in found})
    if len(kinds) > 1:
        yield Finding(
            "devices",
            "warning",
            f"{len(found)} devices of different kinds: {', '.join(kinds)}; the slowest sets the pace",
            "choose those of one kind with CUDA_VISIBLE_DEVICES",
        )
        return
    memory = device_memory(found)
    each = f", {amount(memory)} of memory each" if memory else ""
    yield Finding("devices", "ok", f"{len(found)} x {kinds[0]} ({found[0].platform}){each}")


def _unused(platform_name: str) -> Finding | None:
    """An accelerator that is there while jax computes elsewhere."""
    gpus, chips, asked = nvidia_gpus(), accelerators.tpu_chips(), os.environ.get("JAX_PLATFORMS", "")
    what = f"{gpus} NVIDIA GPUs" if gpus else f"{chips} TPU chips"
    if platform_name != "cpu" or not (gpus or chips):
        return None
    if "cpu" in asked.split(","):
        return Finding("devices", "warning", f"{what} are left alone: JAX_PLATFORMS={asked}", "unset JAX_PLATFORMS")
    if gpus and plugins():
        return Finding(
            "devices",
            "fault",
            f"{what} are there and jax has {', '.join(plugins())}, but it finds only the CPU",
            "JAX_PLATFORMS=cuda affectgpt doctor says why: mostly a driver that is too old (nvidia-smi), or "
            "CUDA_VISIBLE_DEVICES",
        )
    if gpus:
        return Finding(
            "devices", "fault", f"{what} are there, but jax has no CUDA", "pip install 'affectgpt-jax[cuda]'"
        )
    if installed("libtpu") is None:
        return Finding("devices", "fault", f"{what} are there, but no libtpu", "pip install 'affectgpt-jax[tpu]'")
    return Finding(
        "devices",
        "fault",
        f"{what} and libtpu are there, but jax finds only the CPU",
        "end the process that holds them (lsof /dev/accel* /dev/vfio/*); JAX_PLATFORMS=tpu affectgpt doctor says why",
    )


def device_memory(found: Sequence[Any]) -> int | None:
    """Bytes that jax may take of the smallest device; None where it does not say, as on CPUs."""
    known = [stats["bytes_limit"] for device in found if "bytes_limit" in (stats := device.memory_stats() or {})]
    return min(known) if known and len(known) == len(found) else None


def all_reduce(question: Question) -> Iterator[Finding]:
    """Sum an array over all devices: is the sum right, and how many bytes a second go over the bus?"""
    found, why = find_devices()
    if len(found) == 1:
        yield Finding("all-reduce", "ok", "one device: nothing to exchange")
        return
    if question.fast or not found:
        yield Finding("all-reduce", "skipped", why or "not measured with --fast")
        return
    size = EXCHANGE_BYTES.get(found[0].platform, EXCHANGE_BYTES_ELSEWHERE)
    try:
        wrong, seconds = within(EXCHANGE_SECONDS, lambda: exchange(found, size))
    except Exception as error:  # no end, no memory, or whatever the devices' own library raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        yield Finding(
            "all-reduce",
            "fault",
            f"{len(found)} devices cannot sum an array: {reason}",
            "NCCL_DEBUG=INFO affectgpt doctor shows where it stops; NCCL_P2P_DISABLE=1 does without direct copies",
        )
        return
    if wrong:
        yield Finding(
            "all-reduce",
            "fault",
            f"devices {', '.join(map(str, wrong))} hold a wrong sum",
            "NCCL_P2P_DISABLE=1 affectgpt doctor: if that is right, direct copies between GPUs are broken (IOMMU, "
            "ACS), else give the machine back",
        )
        return
    bus = 2 * (len(found) - 1) / len(found) * size / seconds
    yield Finding(
        "all-reduce",
        "ok",
        f"{amount(bus)}/s over the bus: {amount(size)} on each of {len(found)} devices in {seconds * 1e3:,.2f} ms, "
        "sum right",
    )


def exchange(found: Sequence[Any], size: int) -> tuple[list[int], float]:
    """Sum an array over devices.

    Args:
      found: the devices.
      size: bytes on each.

    Returns:
      Numbers of the devices that have a wrong sum, and the median seconds of a sum.
    """
    mesh = jax.make_mesh((len(found),), ("all",), axis_types=(AxisType.Auto,), devices=found)
    # Whole numbers below 2^24 have one float32 sum, in whatever order they are added.
    numbers = (np.arange(size // 4) % 251).astype(np.float32)
    parts = NamedSharding(mesh, PartitionSpec("all"))
    x = jax.device_put(np.arange(1, len(found) + 1, dtype=np.float32)[:, None] * numbers, parts)
    sum_up = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=PartitionSpec("all"), out_specs=PartitionSpec()
        )
    )
    summed = sum_up(x).block_until_ready()
    expected = len(found) * (len(found) + 1) // 2 * numbers
    wrong = [
        shard.device.id
        for shard in summed.addressable_shards
        if not np.array_equal(np.asarray(shard.data)[0], expected)
    ]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        sum_up(x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return wrong, statistics.median(seconds)


def limits(question: Question) -> Iterator[Finding]:
    """How many files a process may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        remedy = (
            f"ulimit -n {OPEN_FILES}" if hard < 0 or hard >= OPEN_FILES else "raise nofile in /etc/security/limits.conf"
        )
        yield Finding("open files", "warning", f"a process may open {soft} files, some runs need {OPEN_FILES}", remedy)
    else:
        yield Finding("open files", "ok", f"a process may open {'any number of' if soft < 0 else soft} files")
