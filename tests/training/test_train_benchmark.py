"""`benchmarks/train_step.py`: both sides compute the same, and what it prints can be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("peft")
pytest.importorskip("torch")

FILE = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
MODES = ("in the loop", "cached", "natural")


@pytest.mark.slow
def test_both_sides_take_the_same_steps(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # At this rate five steps move the loss by more than the batches differ.
    words = ["--shape", "tiny", "--runs", "1", "--dropout", "0", "--rate", "1e-3", "--json", str(report)]
    command = [sys.executable, str(FILE), *words]
    environment = {**os.environ, "PYTHONPATH": str(FILE.parents[1])}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1] == "the same computation: yes"

    found = {side: runs[0] for side, runs in json.loads(report.read_text()).items()}
    for mode in ("in the loop", "cached"):
        torch, ours = found["torch"][mode], found["ours"][mode]
        assert torch["work"] == ours["work"]
        assert len(torch["losses"]) == len(ours["losses"]) == 5
        # Forward, backward and AdamW: every step's loss, and the first gradient.
        assert ours["losses"] == pytest.approx(torch["losses"], rel=1e-5)
        assert ours["norm"] == pytest.approx(torch["norm"], rel=1e-3)
        assert len(set(torch["losses"])) == 5

    rows = {line[:22].strip(): line[22:].split() for line in lines if line.startswith(MODES) and " - " in line}
    assert list(rows) == [f"{mode}, {side}" for mode in MODES for side in ("torch", "ours")]
    for name, (rate, low, _, high, tokens, *_) in rows.items():
        mode, side = name.rsplit(", ", 1)
        result = found[side][mode]
        samples, read, *_ = result["work"]
        assert float(rate) == pytest.approx(samples / result["seconds"], abs=1e-3)
        assert low == rate == high
        assert float(tokens) == pytest.approx(read / result["seconds"], rel=1e-2, abs=1)
    ratios = [line for line in lines if line.startswith("ours, ") and "x (" in line]
    assert len(ratios) == 4
