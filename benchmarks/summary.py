"""One table of what the benchmarks of `h200.sh` found, beside what is asked of one H200.

python benchmarks/summary.py h200
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

Found = dict[str, list[Any]]


class Line(NamedTuple):
    """One quantity: torch's, ours, what is asked of the ratio ("x") or of ours, and whether less is better."""

    name: str
    torch: float | None
    ours: float
    asked: str = ""
    less: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better ours is."""
        if not self.torch or not self.ours:
            return None
        return self.torch / self.ours if self.less else self.ours / self.torch


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that h200.sh wrote")
    args = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "transformers", "peft"))
    print(f"{date.today()}, {versions}\n\n{'':<52}{'torch':>12}{'ours':>12}{'ratio':>9}   asked of an H200")
    for name, lines in READERS.items():
        file = args.folder / f"{name}.json"
        if not file.is_file():
            print(f"{name}: not measured")
            continue
        found = json.loads(file.read_text())
        if lacking := [side for side, results in found.items() if not results]:
            print(f"{name}: {', '.join(lacking)} not measured, the other side is in {file}")
            continue
        for line in lines(found):
            ratio = "" if line.ratio is None else f"{line.ratio:.2f}x"
            torch = "" if line.torch is None else f"{line.torch:,.3f}"
            print(f"{line.name:<52}{torch:>12}{line.ours:>12,.3f}{ratio:>9}   {line.asked}".rstrip())
    state = args.folder / "state.txt"
    print("\n" + (state.read_text() if state.is_file() else ""), end="")


def training(found: Found) -> Iterator[Line]:
    """Samples a second by mode, `mfu_lora`, tokens a second of full rows, and starts."""

    def rate(side: str, mode: str, column: int = 0) -> float:
        return statistics.median(result[mode]["work"][column] / result[mode]["seconds"] for result in found[side])

    mine = found["ours"][0]
    asked = {"in the loop": "2.3x", "natural": ""}
    for mode in ("in the loop", "cached", "natural"):
        yield Line(f"training, {mode}, samples/s", rate("torch", mode), rate("ours", mode), asked.get(mode, ""))
    yield Line(
        "training, natural against in the loop, samples/s", rate("torch", "in the loop"), rate("ours", "natural"), "3x"
    )
    if mine["peak"] is not None:
        flops = sum(each * number for each, number in zip(mine["flops"], mine["natural"]["work"][1:], strict=True))
        share = flops / mine["natural"]["work"][0] * rate("ours", "natural") / mine["peak"]
        yield Line("training, natural, mfu_lora", None, share, "0.41")
    waits = [result["natural"]["waited"] / result["natural"]["seconds"] for result in found["ours"]]
    yield Line("training, natural, share of time waited for data", None, statistics.median(waits), "below 0.01")
    yield Line("training, full rows, tokens/s", None, rate("ours", "full rows", 1), "12,700; NeMo on an H100 14,110")
    starts = [statistics.median(result["start"] for result in found[side]) for side in ("torch", "ours")]
    yield Line("start to first step, s", *starts, less=True)


def answers(found: Found) -> Iterator[Line]:
    """Clips a second one by one and in batches, and the share of the floor."""
    mine = found["ours"][0]
    single = _median(found, "torch", "one by one")
    for way in mine["rates"]:
        asked = "100x of one by one" if way != "1 at a time" else "5x"
        yield Line(f"answers, {way} (torch one by one), clips/s", single, _median(found, "ours", way), asked)
        if way in found["torch"][0]["rates"]:
            yield Line(f"answers, {way}, clips/s", _median(found, "torch", way), _median(found, "ours", way))
    for way, share in (mine["floor"] or {}).items():
        yield Line(f"answers, {way}, share of the decoding floor", None, share)


def towers(found: Found) -> Iterator[Line]:
    """Pictures and clips of sound a second."""
    for name, title, asked in (("vision", "CLIP, pictures/s", "2,400"), ("audio", "HuBERT, clips/s", "3,500")):
        sides = {side: statistics.median(result["rates"][name]["batches"] for result in found[side]) for side in found}
        yield Line(title, sides["torch"], sides["ours"], asked)


def checkpoints(found: Found) -> Iterator[Line]:
    """Seconds of saving and reading."""
    for stage in ("stands still", "on disk", "read"):
        sides = {side: statistics.median(result[stage] for result in found[side]) for side in found}
        asked = "0.5 at most" if stage == "stands still" else ""
        yield Line(f"checkpoint, {stage}, s", sides["torch"], sides["ours"], asked, less=True)


def _median(found: Found, side: str, way: str) -> float:
    return statistics.median(result["rates"][way] for result in found[side])


READERS = {"train_step": training, "generate": answers, "encoders": towers, "checkpoint": checkpoints}


if __name__ == "__main__":
    main()
