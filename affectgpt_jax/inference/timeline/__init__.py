"""Emotions over the time of a long recording: windows that slide over it, each asked about as a clip of its own.

A window is what training would have seen of a clip cut out there: frames spread evenly over it, its sound cut and
normalised within it, the words of the cues that overlap it. Where a detector sees several people, each has a face of
their own in each window, and a curve; pictures, sound and words are shared.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.long_media import survey
from affectgpt_jax.data.media import MediaError
from affectgpt_jax.data.prompts import needs, question
from affectgpt_jax.data.shard_schema import digest, file_digest, parse_stream
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answer_file import Record, begin, keep_lines
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.calibration import label_record, probabilities
from affectgpt_jax.inference.clip_files import Beside, Source, file_item, find_clip
from affectgpt_jax.inference.clip_scores import Scale
from affectgpt_jax.inference.label_scores import DIGITS, LabelScorer, Scores
from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.predict import TOGETHER, How, groups, open_encoders
from affectgpt_jax.inference.runs import Run, Trained, model_streams
from affectgpt_jax.inference.subtitles import Cue, find_side_car, read_cues, read_table, words_between
from affectgpt_jax.inference.timeline.features import Find, Inputs, Report, Seen, Towers, fingerprint, key
from affectgpt_jax.inference.timeline.windows import Window, windows
from affectgpt_jax.version import __version__
from affectgpt_jax.weights.towers import weights_hash

CACHE = "cache"
"""Below the output folder."""

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Settings:
    """What is asked, and of what.

    Attributes:
      how: the question, and how it is asked.
      window: length of a window in seconds.
      hop: from one window to the next, in seconds.
      subtitles: a file of subtitles, or a folder of them; None looks beside the recording.
      words: whether the model is told what is said.
      faces: stored crops, or a folder of them; None looks in the recording's corpus.
      stored: whether stored crops are used where there are any.
      find: detects faces where there are none; None leaves them absent.
      provenance: what detects.
      valence: the least and the largest number that the answer can be; None if it is none.
    """

    how: How
    window: float = 4.0
    hop: float = 2.0
    subtitles: Path | None = None
    words: bool = True
    faces: Path | None = None
    stored: bool = True
    find: Find | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    valence: tuple[float, float] | None = None


class Row(NamedTuple):
    """A curve's point: a window, for a person ("" where nobody of several is seen)."""

    window: int
    person: str


class Timeline(NamedTuple):
    """What was found.

    Attributes:
      video: the recording.
      seconds: its length.
      pictures: whether it has any.
      records: one for each window and person, in order; see docs/timeline.md.
      words: float64 [n, V], the probabilities of the vocabulary by record; not a number where it was not asked.
      limits: of valences.
      problems: what of the recording could not be read.
      run: the run's folder, and the checkpoint's step.
    """

    video: Path
    seconds: float
    pictures: bool
    records: list[Record]
    words: np.ndarray
    limits: tuple[float, float]
    problems: list[str]
    run: str
    step: int


