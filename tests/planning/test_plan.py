"""The command: programs compiled for devices that are not there, what is printed, and exit statuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from affectgpt_jax.cli import main
from affectgpt_jax.errors import UserError
from affectgpt_jax.planning.estimate import estimate
from affectgpt_jax.planning.program import compile_job, read_collectives
from tests.planning.jobs import VALUES, small_job

SEVEN = "affectgpt_qwen2.5_7b_face"


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command chooses a platform for its process; tests share one."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"name": "small", **VALUES}))
    return str(path)


def test_the_smallest_slice(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The true step, compiled by the TPU's own compiler for four chips that are not here."""
    pytest.importorskip("libtpu")
    words = ["plan", small, "--topology", "v5e:2x2", "mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"]
    assert main([*words, "--json", str(tmp_path / "plan.json")]) == 0
    printed = capsys.readouterr().out
    for part in ("4 v5e", "fsdp 2, tensor 2", "the compiler's account", "fits", "chip-hours", "all-reduce"):
        assert part in printed
    record = json.loads((tmp_path / "plan.json").read_text())
    (step,) = record["compiled"]["programs"]
    assert record["fits"]
    assert record["memory_limit"] == 15.75 * 2**30
    # So small arrays fill no tile of a TPU's memory.
    assert record["estimate"]["memory"]["arguments"] < step["arguments"] < 1e6
    assert step["arguments"] < step["peak"]
    assert record["compiled"]["host_memory"] > 1e8
    assert {"all-gather", "all-reduce"} <= step["collectives"].keys()


