"""Plan a job on accelerators that are not here: does it fit, how fast, how many chip-hours.

    affectgpt plan affectgpt_qwen2.5_7b_face --topology v5e:4x4 train.rows=16 mesh.data=1 mesh.fsdp=-1
    affectgpt plan affectgpt_qwen2.5_7b_face --topology h200:8 train.rows=8
    affectgpt plan affectgpt_qwen2.5_7b_face --topology h200:1 --job answer --clips 50000
    affectgpt plan affectgpt_qwen2.5_7b_face --compare v5e:4x4 v5p:2x2x4 h100:8 train.rows=16 mesh.data=1 mesh.fsdp=-1

For TPUs (v5e:4x4, v5p:2x2x4, 2*v6e:16x16 for two slices, ...) the very programs of the job are compiled by the TPU's
compiler, which needs no TPU (pip install 'affectgpt-jax[tpu]'), and their memory is its own account. For GPUs (h200:8,
h100:64) there is no such compiler: memory is an estimate from shapes. cpu:N compiles for N virtual devices. Times are
a roofline's, see docs/scaling.md. No weights are needed: without weights.language a base of the config's sizes is
assumed.

A job that does not fit, or whose sizes do not, is answered with the smallest change that does, found by trying.

--job answer plans `evaluate`, `predict` and `benchmark`; --job extract the language model that reads labels out of
answers. Where data.shards and a tokenizer are given, lengths are those of the corpus.

Exit status: 0 if it fits, 1 if it does not, 2 if the command is wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.planning.job import Job
    from affectgpt_jax.planning.program import Compiled
    from affectgpt_jax.planning.report import Plan
    from affectgpt_jax.planning.topology import Topology

GIVEN = {
    "tokens": ("TOKENS", float, "of a training sample on average, prompt and answer"),
    "targets": ("TOKENS", float, "of a training sample that are learned to be said"),
    "prompt": ("TOKENS", int, "of a question"),
    "new": ("TOKENS", int, "of an answer on average"),
    "clips": ("N", int, "clips to be answered"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("config", metavar="CONFIG", help="run folder, YAML file, or the name of a shipped config")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the config's")
    add("--topology", metavar="CHIP:SHAPE", help="such as v5e:4x4, v5p:2x2x4, 2*v6e:16x16, h200:8, cpu:1")
    add(
        "--compare",
        metavar="WHAT",
        nargs="+",
        default=[],
        help="one Markdown table of CONFIG and further configs, on --topology and further topologies",
    )
    add("--job", choices=("train", "answer", "extract"), default="train", help="(default: train)")
    for name, (metavar, kind, text) in GIVEN.items():
        add(f"--{name}", type=kind, metavar=metavar, help=text)
    add("--price", type=float, metavar="AMOUNT", help="of a chip-hour, to see the cost")
    add("--estimate", action="store_true", help="compile nothing: memory from shapes, in seconds, for TPUs too")
    add("--no-search", action="store_true", help="do not look for a change that fits")
    add("--json", type=Path, metavar="FILE", help="write everything, for programs")


def run(args: argparse.Namespace) -> int:
    """Plan, print, write."""
    from affectgpt_jax.config.loading import find_config

    # No accelerator of this machine is needed or asked for.
    os.environ["JAX_PLATFORMS"] = "cpu"
    given = {name: value for name in GIVEN if (value := getattr(args, name)) is not None}
    for name, value in given.items():
        if value <= 0:
            raise UserError(f"--{name} {value}: expected a positive number")
    # `--compare A B train.rows=16`: argparse gives all of them to --compare.
    overrides = [*args.overrides, *(word for word in args.compare if "=" in word)]
    compare = [word for word in args.compare if "=" not in word]
    topologies = [args.topology] if args.topology else []
    configs = [args.config]
    for word in compare:
        (topologies if ":" in word and not Path(word).exists() else configs).append(word)
    if not topologies:
        raise UserError("--topology: name one, such as v5e:4x4, v5p:4x4x4, v6e:4x4, h200:8 or cpu:1")
    files = [find_config(name) for name in configs]

    from affectgpt_jax.config import load_config
    from affectgpt_jax.planning.job import make_job
    from affectgpt_jax.planning.report import as_record, as_table, as_text
    from affectgpt_jax.planning.search import find_change
    from affectgpt_jax.planning.topology import parse_topology

    parsed = [parse_topology(text) for text in topologies]
    plans = []
    for file in files:
        config = load_config(file, overrides)
        job = make_job(args.job, config, parsed[0], given)
        for topology in parsed:
            plans.append(_plan(job._replace(topology=topology), args.price, _compiler(args, topology)))
            if compare and plans[-1].compiled:
                print(f"{config.name} for {topology.name}: {plans[-1].compiled.seconds:.0f} s", file=sys.stderr)
    change = None
    if compare:
        print(as_table(plans))
    else:
        (plan,) = plans
        print(as_text(plan), flush=True)
        if not plan.fits and not args.no_search:
            print("\nlooking for the smallest change that fits", file=sys.stderr)
            say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
            change = find_change(plan.job, _compiler(args, parsed[0]), say)
            if change is None:
                print("\nNo change of mesh, rows, remat or base makes it fit: it needs more or larger devices.")
            else:
                better = plan._replace(job=change.job, estimate=change.estimate, compiled=change.compiled, refused="")
                print(f"\nIt fits with: {change.words}\n\n{as_text(better)}")
    if args.json is not None:
        records = [as_record(plan, change) for plan in plans]
        args.json.write_text(json.dumps(records if compare else records[0], indent=1) + "\n", encoding="utf-8")
    return 0 if all(plan.fits for plan in plans) else 1


def _compiler(args: argparse.Namespace, topology: "Topology") -> "Callable[[Job], Compiled] | None":
    """What compiles a job, with a clock that runs on a terminal; None where only an estimate is to be had."""
    from affectgpt_jax.planning.program import compile_job

    def compile_it(job: "Job") -> "Compiled":
        console = Console(stderr=True)
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            progress.add_task(f"compiling {job.config.name} for {job.topology.name}", total=None)
            return compile_job(job)

    return compile_it if topology.compiles and not args.estimate else None


def _plan(job: "Job", price: float | None, compile_it: "Callable[[Job], Compiled] | None") -> "Plan":
    from affectgpt_jax.planning.estimate import estimate
    from affectgpt_jax.planning.report import Plan

    try:
        found = estimate(job)
    except UserError as error:
        return Plan(job, None, None, str(error), price)
    return Plan(job, found, compile_it(job) if compile_it else None, "", price)
