"""The engine as one call, and a cache by hand."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.inference.engine import Engine, Prompts, Request
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.decoder import Cache, LayerCache, empty_cache
from affectgpt_jax.ops.sampling import GREEDY, Sampling


def requests(prompts: Prompts, numbers: Sequence[int] | None = None) -> list[Request]:
    """Each row of a batch as a request."""
    rows = [jax.tree.map(lambda x: np.asarray(x)[i : i + 1], prompts) for i in range(len(prompts.tokens))]
    return [Request(row, number) for row, number in zip(rows, numbers or range(len(rows)), strict=True)]


def generate(
    model: AffectGPT,
    params: Any,
    prompts: Prompts,
    max_new: int,
    *,
    stop: Sequence[Sequence[int]] = (),
    sampling: Sampling = GREEDY,
    seed: int = 0,
    rows: int | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """Ids of each row's answer."""
    asked = requests(prompts, numbers)
    engine = Engine(
        model, params, rows=rows or len(asked), max_new=max_new, stop=stop, sampling=sampling, seed=seed,
        length=lambda tokens: tokens,
    )  # fmt: skip
    found = dict(engine.run(asked))
    return [found[i] for i in range(len(asked))]


def fresh_cache(model: AffectGPT, keys: Any, used: Any, answer: int) -> Cache:
    """The cache after `prefill`, all of whose rows are taken in."""
    empty = empty_cache(model.config.decoder, *used.shape, answer)
    layers = (LayerCache(prompt, old.answer) for prompt, old in zip(keys, empty.layers, strict=True))
    return Cache(tuple(layers), jnp.asarray(used))
