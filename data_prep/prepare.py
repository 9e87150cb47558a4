"""Preparation of a corpus: media are decoded and encoded once, and training then reads a few gigabytes of features.

The clips are cut into ranges. A range becomes one shard of every stream, and a line in the journal when all of them are
written; a preparation that was killed goes on after the last line. Nothing is visible under a stream's final name
until the whole stream is there, the text last. The ranges depend on nothing but the clips, so several processes could
each take their own.

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from affectgpt_jax.data.clips import PREPROCESSING
from affectgpt_jax.data.shard_schema import (
    SPLITS,
    TEXT,
    Manifest,
    ShardEntry,
    Stream,
    config_name,
    dataset_directory,
    digest,
    parse_stream,
    read_manifest,
    stream_directory,
)
from affectgpt_jax.data.shard_writer import publish_stream, replacing, write_feature_shard, write_text_shard
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.encode import Encoders, MissingPolicy, encode_clips, provenance_of
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
    """

    streams: tuple[str, ...] = ("face@8", "audio@8")
    missing: MissingPolicy = "keep"
    batch_clips: int = 16
    shard_clips: int = 4096
    decode_threads: int = 2
    overwrite: bool = False
    progress: bool = True


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


@dataclass(frozen=True)
class _Job:
    """A preparation, settled: which streams are written, from which clips, and where.

    Attributes:
        out: the corpus.
        staging: directory of unfinished work.
        targets: streams to write.
        provenance: of each of them.
        ranges: the clips of each range.
    """

    out: Path
    staging: Path
    targets: tuple[str, ...]
    provenance: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[_Range, tuple[ClipRecord, ...]]

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

    Args:
        records: the clips, see `data_prep.readers`.
        encoders: the frozen towers.
        settings: how.
        out: directory of the corpus; made if need be.
        problems: what the reader had to say about the tables, for the report.

    Returns:
        What was done; also written beside the streams, as JSON and as text.

    Raises:
        UserError: there is no clip, or two of one name; a stream in `out` comes from other files or another encoder;
            the disk is full; no clip is left.
    """
    out = Path(out)
    started = time.monotonic()
    _check(records, settings)
    provenance = _provenances(records, encoders, settings)
    key = digest(json.dumps([provenance, settings.batch_clips, settings.shard_clips], sort_keys=True).encode())[:16]
    staging = dataset_directory(out) / f".unfinished-{key}"
    plan = staging / "plan.json"
    if plan.is_file():
        targets = tuple(json.loads(plan.read_text(encoding="utf-8")))
    else:
        targets = _targets(out, provenance, settings.overwrite)
    if not targets:
        shutil.rmtree(staging, ignore_errors=True)  # what a kill in the last moment left over
        return load_report(dataset_directory(out), settings.streams) or _report(out, settings, (), records, problems)
    with replacing(plan) as temporary:
        temporary.write_text(json.dumps(targets), encoding="utf-8")
    ranges = _ranges(records, settings.shard_clips) if TEXT in targets else _settled_ranges(out, records)
    job = _Job(out, staging, targets, provenance, ranges)
    waiting = [part for part in ranges if not job.journal(part).is_file()]
    encoded = sum(len(ranges[part]) for part in waiting)
    with _progress(encoded, settings.progress) as on_clip:
        for part in waiting:
            _prepare_range(job, part, encoders, settings, on_clip)
    lines = [_Line.model_validate_json(job.journal(part).read_bytes()) for part in ranges]
    _publish(job, lines)
    report = _report(out, settings, lines, records, problems, job.targets, time.monotonic() - started, encoded)
    report.save(dataset_directory(out))
    plan.unlink()
    shutil.rmtree(staging)
    return report


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
    if len(set(settings.streams)) < len(settings.streams):
        raise UserError(f"prepare.streams names a stream twice: {', '.join(settings.streams)}.")


def _provenances(
    records: Sequence[ClipRecord], encoders: Encoders, settings: PrepareSettings
) -> dict[str, dict[str, Any]]:
    """Provenance of the text and of each stream wanted, as it reads when it comes back from JSON."""
    texts = digest(json.dumps([record.text for record in records]).encode())
    provenance: dict[str, dict[str, Any]] = {TEXT: {"texts": texts, "missing": settings.missing}}
    for name in settings.streams:
        stream = parse_stream(name)
        provenance[name] = {
            **provenance_of(encoders, stream),
            "preprocessing": PREPROCESSING.get(stream.modality),
            "media": _media_digest(records, stream.modality),
        }
    return json.loads(json.dumps(provenance))


def _media_digest(records: Sequence[ClipRecord], modality: str) -> str:
    """Digest of the names and lengths of the files that a modality is read from."""
    sources = ((record.name, record.files.source(modality)) for record in records)
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
) -> None:
    """Encodes the clips of a range, writes its shard of each stream, and then its line in the journal."""
    encoded = encode_clips(
        job.ranges[part],
        job.features,
        encoders,
        missing=settings.missing,
        fixed=job.joins,
        batch=settings.batch_clips,
        threads=settings.decode_threads,
        on_clip=on_clip,
    )
    place = (part.split, part.index, part.count)
    names = [record.name for record in encoded.records]
    entries = {
        stream: write_feature_shard(job.shards(stream), *place, names, features, encoded.present[stream])
        for stream, features in encoded.features.items()
    }
    if not job.joins:
        entries[TEXT] = write_text_shard(job.shards(TEXT), *place, [record.text for record in encoded.records])
    line = _Line(range=part, entries=entries, dropped=encoded.dropped, broken=encoded.broken)
    with replacing(job.journal(part)) as temporary:
        temporary.write_text(line.model_dump_json(), encoding="utf-8")


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
    """Counts from the manifests, problems from the journal."""
    manifests = {stream: read_manifest(out, stream) for stream in (TEXT, *settings.streams)}

    def kept(manifest: Manifest) -> dict[str, int]:
        return {split: sum(entry.records for entry in shards) for split, shards in manifest.splits.items()}

    entries = {name: [entry for shards in it.splits.values() for entry in shards] for name, it in manifests.items()}
    return PrepareReport(
        out=str(out),
        written=written,
        clips=len(records),
        kept=sum(kept(manifests[TEXT]).values()),
        splits=kept(manifests[TEXT]),
        present={
            stream: sum(entry.records - len(entry.absent) for entry in entries[stream]) for stream in settings.streams
        },
        dropped=tuple(name for line in lines for name in line.dropped),
        broken=tuple(problem for line in lines for problem in line.broken),
        tables=tuple(problems),
        megabytes=sum(entry.size for shards in entries.values() for entry in shards) / 1e6,
        seconds=seconds,
        clips_per_second=encoded / max(seconds, 1e-9),
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
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task("prepare", total=clips)
        yield lambda: progress.advance(task)
