"""A plan in words, as a row of a table, and for programs."""

import math
from typing import Any, NamedTuple

from affectgpt_jax.planning.estimate import REACHED, Estimate, Memory
from affectgpt_jax.planning.job import Job
from affectgpt_jax.planning.program import Compiled
from affectgpt_jax.planning.search import Change, memory_limit

GIB = 2**30


class Plan(NamedTuple):
    """What is known of a job.

    Attributes:
      job: what is planned.
      estimate: from shapes; None if the sizes do not fit.
      compiled: the compiler's account; None where there is no compiler, or nothing to compile.
      refused: why the sizes do not fit; empty if they do.
      price: of a chip-hour; None if it was not said.
    """

    job: Job
    estimate: Estimate | None
    compiled: Compiled | None
    refused: str
    price: float | None

    @property
    def fits(self) -> bool:
        """Whether the job can run."""
        if self.estimate is None:
            return False
        if self.compiled is not None:
            return self.compiled.fits
        limit = memory_limit(self.job)
        return limit is None or self.estimate.memory.peak <= limit

    @property
    def memory(self) -> Memory | None:
        """Bytes of a device that the largest program is given and works with; None if it could not be compiled."""
        assert self.estimate is not None
        if self.compiled is None:
            return self.estimate.memory
        largest = self.compiled.largest
        return Memory(largest.arguments, largest.temporaries) if largest.fits else None

    @property
    def peak(self) -> float:
        """Bytes of a device at most at a time."""
        assert self.estimate is not None
        return self.estimate.memory.peak if self.compiled is None else self.compiled.largest.peak

    @property
    def chip_hours(self) -> float:
        """Of the whole job; not a number for a CPU."""
        assert self.estimate is not None
        return self.estimate.steps * self.estimate.seconds * self.job.topology.chips / 3600


def as_text(plan: Plan) -> str:
    """The plan in lines."""
    job, found = plan.job, plan.estimate
    topology, config = job.topology, job.config
    chip = topology.chip
    what = {"train": "training", "answer": "answers", "extract": "labels out of answers"}[job.kind]
    hosts = f", {topology.hosts} hosts" if topology.hosts > 1 else ""
    lines = [f"{config.name}, {what}, on {topology.name}: {topology.chips} {chip.name if chip else 'cpu'}{hosts}"]
    if found is None:
        return "\n".join([*lines, f"  cannot run      {plan.refused}"])
    limit = memory_limit(job)
    sizes = ", ".join(f"{axis} {size}" for axis, size in found.sizes.items() if size > 1)
    lines += [f"  mesh            {sizes or 'one device'}", *_work_lines(plan, found), ""]
    source = "the compiler's account" if plan.compiled else "estimate from shapes"
    lines += [f"  memory          of a device, {source}"]
    if (memory := plan.memory) is not None:
        lines += [f"    arguments     {memory.arguments / GIB:8.2f} GiB  parameters, optimizer, batch"]
        lines += [f"    temporaries   {memory.temporaries / GIB:8.2f} GiB"]
    of = f" of {limit / GIB:.2f}" if limit is not None else ""
    lines += [f"    peak          {plan.peak / GIB:8.2f} GiB{of}: {'fits' if plan.fits else 'DOES NOT FIT'}"]
    if plan.compiled and not plan.compiled.fits:
        lines += [f"    compiler      {plan.compiled.largest.message}"]
    lines += ["", *_time_lines(plan, found)]
    if plan.compiled:
        lines += ["", *_compiler_lines(plan.compiled)]
    return "\n".join(lines)


def _work_lines(plan: Plan, found: Estimate) -> list[str]:
    job, load = plan.job, plan.job.load
    train, data = job.config.train, job.config.data
    if job.kind != "train":
        return [
            f"  batch           {found.samples:,.0f} rows, prompts of {load.prompt} tokens, answers of {load.new} "
            f"(lengths {load.source}), at most {job.config.evaluate.max_new}",
            f"  the job         {load.clips:,} clips, {found.steps:,} batches",
        ]
    rounds = f" in {train.accumulate} rounds" if train.accumulate > 1 else ""
    return [
        f"  step            {train.rows * train.accumulate:,} rows of {data.row_length:,} tokens{rounds}, "
        f"{found.samples:,.0f} samples of {load.tokens:,.0f} tokens, {load.targets:,.0f} of them targets "
        f"(lengths {load.source}): {found.tokens / (train.rows * train.accumulate * data.row_length):.0%} filled",
        f"  the run         {found.steps:,} steps, {found.steps * found.samples:,.0f} samples",
    ]


def _time_lines(plan: Plan, found: Estimate) -> list[str]:
    topology = plan.job.topology
    chip, unit = topology.chip, "step" if plan.job.kind == "train" else "batch"
    executed = sum(spent.flops for spent in found.spent.values())
    flops = (
        f"  FLOPs           of a {unit}: {found.useful / 1e12:,.2f} T useful (closed form), {executed / 1e12:,.2f} T "
        "executed on each device"
    )
    if chip is None:
        return [flops, "  time            of a CPU not estimated"]
    lines = [flops, f"  time            of a {unit}, a roofline (estimate):"]
    for name, time in found.times.items():
        tensor = f" + tensor exchange {_ms(time.tensor)}" if time.tensor else ""
        lines += [
            f"    {name:<14}{_ms(time.seconds):>9}  largest of arithmetic {_ms(time.arithmetic)}{tensor}, memory "
            f"{_ms(time.memory)}, exchange {_ms(time.exchange)}"
        ]
    rate, peak = found.samples / found.seconds, chip.flops * topology.devices
    each = "samples" if plan.job.kind == "train" else "clips"
    cost = f", {plan.price * plan.chip_hours:,.2f} at {plan.price:g} a chip-hour" if plan.price is not None else ""
    lines += [
        f"    at            {chip.attained:.1%} of {chip.flops / 1e12:,.0f} TFLOP/s ({chip.source}), {REACHED:.0%} of "
        f"{chip.bandwidth / 1e12:.2f} TB/s",
        f"    {each + '/s':<14}{rate:9,.1f}  {found.tokens / found.seconds:,.0f} tokens/s, "
        f"{found.useful / found.seconds / peak:.1%} of the peak useful",
        f"  the whole       {_hours(found.steps * found.seconds / 3600)} hours, {_hours(plan.chip_hours)} chip-hours"
        + cost,
    ]
    return lines


