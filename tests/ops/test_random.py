"""Counter-based random numbers: independent of sharding, distributed as they should be."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from affectgpt_jax.ops.dropout import dropout
from affectgpt_jax.ops.random import bits, fold, normal, uniform


def test_distributions() -> None:
    seed = jnp.uint32(7)
    assert stats.kstest(np.asarray(uniform(seed, (200, 300))).ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(np.asarray(normal(seed, (200, 300))).ravel(), "norm").pvalue > 0.01
    words = np.asarray(bits(seed, (4096,)))
    share = np.unpackbits(words.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    np.testing.assert_allclose(share, 0.5, atol=0.04)


def test_the_largest_word_is_a_finite_number() -> None:
    seed, shape = jnp.uint32(525), (1718,)  # the last of these words is one of 256 whose uniform number rounded to 1
    assert int(bits(seed, shape)[-1]) >> 8 == 2**24 - 1
    assert float(uniform(seed, shape)[-1]) == 1 - 2.0**-24
    assert 5 < float(normal(seed, shape)[-1]) < 6


def test_neighbours_and_seeds_are_uncorrelated() -> None:
    first, second = (np.asarray(normal(jnp.uint32(seed), (400, 400))) for seed in (1, 2))
    for x, y in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])):
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.01


def test_fold_separates_places() -> None:
    seeds = {int(fold(jnp.uint32(3), layer, place)) for layer in range(30) for place in range(30)}
    assert len(seeds) == 900


def test_values_are_a_function_of_seed_and_place() -> None:
    whole = bits(jnp.uint32(5), (6, 8))
    np.testing.assert_array_equal(whole, jax.jit(bits, static_argnums=1)(jnp.uint32(5), (6, 8)))
    assert len(np.unique(np.asarray(whole))) == 48


def test_dropout_keeps_the_mean() -> None:
    x = jnp.ones((300, 300))
    kept = np.asarray(dropout(jnp.uint32(1), x, 0.2))
    assert set(np.unique(kept)) == {0.0, np.float32(1.25)}
    assert abs(kept.mean() - 1) < 0.01
    assert dropout(None, x, 0.2) is x
    assert dropout(jnp.uint32(1), x, 0.0) is x
