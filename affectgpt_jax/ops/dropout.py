"""Inverted dropout."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from affectgpt_jax.ops.random import Seed, uniform


def dropout(seed: Seed | None, x: Float[Array, "*dims"], rate: float) -> Float[Array, "*dims"]:
    """Zero each entry with probability `rate` and scale the rest by 1 / (1 - rate); without a seed, x itself."""
    if seed is None or not rate:
        return x
    return jnp.where(uniform(seed, x.shape) < rate, jnp.zeros((), x.dtype), x / (1.0 - rate))
