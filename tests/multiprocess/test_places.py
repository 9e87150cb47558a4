"""Which process of how many this is, by environment."""

import pytest

from affectgpt_jax.distributed import Given, Machine, Place, find_place
from affectgpt_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[017-019,021],login2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NTASKS": "4",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "8",
}
"""One process a node."""
EIGHT = {
    **SLURM,
    "SLURM_STEP_NODELIST": "gpu[017-018]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
"""One process a GPU."""
MPI4 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
MPI5 = {**{k: v for k, v in MPI4.items() if "orte" not in k}, "PMIX_NAMESPACE": "prterun-node-a-17246@1"}
POD = {"JOB_COMPLETION_INDEX": "3", "JOBSET_NAME": "train"}
GKE = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s,t-2.s,t-3.s"}
SLICES = {
    **GKE,
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "t-0-0.s:8080",
}
TPU_VM = {
    "agent-worker-number": "2",
    "worker-network-endpoints": "unknown:unknown:10.0.0.5,unknown:unknown:10.0.0.6,unknown:unknown:10.0.0.7",
    "tpu-env": "ZONE: 'us-east5-a'\nACCELERATOR_TYPE: 'v5p-24'",
}
TPU_VMS = {
    **TPU_VM,
    "tpu-env": "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1'",
}


def place(
    environ: dict[str, str], given: Given | None = None, gpus: int = 0, name: str = "host", **metadata: str
) -> Place | None:
    return find_place(Machine(environ, lambda: name, lambda: gpus, metadata.get), given or Given())


@pytest.mark.parametrize(
    ("environ", "gpus", "expected"),
    [
        # One process a node, and all of the node's GPUs.
        (SLURM, 8, ("Slurm", "gpu017", 4, 2, tuple(range(8)))),
        (SLURM, 0, ("Slurm", "gpu017", 4, 2, None)),
        ({**SLURM, "SLURM_STEP_NODELIST": "a-b.c,d"}, 0, ("Slurm", "a-b.c", 4, 2, None)),
        ({**SLURM, "SLURM_STEP_NODELIST": "rack[3-9]-ib,d"}, 0, ("Slurm", "rack3-ib", 4, 2, None)),
        # One process a GPU that sees them all; that sees its own; two of four each.
        (EIGHT, 8, ("Slurm", "gpu017", 16, 11, (3,))),
        (EIGHT, 1, ("Slurm", "gpu017", 16, 11, (0,))),
        ({**EIGHT, "SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_LOCALID": "3"}, 8, ("Slurm", "gpu017", 16, 11, (6, 7))),
        # --gpus-per-task=4 of two processes: what is seen is bound.
        ({**EIGHT, "SLURM_STEP_TASKS_PER_NODE": "2(x8)"}, 4, ("Slurm", "gpu017", 16, 11, (0, 1, 2, 3))),
        # Open MPI 4 and 5, on several hosts and on one.
        (MPI4, 4, ("Open MPI", "10.96.0.1", 4, 3, (2, 3))),
        (MPI5, 2, ("Open MPI", "node-a", 4, 3, (1,))),
        ({**MPI5, "PMIX_NAMESPACE": "x", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 0, ("Open MPI", "localhost", 4, 3, None)),
        # mpirun inside a Slurm job: mpirun's numbers count.
        ({**SLURM, **MPI4}, 0, ("Open MPI", "10.96.0.1", 4, 3, None)),
        (GKE, 0, ("TPU", "t-0.s", 4, 1, None)),
        ({**GKE, "TPU_PROCESS_ADDRESSES": "p-0:8471,p-1:8471"}, 0, ("TPU", "p-0", 2, 1, None)),
        (SLICES, 0, ("TPU", "t-0-0.s", 8, 5, None)),
        ({**GKE, **POD}, 0, ("TPU", "t-0.s", 4, 1, None)),
    ],
)  # fmt: skip
def test_what_launchers_say(environ: dict[str, str], gpus: int, expected: tuple) -> None:
    found = place(environ, gpus=gpus)
    assert found is not None
    launcher, host, processes, process, devices = expected
    name, _, port = found.coordinator.rpartition(":")
    assert (found.launcher, name, found.processes, found.process) == (launcher, host, processes, process)
    assert found.local_devices == devices
    assert found.expected == (len(devices) if devices else None)
    assert 61_440 <= int(port) < 65_536
    # The others meet at the same port.
    first = place({**environ, "SLURM_PROCID": "0", "OMPI_COMM_WORLD_RANK": "0", "TPU_WORKER_ID": "0"})
    assert first is not None
    assert first.coordinator == found.coordinator


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # The shell of a batch script, and a step of one task.
        {key: value for key, value in SLURM.items() if "STEP" not in key},
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**MPI4, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        # Pods of an indexed job that are runs of their own.
        {"JOB_COMPLETION_INDEX": "3"},
        {"CUDA_VISIBLE_DEVICES": "0,1"},
    ],
)
def test_a_process_of_its_own(environ: dict[str, str]) -> None:
    assert place(environ, gpus=8) is None


