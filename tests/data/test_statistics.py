"""What a pass costs, counted by hand."""

import numpy as np
import pytest

from affectgpt_jax.data.plan import Limits, Plan
from affectgpt_jax.data.statistics import statistics


def plan(samples: int, step_rows: int = 2, window: int = 16) -> Plan:
    tokens = np.array([[50, 40, 10, 30, 20], [60, 60, 60, 60, 60]])
    return Plan(tokens, tokens // 10, Limits(100, 100, samples), step_rows, 0, (1.0, 0.0000001), "draw", window)


def test_counts() -> None:
    """Five samples of 50, 40, 10, 30 and 20 tokens: two full rows of 100 and of 50."""
    found = statistics(plan(samples=8), ("ovlabel", "description"))
    assert found.samples == 5
    assert found.pass_tokens == 150
    assert found.pass_targets == 15
    assert found.pass_steps == 1
    assert found.step_samples == (5, 5.0, 5)
    own, single, _ = found.fills
    assert (own.rows, own.positions, own.share) == (2, 200, 0.75)
    assert (single.rows, single.positions, single.share) == (5, 500, 0.3)
    assert found.tokens["ovlabel"] == {
        "p0": 10, "p5": pytest.approx(12), "p25": 20, "p50": 30, "p75": 40, "p95": pytest.approx(48), "p100": 50,
        "mean": 30,
    }  # fmt: skip
    assert found.targets["description"]["mean"] == 6
    assert found.record()["fills"][0]["rows"] == 2


def test_padded_batches() -> None:
    """A batch of three is as long as its longest; what lacks to three is no sample."""
    chosen = plan(samples=1)
    order = chosen.tokens[0, chosen.epoch(0).samples].tolist()
    found = statistics(chosen, ("ovlabel", "description"))
    assert found.fills[2].positions == 3 * (max(order[:3]) + max(order[3:]))
    assert found.fills[2].share == 150 / found.fills[2].positions
    assert found.pass_steps == 3
    assert found.step_samples == (1, pytest.approx(5 / 3), 2)
