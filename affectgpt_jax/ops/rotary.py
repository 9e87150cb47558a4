"""Rotary position embeddings, the half-split form of Qwen2 and Llama."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary_angles(positions: Int[Array, "B T"], head_dim: int, theta: float) -> Float[Array, "B T half"]:
    """Angle of each pair of channels at each position, in float32."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions.astype(jnp.float32)[..., None] * frequencies


def rotate(x: Float[Array, "B T H D"], angles: Float[Array, "B T half"]) -> Float[Array, "B T H D"]:
    """Turn channel pairs (i, i + D/2) by their angles; computed in float32, returned in x's type."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
