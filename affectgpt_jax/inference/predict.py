"""Answers about clips, asked in batches, where one bad clip stops nothing: clips as they lie on disk, and samples of
feature shards.

The language model gets what it got in training: the same readers and towers as in preparation, and features rounded to
the type of the shards.
"""

import dataclasses
import difflib
import functools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.clips import PREPROCESSING
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import QUESTIONS, needs
from affectgpt_jax.data.prompts import question as prompts_question
from affectgpt_jax.data.shard_schema import FEATURE_DTYPE, Stream, parse_stream, read_manifest, stream_directory
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.clip_files import Beside, Item, Source, file_item
from affectgpt_jax.inference.clip_scores import ClipScorer, ClipScores, Scoring
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.reading import Failed, Inputs, ReadingProcesses, failure, read_clip
from affectgpt_jax.inference.runs import Run, model_streams
from affectgpt_jax.inference.shown import as_html, as_text
from affectgpt_jax.inference.subtitles import read_table
from affectgpt_jax.ops.sampling import GREEDY, Sampling
from affectgpt_jax.version import __version__

LONGEST_ANSWER = 1200
"""Tokens of an answer at most, as in the reference (QUIRKS 46)."""

PICTURES = 128
"""Pictures that one call of the vision tower takes at most."""

TOGETHER = 4
"""Batches that are asked together: prompts of like length share a program, and rows that have ended are filled
again."""

KINDS: Mapping[str, str] = {"labels": "ovlabel", "candidates": "onehot_w_candidates", "label": "onehot_wo_candidates"}
"""Other names of kinds of questions (`data.prompts.QUESTIONS`)."""


@dataclass(frozen=True)
class Prediction:
    """An answer with all that it rests on.

    Attributes:
      clip: the file, or its name in a manifest or in shards.
      question: the question as it was put.
      answer: the model's words.
      labels: emotion words read from them by rule; empty where the question asks for no list.
      subtitle: what the prompt gave as said in the clip; `sources` says where it comes from.
      absent: what the clip lacks, and why: modality -> reason.
      sources: modality -> file and places that it was read from.
      notes: what else to know about this answer.
      tokens: length of the answer.
      seconds: reading, and the clip's share of its batch; of the first batch that includes compilation.
      seed: of the draws; greedy answers do not depend on it.
      run: the run's folder.
      step: its checkpoint.
      model: the checkpoint's `runs.fingerprint`; empty if nobody asked for it.
      version: of this program.
      limits: what the answer is not.
      scores: probabilities of labels (`clip_scores.ClipScores.labels`), if they were asked for.
      evidence: how answer and probabilities change without each modality (`clip_scores.ClipScores.evidence`), if that
        was asked for.
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
    seed: int
    run: str
    step: int
    model: str = ""
    version: str = __version__
    limits: str = LIMITS
    scores: Mapping[str, Any] | None = None
    evidence: Mapping[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """As JSON holds it; sources without what is empty, and nothing of scores that were not asked for."""
        said = {name: source.record() for name, source in self.sources.items()}
        record = dataclasses.asdict(self) | {"sources": said}
        return {key: value for key, value in record.items() if value is not None}

    def __str__(self) -> str:
        return as_text(self.clip, self._lines(), self.limits)

    def _repr_html_(self) -> str:
        return as_html(self.clip, self._lines(), self.limits)

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "question", self.question
        yield "answer", self.answer or "(empty)"
        yield from [("labels", ", ".join(self.labels))] if self.labels else []
        yield from [("subtitle", self.subtitle)] if self.subtitle else []
        yield from ((f"no {name}", reason) for name, reason in self.absent.items())
        yield from (("note", note) for note in self.notes)


class How(NamedTuple):
    """How a run is asked.

    Attributes:
      question: the text.
      batch: rows at work at a time.
      max_new: tokens of an answer at most.
      sampling: how tokens are drawn.
      seed: of the draws; those of a clip depend on it and on the clip's place among all.
      model: the checkpoint's `runs.fingerprint`, for the records.
    """

    question: str
    batch: int
    max_new: int
    sampling: Sampling = GREEDY
    seed: int = 0
    model: str = ""

    @property
    def window(self) -> int:
        """Clips that are asked together."""
        return TOGETHER * self.batch


_In = TypeVar("_In")
_Out = TypeVar("_Out")

Ask = Callable[[Sequence[Query]], Sequence[Answer | Rejected]]


class _Asked(NamedTuple):
    """A clip that is ready to be asked about."""

    clip: str
    query: Query
    absent: Mapping[str, str]
    sources: Mapping[str, Source]
    notes: tuple[str, ...]
    seconds: float


def how(config: RunConfig, clips: int, question: str = "labels", **settings: Any) -> How:
    """How some clips are asked about.

    Args:
      config: the run's.
      clips: how many there are: a batch is no larger.
      question: a kind or a text, see `question_text`.
      **settings: of `How`; `batch` is the run's `evaluate.batch` by default, `max_new` the longest answer of its
        training.

    Raises:
      UserError: no such kind of question.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    batch = min(given.pop("batch", config.evaluate.batch), max(clips, 1))
    return How(question_text(question), **({"batch": batch, "max_new": longest_answer(config)} | given))