@pytest.mark.slow
def test_what_cannot_fit_is_caught_and_the_remedy_fits(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty-four rows whose attention weights alone are more than a chip has; fewer rows in more rounds fit."""
    pytest.importorskip("libtpu")
    words = ["train.rows=64", "data.row_length=8192", "model.decoder.attention=xla", "mesh.data=1", "mesh.fsdp=-1"]
    assert main(["plan", small, "--topology", "v5e:2x2", *words]) == 1
    printed = capsys.readouterr()
    assert "DOES NOT FIT" in printed.out
    assert "exceeds available HBM (15.75G)" in printed.out
    assert "It fits with: " in printed.out
    assert printed.out.count(": fits") == 1
    assert "trying " in printed.err


def test_virtual_devices_of_this_machine() -> None:
    job = small_job("cpu:4", "mesh.data=2", "mesh.tensor=2")
    compiled, found = compile_job(job), estimate(job)
    (step,) = compiled.programs
    # What nothing depends on is not given to the program, but held all the same.
    assert 0.97 * found.memory.arguments < step.arguments <= found.memory.arguments
    assert step.collectives is not None
    assert "all-reduce" in step.collectives
    assert step.temporaries > 0
    assert step.peak >= step.arguments + step.temporaries


def test_answers_are_two_programs() -> None:
    job = small_job("cpu:2", "mesh.data=1", "mesh.tensor=2", kind="answer", prompt=40)
    compiled = compile_job(job)
    assert [program.program for program in compiled.programs] == ["read prompts", "write answers"]
    found = estimate(job)
    assert all(0.9 * found.memory.arguments < program.arguments for program in compiled.programs)


def test_gpus_are_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", SEVEN, "--topology", "h200:8", "train.rows=8", "data.row_samples=16", "--price", "3.5"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for part in ("estimate from shapes", "8 h200", "fits", "a roofline (estimate)", "at 3.5 a chip-hour", "88% filled"):
        assert part in printed


def test_lengths_can_be_given(tmp_path: Path) -> None:
    def samples(*words: str) -> Any:
        file = tmp_path / "plan.json"
        main(["plan", SEVEN, "--topology", "h200:1", "data.row_samples=64", "--json", str(file), *words])
        return json.loads(file.read_text())

    short, long = samples("--tokens", "100", "--targets", "20"), samples("--tokens", "400", "--targets", "150")
    assert short["load"]["source"] == long["load"]["source"] == "as given"
    assert short["estimate"]["samples"] == 19
    assert long["estimate"]["samples"] == 4
    assert short["estimate"]["spent"] == long["estimate"]["spent"]


def test_the_corpus_says_its_lengths(tmp_path: Path) -> None:
    from affectgpt_jax.planning.job import make_job
    from affectgpt_jax.planning.topology import parse_topology
    from tests.tiny_run import make_tiny, tiny_config

    config = tiny_config(make_tiny(tmp_path))
    job = make_job("train", config, parse_topology("h200:4"), {})
    assert job.load.source == f"those of {tmp_path / 'shards'}"
    assert 50 < job.load.tokens < 250
    assert 1 <= job.row_samples <= 2
    assert job.config.model.decoder.vocab % 64 == 0  # the tokenizer's
    assert not job.config.weights.language  # all of it is trained
    assert make_job("train", config, parse_topology("h200:4"), {"tokens": 90.0}).load.tokens == 90.0


def test_one_table(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", SEVEN, "--topology", "h200:8", "--compare", "h100:64", "rtx4090:8", small, "train.rows=64"]
    assert main([*words, "--price", "2"]) == 1
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| config | topology | mesh |")
    assert head.endswith("| cost |")
    assert len({line.count("|") for line in (head, rule, *rows)}) == 1
    assert [row.split("|")[1].strip() for row in rows] == [SEVEN] * 3 + ["small"] * 3
    assert [row.split("|")[9].strip() for row in rows] == ["yes", "yes", "no", "yes", "yes", "yes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([SEVEN], "--topology: name one"),
        (["affectgpt_qwen2.5_7b_fase", "--topology", "h200:8"], "did you mean affectgpt_qwen2.5_7b_face"),
        ([SEVEN, "--topology", "h200:8", "--tokens", "-3"], "--tokens -3.0: expected a positive number"),
        ([SEVEN, "--topology", "h200:8", "mesh.fdsp=2"], "nearest valid key: mesh.fsdp"),
        ([SEVEN, "--topology", "h200:8", "weights.language=nowhere"], "nowhere"),
    ],
)
def test_commands_that_are_wrong(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="compiling for cpu:1 ended with status 1"):
        compile_job(small_job("cpu:1"))


def test_collectives_are_read_from_a_program() -> None:
    text = """
  %a = bf16[1,3584,512]{2,1,0} all-gather(bf16[1,224,512]{2,1,0} %p), dimensions={1}, metadata={op_name="x/y"}
  %b = (f32[8]{0}, f32[4,2]{1,0}) all-reduce-start(f32[8]{0} %q, f32[4,2]{1,0} %r), to_apply=%add
  %c = f32[2]{0} add(f32[2]{0} %a, f32[2]{0} %b)
"""
    found = read_collectives(text)
    assert [(each.kind, each.dtype, each.shape) for each in found] == [
        ("all-gather", "bf16", (1, 3584, 512)),
        ("all-reduce", "f32", (8,)),
        ("all-reduce", "f32", (4, 2)),
    ]
    assert found[0].where == "x/y"


MEASURE = """
import ctypes, json, sys, time
import jax, numpy as np
from affectgpt_jax.planning.job import Job, Load
from affectgpt_jax.planning.layout import abstract_batch
from affectgpt_jax.config import RunConfig
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.sharding import put_batch
from affectgpt_jax.training.setup import set_up

def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

words = json.load(sys.stdin)
config = RunConfig.model_validate(words["config"])
setup = set_up(config)
job = Job("train", config, parse_topology("cpu:1"), Load(1, 1, 1, 1, 1, ""), 1.0)
host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_batch(job, setup.mesh))
state, most = setup.state, []
for _ in range(4):
    batch = put_batch(setup.mesh, host)
    time.sleep(1)  # threads give back what the step before held a while after it ended
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held, before = sum(x.nbytes for x in jax.live_arrays()), memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
    state, metrics = setup.step(state, setup.frozen, batch)
    jax.block_until_ready((state, metrics))
    most.append(held + memory("VmHWM") - before)
print(max(most[1:]))  # the first step compiles
"""


@pytest.mark.slow
def test_planned_bytes_are_those_that_a_run_allocates() -> None:
    """The demo's step on this machine: arrays that are held, and what the process grows by while it is taken."""
    from affectgpt_jax.config import load_config
    from affectgpt_jax.planning.job import make_job
    from affectgpt_jax.planning.topology import parse_topology

    free = ["weights.tokenizer=", "weights.vision=", "weights.audio=", "model.vision_width=64", "model.audio_width=64"]
    config = load_config("demo", [*free, "model.decoder.vocab=1024"])
    job = make_job("train", config, parse_topology("cpu:1"), {})
    planned = compile_job(job).largest.peak
    words = json.dumps({"config": job.config.model_dump(mode="json")})
    # What is freed goes back to the system at once, so that its size shows when it is taken again.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEASURE]
    ran = subprocess.run(
        command, input=words, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert planned > 50e6
    assert int(ran.stdout.splitlines()[-1]) == pytest.approx(planned, rel=0.1)
