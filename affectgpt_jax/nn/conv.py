"""One-dimensional convolution over time."""

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from affectgpt_jax.nn import init
from affectgpt_jax.nn.parameter import parameter


class Conv1D(nn.Module):
    """Cross-correlation along the second axis, parameters `kernel` [width, in / groups, out], `bias` [out]."""

    features: int
    width: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T in"]) -> Float[Array, "B T_out out"]:
        shape = (self.width, x.shape[-1] // self.groups, self.features)
        kernel = parameter(self, "kernel", init.fan_in_normal, shape)
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride,),
            padding=((self.padding, self.padding),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        if self.bias:
            y = y + parameter(self, "bias", init.zeros, (self.features,)).astype(x.dtype)
        return y
