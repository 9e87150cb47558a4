"""What a study's rows say: a law for each set of runs that can carry one, and what each other axis changes.

Runs that differ in size, captions and epochs alone are fitted together. Which law follows from what varies among them:

- at least three sizes and three amounts of data: `chinchilla`, or `repeats` where captions are seen more than once;
- one amount of data: `saturating-size`; one size: `saturating`; one of both and several ranks: `saturating`, in the
  rank;
- where sizes share a compute, optima of slices too.

A score s is fitted as 1 - s, which falls.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from affectgpt_jax.errors import UserError
from affectgpt_jax.scaling.fitting import (
    Fit,
    Frontier,
    Intervals,
    IsoFlop,
    LeaveOut,
    bootstrap,
    frontier,
    isoflop,
    leave_out,
    profile,
    screened_fit,
    warnings,
)
from affectgpt_jax.scaling.laws import LAWS, Law
from affectgpt_jax.scaling.points import Points, make_points, number
from affectgpt_jax.scaling.rows import Row, flat
from affectgpt_jax.scaling.study import Setting

LEFT_OUT = ("size", "data", "compute")
OTHERS = ("rank", "encoder", "query_tokens", "frames", "prefusion")
"""Axes that no law is fitted along, but for a rank alone."""
LOSS = "loss"


class Options(NamedTuple):
    """How rows are fitted.

    Attributes:
      law: name of the law; empty: by what varies.
      metric: "loss", or a score's name.
      size: column of N.
      data: column of D.
      huber: delta of the Huber loss; None: found.
      resamples: of the bootstrap.
      skip_bad: leave out what cannot be fitted, and say so.
      budgets: FLOPs that predictions are asked for, by how they were asked.
    """

    law: str = ""
    metric: str = LOSS
    size: str = "parameters"
    data: str = "samples"
    huber: float | None = None
    resamples: int = 200
    skip_bad: bool = False
    budgets: Mapping[str, float] = {}


class Finding(NamedTuple):
    """A law of one set of runs.

    Attributes:
      title: which runs.
      metric: what was fitted.
      points: the runs.
      fit: the law; None if they carry none.
      why_not: the reason then.
      intervals: of its bootstrap.
      profiles: 95% profile-likelihood intervals by parameter.
      left_out: predictions of the largest runs by a fit without them, or why there is none; by which are left out.
      optimum: compute-optimal sizes at the compute of the budgets; None for laws of one variable.
      slices: optima of slices of equal compute; None if there are none.
      warnings: what a reader must know.
      notes: rows left out, assumptions.
    """

    title: str
    metric: str
    points: Points
    fit: Fit | None
    why_not: str
    intervals: Intervals | None
    profiles: Mapping[str, tuple[float, float]]
    left_out: Mapping[str, tuple[LeaveOut | None, str]]
    optimum: Frontier | None
    slices: IsoFlop | None
    warnings: Sequence[str]
    notes: Sequence[str]


class Difference(NamedTuple):
    """How two values of one axis differ, in runs that are otherwise alike.

    Attributes:
      axis: which.
      first: the value that is compared with.
      second: the other.
      setting: what the runs share, in words; empty for all settings together.
      pairs: of runs with the same seed.
      change: mean of the second's metric less the first's.
      low: end of its 95% interval, by Student's t over the pairs; NaN of a single pair.
      high: other end.
    """

    axis: str
    first: Any
    second: Any
    setting: str
    pairs: int
    change: float
    low: float
    high: float


def find(title: str, rows: Sequence[Mapping[str, Any]], options: Options) -> Finding:
    """The law of one set of rows.

    Raises:
      UserError: rows that cannot be fitted, and `skip_bad` is not set; a law that was asked for by name and cannot be.
    """
    rank = not options.law and _only_rank_varies(rows)
    points, notes = make_points(
        [_with_falling(row, options.metric) for row in rows],
        loss=options.metric,
        size=None if rank else options.size,
        data="rank" if rank else options.data,
        skip_bad=options.skip_bad,
    )
    nothing = Finding(title, options.metric, points, None, "", None, {}, {}, None, None, (), notes)
    try:
        law = LAWS[options.law] if options.law else _choose(points)
    except UserError as error:
        return nothing._replace(why_not=str(error))
    fitted, points, left = screened_fit(law, points, huber=options.huber, skip_bad=options.skip_bad)
    notes = [*notes, *left]
    intervals = bootstrap(fitted, points, options.resamples) if options.resamples else None
    profiles = {name: profile(fitted, points, name) for name in law.parameters}
    two = len(law.axes) > 1
    which = LEFT_OUT if two else ("size",) if law.axes == ("parameters",) else ("data",)
    optimum = frontier(fitted, points, list(options.budgets.values()), intervals) if two else None
    slices = None
    if two:
        try:
            slices = isoflop(points)
        except UserError:
            slices = None  # runs need not share a compute
    return Finding(
        title=title,
        metric=options.metric,
        points=points,
        fit=fitted,
        why_not="",
        intervals=intervals,
        profiles=profiles,
        left_out={name: leave_out(law, points, name, huber=options.huber) for name in which},
        optimum=optimum,
        slices=slices,
        warnings=warnings(fitted, points, profiles),
        notes=notes,
    )


def _choose(points: Points) -> Law:
    """The law that what varies can carry.

    Raises:
      UserError: none; says what would have to vary.
    """
    sizes, amounts = (len(np.unique(values)) for values in (points.parameters, points.samples))
    if sizes >= 3 and amounts >= 3:
        return LAWS["repeats" if np.any(points.samples > points.unique) else "chinchilla"]
    if amounts == 1 and sizes >= 4:
        return LAWS["saturating-size"]
    if sizes == 1 and amounts >= 4:
        return LAWS["saturating"]
    raise UserError(
        f"{sizes} sizes and {amounts} amounts of data carry no law: at least three of each are needed, or four of one "
        "with one of the other"
    )


def _only_rank_varies(rows: Sequence[Mapping[str, Any]]) -> bool:
    ranks = {row.get("rank") for row in rows}
    return len(ranks) > 1 and len({(row.get("parameters"), row.get("samples")) for row in rows}) <= len(ranks)


def _with_falling(row: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    """A row whose metric falls as it gets better; the losses along it say nothing of a score."""
    if metric == LOSS or row.get(metric) in (None, ""):
        return row
    return {**row, metric: 1 - number(row[metric]), "losses": ()}


def groups_of(rows: Sequence[Row], parts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of a study in sets that differ in size, captions, epochs and seed alone, part by part.

    A part in which nothing else but the rank varies is one set.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        found = [row for row in rows if part in row.parts]
        varying = [name for name in OTHERS if len({getattr(row.setting, name) for row in found}) > 1]
        if varying == ["rank"] and len({(row.setting.size, row.setting.captions) for row in found}) == 1:
            varying = []
        for row in found:
            said = ", ".join(f"{_words(name)} {getattr(row.setting, name)}" for name in varying)
            groups.setdefault(f"{part}: {said}" if said else part, []).append(flat(row))
    return groups


def differences(rows: Sequence[Row], metric: str = LOSS) -> list[Difference]:
    """What each axis other than size, captions and epochs changes: by setting, and over all settings.

    Runs are paired that share all other axes and the seed. The first value of an axis is the one that most runs have.
    """
    done = [row for row in rows if row.status == "done" and _value(row, metric) is not None]
    found: list[Difference] = []
    for axis in OTHERS:
        values = sorted({getattr(row.setting, axis) for row in done}, key=str)
        if len(values) < 2:
            continue
        first = max(values, key=lambda value: sum(getattr(row.setting, axis) == value for row in done))
        others = [name for name in Setting._fields if name != axis]
        table: dict[tuple[Any, ...], dict[Any, float]] = {}
        for row in done:
            key = (*(getattr(row.setting, name) for name in others), row.seed)
            value = _value(row, metric)
            assert value is not None
            table.setdefault(key, {})[getattr(row.setting, axis)] = value
        told = [name for name in others if len({key[others.index(name)] for key, v in table.items() if len(v) > 1}) > 1]
        for second in (value for value in values if value != first):
            by_setting: dict[str, list[float]] = {}
            for key, found_values in table.items():
                if first in found_values and second in found_values:
                    words = ", ".join(f"{_words(name)} {key[others.index(name)]}" for name in told)
                    by_setting.setdefault(words, []).append(found_values[second] - found_values[first])
            whole = [change for changes in by_setting.values() for change in changes]
            if len(by_setting) > 1:
                found += [_difference(axis, first, second, words, c) for words, c in by_setting.items()]
            if whole:
                found.append(_difference(axis, first, second, "", whole))
    return found


def _difference(axis: str, first: Any, second: Any, setting: str, changes: Sequence[float]) -> Difference:
    mean, n = float(np.mean(changes)), len(changes)
    reach = float(np.std(changes, ddof=1) / math.sqrt(n) * stdtrit(n - 1, 0.975)) if n > 1 else math.nan
    return Difference(axis, first, second, setting, n, mean, mean - reach, mean + reach)


def _value(row: Row, metric: str) -> float | None:
    return row.loss if metric == LOSS else row.scores.get(metric)


def _words(name: str) -> str:
    return {"prefusion": "pre-fusion", "query_tokens": "query tokens"}.get(name, name)


def measured_flops_per_s(rows: Sequence[Row]) -> float | None:
    """What the runs reached from start to end, all time counted; None if none is done."""
    done = [row for row in rows if row.status == "done" and row.seconds]
    return sum(row.flops for row in done) / sum(row.seconds for row in done) if done else None


def as_record(finding: Finding, budgets: Mapping[str, float]) -> dict[str, Any]:
    """A finding for programs; None stands for what is infinite or no number."""
    record: dict[str, Any] = {
        "runs": finding.title,
        "metric": finding.metric,
        "rows": len(finding.points.loss),
        "warnings": list(finding.warnings),
        "notes": list(finding.notes),
    }
    if finding.fit is None:
        return record | {"law": None, "reason": finding.why_not}
    fitted = finding.fit
    ends = finding.intervals.ends if finding.intervals else {}
    record |= {
        "law": fitted.law.name,
        "values": fitted.values,
        "bootstrap": ends,
        "profile": finding.profiles,
        "delta": fitted.delta,
        "sigma": fitted.sigma,
        "starts": fitted.starts,
        "agreeing": fitted.agreeing,
        "residuals": dict(zip(finding.points.names, fitted.residuals.tolist(), strict=True)),
        "leave_out": {
            name: {"reason": reason}
            if found is None
            else {
                "runs": found.names,
                "measured": found.measured.tolist(),
                "predicted": found.predicted.tolist(),
                "error": found.error.tolist(),
            }
            for name, (found, reason) in finding.left_out.items()
        },
    }
    if (best := finding.optimum) is not None:
        record["frontier"] = {
            "size_exponent": best.size_exponent,
            "data_exponent": best.data_exponent,
            "flops_of_a_sample": {"k": best.cost[0], "g": best.cost[1]},
            "budgets": [
                {"asked": asked, "flops": float(best.flops[i])}
                | {name: float(getattr(best, name)[i]) for name in ("parameters", "samples", "loss")}
                | {
                    f"{name}_interval": best.ends[name][:, i].tolist()
                    for name in ("parameters", "samples", "loss")
                    if best.ends
                }
                for i, asked in enumerate(budgets)
            ],
        }
    if (slices := finding.slices) is not None:
        record["isoflop"] = {
            "size_exponent": slices.size_exponent,
            "size_interval": slices.size_interval,
            "data_exponent": slices.data_exponent,
            "data_interval": slices.data_interval,
            "slices": [
                {"flops": one.flops, "parameters": one.parameters, "samples": one.samples, "loss": one.loss}
                for one in slices.slices
            ],
            "notes": slices.notes,
        }
    finite: dict[str, Any] = _finite(record)
    return finite


def _finite(value: Any) -> Any:
    """With None in place of numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
