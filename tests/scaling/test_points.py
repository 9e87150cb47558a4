"""Rows become points, or are refused by name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling.points import make_points, read_csv, take

GOOD = [
    {"id": f"run-{n}-{seed}", "parameters": 10.0**n, "samples": 1e5, "unique": 5e4, "flops": 1e12, "loss": 2.0}
    for n in (6, 7, 8)
    for seed in (0, 1)
]
BAD = {
    "loss is nan": {"loss": float("nan")},
    "loss is inf": {"loss": "inf"},
    "loss is 0": {"loss": 0},
    "loss is -1": {"loss": "-1"},
    "loss is nan, ": {"loss": "much"},
    "parameters is 0": {"parameters": 0},
    "samples is nan": {"samples": None},
    "flops is -1": {"flops": -1},
    "unique (200000) is more than samples (100000)": {"unique": 2e5},
    "the run failed (no memory)": {"status": "failed", "reason": "no memory", "loss": None},
    "the run diverged": {"status": "diverged"},
    "not finite": {"losses": [[1, 3.0], [2, float("nan")]]},
    "ended at 3.5, above the 3 it began at": {"losses": [[1, 3.0], [2, 2.0], [3, 3.5]]},
    "over 5% above its lowest, 2": {"losses": json.dumps([[1, 3.0], [2, 2.0], [3, 2.2]])},
    "losses are not pairs": {"losses": [1, 2]},
}


def test_points_of_a_study():
    points, notes = make_points([*GOOD, {**GOOD[0], "id": None, "losses": [[1, 3.0], [2, 2.0]], "status": "done"}])
    assert notes == []
    assert points.cell.tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert points.names[0] == "run-6-0"
    assert points.names[-1] == "row 7"
    assert points.unique[0] == 5e4
    assert take(points, points.cell == 1).names == ("run-7-0", "run-7-1")
    assert take(points, np.array([2, 2])).parameters.tolist() == [1e7, 1e7]


def test_other_columns():
    rows = [{**row, "rank": 8, "scores": 0.7} for row in GOOD]
    points, _ = make_points(rows, data="rank", loss="scores")
    assert set(points.samples) == set(points.unique) == {8.0}
    assert set(points.loss) == {0.7}
    points, notes = make_points([{"rank": 8, "loss": 2.0}], size=None, data="RANK")
    assert points.parameters.tolist() == [1.0]
    assert notes == []


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_refused_or_left_out_by_name(reason: str):
    rows = [*GOOD, {**GOOD[0], "id": "poor", **BAD[reason]}]
    with pytest.raises(UserError, match=r"1 of 7 rows cannot be fitted: poor: .*--skip-bad") as refused:
        make_points(rows)
    assert reason in str(refused.value)
    points, notes = make_points(rows, skip_bad=True)
    assert len(points.loss) == 6
    assert len(notes) == 1
    assert reason in notes[0]
    assert "poor" in notes[0]


@given(st.sets(st.integers(0, 11), min_size=1))
def test_any_row_without_a_loss_is_counted_and_the_first_are_named(places: set[int]):
    rows = [{"N": n, "D": 1e5, "C": 1, "L": np.nan if n - 1 in places else 2} for n in range(1, 13)]
    with pytest.raises(UserError, match=f"{len(places)} of 12 rows") as refused:
        make_points(rows)
    named = [f"row {place + 1}: L is nan" in str(refused.value) for place in sorted(places)]
    assert named == [True] * min(5, len(named)) + [False] * max(0, len(named) - 5)
    points, notes = make_points(rows, skip_bad=True)
    assert (len(points.loss), len(notes)) == (12 - len(places), len(places))


@pytest.mark.parametrize("header", ["N,D,L", "params,Tokens,Final_Loss", "MODEL_SIZE,captions,validation_loss"])
def test_tables_from_elsewhere(header: str, tmp_path):
    (tmp_path / "a.csv").write_text(f"{header},note\n1e6, 2e5,3.5,x\n1e7,2e5,3.0,y\n", encoding="utf-8-sig")
    points, notes = make_points(read_csv(tmp_path / "a.csv"))
    assert points.parameters.tolist() == [1e6, 1e7]
    assert points.unique.tolist() == points.samples.tolist() == [2e5, 2e5]
    assert points.flops.tolist() == [1.2e12, 1.2e13]
    assert points.loss.tolist() == [3.5, 3.0]
    assert notes == ["There is no column flops: C = 6 N D is assumed."]


def test_columns_that_are_missing_or_ambiguous():
    with pytest.raises(UserError, match=r"no column is samples .*columns found: N, L"):
        make_points([{"N": 1, "L": 2}])
    with pytest.raises(UserError, match="columns L, validation_loss could all be loss"):
        make_points([{"N": 1, "D": 1, "L": 2, "validation_loss": 2}])
    with pytest.raises(UserError, match="columns C, compute could all be flops"):
        make_points([{"N": 1, "D": 1, "L": 2, "C": 1, "compute": 2}])
    # A study's own names are taken as they are.
    points, _ = make_points([{**GOOD[0], "validation_loss": 9, "captions": 7}])
    assert (points.loss[0], points.samples[0]) == (2.0, 1e5)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.csv cannot be read"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("N,D,L\n")
    with pytest.raises(UserError, match=r"empty\.csv has no rows"):
        read_csv(tmp_path / "empty.csv")
    with pytest.raises(UserError, match="no rows"):
        make_points([])
