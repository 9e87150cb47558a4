"""JobSets, flag files and container files: form, and that what they name exists."""

import argparse
import copy
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from affectgpt_jax.cli.scaling import add_arguments as add_scaling_arguments
from affectgpt_jax.cli.train import add_arguments
from affectgpt_jax.scaling.draw import make_plan
from affectgpt_jax.scaling.study import read_study
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
JOBSETS = ("jobset.yaml", "jobset_gpu.yaml")
STUDY = "scaling.yaml"
CHIPS = sorted(path.stem for path in (LAUNCH / "xla").glob("*.env"))
ALONE = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""No questions to a metadata server, and no lock that another test may hold."""
TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CONTAINERS = sorted((LAUNCH / "containers").glob("*.Dockerfile"))


@cache
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((Path(__file__).parent / "jobset.schema.json").read_text()))


def jobset(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "gke" / name).read_text())


@pytest.mark.parametrize("name", [*JOBSETS, STUDY])
def test_a_jobset_is_of_its_schema(name: str) -> None:
    schema().validate(jobset(name))


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ((), {"apiVersion": "jobset.x-k8s.io/v1"}),
        (("spec",), {"failPolicy": {}}),
        (("spec", "failurePolicy"), {"maxRestarts": "10"}),
        (("spec", "failurePolicy", "rules", 0), {"action": "RestartPod"}),
        (("spec", "replicatedJobs", 0), {"replica": 2}),
        (("spec", "replicatedJobs", 0, "template", "spec"), {"paralelism": 4}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"), {"restartPolicy": "Always"}),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0), {"command": [16]}),
    ],
)
def test_the_schema_refuses_what_kubernetes_would(path: tuple[str | int, ...], change: dict[str, Any]) -> None:
    broken = copy.deepcopy(jobset("jobset.yaml"))
    node: Any = broken
    for key in path:
        node = node[key]
    node |= change
    with pytest.raises(jsonschema.ValidationError):
        schema().validate(broken)


@pytest.mark.parametrize("name", JOBSETS)
def test_the_pods_fit_their_command(name: str) -> None:
    """Devices, processes and volumes agree with what the command expects."""
    (group,) = jobset(name)["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    script, chip, *rest = container["command"]
    assert os.access(ROOT / script, os.X_OK)
    assert chip in CHIPS
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_intermixed_args(rest)
    (each,) = container["resources"]["limits"].values()
    assert args.expect_devices == each * job["parallelism"] * group["replicas"]
    assert job["parallelism"] == job["completions"]
    if topology := pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology"):
        assert math.prod(map(int, topology.split("x"))) == args.expect_devices
    else:
        assert args.processes == job["parallelism"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]


def test_the_pods_of_a_study_train_one_run_each() -> None:
    (group,) = jobset(STUDY)["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    program, command, *words = container["command"]
    assert (program, command) == ("affectgpt", "scaling")
    parser = argparse.ArgumentParser()
    add_scaling_arguments(parser)
    # Kubernetes puts a pod's number in place of the variable.
    args = parser.parse_args([word.replace("$(JOB_COMPLETION_INDEX)", "7") for word in words])
    assert (args.action, args.study, args.only) == ("run", "STUDY", [7])
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == len(make_plan(read_study("scaling/synthetic"), ROOT).runs)
    (rule,) = (rule for rule in job["podFailurePolicy"]["rules"] if "onExitCodes" in rule)
    assert rule["action"] == "FailIndex"
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("chip", CHIPS)
def test_every_flag_has_its_reason(chip: str) -> None:
    for line in (LAUNCH / "xla" / f"{chip}.env").read_text().splitlines():
        if not line or line.startswith(("#", "source ", "export XLA_FLAGS", "export LIBTPU_INIT_ARGS")):
            continue
        form = r'export [A-Z_]+=\S+  # .{15,}|(XLA_FLAGS|LIBTPU_INIT_ARGS)\+=" --xla_\w+=[\w.]*"  # .{8,}'
        assert re.fullmatch(form, line), line


@cache
def flags_of(chip: str) -> dict[str, str]:
    """What a flag file sets."""
    words = ["bash", "-c", f"set -eu; source launch/xla/{chip}.env; env -0"]
    shown = subprocess.run(words, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in shown.stdout.split("\0") if line)


def starts(environ: dict[str, str], code: str) -> bool:
    """Whether XLA takes these flags; it ends the process at one that it does not know."""
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 or "Unknown" in run.stderr, run.stderr
    return run.returncode == 0


@pytest.mark.parametrize("more", ["", " --xla_gpu_no_such_flag=true"])
def test_xla_knows_the_flags_for_gpus(more: str) -> None:
    flags = {flags_of(chip)["XLA_FLAGS"] for chip in ("h100", "h200")}
    assert len(flags) == 1
    assert starts({"XLA_FLAGS": flags.pop() + more}, "import jax; jax.devices()") == (not more)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize(("chip", "more"), [*((chip, "") for chip in TPUS), ("v5e", " --xla_tpu_no_such_flag=true")])
def test_libtpu_knows_the_flags_for_tpus(chip: str, more: str) -> None:
    environ = {"LIBTPU_INIT_ARGS": flags_of(chip)["LIBTPU_INIT_ARGS"] + more, **ALONE}
    code = (
        "from jax.experimental import topologies; "
        f"topologies.get_topology_desc(platform='tpu', topology_name='{TPUS[chip]}')"
    )
    assert starts(environ, code) == (not more)


def test_there_are_containers_for_all_platforms() -> None:
    assert [path.stem for path in CONTAINERS] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.stem)
def test_a_container_copies_and_installs_what_there_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert Path(name).parts[0] in sent, name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = (line for line in lines if line.startswith("RUN pip install"))
    asked = re.findall(r"'\.\[(.*)\]'", install)
    assert {extra for group in asked for extra in group.split(",")} <= set(project["optional-dependencies"])
    # What the build of the wheel reads, see pyproject.toml.
    assert {"pyproject.toml", project["readme"], "LICENSE", "affectgpt_jax", "data_prep", "configs"} <= set(copied)
    (constraints,) = re.findall(r"-c (\S+)", install)
    assert constraints in copied
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]', path.read_text(), re.MULTILINE)
    assert os.access(ROOT / entry, os.X_OK)
