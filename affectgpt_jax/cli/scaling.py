"""Scaling-law experiments: plan a study, run it, fit laws to what it found, report.

  affectgpt scaling plan STUDY      its runs, and what they will cost
  affectgpt scaling run STUDY       train what is not done yet
  affectgpt scaling status STUDY    how far it is
  affectgpt scaling fit STUDY       laws with intervals; also of a table from elsewhere: fit RESULTS.csv
  affectgpt scaling report STUDY    one page

STUDY is a YAML file or a shipped study. configs/scaling/synthetic.yaml is an example; all keys are in
docs/scaling_laws.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.scaling.findings import Difference, Finding
    from affectgpt_jax.scaling.plan import Plan
    from affectgpt_jax.scaling.report import Source

PLAN = """Draw up a study's runs: parameters, captions, FLOPs, chip-hours and memory of each. Nothing is trained.

The plan is stored in the study's folder. What is done stays done when a study is changed and planned anew.

Exit status: 0; 1 if a run does not fit its devices or the study its budget; 2 if the study is wrong.
"""

RUN = """Train the runs of a study that are not done yet, each by `affectgpt train`; draws up the plan if there is none.

It may be interrupted, and goes on when it is started again; several may work on one study at the same time. A run that
fails is tried again as often as the study's `retries` say, and becomes a row with its reason.

  affectgpt scaling run scaling/synthetic --jobs 2                       # this machine, two runs at a time
  sbatch --array 0-59%8 launch/scaling.sbatch h200 my_study.yaml         # a job array: each task is one run
  affectgpt scaling run my_study.yaml --only 7 --before 'srun --nodes 2' # run number 7 on the nodes of this job

Exit status: 0 if all runs that were asked for are done, 1 if some failed or diverged or are another process's, 2 if
the study is wrong, 130 if it was asked to stop.
"""

FIT = """Fit laws to a study's rows, or to any table of results, a CSV with columns for N, D and the loss.

  affectgpt scaling fit scaling/synthetic --budget '100 h200-hours' 1e18
  affectgpt scaling fit results.csv --law chinchilla                     # columns parameters, samples, flops, loss
  affectgpt scaling fit results.csv --law saturating --data rank --metric hit_rate

Huber loss of log residuals from many starts, bootstrap and profile-likelihood intervals, predictions of the largest
runs by a fit without them, warnings. Rows that cannot be fitted are refused by name; --skip-bad leaves them out.
"""

REPORT = """Write report.html, report.md with its pictures, and results.csv: runs, laws, predictions, comparisons.

  affectgpt scaling report scaling/synthetic --budget '100 h200-hours'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    plan = _add(actions, "plan", "a study's runs, and what they will cost", PLAN, run_plan)
    plan.add_argument("--all", action="store_true", help="show every run, not only sums by size and setting")
    trains = _add(actions, "run", "train what is not done yet", RUN, run_run)
    trains.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="runs at a time (default: 1; on a CPU one a core)"
    )
    trains.add_argument("--only", type=int, nargs="+", metavar="I", help="runs by number, as `plan --all` counts them")
    trains.add_argument("--part", help="runs of this part of the study")
    trains.add_argument("--before", default="", metavar="WORDS", help="ahead of each training's command, such as srun")
    trains.add_argument("--again", action="store_true", help="also what has failed or diverged for good")
    fits = _add(actions, "fit", "laws with intervals", FIT, run_fit)
    _add_fitting(fits)
    fits.add_argument(
        "--json", type=Path, metavar="FILE", help="everything, for programs (default: the study's fit.json)"
    )
    tells = _add(actions, "report", "one page of everything", REPORT, run_report)
    _add_fitting(tells)
    tells.add_argument(
        "--output", type=Path, metavar="FOLDER", help="for the page and its pictures (default: the study's)"
    )
    _add(actions, "status", "how far a study is", "Say how many runs are done, at work, failed, and why.", run_status)


