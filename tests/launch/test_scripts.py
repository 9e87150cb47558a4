"""What the scripts of launch/ run, and that a job of Slurm or of N processes runs to its end."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from affectgpt_jax.config import load_config
from tests.conftest import ROOT
from tests.multiprocess.launch import free_port

BIN = Path(__file__).parent / "bin"
SCRIPTS = sorted(path.relative_to(ROOT) for pattern in ("*.sh", "*.sbatch", "gke/*.sh") for path in (ROOT / "launch").glob(pattern))  # fmt: skip  # noqa: E501
PLACES = {"CLUSTER": "big", "LOCATION": "us-west4", "IMAGE": "me/affectgpt-tpu:1", "CLAIM": "affectgpt"}
SHELL = {"PATH": "/usr/bin:/bin", "PORT": "61440"}


def run(*words: str | Path, environ: dict[str, str] = SHELL, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A script from the root of the repository."""
    return subprocess.run(
        ["bash", *map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=seconds, check=False
    )


def commands(*words: str | Path, environ: dict[str, str] = SHELL) -> list[list[str]]:
    """What a dry run prints, without the environment."""
    done = run(*words, environ=environ)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines() if not re.match("[A-Z_]+=", line)]


REST = ["demo", "train.output=runs/a b", "--expect-devices", "2"]
PLACE = ["--coordinator", "localhost:61440", "--processes", "2", "--process"]


def test_dry_runs_of_one_machine() -> None:
    assert commands("launch/local.sh", "--dry-run", "cpu", *REST) == [
        ["affectgpt", "smoke", *REST],
        ["exec", "affectgpt", "train", *REST],
    ]
    assert commands("launch/processes.sh", "--dry-run", "2", "cpu", *REST) == [
        ["affectgpt", verb, *REST, *PLACE, number, "--local-devices", number]
        for verb in ("smoke", "train")
        for number in "01"
    ]


def test_dry_runs_of_a_cluster() -> None:
    assert commands("launch/slurm.sbatch", "--dry-run", "h100", *REST) == [
        ["srun", "affectgpt", "smoke", *REST],
        ["exec", "srun", "affectgpt", "train", *REST],
    ]
    ((*words, there),) = commands("launch/tpu_vm.sh", "--dry-run", "pod", "us-west4-a", "v5e", *REST)
    assert words == [
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone", "us-west4-a", "--worker=all", "--command")
    ]
    assert shlex.split(there)[-6:] == ["launch/local.sh", "v5e", *REST]
    ((*words, there),) = commands(
        "launch/gke/submit.sh", "--dry-run", "try", "v5litepod-16", "v5e", *REST, environ=SHELL | PLACES
    )
    assert shlex.split(there) == ["exec", "launch/local.sh", "v5e", *REST]
    flags = dict(zip(words[3::2], words[4::2]))
    assert words[:3] == ["gcluster", "job", "submit"]
    assert (flags["--name"], flags["--cluster"], flags["--mount"]) == ("try", "big", "affectgpt:/runs:rw")


def test_a_dry_run_shows_the_flags_of_the_chip() -> None:
    for chip, name in (("h100", "XLA_FLAGS"), ("h200", "XLA_FLAGS"), ("v6e", "LIBTPU_INIT_ARGS")):
        shown = run("launch/local.sh", "--dry-run", chip, "demo").stdout
        assert re.search(rf"^{name}= --xla\S+", shown, re.MULTILINE), shown


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name != "common.sh"], ids=str)
def test_help_says_how_to_call_it(script: Path) -> None:
    done = run(script, "--help")
    assert done.returncode == 0
    assert str(script) in done.stdout
    assert re.search(r"\bCONFIG|\bSTUDY", done.stdout)
    assert "set -euo" not in done.stdout
    assert "SBATCH --" not in done.stdout
    assert os.access(ROOT / script, os.X_OK)


def test_an_unknown_chip_is_named() -> None:
    done = run("launch/local.sh", "h1000", "demo")
    assert done.returncode == 2
    assert "CHIP is 'h1000', expected one of: cpu h100 h200 v5e v5p v6e" in done.stderr


def test_a_task_of_an_array_takes_its_line() -> None:
    lines = (ROOT / "launch" / "sweep.txt").read_text().splitlines()
    outputs = set()
    for index, line in enumerate(lines):
        environ = SHELL | {"SLURM_ARRAY_TASK_ID": str(index)}
        smoke, train = commands(
            "launch/slurm_array.sbatch", "--dry-run", "launch/sweep.txt", "cpu", "demo", "train.rows=2", environ=environ
        )
        assert smoke == ["srun", "affectgpt", "smoke", "demo", "train.rows=2", *line.split()]
        assert train == ["exec", "srun", "affectgpt", "train", "demo", "train.rows=2", *line.split()]
        outputs.add(load_config("demo", line.split()).train.output)
    assert len(outputs) == len(lines) == 3
    done = run("launch/slurm_array.sbatch", "launch/sweep.txt", "cpu", environ=SHELL | {"SLURM_ARRAY_TASK_ID": "3"})
    assert done.returncode != 0
    assert "has 3 lines, none for task 3" in done.stderr
    assert "not in an array" in run("launch/slurm_array.sbatch", "launch/sweep.txt", "cpu", "demo").stderr


