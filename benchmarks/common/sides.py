"""Two sides of a comparison, ours and torch's: each a process of its own, in turn, over the same weights."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import islice, product
from pathlib import Path
from typing import Any

Pieces = Iterator[dict[str, Any]]
"""What a side finds, piece by piece as it is known; JSON can hold it."""
Found = dict[str, list[Any]]
"""What each side gave, run by run, and under "again" what ours gave until its first piece when begun once more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every comparison."""
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("prepare", "torch", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)


def compare(
    args: argparse.Namespace,
    torch: Callable[[argparse.Namespace], Pieces],
    ours: Callable[[argparse.Namespace], Pieces],
    show: Callable[[argparse.Namespace, Found], None],
    prepare: Callable[[argparse.Namespace], None] | None = None,
    again: bool = False,
) -> None:
    """Run both sides in turn and show them; in a side's own process, be that side.

    Each piece goes into `args.json` at once: what is stopped later has been measured all the same.

    Args:
      args: of the command, with those of `add_arguments`.
      torch: that side.
      ours: the other one.
      show: prints what both gave.
      prepare: writes what both read into `args.folder`, in a process of its own.
      again: in each turn begin ours once more, with the same `args.turn`, and stop it after its first piece.
    """
    if prepare and args.side == "prepare":
        prepare(args)
        return
    if args.side:
        for piece in {"torch": torch, "ours": ours}[args.side](args):
            print(json.dumps(piece), flush=True)
        return
    found: Found = {"torch": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        if prepare:
            list(_pieces("prepare", 0, folder))
        sides = ("torch", "ours", "again") if again else ("torch", "ours")
        for turn, side in product(range(args.runs), sides):
            started = time.perf_counter()
            result: dict[str, Any] = {}
            found.setdefault(side, []).append(result)
            with closing(_pieces("ours" if side == "again" else side, turn, folder)) as pieces:
                for piece in islice(pieces, 1) if side == "again" else pieces:
                    result.update(piece)
                    if args.json is not None:
                        _write(args.json, found)
            took = time.perf_counter() - started
            print(f"{side}, run {turn + 1}: measured in {took:.0f} s", file=sys.stderr)
    show(args, found)


def _pieces(side: str, turn: int, folder: str) -> Pieces:
    """What a side prints; closed before its end, it is stopped."""
    command = [sys.executable, *sys.argv, "--side", side, "--turn", str(turn), "--folder", folder]
    command += ["--spawned", str(time.time())]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as running,
    ):
        try:
            yield from (json.loads(line) for line in running.stdout or () if line.startswith("{"))
        except GeneratorExit:
            running.kill()
            raise
        if running.wait():
            errors.seek(0)
            sys.exit(f"{side} failed:\n{errors.read()[-3000:]}")


def _write(file: Path, found: Found) -> None:
    """All at once, so that it is whole whenever this is stopped."""
    written = file.with_suffix(".part")
    written.write_text(json.dumps(found, indent=1) + "\n")
    written.replace(file)


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


def tower_kinds() -> dict[str, Any]:
    """The towers' classes in transformers."""
    import transformers

    return {"vision": transformers.CLIPVisionModelWithProjection, "audio": transformers.HubertModel}


def write_towers(sizes: Mapping[str, Any], folder: Path) -> None:
    """A folder of random weights for each tower of these sizes."""
    for name, kind in tower_kinds().items():
        kind._from_config(kind.config_class(**sizes[name])).save_pretrained(folder / name)


def hubert_features(output: Any) -> Any:
    """What AffectGPT takes of transformers' HuBERT: the last four hidden states' mean, over time.

    The authors' version of the library lists the model's output as the last state, later ones what lies before it.
    """
    import torch

    return torch.stack([*output.hidden_states[-4:-1], output.last_hidden_state]).mean(0).mean(1)
