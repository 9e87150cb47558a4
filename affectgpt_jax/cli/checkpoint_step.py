"""The option that says which checkpoint of a run is meant."""

import argparse


def add_step(parser: argparse.ArgumentParser) -> None:
    """Declare --step."""
    parser.add_argument(
        "--step", type=_step, metavar="N", help="checkpoint: a step, or `best` by validation (default: the newest)"
    )


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)
