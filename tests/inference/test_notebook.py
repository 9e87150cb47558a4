"""The notebook of the documentation runs from top to bottom, and is one that Jupyter opens."""

import re
import warnings
from pathlib import Path

import pytest

from affectgpt_jax import LIMITS
from tests.conftest import ROOT
from tests.inference.clip_run import make_clip_run
from tests.notebooks import read_notebook, run_notebook

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_clip_run(tmp_path)
    monkeypatch.setenv("AFFECTGPT_RUN", str(run))
    monkeypatch.setenv("MPLBACKEND", "agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        shown = run_notebook(NOTEBOOK)
    told = capsys.readouterr().out
    assert shown["parameters"] == f"AffectGPT({str(run)!r}, step=7)"
    assert "synth0" in shown["predict"]
    assert all(LIMITS in shown[cell] for cell in ("predict", "score"))
    assert LIMITS in told
    assert "not calibrated" in shown["score"]
    assert re.search(r"no-such-clip +there is no such file", told)
    assert all(f"without {modality}" in told for modality in ("face", "audio", "text"))
    lines = {line.split("  ")[0].strip(): line for line in told.splitlines() if "happy 0" in line}
    assert len(set(lines.values())) == len(lines) == 4


def test_it_is_a_notebook() -> None:
    """What the published schema of nbformat 4.5 asks for, and no output of somebody's machine."""
    found = read_notebook(NOTEBOOK)
    assert set(found) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert set(found["metadata"]["kernelspec"]) >= {"name", "display_name"}
    assert "name" in found["metadata"]["language_info"]
    names = [cell["id"] for cell in found["cells"]]
    assert len(set(names)) == len(names)
    for cell in found["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9-_]{1,64}", cell["id"])
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("markdown", "code")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if code:
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
