"""Write a synthetic corpus to disk, in the layout of the MER2025 release.

video/NAME.mp4, audio/NAME.wav, openface_face/NAME/NAME.npy, subtitle_chieng.csv (name, chinese, english),
track2_train_mercaptionplus.csv (name, openset), track3_train_mercaptionplus.csv (name, reason); and of our own
synth_splits.csv, synth_attributes.csv, contact_sheet.png and synth_manifest.json. The manifest is written last: a
folder without it is unfinished.

What draws and encodes is imported where a clip is written: features of the same scenes are made without it.
"""

import csv
import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.errors import UserError
from affectgpt_jax.machine import available_cores
from data_prep.synth.render import render_clip
from data_prep.synth.scenes import MODALITIES
from data_prep.synth.specs import FRAME_RATE, SPLITS, ClipSpec, attributes, sample_specs
from data_prep.synth.vocabulary import EMOTIONS
from data_prep.synth.voice import SAMPLE_RATE

VERSION = 1
"""Of the generator; another version draws other clips from the same seed."""

_MANIFEST = "synth_manifest.json"
_UNFINISHED = "synth_unfinished.txt"
_FOLDERS = ("video", "audio", "openface_face")
_TABLES = (
    "subtitle_chieng.csv",
    "track2_train_mercaptionplus.csv",
    "track3_train_mercaptionplus.csv",
    "synth_splits.csv",
    "synth_attributes.csv",
)
_SHEET = "contact_sheet.png"


class SplitCounts(NamedTuple):
    """Clips of each split."""

    train: int
    validation: int
    test: int

    @classmethod
    def of_total(cls, clips: int) -> "SplitCounts":
        """80 percent for training, 5 for validation, 15 for the test."""
        validation, test = round(0.05 * clips), round(0.15 * clips)
        return cls(clips - validation - test, validation, test)


class CorpusSummary(NamedTuple):
    """What lies in a finished corpus."""

    directory: Path
    counts: SplitCounts
    reused: bool  # it was there already and is unchanged
    seconds: float  # spent by this call
    bytes: int
    emotions: dict[str, int]  # group -> clips
    needs: dict[str, float]  # modality, or "two or more" -> share of the clips


def write_corpus(
    directory: Path,
    counts: SplitCounts,
    seed: int,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    on_clip: Callable[[], None] = lambda: None,
) -> CorpusSummary:
    """Write a corpus, or find it already there.

    The files depend on seed and counts alone: not on the workers, nor on what was in the folder. Called from a
    script, it needs the usual `if __name__ == "__main__":` guard unless `workers` is 1.

    Args:
      directory: the corpus' folder: new, empty, a finished corpus or the remains of an unfinished one.
      counts: clips of each split.
      seed: >= 0.
      workers: processes; None takes the cores this process may use.
      overwrite: replace a finished corpus of another seed, version or size.
      on_clip: called after each clip written.

    Returns:
      The summary.

    Raises:
      UserError: counts or seed make no sense, the folder holds something else, or it cannot be written.
    """
    started = time.monotonic()
    if seed < 0 or min(counts) < 0 or sum(counts) == 0:
        raise UserError(f"a corpus needs a seed >= 0 and at least one clip, not seed {seed} and {counts}")
    directory = Path(directory)
    specs = [spec for split in SPLITS for spec in sample_specs(seed, split, getattr(counts, split))]
    try:
        reused = _is_reusable(directory, counts, seed, overwrite)
        if not reused:
            _clear(directory)
            for _ in _written(directory, specs, workers or available_cores()):
                on_clip()
            _write_tables(directory, specs)
            _write_sheet(directory / _SHEET, specs)
            _finish(directory, counts, seed)
    except OSError as error:
        raise UserError(
            f"{directory}: the corpus cannot be written: {error}. Free space or choose another folder, then run again"
        ) from error
    return CorpusSummary(
        directory=directory,
        counts=counts,
        reused=reused,
        seconds=time.monotonic() - started,
        bytes=sum(size for _, size in _inventory(directory).values()),
        emotions={emotion: sum(spec.emotion == emotion for spec in specs) for emotion in EMOTIONS},
        needs=_share_of_needs(specs),
    )


def _share_of_needs(specs: Sequence[ClipSpec]) -> dict[str, float]:
    shares = {modality: sum(modality in spec.needs for spec in specs) / len(specs) for modality in MODALITIES}
    return shares | {"two or more": sum(len(spec.needs) > 1 for spec in specs) / len(specs)}


