"""The smallest change to a job's settings with which it fits its devices, found by trying."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from affectgpt_jax.config import build_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.planning.estimate import USABLE, Estimate, estimate
from affectgpt_jax.planning.job import Job
from affectgpt_jax.planning.program import Compiled
from affectgpt_jax.sharding import batch_shards, divisors, mesh_sizes

TRIES = 6
"""Changes that are compiled at most."""
HOPE = 1.25
"""What is estimated to exceed the memory by more than this is not compiled."""
MOST_TENSOR = 8
"""Parts of a layer that are worth trying; their exchanges hide behind nothing."""
REMATS = ("none", "names", "full")

Settings = dict[str, object]


class Change(NamedTuple):
    """A job with other settings.

    Attributes:
      words: the settings as they are typed.
      job: with them.
      estimate: of it.
      compiled: what the compiler says of it; None where there is none.
    """

    words: str
    job: Job
    estimate: Estimate
    compiled: Compiled | None = None


def memory_limit(job: Job) -> float | None:
    """Bytes of a device that programs may take; None for a CPU."""
    chip = job.topology.chip
    if chip is None:
        return None
    return chip.memory * (USABLE if chip.family == "gpu" else 1.0)


def find_change(job: Job, compile_it: Callable[[Job], Compiled] | None, say: Callable[[str], None]) -> Change | None:
    """Try changes, of the fewest things first and of equal ones the fastest, until one fits.

    What can change: the sizes of the mesh, rows of a batch (their number stays as it is where the mesh allows: more
    rounds of fewer rows), what the backward pass computes again, an int8 base.

    Args:
      job: one that does not fit, or whose sizes do not.
      compile_it: the compiler, which decides; None lets the estimate decide.
      say: told of each try.

    Returns:
      The first that fits; None if none does.
    """
    limit, tries = memory_limit(job), 0
    for kinds in range(1, 5):
        for change in sorted(_changes(job, kinds), key=lambda change: _slowness(change.estimate)):
            if limit is not None and change.estimate.memory.peak > limit * (1.0 if compile_it is None else HOPE):
                continue
            if compile_it is None:
                return change
            if tries == TRIES:
                return None
            tries += 1
            say(f"trying {change.words}")
            compiled = compile_it(change.job)
            if compiled.fits:
                return change._replace(compiled=compiled)
            say(f"  {compiled.largest.message}")
    return None


def _slowness(found: Estimate) -> float:
    return found.seconds / found.samples if found.times else found.memory.peak


def _changes(job: Job, kinds: int) -> Iterator[Change]:
    """All legal changes of so many kinds of settings, with their estimates."""
    values = job.config.model_dump(mode="json")
    for sizes, mesh in _meshes(job):
        for remat, base, rows in itertools.product(_remats(job), _bases(job), _rows(job, sizes)):
            groups = [group for group in (mesh, remat, base, rows) if group]
            if len(groups) != kinds:
                continue
            words = [f"{key}={value}" for group in groups for key, value in group.items()]
            try:
                changed = job._replace(config=build_config(values, job.config.name, words))
                found = estimate(changed)
            except UserError:
                continue
            yield Change(" ".join(words), changed, found)


def _meshes(job: Job) -> Iterator[tuple[dict[str, int], Settings]]:
    """Sizes of the mesh, and the settings that make them."""
    now, devices = job.config.mesh, job.topology.devices
    try:
        own = mesh_sizes(now, devices)
    except UserError:
        own = {}
    outer = now.slice if now.slice > 0 else job.topology.slices
    inner = devices // outer
    for tensor in divisors(inner):
        if tensor > MOST_TENSOR:
            break
        for fsdp in divisors(inner // tensor):
            sizes = {"slice": outer, "data": inner // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}
            # An axis of -1 takes what the others leave.
            changed = {axis: size for axis, size in sizes.items() if getattr(now, axis) not in (-1, size)}
            yield sizes, {} if sizes == own else {f"mesh.{axis}": size for axis, size in changed.items()}


def _remats(job: Job) -> list[Settings]:
    now = job.config.model.decoder.remat
    if job.kind != "train":
        return [{}]
    stronger: list[Settings] = [{"model.decoder.remat": remat} for remat in REMATS[REMATS.index(now) + 1 :]]
    return [{}, *stronger]


def _bases(job: Job) -> list[Settings]:
    return [{}] if job.config.model.decoder.base == "int8" else [{}, {"model.decoder.base": "int8"}]


def _rows(job: Job, sizes: dict[str, int]) -> Iterator[Settings]:
    """Rows of a batch: as they are, rounded up to the parts that a mesh splits them into, or fewer in more rounds."""
    if job.kind != "train":
        batch = job.config.evaluate.batch
        yield {}
        while batch := batch // 2:
            yield {"evaluate.batch": batch}
        return
    train, shards = job.config.train, batch_shards(sizes)
    rows, rounds = -(-train.rows // shards) * shards, train.accumulate
    yield {} if rows == train.rows else {"train.rows": rows}
    while rows % (2 * shards) == 0:
        rows, rounds = rows // 2, rounds * 2
        yield {"train.rows": rows, "train.accumulate": rounds}
