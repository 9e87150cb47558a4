"""Where the time of traced steps went, and what keeps them from the device's peak."""

import re
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

KINDS = {
    "attention": r"cudnn|fmha|flash|splash",
    "products": r"dot|gemm|cublas|cutlass|nvjet|matmul|conv|ynn_",  # the last is a CPU's library
    "copies": r"copy|transpose|[mM]em(cpy|set)|concatenate|slice|^pad|^(wrapped_)?broadcast$",
    "reductions": r"reduce|scatter|gather|sort",
}
"""Kinds of operations by their names, the first that fits; the rest is "elementwise"."""
CONTAINERS = re.compile(r"^(while|call|conditional|tuple|async)|^command_buffer|^ThreadpoolListener|^\$|::")


class Span(NamedTuple):
    """An operation at work, nanoseconds."""

    start: float
    end: float
    name: str


def shares(folder: Path) -> dict[str, float]:
    """Shares of the traced time, from the first operation to the last, by kind of operation, "nothing" among them.

    Where several are at work at the same time, it counts for the one that began last: on a CPU an operation's span
    holds those that its end set off.

    Raises:
      FileNotFoundError: no trace, or none of a device at work.
    """
    spans = sorted(_spans(folder))
    if not spans:
        raise FileNotFoundError(f"{folder}: no trace of a device at work")
    found: defaultdict[str, float] = defaultdict(float)
    at_work: list[Span] = []
    now = spans[0].start

    def pass_until(moment: float) -> None:
        nonlocal now
        while now < moment:
            while at_work and at_work[-1].end <= now:
                at_work.pop()
            until = min(at_work[-1].end, moment) if at_work else moment
            found[kind_of(at_work[-1].name) if at_work else "nothing"] += until - now
            now = until

    for span in spans:
        pass_until(span.start)
        at_work.append(span)
    pass_until(max(span.end for span in spans))
    whole = sum(found.values())
    return {kind: seconds / whole for kind, seconds in sorted(found.items(), key=lambda item: -item[1])}


def kind_of(name: str) -> str:
    """What sort of operation has this name."""
    bare = re.sub(r"[._]\d+$", "", name)
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, bare)), "elementwise")


def _spans(folder: Path) -> Iterator[Span]:
    """Operations of an accelerator's streams; without one, of the CPU's client."""
    from jax.profiler import ProfileData

    file = next(folder.rglob("*.xplane.pb"), None)
    if file is None:
        raise FileNotFoundError(f"{folder}: no trace (*.xplane.pb) is there")
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if re.match(r"/device:(GPU|TPU)", plane.name)]
    for plane in devices:
        for line in plane.lines:
            if line.name.startswith("Stream") or line.name == "XLA Ops":
                for event in line.events:
                    if not CONTAINERS.search(event.name):
                        yield Span(event.start_ns, event.start_ns + event.duration_ns, event.name)
    if not devices:
        yield from _of_cpu(plane for plane in planes if plane.name == "/host:CPU")


def _of_cpu(planes: Iterator[Any]) -> Iterator[Span]:
    """A CPU notes where an operation begins, and, maybe on another thread, where it ended."""
    events = [event for plane in planes for line in plane.lines if "XLA" in line.name for event in line.events]
    begun: defaultdict[str, deque[Any]] = defaultdict(deque)
    for event in sorted(events, key=lambda event: event.start_ns):
        if event.name.startswith("end: "):
            name = event.name.removeprefix("end: ")
            if begun[name]:
                first = begun[name].popleft()
                yield Span(first.start_ns, event.start_ns + event.duration_ns, name)
        elif not CONTAINERS.search(event.name):
            begun[event.name].append(event)
