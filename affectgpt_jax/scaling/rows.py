"""Result rows: one small JSON file a run, which says what it was, what it reached, or why it did not."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing
from affectgpt_jax.scaling.plan import Plan
from affectgpt_jax.scaling.study import Setting

ROWS = "rows"
Status = Literal["done", "failed", "diverged"]


class Row(NamedTuple):
    """What is kept of a run.

    Attributes:
      id: the run's name.
      parts: of the study that asked for it.
      setting: what it was.
      seed: of weights and order.
      status: "done"; "failed"; or "diverged", at a loss or gradient that was no number.
      reason: why it is not done, in the program's own words.
      attempts: how often it was tried.
      parameters: of the decoder, adapters included, N.
      body: of them those of the layers.
      trained: all trained parameters.
      samples: captions seen, D.
      tokens: of them, prompts included, without padding.
      targets: of them learned to be said.
      flops: of the training by `training.flops`, C.
      steps: optimizer steps.
      rate: highest learning rate.
      loss: validation loss at the end, nats a target token.
      losses: along the training, pairs of captions seen and validation loss.
      scores: of answers to `evaluate.split`, by name; empty if none were asked for.
      seconds: of wall-clock time, all attempts, compiling and validation included.
      samples_per_s: in training steps, median.
      predicted: samples/s as the plan said; None if it said none.
      chip: what trained it.
      finished: when, UTC.
    """

    id: str
    parts: tuple[str, ...]
    setting: Setting
    seed: int
    status: Status
    reason: str
    attempts: int
    parameters: int
    body: int
    trained: int
    samples: int
    tokens: int
    targets: int
    flops: float
    steps: int
    rate: float
    loss: float | None
    losses: tuple[tuple[int, float], ...]
    scores: Mapping[str, float]
    seconds: float
    samples_per_s: float | None
    predicted: float | None
    chip: str
    finished: str


def row_path(folder: Path, run: str) -> Path:
    """Where a run's row lies in its study's folder."""
    return folder / ROWS / f"{run}.json"


def write_row(folder: Path, row: Row) -> None:
    """Store a row; a file that is there whole or not at all."""
    path = row_path(folder, row.id)
    record = row._asdict() | {"setting": row.setting._asdict()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_row(path: Path) -> Row | None:
    """A row; None if there is none.

    Raises:
      UserError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts, losses = tuple(found.pop("parts")), tuple((int(n), float(loss)) for n, loss in found.pop("losses"))
        return Row(parts=parts, setting=Setting(**found.pop("setting")), losses=losses, **found)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, and `affectgpt scaling run` makes it again"
        ) from error


def read_rows(plan: Plan) -> dict[str, Row]:
    """The rows of a plan's runs that there are, by run."""
    folder = plan.study.folder
    there = {path.stem for path in (folder / ROWS).glob("*.json")}
    found = {run.id: read_row(row_path(folder, run.id)) for run in plan.runs if run.id in there}
    return {name: row for name, row in found.items() if row is not None}


def flat(row: Row) -> dict[str, Any]:
    """A row as a line of a table: axes and scores as columns of their own, captions as `unique` too."""
    values = row._asdict()
    axes, scores = values.pop("setting")._asdict(), values.pop("scores")
    return axes | values | dict(scores) | {"unique": row.setting.captions}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A table of rows for other programs, one a line; `affectgpt scaling fit` reads it too."""
    lines = [flat(row) for row in rows]
    names = dict.fromkeys(name for line in lines for name in line if name not in ("parts", "losses", "reason"))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def seconds_left(done: Sequence[Row], left: Sequence[float]) -> float:
    """How long runs will take, one after the other: each some seconds to start, and some for each FLOP.

    Args:
      done: rows that say how many; at least one.
      left: FLOPs of the runs.
    """
    flops, seconds = (np.array([getattr(row, name) for row in done]) for name in ("flops", "seconds"))
    scale = max(flops.max(), 1.0)
    columns = np.stack([np.ones(len(done)), flops / scale], axis=1)
    found = np.linalg.lstsq(columns, seconds)[0]
    if found.min() < 0:  # neither takes less than nothing: the other alone
        other = columns[:, found.argmax()]
        found = np.where(found > 0, other @ seconds / (other @ other), 0.0)
    start, work = found
    return float(start * len(left) + work * sum(left) / scale)
