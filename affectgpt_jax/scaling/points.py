"""The points that a scaling law is fitted to: one a run, from rows of a study or of any table of results.

Nothing that a run got wrong is fitted in silence: rows with impossible numbers, failed and diverged runs are refused
by name, or left out and listed.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.errors import UserError

ALIASES = {
    "parameters": ("parameters", "n", "params", "model_size"),
    "samples": ("samples", "d", "tokens", "captions"),
    "flops": ("flops", "c", "compute"),
    "loss": ("loss", "l", "final_loss", "validation_loss"),
}
"""Headers that are understood, in any case, where a table has not the names of a study."""
RISE = 0.05
"""A run that ended this far above its own lowest loss has diverged."""


class Points(NamedTuple):
    """One point a run, float64 [n] each."""

    parameters: np.ndarray
    """N, trained in the run or whatever else its size is measured by."""
    samples: np.ndarray
    """D, captions seen, repeats included."""
    unique: np.ndarray
    """U, distinct captions among them."""
    flops: np.ndarray
    """C of the whole run."""
    loss: np.ndarray
    """Nats per target token, or another positive quantity that falls."""
    cell: np.ndarray
    """int64 [n]: runs that differ in nothing but the seed share a number."""
    names: tuple[str, ...]
    """What a message calls each run."""


def take(points: Points, index: np.ndarray) -> Points:
    """Some of the points: their numbers, or a mask."""
    arrays = {key: array[index] for key, array in zip(Points._fields, points[:-1])}
    return points._replace(**arrays, names=tuple(np.array(points.names, object)[index]))


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """Rows of a CSV file with a header.

    Args:
        path: of the file.

    Raises:
        UserError: it cannot be read, or has no rows.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, skipinitialspace=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}") from error
    if not rows:
        raise UserError(f"{path} has no rows: a header and one row a run are expected")
    return rows


def make_points(
    rows: Sequence[Mapping[str, Any]],
    *,
    loss: str = "loss",
    size: str | None = "parameters",
    data: str | None = "samples",
    skip_bad: bool = False,
) -> tuple[Points, list[str]]:
    """Check rows and turn them into points.

    A row has columns for N, D and the loss, and may have `unique`, `flops`, `id`, `status`, `reason` and `losses`
    (pairs of samples and loss along the training). Other columns are not looked at. A cell is a set of rows with the
    same N, D and U.

    Args:
        rows: one a run, values as numbers or as text.
        loss: column of the loss.
        size: column of N; None where there is none (N = 1 for a law in D alone).
        data: column of D, likewise. `unique` counts only beside `samples`.
        skip_bad: leave out rows that cannot be fitted, instead of refusing the table.

    Returns:
        The points, and notes: a sentence for each row left out, and for what had to be assumed.

    Raises:
        UserError: no rows, a column missing or not to be told apart, rows that cannot be fitted.
    """
    if not rows:
        raise UserError("there are no rows to fit: one row a run is expected")
    columns = list(dict.fromkeys(key for row in rows for key in row if key is not None))
    asked = {"parameters": size, "samples": data, "loss": loss}
    own = all(name in columns for name in asked.values() if name)
    found = {key: name and (name if own else _column(key, name, columns)) for key, name in asked.items()}
    flops = "flops" if "flops" in columns else _column("flops", "flops", columns, optional=True)

    bad, good = [], []
    for place, row in enumerate(rows, 1):
        name = str(row.get("id") or f"row {place}")
        numbers = {key: number(row.get(column)) if column else 1.0 for key, column in found.items()}
        numbers["unique"] = numbers["samples"]
        if data == "samples" and row.get("unique") not in (None, ""):
            numbers["unique"] = number(row["unique"])
        numbers["flops"] = number(row.get(flops)) if flops else 6 * numbers["parameters"] * numbers["samples"]
        labels = {
            **{key: column or key for key, column in found.items()},
            "unique": "unique",
            "flops": flops or "6 N D",
        }
        if reason := _fault(row, numbers, labels):
            bad.append(f"{name}: {reason}")
        else:
            good.append((name, numbers))
    if bad and not skip_bad:
        raise refusal(bad, len(rows))

    fields = {key: np.array([numbers[key] for _, numbers in good], np.float64) for key in Points._fields[:5]}
    keys = np.stack([fields["parameters"], fields["samples"], fields["unique"]], axis=1)
    cell = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    notes = [f"Left out: {line}." for line in bad]
    if not flops and size and data:
        notes.append("There is no column flops: C = 6 N D is assumed.")
    return Points(**fields, cell=cell, names=tuple(name for name, _ in good)), notes


def refusal(bad: Sequence[str], rows: int) -> UserError:
    """The error that names rows which cannot be fitted.

    Args:
        bad: a line for each, name and reason.
        rows: how many there are in all.
    """
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    return UserError(
        f"{len(bad)} of {rows} rows cannot be fitted: {'; '.join(bad[:5])}{more}. "
        "Run them again, or leave them out with --skip-bad"
    )


def _column(key: str, name: str, columns: list[str], optional: bool = False) -> str | None:
    """The one column of this meaning: by its name, else (if the name is the usual one) by an alias."""
    known = ALIASES[key] if name == key else (name.lower(),)
    matches = [column for column in columns if column.strip().lower() in known]
    if len(matches) == 1 or (optional and not matches):
        return matches[0] if matches else None
    what = f"columns {', '.join(matches)} could all be" if matches else "no column is"
    raise UserError(
        f"{what} {name} (known as {', '.join(known)}, in any case); columns found: {', '.join(columns)}. "
        f"Rename columns so that one of them is {name}"
    )


def number(value: Any) -> float:
    """A cell of a table; NaN where it holds no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _fault(row: Mapping[str, Any], numbers: dict[str, float], labels: dict[str, str]) -> str:
    """Why a row cannot be fitted; empty if it can."""
    if (status := row.get("status")) in ("failed", "diverged"):
        return f"the run {status}" + (f" ({row['reason']})" if row.get("reason") else "")
    for key, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            return f"{labels[key]} is {value:g}, not a number above 0"
    if numbers["unique"] > numbers["samples"]:
        return f"unique ({numbers['unique']:g}) is more than {labels['samples']} ({numbers['samples']:g})"
    return _divergence(row.get("losses"))


def _divergence(losses: Any) -> str:
    """What in the losses along a run says that it diverged; empty if nothing does."""
    try:
        curve = [
            float(loss) for _, loss in (json.loads(losses) if isinstance(losses, str) and losses else losses or ())
        ]
    except (TypeError, ValueError):
        return "losses are not pairs of samples and loss"
    if not curve:
        return ""
    if not all(map(math.isfinite, curve)):
        return "it diverged: a loss along the run is not finite"
    if curve[-1] > curve[0]:
        return f"it diverged: the loss ended at {curve[-1]:.4g}, above the {curve[0]:.4g} it began at"
    if curve[-1] > (1 + RISE) * min(curve):
        return f"it diverged: the loss ended at {curve[-1]:.4g}, over {RISE:.0%} above its lowest, {min(curve):.4g}"
    return ""
