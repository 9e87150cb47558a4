"""Norms against Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from affectgpt_jax.ops.norms import layer_norm, rms_norm

EXACT = {"atol": 1e-5, "rtol": 1e-5}

RANDOM = np.random.default_rng(0)
X = jnp.asarray(3 * RANDOM.normal(size=(2, 7, 12)) + 1, jnp.float32)
SCALE = jnp.asarray(RANDOM.normal(size=12), jnp.float32)
BIAS = jnp.asarray(RANDOM.normal(size=12), jnp.float32)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.5])
def test_layer_norm(eps: float) -> None:
    reference = nn.LayerNorm(epsilon=eps, use_fast_variance=False)
    expected = reference.apply({"params": {"scale": SCALE, "bias": BIAS}}, X)
    np.testing.assert_allclose(layer_norm(X, SCALE, BIAS, eps), expected, **EXACT)


def test_norm_over_time_is_a_group_norm_with_a_group_a_channel() -> None:
    reference = nn.GroupNorm(num_groups=12, epsilon=1e-5, use_fast_variance=False)
    expected = reference.apply({"params": {"scale": SCALE, "bias": BIAS}}, X)
    np.testing.assert_allclose(layer_norm(X, SCALE, BIAS, 1e-5, axis=-2), expected, **EXACT)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm(eps: float) -> None:
    expected = nn.RMSNorm(epsilon=eps).apply({"params": {"scale": SCALE}}, X)
    np.testing.assert_allclose(rms_norm(X, SCALE, eps), expected, **EXACT)


def test_half_precision_is_computed_in_float32() -> None:
    """Values whose squares overflow half precision are no trouble, and the type is kept."""
    x = jnp.asarray(X * 1e3, jnp.float16)
    for norm in (lambda x: rms_norm(x, SCALE, 1e-6), lambda x: layer_norm(x, SCALE, BIAS, 1e-5)):
        found = norm(x)
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(found.astype(np.float32), norm(x.astype(np.float32)), atol=5e-3, rtol=2e-3)


def test_a_constant_row_has_a_finite_gradient() -> None:
    """Variance 0 with the Q-Former's epsilon."""
    x = jnp.ones((1, 12))
    value, grad = jax.value_and_grad(lambda x: layer_norm(x, SCALE, BIAS, 1e-12).sum())(x)
    np.testing.assert_allclose(value, BIAS.sum(), rtol=1e-5)
    assert np.isfinite(grad).all()
