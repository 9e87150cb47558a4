"""Normalisations, always computed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*dims D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*dims D"]:
    """x / rms(x) * scale; the scale is applied in x's type, as Hugging Face's Qwen2 does."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(
    x: Float[Array, "*dims D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float, axis: int = -1
) -> Float[Array, "*dims D"]:
    """(x - mean) / sqrt(var + eps) * scale + bias over `axis`, population variance."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=axis, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=axis, keepdims=True) + eps)
    return (y * scale + bias).astype(x.dtype)
