"""Labels of clips by the scores of a vocabulary (`label_scores`), with all that they rest on.

Samples are read as for answers in free words, by `predict`; the scorer stands where the answerer would.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Query
from affectgpt_jax.inference.calibration import (
    label_record,
    probabilities,
    support,
)
from affectgpt_jax.inference.clip_files import Source
from affectgpt_jax.inference.clip_scores import Scale
from affectgpt_jax.inference.evaluate import TEXT
from affectgpt_jax.inference.label_scores import DIGITS, LabelScorer, Scores, without
from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.predict import Ask, Failed, Prediction
from affectgpt_jax.inference.runs import Run, model_streams
from affectgpt_jax.inference.shown import as_html, as_text
from affectgpt_jax.version import __version__

SHOWN = 5
"""Words that a person is shown."""


@dataclass(frozen=True)
class ScoredLabels:
    """How likely each label is to be the first that the model would give a clip, with all that this rests on.

    Attributes:
      clip: the file, or its name in a manifest or in shards.
      labels: those that are given; none where the model had better abstain.
      confidence: how likely the likeliest label's group is, 0 to 1.
      threshold: what a label's support must reach to be given.
      probabilities: of each word, which sum to 1, the likeliest first.
      support: how likely each word's group is, in the same order: words of one class of an emotion wheel say the same.
      in_vocabulary: share of the model's first labels that are among these words at all.
      calibrated: whether the probabilities were fitted to true labels (`affectgpt labels RUN --calibrate SPLIT`).
      temperature: of the softmax.
      table: emotion table that groups words.
      subtitle: what the prompt gave as said in the clip.
      absent: what the clip lacks, and why: modality -> reason.
      sources: modality -> file and places that it was read from.
      notes: what else to know.
      run: the run's folder.
      step: its checkpoint.
      model: the checkpoint's `runs.fingerprint`; empty if nobody asked for it.
      version: of this program.
      limits: what the labels are not.
    """

    clip: str
    labels: tuple[str, ...]
    confidence: float
    threshold: float
    probabilities: Mapping[str, float]
    support: Mapping[str, float]
    in_vocabulary: float
    calibrated: bool
    temperature: float
    table: str
    subtitle: str
    absent: Mapping[str, str]
    sources: Mapping[str, Source]
    notes: tuple[str, ...]
    run: str
    step: int
    model: str
    version: str = __version__
    limits: str = LIMITS

    @property
    def abstained(self) -> bool:
        """Whether no label is likely enough."""
        return not self.labels

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {"abstained": self.abstained}

    def __str__(self) -> str:
        return as_text(self.clip, self._lines(), self.limits)

    def _repr_html_(self) -> str:
        return as_html(self.clip, self._lines(), self.limits)

    def _lines(self) -> Iterator[tuple[str, str]]:
        none = f"none: the likeliest group has {self.confidence:.2f}, a label needs {self.threshold:.2f}"
        yield "labels", ", ".join(self.labels) or none
        likely = list(self.probabilities.items())[:SHOWN]
        kind = "" if self.calibrated else " (not calibrated)"
        yield "likely", ", ".join(f"{word} {p:.2f}" for word, p in likely) + kind
        yield from ((f"no {name}", reason) for name, reason in self.absent.items())
        yield from (("note", note) for note in self.notes)


class Scorer:
    """Scores samples where `predict` would have them answered, and keeps the scores.

    Attributes:
      lacking: stream of the model, or "text", that is taken from every sample; empty for none.
      found: scores [V] by the clip's number among all.
    """

    def __init__(self, run: Run, words: Sequence[str], *, batch: int, max_new: int, lacking: str = "") -> None:
        """Prepare the scoring; see `LabelScorer`.

        Raises:
          UserError: a word that cannot be scored, or no such stream.
        """
        known = (*model_streams(run.config), TEXT)
        if lacking and lacking not in known:
            raise UserError(f"without={lacking!r}: expected one of {', '.join(known)}")
        self._scorer = LabelScorer(run, words, batch=batch, max_new=max_new)
        self.lacking = lacking
        self.found: dict[int, np.ndarray] = {}

    def __call__(self, queries: Sequence[Query]) -> list[Answer | Rejected]:
        """Score; each answer is empty, and bears what had to be changed to make the prompt fit."""
        asked = [without(query, self.lacking) for query in queries] if self.lacking else queries
        return [self._kept(query, one) for query, one in zip(queries, self._scorer(asked), strict=True)]

    def _kept(self, query: Query, scores: Scores | Rejected) -> Answer | Rejected:
        if isinstance(scores, Rejected):
            return scores
        assert query.number is not None
        self.found[query.number] = scores.logs.round(DIGITS)
        return Answer(query.name, "", [], (), 0, scores.note)


def score_clips(
    outcomes: Callable[[Ask], Iterator[Prediction | Failed]], scorer: Scorer, scale: Scale, top_k: int, model: str
) -> Iterator[ScoredLabels | Failed]:
    """Labels of clips.

    Args:
      outcomes: what `predict.predict` or `predict.predict_shards` gives of the clips with an answerer.
      scorer: of the vocabulary.
      scale: how scores become labels.
      top_k: labels of a clip at most.
      model: the checkpoint's `runs.fingerprint`.

    Yields:
      Labels or a failure for each clip, in their order.
    """
    for number, outcome in enumerate(outcomes(scorer)):
        if isinstance(outcome, Failed):
            yield outcome
        else:
            read = _lacking(outcome, scorer.lacking) if scorer.lacking else outcome
            yield _scored(read, scorer.found.pop(number), scale, top_k, model)


def _lacking(read: Prediction, modality: str) -> Prediction:
    """What was read, without a modality that the model was not given."""
    sources = {name: source for name, source in read.sources.items() if name != modality}
    absent = {modality: "left out on request", **read.absent}
    return dataclasses.replace(read, sources=sources, absent=absent, subtitle="" if modality == TEXT else read.subtitle)


def _scored(read: Prediction, scores: np.ndarray, scale: Scale, top_k: int, model: str) -> ScoredLabels:
    said = label_record(scores, scale.vocabulary, scale.temperature, scale.threshold, top_k)
    words = probabilities(scores, scale.temperature)
    own = support(words, scale.vocabulary)
    order = np.argsort(-words, kind="stable")
    return ScoredLabels(
        clip=read.clip,
        labels=tuple(said["labels"]),
        confidence=said["confidence"],
        threshold=scale.threshold,
        probabilities={scale.vocabulary.words[i]: float(words[i]) for i in order},
        support={scale.vocabulary.words[i]: float(own[i]) for i in order},
        in_vocabulary=said["in_vocabulary"],
        calibrated=scale.calibrated,
        temperature=scale.temperature,
        table=scale.vocabulary.table,
        subtitle=read.subtitle,
        absent=read.absent,
        sources=read.sources,
        notes=tuple(note for note in (*read.notes, scale.note) if note),
        run=read.run,
        step=read.step,
        model=model,
    )