def _add_fitting(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--law", choices=("chinchilla", "repeats", "saturating", "saturating-size"), help="(default: by what varies)")
    add("--metric", default="loss", help="column to fit; a score s as 1 - s (default: loss)")
    add(
        "--size", default="parameters", metavar="COLUMN", help="N: parameters, body (layers alone), or a table's column"
    )
    add("--data", default="samples", metavar="COLUMN", help="D: samples, tokens, targets, rank, or a table's column")
    add("--part", help="runs of this part of the study alone")
    add("--budget", nargs="+", default=[], metavar="B", help="predict for 1e18 (FLOPs), '100 h200-hours', '2 hours'")
    add("--bootstrap", type=int, default=200, metavar="N", help="resamples; 0 for none (default: %(default)s)")
    add("--huber", type=float, metavar="DELTA", help="of the loss (default: from the noise; Hoffmann et al. took 1e-3)")
    add("--skip-bad", action="store_true", help="leave out failed, diverged and impossible rows, and say which")


def _add(actions: Any, name: str, summary: str, text: str, action: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", metavar="STUDY", help="YAML file, or the name of a shipped study")
    parser.set_defaults(run_action=action)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    status: int = args.run_action(args)
    return status


# ---------------------------------------------------------------------------------------------------------------------
# Plan


def run_plan(args: argparse.Namespace) -> int:
    """Draw up, store and print a plan."""
    started = time.perf_counter()
    os.environ["JAX_PLATFORMS"] = "cpu"  # shapes alone
    plan = _draw_up(args.study)
    _print_plan(plan, whole=args.all)
    print(f"{plan.study.folder}/plan.json: {len(plan.runs)} runs, planned in {time.perf_counter() - started:.1f} s")
    for problem in plan.problems:
        print(f"does not fit: {problem}", file=sys.stderr)
    return 1 if plan.problems else 0


def _draw_up(name: str) -> "Plan":
    from affectgpt_jax.config.loading import find_config
    from affectgpt_jax.scaling.draw import make_plan
    from affectgpt_jax.scaling.plan import write_plan
    from affectgpt_jax.scaling.study import read_study

    plan = make_plan(read_study(name), find_config(name))
    write_plan(plan)
    return plan


def _print_plan(plan: "Plan", *, whole: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from affectgpt_jax.scaling.tables import plan_rows, plan_summary

    header, rows = plan_rows(plan) if whole else plan_summary(plan)
    table = Table(
        box=SIMPLE_HEAD, title=f"{plan.study.name}: {plan.study.base}, captions of {plan.lengths.tokens:g} tokens"
    )
    for title in header:
        table.add_column(title, justify="left" if title in ("run", "size", "parts", "prefusion") else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


# ---------------------------------------------------------------------------------------------------------------------
# Run


def run_run(args: argparse.Namespace) -> int:
    """Train what is not done yet."""
    import shlex

    environment = dict(os.environ)
    # Devices are for the trainings, which are processes of their own.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from affectgpt_jax.accelerators import any_accelerator
    from affectgpt_jax.machine import available_cores
    from affectgpt_jax.scaling.run import Ways, claim, run_all

    plan = _stored(args.study)
    if plan.problems:
        raise UserError(f"{plan.study.name} cannot be run: {plan.problems[0]}")
    numbers = range(len(plan.runs)) if args.only is None else args.only
    if wrong := [number for number in numbers if not 0 <= number < len(plan.runs)]:
        raise UserError(f"--only {wrong[0]}: the study has runs 0 to {len(plan.runs) - 1}")
    if args.part is not None and args.part not in plan.study.parts:
        raise UserError(f"--part {args.part}: the study has {', '.join(plan.study.parts)}")
    runs = [plan.runs[i] for i in numbers if args.part is None or args.part in plan.runs[i].parts]
    jobs = args.jobs or (1 if any_accelerator() else max(1, min(available_cores(), len(runs))))
    with claim(plan.study.folder / "data.lock", wait=True):
        _write_data(plan)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    echo = say if len(runs) == 1 else lambda line: None
    ways = Ways(tuple(shlex.split(args.before)), jobs, args.again, say, echo, environment)
    ended = run_all(plan, runs, ways)
    done = sum(row.status == "done" for row in ended.rows)
    print(f"{plan.study.folder}: {done} of {len(runs)} runs done")
    for row in ended.rows:
        if row.status != "done":
            print(f"{row.id}: {row.status}: {row.reason}")
    for name in ended.busy:
        print(f"{name}: another process works on it")
    if ended.stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0 if done == len(runs) else 1


def _stored(name: str) -> "Plan":
    """The stored plan of a study; drawn up if there is none.

    Raises:
      UserError: the study was changed since.
    """
    from affectgpt_jax.scaling.plan import PLAN, read_plan
    from affectgpt_jax.scaling.study import read_study

    study = read_study(name)
    if not (study.folder / PLAN).is_file():
        return _draw_up(name)
    plan = read_plan(study.folder)
    if plan.study != study:
        raise UserError(f"{name} was changed since its plan was drawn up: affectgpt scaling plan {name}")
    return plan


def _write_data(plan: "Plan") -> None:
    """Synthetic features for the largest run, if the study trains on them."""
    synthetic, shards = plan.study.synthetic, plan.shards
    if synthetic is None or shards is None:
        return
    from data_prep.synth import SplitCounts
    from data_prep.synth.features import write_features

    counts = SplitCounts(plan.captions, synthetic.validation, synthetic.test)
    found = write_features(shards, counts, synthetic.seed, babble=synthetic.babble)
    if not found.reused:
        print(f"{shards}: {sum(counts)} samples written in {found.seconds:.1f} s", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Fit and report


class _Found(NamedTuple):
    """A study or a table with its laws."""

    source: "Source"
    folder: Path | None
    findings: "list[Finding]"
    differences: "list[Difference]"
    budgets: dict[str, float]


def run_fit(args: argparse.Namespace) -> int:
    """Fit and print."""
    import json

    from affectgpt_jax.replacing import replacing
    from affectgpt_jax.scaling.findings import as_record
    from affectgpt_jax.scaling.tables import finding_lines

    found = _find(args)
    for finding in found.findings:
        print("\n".join(finding_lines(finding, found.budgets)), end="\n\n")
    path = args.json or (found.folder and found.folder / "fit.json")
    if path is not None:
        records = [as_record(finding, found.budgets) for finding in found.findings]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(records, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"written: {path}")
    return 0 if any(finding.fit for finding in found.findings) else 1


def run_report(args: argparse.Namespace) -> int:
    """Write the page."""
    from affectgpt_jax.scaling.report import compose, write_report
    from affectgpt_jax.scaling.rows import write_csv

    found = _find(args)
    folder = args.output or found.folder or Path()
    sections = compose(found.source, found.findings, found.differences, found.budgets)
    if found.source.rows:
        write_csv(folder / "results.csv", found.source.rows)
    html, text = write_report(folder, found.source.name, sections)
    print(f"{html}\n{text}")
    return 0


def _find(args: argparse.Namespace) -> _Found:
    from affectgpt_jax.scaling.budget import parse_budgets
    from affectgpt_jax.scaling.findings import Options, differences, find, groups_of, measured_flops_per_s
    from affectgpt_jax.scaling.points import read_csv
    from affectgpt_jax.scaling.report import Source, reproduce

    options = Options(args.law or "", args.metric, args.size, args.data, args.huber, args.bootstrap, args.skip_bad)
    if args.bootstrap < 0 or args.bootstrap == 1:
        raise UserError(f"--bootstrap {args.bootstrap}: expected 0, or 2 and more")
    if Path(args.study).suffix.lower() == ".csv":
        options = options._replace(budgets=parse_budgets(args.budget, None))
        findings = [find(Path(args.study).name, read_csv(args.study), options)]
        commands = [f"affectgpt scaling report {args.study}"]
        return _Found(Source(args.study, None, (), commands), None, findings, [], dict(options.budgets))
    from affectgpt_jax.scaling.plan import read_plan
    from affectgpt_jax.scaling.rows import read_rows
    from affectgpt_jax.scaling.study import read_study

    plan = read_plan(read_study(args.study).folder)
    by_id = read_rows(plan)
    rows = [by_id[run.id] for run in plan.runs if run.id in by_id]
    if not rows:
        raise UserError(f"{plan.study.folder} has no rows yet: affectgpt scaling run {args.study}")
    parts = [args.part] if args.part else list(plan.study.parts)
    if unknown := set(parts) - set(plan.study.parts):
        raise UserError(f"--part {unknown.pop()}: the study has {', '.join(plan.study.parts)}")
    options = options._replace(budgets=parse_budgets(args.budget, measured_flops_per_s(rows)))
    findings = [find(title, group, options) for title, group in groups_of(rows, parts).items()]
    source = Source(plan.study.name, plan, rows, reproduce(args.study, args.budget))
    return _Found(source, plan.study.folder, findings, differences(rows), dict(options.budgets))


# ---------------------------------------------------------------------------------------------------------------------
# Status


def run_status(args: argparse.Namespace) -> int:
    """Print how far a study is."""
    from affectgpt_jax.scaling.plan import read_plan
    from affectgpt_jax.scaling.rows import read_rows
    from affectgpt_jax.scaling.study import read_study
    from affectgpt_jax.scaling.tables import status_lines

    plan = read_plan(read_study(args.study).folder)
    print("\n".join(status_lines(plan, read_rows(plan))))
    return 0
