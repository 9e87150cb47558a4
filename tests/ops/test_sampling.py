"""Sampling against Hugging Face's logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops import sampling as ops
from affectgpt_jax.ops.sampling import GREEDY, Sampling

choose = jax.jit(ops.choose, static_argnames="how")
filter_logits = jax.jit(ops.filter_logits, static_argnames=("top_k", "top_p"))
penalise_repeats = jax.jit(ops.penalise_repeats, static_argnames="penalty")

VOCAB = 40
LOGITS = (3 * np.random.default_rng(0).normal(size=(64, VOCAB))).astype(np.float32)


@pytest.mark.parametrize("top_k", [0, 1, 8, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.9, 1.0])
def test_filters(top_k: int, top_p: float) -> None:
    """Top-k, then top-p of what is left, keep the same tokens of random logits."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    expected = torch.from_numpy(LOGITS)
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    np.testing.assert_array_equal(filter_logits(LOGITS, top_k=top_k, top_p=top_p), expected)


def test_penalty() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    earlier = np.random.default_rng(1).integers(0, VOCAB, (64, 9))
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty=1.3)
    expected = processor(torch.from_numpy(earlier[:, :6]), torch.from_numpy(LOGITS.copy()))
    used = np.broadcast_to(np.arange(9) < 6, earlier.shape)
    np.testing.assert_allclose(penalise_repeats(LOGITS, earlier, used, penalty=1.3), expected, rtol=1e-6)
    np.testing.assert_array_equal(penalise_repeats(LOGITS, earlier, np.zeros_like(used), penalty=1.3), LOGITS)


def test_a_small_penalty_in_half_precision() -> None:
    """It is applied in float32: many logits of bfloat16 would not move by 5 %, or move too far."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    earlier = np.random.default_rng(2).integers(0, VOCAB, (64, 30))
    exact = torch.from_numpy(np.array(logits.astype(jnp.float32)))
    expected = transformers.RepetitionPenaltyLogitsProcessor(penalty=1.05)(torch.from_numpy(earlier), exact)
    found = penalise_repeats(logits, earlier, np.ones_like(earlier, bool), penalty=1.05)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("top_p", [0.0, 1e-9])
def test_the_most_likely_token_always_stays(top_p: float) -> None:
    kept = np.isfinite(np.asarray(filter_logits(LOGITS, top_k=0, top_p=top_p)))
    np.testing.assert_array_equal(np.flatnonzero(kept), np.arange(64) * VOCAB + LOGITS.argmax(axis=1))


def test_greedy_needs_no_keys() -> None:
    keys = jax.random.split(jax.random.key(0), 64)
    np.testing.assert_array_equal(choose(keys, LOGITS, how=GREEDY), LOGITS.argmax(axis=1))
    np.testing.assert_array_equal(choose(keys, LOGITS, how=Sampling(temperature=0.7, top_k=1)), LOGITS.argmax(axis=1))


def test_draws_follow_the_filtered_distribution() -> None:
    """Shares of 20,000 draws at temperature 0.7 lie within four standard errors; filtered tokens are never drawn."""
    how = Sampling(temperature=0.7, top_k=8, top_p=0.9)
    count = 20_000
    keys = jax.random.split(jax.random.key(3), count)
    drawn = choose(keys, jnp.broadcast_to(LOGITS[0] / 3, (count, VOCAB)), how=how)
    shares = np.bincount(drawn, minlength=VOCAB) / count
    scaled = LOGITS[:1].astype(np.float64) / 3 / 0.7
    order = np.argsort(-scaled[0])[:8]
    weights = np.exp(scaled[0, order])
    weights /= weights.sum()
    kept = int(np.searchsorted(np.cumsum(weights), 0.9)) + 1
    assert 2 <= kept < 8
    expected = np.zeros(VOCAB)
    expected[order[:kept]] = weights[:kept] / weights[:kept].sum()
    assert np.all(shares[expected == 0] == 0)
    np.testing.assert_array_less(np.abs(shares - expected), 4 * np.sqrt(expected * (1 - expected) / count) + 1e-9)


def test_a_row_draws_with_its_own_key_alone() -> None:
    how = Sampling(temperature=1.0, top_k=20, top_p=0.9)
    keys = jax.random.split(jax.random.key(0), 64)
    together = choose(keys, LOGITS, how=how)
    np.testing.assert_array_equal(choose(keys[7:9], LOGITS[7:9], how=how), together[7:9])
