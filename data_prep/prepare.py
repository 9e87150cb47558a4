"""Preparation of a corpus: media are decoded and encoded once, and training then reads a few gigabytes of features.

The clips are cut into ranges. A range becomes one shard of every stream, and a line in the journal when all of them are
written; a preparation that was killed goes on after the last line. Nothing is visible under a stream's final name
until the whole stream is there, the text last.

The ranges depend on nothing but the clips, so several processes each take their own, without talking: the journal in
the folder they share says what is done. Whoever finds all of it done publishes the corpus, under a lock that the
system takes from a process that dies; one that comes to it later finds nothing left to do.

A stream that joins a corpus takes over the clips, their order and their ranges from its text: the other streams are not
touched.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from affectgpt_jax.data.clips import PREPROCESSING, ClipFiles
from affectgpt_jax.data.shard_schema import (
    SPLITS,
    TEXT,
    ShardEntry,
    Stream,
    config_name,
    dataset_directory,
    digest,
    parse_stream,
    read_manifest,
    stream_directory,
)
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.machine import NoLocks, lock
from affectgpt_jax.replacing import replacing
from data_prep.encode import Encoders, MissingPolicy, encode_clips, provenance_of
from data_prep.faces import FaceCrops, FacePolicy, face_crops
from data_prep.readers import ClipRecord, Problem
from data_prep.report import PrepareReport, load_report


@dataclass(frozen=True)
class PrepareSettings:
    """How a corpus is prepared.

    Attributes:
        streams: feature streams wanted; the text is always there.
        missing: `keep` a clip that lacks a modality, marked as absent, or `drop` it.
        batch_clips: clips per call of an encoder.
        shard_clips: clips in a shard; 4096 make files of 50 to 70 MB.
        decode_threads: threads that decode.
        overwrite: replace streams that were prepared from other files or with another encoder.
        progress: show a progress bar.
        faces: where face crops come from, see `data_prep.faces`.
        detector: ONNX file of the detector of faces; empty for the built-in one.
        processes: how many processes share the work; each is started with the same settings but for `process`.
        process: which of them this one is, from 0.
    """

    streams: tuple[str, ...] = ("face@8", "audio@8")
    missing: MissingPolicy = "keep"
    batch_clips: int = 16
    shard_clips: int = 4096
    decode_threads: int = 2
    overwrite: bool = False
    progress: bool = True
    faces: FacePolicy = "files"
    detector: str = ""
    processes: int = 1
    process: int = 0


class _Range(BaseModel):
    """Clips that make one shard of every stream.

    Attributes:
        split: their split.
        index: number of the shard in its split.
        count: how many shards the split has.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    index: int
    count: int


class _Line(BaseModel):
    """A line of the journal: a range that is done."""

    model_config = ConfigDict(frozen=True)

    range: _Range
    entries: Mapping[str, ShardEntry]
    dropped: tuple[str, ...]
    broken: tuple[Problem, ...]
    detected: Mapping[str, int] = {}


@dataclass(frozen=True)
class _Job:
    """A preparation, settled: which streams are written, from which clips, and where.

    Attributes:
        out: the corpus.
        staging: directory of unfinished work.
        targets: streams to write.
        provenance: of each of them.
        ranges: the clips of each range.
        faces: where face crops come from.
    """

    out: Path
    staging: Path
    targets: tuple[str, ...]
    provenance: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[_Range, tuple[ClipRecord, ...]]
    faces: FaceCrops

    @property
    def joins(self) -> bool:
        """Whether the streams join a corpus whose clips are settled."""
        return TEXT not in self.targets

    @property
    def features(self) -> tuple[Stream, ...]:
        """The feature streams to write."""
        return tuple(parse_stream(name) for name in self.targets if name != TEXT)

    def shards(self, stream: str) -> Path:
        """Where the shards of a stream wait."""
        return self.staging / config_name(stream)

    def journal(self, part: _Range) -> Path:
        """Where the line of a range is kept."""
        return self.staging / "journal" / f"{part.split}-{part.index:05d}.json"

    def left(self) -> list[_Range]:
        """The ranges that are not done."""
        # The folder is listed, since a network file system may remember for a while that a single file was not there.
        folder = self.staging / "journal"
        done = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
        return [part for part in self.ranges if self.journal(part).name not in done]