def predict(
    run: Run,
    clips: Sequence[str | Path | Item],
    question: str = "labels",
    *,
    beside: Beside = Beside(),  # noqa: B008  it is frozen
    first: int = 0,
    encoders: Encoders | None = None,
    answerer: Ask | None = None,
    scoring: Scoring | None = None,
    apart: bool = False,
    **settings: Any,
) -> Iterator[Prediction | Failed]:
    """Ask one question about each of some clips.

    Args:
      run: an opened run.
      clips: media files, whose sound is that of the file, or clips as a manifest names them; each once.
      question: a kind or a text, see `question_text`.
      beside: where to look for what goes with them.
      first: the clip to begin with; a multiple of `How.window`, for a clip's answer to have the same company.
      encoders: the towers; the run's by default.
      answerer: what answers; the run by default.
      scoring: the words whose probabilities records shall hold; none by default.
      apart: clips are read in processes of their own, so that a decoder that crashes costs one clip only.
      **settings: see `how`.

    Yields:
      A prediction or a failure for each clip, in their order.

    Raises:
      UserError: no such kind of question; the run's towers are not there, or are not those that its shards were
        prepared with.
    """
    named = (clip if isinstance(clip, Item) else file_item(Path(clip)) for clip in clips)
    items = list({item.name: item for item in named}.values())
    asked = how(run.config, len(items), question, **settings)
    if len(items) <= first:
        return
    streams = {name: parse_stream(stream) for name, stream in model_streams(run.config).items()}
    if encoders is None:
        encoders = open_encoders(run.config, streams, asked.batch, detects=beside.detect is not None)
    text = needs(run.config.model.mode).text
    if apart:
        read: Any = ReadingProcesses(beside=beside, streams=streams, text=text)
    else:
        tables = functools.cache(read_table)
        read = functools.partial(read_clip, beside=beside, streams=streams, text=text, tables=tables)
    batches = _ahead(read, items[first:], asked.batch, run.config.prepare.decode_threads)
    numbers = iter(range(first, len(items)))
    encoded = (_encoded(asked.question, inputs, numbers, streams, encoders) for inputs in batches)
    windows = ([clip for batch in some for clip in batch] for some in groups(encoded, TOGETHER))
    try:
        yield from _answered(run, asked, windows, answerer, scoring)
    finally:
        if apart:
            batches.close()
            read.close()


def predict_shards(
    run: Run,
    corpus: Corpus,
    question: str = "labels",
    *,
    words: bool = True,
    first: int = 0,
    answerer: Ask | None = None,
    scoring: Scoring | None = None,
    **settings: Any,
) -> Iterator[Prediction | Failed]:
    """Ask one question about each sample of a split of feature shards, for which no tower is needed.

    Args:
      run: an opened run.
      corpus: the split, with the streams of the model; see `runs.open_shards`.
      question: a kind or a text, see `question_text`.
      words: whether the model is told what is said.
      first: the sample to begin with; a multiple of `How.window`.
      answerer: what answers; the run by default.
      scoring: the words whose probabilities records shall hold; none by default.
      **settings: see `how`.

    Yields:
      A prediction or a failure for each sample, in their order. One that cannot be read is called SPLIT[NUMBER].
    """
    asked = how(run.config, len(corpus), question, **settings)
    streams = model_streams(run.config)
    text = needs(run.config.model.mode).text
    read = functools.partial(_read_sample, corpus, streams, asked.question, text, words)
    windows = (
        list(map(read, range(start, min(start + asked.window, len(corpus)))))
        for start in range(first, len(corpus), asked.window)
    )
    yield from _answered(run, asked, windows, answerer, scoring)


