"""Scores of a run on a corpus split, with everything in its place and with one modality missing or another clip's."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import question
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.runs import Run, model_streams
from affectgpt_jax.unibench.metrics import Measure, values
from affectgpt_jax.unibench.scoring import hits, score_labels
from affectgpt_jax.unibench.wheel import WheelTable

TEXT = "text"


class Condition(NamedTuple):
    """What is done to a modality before the question is asked.

    Attributes:
      name: for example "without face".
      modality: a stream of the model or "text"; empty for the plain condition.
      shuffled: the modality is another clip's, instead of absent.
    """

    name: str
    modality: str = ""
    shuffled: bool = False


PLAIN = Condition("all modalities")


def conditions(streams: Sequence[str]) -> tuple[Condition, ...]:
    """The plain condition, each modality absent, each stream shuffled among clips."""
    absent = (Condition(f"without {name}", name) for name in (*streams, TEXT))
    shuffled = (Condition(f"shuffled {name}", name, shuffled=True) for name in streams)
    return (PLAIN, *absent, *shuffled)


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      scores: per condition, score name -> value and 95 % interval.
      by_need: modality -> clips that need it, and per condition their hit rate.
      answers: per condition the answers, in the corpus's order; a sample that could not be asked counts as a wrong
        answer and gives its reason.
      truth: the true labels.
    """

    scores: dict[str, dict[str, dict[str, float]]]
    by_need: dict[str, dict[str, Any]]
    answers: dict[str, list[Answer | Rejected]]
    truth: list[tuple[str, ...]]


def derangement(count: int, seed: int) -> np.ndarray:
    """A permutation that leaves nothing in its place (one cycle through a random order); int [count]."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, np.int64)
    other[order] = np.roll(order, 1)
    return other


def make_queries(
    run: Run, corpus: Corpus, condition: Condition, asked: str, seed: int = 0, clips: Sequence[int] | None = None
) -> list[Query]:
    """One query a clip under a condition.

    Args:
      run: the run.
      corpus: the split.
      condition: what is done to a modality.
      asked: question type (`prompts.QUESTIONS`).
      seed: of the shuffling.
      clips: which clips, by number; all by default.
    """
    chosen = np.arange(len(corpus)) if clips is None else np.asarray(clips, np.int64)
    columns = {}
    for name, stream in model_streams(run.config).items():
        changed = condition.modality == name
        if changed and not condition.shuffled:
            continue
        where = derangement(len(corpus), seed)[chosen] if changed else chosen
        columns[name] = corpus.features(stream, where)
    text = question(asked)
    hide_text = condition.modality == TEXT
    return [
        Query(
            record.name,
            "" if hide_text else record.subtitle,
            text,
            {name: x[i].astype(np.float32) for name, (x, present) in columns.items() if present[i]},
        )
        for i, record in enumerate(corpus.texts(chosen))
    ]


def _labels(answer: Answer | Rejected) -> list[str]:
    return answer.labels if isinstance(answer, Answer) else []


def _hit_rate(measure: Measure, chosen: np.ndarray) -> float:
    """Mean over wheels of the hit rate of some clips."""
    return values(measure.only(chosen))["hit_rate"]


def evaluate(
    run: Run,
    corpus: Corpus,
    table: WheelTable,
    *,
    needs: Mapping[str, Sequence[str]] | None = None,
    asked: Sequence[Condition] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Answer a split under every condition and score the labels.

    Args:
      run: the run.
      corpus: the split, with the model's streams.
      table: emotion table that groups words.
      needs: clip name -> modalities its answer cannot be told without; None when the corpus does not say.
      asked: conditions; all by default if the model knows absent modalities, the plain one otherwise.
      progress: called with condition, clips done, clips in all.
    """
    settings = run.config.evaluate
    streams = tuple(model_streams(run.config))
    if asked is None:
        asked = conditions(streams) if run.config.model.absent else (PLAIN,)
    answerer = Answerer(run, batch=settings.batch, max_new=settings.max_new)
    texts = corpus.texts()
    truth = [record.labels for record in texts]
    scores: dict[str, dict[str, dict[str, float]]] = {}
    answers: dict[str, list[Answer | Rejected]] = {}
    measures: dict[str, Measure] = {}
    for condition in asked:
        queries = make_queries(run, corpus, condition, settings.question)

        def report(done: int, name: str = condition.name) -> None:
            if progress is not None:
                progress(name, done, len(texts))

        answers[condition.name] = answerer(queries, report)
        predicted = [_labels(answer) for answer in answers[condition.name]]
        found = score_labels(truth, predicted, table)
        scores[condition.name] = {name: score._asdict() for name, score in found.scores.items()}
        measures[condition.name] = hits(truth, predicted, table, "strict")
    by_need: dict[str, dict[str, Any]] = {}
    for modality in (*streams, TEXT):
        chosen = np.array([modality in (needs or {}).get(record.name, ()) for record in texts])
        if chosen.any():
            rates = {name: _hit_rate(measure, chosen) for name, measure in measures.items()}
            by_need[modality] = {"clips": int(chosen.sum()), "hit_rate": rates}
    return Evaluation(scores, by_need, answers, truth)


def _answer_record(answer: Answer | Rejected) -> dict[str, Any]:
    if isinstance(answer, Rejected):
        return {"text": "", "labels": [], "rejected": answer.reason}
    return {"text": answer.text, "labels": answer.labels}


def write_evaluation(evaluation: Evaluation, corpus: Corpus, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write scores.json and answers.jsonl.

    Args:
      evaluation: what was found.
      corpus: the split it was found on.
      folder: where to; created.
      facts: what else scores.json says (checkpoint, table, corpus).
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {**facts, "clips": len(corpus), "scores": evaluation.scores, "by_need": evaluation.by_need}
    (folder / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    with (folder / "answers.jsonl").open("w") as file:
        for i, record in enumerate(corpus.texts()):
            line: dict[str, Any] = {"name": record.name, "subtitle": record.subtitle, "truth": list(record.labels)}
            line |= {"description": record.description, "limits": LIMITS}
            line["answers"] = {name: _answer_record(found[i]) for name, found in evaluation.answers.items()}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
