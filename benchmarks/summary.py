"""One table of what the benchmarks of `h200.sh` found, beside what is asked of one H200.

python benchmarks/summary.py h200
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.sides import Found

from affectgpt_jax.training.flops import DecoderWork, Work, mfu_lora

SIDES = ("torch", "ours")
Result = dict[str, Any]


class Line(NamedTuple):
    """One quantity: torch's and ours, if measured, what is asked of the ratio ("x") or of ours, and what is better."""

    name: str
    torch: float | None
    ours: float | None
    asked: str = ""
    less: bool = False
    alone: bool = False
    """Ours alone; torch has none."""

    def cells(self) -> str:
        """As a row of the table."""
        ratio = ""
        if self.torch and self.ours:
            ratio = f"{self.torch / self.ours if self.less else self.ours / self.torch:.2f}x"
        numbers = ["" if self.alone else _told(self.torch), _told(self.ours)]
        return f"{self.name:<52}{numbers[0]:>14}{numbers[1]:>14}{ratio:>9}   {self.asked}".rstrip()


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that h200.sh wrote")
    args = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers", "peft"))
    print(f"{date.today()}, {versions}\n\n{'':<52}{'torch':>14}{'ours':>14}{'ratio':>9}   asked of an H200")
    for name, lines in READERS.items():
        file = args.folder / f"{name}.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        for line in lines({side: [] for side in SIDES} | found):
            print(line.cells())
    state = args.folder / "state.txt"
    print("\n" + (state.read_text() if state.is_file() else ""), end="")


def training(found: Found) -> Iterator[Line]:
    """Samples a second by mode, `mfu_lora`, tokens a second of full rows, and starts."""

    def rate(side: str, mode: str, column: int = 0) -> float | None:
        return _median(found[side], lambda result: result[mode]["work"][column] / result[mode]["seconds"])

    def mfu(result: Result) -> float:
        natural = result["natural"]
        return mfu_lora(DecoderWork(*result["flops"]), Work(*natural["work"]), natural["seconds"], result["peak"])

    for mode, asked in (("in the loop", "2.3x"), ("cached", ""), ("natural", "")):
        yield Line(f"training, {mode}, samples/s", rate("torch", mode), rate("ours", mode), asked)
    yield Line(
        "training, natural against in the loop, samples/s", rate("torch", "in the loop"), rate("ours", "natural"), "3x"
    )
    if any(result.get("peak") for result in found["ours"]):
        yield Line("training, natural, mfu_lora", None, _median(found["ours"], mfu), "0.41", alone=True)
    waited = _median(found["ours"], lambda result: result["natural"]["waited"] / result["natural"]["seconds"])
    yield Line("training, natural, share of time waited for data", None, waited, "below 0.01", alone=True)
    full = rate("ours", "full rows", 1)
    yield Line("training, full rows, tokens/s", None, full, "12,700; NeMo on an H100 14,110", alone=True)
    usual = _median(found["torch"], lambda result: result["start"])
    for told, side in (("nothing compiled before", "ours"), ("all in the compilation cache", "again")):
        ours = _median(found.get(side, []), lambda result: result["start"])
        yield Line(f"start to first step, {told}, s", usual, ours, less=True)


def answers(found: Found) -> Iterator[Line]:
    """Clips a second one by one and in batches, and the share of the floor."""

    def rate(side: str, way: str) -> float | None:
        return _median(found[side], lambda result: result["rates"][way])

    single = rate("torch", "one by one")
    ways = dict.fromkeys(way for side in ("ours", "torch") for result in found[side] for way in result.get("rates", {}))
    for way in list(ways) or ["in batches"]:
        if way != "one by one":
            asked = "100x of one by one" if way != "1 at a time" else "5x"
            yield Line(f"answers, {way} (torch one by one), clips/s", single, rate("ours", way), asked)
            yield Line(f"answers, {way}, clips/s", rate("torch", way), rate("ours", way))
            if any(result.get("floor") for result in found["ours"]):
                share = _median(found["ours"], lambda result, way=way: result["floor"][way])
                yield Line(f"answers, {way}, share of the decoding floor", None, share, alone=True)


def towers(found: Found) -> Iterator[Line]:
    """Pictures and clips of sound a second."""
    for name, title, asked in (("vision", "CLIP, pictures/s", "2,400"), ("audio", "HuBERT, clips/s", "3,500")):
        sides = [_median(found[side], lambda result, name=name: result["rates"][name]["batches"]) for side in SIDES]
        yield Line(title, *sides, asked)


def checkpoints(found: Found) -> Iterator[Line]:
    """Seconds of saving and reading."""
    for stage in ("stands still", "on disk", "read"):
        sides = [_median(found[side], lambda result, stage=stage: result[stage]) for side in SIDES]
        asked = "0.5 at most" if stage == "stands still" else ""
        yield Line(f"checkpoint, {stage}, s", *sides, asked, less=True)


def _median(results: Sequence[Result], read: Callable[[Result], float]) -> float | None:
    """Of the runs that came so far; None if none did."""
    values = []
    for result in results:
        with suppress(KeyError):
            values.append(read(result))
    return statistics.median(values) if values else None


def _told(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.3f}"


READERS = {"train_step": training, "generate": answers, "encoders": towers, "checkpoint": checkpoints}


if __name__ == "__main__":
    main()
