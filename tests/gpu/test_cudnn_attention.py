"""cuDNN's attention against XLA's, on an NVIDIA GPU:

JAX_PLATFORMS=cuda XLA_FLAGS= python -m pytest -n 0 -m gpu tests/gpu
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.ops import packed_attention as ops
from affectgpt_jax.ops.packed_attention import packed_attention

pytestmark = pytest.mark.gpu

HALF = 2.0**-8
"""Rounding of bfloat16, relative."""


def packed_rows(rows: int, length: int) -> jax.Array:
    """Rows of several samples; the last has one only, and each ends in padding."""
    rng = np.random.default_rng(length)
    segments = np.zeros((rows, length), np.int32)
    for row in range(rows):
        ends = np.sort(rng.choice(np.arange(1, length - 8), 6 if row < rows - 1 else 1, replace=False))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            segments[row, start:end] = number
    return jnp.asarray(segments)


def compute(x: tuple[jax.Array, ...], weights: jax.Array, segments: jax.Array, kernel: Any) -> list[np.ndarray]:
    """The result, and the gradients of its weighted sum by queries, keys and values, as float32."""

    def loss(*x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = packed_attention(*x, segments, kernel=kernel)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*x)
    return [np.asarray(y, np.float32) for y in (out, *gradients)]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(28, 4, 128), (14, 2, 64), (4, 4, 64)])
@pytest.mark.parametrize("length", [512, 2048])
def test_cudnn_is_xla(heads: int, kv_heads: int, width: int, length: int) -> None:
    """Result and gradients of packed rows in bfloat16, against XLA's in float32 of the same numbers.

    Of an array's largest entry, cuDNN may be off by four roundings in the result and by eight in gradients, and on
    average by no more than twice what XLA in bfloat16 is off.
    """
    rng = np.random.default_rng(0)
    draw = lambda count: jnp.asarray(rng.normal(size=(2, length, count, width)), jnp.bfloat16)  # noqa: E731
    x = draw(heads), draw(kv_heads), draw(kv_heads)
    segments = packed_rows(2, length)
    used = segments[..., None, None] > 0  # what padding gives is not compared, but it must be finite
    weights = jnp.asarray(rng.normal(size=(2, length, heads, width)), jnp.float32) * used
    with jax.default_matmul_precision("highest"):
        exact = compute(tuple(y.astype(jnp.float32) for y in x), weights, segments, "xla")
    halves = compute(x, weights, segments, "xla")
    found = compute(x, weights, segments, "cudnn")
    for name, y, z, half in zip(("out", "dq", "dk", "dv"), found, exact, halves, strict=True):
        assert np.isfinite(y).all(), name
        y, z, half = (part * np.asarray(used) for part in (y, z, half))
        error = np.abs(y - z)
        assert error.max() < (4 if name == "out" else 8) * HALF * np.abs(z).max(), name
        assert error.mean() < 2 * np.abs(half - z).mean(), name


def test_auto_takes_it() -> None:
    """For long rows in bfloat16; and the compiled program calls it."""
    x = [jax.ShapeDtypeStruct((2, ops.LONG, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]
    program = jax.jit(packed_attention).lower(*x, jax.ShapeDtypeStruct((2, ops.LONG), jnp.int32)).compile()
    assert "__cudnn$fmha" in program.as_text()