def test_a_task_of_a_studys_array_trains_its_run() -> None:
    environ = SHELL | {"SLURM_ARRAY_TASK_ID": "7"}
    (line,) = commands("launch/scaling.sbatch", "--dry-run", "cpu", "scaling/synthetic", "--again", environ=environ)
    assert line == [
        *("exec", "affectgpt", "scaling", "run", "scaling/synthetic", "--only", "7", "--before", "srun", "--again")
    ]
    assert "not in an array" in run("launch/scaling.sbatch", "cpu", "scaling/synthetic").stderr
    assert "which study" in run("launch/scaling.sbatch", "cpu", environ=environ).stderr


@pytest.fixture
def stub(tmp_path: Path) -> dict[str, str]:
    """An `affectgpt` that notes its words, fails when told to, and trains until SIGTERM."""
    program = tmp_path / "bin" / "affectgpt"
    program.parent.mkdir()
    program.write_text(
        '#!/usr/bin/env bash\necho "$*" >>"$SAID"\n'
        "if [[ $* == smoke*bad* ]]; then exit 2; elif [[ $1 == smoke ]]; then exit 0; fi\n"
        "trap 'echo stopped >>\"$SAID\"; exit 130' TERM\nfor ((i = 0; i < 300; i++)); do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    (tmp_path / "calls").touch()
    said, calls = str(tmp_path / "said"), str(tmp_path / "calls")
    return SHELL | {"PATH": f"{program.parent}:{BIN}:{SHELL['PATH']}", "SAID": said, "CALLS": calls}


@pytest.mark.parametrize("words", [["local.sh"], ["processes.sh", "2"], ["slurm.sbatch"]], ids=lambda words: words[0])
def test_a_failed_smoke_job_ends_the_script(words: list[str], stub: dict[str, str]) -> None:
    script, *count = words
    assert run(f"launch/{script}", *count, "cpu", "bad", environ=stub).returncode == 2
    assert "train" not in Path(stub["SAID"]).read_text()


@pytest.mark.parametrize(("words", "count"), [(["local.sh"], 1), (["processes.sh", "2"], 2)])
def test_sigterm_reaches_the_training(words: list[str], count: int, stub: dict[str, str]) -> None:
    script, *number = words
    job = subprocess.Popen(["bash", f"launch/{script}", *number, "cpu", "demo"], cwd=ROOT, env=stub)
    said = Path(stub["SAID"])
    deadline = time.monotonic() + 20.0
    try:
        while not said.exists() or said.read_text().count("train") < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.2)  # the stub sets its trap
        job.send_signal(signal.SIGTERM)
        assert job.wait(20.0) == 130
    finally:
        job.kill()
    assert said.read_text().count("stopped") == count


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a job with this tree's `affectgpt`."""
    command = tmp_path_factory.mktemp("bin") / "affectgpt"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m affectgpt_jax.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{BIN}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "PORT": str(free_port())}


def settings(folder: Path) -> list[str]:
    """A run on what its smoke job has written, with programs of the same shapes."""
    data = folder / "smoke" / "data"
    names = [f"train.output={folder}", f"data.shards={data}", f"weights.tokenizer={data / 'tokenizer'}"]
    return ["smoke", *names, "train.rows=4", "train.steps=4", "train.checkpoint_every=2", "--expect-devices", "2"]


def check(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: ok, 2 processes, 2 devices (cpu), mesh data=2, step 3 saved and opened again" in done.stdout
    assert f"{folder}: step 4, loss" in done.stdout
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [2, 4]
    for logs in (folder / "logs", folder / "smoke" / "logs"):
        assert sorted(path.name for path in logs.iterdir()) == ["process-0000.log", "process-0001.log"]


@pytest.mark.slow
def test_a_job_of_slurm_with_two_tasks(program: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "calls").touch()
    environ = program | {"CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "1"}
    folder = tmp_path / "run"
    check(run("launch/slurm.sbatch", "cpu", *settings(folder), environ=environ, seconds=400.0), folder)
    steps = (tmp_path / "calls").read_text().splitlines()
    assert [step.split()[:3] for step in steps] == [["affectgpt", verb, "smoke"] for verb in ("smoke", "train")]


@pytest.mark.long
def test_two_processes_on_this_machine(program: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    check(run("launch/processes.sh", "2", "cpu", *settings(folder), environ=program, seconds=400.0), folder)
