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
HEAD = RANDOM.normal(size=(6, 11)).astype(np.float32)
HIDDEN = RANDOM.normal(size=(3, 10, 6)).astype(np.float32)
IDS = RANDOM.integers(0, 11, (3, 10))
WEIGHTS = (RANDOM.uniform(0.2, 2, (3, 10)) * (RANDOM.random((3, 10)) < 0.7)).astype(np.float32)


def plain(head: Any, hidden: Any) -> Any:
    losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ head, IDS)
    return jnp.sum(losses * WEIGHTS)


@pytest.mark.parametrize("chunk", [1, 4, 5, 10, 64])
def test_chunks_do_not_matter(chunk: int) -> None:
    """Chunk sizes that divide the ten targets, that do not, and that exceed them: value and gradients are Optax's."""

    @jax.jit
    def compute(head: Any, hidden: Any) -> Any:
        def loss(head: Any, hidden: Any) -> tuple[Any, TargetLoss]:
            sums = target_loss(lambda h: h @ head, hidden, IDS, WEIGHTS, chunk=chunk)
            return sums.loss, sums

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head, hidden)

    (_, sums), grads = compute(HEAD, HIDDEN)
    expected, expected_grads = jax.value_and_grad(plain, argnums=(0, 1))(HEAD, HIDDEN)
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-6)
    np.testing.assert_allclose(sums.weight, WEIGHTS.sum(), rtol=1e-6)
    assert sums.tokens == np.count_nonzero(WEIGHTS)
    hits = (np.argmax(HIDDEN @ HEAD, axis=-1) == IDS) & (WEIGHTS > 0)
    assert sums.correct == hits.sum() > 0
    for found, wanted in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(found, wanted, **EXACT)


@pytest.mark.parametrize("rubbish", [-100, 11, np.iinfo(np.int32).max])
def test_ids_without_weight_may_be_anything(rubbish: int) -> None:
    ids = np.where(WEIGHTS > 0, IDS, rubbish)

    def loss(head: Any, ids: Any) -> Any:
        return target_loss(lambda h: h @ head, HIDDEN, ids, WEIGHTS, chunk=4).loss

    for found, expected in zip(jax.value_and_grad(loss)(HEAD, ids), jax.value_and_grad(loss)(HEAD, IDS), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_hidden_states_without_weight_may_be_nan() -> None:
    hidden = np.where(WEIGHTS[..., None] > 0, HIDDEN, np.nan)
    sums = target_loss(lambda h: h @ HEAD, hidden, IDS, WEIGHTS, chunk=4)
    expected = target_loss(lambda h: h @ HEAD, HIDDEN, IDS, WEIGHTS, chunk=4)
    for found, wanted in zip(sums, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_no_weight_at_all() -> None:
    sums = target_loss(lambda h: h @ HEAD, HIDDEN, IDS, np.zeros_like(WEIGHTS), chunk=4)
    assert [float(x) for x in sums] == [0.0, 0.0, 0.0, 0.0]


def test_half_precision_logits() -> None:
    """The softmax is in float32 whatever the logits are, and large logits do not overflow."""
    logits = jnp.asarray(300 * HIDDEN @ HEAD, jnp.bfloat16)
    found = cross_entropy(logits, IDS)
    assert found.dtype == jnp.float32
    expected = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
