"""Check an exported folder: are its files those that were written, and does it still compute what the run computed?

    affectgpt verify OUT
    affectgpt verify OUT weights.language=DIR   # downloaded: a folder it rests on lies elsewhere here

The exit status is 1 if anything differs.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("export", metavar="OUT", help="folder of `affectgpt export`")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, for example weights.language=DIR")


def run(args: argparse.Namespace) -> int:
    """Verify and print what was found."""
    from affectgpt_jax.cli.export import print_differences
    from affectgpt_jax.exchange.export import open_whole
    from affectgpt_jax.exchange.parity import check, read_report
    from affectgpt_jax.exchange.sources import read_export

    folder = Path(args.export)
    report = read_report(folder)
    verdict = check(folder, open_whole(read_export(folder, overrides=args.overrides)))
    print(f"{folder}: {report['kind']}, step {report['step']}, {len(report['files'])} files")
    print_differences(verdict.found)
    for problem in verdict.problems:
        print(f"problem: {problem}")
    print("does not fit its report" if verdict.problems else "verified")
    return 1 if verdict.problems else 0
