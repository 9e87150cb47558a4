"""Benchmarks that compare with torch run to their ends, and both sides compute the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]


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
