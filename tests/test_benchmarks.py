"""Benchmarks that compare with torch run to their ends, and both sides compute the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
MODES = ("in the loop", "cached", "natural")


def run(name: str, report: Path, *more: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints at the smallest shape, and its JSON by side."""
    file = ROOT / "benchmarks" / name
    command = [sys.executable, str(file), "--shape", "tiny", "--runs", "1", "--json", str(report), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, {side: results[0] for side, results in json.loads(report.read_text()).items()}


@pytest.mark.slow
def test_generate(tmp_path: Path) -> None:
    told, found = run("generate.py", tmp_path / "found.json", "--batches", "3", "--single", "2")
    assert found["ours"]["ids"] == found["torch"]["ids"]
    assert "the same ids on both sides: yes" in told
    assert set(found["torch"]["rates"]) == {"one by one", "3 at a time"}
    assert set(found["ours"]["rates"]) == {"3 at a time"}


@pytest.mark.slow
def test_encoders(tmp_path: Path) -> None:
    told, found = run("encoders.py", tmp_path / "found.json", "--samples", "2", "--batch", "5")
    for name in ("vision", "audio"):
        mine, others = found["ours"]["features"][name], found["torch"]["features"][name]
        assert len(mine) == len(others) == 8
        for one, other in zip(mine, others, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
        assert f"\n{name}" in told


@pytest.mark.slow
def test_train_step(tmp_path: Path) -> None:
    # At this rate five steps move the loss by more than the batches differ.
    told, found = run("train_step.py", tmp_path / "found.json", "--dropout", "0", "--rate", "1e-3")
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
