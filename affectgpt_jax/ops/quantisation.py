"""Weight-only int8: symmetric, one float32 scale per output channel.

A kernel W [in, out] is held as q [in, out] in -127..127 and s [out] with W ~ q s; no entry is off by more than s / 2,
which is 1/254 of the largest entry of its channel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from affectgpt_jax.ops.product import Turned, product


def quantise(kernel: Float[Array, "*dims in out"]) -> tuple[Int8[Array, "*dims in out"], Float[Array, "*dims out"]]:
    """A kernel as int8, and its scales; computed in float32."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(kernel), axis=-2) / 127.0
    scale = jnp.where(scale > 0.0, scale, 1.0)  # a channel of zeros
    return jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale


@jax.custom_vjp
def int8_matmul(
    x: Float[Array, "*dims in"], kernel: Int8[Array, "in out"] | Turned, scale: Float[Array, " out"]
) -> Float[Array, "*dims out"]:
    """x (kernel * scale) in x's type; the sums are scaled in float32. Gradients flow to x alone.

    The kernel is converted where it is used, forward and backward, so that no pass keeps it in x's type for another.
    """
    return (product(x, kernel, jnp.float32) * scale).astype(x.dtype)


def _forward(x: Array, kernel: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return int8_matmul(x, kernel, scale), (kernel, scale)


def _backward(held: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    kernel, scale = held
    gradient = (gradient * scale).astype(gradient.dtype)
    return gradient @ kernel.astype(gradient.dtype).T, None, None


int8_matmul.defvjp(_forward, _backward)
