"""The report of the shipped study: its numbers follow from its table, and its page needs nothing else."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from affectgpt_jax.scaling.findings import Options, find
from affectgpt_jax.scaling.points import read_csv

REPORT = Path(__file__).parents[2] / "docs/scaling_study"
TITLE = "law"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [row for row in read_csv(REPORT / "results.csv") if row["prefusion"] == "attention"]


def test_the_law_follows_from_the_table(rows: list[dict[str, str]]) -> None:
    found = find(TITLE, rows, Options(resamples=0))
    (told,) = (one for one in json.loads((REPORT / "fit.json").read_text()) if one["runs"] == TITLE)
    assert found.fit is not None
    assert found.fit.law.name == told["law"] == "chinchilla"
    assert found.fit.values == pytest.approx(told["values"], rel=1e-3)
    text = (REPORT / "report.md").read_text()
    for name, value in found.fit.values.items():
        (cell,) = re.findall(rf"^\| {name} \| (\S+) \|", text.split("## Law: ")[1], re.MULTILINE)
        assert float(cell) == pytest.approx(value, rel=2e-3)


def test_small_runs_foretell_the_largest(rows: list[dict[str, str]]) -> None:
    found = find(TITLE, rows, Options(resamples=0))
    for which, (left, why) in found.left_out.items():
        assert left is not None, why
        assert abs(left.error).max() < 0.05, which
    (largest,) = {row["id"].rsplit("-s", 1)[0] for row in rows if float(row["flops"]) == max(found.points.flops)}
    left, _ = found.left_out["compute"]
    assert left is not None
    assert left.names[0].rsplit("-s", 1)[0] == largest


def test_five_sizes_four_amounts_two_seeds(rows: list[dict[str, str]]) -> None:
    cells = Counter((row["size"], row["captions"]) for row in rows)
    assert set(cells.values()) == {2}
    assert len({size for size, _ in cells}) == 5
    assert len({captions for _, captions in cells}) == 4
    assert len(cells) == 20


def test_the_page_is_small_and_whole() -> None:
    files = list(REPORT.iterdir())
    assert sum(file.stat().st_size for file in files) < 1e6
    text, page = (REPORT / "report.md").read_text(), (REPORT / "report.html").read_text()
    pictures = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert pictures == {file.name for file in files if file.suffix == ".png"}
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    for words in (text, page, (REPORT / "results.csv").read_text(), (REPORT / "fit.json").read_text()):
        assert not re.search(r"/(?:root|home|work|tmp)/", words)
