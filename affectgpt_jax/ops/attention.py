"""Scaled dot-product attention with grouped queries.

B batch, T queries, S keys, H query heads, K key heads (K divides H), G = H / K, D head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8

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
def _products(q: Float[Array, "B K G T D"], k: Float[Array, "B K S D"]) -> Float[Array, "B K G T S"]:
    """q k^T in float32. Its gradient is rounded to the operands' type before it meets them, so that the backward
    products are of half precision where the forward one is, as in fused kernels."""
    return jnp.einsum("bkgtd,bksd->bkgts", q, k, preferred_element_type=jnp.float32)


def _products_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return _products(q, k), (q, k)


def _products_backward(operands: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    q, k = operands
    gradient = gradient.astype(q.dtype)
    # The keys' in this order, since a compiler turns the left side of a sum over tokens.
    return jnp.einsum("bkgts,bksd->bkgtd", gradient, k), jnp.einsum("bkgtd,bkgts->bkds", q, gradient).swapaxes(2, 3)


_products.defvjp(_products_forward, _products_backward)


def _by_key_head(q: Float[Array, "B T H D"], key_heads: int) -> Float[Array, "B K G T D"]:
    """Scaled queries, heads first: then no product has to turn the scores, which are what is large."""
    batch, queries, heads, width = q.shape
    apart = jnp.moveaxis(q.reshape(batch, queries, key_heads, heads // key_heads, width), 1, 3)
    return apart * jnp.asarray(width**-0.5, q.dtype)


def _by_token(out: Float[Array, "B K G T D"]) -> Float[Array, "B T H D"]:
    batch, key_heads, groups, queries, width = out.shape
    return jnp.moveaxis(out, 3, 1).reshape(batch, queries, key_heads * groups, width)


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
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    scores = _products(_by_key_head(q, k.shape[1]), k)
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = dropout(seed, jax.nn.softmax(scores, axis=-1), dropout_rate)
    return _by_token(jnp.einsum("bkgts,bksd->bkgtd", weights.astype(v.dtype), v))


class Rounded(NamedTuple):
    """Vectors as int8 with a float32 scale each: x ~ values * scale."""

    values: Int8[Array, "B K S D"]
    scale: Float[Array, "B K S"]


KeysValues = tuple[Float[Array, "_ _ _ _"] | Rounded, Float[Array, "_ _ _ _"] | Rounded]
"""Keys and values as a cache holds them [B, K, S, D]: the tokens of a head lie together, as a step reads them."""


def hold(k: Float[Array, "B S K D"], v: Float[Array, "B S K D"], int8: bool) -> KeysValues:
    """Keys and values for a cache, as they are or rounded."""
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    return (_rounded(k), _rounded(v)) if int8 else (k, v)


def _rounded(x: Float[Array, "B K S D"]) -> Rounded:
    """No entry is off by more than scale / 2, 1/254 of its vector's largest."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1), 1e-30) / 127.0
    return Rounded(jnp.round(x / scale[..., None]).astype(jnp.int8), scale)


def cached_attention(
    q: Float[Array, "B T H D"],
    prompt: KeysValues,
    answer: KeysValues,
    prompt_mask: Bool[Array, "B T P"],
    answer_mask: Bool[Array, "B T R"],
) -> Float[Array, "B T H D"]:
    """Attention over a prompt and the tokens of the answer so far, without joining the two in memory.

    Rounded keys and values are only ever converted: scores are scaled after the product, weights before it.
    """
    q = _by_key_head(q, jax.tree.leaves(prompt)[0].shape[1])
    batch, key_heads, groups, queries, width = q.shape
    # All queries of a key head are the rows of one product.
    q = q.reshape(batch, key_heads, groups * queries, width)

    def look(keys: Float[Array, "B K S D"] | Rounded, mask: Bool[Array, "B T S"]) -> Float[Array, "B K Q S"]:
        values = keys.values.astype(q.dtype) if isinstance(keys, Rounded) else keys
        scores = jnp.einsum("bkqd,bksd->bkqs", q, values, preferred_element_type=jnp.float32)
        scores = scores * keys.scale[:, :, None] if isinstance(keys, Rounded) else scores
        return jnp.where(jnp.tile(mask, (1, groups, 1))[:, None], scores, MASKED)

    def take(weights: Float[Array, "B K Q S"], values: Float[Array, "B K S D"] | Rounded) -> Float[Array, "B K Q D"]:
        if isinstance(values, Rounded):
            weights, values = weights * values.scale[:, :, None], values.values.astype(q.dtype)
        return jnp.einsum("bkqs,bksd->bkqd", weights.astype(values.dtype), values)

    length = prompt_mask.shape[-1]
    scores = jnp.concatenate([look(prompt[0], prompt_mask), look(answer[0], answer_mask)], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    out = take(weights[..., :length], prompt[1]) + take(weights[..., length:], answer[1])
    return _by_token(out.reshape(batch, key_heads, groups, queries, width))
