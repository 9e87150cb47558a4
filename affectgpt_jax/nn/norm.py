"""Normalisation layers."""

from flax import linen as nn
from jaxtyping import Array, Float

from affectgpt_jax.nn import init
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.ops.norms import layer_norm, rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm, parameter `scale` [D]."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        return rms_norm(x, parameter(self, "scale", init.ones, (x.shape[-1],)), self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, parameters `scale` and `bias` [D].

    With `axis=-2` each channel is normalised over time instead: HuBERT's group norm with one group a channel.
    """

    eps: float
    axis: int = -1

    @nn.compact
    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        scale = parameter(self, "scale", init.ones, (x.shape[-1],))
        bias = parameter(self, "bias", init.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps, self.axis)