def question_text(words: str, **fields: object) -> str:
    """The question that a person means.

    Args:
      words: one of `KINDS`, a kind of `data.prompts.QUESTIONS`, or the text of a question, which has a space or ends
        in "?".
      **fields: what the kind leaves open, such as `candidates` or `low` and `high`.

    Raises:
      UserError: no such kind, or fields that do not belong to it.
    """
    kind = KINDS.get(words, words)
    if kind in QUESTIONS:
        return prompts_question(kind, **fields)
    if fields:
        raise UserError(f"{', '.join(fields)} can only fill in a kind of question, and {words!r} is none")
    if " " not in words.strip() and not words.endswith("?"):
        kinds = (*KINDS, *QUESTIONS)
        near = difflib.get_close_matches(words, kinds, n=1, cutoff=0.0)[0]
        raise UserError(f"no kind of question is called {words!r}; did you mean {near}? Known: {', '.join(kinds)}")
    return words.strip()


def longest_answer(config: RunConfig) -> int:
    """Tokens of an answer at most: those of the longest one of the run's training, and no more than the reference's."""
    return min(config.data.row_targets, config.data.max_length, LONGEST_ANSWER)


def open_encoders(config: RunConfig, streams: Mapping[str, Stream], batch: int, *, detects: bool = False) -> Encoders:
    """Open the towers that a run's streams need.

    Args:
      config: the run's config.
      streams: its streams by modality.
      batch: clips in a batch.
      detects: faces may be detected, instead of stored as they were in training, or the other way about.

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
    encoders = Encoders(
        folders["vision"], folders["audio"], batch=min(largest * batch, PICTURES), dtype=config.prepare.dtype
    )
    for name, stream in streams.items():
        if not (config.data.shards and stream_directory(Path(config.data.shards), stream.name).is_dir()):
            continue
        trained = {"dtype": "float32", **read_manifest(Path(config.data.shards), stream.name).provenance}
        found = encoders.audio_provenance if name == "audio" else encoders.vision_provenance
        expected = {
            "weights": found["weights"],
            "preprocessing": PREPROCESSING[name],
            "dtype": config.prepare.dtype,
        }
        if name == "face" and (detects or "faces" in trained):
            del expected["preprocessing"]
        for key, value in expected.items():
            if trained.get(key, value) != value:
                raise UserError(
                    f"the run learned from {stream.name} of {config.data.shards} with {key} {trained[key]!r}, but a "
                    f"clip would now be read with {value!r} (encoder {found['encoder']}); let the run's config.yaml "
                    "say what its training had (weights, prepare.dtype)"
                )
    return encoders


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def groups(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
    """Items, so many at a time."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _ahead(
    read: Callable[[Item], Inputs | Failed], clips: Sequence[Item], batch: int, threads: int
) -> Generator[list[Inputs | Failed], None, None]:
    """Batches of decoded clips; threads decode the next one meanwhile."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[list[Future[Inputs | Failed]]] = deque()
        for some in groups(clips, batch):
            pending.append([pool.submit(read, clip) for clip in some])
            if len(pending) > 1:
                yield [future.result() for future in pending.popleft()]
        for futures in pending:
            yield [future.result() for future in futures]


def _encoded(
    question: str,
    batch: Sequence[Inputs | Failed],
    numbers: Iterator[int],
    streams: Mapping[str, Stream],
    encoders: Encoders,
) -> list[_Asked | Failed]:
    """A batch of clips, encoded; where it cannot be, those of its clips that can."""
    started = time.perf_counter()
    good = [inputs for inputs in batch if isinstance(inputs, Inputs)]
    features = iter(_apart(lambda some: _encode(some, streams, encoders), good))
    share = (time.perf_counter() - started) / max(len(good), 1)
    made: list[_Asked | Failed] = []
    for inputs, number in zip(batch, numbers, strict=False):
        if isinstance(inputs, Failed):
            made.append(inputs)
            continue
        item, found = inputs.clip.item, next(features)
        if isinstance(found, Exception):
            made.append(failure(item.name, found))
            continue
        query = Query(item.key, inputs.clip.subtitle, question, found, number)
        made.append(_Asked(item.name, query, inputs.absent, inputs.sources, item.notes, inputs.seconds + share))
    return made


def _encode(inputs: Sequence[Inputs], streams: Mapping[str, Stream], encoders: Encoders) -> list[dict[str, np.ndarray]]:
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


def _read_sample(
    corpus: Corpus, streams: Mapping[str, str], question: str, text: bool, words: bool, index: int
) -> _Asked | Failed:
    """A sample of shards, or what is wrong with its records."""
    started = time.perf_counter()
    name = f"{corpus.split}[{index}]"
    try:
        record = corpus.text(index)
        name = record.name
        features, absent = {}, {}
        sources = {modality: Source(f"{corpus.root}, {stream}") for modality, stream in streams.items()}
        for modality, stream in streams.items():
            values, present = corpus.features(stream, [index])
            if present[0]:
                features[modality] = values[0].astype(np.float32)
            else:
                absent[modality] = f"the shards hold none of this sample ({stream})"
                del sources[modality]
    except Exception as error:
        return failure(name, error)
    said = record.subtitle if text and words else ""
    if said:
        sources["text"] = Source(f"{corpus.root}, text")
    elif text:
        absent["text"] = "the shards hold none of this sample" if words else "left out on request"
    return _Asked(
        name, Query(name, said, question, features, index), absent, sources, (), time.perf_counter() - started
    )


# ---------------------------------------------------------------------------------------------------------------------
# Asking


def _apart(work: Callable[[Sequence[_In]], Iterable[_Out]], items: Sequence[_In]) -> list[_Out | Exception]:
    """Work on all of some items; where that fails, on halves of them, so that only what is at fault goes without.

    Raises:
      UserError: the work raises it: it is about more than an item.
      Exception: the work fails with each of several items: it is not they that are at fault.
    """
    found = _halves(work, items)
    if len(found) > 1 and all(isinstance(each, Exception) for each in found):
        raise next(each for each in found if isinstance(each, Exception))
    return found


def _halves(work: Callable[[Sequence[_In]], Iterable[_Out]], items: Sequence[_In]) -> list[_Out | Exception]:
    if not items:
        return []
    try:
        return list(work(items))
    except UserError:
        raise
    except Exception as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return [*_halves(work, items[:middle]), *_halves(work, items[middle:])]


def _answered(
    run: Run,
    asked: How,
    windows: Iterable[Sequence[_Asked | Failed]],
    answerer: Ask | None,
    scoring: Scoring | None,
) -> Iterator[Prediction | Failed]:
    """Answers window by window, in order."""
    if answerer is None:
        answerer = Answerer(run, batch=asked.batch, max_new=asked.max_new, sampling=asked.sampling, seed=asked.seed)
    scorer = None
    if scoring is not None:
        scorer = ClipScorer(run, scoring, answerer, batch=asked.batch, max_new=asked.max_new)
    for window in windows:
        started = time.perf_counter()
        checked = [_finite(clip) if isinstance(clip, _Asked) else clip for clip in window]
        queries = [clip.query for clip in checked if isinstance(clip, _Asked)]
        answers = _apart(answerer, queries)
        good = [query for query, answer in zip(queries, answers, strict=True) if isinstance(answer, Answer)]
        scores = iter([] if scorer is None else _apart(scorer, good))
        found = iter(
            [(answer, next(scores, None)) if isinstance(answer, Answer) else (answer, None) for answer in answers]
        )
        share = (time.perf_counter() - started) / max(len(queries), 1)
        for clip in checked:
            yield clip if isinstance(clip, Failed) else _outcome(run, asked, share, clip, *next(found))


def _finite(clip: _Asked) -> _Asked | Failed:
    bad = [name for name, values in clip.query.features.items() if not np.isfinite(values).all()]
    return Failed(clip.clip, f"its features of {' and '.join(bad)} are not finite numbers") if bad else clip


def _outcome(
    run: Run,
    asked: How,
    share: float,
    clip: _Asked,
    answer: Answer | Rejected | Exception,
    scores: ClipScores | Exception | None,
) -> Prediction | Failed:
    if isinstance(answer, Rejected):
        return Failed(clip.clip, answer.reason)
    for found in (answer, scores):
        if isinstance(found, Exception):
            return failure(clip.clip, found)
    assert isinstance(answer, Answer)
    assert not isinstance(scores, Exception)
    cut = f"cut off after {asked.max_new} tokens" if answer.tokens >= asked.max_new else ""
    return Prediction(
        clip=clip.clip,
        question=asked.question,
        answer=answer.text,
        labels=tuple(answer.labels),
        subtitle=clip.query.subtitle,
        absent=clip.absent,
        sources=clip.sources,
        notes=tuple(note for note in (*clip.notes, answer.note, cut) if note),
        tokens=answer.tokens,
        seconds=round(clip.seconds + share, 3),
        seed=asked.seed,
        run=str(run.folder),
        step=run.step,
        model=asked.model,
        scores=None if scores is None else scores.labels,
        evidence=None if scores is None else scores.evidence,
    )
