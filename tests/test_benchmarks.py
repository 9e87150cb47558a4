"""Benchmarks that compare with torch run to their ends, and both sides compute the same."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.common.trace import kind_of, shares
from tests.conftest import ROOT, reference_folder

pytest.importorskip("peft")
pytest.importorskip("torch")

MODES = ("in the loop", "cached", "natural")


Runs = dict[str, dict[str, Any]]
"""What each side found, by benchmark and side."""


@pytest.mark.slow
def test_one_call_measures_everything(tmp_path: Path) -> None:
    """`h200.sh` at the smallest shape: all stages pass, both sides compute the same, the table says what was found."""
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "LIMIT": "1500"}
    command = ["bash", str(ROOT / "benchmarks" / "h200.sh"), "--shape", "tiny"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    logs = "".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    assert ran.returncode == 0, ran.stdout + ran.stderr + logs
    found = {path.stem: _sides(path) for path in tmp_path.glob("*.json")}
    assert set(found) == {"train_step", "generate", "encoders", "checkpoint"}
    _check_answers(found, (tmp_path / "generate.log").read_text())
    _check_towers(found, (tmp_path / "encoders.log").read_text())
    _check_training(found, (tmp_path / "train_step.log").read_text())
    table = (tmp_path / "table.txt").read_text()
    assert ran.stdout.endswith(table)
    assert "not measured" not in table
    rate = found["train_step"]["ours"]["cached"]["work"][0] / found["train_step"]["ours"]["cached"]["seconds"]
    (line,) = (line for line in table.splitlines() if line.startswith("training, cached, samples/s"))
    assert float(line.split()[4].replace(",", "")) == pytest.approx(rate, abs=1e-3)


def _sides(report: Path) -> dict[str, Any]:
    return {side: results[0] for side, results in json.loads(report.read_text()).items()}


def _check_answers(runs: Runs, told: str) -> None:
    found = runs["generate"]
    assert found["ours"]["ids"] == found["torch"]["ids"]
    assert "the same ids on both sides: yes" in told
    assert set(found["torch"]["rates"]) == {"one by one", "3 at a time"}
    assert set(found["ours"]["rates"]) == {"3 at a time"}


def _check_towers(runs: Runs, told: str) -> None:
    for name in ("vision", "audio"):
        mine, others = (runs["encoders"][side]["features"][name] for side in ("ours", "torch"))
        assert len(mine) == len(others) == 8
        for one, other in zip(mine, others, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
        assert f"\n{name}" in told


def _check_training(runs: Runs, told: str) -> None:
    """At this rate five steps move the loss by more than the batches differ."""
    found = runs["train_step"]
    lines = told.splitlines()
    assert lines[-1] == "the same computation: yes"
    for mode in ("in the loop", "cached"):
        torch, ours = found["torch"][mode], found["ours"][mode]
        assert torch["work"] == ours["work"]
        assert len(torch["losses"]) == len(ours["losses"]) == 5
        # Forward, backward and AdamW: every step's loss, and the first gradient.
        assert ours["losses"] == pytest.approx(torch["losses"], rel=1e-5)
        assert ours["norm"] == pytest.approx(torch["norm"], rel=1e-3)
        assert len(set(torch["losses"])) == 5

    rows = {
        line[:22].strip(): line[22:].split()
        for line in lines
        if line.startswith((*MODES, "full rows, ours")) and " - " in line
    }
    assert list(rows) == [*(f"{mode}, {side}" for mode in MODES for side in ("torch", "ours")), "full rows, ours"]
    for name, (rate, low, _, high, tokens, *_) in rows.items():
        mode, side = name.rsplit(", ", 1)
        result = found[side][mode]
        samples, read, *_ = result["work"]
        assert float(rate) == pytest.approx(samples / result["seconds"], abs=1e-3)
        assert low == rate == high
        assert float(tokens) == pytest.approx(read / result["seconds"], rel=1e-2, abs=1)
    ratios = [line for line in lines if line.startswith("ours, ") and "x (" in line]
    assert len(ratios) == 4


def test_what_was_found_before_a_stop_is_kept(tmp_path: Path) -> None:
    """Piece by piece, in order; one more of ours ends at its first piece; the table names what is missing."""
    script, report = tmp_path / "script.py", tmp_path / "train_step.json"
    script.write_text(
        "import argparse, sys, time\n"
        "from common.sides import add_arguments, compare\n"
        "def prepare(args): (args.folder / 'seed').write_text('3')\n"
        "def torch(args):\n"
        "    yield {'start': float((args.folder / 'seed').read_text())}\n"
        "    yield {'cached': {'work': [8, 80], 'seconds': 2.0}}\n"
        "def ours(args):\n"
        "    yield {'start': 1.0}\n"
        "    if '--end' in sys.argv: time.sleep(args.end)\n"
        "    else: sys.exit('broken')\n"
        "parser = argparse.ArgumentParser()\n"
        "add_arguments(parser)\n"
        "parser.add_argument('--end', type=float)\n"
        "compare(parser.parse_args(), torch, ours, lambda args, found: print('shown'), prepare, again=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    compared = [str(script), "--runs", "1", "--json", str(report)]
    ran = call(*compared)
    assert ran.returncode == 1
    assert "ours failed:\nbroken" in ran.stderr
    torch = [{"start": 3.0, "cached": {"work": [8, 80], "seconds": 2.0}}]
    assert json.loads(report.read_text()) == {"torch": torch, "ours": [{"start": 1.0}]}
    told = call(str(ROOT / "benchmarks" / "summary.py"), str(tmp_path))
    rows = {line[:52].strip(): line[52:].split() for line in told.stdout.splitlines()}
    assert rows["training, cached, samples/s"] == ["4.000", "not", "measured"]
    assert rows["start to first step, nothing compiled before, s"] == ["3.000", "1.000", "3.00x"]
    assert rows["CLIP, pictures/s"][:4] == ["not", "measured", "not", "measured"]

    assert call(*compared, "--end", "0.1").stdout == "shown\n"
    assert json.loads(report.read_text()) == {"torch": torch, "ours": [{"start": 1.0}], "again": [{"start": 1.0}]}


def test_make_bench_runs_all_that_measure() -> None:
    command = ["make", "--dry-run", "--silent", f"VENV={Path(sys.executable).parents[1]}", "bench"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    (names,) = re.findall(r"for name in ([\w ]+);", told)
    others = {"recipe", "roofline", "summary"}  # trains for hours, measures nothing, reads what h200.sh left
    assert set(names.split()) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - others


def test_shares_of_a_trace(tmp_path: Path) -> None:
    """Of traced products nearly all of the time goes into products; kinds are found by names of CPU and GPU."""
    x = jnp.ones((1024, 1024))
    work = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: x @ y, x))
    work(x).block_until_ready()
    with jax.profiler.trace(tmp_path):
        work(x).block_until_ready()
    found = shares(tmp_path)
    assert sum(found.values()) == pytest.approx(1)
    assert found["products"] > 0.8
    names = {
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNN": "products", "gemm_fusion_dot_3": "products", "dot.14": "products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop": "attention", "MemcpyD2D": "copies",
        "loop_transpose_fusion": "copies", "input_reduce_fusion_2": "reductions", "loop_multiply_fusion": "elementwise",
    }  # fmt: skip
    assert {name: kind_of(name) for name in names} == names
    with pytest.raises(FileNotFoundError, match="no trace"):
        shares(tmp_path / "nowhere")


@pytest.mark.slow
def test_weights(tmp_path: Path) -> None:
    """The smallest shape: both sides merge the same, and the table has what they took."""
    report = tmp_path / "weights.json"
    told = _bench("weights", "--shape", "tiny", "--runs", "2", "--folder", str(tmp_path), "--json", str(report))
    found = json.loads(report.read_text())
    assert {name: len(runs) for name, runs in found.items()} == {
        "write, ours": 1, "read, torch": 2, "read, ours": 2, "load, ours": 2, "merge, torch": 2, "merge, ours": 2,
        "check, ours": 1,
    }  # fmt: skip
    size = found["write, ours"][0]["bytes"]
    assert size == found["read, ours"][0]["bytes"] == found["merge, ours"][0]["bytes"]
    assert size / 8 <= found["load, ours"][0]["bytes"] < size / 4  # small tensors are whole on each
    (line,) = (line for line in told.splitlines() if line.startswith("merge adapters"))
    seconds = [sorted(run["seconds"] for run in found[f"merge, {side}"]) for side in ("torch", "ours")]
    ratio = statistics.median(seconds[0]) / statistics.median(seconds[1])
    assert f"{ratio:.2f}x" in line
    assert not list(tmp_path.glob("weights.*/"))


@pytest.mark.slow
def test_input_pipeline(tmp_path: Path) -> None:
    told = _bench("input_pipeline", "--samples", "300", "--passes", "2", "--clips", "3")
    rates = [float(rate.replace(",", "")) for rate in re.findall(r" ([\d,]+) +[\d,]+ - [\d,]+(?:  \(|$)", told, re.M)]
    assert len(rates) == 8
    assert min(rates) > 0
    ratio, least, most = re.findall(r"clip by clip: ([\d,]+)x \(([\d,]+) - ([\d,]+)\)", told)[0]
    assert float(least.replace(",", "")) <= float(ratio.replace(",", "")) <= float(most.replace(",", ""))


@pytest.mark.slow
def test_score() -> None:
    """It ends with an error unless the plain version gives the same scores."""
    told = _bench("score", "--unibench", str(reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench")))
    assert re.search(r"affectgpt_jax +[\d.]+ ms +[\d.]+ - [\d.]+ +1.0x", told)
    assert re.search(r"one million clips, 5 wheels +[\d.]+ ms", told)


@pytest.mark.slow
def test_ablations(tmp_path: Path) -> None:
    report = tmp_path / "ablations.json"
    some = ("one sample a row", "every token a target", "state not donated", "fused")
    told = _bench("ablations", "--shape", "tiny", "--runs", "1", "--json", str(report), "--only", *some)
    found = {name: runs[0] for name, runs in json.loads(report.read_text()).items()}
    assert set(found) == {"shipped", *some}
    for name, result in found.items():
        (line,) = (line for line in told.splitlines() if line.startswith(f"{name}  "))
        assert f" {result['rate']:.2f} " in line
        assert f"{result['rate'] / found['shipped']['rate']:.2f}x (" in line
    # A state of one kind of number thrice, parameters and two moments, is held twice.
    assert found["state not donated"]["memory"] > found["shipped"]["memory"]


@pytest.mark.slow
def test_xla_knows_the_flags_of_the_variants() -> None:
    """It ends the process at one that it does not know."""
    code = (
        "import os, sys; sys.path.insert(0, 'benchmarks'); from ablations import VARIANTS; "
        "os.environ['XLA_FLAGS'] = ' '.join(v.flags for v in VARIANTS.values()) + sys.argv[1]; "
        "import jax; jax.devices()"
    )
    for more in ("", " --xla_gpu_no_such_flag=true"):
        ran = subprocess.run(
            [sys.executable, "-c", code, more], capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
        )
        assert (ran.returncode == 0) == (not more), ran.stderr


def _bench(name: str, *words: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"}
    environment.pop("XLA_FLAGS", None)  # as a user starts them
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_recipe(tmp_path: Path) -> None:
    """Both ways go through as many samples, at rates that follow from their batches; a second call trains nothing."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        ran = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran

    data = str(tmp_path / "data")
    counts = ("--train", "24", "--validation", "4", "--test", "1")
    run("-m", "affectgpt_jax.cli", "synth", data, "--features", *counts)
    recipe = [
        str(ROOT / "benchmarks" / "recipe.py"), "smoke", f"data.shards={data}", f"weights.tokenizer={data}/tokenizer",
        "--samples", "24", "--rows", "4", "--seeds", "1", "--exponents", "0.5", "--weightings", "reference",
        "--points", "2", "--rate", "1e-3", "--json", str(tmp_path / "found.json"),
    ]  # fmt: skip
    told = run(*recipe).stdout
    found = {way: results[0] for way, results in json.loads((tmp_path / "found.json").read_text()).items()}
    assert set(found) == {"original", "packed, reference, 0.5"}
    original, packed = found["original"], found["packed, reference, 0.5"]
    assert (original["steps"], original["rate"]) == (8, 1e-3)
    assert 1 < packed["steps"] < 8
    assert packed["rate"] == pytest.approx(1e-3 * (24 / packed["steps"] / 3) ** 0.5)
    lines = (tmp_path / "runs/recipe/original-0/metrics.jsonl").read_text().splitlines()
    measured = {line["step"]: line.get("validation_loss") for line in map(json.loads, lines)}
    assert original["losses"] == [measured[4], measured[8]]  # after 12 and 24 samples
    for way, result in found.items():
        assert len(result["losses"]) == 2
        (line,) = (line for line in told.splitlines() if line.startswith(way))
        assert f"{result['losses'][-1]:.4f} ± 0.0000" in line
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert run(*recipe).stdout == told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == changed