def make_timeline(
    trained: Trained,
    opened: Callable[[], Run],
    model: str,
    video: Path,
    folder: Path,
    settings: Settings,
    scale: Scale,
    *,
    towers: Callable[[], Towers] | None = None,
    stage: Callable[[str], Report] = lambda title: lambda done, total: None,
) -> Timeline:
    """Ask about all windows of a recording, going on where an earlier attempt ended.

    Args:
      trained: the checkpoint.
      opened: opens it with its base; called if there is anything left to ask.
      model: the checkpoint's `runs.fingerprint`.
      video: the recording.
      folder: features and answers are kept in its folder cache, each under a name that stands for all that it depends
        on.
      settings: what is asked.
      scale: the labels that are scored, and how scores become probabilities.
      towers: opens the towers, if anything is left to encode; those of the run by default.
      stage: begins a part of the work, and gives what is told how far it is.

    Raises:
      MediaError: the recording cannot be opened.
      UserError: subtitles or crops that cannot be used, a run without towers, or a folder that cannot be written.
    """
    if not video.is_file():
        raise MediaError(video, "there is no such file")
    config = trained.config
    streams = {name: parse_stream(stream) for name, stream in model_streams(config).items()}
    if "image" in streams:
        raise UserError(
            f"the run reads single pictures (mode {config.model.mode!r}); a timeline needs one that does not"
        )
    told = needs(config.model.mode).text
    cues, cue_file, no_words = _cues(video, settings) if told else ([], "", "")
    crops = _crops(video, settings) if "face" in streams else None
    recording = survey(video)
    parts = windows(recording.seconds, settings.window, settings.hop)
    faces = {"crops": file_digest(crops)} if crops else settings.provenance if settings.find else {}
    weights = {
        name: weights_hash(place)
        for name, place in (("vision", config.weights.vision), ("audio", config.weights.audio))
        if place and any((stream == "audio") == (name == "audio") for stream in streams)
    }
    seen = fingerprint(video, settings.window, settings.hop, streams, weights, faces)
    inputs = Inputs(
        _made(folder / CACHE / f"features-{key(seen)}", seen),
        video,
        recording,
        parts,
        streams,
        crops=crops,
        find=None if crops else settings.find,
        detector=str(settings.provenance.get("detector", "")),
        threads=config.prepare.decode_threads,
    )
    if not inputs.complete:
        detects = crops is None and settings.find is not None
        opened_towers = towers() if towers else open_encoders(config, streams, settings.how.batch, detects=detects)
        inputs.encode(opened_towers, stage("pictures and sound"))
    rows = [Row(window, person) for window in range(len(parts)) for person in inputs.people(window)]

    def query(row: Row) -> tuple[Query, Seen]:
        found = inputs.seen(row.window, row.person)
        said = words_between(cues, *parts[row.window])
        name = f"{clock(parts[row.window].start)} {row.person}".strip()
        return Query(name, said, settings.how.question, found.features), found

    facts = {
        "model": model,
        "step": trained.step,
        "version": __version__,
        "features": seen,
        "rows": digest(repr((parts, rows)).encode()),
        "question": settings.how.question,
        "max_new": settings.how.max_new,
        "batch": settings.how.batch,
        "labels": scale.vocabulary.identity,
        "words": digest(repr(cues).encode()),
    }
    kept = _ask(folder / CACHE / f"answers-{key(facts)}.jsonl", facts, rows, query, opened, scale, settings, stage)
    common = {"video": str(video), "run": trained.source, "step": trained.step, "model": model}
    lacking = no_words or f"no cue of {cue_file} is shown here"
    records = []
    for row, found in zip(rows, kept, strict=True):
        asked, has = query(row)
        sources, absent = dict(has.sources), dict(has.absent)
        if told and asked.subtitle:
            sources["text"] = Source(cue_file)
        elif told:
            absent["text"] = lacking
        records.append(
            _record(parts[row.window], row.person, asked, sources, absent, found, scale, settings)
            | common
            | {"version": __version__, "limits": LIMITS}
        )
    nothing = np.full(len(scale.vocabulary.words), np.nan)
    words = np.stack(
        [
            probabilities(np.array(found["scores"]), scale.temperature) if "scores" in found else nothing
            for found in kept
        ]
    )
    pictures = len(recording.times) > 0
    limits = settings.valence or (-1.0, 1.0)
    return Timeline(
        video, recording.seconds, pictures, records, words, limits, inputs.problems, trained.source, trained.step
    )


def number_in(answer: str, low: float, high: float) -> float | None:
    """The number that an answer gives; None where it gives none, or one that was not to be given."""
    found = _NUMBER.search(answer.replace("\u2212", "-"))
    number = float(found.group()) if found else None
    return None if number is None or not low <= number <= high else number


# ---------------------------------------------------------------------------------------------------------------------
# What goes with a recording


