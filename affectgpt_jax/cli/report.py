"""Write a run's report: one HTML page with curves, scores, modality tables, confusions and clips.

    affectgpt report runs/demo

Reads what `affectgpt train` and `affectgpt evaluate` left in the run folder. What is missing is named in the page.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "--corpus", help="folder of the answered clips, for their pictures; found by itself if it can be"
    )
    parser.add_argument("--output", metavar="FILE.html", help="the page; RUN/report.html by default")


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is."""
    from affectgpt_jax.inference.report import write_report

    path = write_report(args.run, corpus=args.corpus, output=args.output)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
