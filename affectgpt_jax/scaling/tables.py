"""What the command line prints of a plan and of its rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from affectgpt_jax.scaling.plan import Plan, Run
from affectgpt_jax.scaling.rows import Row, seconds_left

if TYPE_CHECKING:
    from affectgpt_jax.scaling.findings import Finding  # and with it SciPy, which `status` has no use for

LARGEST = {"size": "the largest size", "data": "the most captions", "compute": "the most compute"}
SHOWN = 5
"""Reasons of runs that are not done."""

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Titles, and rows."""


def plan_rows(plan: Plan) -> Table:
    """Every run with its number."""
    header = ("", "run", "parts", "parameters", "captions", "epochs", "FLOPs", "samples/s", "chip-hours", "GiB")
    rows: list[tuple[str, ...]] = [
        (
            str(number),
            run.id,
            ", ".join(run.parts),
            f"{run.cost.parameters:,}",
            f"{run.cost.captions:,}",
            str(run.setting.epochs),
            f"{run.cost.flops:.2e}",
            _number(run.cost.samples_per_s, ",.0f"),
            _number(run.cost.hours, ".3g"),
            f"{run.cost.memory / 2**30:.2f}",
        )
        for number, run in enumerate(plan.runs)
    ]
    return header, rows


def plan_summary(plan: Plan) -> Table:
    """Runs of one size together, and their sum."""
    groups: dict[str, list[Run]] = {}
    for run in plan.runs:
        groups.setdefault(run.setting.size or "base", []).append(run)
    header = ("size", "runs", "parameters", "captions", "FLOPs", "chip-hours", "GiB")
    rows = [_sums(name, runs) for name, runs in groups.items()]
    return header, [*rows, ("all", str(len(plan.runs)), "", "", f"{plan.flops:.2e}", _number(plan.hours, ".3g"), "")]


def _sums(name: str, runs: Sequence[Run]) -> tuple[str, ...]:
    costs = [run.cost for run in runs]
    hours = [cost.hours for cost in costs]
    return (
        name,
        str(len(runs)),
        _span([cost.parameters for cost in costs]),
        _span([cost.captions for cost in costs]),
        f"{sum(cost.flops for cost in costs):.2e}",
        _number(None if None in hours else sum(filter(None, hours)), ".3g"),
        f"{max(cost.memory for cost in costs) / 2**30:.2f}",
    )


def status_lines(plan: Plan, rows: Mapping[str, Row]) -> list[str]:
    """How far a study is, part by part, what failed and why, and how long the rest may take."""
    counts: dict[str, Counter[str]] = {part: Counter() for part in plan.study.parts}
    for run in plan.runs:
        row = rows.get(run.id)
        for part in run.parts:
            counts[part][row.status if row else "to do"] += 1
    wide = max(len(name) for name in counts)
    lines = [f"{plan.study.folder}: {len(plan.runs)} runs"]
    for part, found in counts.items():
        told = ", ".join(f"{found[kind]} {kind}" for kind in ("done", "failed", "diverged", "to do") if found[kind])
        lines.append(f"  {part:<{wide}}  {told}")
    bad = [row for row in rows.values() if row.status != "done"]
    lines += [f"  {row.id}: {row.status} after {row.attempts} attempts: {row.reason}" for row in bad[:SHOWN]]
    lines += [f"  and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    done = [row for row in rows.values() if row.status == "done"]
    left = [run.cost.flops for run in plan.runs if run.id not in rows]
    if done and left:
        hours = seconds_left(done, left) / 3600
        lines.append(f"  at the speed of what is done the rest takes {hours:.2g} hours, run after run")
    return lines


def finding_lines(finding: "Finding", budgets: Mapping[str, float]) -> list[str]:
    """A law with its intervals, what it predicts, and what is wrong with it."""
    fitted = finding.fit
    if fitted is None:
        return [f"{finding.title}: no law: {finding.why_not}", *(f"  {note}" for note in finding.notes)]
    lines = [
        f"{finding.title}: {fitted.law.name}, {len(finding.points.loss)} runs, {fitted.agreeing} of {fitted.starts} "
        f"starts agree, spread {fitted.sigma:.2%}"
    ]
    ends = finding.intervals.ends if finding.intervals else {}
    for name, value in fitted.values.items():
        told = [
            f"{kind} {found[name][0]:.4g} to {found[name][1]:.4g}"
            for kind, found in (("bootstrap", ends), ("profile", finding.profiles))
            if name in found
        ]
        lines.append(f"  {name:<4} {value:<10.4g} 95%: {'; '.join(told)}")
    for which, (found, why) in finding.left_out.items():
        if found is None:
            lines.append(f"  without {LARGEST[which]}: {why}")
            continue
        worst = max(found.error, key=abs)
        lines.append(f"  without {LARGEST[which]}: {len(found.names)} predicted, at worst {worst:+.1%}")
    if (best := finding.optimum) is not None:
        lines.append(f"  at best N grows as C^{best.size_exponent:.3f}, D as C^{best.data_exponent:.3f}")
        for i, asked in enumerate(budgets):
            beyond = best.flops[i] / finding.points.flops.max()
            lines.append(
                f"  {asked}: {best.parameters[i]:.3g} parameters, {best.samples[i]:.3g} captions, loss "
                f"{best.loss[i]:.4f} ({beyond:.3g} times the largest run)"
            )
    if (slices := finding.slices) is not None:
        lines.append(f"  {len(slices.slices)} slices of equal compute: N as C^{slices.size_exponent:.3f}")
    lines += [f"  warning: {words}" for words in finding.warnings]
    return [*lines, *(f"  {note}" for note in finding.notes)]


def _span(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} - {max(values):,}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
