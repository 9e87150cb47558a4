"""A table of results from elsewhere, by the commands: laws as text, as JSON and as a page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.cli import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twenty-five points of a known law, two seeds each, and one run that went nowhere."""
    rng = np.random.default_rng(0)
    lines = ["id,N,D,loss,status"]
    for n in np.geomspace(1e7, 1e10, 5):
        for d in np.geomspace(1e9, 1e12, 5):
            for seed in range(2):
                loss = (1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) * np.exp(0.002 * rng.normal())
                lines.append(f"{n:g}-{d:g}-{seed},{n},{d},{loss},done")
    file = tmp_path / "table.csv"
    file.write_text("\n".join([*lines, "lost,1e8,1e10,,failed"]) + "\n")
    return file


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_table_is_fitted_told_and_stored(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "fit.json"
    words = ["scaling", "fit", str(table), "--bootstrap", "10", "--json", str(output)]
    assert main(words) == 2
    assert "lost: the run failed" in capsys.readouterr().err
    assert main([*words, "--skip-bad", "--budget", "1e24", "100 h200-hours"]) == 0
    told = capsys.readouterr().out
    assert "chinchilla, 50 runs" in told
    assert "Left out: lost: the run failed." in told
    (record,) = strict(output.read_text())
    assert record["values"] == pytest.approx({"E": 1.69, "A": 406.4, "B": 410.7, "a": 0.34, "b": 0.28}, rel=0.1)
    budgets = record["frontier"]["budgets"]
    assert [one["asked"] for one in budgets] == ["1e24", "100 h200-hours"]
    assert budgets[1]["flops"] == pytest.approx(100 * 3600 * 989e12 * 0.514)
    assert budgets[0]["parameters"] * budgets[0]["samples"] * 6 == pytest.approx(1e24)
    assert set(record["leave_out"]) == {"size", "data", "compute"}
    assert max(map(abs, record["leave_out"]["size"]["error"])) < 0.05


def test_what_is_not_determined_is_no_number_in_json(tmp_path: Path) -> None:
    """One that no data limits from above: its interval has no end."""
    file, output = tmp_path / "flat.csv", tmp_path / "fit.json"
    losses = [2.0, 2.001, 1.999, 2.0005, 1.9995, 2.0]
    file.write_text("N,D,loss\n" + "".join(f"1e6,{2**i},{loss}\n" for i, loss in enumerate(losses)))
    assert main(["scaling", "fit", str(file), "--bootstrap", "0", "--json", str(output)]) == 0
    (record,) = strict(output.read_text())
    assert None in (end for ends in record["profile"].values() for end in ends)
    assert record["warnings"]


def test_a_tables_page_has_everything_in_it(table: Path, tmp_path: Path) -> None:
    words = ["scaling", "report", str(table), "--skip-bad", "--bootstrap", "10", "--budget", "1e24"]
    assert main([*words, "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("<picture>") == 4
    assert not any(word in page for word in ('src="http', "results.csv"))
    text = (tmp_path / "page" / "report.md").read_text()
    for name in (line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")):
        assert (tmp_path / "page" / name).read_bytes().startswith(b"\x89PNG")
    for word in ("L = E + A / N^a + B / D^b", "Left out: lost", "Leave-out validation", "1e24", "profile likelihood"):
        assert word in text


@pytest.mark.parametrize("budget", ["0", "-1", "much", "100 h300-hours", "2 hours", "5 h200-flops"])
def test_what_is_no_budget_is_refused(table: Path, budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scaling", "fit", str(table), f"--budget={budget}"]) == 2
    assert f"--budget {budget!r}" in capsys.readouterr().err
