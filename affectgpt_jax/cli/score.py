"""Score prediction files on MER-UniBench.

Every checkpoint is scored under two rulesets, side by side: `reference`, the published rules with the best of all
checkpoints on the test clips, and `strict`, which scores neutral clips, repairs the mapping of words and does not
choose its checkpoint on the test clips.

One dataset:
  affectgpt score predictions/meld --dataset meld --labels labels --wheel-dir emotion_wheel

All datasets that have a folder of their name under predictions/, with a report as HTML, Markdown and LaTeX:
  affectgpt score predictions --labels labels --wheel-dir emotion_wheel --out report

Predictions are the reference's files (NAME-openset.npz, NAME-openset-sentiment.npz), or JSONL or Parquet with the
fields name, labels and, for sentiment datasets, sentiment. Labels are the reference's files (label*.npz, ovlabel.csv;
its *-process folders are found by themselves), or CSV with the columns name and label, value or openset. The emotion
wheels are the folder emotion_wheel of https://github.com/zeroQiaoba/AffectGPT; without them a small lexicon of our own
serves, whose scores do not compare with published ones.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import track

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench import lexicon, report
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, Dataset, find_dataset
from affectgpt_jax.unibench.evaluation import DatasetResult, Missing, Settings, SystemResult, evaluate
from affectgpt_jax.unibench.report.render import print_table
from affectgpt_jax.unibench.table_cache import load_table
from affectgpt_jax.unibench.truth import find_labels, read_truth
from affectgpt_jax.unibench.wheel import LEVELS, WheelTable

RESULT_PREFIX = "results-"
"""The reference's name of a dataset's result folder begins with it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("predictions", type=Path, help="folder of one dataset's predictions, one file, or a folder of such folders")
    add(
        "--dataset",
        default="all",
        help="one of the nine, synthetic, or all that have a folder of their name (default: all)",
    )
    add("--labels", type=Path, required=True, help="label file, its folder, or a folder of *-process folders")
    add("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--level", choices=LEVELS, default="level1", help="ring of the wheels, or a case without (default: level1)")
    add("--checkpoint", help="strict: the checkpoint fixed beforehand, part of its name (default: the last one)")
    add("--validation", type=Path, help="strict: predictions of the validation clips, to choose the checkpoint on")
    add("--drop-names", type=Path, help="strict: clips seen in training, left out (lines, or CSV with a column name)")
    add("--missing", choices=get_args(Missing), default="error", help="clips without prediction (default: error)")
    add("--any-count", action="store_true", help="accept another number of clips than the benchmark's")
    add("--resamples", type=int, default=1000, help="bootstrap resamples, 0 for no intervals (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add("--name", help="the system's name in the report (default: the folder's)")
    add("--against", type=Path, help="predictions of a second system, for paired differences")
    add("--out", type=Path, help="folder for report.html, report.md, report.tex and scores.json")
    add("--details", action="store_true", help="print classes, wheels and errors too")
    add("--no-paper", action="store_true", help="leave out the paper's table (always so without the official wheels)")


def run(args: argparse.Namespace) -> int:
    """Score, print, and write the report where `--out` says."""
    if args.resamples < 0:
        raise UserError(f"--resamples {args.resamples}: expected 0 or more")
    table = load_table(args.wheel_dir)
    settings = Settings(
        args.level, args.resamples, args.seed, args.missing, args.checkpoint, clip_names(args.drop_names)
    )
    folders = [args.predictions, *([args.against] if args.against else [])]
    names = [args.name or _name(folders[0]), *map(_name, folders[1:])]
    if len(set(names)) < len(names):
        names = [names[0], f"{folders[1]} (against)"]
    systems = tuple(_score(name, folder, args, table, settings) for name, folder in zip(names, folders, strict=True))
    scored = report.Report(systems, table, settings)
    print_report(scored, details=args.details, paper=not args.no_paper, out=args.out)
    return 0


def _name(folder: Path) -> str:
    """Name of a system: its folder's, or that of the folder above where this one is named after a dataset."""
    folder = folder.resolve()
    if _is_dataset(folder):
        return folder.parent.name
    return folder.stem if folder.is_file() else folder.name


