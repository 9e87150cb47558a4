"""Stage 0 of the demo: both towers and the tokenizer in one folder, or the finished ones found there."""

import multiprocessing
import queue
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import jax
from pydantic import ValidationError

from affectgpt_jax.data.shard_schema import file_digest
from affectgpt_jax.errors import UserError
from affectgpt_jax.machine import available_cores
from data_prep.synth.tokenizer import write_tokenizer
from data_prep.towers.report import Kind, Progress, TowerReport, TowersReport
from data_prep.towers.settings import TowerSettings
from data_prep.towers.tower import train_tower

VERSION = 1
"""Of this stage; another version makes other files from the same settings."""

REPORT = "towers.json"
_UNFINISHED = "towers_unfinished.txt"
_KINDS: tuple[Kind, ...] = ("vision", "audio")
_TOKENIZER = "tokenizer"

Tell = Callable[[Progress], None]


def train_towers(
    out: Path | str,
    settings: TowerSettings | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    tell: Tell = lambda progress: None,
) -> TowersReport:
    """Train the towers and the tokenizer, or find them already there.

    `out` gets the Hugging Face folders vision, audio and tokenizer, and towers.json last. On one kind of processor
    the files depend on the settings alone. Called from a script, it needs the usual `if __name__ == "__main__":`
    guard unless `workers` is 1.

    Args:
        out: new, empty, finished by an earlier call or the remains of an unfinished one.
        settings: sizes, seed and how long; None for the demo's.
        workers: processes: 2 train the towers side by side on the CPU, 1 trains them here, one after the other. None
            takes 2 where there are as many cores.
        overwrite: replace finished towers of other settings.
        tell: called with the progress.

    Returns:
        What lies in the folder.

    Raises:
        UserError: the folder holds something else or cannot be written, or a process was killed.
    """
    started = time.perf_counter()
    out = Path(out)
    settings = settings or TowerSettings()
    found = _finished(out, settings, overwrite)
    if found is not None:
        return found
    apart = (workers or min(len(_KINDS), available_cores())) > 1
    try:
        _clear(out)
        tokens = write_tokenizer(
            out / _TOKENIZER, seed=settings.seed, clips=settings.clips, vocabulary=settings.vocabulary
        )
        towers = (_train_apart if apart else _train_here)(out, settings, tell)
        report = TowersReport(
            version=VERSION,
            settings=settings,
            vision=towers["vision"],
            audio=towers["audio"],
            tokens=tokens,
            seconds=round(time.perf_counter() - started, 1),
            files=_inventory(out),
        )
        draft = out / f"{REPORT}.part"
        draft.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        draft.replace(out / REPORT)
        (out / _UNFINISHED).unlink()
    except OSError as error:
        raise UserError(
            f"{out}: the towers cannot be written: {error}. Free space or choose another folder, then run again"
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            f"{out}: a training process was killed, most likely for want of memory (about 1 GB each). Free memory or "
            "train the towers one after the other (--workers 1)"
        ) from error
    return report


def _finished(out: Path, settings: TowerSettings, overwrite: bool) -> TowersReport | None:
    """The report of wanted towers that are there; None when they are to be made; UserError when they must not be."""
    path = out / REPORT
    if not path.exists():
        if out.exists() and any(out.iterdir()) and not (out / _UNFINISHED).exists():
            raise UserError(f"{out}: the folder holds files that are no towers of ours; choose a new or empty folder")
        return None
    try:
        report = TowersReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        report = None  # broken, or of another version
    if report is not None and report.version == VERSION and report.settings == settings:
        return report.model_copy(update={"reused": True}) if report.files == _inventory(out) else None
    if not overwrite:
        made = "by another version" if report is None else _difference(report, settings)
        raise UserError(f"{out}: holds towers made {made}; choose another folder or give --overwrite")
    return None


def _difference(report: TowersReport, settings: TowerSettings) -> str:
    """What sets towers apart from the wanted ones, in words."""
    if report.version != VERSION:
        return f"by version {report.version}, not {VERSION}"
    old, new = report.settings.model_dump(), settings.model_dump()
    return "with " + ", ".join(f"{key}={old[key]}, not {new[key]}" for key in new if old[key] != new[key])


def _clear(out: Path) -> None:
    """Remove old towers, or their remains, and nothing else; leave the mark of unfinished ones."""
    out.mkdir(parents=True, exist_ok=True)
    (out / _UNFINISHED).write_text("These towers are being made, or that was interrupted: run again.\n")
    (out / REPORT).unlink(missing_ok=True)
    for name in (*_KINDS, _TOKENIZER):
        if (out / name).exists():
            shutil.rmtree(out / name)


def _inventory(out: Path) -> dict[str, str]:
    """Checksum of each file, by its path."""
    files = (path for name in (*_KINDS, _TOKENIZER) for path in sorted((out / name).glob("*")))
    return {path.relative_to(out).as_posix(): file_digest(path) for path in files}


def _train_here(out: Path, settings: TowerSettings, tell: Tell) -> dict[Kind, TowerReport]:
    return {kind: train_tower(kind, out / kind, settings, tell) for kind in _KINDS}


def _train_apart(out: Path, settings: TowerSettings, tell: Tell) -> dict[Kind, TowerReport]:
    """Train each tower in a process of its own."""
    # Not fork: a caller may hold threads (jax, OpenCV) that do not survive it.
    context = multiprocessing.get_context("spawn")
    pool_of_two = ProcessPoolExecutor(len(_KINDS), mp_context=context, initializer=_begin_worker)
    with pool_of_two as pool, context.Manager() as manager:
        messages = manager.Queue()
        jobs = {kind: pool.submit(train_tower, kind, out / kind, settings, messages.put) for kind in _KINDS}
        while not all(job.done() for job in jobs.values()):
            for job in jobs.values():
                if job.done():
                    job.result()  # of two, the first to fail ends both: without its queue the other one stops
            try:
                tell(messages.get(timeout=0.2))
            except queue.Empty:
                continue
        return {kind: job.result() for kind, job in jobs.items()}


def _begin_worker() -> None:
    """Keep a training process off accelerators, which two cannot share, and to one core for pictures."""
    jax.config.update("jax_platforms", "cpu")
    cv2.setNumThreads(1)