def _identity(counts: SplitCounts, seed: int) -> dict[str, object]:
    """The part of a manifest that decides whether two corpora are the same."""
    return {"generator": "affectgpt synth", "version": VERSION, "seed": seed, "counts": counts._asdict()}


def _is_reusable(directory: Path, counts: SplitCounts, seed: int, overwrite: bool) -> bool:
    """Whether the wanted corpus is there; False when it is to be written; UserError when it must not be."""
    manifest = directory / _MANIFEST
    if not manifest.exists():
        if directory.exists() and any(directory.iterdir()) and not (directory / _UNFINISHED).exists():
            raise UserError(
                f"{directory}: the folder holds files that are no synthetic corpus; choose a new or empty folder"
            )
        return False
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        identity, files = {key: found[key] for key in _identity(counts, seed)}, found["files"]
    except (ValueError, KeyError, TypeError):
        return False  # the manifest itself is broken
    if identity == _identity(counts, seed):
        return files == _inventory(directory)
    if not overwrite:
        raise UserError(
            f"{directory}: holds another corpus (version {identity['version']}, seed {identity['seed']}, "
            f"{identity['counts']}), not version {VERSION}, seed {seed}, {counts._asdict()}; "
            "choose another folder or give --overwrite"
        )
    return False


def _inventory(directory: Path) -> dict[str, list[int]]:
    """Number of files and bytes by folder or file name: enough to notice a missing or truncated file."""
    found = {}
    for name in _FOLDERS:
        sizes = [path.stat().st_size for path in (directory / name).rglob("*") if path.is_file()]
        found[name] = [len(sizes), sum(sizes)]
    for name in (*_TABLES, _SHEET):
        path = directory / name
        found[name] = [1, path.stat().st_size] if path.is_file() else [0, 0]
    return found


def _clear(directory: Path) -> None:
    """Remove an old corpus, or its remains, and nothing else; leave the mark of an unfinished one."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _UNFINISHED).write_text("This corpus is being written, or writing was interrupted: run again.\n")
    for name in (_MANIFEST, *_TABLES, _SHEET):
        (directory / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        if (directory / name).exists():
            shutil.rmtree(directory / name)
        (directory / name).mkdir()


def _written(directory: Path, specs: Sequence[ClipSpec], workers: int) -> Iterator[str]:
    """Write all clips; yields each one's name once it is on disk, in order."""
    if workers == 1 or len(specs) == 1:
        for spec in specs:
            yield _write_clip(directory, spec)
        return
    # Not fork: a caller may hold threads (jax, OpenCV) that do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_write_clip, [directory] * len(specs), specs, chunksize=8)
        except BrokenProcessPool as error:
            raise UserError(
                f"{directory}: a worker process was killed, perhaps for want of memory; run again with --workers 1"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides when to stop
    cv2.setNumThreads(1)


def _write_clip(directory: Path, spec: ClipSpec) -> str:
    from data_prep.synth.media import write_mp4, write_wav

    frames, faces, wave = render_clip(spec)
    write_mp4(directory / "video" / f"{spec.name}.mp4", frames, FRAME_RATE, wave, SAMPLE_RATE)
    write_wav(directory / "audio" / f"{spec.name}.wav", wave, SAMPLE_RATE)
    folder = directory / "openface_face" / spec.name
    folder.mkdir()
    np.save(folder / f"{spec.name}.npy", faces)
    return spec.name


def _write_tables(directory: Path, specs: Sequence[ClipSpec]) -> None:
    subtitle, openset, reason, splits, latents = (directory / name for name in _TABLES)
    _write_csv(subtitle, ({"name": s.name, "chinese": s.chinese, "english": s.english} for s in specs))
    _write_csv(openset, ({"name": s.name, "openset": str(list(s.labels))} for s in specs))
    _write_csv(reason, ({"name": s.name, "reason": s.description} for s in specs))
    _write_csv(splits, ({"name": s.name, "split": s.split} for s in specs))
    _write_csv(latents, (attributes(s) for s in specs))


def _write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_sheet(path: Path, specs: Sequence[ClipSpec]) -> None:
    import cv2

    from data_prep.synth.sheet import contact_sheet

    encoded = cv2.imencode(".png", cv2.cvtColor(contact_sheet(specs), cv2.COLOR_RGB2BGR))[1]
    path.write_bytes(encoded.tobytes())


def _finish(directory: Path, counts: SplitCounts, seed: int) -> None:
    manifest = _identity(counts, seed) | {"files": _inventory(directory)}
    draft = directory / f"{_MANIFEST}.part"
    draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    draft.replace(directory / _MANIFEST)
    (directory / _UNFINISHED).unlink()
