"""The generation loop: read prompts once, then one token a row at a time until every answer has ended.

B rows, P prompt tokens (right padded to a bucket), R new tokens at most.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from affectgpt_jax.data.batch import Array as HostArray
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.decoder import Cache
from affectgpt_jax.ops.sampling import GREEDY, Sampling, choose, penalise_repeats

StopSequences = tuple[tuple[int, ...], ...]


class Prompts(NamedTuple):
    """One prompt a row, right padded, one sample each."""

    tokens: HostArray  # int32 [B, P]
    soft_index: HostArray  # int32 [B, P]
    used: HostArray  # bool [B, P]
    features: dict[str, HostArray]
    present: dict[str, HostArray]


class Answers(NamedTuple):
    """Generated ids, the tokens of the stop sequence included."""

    ids: Int[Array, "B R"]
    lengths: Int[Array, " B"]


class Progress(NamedTuple):
    """The loop's state between two steps."""

    cache: Cache
    ids: Int[Array, "B R"]
    lengths: Int[Array, " B"]
    done: Bool[Array, " B"]
    last: Int[Array, " B"]


def ends(ids: Int[Array, "B R"], count: Int[Array, ""], stop: StopSequences) -> Bool[Array, " B"]:
    """Rows whose first `count` ids end in one of the stop sequences."""
    found = jnp.zeros(ids.shape[0], bool)
    for sequence in stop:
        size = len(sequence)
        if size > ids.shape[1]:
            continue
        tail = jax.lax.dynamic_slice_in_dim(ids, jnp.maximum(count - size, 0), size, axis=1)
        found |= (count >= size) & jnp.all(tail == jnp.asarray(sequence, ids.dtype), axis=1)
    return found


def make_generate(
    model: AffectGPT, *, max_new: int, stop: Sequence[Sequence[int]], sampling: Sampling = GREEDY
) -> Callable[[Any, Prompts, Array], Answers]:
    """Build the generation function.

    Args:
      model: the network.
      max_new: new tokens a row at most.
      stop: id sequences that end an answer; none generates `max_new` tokens always.
      sampling: how tokens are drawn; greedy by default.

    Returns:
      `generate(params, prompts, keys) -> Answers` with a random key a row; it compiles once per bucket of prompts.
      A row's answer depends on its own prompt and key alone.
    """
    read, write = programs(model, max_new, tuple(tuple(int(i) for i in sequence) for sequence in stop), sampling)

    def generate(params: Any, prompts: Prompts, keys: Array) -> Answers:
        logits, cache = read(params, prompts)
        return write(params, prompts, logits, cache, keys)

    return generate


@functools.cache
def programs(
    model: AffectGPT, max_new: int, stop: StopSequences, sampling: Sampling
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """What reads prompts, and what writes answers; another checkpoint of the same network finds them compiled.

    Args:
      model: the network.
      max_new: new tokens a row at most.
      stop: id sequences that end an answer.
      sampling: how tokens are drawn.

    Returns:
      `(params, prompts) -> (logits, cache)` and `(params, prompts, logits, cache, keys) -> Answers`.
    """
    return jax.jit(partial(_prefill, model, max_new)), jax.jit(partial(_decode, model, max_new, stop, sampling))


def _prefill(model: AffectGPT, max_new: int, params: Any, prompts: Prompts) -> Any:
    return model.apply({"params": params}, *prompts, ring=max_new, method="prefill")


def _decode(
    model: AffectGPT,
    max_new: int,
    stop: StopSequences,
    sampling: Sampling,
    params: Any,
    prompts: Prompts,
    logits: Array,
    cache: Cache,
    keys: Array,
) -> Answers:
    rows = logits.shape[0]
    prompt_lengths = jnp.sum(prompts.used, axis=1, dtype=jnp.int32)

    def take(count: Array, logits: Array, progress: Progress) -> Progress:
        """Choose token number `count` of every row that has not ended."""
        if sampling.repetition_penalty != 1.0:
            ids, used = progress.ids, jnp.broadcast_to(jnp.arange(max_new) < count, progress.ids.shape)
            if sampling.penalise_prompt:
                # Soft tokens are no words: what stands in their places was never read.
                words = prompts.used & (prompts.soft_index == 0)
                ids, used = (jnp.concatenate(pair, axis=1) for pair in ((prompts.tokens, ids), (words, used)))
            logits = penalise_repeats(logits, ids, used, sampling.repetition_penalty)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, count)
        chosen = choose(step_keys, logits, sampling)
        chosen = jnp.where(progress.done, progress.last, chosen)
        ids = jax.lax.dynamic_update_slice_in_dim(progress.ids, chosen[:, None], count, axis=1)
        lengths = jnp.where(progress.done, progress.lengths, count + 1)
        done = progress.done | ends(ids, count + 1, stop)
        return Progress(progress.cache, ids, lengths, done, chosen)

    def unfinished(carry: tuple[Array, Progress]) -> Array:
        count, progress = carry
        return (count < max_new) & ~jnp.all(progress.done)

    def step(carry: tuple[Array, Progress]) -> tuple[Array, Progress]:
        count, progress = carry
        at = prompt_lengths + count - 1
        read: Any = model.apply({"params": params}, progress.last, at, progress.cache, method="step")
        logits, cache = read
        return count + 1, take(count, logits, progress._replace(cache=cache))

    start = Progress(
        cache=cache,
        ids=jnp.zeros((rows, max_new), jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
    )
    first = take(jnp.zeros((), jnp.int32), logits, start)
    _, last = jax.lax.while_loop(unfinished, step, (jnp.ones((), jnp.int32), first))
    return Answers(last.ids, last.lengths)
