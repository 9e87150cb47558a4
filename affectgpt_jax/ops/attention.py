"""Scaled dot-product attention with grouped queries.

B batch, T queries, S keys, H query heads, K key heads (K divides H), G = H / K, D head width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from affectgpt_jax.ops.dropout import dropout
from affectgpt_jax.ops.random import Seed

MASKED = -1e30  # finite, so that a query with no key gives an average instead of NaN


def segment_mask(
    query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"], *, causal: bool
) -> Bool[Array, "B T S"]:
    """Who may attend to whom in packed rows.

    Args:
      query_segments: sample number of each query within its row.
      key_segments: the same for the keys. 0 marks padding, which is only ever seen by other padding.
      causal: keys up to the query's own index only.
    """
    mask = query_segments[:, :, None] == key_segments[:, None, :]
    if causal:
        index = jnp.arange(query_segments.shape[1])
        mask &= index[:, None] >= index[None, :]
    return mask


@jax.custom_vjp
def _products(q: Float[Array, "B T K G D"], k: Float[Array, "B S K D"]) -> Float[Array, "B K G T S"]:
    """q k^T in float32. Its gradient is rounded to the operands' type before it meets them, so that the backward
    products are of half precision where the forward one is, as in fused kernels."""
    return jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)


def _products_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return _products(q, k), (q, k)


def _products_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    q, k = operands
    gradient = gradient.astype(q.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", gradient, k), jnp.einsum("bkgts,btkgd->bskd", gradient, q)


_products.defvjp(_products_forward, _products_backward)


def _scores(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]) -> Float[Array, "B K G T S"]:
    batch, queries, heads, width = q.shape
    groups = heads // k.shape[2]
    return _products(q.reshape(batch, queries, k.shape[2], groups, width) * jnp.asarray(width**-0.5, q.dtype), k)


def _combine(weights: Float[Array, "B K G T S"], v: Float[Array, "B S K D"]) -> Float[Array, "B T H D"]:
    out = jnp.einsum("bkgts,bskd->btkgd", weights.astype(v.dtype), v)
    batch, queries, kv_heads, groups, width = out.shape
    return out.reshape(batch, queries, kv_heads * groups, width)


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    mask: Bool[Array, "B T S"] | None = None,
    *,
    seed: Seed | None = None,
    dropout_rate: float = 0.0,
) -> Float[Array, "B T H D"]:
    """Softmax attention; scores and softmax in float32, the result in the values' type.

    Args:
      q, k, v: queries, keys and values; each key head serves H / K query heads.
      mask: True where a query may look at a key.
      seed: with it, attention weights are dropped at `dropout_rate`.
      dropout_rate: share of the weights dropped.
    """
    scores = _scores(q, k)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = dropout(seed, jax.nn.softmax(scores, axis=-1), dropout_rate)
    return _combine(weights, v)


def cached_attention(
    q: Float[Array, "B T H D"],
    prompt: tuple[Float[Array, "B P K D"], Float[Array, "B P K D"]],
    generated: tuple[Float[Array, "B R K D"], Float[Array, "B R K D"]],
    prompt_mask: Bool[Array, "B T P"],
    generated_mask: Bool[Array, "B T R"],
) -> Float[Array, "B T H D"]:
    """Attention over a read-only prompt and the tokens generated so far, without joining the two in memory."""
    scores = jnp.concatenate(
        [
            jnp.where(mask[:, None, None], _scores(q, keys), MASKED)
            for (keys, _), mask in ((prompt, prompt_mask), (generated, generated_mask))
        ],
        axis=-1,
    )
    weights = jax.nn.softmax(scores, axis=-1)
    length = prompt[0].shape[1]
    return _combine(weights[..., :length], prompt[1]) + _combine(weights[..., length:], generated[1])
