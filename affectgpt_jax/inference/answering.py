"""Questions about samples, answered in batches of a few compiled shapes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.examples import Conversation, Example, Rejected, prompt_example
from affectgpt_jax.data.prompts import matching_mode, needs
from affectgpt_jax.data.responses import response_labels, response_pieces, response_text
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.engine import Engine, Prompts, Request
from affectgpt_jax.inference.runs import Run, feature_shapes, model_layout
from affectgpt_jax.ops.sampling import GREEDY, Sampling

BUCKET = 32
"""Prompt lengths are padded up to a multiple of this."""


class Query(NamedTuple):
    """A question about one sample.

    Attributes:
      name: the sample's name.
      subtitle: what is said; may be empty.
      question: the question's text (`prompts.question`).
      features: per stream of the model float [t, F]; what is left out is absent.
      number: with the seed it decides the draws; None is the query's place among those that are asked together.
    """

    name: str
    subtitle: str
    question: str
    features: Mapping[str, np.ndarray]
    number: int | None = None


class Answer(NamedTuple):
    """What the model said.

    Attributes:
      name: the sample's name.
      text: the answer.
      labels: emotion words read from it by rule.
      absent: streams that the sample lacked.
      tokens: how many were generated.
      note: what had to be changed to make the prompt fit; empty in most cases.
    """

    name: str
    text: str
    labels: list[str]
    absent: tuple[str, ...]
    tokens: int
    note: str = ""


def make_prompt(run: Run, query: Query, max_new: int) -> Example | Rejected:
    """The prompt; it speaks only of what the sample has, unless the model learned what absence looks like.

    Args:
      run: an opened run.
      query: the question.
      max_new: tokens of the answer at most; the prompt leaves room for them.
    """
    config = run.config
    streams = needs(config.model.mode).streams
    if streams and not query.subtitle and not any(name in query.features for name in streams):
        return Rejected(query.name, f"has nothing to go by: no subtitle, and nothing of {', '.join(streams)}")
    mode = config.model.mode if config.model.absent else matching_mode(config.model.mode, query.features)
    if mode is None:
        return Rejected(
            query.name,
            f"has nothing that mode {config.model.mode!r} could go by; a model trained with model.absent=true and "
            "data.hide could answer all the same",
        )
    conversation = Conversation(query.name, mode, query.subtitle, query.question)
    example = prompt_example(
        conversation, model_layout(config), run.tokenizer, compat=config.compat, max_new_tokens=max_new
    )
    if isinstance(example, Rejected) or mode == config.model.mode:
        return example
    note = f"asked in mode {mode!r}, for the model learned nothing to put in place of what is absent"
    return example._replace(note="; ".join(filter(None, [note, example.note])))


def bucket(tokens: int) -> int:
    """What a prompt is padded to: a multiple of `BUCKET`."""
    return -(-tokens // BUCKET) * BUCKET


def as_prompt(config: RunConfig, query: Query, example: Example) -> Prompts:
    """A prompt as the model reads it, one row.

    Args:
      config: the run's.
      query: the question.
      example: its prompt.
    """
    shapes = feature_shapes(config)
    prompt = Prompts(
        tokens=np.asarray(example.tokens, np.int32)[None],
        soft_index=np.asarray(example.soft_index, np.int32)[None],
        used=np.ones((1, len(example.tokens)), bool),
        features={name: np.zeros((1, 1, *shape), np.float32) for name, shape in shapes.items()},
        present={name: np.zeros((1, 1), bool) for name in shapes},
    )
    for name, features in query.features.items():
        if name in prompt.features:
            prompt.features[name][0, 0] = features
            prompt.present[name][0, 0] = True
    return prompt


class Answerer:
    """A run with its compiled generation. Answers do not depend on the company a query is in."""

    def __init__(self, run: Run, *, batch: int, max_new: int, sampling: Sampling = GREEDY, seed: int = 0) -> None:
        """Prepare the generation.

        Args:
          run: an opened run.
          batch: rows that are at work at a time.
          max_new: tokens of an answer at most.
          sampling: how tokens are drawn.
          seed: of sampling; a query's draws depend on it and on the query's number.
        """
        self._run, self._max_new = run, max_new
        ends = ((token,) for token in run.tokenizer.end_ids)
        self._engine = Engine(
            run.model,
            run.params,
            rows=batch,
            max_new=max_new,
            stop=[*run.tokenizer.stop_sequences, *ends],
            sampling=sampling,
            seed=seed,
            length=bucket,
        )
        self._streams = needs(run.config.model.mode).streams

    def __call__(
        self, queries: Sequence[Query], report: Callable[[int], None] | None = None
    ) -> list[Answer | Rejected]:
        """Answer all queries, in order.

        Args:
          queries: the questions.
          report: called with the number answered so far.

        Returns:
          For each query its answer, or why it cannot be asked; that never keeps the others from being answered.
        """
        outcomes: list[Example | Answer | Rejected] = [
            make_prompt(self._run, query, self._max_new) for query in queries
        ]
        asked = [(i, made) for i, made in enumerate(outcomes) if isinstance(made, Example)]
        numbers = [i if query.number is None else query.number for i, query in enumerate(queries)]
        requests = [Request(as_prompt(self._run.config, queries[i], made), numbers[i]) for i, made in asked]
        for count, (place, ids) in enumerate(self._engine.run(requests), len(queries) - len(asked) + 1):
            i, example = asked[place]
            outcomes[i] = self._answer(queries[i], example, ids)
            if report is not None:
                report(count)
        return [outcome for outcome in outcomes if not isinstance(outcome, Example)]

    def stream(self, query: Query) -> Iterator[str]:
        """Answer one query in pieces, as they are written; see `data.responses.response_pieces`.

        Raises:
          UserError: it cannot be asked.
        """
        example = make_prompt(self._run, query, self._max_new)
        if isinstance(example, Rejected):
            raise UserError(f"{query.name} {example.reason}")
        config, tokenizer = self._run.config, self._run.tokenizer
        ids = self._engine.stream(Request(as_prompt(config, query, example), query.number or 0))
        yield from response_pieces(ids, tokenizer, compat=config.compat)

    def _answer(self, query: Query, example: Example, ids: list[int]) -> Answer:
        text = response_text(ids, self._run.tokenizer, compat=self._run.config.compat)
        absent = tuple(name for name in self._streams if name not in query.features)
        return Answer(query.name, text, response_labels(text), absent, len(ids), example.note)
