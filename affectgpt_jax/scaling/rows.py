"""Result rows: one small JSON file a run, which says what it was, what it reached, or why it did not."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing
from affectgpt_jax.scaling.plan import Plan

ROWS = "rows"
Status = Literal["done", "failed", "diverged"]


class Row(NamedTuple):
    """What is kept of a run.

    Attributes:
      id: the run's name.
      parts: of the study that asked for it.
      size, captions, epochs, rank, encoder, query_tokens, frames, prefusion, seed: what it was; None where the base
        decided.
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
    size: str | None
    captions: int
    epochs: int
    rank: int | None
    encoder: str | None
    query_tokens: int | None
    frames: int | None
    prefusion: str | None
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


AXES = ("size", "captions", "epochs", "rank", "encoder", "query_tokens", "frames", "prefusion")
"""Of a row, what a study varies besides seeds."""


def row_path(folder: Path, run: str) -> Path:
    """Where a run's row lies in its study's folder."""
    return folder / ROWS / f"{run}.json"


def write_row(folder: Path, row: Row) -> None:
    """Store a row; a file that is there whole or not at all."""
    path = row_path(folder, row.id)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(row._asdict(), indent=1) + "\n", encoding="utf-8")


def read_row(path: Path) -> Row | None:
    """A row; None if there is none.

    Raises:
      UserError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts, losses = tuple(found.pop("parts")), tuple((int(n), float(loss)) for n, loss in found.pop("losses"))
        return Row(parts=parts, losses=losses, **found)
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


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A table of rows for other programs, one a line; `affectgpt scaling fit` reads it too."""
    scores = sorted({name for row in rows for name in row.scores})
    left_out = ("parts", "losses", "scores", "reason")
    names = [name for name in Row._fields if name not in left_out]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *scores])
        for row in rows:
            values = row._asdict()
            writer.writerow([*map(_cell, (values[name] for name in names)), *(row.scores.get(s, "") for s in scores)])


def _cell(value: Any) -> Any:
    return "" if value is None else value


def in_part(rows: Iterable[Row], part: str) -> list[Row]:
    """The rows that a part of a study asked for."""
    return [row for row in rows if part in row.parts]
