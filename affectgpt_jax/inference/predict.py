"""Answers about clips as they lie on disk: read, encoded and asked in batches, where one bad clip stops nothing.

The language model gets what it got in training: the same readers and towers as in preparation, and features rounded to
the type of the shards.
"""

import dataclasses
import difflib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.clips import PREPROCESSING, read_modality
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.media import MediaError
from affectgpt_jax.data.prompts import QUESTIONS, needs
from affectgpt_jax.data.prompts import question as prompts_question
from affectgpt_jax.data.shard_schema import FEATURE_DTYPE, Stream, parse_stream, read_manifest, stream_directory
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.clip_files import Clip, Source, find_clip, places, read_subtitles
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.inference.runs import Run, model_streams

LIMITS = "A statistical guess at how a clip may come across: not a diagnosis, and no basis for decisions about people."
"""Goes with every answer."""

LONGEST_ANSWER = 1200
"""Tokens of an answer at most, as in the reference (QUIRKS 46)."""

PICTURES = 128
"""Pictures that one call of the vision tower takes at most."""


@dataclass(frozen=True)
class Prediction:
    """An answer with all that it rests on.

    Attributes:
      clip: the file.
      question: the question as it was put.
      answer: the model's words.
      labels: emotion words read from them by rule; empty where the question asks for no list.
      subtitle: what the prompt gave as said in the clip.
      absent: what the clip lacks, and why: modality -> reason.
      sources: modality -> file and places that it was read from.
      notes: what else to know about this answer.
      tokens: length of the answer.
      seconds: reading, and the clip's share of its batch; of the first batch that includes compilation.
      run: the run's folder.
      step: its checkpoint.
      limits: what the answer is not.
    """

    clip: str
    question: str
    answer: str
    labels: tuple[str, ...]
    subtitle: str
    absent: Mapping[str, str]
    sources: Mapping[str, Source]
    notes: tuple[str, ...]
    tokens: int
    seconds: float
    run: str
    step: int
    limits: str = LIMITS

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Failed:
    """A clip without an answer.

    Attributes:
      clip: the file.
      error: what is wrong with it.
    """

    clip: str
    error: str

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


class _Inputs(NamedTuple):
    """A clip, decoded."""

    clip: Clip
    media: dict[str, np.ndarray]
    absent: dict[str, str]
    sources: dict[str, Source]
    seconds: float


def predict(
    run: Run,
    clips: Sequence[str | Path],
    question: str = "labels",
    *,
    subtitle: str | None = None,
    faces: str | Path | None = None,
    batch: int | None = None,
    max_new: int | None = None,
    encoders: Encoders | None = None,
    answerer: Callable[[Sequence[Query]], Sequence[Answer | Rejected]] | None = None,
) -> Iterator[Prediction | Failed]:
    """Ask one question about each of some clips.

    Args:
      run: an opened run.
      clips: media files; the sound is that of the file.
      question: a kind or a text, see `question_text`.
      subtitle: what is said in all of the clips; None looks it up in the corpus that a clip lies in.
      faces: face crops of all of the clips, or a folder of crops by name; None looks in the clip's corpus.
      batch: clips in a batch; the run's `evaluate.batch` by default, and never more than there are.
      max_new: tokens of an answer at most; by default the longest answer of the run's training.
      encoders: the towers; the run's by default.
      answerer: what answers; the run by default.

    Yields:
      A prediction or a failure for each clip, in their order, batch by batch.

    Raises:
      UserError: no such kind of question; the run's towers are not there, or are not those that its shards were
        prepared with.
    """
    paths = list(dict.fromkeys(map(Path, clips)))
    question = question_text(question)
    if not paths:
        return
    config = run.config
    streams = {name: parse_stream(stream) for name, stream in model_streams(config).items()}
    batch = min(batch or config.evaluate.batch, len(paths))
    max_new = max_new or longest_answer(config)
    if encoders is None:
        encoders = open_encoders(config, streams, batch)
    if answerer is None:
        answerer = Answerer(run, batch=batch, max_new=max_new)
    subtitles = functools.cache(read_subtitles)

    def read(path: Path) -> _Inputs | Failed:
        try:
            started = time.perf_counter()
            clip = find_clip(path, subtitle, faces, subtitles)
            return _decode(clip, streams, needs(config.model.mode).text, started)
        except (UserError, OSError, ValueError) as error:  # what a decoding library lets through, too
            return Failed(str(path), str(error).removeprefix(f"{path}: "))

    for read_clips in _ahead(read, paths, batch, config.prepare.decode_threads):
        started = time.perf_counter()
        good = [inputs for inputs in read_clips if isinstance(inputs, _Inputs)]
        features = _encode(good, streams, encoders)
        queries = [
            Query(inputs.clip.path.stem, inputs.clip.subtitle, question, found)
            for inputs, found in zip(good, features, strict=True)
        ]
        answers = iter(zip(good, answerer(queries) if queries else (), strict=True))
        share = (time.perf_counter() - started) / max(len(good), 1)
        for inputs in read_clips:
            yield inputs if isinstance(inputs, Failed) else _outcome(run, question, max_new, share, *next(answers))


