"""Products with kernels that lie either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops.product import FEW_ROWS, Turned, product


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
