"""Whether there is room: devices for the mesh, memory for the model, disks for checkpoints. And the clock."""

import email.utils
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.config import RunConfig
from affectgpt_jax.disk import existing
from affectgpt_jax.doctor.findings import Finding, Question, amount, within
from affectgpt_jax.doctor.machine import device_memory, find_devices, host_memory, own_place
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import CHECKPOINTS, feature_shapes, run_steps
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.packed_attention import choose_kernel
from affectgpt_jax.sharding import abstract_mesh, batch_shards, check_mesh, device_bytes, run_mesh
from affectgpt_jax.training.setup import design
from affectgpt_jax.weights.initial import held_shapes, resolve
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import split

SKEW_SECONDS = 5.0
NETWORK_SECONDS = 5.0
ROOM = 10**9
"""Bytes that the cache and the temporary folder should have free: compiled programs, tokens of a corpus, drafts."""
MASTER = 4
"""Bytes of a float32: a trained parameter is one, and so is each of Adam's two moments."""
MEDIA_BYTES = {"audio": 4 * 2 * 16_000, "face": 4 * 3 * 224 * 224}
"""Of a clip of sound and of a picture, as encoders in the loop read them."""
SHARED = Path("/dev/shm")


class Parameter(NamedTuple):
    """One array of the model.

    Attributes:
      path: its name.
      shape: of the whole.
      bytes: of an entry as the frozen or trained array holds it.
      trained: whether the run trains it.
    """

    path: str
    shape: tuple[int, ...]
    bytes: int
    trained: bool

    @property
    def entries(self) -> int:
        return prod(self.shape)


def resolved(config: RunConfig) -> RunConfig:
    """The config with the sizes of the folders that it names, or as it is where they cannot be read."""
    try:
        return resolve(config)[0]
    except (UserError, KeyError, ValueError):  # the checks of tokenizer and weights say which, and why
        return config


def parameters(config: RunConfig) -> list[Parameter]:
    """The arrays of a resolved run's model.

    Raises:
      UserError: `train.trainable` has a pattern that matches nothing.
    """
    shapes = held_shapes(config, AffectGPT(config.model))
    trained = paths(split(config.model, shapes, config.train.trainable)[0])
    return [
        Parameter(path, tuple(leaf.shape), leaf.dtype.itemsize, path in trained) for path, leaf in paths(shapes).items()
    ]


def run_folder(config: RunConfig) -> Path:
    """Where a run writes."""
    return Path(config.train.output or f"runs/{config.name}")


def _device_count(question: Question) -> int:
    """How many devices the run has; 0 if jax finds none."""
    if question.devices is not None:
        return question.devices
    count = len(find_devices()[0])
    try:
        place = own_place()
    except UserError:
        return count
    return count if place is None else place.processes * len(place.local_devices or range(count))


def mesh(question: Question) -> Iterator[Finding]:
    """The sizes of the mesh against devices, model and batch, and the attention kernel against the devices."""
    if question.config is None:
        return
    config, count = resolved(question.config), _device_count(question)
    if not count:
        yield Finding("mesh", "skipped", "jax finds no devices", "--devices N asks about a machine that has N")
        return
    grid = abstract_mesh(config.mesh, count)
    check_mesh(config, grid.shape)
    if question.devices is None:
        found = find_devices()[0]
        if count == len(found):
            run_mesh(config)
        decoder = config.model.decoder
        choose_kernel(
            decoder.attention, found[0].platform, decoder.dtype, config.data.row_length, decoder.heads,
            decoder.head_dim, grid.shape["tensor"],
        )  # fmt: skip
    sizes = ", ".join(f"{axis}={size}" for axis, size in grid.shape.items())
    shards = batch_shards(grid.shape)
    yield Finding("mesh", "ok", f"{sizes}; devices: {count}; a batch's {config.train.rows} rows lie in {shards} parts")


def memory(question: Question) -> Iterator[Finding]:
    """What lies on each device before the first activation, against what it has."""
    if question.config is None or not (count := _device_count(question)):
        return
    config = resolved(question.config)
    try:
        plan = design(config, abstract_mesh(config.mesh, count))
    except UserError:
        yield Finding("memory", "skipped", "not counted, because the mesh does not fit")
        return
    # Of what is trained a master, its gradient and two moments, all float32.
    need = device_bytes(plan.frozen) + 4 * device_bytes(plan.state.params)
    told = f"{amount(need)} of parameters, gradients and optimizer on each device"
    found = find_devices()[0]
    if question.devices is not None or not found:
        yield Finding("memory", "ok", f"{told}; activations come on top")
        return
    has = device_memory(found)
    if has is None and found[0].platform == "cpu":
        need, has = need * len(found), host_memory()
        told = f"{amount(need)} of parameters, gradients and optimizer on the host"
    if has is None:
        yield Finding("memory", "ok", f"{told}; these devices do not say what they have")
        return
    remedy = "more devices along mesh.fsdp or mesh.tensor, model.decoder.dtype=bfloat16, model.decoder.base=int8"
    if need > has:
        yield Finding("memory", "fault", f"{told}, which has {amount(has)}", remedy)
    elif need > 0.8 * has:
        yield Finding("memory", "warning", f"{told}, which has {amount(has)}: little is left for activations", remedy)
    else:
        yield Finding("memory", "ok", f"{told}, which has {amount(has)}")