def prepare(
    records: Sequence[ClipRecord],
    encoders: Encoders,
    settings: PrepareSettings,
    out: Path | str,
    problems: Sequence[Problem] = (),
) -> PrepareReport:
    """Decodes and encodes clips and writes them as a corpus; goes on where an earlier attempt ended.

    A clip with broken media is left out and listed, never replaced. Where the corpus is there already, only the streams
    it lacks are written, and nothing if it lacks none.

    One of several processes prepares the ranges whose number, divided by that of the processes, leaves its own. What a
    process left undone is done by whoever is called in its place, also one of another number of processes.

    Args:
        records: the clips, see `data_prep.readers`.
        encoders: the frozen towers.
        settings: how.
        out: directory of the corpus; made if need be.
        problems: what the reader had to say about the tables, for the report.

    Returns:
        What was done; also written beside the streams, as JSON and as text. Where other processes are not done, what
        they left (`unfinished`).

    Raises:
        UserError: there is no clip, or two of one name; a stream in `out` comes from other files or another encoder;
            the disk is full; no clip is left; the face detector cannot be had; several processes are to share a file
            system without locks.
    """
    out = Path(out)
    started = time.monotonic()
    _check(records, settings)
    wants_faces = any(parse_stream(stream).modality == "face" for stream in settings.streams)
    faces = face_crops(settings.faces, settings.detector) if wants_faces else FaceCrops()
    provenance = _provenances(records, encoders, faces, settings)
    key = digest(json.dumps([provenance, settings.batch_clips, settings.shard_clips], sort_keys=True).encode())[:16]
    staging = dataset_directory(out) / f".unfinished-{key}"
    plan = staging / "plan.json"
    if not staging.is_dir() and not _targets(out, provenance, settings.overwrite):  # before anything is written
        return _published(out, staging, settings, records, problems)
    with _locked(staging, settings.processes):
        if plan.is_file():
            targets = tuple(json.loads(plan.read_text(encoding="utf-8")))
        elif targets := _targets(out, provenance, settings.overwrite):
            with replacing(plan) as temporary:
                temporary.write_text(json.dumps(targets), encoding="utf-8")
    if not targets:
        return _published(out, staging, settings, records, problems)
    ranges = _ranges(records, settings.shard_clips) if TEXT in targets else _settled_ranges(out, records)
    job = _Job(out, staging, targets, provenance, ranges, faces)
    own = set(list(ranges)[settings.process :: settings.processes])
    waiting = [part for part in job.left() if part in own]
    encoded, busy = sum(len(ranges[part]) for part in waiting), 0.0
    with _progress(encoded, settings.progress) as on_clip:
        for part in waiting:
            busy += _prepare_range(job, part, encoders, settings, on_clip)
    with _locked(staging, settings.processes):
        if not plan.is_file():  # another process has published meanwhile
            return _published(out, staging, settings, records, problems)
        left = job.left()
        lines = [_Line.model_validate_json(job.journal(part).read_bytes()) for part in ranges if part not in left]
        if not left:
            _publish(job, lines)
        seconds = time.monotonic() - started
        report = _report(out, settings, lines, records, problems, job.targets, seconds, encoded).model_copy(
            update={
                "encoders_busy": busy / seconds,
                "unfinished": len(left),
                "unfinished_clips": sum(len(ranges[part]) for part in left),
            }
        )
        if not left:
            report.save(dataset_directory(out))
            plan.unlink()
            shutil.rmtree(staging, ignore_errors=True)  # a process that comes just now may put its lock there
    return report


@contextmanager
def _locked(staging: Path, processes: int) -> Iterator[None]:
    """Keeps other processes from planning and publishing the same preparation at the same time.

    The system gives the lock back when its process ends, however that comes about: no claim of a dead one is left to
    be judged. Who waited for it finds out by the plan whether there is still something to do.

    Raises:
        UserError: several processes, and the file system has no locks.
    """
    file = None
    while file is None:
        try:
            staging.mkdir(parents=True, exist_ok=True)
            file = (staging / "lock").open("a")
        except FileNotFoundError:
            continue  # the process that published has just removed the folder
        except OSError as error:
            raise UserError(f"{staging} could not be written: {error.strerror}. Free or mend its place.") from error
    with file:
        try:
            lock(file, wait=True)
        except NoLocks as error:
            if processes > 1:
                raise UserError(
                    f"the file system of {staging.parent} has no locks ({error}), without which several "
                    "processes cannot share a preparation; prepare with --processes 1, or on another file system"
                ) from error
        yield


# ---------------------------------------------------------------------------------------------------------------------
# What is to be done