def _cues(video: Path, settings: Settings) -> tuple[list[Cue], str, str]:
    """What is said, the file that says it, and if there is none, why."""
    if not settings.words:
        return [], "", "left out on request"
    place = settings.subtitles
    if place is None or place.is_dir():
        folder = place or video.absolute().parent
        file = find_side_car(folder, video.stem)
        if file is None:
            return [], "", f"{folder} has no {video.stem}.srt or {video.stem}.vtt; pass one with --subtitles FILE"
        place = file
    if place.suffix.lower() not in (".srt", ".vtt"):
        raise UserError(f"--subtitles {place}: expected .srt or .vtt, which say when something is said")
    return read_cues(place), str(place), ""


def _crops(video: Path, settings: Settings) -> Path | None:
    """Stored face crops of a recording."""
    beside = Beside(words=False, faces=settings.faces, stored=settings.stored)
    return find_clip(file_item(video), beside, read_table).files.faces


def _made(folder: Path, facts: Mapping[str, Any]) -> Path:
    """A folder for what depends on facts, which a file in it tells."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written ({error.strerror})") from error
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Asking


def _ask(
    file: Path,
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    query: Callable[[Row], tuple[Query, Seen]],
    opened: Callable[[], Run],
    scale: Scale,
    settings: Settings,
    stage: Callable[[str], Report],
) -> list[Record]:
    """Answers and scores of all rows; those of the file, and what is left, in the company that they would have had."""
    size = TOGETHER * settings.how.batch
    done = begin(file, facts, "remove the file")
    if len(done) < len(rows):
        done = done[: len(done) // size * size]
        keep_lines(file, 1 + len(done))
        report = stage("windows")
        report(len(done), len(rows))
        run = opened()
        scorer = LabelScorer(run, scale.vocabulary.words, batch=settings.how.batch, max_new=settings.how.max_new)
        answerer = Answerer(run, batch=settings.how.batch, max_new=settings.how.max_new)
        with file.open("a", encoding="utf-8") as out:
            for some in groups(rows[len(done) :], size):
                queries = [query(row)[0] for row in some]
                labels = scorer([one._replace(question=question("ovlabel")) for one in queries])
                for score, answer in zip(labels, answerer(queries), strict=True):
                    done.append(_found(score, answer))
                    out.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                out.flush()
                report(len(done), len(rows))
    return done


def _found(scores: Scores | Rejected, answer: Answer | Rejected) -> Record:
    if isinstance(scores, Rejected) or isinstance(answer, Rejected):
        return {"rejected": next(one.reason for one in (answer, scores) if isinstance(one, Rejected))}
    if not np.isfinite(scores.logs).all():
        return {"rejected": "its label scores are not finite numbers"}
    return {
        "scores": [round(x, DIGITS) for x in scores.logs.tolist()],
        "answer": answer.text,
        "labels": list(answer.labels),
        "tokens": answer.tokens,
        "note": answer.note,
    }


def _record(
    window: Window,
    person: str,
    asked: Query,
    sources: Mapping[str, Source],
    absent: Mapping[str, str],
    found: Record,
    scale: Scale,
    settings: Settings,
) -> Record:
    """What is said about a window and a person."""
    record: Record = {"start": window.start, "end": window.end, "person": person, "question": settings.how.question}
    if "rejected" in found:
        record |= {"error": found["rejected"], "answer": "", "answer_labels": [], "labels": []}
    else:
        cut = f"cut off after {settings.how.max_new} tokens" if found["tokens"] >= settings.how.max_new else ""
        record |= {"answer": found["answer"], "answer_labels": found["labels"]}
        if settings.valence is not None:
            record["valence"] = number_in(found["answer"], *settings.valence)
        record |= label_record(np.array(found["scores"]), scale.vocabulary, scale.temperature, scale.threshold)
        record |= {"notes": [note for note in (found["note"], cut) if note], "tokens": found["tokens"]}
    said = {name: source.record() for name, source in sources.items()}
    return record | {"words": asked.subtitle, "sources": said, "absent": dict(absent)}


def clock(seconds: float) -> str:
    """A time as players show it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
