"""The chunked loss at targets against Optax's cross entropy over full logits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affectgpt_jax.ops.losses import TargetLoss, cross_entropy, target_loss

EXACT = {"atol": 1e-5, "rtol": 1e-5}

RANDOM = np.random.default_rng(0)
HEAD = jnp.asarray(RANDOM.normal(size=(6, 11)), jnp.float32)
HIDDEN = jnp.asarray(RANDOM.normal(size=(3, 10, 6)), jnp.float32)
IDS = jnp.asarray(RANDOM.integers(0, 11, (3, 10)))
WEIGHTS = jnp.asarray(RANDOM.uniform(0.2, 2, (3, 10)) * (RANDOM.random((3, 10)) < 0.7), jnp.float32)


@jax.jit
def sums(head: Any, hidden: Any, ids: Any, weights: Any) -> TargetLoss:
    return target_loss(lambda h: h @ head, hidden, ids, weights, chunk=4)


def plain(head: Any, hidden: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head, IDS)
    return jnp.sum(losses * WEIGHTS)


@pytest.mark.parametrize("chunk", [4, 5, 64])
def test_chunks_do_not_matter(chunk: int) -> None:
    """Chunk sizes that divide the ten targets, that do not, and that exceed them: value and gradients are Optax's."""

    @jax.jit
    def compute(head: Any, hidden: Any) -> Any:
        def loss(head: Any, hidden: Any) -> tuple[Any, TargetLoss]:
            result = target_loss(lambda h: h @ head, hidden, IDS, WEIGHTS, chunk=chunk)
            return result.loss, result

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head, hidden)

    (_, result), grads = compute(HEAD, HIDDEN)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(HEAD, HIDDEN)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-6)
    np.testing.assert_allclose(result.weight, WEIGHTS.sum(), rtol=1e-6)
    assert result.tokens == np.count_nonzero(WEIGHTS)
    hits = (np.argmax(HIDDEN @ HEAD, axis=-1) == IDS) & (WEIGHTS > 0)
    assert result.correct == hits.sum() > 0
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, **EXACT)


def test_ids_without_weight_may_be_anything() -> None:
    @jax.jit
    def compute(ids: Any) -> Any:
        return jax.value_and_grad(lambda head: sums(head, HIDDEN, ids, WEIGHTS).loss)(HEAD)

    expected = compute(IDS)
    for rubbish in (-100, 11, np.iinfo(np.int32).max):
        for found, wanted in zip(compute(np.where(WEIGHTS > 0, IDS, rubbish)), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_hidden_states_without_weight_may_be_nan() -> None:
    hidden = np.where(WEIGHTS[..., None] > 0, HIDDEN, np.nan)
    expected = sums(HEAD, HIDDEN, IDS, WEIGHTS)
    for found, wanted in zip(sums(HEAD, hidden, IDS, WEIGHTS), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_no_weight_at_all() -> None:
    assert [float(x) for x in sums(HEAD, HIDDEN, IDS, np.zeros_like(WEIGHTS))] == [0.0, 0.0, 0.0, 0.0]


def test_half_precision_logits() -> None:
    """The softmax is in float32 whatever the logits are, and large logits do not overflow."""
    logits = jnp.asarray(300 * HIDDEN @ HEAD, jnp.bfloat16)
    found = cross_entropy(logits, IDS)
    assert found.dtype == jnp.float32
    expected = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