def _check(records: Sequence[ClipRecord], settings: PrepareSettings) -> None:
    if not records:
        raise UserError("There is no clip to prepare.")
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            raise UserError(f"Two clips are named {record.name!r}; a name must stand for one clip.")
        seen.add(record.name)
    for name in settings.streams:
        parse_stream(name)
    if not 0 <= settings.process < settings.processes:
        raise UserError(
            f"process {settings.process} of {settings.processes}: expected a number from 0 to {settings.processes - 1}"
        )
    if len(set(settings.streams)) < len(settings.streams):
        raise UserError(f"prepare.streams names a stream twice: {', '.join(settings.streams)}.")


def _provenances(
    records: Sequence[ClipRecord], encoders: Encoders, faces: FaceCrops, settings: PrepareSettings
) -> dict[str, dict[str, Any]]:
    """Provenance of the text and of each stream wanted, as it reads when it comes back from JSON."""
    texts = digest(json.dumps([record.text for record in records]).encode())
    provenance: dict[str, dict[str, Any]] = {TEXT: {"texts": texts, "missing": settings.missing}}
    for name in settings.streams:
        stream = parse_stream(name)
        provenance[name] = {
            **provenance_of(encoders, stream),
            "preprocessing": PREPROCESSING.get(stream.modality),
            "media": _media_digest(records, stream.modality, faces),
            **(faces.provenance if stream.modality == "face" else {}),
        }
    return json.loads(json.dumps(provenance))


def _media_digest(records: Sequence[ClipRecord], modality: str, faces: FaceCrops) -> str:
    """Digest of the names and lengths of the files that a modality is read from."""

    def source(files: ClipFiles) -> Path | None:
        return faces.source(files) if modality == "face" else files.source(modality)

    sources = ((record.name, source(record.files)) for record in records)
    facts = [(name, source.name, source.stat().st_size) if source else (name,) for name, source in sources]
    return digest(json.dumps(facts).encode())


def _targets(out: Path, provenance: Mapping[str, Mapping[str, Any]], overwrite: bool) -> tuple[str, ...]:
    """Streams that are not there as they should be.

    All of them where the text is not, and where media have changed, since that may mend clips that had been left out.
    """
    lacking = [stream for stream in provenance if not stream_directory(out, stream).exists()]
    afresh = TEXT in lacking
    for stream in [stream for stream in provenance if stream not in lacking]:
        found, expected = read_manifest(out, stream).provenance, provenance[stream]
        differing = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
        if differing and not overwrite:
            raise UserError(
                f"{stream_directory(out, stream)} was prepared otherwise: {differing[0]} is "
                f"{found.get(differing[0])!r} there and {expected.get(differing[0])!r} now. Prepare with --overwrite "
                "to replace it, or into another directory."
            )
        if differing:
            lacking.append(stream)
        afresh = afresh or "media" in differing or (stream == TEXT and bool(differing))
    return tuple(stream for stream in provenance if afresh or stream in lacking)


def _ranges(records: Sequence[ClipRecord], size: int) -> dict[_Range, tuple[ClipRecord, ...]]:
    """Cuts each split into ranges of `size` clips."""
    ranges = {}
    for split in SPLITS:
        clips = [record for record in records if record.split == split]
        starts = range(0, len(clips), size)
        for index, start in enumerate(starts):
            ranges[_Range(split=split, index=index, count=len(starts))] = tuple(clips[start : start + size])
    return ranges


def _settled_ranges(out: Path, records: Sequence[ClipRecord]) -> dict[_Range, tuple[ClipRecord, ...]]:
    """The ranges of a corpus that is there."""
    by_name = {record.name: record for record in records}
    ranges = {}
    for split, shards in read_manifest(out, TEXT).splits.items():
        names = iter(open_corpus(out, split).names)
        for index, shard in enumerate(shards):
            clips = tuple(by_name[next(names)] for _ in range(shard.records))
            ranges[_Range(split=split, index=index, count=len(shards))] = clips
    return ranges


# ---------------------------------------------------------------------------------------------------------------------
# Doing it