def _is_dataset(folder: Path) -> bool:
    try:
        find_dataset(_dataset_name(folder))
    except UserError:
        return False
    return True


def _dataset_name(folder: Path) -> str:
    return folder.name.lower().removeprefix(RESULT_PREFIX)


def _score(name: str, folder: Path, args: argparse.Namespace, table: WheelTable, settings: Settings) -> SystemResult:
    """Score one system on the datasets asked for; of "all", those that have labels."""
    chosen = _datasets(folder, args.dataset)
    if args.dataset == "all":
        chosen = [(dataset, place) for dataset, place in chosen if _has_labels(dataset, args.labels)]
    if not chosen:
        raise UserError(f"{args.labels} has labels of none of the datasets predicted in {folder}")
    results: dict[str, DatasetResult] = {}
    for dataset, place in track(chosen, f"scoring {name}", transient=True, disable=len(chosen) < 2):
        truth = read_truth(dataset, args.labels, any_count=args.any_count)
        validation = None
        if args.validation is not None:
            ((_, validation_place),) = _datasets(args.validation, dataset.key)
            validation = (read_truth(dataset, args.labels, "validation"), validation_place)
        results[dataset.key] = evaluate(truth, place, table, settings, validation)
    return SystemResult(name, results)


def _has_labels(dataset: Dataset, labels: Path) -> bool:
    try:
        find_labels(labels, dataset)
    except UserError as error:
        Console(stderr=True).print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
        return False
    return True


def _datasets(folder: Path, wanted: str) -> list[tuple[Dataset, Path]]:
    """The datasets to score and where their predictions lie."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    places = {find_dataset(_dataset_name(place)).key: place for place in inside if _is_dataset(place)}
    if wanted != "all":
        dataset = find_dataset(wanted)
        return [(dataset, places.get(dataset.key, folder))]
    if not places:
        raise UserError(
            f"{folder} has no folder named after a dataset ({', '.join(dataset.key for dataset in DATASETS)}); "
            "if it holds one dataset's predictions, say which with --dataset"
        )
    return [(dataset, places[dataset.key]) for dataset in (*DATASETS, SYNTHETIC) if dataset.key in places]


def clip_names(path: Path | None) -> frozenset[str]:
    """Clip names of a list: a text file with one a line, or a CSV with a column `name`."""
    if path is None:
        return frozenset()
    if not path.is_file():
        raise UserError(f"--drop-names {path} does not exist")
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix != ".csv":
            return _clean(file)
        rows = csv.DictReader(file)
        if "name" not in (rows.fieldnames or []):
            raise UserError(f"--drop-names {path}: expected a column name, found {', '.join(rows.fieldnames or [])}")
        return _clean(row["name"] for row in rows)


def _clean(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for line in names if (name := line.strip()))


def print_report(scored: report.Report, *, details: bool, paper: bool, out: Path | None) -> None:
    """Print a report, and write it.

    Args:
      scored: the systems.
      details: print classes, wheels and errors, too.
      paper: show the paper's table beside them.
      out: folder for it in every form; None writes nothing.
    """
    console = Console()
    paper = paper and scored.table.name != lexicon.NAME  # scores by the lexicon do not compare
    if scored.table.name == lexicon.NAME:
        console.print(
            f"Scored with the built-in lexicon {lexicon.NAME}, not with the official emotion wheels: these scores do "
            "not compare with published ones. Name the wheels with --wheel-dir or AFFECTGPT_WHEEL_DIR.\n",
            style="yellow", markup=False, highlight=False,
        )  # fmt: skip
    for system in scored.systems:
        for result in system.datasets.values():
            for table in report.dataset_tables(scored, system, result, details=details):
                print_table(console, table)
            for finding in result.findings:
                console.print(f"  {finding}", markup=False, highlight=False, soft_wrap=True)
            console.print()
    for table in report.overview_tables(scored, paper=paper):
        print_table(console, table)
    if out:
        for path in report.write(scored, out, paper=paper):
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