def question_text(words: str, **fields: object) -> str:
    """The question that a person means.

    Args:
      words: "labels", a kind of `data.prompts.QUESTIONS`, or the text of a question, which has a space or ends in "?".
      **fields: what the kind leaves open, such as `candidates` or `low` and `high`.

    Raises:
      UserError: no such kind, or fields that do not belong to it.
    """
    kind = "ovlabel" if words == "labels" else words
    if kind in QUESTIONS:
        return prompts_question(kind, **fields)
    if fields:
        raise UserError(f"{', '.join(fields)} can only fill in a kind of question, and {words!r} is none")
    if " " not in words.strip() and not words.endswith("?"):
        kinds = ("labels", *QUESTIONS)
        near = difflib.get_close_matches(words, kinds, n=1, cutoff=0.0)[0]
        raise UserError(f"no kind of question is called {words!r}; did you mean {near}? Known: {', '.join(kinds)}")
    return words.strip()


def longest_answer(config: RunConfig) -> int:
    """Tokens of an answer at most: those of the longest one of the run's training, and no more than the reference's."""
    return min(config.data.row_targets, config.data.max_length, LONGEST_ANSWER)


def open_encoders(config: RunConfig, streams: Mapping[str, Stream], batch: int) -> Encoders:
    """Open the towers that a run's streams need.

    Args:
      config: the run's config.
      streams: its streams by modality.
      batch: clips in a batch.

    Raises:
      UserError: the config names no folder for one of them, or the run's shards, where they are at hand, were made by
        another encoder or with another preprocessing.
    """
    wanted = {"audio" if name == "audio" else "vision" for name in streams}
    folders = {name: getattr(config.weights, name) if name in wanted else None for name in ("vision", "audio")}
    for name in sorted(wanted):
        if not folders[name]:
            raise UserError(
                f"weights.{name} is not set in the run's config.yaml; name the folder of the {name} encoder"
            )
    largest = max((stream.count for stream in streams.values()), default=1)
    encoders = Encoders(folders["vision"], folders["audio"], batch=min(largest * batch, PICTURES))
    for name, stream in streams.items():
        if not (config.data.shards and stream_directory(Path(config.data.shards), stream.name).is_dir()):
            continue
        trained = read_manifest(Path(config.data.shards), stream.name).provenance
        found = encoders.audio_provenance if name == "audio" else encoders.vision_provenance
        for key, value in {"weights": found["weights"], "preprocessing": PREPROCESSING[name]}.items():
            if trained.get(key, value) != value:
                raise UserError(
                    f"the run learned from {stream.name} of {config.data.shards} with {key} {trained[key]!r}, but a "
                    f"clip would now be read with {value!r} (encoder {found['encoder']}); name the encoder of the "
                    "training in the run's config.yaml"
                )
    return encoders


def _ahead(
    read: Callable[[Path], _Inputs | Failed], clips: Sequence[Path], batch: int, threads: int
) -> Iterator[list[_Inputs | Failed]]:
    """Batches of decoded clips; threads decode the next one meanwhile."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[list[Future[_Inputs | Failed]]] = deque()
        for start in range(0, len(clips), batch):
            pending.append([pool.submit(read, clip) for clip in clips[start : start + batch]])
            if len(pending) > 1:
                yield [future.result() for future in pending.popleft()]
        for futures in pending:
            yield [future.result() for future in futures]


def _decode(clip: Clip, streams: Mapping[str, Stream], text: bool, started: float) -> _Inputs:
    """Read what the streams need of a clip, and say what it lacks.

    Raises:
      MediaError: a file is broken, or there is nothing to go by.
    """
    media: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for name, stream in streams.items():
        found = read_modality(clip.files, stream)
        if found is None:
            lacking = "sound track" if name == "audio" else "picture"
            absent[name] = clip.absent.get(name, f"the file has no {lacking}")
        else:
            media[name], sources[name] = found, places(clip.files, stream)
    if text and clip.subtitle:
        sources["text"] = Source(clip.subtitle_from)
    elif text:
        absent["text"] = clip.absent["text"]
    if not media and not (text and clip.subtitle):
        raise MediaError(clip.path, "there is nothing to go by: " + "; ".join(absent.values()))
    return _Inputs(clip, media, absent, sources, time.perf_counter() - started)


def _encode(
    inputs: Sequence[_Inputs], streams: Mapping[str, Stream], encoders: Encoders
) -> list[dict[str, np.ndarray]]:
    """Features of each clip, float32 [t, F] by modality, as they would come out of shards."""
    features: list[dict[str, np.ndarray]] = [{} for _ in inputs]
    for name in streams:
        where = [i for i, item in enumerate(inputs) if name in item.media]
        if not where:
            continue
        media = np.stack([inputs[i].media[name] for i in where])
        if name == "audio":
            found = encoders.audio(media)
        else:
            found = encoders.vision(media.reshape(-1, *media.shape[2:])).reshape(*media.shape[:2], -1)
        for i, one in zip(where, found.astype(FEATURE_DTYPE).astype(np.float32), strict=True):
            features[i][name] = one
    return features


def _outcome(
    run: Run, question: str, max_new: int, share: float, inputs: _Inputs, answer: Answer | Rejected
) -> Prediction | Failed:
    clip = inputs.clip
    if isinstance(answer, Rejected):
        return Failed(str(clip.path), answer.reason)
    cut = f"cut off after {max_new} tokens" if answer.tokens >= max_new else ""
    return Prediction(
        clip=str(clip.path),
        question=question,
        answer=answer.text,
        labels=tuple(answer.labels),
        subtitle=clip.subtitle,
        absent=inputs.absent,
        sources=inputs.sources,
        notes=tuple(note for note in (answer.note, cut) if note),
        tokens=answer.tokens,
        seconds=round(inputs.seconds + share, 3),
        run=str(run.folder),
        step=run.step,
    )