def _prepare_range(
    job: _Job, part: _Range, encoders: Encoders, settings: PrepareSettings, on_clip: Callable[[], None]
) -> float:
    """Encodes the clips of a range, writes its shard of each stream, and then its line in the journal.

    Returns:
        Seconds in which an encoder was at work.
    """
    encoded = encode_clips(
        job.ranges[part],
        job.features,
        encoders,
        missing=settings.missing,
        fixed=job.joins,
        batch=settings.batch_clips,
        threads=settings.decode_threads,
        on_clip=on_clip,
        faces=job.faces,
    )
    place = (part.split, part.index, part.count)
    names = [record.name for record in encoded.records]
    entries = {
        stream: write_feature_shard(job.shards(stream), *place, names, features, encoded.present[stream])
        for stream, features in encoded.features.items()
    }
    if not job.joins:
        entries[TEXT] = write_text_shard(job.shards(TEXT), *place, [record.text for record in encoded.records])
    detected = encoded.detected if job.faces.detector else {}
    line = _Line(range=part, entries=entries, dropped=encoded.dropped, broken=encoded.broken, detected=detected)
    with replacing(job.journal(part)) as temporary:
        temporary.write_text(line.model_dump_json(), encoding="utf-8")
    return encoded.busy


def _publish(job: _Job, lines: Sequence[_Line]) -> None:
    """Moves each finished stream to its place, the text last, since a corpus without it is none."""
    if not any(entry.records for line in lines for entry in line.entries.values()):
        broken = next((problem for line in lines for problem in line.broken), None)
        example = f" (the first: {broken.file}: {broken.reason})" if broken else ""
        raise UserError(
            f"No clip is left: all were broken or lack a modality{example}. Mend the corpus, delete {job.staging} and "
            "prepare it again."
        )
    for stream in sorted(job.targets, key=lambda name: name == TEXT):
        if not job.shards(stream).is_dir() and stream_directory(job.out, stream).is_dir():
            continue  # moved by an earlier attempt that was killed before the end
        splits = {split: [line.entries[stream] for line in lines if line.range.split == split] for split in SPLITS}
        provenance = job.provenance[stream]
        shape = None if stream == TEXT else (parse_stream(stream).count, int(provenance["width"]))
        publish_stream(job.shards(stream), job.out, stream, splits, provenance, shape)


def _published(
    out: Path, staging: Path, settings: PrepareSettings, records: Sequence[ClipRecord], problems: Sequence[Problem]
) -> PrepareReport:
    """The report of a corpus that has all of the streams; removes what was left of their preparation."""
    shutil.rmtree(staging, ignore_errors=True)
    return load_report(dataset_directory(out), settings.streams) or _report(out, settings, (), records, problems)


def _report(
    out: Path,
    settings: PrepareSettings,
    lines: Sequence[_Line],
    records: Sequence[ClipRecord],
    problems: Sequence[Problem],
    written: tuple[str, ...] = (),
    seconds: float = 0.0,
    encoded: int = 0,
) -> PrepareReport:
    """Counts what was written from the journal, and what was there from its manifests; problems from the journal."""

    def splits(stream: str) -> Mapping[str, Sequence[ShardEntry]]:
        if stream not in written:
            return read_manifest(out, stream).splits
        found = {split: [line.entries[stream] for line in lines if line.range.split == split] for split in SPLITS}
        return {split: entries for split, entries in found.items() if entries}

    shards = {stream: splits(stream) for stream in (TEXT, *settings.streams)}
    entries = {stream: [entry for part in found.values() for entry in part] for stream, found in shards.items()}
    kept = {split: sum(entry.records for entry in part) for split, part in shards[TEXT].items()}
    return PrepareReport(
        out=str(out),
        written=written,
        clips=len(records),
        kept=sum(kept.values()),
        splits=kept,
        present={
            stream: sum(entry.records - len(entry.absent) for entry in entries[stream]) for stream in settings.streams
        },
        dropped=tuple(name for line in lines for name in line.dropped),
        broken=tuple(problem for line in lines for problem in line.broken),
        tables=tuple(problems),
        megabytes=sum(entry.size for found in entries.values() for entry in found) / 1e6,
        seconds=seconds,
        clips_per_second=encoded / max(seconds, 1e-9),
        detected={
            stream: sum(line.detected[stream] for line in lines)
            for stream in settings.streams
            if lines and stream in lines[0].detected
        },
    )


class _Rate(ProgressColumn):
    """Clips per second."""

    def render(self, task: Task) -> Text:
        """Draws the column."""
        return Text(f"{task.speed:.1f} clips/s" if task.speed else "- clips/s")


@contextmanager
def _progress(clips: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar over clips; gives what to call after each."""
    columns = (
        TextColumn("prepare"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task("prepare", total=clips)
        yield lambda: progress.advance(task)
