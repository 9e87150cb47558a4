"""Look at a corpus before it is prepared, and at its shards before they are trained on.

  affectgpt data check CORPUS
  affectgpt data stats CONFIG

See `affectgpt data check --help` and `affectgpt data stats --help`.
"""

import argparse
import json
import os
from pathlib import Path

from rich.console import Console

from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

STATS = """Count what a run's shards cost to train on: lengths, how full rows are, tokens and steps of a pass.

CONFIG is a run folder, a YAML file or the name of a shipped config; KEY=VALUE changes single settings, so that
settings can be compared.

  affectgpt data stats runs/demo
  affectgpt data stats affectgpt_qwen2.5_7b_face data.shards=SHARDS weights.tokenizer=DIR data.row_samples=16
"""

CHECK = """Check a corpus: counts, missing and broken files, lengths, labels, duplicates, clips shared with a benchmark.

CORPUS is a manifest (CSV, JSONL or Parquet), a folder in the MER2025 layout, a synthetic corpus, or a folder of the
benchmark; KIND:PATH says which it is where a folder could be several (mercaptionplus:DIR, ovmerd:DIR, meld:DIR,
mercaption:DIR/TABLE.csv, manifest:FILE).

  affectgpt data check runs/demo/corpus
  affectgpt data check clips/manifest.csv --fast
  affectgpt data check mercaptionplus:MER2025 --against ovmerdplus:BENCHMARK --json check.json

Exit status: 0 if there is no error, 1 if there is one (a file that cannot be used, a clip of which nothing is there,
another number of clips than the release's), 2 if the command is wrong or the corpus cannot be read at all.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands, each with its options and what runs it."""
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    _add_check(actions)
    _add_stats(actions)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    status: int = args.run_action(args)
    return status


def _add_check(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = actions.add_parser(
        "check",
        help="check a corpus before it is prepared",
        description=CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.set_defaults(run_action=_check)
    add = check.add_argument
    add("corpus", metavar="CORPUS", help="manifest, folder, or KIND:PATH")
    add(
        "--against",
        action="append",
        default=[],
        metavar="NAMES",
        help="list clips whose names are in this file too (one a line, or CSV with a column name), or in a folder of "
        "benchmark data sets, or in the corpus KIND:PATH; may be given again",
    )
    add("--fast", action="store_true", help="read the headers of media only; do not look for identical files")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="that decode (default: one a core)")
    add("--limit", type=int, metavar="N", help="open the media of the first N clips only; tables are read as a whole")
    add("--json", type=Path, metavar="FILE", help="write all findings with all names, for programs")


def _check(args: argparse.Namespace) -> int:
    """Check a corpus and print the report."""
    from data_prep.check import CheckSettings, check
    from data_prep.corpora import find_corpus

    for option in ("threads", "limit"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option} must be at least 1, not {value}")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent}")
    corpus = find_corpus(args.corpus)
    settings = CheckSettings(args.fast, args.threads, args.limit, tuple(args.against))
    with stage_bar("check", settings.stages) as bar:
        report = check(corpus, settings, bar)
    Console().print(report.text(), markup=False, highlight=False, soft_wrap=True)
    if args.json is not None:
        args.json.write_text(json.dumps(report.record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return 1 if report.count("error") else 0


def _add_stats(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    stats = actions.add_parser(
        "stats",
        help="count what a run's shards cost to train on",
        description=STATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    stats.set_defaults(run_action=_stats)
    stats.add_argument("config", metavar="CONFIG", help="run folder, YAML file, or the name of a shipped config")
    stats.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the config's")
    stats.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, for programs")


def _stats(args: argparse.Namespace) -> int:
    """Count and print."""
    from affectgpt_jax.config import load_config
    from affectgpt_jax.data.statistics import statistics
    from affectgpt_jax.training.data import make_data, open_training_shards
    from affectgpt_jax.weights.initial import resolve

    errors = Console(stderr=True)
    config = load_config(args.config, args.overrides)
    config, tokenizer = resolve(config)
    corpus = open_training_shards(config, verify=False)
    data = make_data(
        config, tokenizer, corpus, lambda line: errors.print(line, markup=False, highlight=False, soft_wrap=True)
    )
    found = statistics(data.plan, config.data.label_types)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    _print_lengths(console, "tokens of a sample", found.tokens)
    _print_lengths(console, "targets of a sample", found.targets)
    for fill in found.fills:
        console.print(f"{fill.how:<40} {fill.rows:>10,} rows {fill.positions:>14,} positions, {fill.share:.1%} filled")
    least, mean, most = found.step_samples
    console.print(
        f"\na pass: {found.samples:,} samples, {found.pass_tokens:,} tokens, {found.pass_targets:,} targets, "
        f"{found.pass_steps:,} steps of {least:,} to {most:,} samples ({mean:,.1f} on average)\n"
        f"the run: {config.train.steps:,} steps are {config.train.steps / found.pass_steps:,.1f} passes"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(found.record(), indent=1) + "\n", encoding="utf-8")
    return 0


def _print_lengths(console: Console, title: str, lengths: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(lengths.values())))
    console.print(f"{title:<24}" + "".join(f"{column:>8}" for column in columns))
    for name, values in lengths.items():
        console.print(f"  {name:<22}" + "".join(f"{values[column]:>8.0f}" for column in columns))
    console.print()
