"""Products of activations with kernels, whichever way the kernels lie."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

FEW_ROWS = 64
"""Up to so many rows a CPU puts the weights first."""


class Turned(NamedTuple):
    """A kernel [in, out] that lies in memory as [out, in]."""

    matrix: Shaped[Array, "out in"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The kernel's, [in, out]."""
        return self.matrix.shape[::-1]


def product(
    x: Float[Array, "*dims in"], kernel: Shaped[Array, "in out"] | Turned, dtype: DTypeLike | None = None
) -> Float[Array, "*dims out"]:
    """x @ kernel.

    Args:
      x: its rows.
      kernel: converted to x's type.
      dtype: of the sums and the result; x's by default.
    """
    if not isinstance(kernel, Turned):
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)
    matrix = kernel.matrix.astype(x.dtype)

    def plain(x: Array, matrix: Array) -> Array:
        return jnp.matmul(x, matrix.T, preferred_element_type=dtype)

    def weights_first(x: Array, matrix: Array) -> Array:
        y = jnp.matmul(matrix, x.reshape(-1, x.shape[-1]).T, preferred_element_type=dtype)
        # XLA would swap the sides to save the turn of a small result.
        return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], matrix.shape[0])

    # Before a product the backend sorts the right-hand side's entries for its kernels: of the weights that takes longer
    # than the product with a few rows does.
    few = math.prod(x.shape[:-1]) <= FEW_ROWS
    return jax.lax.platform_dependent(x, matrix, cpu=weights_first if few else plain, default=plain)


@jax.custom_vjp
def widen(x: Float[Array, "*dims rank"], b: Float[Array, "rank out"]) -> Float[Array, "*dims out"]:
    """x b for a narrow x, such as an adapter's.

    The gradient of b is made as x^T dy. The rule of JAX's own product makes (dy^T x)^T, for which XLA's CPU backend
    first writes the wide dy anew, transposed.
    """
    return x @ b


def _widen(x: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ b, (x, b)


def _narrow(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, b = kept
    return dy @ b.T, jnp.einsum("...r,...o->ro", x, dy)


widen.defvjp(_widen, _narrow)
