"""Answer a corpus split and score the answers: hit rate, set precision, recall and F, sentiment weighted F1.

    affectgpt evaluate runs/demo
    affectgpt evaluate runs/demo --corpus OTHER --output runs/demo/other

A model that has learned what to put in the place of an absent modality is also asked without each of them, and with
another clip's. Words are grouped by the built-in lexicon "affectgpt-small", or by the official emotion wheels
(--wheel-dir). Writes scores.json and answers.jsonl.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.cli.prepare import prepare_corpus
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.inference.evaluate import Evaluation

SHOWN = {"hit_rate": "hit rate", "f_score": "set F", "weighted_f1": "sentiment F1"}
"""Scores of the printed table; scores.json has them all."""

SYNTHETIC_NEEDS = {"face": "face", "voice": "audio", "text": "text"}
"""Modality of the synthetic corpus -> stream of the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    add_step(parser)
    parser.add_argument("--corpus", help="clips in the MER2025 layout, or prepared shards; the run's own by default")
    parser.add_argument("--split", help="split to answer; the run's evaluate.split by default")
    parser.add_argument("--wheel-dir", help="folder of the official emotion wheels")
    parser.add_argument("--plain", action="store_true", help="only with all modalities in place")
    parser.add_argument("--output", help="folder for scores.json and answers.jsonl; the run folder by default")
    add_placement(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the tables."""
    from rich.console import Console
    from rich.progress import Progress

    from affectgpt_jax.data.examples import Rejected
    from affectgpt_jax.inference.evaluate import PLAIN, evaluate, write_evaluation
    from affectgpt_jax.inference.runs import open_run, open_shards, roundings
    from affectgpt_jax.unibench.table_cache import load_table

    opened = open_run(args.run, args.step, placement(args))
    config = opened.config
    output = Path(args.output or args.run)
    media, shards = _locate(args.corpus, config.prepare.corpus, config.data.shards, output)
    if media is not None and not Path(shards).is_dir():
        print(prepare_corpus(config, media, shards).summary())
    corpus = open_shards(config, args.split or config.evaluate.split, shards)
    table = load_table(args.wheel_dir)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        asked = (PLAIN,) if args.plain else None
        found = evaluate(opened, corpus, table, needs=_needs(media), asked=asked, progress=report)
    facts = {
        "run": str(args.run),
        "step": opened.step,
        **roundings(config),
        "corpus": str(media or shards),
        "split": corpus.split,
        "fingerprint": corpus.fingerprint,
        "table": table.name,
    }
    write_evaluation(found, corpus, output, facts)
    print_tables(found, table.name, len(corpus))
    rejected = [a for answers in found.answers.values() for a in answers if isinstance(a, Rejected)]
    if rejected:
        first = rejected[0]
        print(f"{len(rejected)} questions could not be asked and count as wrong, e.g. {first.name} {first.reason}")
    print(f"written: {output / 'scores.json'}, {output / 'answers.jsonl'}")
    return 0


def _locate(given: str | None, media: str, shards: str, output: Path) -> tuple[str | None, str]:
    """The clips (None if unknown) and the shards to answer."""
    if given is None:
        return media or None, shards
    if (Path(given) / "mer_caption").is_dir():
        return None, given
    if (Path(given) / "subtitle_chieng.csv").is_file():
        return given, str(output / f"shards-{Path(given).name}")
    raise UserError(
        f"--corpus {given}: neither clips in the MER2025 layout (no subtitle_chieng.csv) nor prepared shards "
        "(no mer_caption)"
    )


def _needs(media: str | None) -> Mapping[str, Sequence[str]] | None:
    """Which modalities each clip of a synthetic corpus needs; None for any other corpus."""
    path = Path(media or "") / "synth_attributes.csv"
    if media is None or not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["name"]: [stream for need, stream in SYNTHETIC_NEEDS.items() if row[f"needs_{need}"] == "1"]
            for row in csv.DictReader(file)
        }


def print_tables(found: "Evaluation", table: str, clips: int) -> None:
    """Print the score table and, where the corpus says what clips need, the modality table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    shown = Table(title=f"{clips} clips, words grouped by {table}, 95 % intervals", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("condition", no_wrap=True)
    for title in SHOWN.values():
        shown.add_column(title, justify="right", no_wrap=True)
    for condition, scores in found.scores.items():
        chosen = (scores[name] for name in SHOWN)
        shown.add_row(condition, *(f"{s['value']:.3f} [{s['low']:.2f}, {s['high']:.2f}]" for s in chosen))
    console.print(shown)
    if found.by_need:
        needs = Table(title="hit rate on the clips that need a modality", box=SIMPLE_HEAD, pad_edge=False)
        needs.add_column("condition", no_wrap=True)
        for modality, entry in found.by_need.items():
            needs.add_column(f"need {modality} ({entry['clips']})", justify="right")
        for condition in found.scores:
            needs.add_row(condition, *(f"{entry['hit_rate'][condition]:.3f}" for entry in found.by_need.values()))
        console.print(needs)