class _Place(NamedTuple):
    """A folder that a run writes to.

    Attributes:
      area: what it is called.
      folder: need not be there yet.
      need: bytes that it should have free.
      why: what for.
      remedy: how another folder is named.
    """

    area: str
    folder: Path
    need: int
    why: str
    remedy: str


def disk(question: Question) -> Iterator[Finding]:
    """Whether the folders of a run can be written, and have room for what will be written."""
    places = [
        _run_place(question),
        _Place("cache", cache_folder(), ROOM, "compiled programs and tokens", "export AFFECTGPT_CACHE_DIR=FOLDER"),
        _Place("temporary files", _temporary(), ROOM, "drafts", "export TMPDIR=FOLDER"),
    ]
    lying: dict[int, int] = {}
    for place in places:
        device = existing(place.folder).stat().st_dev
        lying[device] = lying.get(device, 0) + place.need
    for place in places:
        there = existing(place.folder)
        total, free = lying[there.stat().st_dev], shutil.disk_usage(there).free
        try:
            write_there(place.folder)
        except OSError as error:
            yield Finding(place.area, "fault", f"{place.folder} cannot be written: {error.strerror}", place.remedy)
            continue
        short = free < total
        others = f" ({amount(total)} with what else lies on that disk)" if short and total != place.need else ""
        told = f"{place.folder}: {amount(free)} free, needed are {amount(place.need)}{others} for {place.why}"
        yield Finding(place.area, "fault" if short else "ok", told, f"make room, or {place.remedy}" if short else "")
    if question.config is not None and question.config.data.workers:
        yield from _shared(question.config)


def _run_place(question: Question) -> _Place:
    """The run folder, with room for the checkpoints that it will hold."""
    if question.config is None:
        return _Place("run folder", Path("runs"), ROOM, "a run", "start it from a folder on another disk")
    config, folder = resolved(question.config), run_folder(question.config)
    train = config.train
    each = 3 * MASTER * sum(parameter.entries for parameter in parameters(config) if parameter.trained)
    copies = train.keep + (train.steps // train.keep_every if train.keep_every else 0) + bool(config.validation.every)
    there = len(run_steps(folder)) if (folder / CHECKPOINTS).is_dir() else 0
    to_come = max(copies - there, 0) + 1  # one more is written before the oldest goes
    why = f"{to_come} checkpoints of {amount(each)}"
    return _Place("run folder", folder, to_come * each, why, "train.output=FOLDER on another disk, train.keep=1")


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none can be written
        return Path(os.environ.get("TMPDIR", "/tmp"))


def write_there(folder: Path) -> float:
    """Write a file where a folder is or will be, and delete it.

    Returns:
      By how many seconds the file system's clock is ahead of this machine's.

    Raises:
      OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=existing(folder), prefix=".affectgpt-doctor-") as file:
        before = time.time()
        file.write(b"\0" * 4096)
        file.flush()
        os.fsync(file.fileno())
        after = time.time()
        written = os.stat(file.name).st_mtime
    return max(written - after, 0.0) + min(written - before, 0.0)


def _shared(config: RunConfig) -> Iterator[Finding]:
    """Worker processes hand over their batches in shared memory."""
    if not SHARED.is_dir():
        return
    train, data = config.train, config.data
    sample = sum(
        time_steps * (MEDIA_BYTES["audio" if name == "audio" else "face"] if data.source == "media" else 2 * width)
        for name, (time_steps, width) in feature_shapes(resolved(config)).items()
    )
    row = 16 * data.row_length + 12 * data.row_targets + data.row_samples * sample
    # Each worker holds one batch ready while it makes the next, and the loop reads one.
    need, free = train.rows * train.accumulate * row * (2 * data.workers + 1), shutil.disk_usage(SHARED).free
    told = (
        f"{SHARED}: {amount(free)} free, needed are {amount(need)} for the batches of {data.workers} worker processes"
    )
    if free < need:
        yield Finding("shared memory", "fault", told, f"docker run --shm-size {-(-need // 10**9)}g, or data.workers=0")
    else:
        yield Finding("shared memory", "ok", told)


def clock(question: Question) -> Iterator[Finding]:
    """This machine's clock against that of the run folder's file server, and that of a server on the network."""
    folder = run_folder(question.config) if question.config else Path("runs")
    try:
        skews = {f"the file system of {folder}": write_there(folder)}
    except OSError:
        skews = {}
    note = ""
    if not question.fast and (asked := _hub()):
        try:
            skews[asked] = within(NETWORK_SECONDS, lambda: _network_time(asked) - time.time())
        except Exception:  # no network is no fault
            note = f"; {asked} does not answer"
    apart = {where: skew for where, skew in skews.items() if abs(skew) > SKEW_SECONDS}
    for where, skew in apart.items():
        what = f"this machine is {abs(skew):,.0f} s {'behind' if skew > 0 else 'ahead of'} {where}"
        yield Finding("clock", "fault", what, "timedatectl set-ntp true (or chronyc makestep) on the one that is wrong")
    if not apart:
        told = f"within {SKEW_SECONDS:g} s of {' and '.join(skews)}" if skews else "compared with nothing"
        yield Finding("clock", "ok" if skews else "skipped", told + note)


def _hub() -> str:
    """The one server that a machine with weights has reason to know; empty where it must not be asked."""
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")
    return "" if offline else os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _network_time(address: str) -> float:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=NETWORK_SECONDS) as answer:
            said = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        said = error.headers["Date"]
    return email.utils.parsedate_to_datetime(said).timestamp()
