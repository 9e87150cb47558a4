"""Questions about samples, answered in batches of a few compiled shapes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.examples import Conversation, Example, Rejected, prompt_example
from affectgpt_jax.data.prompts import matching_mode, needs
from affectgpt_jax.data.responses import response_labels, response_text
from affectgpt_jax.inference.engine import Prompts, make_generate
from affectgpt_jax.inference.runs import Run, feature_shapes, model_layout
from affectgpt_jax.ops.sampling import GREEDY, Sampling
from affectgpt_jax.sharding import whole

BUCKET = 32
"""Prompt lengths are padded up to a multiple of this."""


class Query(NamedTuple):
    """A question about one sample.

    Attributes:
      name: the sample's name.
      subtitle: what is said; may be empty.
      question: the question's text (`prompts.question`).
      features: per stream of the model float [t, F]; what is left out is absent.
    """

    name: str
    subtitle: str
    question: str
    features: Mapping[str, np.ndarray]


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


def stack_prompts(config: RunConfig, items: Sequence[tuple[Query, Example]]) -> Prompts:
    """Prompts as the model reads them, padded to a multiple of `BUCKET` tokens.

    Args:
      config: the run's.
      items: questions with their prompts, one a row.
    """
    shapes, rows = feature_shapes(config), len(items)
    length = -(-max(len(example.tokens) for _, example in items) // BUCKET) * BUCKET
    prompts = Prompts(
        tokens=np.zeros((rows, length), np.int32),
        soft_index=np.zeros((rows, length), np.int32),
        used=np.zeros((rows, length), bool),
        features={name: np.zeros((rows, 1, *shape), np.float32) for name, shape in shapes.items()},
        present={name: np.zeros((rows, 1), bool) for name in shapes},
    )
    for row, (query, example) in enumerate(items):
        size = len(example.tokens)
        prompts.tokens[row, :size] = example.tokens
        prompts.soft_index[row, :size] = example.soft_index
        prompts.used[row, :size] = True
        for name, features in query.features.items():
            if name in shapes:
                prompts.features[name][row, 0] = features
                prompts.present[name][row, 0] = True
    return prompts


class Answerer:
    """A run with its compiled generation. Answers do not depend on the company a query is in."""

    def __init__(self, run: Run, *, batch: int, max_new: int, sampling: Sampling = GREEDY, seed: int = 0) -> None:
        """Prepare the generation.

        Args:
          run: an opened run.
          batch: queries a call; the last call is padded.
          max_new: tokens of an answer at most.
          sampling: how tokens are drawn.
          seed: of sampling; a query's draws depend on it and on its place in the sequence of queries.
        """
        self._run, self._batch, self._max_new, self._seed = run, batch, max_new, seed
        ends = ((token,) for token in run.tokenizer.end_ids)
        self._generate = make_generate(
            run.model, max_new=max_new, stop=[*run.tokenizer.stop_sequences, *ends], sampling=sampling
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
        examples = {i: made for i, made in enumerate(outcomes) if isinstance(made, Example)}
        # Queries of like length share a call; results go back to their places.
        order = sorted(examples, key=lambda i: len(examples[i].tokens))
        for start in range(0, len(order), self._batch):
            chosen = order[start : start + self._batch]
            for i, answer in zip(chosen, self._call([(i, queries[i], examples[i]) for i in chosen]), strict=True):
                outcomes[i] = answer
            if report is not None:
                report(len(queries) - len(order) + start + len(chosen))
        return [outcome for outcome in outcomes if not isinstance(outcome, Example)]

    def _call(self, items: Sequence[tuple[int, Query, Example]]) -> Iterable[Answer]:
        # What fills the batch up is a row that is asked anyway: another one might keep the loop waiting.
        rows = [*items, *[items[-1]] * (self._batch - len(items))]
        prompts = stack_prompts(self._run.config, [(query, example) for _, query, example in rows])
        numbers = np.array([number for number, _, _ in rows], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self._seed), numbers)
        found = self._generate(self._run.params, prompts, keys)
        ids, lengths = whole(found.ids), whole(found.lengths)
        tokenizer, compat = self._run.tokenizer, self._run.config.compat
        for row, (_, query, example) in enumerate(items):
            text = response_text(ids[row, : lengths[row]].tolist(), tokenizer, compat=compat)
            absent = tuple(name for name in self._streams if name not in query.features)
            yield Answer(query.name, text, response_labels(text), absent, int(lengths[row]), example.note)
