"""What a corpus costs to train on: lengths, how full rows are, tokens and steps of a pass."""

from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.plan import Plan

QUANTILES = (0, 5, 25, 50, 75, 95, 100)


class Fill(NamedTuple):
    """One way to make batches of a pass.

    Attributes:
        how: in words.
        rows: rows of a pass.
        positions: positions of all rows, padding included.
        share: positions that hold a token of a sample.
    """

    how: str
    rows: int
    positions: int
    share: float


class Statistics(NamedTuple):
    """Numbers of a corpus under a run's settings.

    Attributes:
        samples: usable ones.
        tokens: question type -> percentiles (`QUANTILES`) and mean of the samples' lengths.
        targets: the same of what is learned to be said.
        fills: ways to make batches, the run's own first.
        pass_tokens: tokens of a pass, the first one.
        pass_targets: its targets.
        pass_steps: optimizer steps of a pass.
        step_samples: least, mean and most samples of a step.
    """

    samples: int
    tokens: dict[str, dict[str, float]]
    targets: dict[str, dict[str, float]]
    fills: tuple[Fill, ...]
    pass_tokens: int
    pass_targets: int
    pass_steps: int
    step_samples: tuple[int, float, int]

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self._asdict() | {"fills": [fill._asdict() for fill in self.fills]}


def statistics(plan: Plan, label_types: tuple[str, ...], reference_batch: int = 3) -> Statistics:
    """Count.

    Args:
        plan: the run's.
        label_types: names of the plan's question types.
        reference_batch: samples of a batch that is padded to its longest, as the reference makes them.
    """
    rows = plan.epoch(0)
    tokens, targets = plan.tokens[rows.types, rows.samples], plan.targets[rows.types, rows.samples]
    total, room = int(tokens.sum()), plan.limits.tokens
    full = -(-len(tokens) // reference_batch) * reference_batch
    batches = np.pad(tokens, (0, full - len(tokens))).reshape(-1, reference_batch)
    padded = int(batches.max(axis=1).sum()) * reference_batch
    fills = (
        Fill("packed as the run does", len(rows), len(rows) * room, total / (len(rows) * room)),
        Fill("one sample a row of the same length", len(tokens), len(tokens) * room, total / (len(tokens) * room)),
        Fill(f"batches of {reference_batch} padded to their longest", len(tokens), padded, total / padded),
    )
    steps = plan.epoch_steps(0)
    counts = np.diff(rows.starts)
    counts = np.pad(counts, (0, steps * plan.step_rows - len(counts))).reshape(steps, -1).sum(axis=1)
    return Statistics(
        samples=plan.tokens.shape[1],
        tokens={name: _summary(plan.tokens[i]) for i, name in enumerate(label_types)},
        targets={name: _summary(plan.targets[i]) for i, name in enumerate(label_types)},
        fills=fills,
        pass_tokens=total,
        pass_targets=int(targets.sum()),
        pass_steps=steps,
        step_samples=(int(counts.min()), float(counts.mean()), int(counts.max())),
    )


def _summary(lengths: np.ndarray) -> dict[str, float]:
    found = np.percentile(lengths, QUANTILES)
    return {f"p{q}": float(value) for q, value in zip(QUANTILES, found, strict=True)} | {"mean": float(lengths.mean())}
