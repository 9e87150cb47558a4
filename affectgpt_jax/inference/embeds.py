"""Prompts as embeddings, for a language model that runs elsewhere: vLLM's `prompt_embeds`, transformers'
`inputs_embeds`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.data.examples import Example, Rejected
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.data.responses import response_labels, response_text
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Query, as_prompt, bucket, make_prompt
from affectgpt_jax.inference.engine import stack
from affectgpt_jax.inference.predict import LONGEST_ANSWER
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.models.affectgpt import AffectGPT

Embeds = npt.NDArray[np.float32]


def prompt_embeds(run: Run, query: Query, *, max_new_tokens: int = LONGEST_ANSWER) -> Embeds:
    """A question as the language model reads it: embeddings of the words, the soft tokens in their places.

    Args:
      run: an opened run.
      query: the question.
      max_new_tokens: tokens of the answer at most; the prompt leaves room for them.

    Returns:
      float32 [tokens, D], without padding.

    Raises:
      UserError: the question cannot be asked.
    """
    example = make_prompt(run, query, max_new_tokens)
    if isinstance(example, Rejected):
        raise UserError(f"{example.name} {example.reason}")
    return _embeds(run, query, example)


def answer_with(
    run: Run, complete: Callable[[Embeds], str], *, max_new_tokens: int = LONGEST_ANSWER
) -> Callable[[Sequence[Query]], list[Answer | Rejected]]:
    """What `predict` takes as its `answerer`, over a language model that runs elsewhere.

    Args:
      run: an opened run.
      complete: what the language model writes after a prompt's embeddings, up to "###" or with it.
      max_new_tokens: the most that it may write; the prompt leaves room for them.
    """

    def answer(query: Query) -> Answer | Rejected:
        example = make_prompt(run, query, max_new_tokens)
        if isinstance(example, Rejected):
            return example
        ids = run.tokenizer.encode(complete(_embeds(run, query, example)))
        text = response_text(ids, run.tokenizer, compat=run.config.compat)
        absent = tuple(name for name in needs(run.config.model.mode).streams if name not in query.features)
        return Answer(query.name, text, response_labels(text), absent, len(ids), example.note)

    return lambda queries: [answer(query) for query in queries]


def _embeds(run: Run, query: Query, example: Example) -> Embeds:
    prompts = stack([as_prompt(run.config, query, example)], 1, bucket(len(example.tokens)))
    inputs = prompts.tokens, prompts.soft_index, prompts.features, prompts.present
    # A copy: what JAX hands out may not be written to, which torch warns of.
    return np.array(_compiled(run.model.config)(run.params, *inputs)[0, : len(example.tokens)], np.float32)


@functools.cache
def _compiled(config: ModelConfig) -> Any:
    """Compiles once per bucket of prompts."""
    model = AffectGPT(config)
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs, method="inputs_embeds"))
