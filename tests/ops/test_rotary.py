"""Rotary positions against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops import rotary as ops

rotate = jax.jit(ops.rotate)
rotary_angles = jax.jit(ops.rotary_angles, static_argnums=(1, 2))


@pytest.mark.parametrize(("head_dim", "theta"), [(8, 1e4), (6, 1e6)])
def test_rotation_of_complex_numbers(head_dim: int, theta: float) -> None:
    """Channels i and i + D/2 are the two parts of one number that is turned by position / theta^(2i/D)."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 5, 3, head_dim)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 700, 1999]])
    half = head_dim // 2
    numbers = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    exponents = 2 * np.arange(half) / head_dim
    turned = numbers * np.exp(1j * positions[..., None, None] / theta**exponents)
    found = rotate(x, rotary_angles(positions, head_dim, theta))
    # Float32 angles near 2,000 are good to 1e-4.
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=-1), atol=5e-4)
    np.testing.assert_allclose(found[0], np.concatenate([turned.real, turned.imag], axis=-1)[0], atol=1e-5)


def test_scores_depend_on_the_distance_alone() -> None:
    random = np.random.default_rng(1)
    q, k = (random.normal(size=(1, 1, 1, 8)).astype(np.float32) for _ in range(2))

    def score(query_at: int, key_at: int) -> float:
        turned = (rotate(x, rotary_angles(np.array([[at]]), 8, 1e4)) for x, at in ((q, query_at), (k, key_at)))
        return float(jnp.sum(next(turned) * next(turned)))

    np.testing.assert_allclose(score(9, 2), score(107, 100), rtol=1e-4)
    np.testing.assert_allclose(score(4, 4), float(np.sum(q * k)), rtol=1e-5)
    assert abs(score(9, 2) - score(9, 3)) > 1e-3


def test_type_is_kept() -> None:
    x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    assert rotate(x, rotary_angles(np.array([[3]]), 4, 1e4)).dtype == jnp.bfloat16
