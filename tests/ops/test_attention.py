"""Attention against jax's own and against a plain loop."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops import attention as ops
from affectgpt_jax.ops.attention import segment_mask

EXACT = {"atol": 1e-5, "rtol": 1e-5}

HEADS = [(4, 4), (6, 3), (5, 1)]

attention = jax.jit(ops.attention, static_argnames="dropout_rate")
cached_attention = jax.jit(ops.cached_attention)
library_attention = jax.jit(jax.nn.dot_product_attention)


def random_inputs(heads: int, kv_heads: int, queries: int = 4, keys: int = 7) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(heads)
    draw = lambda length, count: random.normal(size=(2, length, count, 8)).astype(np.float32)  # noqa: E731
    return draw(queries, heads), draw(keys, kv_heads), draw(keys, kv_heads)


def random_mask(queries: int = 4, keys: int = 7) -> np.ndarray:
    mask = np.random.default_rng(0).random((2, queries, keys)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_grouped_queries(heads: int, kv_heads: int) -> None:
    q, k, v = random_inputs(heads, kv_heads)
    mask = random_mask()
    for own in (None, mask):
        expected = library_attention(q, k, v, mask=None if own is None else own[:, None])
        np.testing.assert_allclose(attention(q, k, v, own), expected, **EXACT)


def test_masked_keys_do_not_matter() -> None:
    q, k, v = random_inputs(6, 3)
    mask = np.ones((2, 4, 7), bool)
    mask[:, :, 5:] = False
    k[:, 5:], v[:, 5:] = 1e4, -1e4
    np.testing.assert_allclose(attention(q, k, v, mask), attention(q, k[:, :5], v[:, :5]), **EXACT)


def test_a_query_without_keys_is_finite() -> None:
    q, k, v = random_inputs(4, 2)
    mask = random_mask()
    mask[0, 1] = False
    out, grad = jax.jit(jax.value_and_grad(lambda q, *x: ops.attention(q, *x).sum()))(q, k, v, mask)
    assert np.isfinite(out)
    assert np.isfinite(grad).all()


def test_half_precision_scores_are_float32() -> None:
    """bfloat16 inputs: the result is the inputs' type, off by their rounding only."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_inputs(6, 3))
    found = attention(q, k, v)
    assert found.dtype == jnp.bfloat16
    expected = attention(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("causal", [False, True])
def test_segment_mask(causal: bool) -> None:
    """A loop over all pairs: same sample, and no later key where causal."""
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 3, 3, 3, 3, 0]])
    mask = np.asarray(jax.jit(segment_mask, static_argnames="causal")(segments, segments, causal=causal))
    for b in range(2):
        for t in range(7):
            for s in range(7):
                assert mask[b, t, s] == (segments[b, t] == segments[b, s] and (s <= t or not causal))


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_cached_attention_is_full_attention(heads: int, kv_heads: int) -> None:
    """Keys in two parts, each with unused slots that hold rubbish, give what the used ones in one part give."""
    q, k, v = random_inputs(heads, kv_heads, queries=1)
    mask = np.ones((2, 1, 7), bool)
    mask[1, :, 3], mask[:, :, 6] = False, False
    expected = library_attention(q, k, v, mask=mask[:, None])
    k[:, 6:], v[:, 6:], k[1, 3], v[1, 3] = 1e4, 1e4, 1e4, -1e4
    parts = [(jnp.asarray(k[:, some]), jnp.asarray(v[:, some])) for some in (slice(4), slice(4, None))]
    prompt, ring = (ops.hold(*part, int8=False) for part in parts)
    np.testing.assert_allclose(cached_attention(q, prompt, ring, mask[..., :4], mask[..., 4:]), expected, **EXACT)


def test_dropout_drops_weights() -> None:
    """With ones as values a row's output is the sum of the weights kept: one on average, the scale 1 / (1 - rate)."""
    q, k, v = random_inputs(4, 2, queries=64, keys=64)
    ones = np.ones_like(v)
    rate = 0.25
    kept = attention(q * 0, k, ones, seed=jnp.uint32(0), dropout_rate=rate)
    # Equal scores: each of the 64 weights is 1/64 or 0, times 4/3.
    counts = np.asarray(kept) * 64 * (1 - rate)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.02)
    again = attention(q * 0, k, ones, seed=jnp.uint32(0), dropout_rate=rate)
    np.testing.assert_array_equal(kept, again)
    other = attention(q * 0, k, ones, seed=jnp.uint32(1), dropout_rate=rate)
    assert np.any(np.asarray(kept) != np.asarray(other))
    none = attention(q, k, v, seed=jnp.uint32(0), dropout_rate=0.0)
    np.testing.assert_array_equal(none, attention(q, k, v))


def test_scores_are_never_turned() -> None:
    """They are what is large, and a CPU turns them an entry at a time."""
    queries, keys = (jax.ShapeDtypeStruct((1, 48, heads, 8), np.float32) for heads in (6, 3))
    mask = jax.ShapeDtypeStruct((1, 48, 48), bool)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(attention(q, k, v, mask)))

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(queries, keys, keys, mask).compile().as_text()
    turned = re.findall(r"= f32\[([\d,]+)\]\S* transpose\(", program)
    assert turned
    assert max(math.prod(map(int, shape.split(","))) for shape in turned) < 6 * 48 * 48
