"""Two sides of a comparison, ours and torch's: each a process of its own, in turn, over the same weights."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Found = dict[str, list[Any]]
"""What each side gave, run by run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every comparison."""
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)


def compare(
    args: argparse.Namespace,
    torch: Callable[[argparse.Namespace], Any],
    ours: Callable[[argparse.Namespace], Any],
    show: Callable[[argparse.Namespace, Found], None],
) -> None:
    """Run both sides in turn and show them; in a side's own process, be that side.

    Args:
      args: of the command, with those of `add_arguments`.
      torch: that side; it comes first, and writes the weights into `args.folder`. Gives what JSON holds.
      ours: the other one, which reads them.
      show: prints what both gave.
    """
    if args.side:
        print(json.dumps({"ours": ours, "torch": torch}[args.side](args)))
        return
    found: Found = {"torch": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.runs):
            for side, results in found.items():
                command = [sys.executable, *sys.argv, "--side", side, "--folder", folder, "--spawned", str(time.time())]
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                if ran.returncode:
                    sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
                results.append(json.loads(ran.stdout.splitlines()[-1]))
                if args.json is not None:  # what is stopped later has been measured all the same
                    args.json.write_text(json.dumps(found, indent=1) + "\n")
    show(args, found)


def show_rates(
    title: str, unit: str, rates: Mapping[str, list[Mapping[str, float]]], base: str, tokens: int | None = None
) -> None:
    """Print each way's median rate, its spread, and how it stands to one of torch's ways.

    Args:
      title: of the table.
      unit: of the rates.
      rates: of each side, run by run, by way.
      base: the way of torch's that others are held against.
      tokens: of a thing that the rates count, for a column of tokens a second.
    """
    ways = {
        (side, way): sorted(run[way] for run in runs) for side, runs in rates.items() for way in runs[0]
    }  # fmt: skip
    middle = statistics.median(ways["torch", base])
    extra = "" if tokens is None else f"{'tokens/s':>10}"
    print(f"\n{title:<32}{unit:>12}{'spread':>20}{extra}{'against torch ' + base:>36}")
    for (side, way), values in ways.items():
        rate = statistics.median(values)
        extra = "" if tokens is None else f"{rate * tokens:>10.0f}"
        spread = f"{values[0]:.3f} - {values[-1]:.3f}"
        print(f"{side + ', ' + way:<32}{rate:>12.3f}{spread:>20}{extra}{rate / middle:>35.2f}x")


def hubert_features(output: Any) -> Any:
    """What AffectGPT takes of transformers' HuBERT: the last four hidden states' mean, over time.

    The authors' version of the library lists the model's output as the last state, later ones what lies before it.
    """
    import torch

    return torch.stack([*output.hidden_states[-4:-1], output.last_hidden_state]).mean(0).mean(1)
