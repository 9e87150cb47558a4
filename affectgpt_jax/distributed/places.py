"""Which process of how many this one is, by what its launcher put into the environment or by flags. No jax here."""

import re
import socket
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

from affectgpt_jax.accelerators import nvidia_gpus, tpu_chips
from affectgpt_jax.errors import UserError

PORT = 61_440
"""Lowest of the 4,096 ports that jobs meet at; Linux takes none of them for outgoing connections."""

FLAGS = "--coordinator HOST:PORT --processes N --process I"


class Place(NamedTuple):
    """A process's place in its job.

    Attributes:
      launcher: who started it, for messages.
      coordinator: HOST:PORT of process 0, where the processes meet.
      processes: how many there are.
      process: which of them this is, from 0.
      local_devices: numbers of the devices that are this process's among those of its host; all where None.
      expected: how many devices this process must find; None where only JAX can know.
    """

    launcher: str
    coordinator: str
    processes: int
    process: int
    local_devices: tuple[int, ...] | None = None
    expected: int | None = None


class Given(NamedTuple):
    """What the user says, which goes before what the launcher says."""

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None


class Machine(NamedTuple):
    """What is asked of the machine.

    Attributes:
      environ: environment variables.
      name: gives the machine's full name.
      gpus: gives how many NVIDIA GPUs a process may use.
      metadata: gives an attribute of a Google Cloud TPU VM; None where this is none.
    """

    environ: Mapping[str, str]
    name: Callable[[], str] = lambda: "localhost"
    gpus: Callable[[], int] = lambda: 0
    metadata: Callable[[str], str | None] = lambda key: None


class _Found(NamedTuple):
    """What a launcher says; `local` is this process's number among the `locals` of its host."""

    launcher: str
    coordinator: str | None
    processes: int | None
    process: int
    local: int = 0
    locals: int = 1


def this_machine(environ: Mapping[str, str]) -> Machine:
    """The machine that this process runs on."""
    return Machine(environ, socket.getfqdn, lambda: _count_gpus(environ), lambda key: _tpu_metadata(environ, key))


NOTHING = Given()


