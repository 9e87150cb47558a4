"""Probabilities of labels beside answers, and what both rest on: how they change without face, voice or words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import question
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Query
from affectgpt_jax.inference.calibration import (
    FOLDER,
    LIKELIEST,
    THRESHOLD,
    Calibration,
    Vocabulary,
    label_record,
    make_vocabulary,
    moves,
    read_calibration,
)
from affectgpt_jax.inference.evaluate import TEXT
from affectgpt_jax.inference.label_scores import DIGITS, LabelScorer, Scores, without
from affectgpt_jax.inference.runs import Run, Trained, checkpoint_name, model_streams
from affectgpt_jax.unibench.table_cache import wheel_words
from affectgpt_jax.unibench.wheel import WheelTable


class Scale(NamedTuple):
    """How scores become probabilities and labels.

    Attributes:
      vocabulary: the words.
      temperature: of the softmax; 1 without a calibration.
      threshold: what a label's support must reach.
      calibrated: whether temperature and threshold come from a calibration of this model with these words.
      note: why they do not, where a calibration is there.
    """

    vocabulary: Vocabulary
    temperature: float
    threshold: float
    calibrated: bool
    note: str = ""


class Scoring(NamedTuple):
    """What is scored beside answers.

    Attributes:
      scale: the words, and how their scores become probabilities and labels.
      evidence: ask again without each modality.
    """

    scale: Scale
    evidence: bool = False

    def facts(self) -> dict[str, Any]:
        """What records depend on, as JSON holds it."""
        return {
            "words": self.scale.vocabulary.identity,
            "temperature": self.scale.temperature,
            "threshold": self.scale.threshold,
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
    return Path(trained.source) / FOLDER / checkpoint_name(trained) / "calibration.json"


def open_scale(
    trained: Trained,
    model: Callable[[], str],
    table: WheelTable,
    words: Sequence[str] | None = None,
    *,
    wheel_dir: str | Path | None = None,
    file: Path | None = None,
    strict: bool = False,
) -> Scale:
    """How the scores of a checkpoint become probabilities.

    Args:
      trained: the checkpoint.
      model: gives its `runs.fingerprint`; called if there is a calibration.
      table: emotion table that groups words.
      words: the vocabulary; by default that of the calibration, or the wheel's where there is none.
      wheel_dir: folder of the official emotion wheels.
      file: the calibration; by default the checkpoint's own.
      strict: refuse a calibration of another model or of other words, instead of doing without.

    Raises:
      UserError: there are fewer than two words, or the calibration cannot be read, or `strict` refuses it.
    """
    file = file or calibration_file(trained)
    found: Calibration | None = None
    note = ""
    if file.is_file():
        found = read_calibration(file, model() if strict else None)
        if found.model != model():
            note = (
                f"{file} calibrates this checkpoint with other settings or numbers, such as those of a later training"
            )
            found = None
    if words is None:
        words = wheel_words(wheel_dir) if found is None else found.words
    vocabulary = make_vocabulary(words, table)
    if found is not None and found.identity != vocabulary.identity:
        grouped = f"words grouped by {found.table} and not {table.name}"
        note = f"{file} is of {'other words' if found.table == table.name else grouped}"
        if strict:
            raise UserError(f"{note}; calibrate again with --calibrate SPLIT, or name another --out")
        found = None
    if found is None:
        return Scale(vocabulary, 1.0, THRESHOLD, False, note)
    return Scale(vocabulary, found.temperature, found.threshold, True)


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
        self._scorer = LabelScorer(run, scoring.scale.vocabulary.words, batch=batch, max_new=max_new)
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
        scale = self._scoring.scale
        record = label_record(scores, scale.vocabulary, scale.temperature, scale.threshold, named=LIKELIEST)
        del record["groups"]  # as many as words, if the table knows none of them
        return record | {
            "words": len(scale.vocabulary.words),
            "calibrated": scale.calibrated,
            "temperature": scale.temperature,
            "threshold": scale.threshold,
        }

    def _change(
        self, answer: Answer | Rejected, scores: np.ndarray | Rejected, plain: np.ndarray | Rejected
    ) -> Mapping[str, Any]:
        if isinstance(answer, Rejected):
            return {"rejected": answer.reason}
        said = {"answer": answer.text, "labels": answer.labels}
        if isinstance(scores, Rejected) or isinstance(plain, Rejected):
            return said
        scale = self._scoring.scale
        return said | {"changes": moves(scores, plain, scale.vocabulary, scale.temperature)}


def has(query: Query, modality: str) -> bool:
    """Whether a question's sample has a stream of the model, or ("text") what is said."""
    return bool(query.subtitle) if modality == TEXT else modality in query.features
