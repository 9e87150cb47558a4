"""Cross entropy at target positions only, in chunks, so that full logits never exist.

B rows, N targets a row, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TargetLoss(NamedTuple):
    """Sums over the batch; the objective is `loss / weight`."""

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    correct: Float[Array, ""]
    """How many targets the largest logit hits."""
    tokens: Float[Array, ""]
    """How many targets have a weight."""


def cross_entropy(logits: Float[Array, "*dims V"], ids: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
    """-log softmax(logits)[id] in float32, in nats."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]


def target_loss(
    head: Callable[[Float[Array, "B n D"]], Float[Array, "B n V"]],
    hidden: Float[Array, "B N D"],
    ids: Int[Array, "B N"],
    weights: Float[Array, "B N"],
    *,
    chunk: int,
) -> TargetLoss:
    """Weighted cross entropy of `head(hidden)` against `ids`.

    Args:
      head: the map to logits.
      hidden: hidden states at the positions that predict a target.
      ids: target ids; anything where the weight is 0.
      weights: float32 weight of each target.
      chunk: targets a row whose logits exist at a time; N is padded up to a multiple of it.
    """
    count = hidden.shape[1]
    chunk = min(chunk, count)
    padding = -count % chunk

    def chunks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def part(sums: TargetLoss, xs: tuple[Array, Array, Array]) -> tuple[TargetLoss, None]:
        h, y, w = xs
        logits = head(h)
        used = (w > 0).astype(jnp.float32)
        hits = (jnp.argmax(logits, axis=-1) == y) * used
        losses = jnp.where(w > 0, cross_entropy(logits, y), 0.0)
        add = jax.tree.map(lambda x: jnp.sum(x, axis=1), TargetLoss(losses * w, w, hits, used))
        return jax.tree.map(jnp.add, sums, add), None

    # Row by row until the end: rows may lie on different devices, and short sums round less.
    zero = jnp.zeros(hidden.shape[0], jnp.float32)
    sums, _ = jax.lax.scan(part, TargetLoss(zero, zero, zero, zero), (chunks(hidden), chunks(ids), chunks(weights)))
    return jax.tree.map(jnp.sum, sums)