def _compiler_lines(compiled: Compiled) -> list[str]:
    lines = []
    for program in compiled.programs:
        lines += [
            f"  {program.program:<15} lowered in {program.lower_seconds:.1f} s, compiled in "
            f"{program.compile_seconds:.1f} s"
        ]
        if program.collectives is None:
            lines += ["    collectives   the compiler cannot print this program" if program.fits else ""]
        elif program.collectives:
            lines += ["    collectives   in the program's text, a loop over layers counted once:"]
            lines += [
                f"      {kind:<20}{count:5}  {size / 2**20:10,.1f} MiB"
                for kind, (count, size) in sorted(program.collectives.items())
            ]
    lines += [f"  this machine    {compiled.seconds:.0f} s, {compiled.host_memory / 1e9:.1f} GB of memory"]
    return [line for line in lines if line]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 10 else f"{1e3 * seconds:,.1f} ms"


COLUMNS = (
    "config",
    "topology",
    "mesh",
    "rows a device",
    "arguments GiB",
    "temporaries GiB",
    "peak GiB",
    "of GiB",
    "fits",
    "step s",
    "samples/s",
    "mfu_lora",
    "chip-hours",
    "chip-hours a million",
    "compile s",
    "host GB",
)


def as_table(plans: list[Plan]) -> str:
    """Plans as a Markdown table; memory marked ~ is an estimate, times always are.

    Chip-hours are the job's, and those of a million samples or clips.
    """
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(_row(plan) for plan in plans)]
    if any(plan.price is not None for plan in plans):
        rows[0] += ["cost"]
        rows[1] += ["---"]
        for row, plan in zip(rows[2:], plans, strict=True):
            row += [f"{plan.price * plan.chip_hours:,.0f}" if plan.price is not None and plan.estimate else "-"]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(plan: Plan) -> list[str]:
    job, found = plan.job, plan.estimate
    names = [job.config.name, job.topology.name]
    if found is None:
        return [*names, *["-"] * 6, "no: " + plan.refused.replace("|", "/"), *["-"] * 7]
    limit, about = memory_limit(job), "" if plan.compiled else "~"
    sizes = " ".join(f"{axis} {size}" for axis, size in found.sizes.items() if size > 1) or "-"
    shards = math.prod(found.sizes[axis] for axis in ("slice", "data", "fsdp"))
    rows = (job.config.train.rows if job.kind == "train" else found.samples) / shards
    memory = plan.memory
    timed = bool(found.times)
    peak = job.topology.chip.flops * job.topology.devices if job.topology.chip else math.nan
    return [
        *names,
        sizes,
        f"{rows:g}" + (f" x {job.config.train.accumulate}" if job.config.train.accumulate > 1 else ""),
        about + f"{memory.arguments / GIB:.2f}" if memory else "-",
        about + f"{memory.temporaries / GIB:.2f}" if memory else "-",
        about + f"{plan.peak / GIB:.2f}",
        f"{limit / GIB:.1f}" if limit is not None else "-",
        "yes" if plan.fits else "no",
        f"{found.seconds:.3g}" if timed else "-",
        f"{found.samples / found.seconds:,.0f}" if timed else "-",
        f"{found.useful / found.seconds / peak:.0%}" if timed else "-",
        _hours(plan.chip_hours) if timed else "-",
        _hours(1e6 * plan.chip_hours / (found.steps * found.samples)) if timed else "-",
        f"{sum(program.compile_seconds for program in plan.compiled.programs):.0f}" if plan.compiled else "-",
        f"{plan.compiled.host_memory / 1e9:.1f}" if plan.compiled else "-",
    ]


def as_record(plan: Plan, change: Change | None) -> dict[str, Any]:
    """The plan for programs."""
    found = plan.estimate
    record: dict[str, Any] = {
        "config": plan.job.config.name,
        "kind": plan.job.kind,
        "topology": plan.job.topology.name,
        "chips": plan.job.topology.chips,
        "fits": plan.fits,
        "refused": plan.refused,
        "load": plan.job.load._asdict(),
        "memory_limit": memory_limit(plan.job),
    }
    if found is not None:
        record["estimate"] = {
            "mesh": found.sizes,
            "memory": found.memory._asdict(),
            "spent": {name: spent._asdict() for name, spent in found.spent.items()},
            "times": {name: time._asdict() | {"seconds": time.seconds} for name, time in found.times.items()},
            "samples": found.samples,
            "tokens": found.tokens,
            "useful_flops": found.useful,
            "steps": found.steps,
            "chip_hours": plan.chip_hours if found.times else None,
        }
    if plan.compiled is not None:
        record["compiled"] = {
            "programs": [program._asdict() for program in plan.compiled.programs],
            "host_memory": plan.compiled.host_memory,
            "seconds": plan.compiled.seconds,
        }
    if change is not None:
        record["fits_with"] = change.words
    return record
