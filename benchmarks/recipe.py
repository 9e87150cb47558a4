"""Loss at equal samples: the original's batches of three against large packed ones, by learning rate and weighting.

  python benchmarks/recipe.py demo                                   # after `make demo`
  python benchmarks/recipe.py affectgpt_qwen2.5_0.5b_face weights.language=... data.shards=... --samples 96000

Trains CONFIG, with any overrides, the original's way: batches of three as they come, the loss a mean over their tokens,
a constant rate after a warm-up. Then as packed rows over as many samples with rates of RATE x (samples of a step / 3) ^
EXPONENT, the loss a mean over all tokens ("token") or over the tokens of groups of three ("reference"). Prints held-out
losses on the way, mean and standard deviation over seeds, and how far each way ends from the original's. All runs are
folders in --output: what is complete there is not trained again, what was stopped goes on from its checkpoint.
"""

import argparse
import json
import statistics
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.config import load_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.report.record import read_record
from affectgpt_jax.training.data import make_data, open_training_shards
from affectgpt_jax.weights.initial import resolve

GROUP = 3
"""Samples of one of the original's batches."""
ORIGINAL = ("data.row_samples=1", "data.weighting=token", f"train.rows={GROUP}")
WARM = 0.1
"""Share of the samples that the warm-up takes, from a tenth of the rate."""


class Way(NamedTuple):
    """One way to train: its name, its changes of the config, and the exponent of its rate; 0 is the rate itself."""

    name: str
    changes: tuple[str, ...]
    exponent: float


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a shipped config or a file")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--samples", type=int, default=9600, help="that each run goes through")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of the original's way")
    parser.add_argument("--rows", type=int, default=16, help="packed rows of a step")
    parser.add_argument("--row-length", type=int, help="tokens of a packed row; default: the config's, of both ways")
    parser.add_argument("--exponents", type=float, nargs="+", default=[0.5, 0.75, 1.0])
    parser.add_argument("--weightings", nargs="+", choices=("token", "reference"), default=["token", "reference"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=4, help="held-out losses on the way")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on the same device")
    parser.add_argument("--output", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    packed = [f"train.rows={args.rows}", "data.window=512", f"data.group={GROUP}"]
    if args.row_length:
        packed.append(f"data.row_length={args.row_length}")
    ways = [Way("original", ORIGINAL, 0.0)]
    ways += [
        Way(f"packed, {weighting}, {exponent:g}", (*packed, f"data.weighting={weighting}"), exponent)
        for weighting in args.weightings
        for exponent in args.exponents
    ]
    try:
        asked = [(way, seed) for way in ways for seed in range(args.seeds)]
        with ThreadPoolExecutor(args.jobs) as threads:
            results = list(threads.map(lambda each: run(args, *each), asked))
    except UserError as error:
        sys.exit(f"error: {error}")
    found = {way.name: results[i * args.seeds : (i + 1) * args.seeds] for i, way in enumerate(ways)}
    show(args, found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def run(args: argparse.Namespace, way: Way, seed: int) -> dict[str, Any]:
    """Train one run, or read what it left.

    Raises:
      UserError: the training fails, or the config or its shards do.
    """
    shared = [*args.overrides, *way.changes, f"train.seed={seed}"]
    steps = steps_for(args.config, shared, args.samples)
    batch = args.samples / steps
    rate = args.rate * (batch / GROUP) ** way.exponent
    folder = args.output / f"{way.name.replace(', ', '-')}-{seed}"
    changes = [
        *shared,
        f"train.output={folder}",
        f"train.steps={steps}",
        f"train.checkpoint_every={max(1, steps // 10)}",
        f"train.log_every={max(1, steps // 100)}",
        "train.optimizer.schedule=strict",
        f"train.optimizer.peak={rate:.6g}",
        f"train.optimizer.end={rate:.6g}",
        f"train.optimizer.warmup_start={rate / 10:.6g}",
        f"train.optimizer.warmup_steps={round(WARM * steps)}",
        f"validation.every={steps // args.points}",
    ]
    log = Path(f"{folder}.log")  # a name may hold a point
    if not (log.is_file() and "finished at step" in log.read_text()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "affectgpt_jax.cli", "train", args.config, *changes]
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        if code:
            raise UserError(f"{way.name}, seed {seed}: training failed, see {log}")
    losses = held_out(read_record(folder).curves, [args.samples * (i + 1) / args.points for i in range(args.points)])
    print(
        f"{way.name}, seed {seed}: {steps} steps of {batch:.1f} samples at {rate:.3g}: {losses[-1]:.4f}",
        file=sys.stderr,
    )
    return {"steps": steps, "batch": batch, "rate": rate, "losses": losses}


def held_out(curves: Mapping[str, np.ndarray], samples: Sequence[float]) -> list[float]:
    """Held-out losses after so many samples, on straight lines between those that were measured."""
    counted, measured = (~np.isnan(curves[name]) for name in ("samples", "validation_loss"))
    gone = np.interp(curves["step"][measured], curves["step"][counted], curves["samples"][counted])
    return np.interp(samples, gone, curves["validation_loss"][measured]).tolist()


def steps_for(name: str, changes: Sequence[str], samples: int) -> int:
    """The fewest steps of a config that go through so many samples."""
    config, tokenizer = resolve(load_config(name, changes))
    plan = make_data(config, tokenizer, open_training_shards(config), lambda _: None).plan
    most = 1
    while plan.samples_before(most) < samples:  # no far pass is planned for want of a bound
        most *= 2
    return bisect_left(range(most + 1), samples, key=plan.samples_before)


def show(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    """Held-out losses by samples, and where each way ends."""
    parts = [args.samples * (i + 1) // args.points for i in range(args.points)]
    print(f"{args.config} {' '.join(args.overrides)}: held-out loss after so many samples, {args.seeds} seeds\n")
    print(f"{'':<28}{'rate':>10}{'samples':>9}{''.join(f'{part:>18,}' for part in parts)}{'from the original':>24}")
    ends = {way: [result["losses"][-1] for result in results] for way, results in found.items()}
    for way, results in found.items():
        cells = "".join(f"{spread(column):>18}" for column in zip(*(each["losses"] for each in results), strict=True))
        gap = statistics.mean(ends[way]) - statistics.mean(ends["original"])
        noise = ((variance(ends[way]) + variance(ends["original"])) / args.seeds) ** 0.5
        told = "" if way == "original" else f"{gap:+.4f}" + (f" ({gap / noise:+.1f} sd)" if noise else "")
        first = results[0]
        print(f"{way:<28}{first['rate']:>10.2e}{first['batch']:>9.1f}{cells}{told:>24}")


def variance(values: Sequence[float]) -> float:
    """0 of a single one."""
    return statistics.variance(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.4f} ± {variance(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
