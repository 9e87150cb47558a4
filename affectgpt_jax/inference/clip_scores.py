"""Probabilities of labels beside answers, and what both rest on: how they change without face, voice or words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import question
from affectgpt_jax.inference.answer_file import step_name
from affectgpt_jax.inference.answering import Answer, Query
from affectgpt_jax.inference.calibration import (
    FOLDER,
    LIKELIEST,
    Calibration,
    Vocabulary,
    label_record,
    make_vocabulary,
    moves,
    read_calibration,
)
from affectgpt_jax.inference.evaluate import TEXT
from affectgpt_jax.inference.label_scores import LabelScorer, Scores, without
from affectgpt_jax.inference.runs import Run, Trained, model_streams
from affectgpt_jax.unibench.table_cache import wheel_words
from affectgpt_jax.unibench.wheel import WheelTable

DIGITS = 4
"""Of log-probabilities, as they are kept."""


class Scoring(NamedTuple):
    """What is scored beside answers.

    Attributes:
      vocabulary: the words.
      calibration: how their scores become probabilities and labels; of temperature 1 where there is none.
      evidence: ask again without each modality.
    """

    vocabulary: Vocabulary
    calibration: Calibration
    evidence: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether the temperature was fitted to true labels."""
        return bool(self.calibration.split)

    def facts(self) -> dict[str, Any]:
        """What records depend on, as JSON holds it."""
        return {
            "words": self.vocabulary.identity,
            "temperature": self.calibration.temperature,
            "threshold": self.calibration.threshold,
            "evidence": self.evidence,
        }


class ClipScores(NamedTuple):
    """What the scores of a clip say, as JSON holds it.

    Attributes:
      labels: `label_record` without groups, the `LIKELIEST` likeliest words only, and `words`, how many were scored,
        `calibrated`, `temperature` and `threshold`; or `rejected`, why they cannot be scored.
      evidence: for each modality that the clip has `answer` and `labels` without it, and `changes`, the probabilities
        that the likeliest words have then (`calibration.moves`); or `rejected`. None if nobody asked.
    """

    labels: dict[str, Any]
    evidence: dict[str, Any] | None


def calibration_file(trained: Trained) -> Path:
    """Where `affectgpt labels` keeps the calibration of a checkpoint."""
    return Path(trained.source) / FOLDER / step_name(trained.step) / "calibration.json"


def open_scoring(
    trained: Trained,
    model: str,
    table: WheelTable,
    words: Sequence[str] | None = None,
    *,
    wheel_dir: str | Path | None = None,
    evidence: bool = False,
) -> Scoring:
    """What a run's scores are made with.

    Args:
      trained: the checkpoint.
      model: its `runs.fingerprint`.
      table: emotion table that groups words.
      words: the vocabulary; by default that of the checkpoint's calibration, and the wheel's where there is none.
      wheel_dir: folder of the official emotion wheels.
      evidence: ask again without each modality.

    Returns:
      With the checkpoint's calibration, if it has one for these words and this table.

    Raises:
      UserError: the calibration is of another model, or there are fewer than two words.
    """
    file = calibration_file(trained)
    found = read_calibration(file, model) if file.is_file() else None
    if words is None:
        words = wheel_words(wheel_dir) if found is None else found.words
    vocabulary = make_vocabulary(words, table)
    if found is None or found.identity != vocabulary.identity:
        found = Calibration(model, trained.step, vocabulary.words, vocabulary.identity, table.name)
    return Scoring(vocabulary, found, evidence)


class ClipScorer:
    """Scores samples, and with evidence also what is left of them without each modality that they have."""

    def __init__(
        self,
        run: Run,
        scoring: Scoring,
        answerer: Callable[[Sequence[Query]], Sequence[Answer | Rejected]],
        *,
        batch: int,
        max_new: int,
    ) -> None:
        """Prepare the scoring.

        Args:
          run: an opened run.
          scoring: the words, and what is asked.
          answerer: answers in free words.
          batch: samples at a time.
          max_new: tokens of an answer at most.

        Raises:
          UserError: a word that cannot be scored.
        """
        self._scoring, self._answerer = scoring, answerer
        self._scorer = LabelScorer(run, scoring.vocabulary.words, batch=batch, max_new=max_new)
        self._modalities = (*model_streams(run.config), TEXT)

    def __call__(self, queries: Sequence[Query]) -> list[ClipScores]:
        """Score samples, in order, whatever question is put about them."""
        scores = self._scores(queries)
        evidence: list[dict[str, Any] | None] = [{} if self._scoring.evidence else None for _ in queries]
        for modality in self._modalities if self._scoring.evidence else ():
            having = [i for i, query in enumerate(queries) if has(query, modality)]
            changed = [without(queries[i], modality) for i in having]
            found = zip(having, self._answerer(changed), self._scores(changed), strict=True)
            for i, answer, other in found:
                own = evidence[i]
                assert own is not None
                own[modality] = self._change(answer, other, scores[i])
        return [ClipScores(self._record(found), own) for found, own in zip(scores, evidence, strict=True)]

    def _scores(self, queries: Sequence[Query]) -> list[np.ndarray | Rejected]:
        asked = question("ovlabel")
        found = self._scorer([query._replace(question=asked) for query in queries])
        return [one.logs.round(DIGITS) if isinstance(one, Scores) else one for one in found]

    def _record(self, scores: np.ndarray | Rejected) -> dict[str, Any]:
        if isinstance(scores, Rejected):
            return {"labels": [], "abstained": True, "rejected": scores.reason}
        vocabulary, how = self._scoring.vocabulary, self._scoring.calibration
        record = label_record(scores, vocabulary, how.temperature, how.threshold, named=LIKELIEST)
        del record["groups"]  # as many as words, if the table knows none of them
        return record | {
            "words": len(vocabulary.words),
            "calibrated": self._scoring.calibrated,
            "temperature": how.temperature,
            "threshold": how.threshold,
        }

    def _change(
        self, answer: Answer | Rejected, scores: np.ndarray | Rejected, plain: np.ndarray | Rejected
    ) -> Mapping[str, Any]:
        if isinstance(answer, Rejected):
            return {"rejected": answer.reason}
        said = {"answer": answer.text, "labels": answer.labels}
        if isinstance(scores, Rejected) or isinstance(plain, Rejected):
            return said
        return said | {"changes": moves(scores, plain, self._scoring.vocabulary, self._scoring.calibration.temperature)}


def has(query: Query, modality: str) -> bool:
    """Whether a question's sample has a stream of the model, or ("text") what is said."""
    return bool(query.subtitle) if modality == TEXT else modality in query.features