def test_tpu_vms() -> None:
    found = place({}, **TPU_VM)
    assert found is not None
    assert found[:4] == ("TPU", "10.0.0.5:61440", 3, 2)
    found = place({}, **TPU_VMS)
    assert found is not None
    assert found[:4] == ("TPU", "10.9.0.1:61440", 6, 5)
    assert place({}, **{**TPU_VM, "worker-network-endpoints": "10.0.0.5", "agent-worker-number": "0"}) is None


def test_pods() -> None:
    found = place(POD, Given(processes=4), gpus=8, name="train-workers-0-3.train.default.svc.cluster.local")
    assert found == Place(
        "Kubernetes", "train-workers-0-0.train.default.svc.cluster.local:61440", 4, 3, tuple(range(8)), 8
    )
    found = place(POD, Given(processes=4), name="train-workers-0-3")
    assert found is not None
    assert found.coordinator == "train-workers-0-0.train:61440"
    found = place({"JOB_COMPLETION_INDEX": "3"}, Given(processes=4), name="job-3.headless.ns.svc")
    assert found is not None
    assert found.coordinator == "job-0.headless.ns.svc:61440"
    with pytest.raises(UserError, match=r"\(Kubernetes\) lacks --processes N"):
        place(POD, name="train-workers-0-3")
    with pytest.raises(UserError, match="lacks --coordinator HOST:PORT"):
        place({"JOB_COMPLETION_INDEX": "3"}, Given(processes=4), name="job-3")


def test_flags_go_before_the_environment() -> None:
    everything = Given("node-0:1234", 2, 1, (4, 5))
    assert place({}, everything) == Place("flags", "node-0:1234", 2, 1, (4, 5), 2)
    assert place(SLURM, everything, gpus=8) == Place("Slurm", "node-0:1234", 2, 1, (4, 5), 2)
    found = place({**SLURM, "JAX_COORDINATOR_ADDRESS": "other:99"}, Given(process=3))
    assert found is not None
    assert found[:4] == ("Slurm", "other:99", 4, 3)
    assert place({}, Given("node-0:1234", 1, 0)) is None


@pytest.mark.parametrize(
    ("environ", "given", "message"),
    [
        ({}, Given(processes=2), "lacks --coordinator HOST:PORT, --process I"),
        ({}, Given("a:1", 2), "lacks --process I"),
        ({}, Given(local_devices=(0,)), "lacks --coordinator HOST:PORT, --processes N, --process I"),
        ({}, Given("a:1", 2, 2), "process 2 of 2 .flags.: expected a number from 0 to 1"),
        ({}, Given("node", 2, 1), "--coordinator node: expected HOST:PORT"),
        ({}, Given("node:http", 2, 1), "--coordinator node:http: expected HOST:PORT"),
        ({**MPI5, "PMIX_NAMESPACE": "x"}, Given(), "Open MPI. lacks --coordinator"),
        ({**MPI4, "OMPI_COMM_WORLD_RANK": "4"}, Given(), "process 4 of 4"),
        ({**MPI4, "OMPI_COMM_WORLD_RANK": "first"}, Given(), "'first'"),
        ({**EIGHT, "SLURM_STEP_TASKS_PER_NODE": "3(x6)"}, Given(), "3 processes of this host cannot share its 8 GPUs"),
    ],
)  # fmt: skip
def test_refusals(environ: dict[str, str], given: Given, message: str) -> None:
    with pytest.raises(UserError, match=message):
        place(environ, given, gpus=8)
