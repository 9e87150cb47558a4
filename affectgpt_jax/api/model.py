"""A trained model as an object: opened once, asked about clips as often as one likes."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from affectgpt_jax.api.clips import POLICIES, check_single, find_items, find_shards, look
from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import Base
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.sources import open_source
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.calibration import TOP_K
from affectgpt_jax.inference.clip_files import Beside, Item
from affectgpt_jax.inference.clip_scores import open_scale
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.predict import (
    PICTURES,
    Ask,
    Failed,
    How,
    Prediction,
    how,
    open_encoders,
    predict,
    predict_shards,
    question_text,
)
from affectgpt_jax.inference.runs import (
    Run,
    Step,
    Trained,
    fingerprint,
    make_placement,
    model_streams,
    open_base,
    open_shards,
    with_base,
)
from affectgpt_jax.inference.scored import ScoredLabels, Scorer, score_clips
from affectgpt_jax.inference.transcription import Transcriber
from affectgpt_jax.ops.sampling import GREEDY, Sampling
from affectgpt_jax.unibench.table_cache import load_table

Clip = str | Path | Item
"""A media file, or a clip with files of its own."""

Clips = Clip | Iterable[Clip]
"""Clips, folders of them, patterns, manifests; or alone the folder or address of feature shards."""


_Answer = TypeVar("_Answer", Prediction, ScoredLabels)


class _Named(NamedTuple):
    """What is asked about.

    Attributes:
      clips: clips with media files, or a split of feature shards.
      beside: where to look for what goes with them.
    """

    clips: list[Item] | Corpus
    beside: Beside


class AffectGPT:
    """A trained model, ready to be asked about clips.

    What it says is a statistical guess at how a clip may come across: not a diagnosis, and no basis for decisions about
    people. Every answer bears these words as `limits`.
    """

    limits = LIMITS

    def __init__(self, trained: Trained) -> None:
        """Read the base model of a checkpoint; see `load`."""
        self.trained = trained
        """The checkpoint, without the base model."""
        self.run: Run = with_base(trained, open_base(trained))
        """What the functions of `affectgpt_jax.inference` take."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        step: Step = None,
        mesh: str | MeshConfig | None = None,
        weights: Base | None = None,
        cache: Base | None = None,
        overrides: Sequence[str] = (),
    ) -> Self:
        """Open a model.

        Args:
          path: run folder, folder of `affectgpt export`, PEFT adapter of one, or the authors' `.pth`.
          step: checkpoint of a run: a step, or "best" by validation; the newest by default.
          mesh: devices along its axes, such as "data=4,tensor=2"; by default all devices take a part of the clips.
          weights: "int8" rounds the kernels of the language model's layers while they are read, whatever the run was
            trained with; "float" does not; by default as the run says.
          cache: the same of the keys and values of answers.
          overrides: settings of what is no run folder, such as "weights.language=DIR".

        Raises:
          UserError: nothing there, files missing or damaged, or a mesh that fits neither devices nor model.
        """
        return cls(open_source(path, step, make_placement(mesh, weights, cache), overrides=overrides))

    def __repr__(self) -> str:
        return f"AffectGPT({str(self.run.folder)!r}, step={self.run.step})"

    @property
    def config(self) -> RunConfig:
        """The run's settings, as the model is held."""
        return self.run.config

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model: changes with any number, its settings, tokenizer and base. Answers bear it once it has
        been asked for."""
        return fingerprint(self.trained)

    @property
    def _known_fingerprint(self) -> str:
        """For records: empty until somebody asks for it, as it reads all weights."""
        return self.__dict__.get("fingerprint", "")

    # ------------------------------------------------------------------------------------------------------------------
    # Answers in free words

    def predict(
        self,
        clip: Clip,
        question: str = "labels",
        *,
        subtitle: str | None = None,
        faces: str | Path | None = None,
        max_new: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        **fields: object,
    ) -> Prediction:
        """Ask a question about a clip.

        Args:
          clip: a media file, or a manifest that names one clip.
          question: "labels", "description", "sentiment", another kind (docs/predict.md), or a text of your own.
          subtitle: what is said in it; by default what lies beside it. "" tells the model nothing.
          faces: file of face crops, or "files", "detect" or "files_or_detect"; the run's by default.
          max_new: tokens of an answer at most.
          sampling: how tokens are drawn; by default the likeliest are taken.
          seed: of the draws.
          **fields: what a kind of question leaves open, such as `candidates`.

        Raises:
          UserError: there is no answer about this clip; says why.
        """
        asked = {"max_new": max_new, "sampling": sampling, "seed": seed}
        named = self._find(clip, subtitle=subtitle, faces=faces)
        return _only(self._outcomes(named, question_text(question, **fields), asked), named)

    def predict_many(
        self,
        clips: Clips,
        question: str = "labels",
        *,
        split: str | None = None,
        subtitles: str | Path | None = None,
        words: bool = True,
        faces: str | Path | None = None,
        detector: str | None = None,
        transcribe: Transcriber | None = None,
        batch: int | None = None,
        max_new: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        **fields: object,
    ) -> Iterator[Prediction | Failed]:
        """Ask a question about each of many clips, in batches.

        Args:
          clips: files, folders, patterns and manifests; or feature shards, for which no encoder is needed.
          question: as `predict`.
          split: of feature shards; the run's `evaluate.split` by default.
          subtitles: table, or folder of subtitles; by default what lies beside each clip.
          words: whether the model is told what is said.
          faces: folder of face crops, or as `predict`.
          detector: YuNet's ONNX file; the run's by default.
          transcribe: writes down what is said where nothing else tells.
          batch: clips at a time; the run's `evaluate.batch` by default.
          max_new: as `predict`.
          sampling: as `predict`.
          seed: as `predict`; a clip's draws also depend on its place among all.
          **fields: as `predict`.

        Returns:
          A prediction for each clip, in their order, as they are ready; `Failed`, with the reason, for one that has
          none. One bad clip stops nothing.

        Raises:
          UserError: no such question or shards, or options that contradict each other.
        """
        named = self._find(
            clips,
            split=split,
            subtitles=subtitles,
            words=words,
            faces=faces,
            detector=detector,
            transcribe=transcribe,
        )
        asked = {"batch": batch, "max_new": max_new, "sampling": sampling, "seed": seed}
        return self._outcomes(named, question_text(question, **fields), asked)

    def stream(
        self,
        clip: Clip,
        question: str = "labels",
        *,
        subtitle: str | None = None,
        faces: str | Path | None = None,
        max_new: int | None = None,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        **fields: object,
    ) -> Iterator[str]:
        """Ask a question about a clip; yields the answer of `predict` in pieces while it is written.

        Arguments and errors are those of `predict`. The pieces are plain text; what they are not is `limits`.
        """
        named = self._find(clip, subtitle=subtitle, faces=faces)
        asked: list[Query] = []

        def keep(queries: Sequence[Query]) -> list[Answer | Rejected]:
            asked.extend(queries)
            return [Answer(query.name, "", [], (), 0) for query in queries]

        _only(self._outcomes(named, question_text(question, **fields), {}, keep), named)
        way = how(self.config, 1, max_new=max_new, sampling=sampling, seed=seed)
        return Answerer(self.run, batch=1, max_new=way.max_new, sampling=sampling, seed=seed).stream(asked[0])

    # ------------------------------------------------------------------------------------------------------------------
    # Labels by their scores

    def score(
        self,
        clip: Clip,
        labels: Iterable[str] | None = None,
        *,
        subtitle: str | None = None,
        faces: str | Path | None = None,
        without: str = "",
        threshold: float | None = None,
        top_k: int = TOP_K,
    ) -> ScoredLabels:
        """How likely each of some labels is for a clip.

        Args:
          clip: as `predict`.
          labels: two words or more; by default those that the run was calibrated with, else those of the emotion
            wheels. A calibration counts only for its own words.
          subtitle: as `predict`.
          faces: as `predict`.
          without: stream that the model is not given, such as "face" or "audio", or "text": what it then finds likely
            tells what the labels rest on.
          threshold: what a label's support must reach to be given; by default the calibration's.
          top_k: labels that are given at most.

        Raises:
          UserError: there are no scores of this clip, or a label is none; says why.
        """
        named = self._find(clip, subtitle=subtitle, faces=faces)
        return _only(self._scores(named, labels, None, without, threshold, top_k), named)

    def score_many(
        self,
        clips: Clips,
        labels: Iterable[str] | None = None,
        *,
        split: str | None = None,
        subtitles: str | Path | None = None,
        words: bool = True,
        faces: str | Path | None = None,
        detector: str | None = None,
        transcribe: Transcriber | None = None,
        batch: int | None = None,
        without: str = "",
        threshold: float | None = None,
        top_k: int = TOP_K,
    ) -> Iterator[ScoredLabels | Failed]:
        """How likely each of some labels is for each of many clips; arguments as `predict_many` and `score`.

        Returns:
          Labels for each clip, in their order, or `Failed`.

        Raises:
          UserError: as `predict_many`, or a label is none.
        """
        named = self._find(
            clips,
            split=split,
            subtitles=subtitles,
            words=words,
            faces=faces,
            detector=detector,
            transcribe=transcribe,
        )
        return self._scores(named, labels, batch, without, threshold, top_k)

    def _scores(
        self,
        named: _Named,
        labels: Iterable[str] | None,
        batch: int | None,
        without: str,
        threshold: float | None,
        top_k: int,
    ) -> Iterator[ScoredLabels | Failed]:
        if isinstance(labels, str):
            raise UserError(f"labels={labels!r}: expected words, such as ['happy', 'sad']")
        chosen = None if labels is None else list(labels)
        scale = open_scale(self.trained, lambda: self.fingerprint, load_table(), chosen)
        if threshold is not None:
            scale = scale._replace(threshold=threshold)
        way = self._how(named, "labels", {"batch": batch})
        scorer = Scorer(self.run, scale.vocabulary.words, batch=way.batch, max_new=way.max_new, lacking=without)
        ask = partial(self._outcomes, named, "labels", {"batch": batch})
        return score_clips(ask, scorer, scale, top_k, self._known_fingerprint)

    # ------------------------------------------------------------------------------------------------------------------
    # What is asked about

    def _find(
        self,
        clips: Clips,
        *,
        split: str | None = None,
        subtitle: str | None = None,
        subtitles: str | Path | None = None,
        words: bool = True,
        faces: str | Path | None = None,
        detector: str | None = None,
        transcribe: Transcriber | None = None,
    ) -> _Named:
        """The clips, and where to look for what goes with them."""
        named = [clips] if isinstance(clips, str | Path | Item) else list(clips)
        if shards := find_shards([str(clip) for clip in named if not isinstance(clip, Item)]):
            others = {"subtitle": subtitle, "subtitles": subtitles, "faces": faces, "transcribe": transcribe}
            if given := [name for name, value in others.items() if value is not None]:
                raise UserError(f"{given[0]} goes with media files; feature shards hold what there is")
            # A record that is damaged is reported when it is read, and costs itself only.
            corpus = open_shards(self.config, split or self.config.evaluate.split, shards, verify=False)
            return _Named(corpus, Beside(words=words))
        if split is not None:
            raise UserError(f"split={split!r} goes with feature shards")
        items = [clip for clip in named if isinstance(clip, Item)]
        items += find_items(str(clip) for clip in named if not isinstance(clip, Item))
        items = list({item.name: item for item in items}.values())
        where = None if subtitles is None else Path(subtitles)
        crops = None if faces is None else str(faces)
        for name, place in (("subtitles", where), ("faces", None if crops in (None, *POLICIES) else Path(crops))):
            if place is not None and not place.exists():
                raise UserError(f"{name} {place}: there is no such file or folder")
        check_single(len(items), subtitle, where, crops)
        beside, _ = look(
            self.config,
            subtitle=subtitle,
            subtitles=where,
            words=words,
            transcribe=transcribe,
            faces=crops,
            detector=detector,
        )
        return _Named(items, beside)

    def _how(self, named: _Named, question: str, asked: dict[str, Any]) -> How:
        for key in ("batch", "max_new"):
            if (value := asked.get(key)) is not None and value < 1:
                raise UserError(f"{key} must be at least 1, not {value}")
        return how(self.config, len(named.clips), question, **asked)

    def _outcomes(
        self, named: _Named, question: str, asked: dict[str, Any], answerer: Ask | None = None
    ) -> Iterator[Prediction | Failed]:
        """What becomes of each clip."""
        way = self._how(named, question, asked)
        asked = asked | {"model": self._known_fingerprint}
        if isinstance(named.clips, Corpus):
            words = named.beside.words
            return predict_shards(self.run, named.clips, question, words=words, answerer=answerer, **asked)
        encoders = self._encoders(way.batch, named.beside.detect is not None)
        return predict(
            self.run, named.clips, question, beside=named.beside, encoders=encoders, answerer=answerer, **asked
        )

    def _encoders(self, batch: int, detects: bool) -> Encoders:
        """The towers, opened once, in calls as large as a batch asks for."""
        streams = {name: parse_stream(stream) for name, stream in model_streams(self.config).items()}
        if detects not in self._towers:
            self._towers[detects] = open_encoders(self.config, streams, 1, detects=detects)
        largest = max((stream.count for stream in streams.values()), default=1)
        return self._towers[detects].sized(min(largest * batch, PICTURES))

    @cached_property
    def _towers(self) -> dict[bool, Encoders]:
        """By whether faces may be detected."""
        return {}


def _only(outcomes: Iterator[_Answer | Failed], named: _Named) -> _Answer:
    """The answer about the one clip.

    Raises:
      UserError: there are several clips, or none, or there is no answer.
    """
    if len(named.clips) != 1:
        raise UserError(f"{len(named.clips)} clips are named, expected one; use predict_many or score_many")
    found = next(outcomes)
    if isinstance(found, Failed):
        raise UserError(f"{found.clip}: {found.error}")
    return found
