"""Answers about a corpus split, on disk as they come: what a benchmark is scored from, and what a challenge is sent.

An answer file is JSON lines. The first says what the answers come from (model, clips, question); a file that says
something else is never continued. Each other line is a clip: `name`, `answer`, `labels` (read by rule), `absent`
(streams the clip lacks), `tokens`, `note`; or `name` and `rejected`, the reason why it could not be asked.
"""

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.prompts import question
from affectgpt_jax.data.shard_schema import digest
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.inference.answer_file import Record, begin
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.evaluate import PLAIN, Condition, make_queries
from affectgpt_jax.inference.label_scores import DIGITS, Found, LabelScorer, evidence
from affectgpt_jax.inference.predict import longest_answer
from affectgpt_jax.inference.runs import Run, Trained, roundings

CALLS = 8
"""Batches between two writes; clips of like length share one, so a few should be sorted together."""


def answer_split(
    trained: Trained,
    opened: Callable[[], Run],
    corpus: Corpus,
    file: Path,
    *,
    model: str,
    kind: str = "ovlabel",
    names: Collection[str] | None = None,
    batch: int | None = None,
    max_new: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Record]:
    """Answer one question about the clips of a split, going on where an earlier attempt ended.

    Args:
      trained: the checkpoint.
      opened: opens it with its base; called if there is anything left to answer.
      corpus: the split, with the streams of the model.
      file: where answers are kept.
      model: the checkpoint's `runs.fingerprint`.
      kind: of question (`prompts.QUESTIONS`).
      names: clips that are asked about; all by default.
      batch: clips at a time; the run's `evaluate.batch` by default.
      max_new: tokens of an answer at most; by default `predict.longest_answer`.
      report: called with clips done and in all.

    Returns:
      A record a clip by name, in the corpus's order.

    Raises:
      UserError: the file is of another model, other clips or another question.
    """
    batch, max_new = batch or trained.config.evaluate.batch, max_new or longest_answer(trained.config)
    facts = {
        "model": model,
        "step": trained.step,
        "clips": corpus.fingerprint,
        "question": question(kind),
        "max_new": max_new,
    } | roundings(trained.config)

    def ask() -> Callable[[list[int]], list[Record]]:
        run = opened()
        answerer = Answerer(run, batch=batch, max_new=max_new)
        return lambda clips: [_record(found) for found in answerer(make_queries(run, corpus, PLAIN, kind, clips=clips))]

    return _keep(file, facts, corpus, names, CALLS * batch, ask, report)


def score_split(
    trained: Trained,
    opened: Callable[[], Run],
    corpus: Corpus,
    file: Path,
    *,
    model: str,
    words: Sequence[str],
    asked: Sequence[Condition] = (PLAIN,),
    answers: bool = False,
    names: Collection[str] | None = None,
    batch: int | None = None,
    max_new: int | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Record]:
    """Score a vocabulary for the clips of a split (`label_scores`), going on where an earlier attempt ended.

    Args:
      trained: the checkpoint.
      opened: opens it with its base; called if there is anything left to score.
      corpus: the split, with the streams of the model.
      file: where scores are kept, as answers are: a clip has `name` and `found`, by condition `scores` (to four
        digits) or `rejected`, and the fields of an answer if asked for.
      model: the checkpoint's `runs.fingerprint`.
      words: the vocabulary.
      asked: conditions that each clip is asked under.
      answers: ask for an answer in free words, too.
      names: clips that are asked about; all by default.
      batch: clips at a time; the run's `evaluate.batch` by default.
      max_new: prompts are those of answers of so many tokens at most; by default `predict.longest_answer`.
      report: called with clips done and in all.

    Returns:
      A record a clip by name, in the corpus's order.

    Raises:
      UserError: the file is of another model, other clips or another vocabulary, or a word cannot be scored.
    """
    batch, max_new = batch or trained.config.evaluate.batch, max_new or longest_answer(trained.config)
    facts = {
        "model": model,
        "step": trained.step,
        "clips": corpus.fingerprint,
        "question": question("ovlabel"),
        "max_new": max_new,
        "words": digest(*(word.encode() for word in words)),
        "conditions": [condition.name for condition in asked],
        "answers": answers,
    } | roundings(trained.config)

    def ask() -> Callable[[list[int]], list[Record]]:
        run = opened()
        scorer = LabelScorer(run, words, batch=batch, max_new=max_new)
        answerer = Answerer(run, batch=batch, max_new=max_new) if answers else None

        def about(clips: list[int]) -> list[Record]:
            queries = make_queries(run, corpus, PLAIN, "ovlabel", clips=clips)
            found = evidence(queries, scorer, answerer, asked)
            return [
                {"name": query.name, "found": {name: _found(own) for name, own in by.items()}}
                for query, by in zip(queries, found, strict=True)
            ]

        return about

    return _keep(file, facts, corpus, names, CALLS * batch, ask, report)


def _found(found: Found) -> Record:
    if isinstance(found.scores, Rejected):
        return {"rejected": found.scores.reason}
    record: Record = {"scores": [round(x, DIGITS) for x in found.scores.logs.tolist()]}
    if found.answer is not None:
        record |= {key: value for key, value in _record(found.answer).items() if key != "name"}
    return record


def _keep(
    file: Path,
    facts: dict[str, Any],
    corpus: Corpus,
    names: Collection[str] | None,
    size: int,
    ask: Callable[[], Callable[[list[int]], list[Record]]],
    report: Callable[[int, int], None],
) -> dict[str, Record]:
    """Records of clips: those of the file, and what is left, `size` clips between two writes."""
    left_there = begin(file, facts, "name another --out, or remove the file")
    done = {record["name"]: record for record in left_there}
    wanted = {name: i for i, name in enumerate(corpus.names) if names is None or name in names}
    left = [i for name, i in wanted.items() if name not in done]
    report(len(wanted) - len(left), len(wanted))
    if left:
        about = ask()
        with file.open("a", encoding="utf-8") as out:
            for start in range(0, len(left), size):
                chosen = left[start : start + size]
                for record in about(chosen):
                    done[record["name"]] = record
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
                out.flush()
                report(len(wanted) - len(left) + start + len(chosen), len(wanted))
    return {name: done[name] for name in wanted}


def _record(outcome: Answer | Rejected) -> Record:
    if isinstance(outcome, Rejected):
        return {"name": outcome.name, "rejected": outcome.reason}
    record = outcome._asdict() | {"answer": outcome.text}
    return {key: record[key] for key in ("name", "answer", "labels", "absent", "tokens", "note") if record[key] != ""}
