"""Int8 kernels: how far they are from what they stand for, and what flows through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops.quantisation import int8_matmul, quantise


def kernel(*shape: int) -> np.ndarray:
    """Channels of very different sizes."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=shape) * np.exp(rng.normal(scale=3.0, size=shape[-1]))).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 24), (3, 48, 40)])
def test_no_entry_is_off_by_more_than_half_a_step(shape: tuple[int, ...]) -> None:
    """A step is 1/127 of the channel's largest entry, which itself is kept."""
    w = kernel(*shape)
    held, scale = jax.jit(quantise)(w)
    assert (held.dtype, scale.dtype) == (jnp.int8, jnp.float32)
    largest = np.abs(w).max(axis=-2)
    np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)
    assert np.abs(held).max(axis=-2).min() == np.abs(held).max() == 127
    back = np.asarray(held) * np.asarray(scale)[..., None, :]
    assert np.all(np.abs(back - w) <= largest[..., None, :] / 254 * (1 + 1e-5))
    # Rounded, not cut off: errors are even over the step.
    assert np.abs(back - w).mean() == pytest.approx((largest / 508).mean(), rel=0.05)


def test_a_channel_of_zeros_stays_one() -> None:
    held, scale = quantise(jnp.zeros((5, 2)))
    assert not np.any(held)
    assert np.isfinite(scale).all()


def test_the_product_and_its_gradient_are_those_of_the_rounded_kernel() -> None:
    w, x = kernel(32, 20), kernel(3, 7, 32)
    held, scale = quantise(jnp.asarray(w))
    rounded = np.asarray(held) * np.asarray(scale)
    gradient = kernel(3, 7, 20)
    y, backward = jax.vjp(lambda x: int8_matmul(x, held, scale), jnp.asarray(x))
    expected = x.astype(np.float64) @ rounded
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    expected = gradient.astype(np.float64) @ rounded.T
    np.testing.assert_allclose(
        backward(jnp.asarray(gradient))[0], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
    )


def test_products_are_of_half_precision_forward_and_backward() -> None:
    """And accumulate, and are scaled, in float32: two roundings at most."""
    w = kernel(256, 8)
    held, scale = quantise(jnp.asarray(w))
    x = jnp.asarray(kernel(4, 256), jnp.bfloat16)
    y = jax.jit(int8_matmul)(x, held, scale)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64) @ (np.asarray(held, np.float64) * np.asarray(scale, np.float64))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-5 * np.abs(exact).max())
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(int8_matmul(x, held, scale).astype(jnp.float32))))(x))
    products = [line for line in jaxpr.splitlines() if "dot_general" in line]
    assert len(products) == 2
    assert "preferred_element_type=float32" in jaxpr.split("dot_general")[1]
