"""Inverted dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def dropout(rng: Array, x: Float[Array, "*dims"], rate: float) -> Float[Array, "*dims"]:
    """Zero each entry with probability `rate` and scale the rest by 1 / (1 - rate)."""
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