def find_place(machine: Machine, given: Given = NOTHING) -> Place | None:
    """This process's place; None for a process of its own.

    Args:
      machine: what the environment says.
      given: flags, each of which replaces what the environment says.

    Raises:
      UserError: something that several processes need is said nowhere, or numbers that do not fit.
    """
    try:
        found = next((found for detect in (_open_mpi, _slurm, _tpu, _pods) if (found := detect(machine, given))), None)
    except ValueError as error:
        raise UserError(f"the environment of the launcher makes no sense ({error}); say {FLAGS}") from error
    if found is None and not any(value is not None for value in given):
        return None
    launcher, coordinator, processes, process, local, local_count = found or _Found("flags", None, None, -1)
    coordinator = given.coordinator or machine.environ.get("JAX_COORDINATOR_ADDRESS") or coordinator
    processes = processes if given.processes is None else given.processes
    process = process if given.process is None else given.process
    if processes == 1 and process in (-1, 0) and given.local_devices is None:
        return None
    lacking = [
        name
        for name, value in (
            ("--coordinator HOST:PORT", coordinator),
            ("--processes N", processes),
            ("--process I", None if process == -1 else process),
        )
        if value is None
    ]
    if coordinator is None or processes is None or lacking:
        raise UserError(
            f"a job of several processes ({launcher}) lacks {', '.join(lacking)}; say it, the same HOST:PORT and N to "
            "every process, and I from 0 to N-1"
        )
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes} ({launcher}): expected a number from 0 to {processes - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UserError(f"--coordinator {coordinator}: expected HOST:PORT of process 0, for example node-0:{PORT}")
    devices = given.local_devices
    if devices is None:
        devices = _gpus_of(machine, local, local_count)
    return Place(launcher, coordinator, processes, process, devices, None if devices is None else len(devices))


def _gpus_of(machine: Machine, local: int, count: int) -> tuple[int, ...] | None:
    """GPUs of a host shared by its processes; None where there are none."""
    visible = machine.gpus()
    if not visible:
        return None
    # What a launcher has bound to this process is less than the host has, and all its own.
    bound = visible < int(machine.environ.get("SLURM_GPUS_ON_NODE") or visible)
    if count == 1 or bound or visible < count:
        return tuple(range(visible))
    if visible % count:
        raise UserError(
            f"{count} processes of this host cannot share its {visible} GPUs evenly; start a number that divides "
            f"{visible}, or say --local-devices 0,1,... to each"
        )
    each = visible // count
    return tuple(range(local * each, (local + 1) * each))


def _port_of(job: str) -> int:
    """A port that two jobs of one host will hardly share."""
    return PORT + zlib.crc32(job.encode()) % 4096


def _open_mpi(machine: Machine, given: Given) -> _Found | None:
    """mpirun of Open MPI. Its process 0 is taken to run beside mpirun, as by default it does."""
    environ = machine.environ
    if "OMPI_COMM_WORLD_SIZE" not in environ or "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    processes, process = int(environ["OMPI_COMM_WORLD_SIZE"]), int(environ["OMPI_COMM_WORLD_RANK"])
    local = int(environ.get("OMPI_COMM_WORLD_LOCAL_RANK", 0))
    local_count = int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    # Version 4 says where mpirun runs, version 5 only in the name of the job.
    uri, job = environ.get("OMPI_MCA_orte_hnp_uri", ""), environ.get("PMIX_NAMESPACE", "")
    address = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    named = re.fullmatch(r"prterun-(.+)-\d+@\d+", job)
    host = None
    if local_count == processes:
        host = "localhost"
    elif address:
        host = address[1] or f"[{address[2]}]"
    elif named:
        host = named[1]
    coordinator = host and f"{host}:{_port_of(uri.split('.')[0] or job)}"
    return _Found("Open MPI", coordinator, processes, process, local, local_count)


def _slurm(machine: Machine, given: Given) -> _Found | None:
    """A task of srun. The shell of sbatch and salloc is none: it has no SLURM_STEP_NODELIST."""
    environ = machine.environ
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in environ for name in needed):
        return None
    processes = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    nodes = environ["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    host = "".join(part or "" for part in first.groups()) if first else nodes
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1")):
        counts += [int(count)] * int(times or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return _Found(
        "Slurm",
        f"{host}:{_port_of(environ['SLURM_JOB_ID'] + '.' + environ.get('SLURM_STEP_ID', ''))}",
        processes,
        int(environ["SLURM_PROCID"]),
        int(environ["SLURM_LOCALID"]),
        counts[node] if node < len(counts) else 1,
    )


def _tpu(machine: Machine, given: Given) -> _Found | None:
    """A worker of a TPU slice, or of several: variables of GKE, or attributes of a TPU VM."""

    def said(name: str) -> str | None:
        if name in environ:
            return environ[name]
        lines = (line.partition(":") for line in (machine.metadata("tpu-env") or "").splitlines())
        return next((value.strip(" '\"") for key, _, value in lines if key.strip() == name), None)

    environ = machine.environ
    listed = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    worker = environ.get("TPU_WORKER_ID")
    if listed is None or worker is None:
        listed, worker = machine.metadata("worker-network-endpoints"), machine.metadata("agent-worker-number")
    if not listed or not worker:
        return None
    # Of a TPU VM: host names, or name:number:address.
    parts = [entry.split(":") for entry in listed.split(",")]
    hosts = [entry[2] if len(entry) == 3 else entry[0] for entry in parts]
    slices, number = int(said("MEGASCALE_NUM_SLICES") or 1), int(said("MEGASCALE_SLICE_ID") or 0)
    first = (said("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    return _Found("TPU", f"{first}:{PORT}", len(hosts) * slices, number * len(hosts) + int(worker))


def _pods(machine: Machine, given: Given) -> _Found | None:
    """A pod of an indexed Kubernetes job, whose pods are called JOB-0, JOB-1 and so on under a headless service.

    Kubernetes does not say how many there are. Without `--processes` the pods are runs of their own, unless they name
    a JobSet.
    """
    environ = machine.environ
    index = environ.get("JOB_COMPLETION_INDEX")
    job_set = environ.get("JOBSET_NAME")
    if index is None or (given.processes is None and not job_set):
        return None
    pod, _, domain = machine.name().partition(".")
    if job_set and not domain:
        domain = job_set
    coordinator = None
    if domain and pod.endswith(f"-{index}"):
        coordinator = f"{pod.removesuffix(index)}0.{domain}:{PORT}"
    return _Found("Kubernetes", coordinator, None, int(index))


def _count_gpus(environ: Mapping[str, str]) -> int:
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return nvidia_gpus()
    return sum(bool(name.strip()) and name.strip() != "-1" for name in shown.split(","))


def _tpu_metadata(environ: Mapping[str, str], key: str) -> str | None:
    if not tpu_chips() or find_spec("libtpu") is None or "TPU_SKIP_MDS_QUERY" in environ:
        return None
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    address = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(address, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return None
