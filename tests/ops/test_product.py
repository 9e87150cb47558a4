"""Products with kernels that lie either way."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops.product import FEW_ROWS, Turned, product, widen


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 2, 5), (FEW_ROWS, 5), (FEW_ROWS + 1, 5)])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_turned_kernel_multiplies_alike(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype(np.float32), (rng.normal(size=(5, 7)) * 9).astype(kind)
    found = [jax.jit(product)(x, one) for one in (kernel, Turned(np.ascontiguousarray(kernel.T)))]
    for y in found:
        np.testing.assert_allclose(y, x @ kernel.astype(np.float32), rtol=1e-5, atol=1e-5, strict=True)


def test_sums_are_of_the_type_that_is_asked_for() -> None:
    x, kernel = jnp.ones((2, 5), "bfloat16"), jnp.ones((7, 5), np.int8)
    assert product(x, Turned(kernel), np.float32).dtype == np.float32
    assert product(x, Turned(kernel)).dtype == x.dtype
    assert product(x, kernel.T, np.float32).dtype == np.float32


def test_few_rows_put_the_weights_first() -> None:
    """Else the compiler swaps the sides, and the layout is for nothing."""
    kernel = Turned(jax.ShapeDtypeStruct((512, 256), np.float32))
    for rows, first in ((4, True), (FEW_ROWS * 2, False)):
        x = jax.ShapeDtypeStruct((rows, 256), np.float32)
        text = jax.jit(product).lower(x, kernel).compile().as_text()
        assert (f"f32[512,{rows}]" in text) == first


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 2)])
def test_widening_is_a_product(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((*shape, 3), (3, 7)))
    weights = rng.normal(size=(*shape, 7)).astype(np.float32)

    def both(multiply: Callable[[jax.Array, jax.Array], jax.Array]) -> list[jax.Array]:
        return [multiply(x, b), *jax.grad(lambda x, b: jnp.sum(multiply(x, b) * weights), argnums=(0, 1))(x, b)]

    for found, expected in zip(both(widen), both(jnp.matmul), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, strict=True)


def test_the_wide_gradient_is_not_transposed() -> None:
    """A copy of it would take longer than the product that it is made for."""

    def program(multiply: Callable[[jax.Array, jax.Array], jax.Array]) -> str:
        def loss(x: jax.Array, b: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(multiply(x, b)))

        shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((3, 128, 16), (16, 2048))]
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().as_text()

    assert "f32[2048,384]" not in program(widen)
    assert "f32[2048,384]" in program(jnp.matmul), "the backend has changed: is `widen` still needed?"
