"""HuBERT speech encoder: waveforms to one feature a clip (Hsu et al. 2021; Hugging Face `HubertModel`).

N clips, S samples, C convolution channels, T frames, D width, L layers.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from affectgpt_jax.config.networks import HubertConfig
from affectgpt_jax.nn.conv import Conv1D
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.nn.norm import LayerNorm
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.nn.stack import init_layers, run_layers
from affectgpt_jax.ops.attention import attention


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


class ConvFrontEnd(nn.Module):
    """Strided convolutions over the waveform, each with GELU; norm over channels, or over time in the first only."""

    config: HubertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, wave: Float[Array, "N S"]) -> Float[Array, "N T C"]:
        c = self.config
        x = wave[..., None].astype(self.dtype)
        for i, sizes in enumerate(zip(c.conv_widths, c.conv_kernels, c.conv_strides, strict=True)):
            channels, width, stride = sizes
            x = Conv1D(channels, width, stride, bias=c.conv_bias, name=f"conv_{i}")(x)
            if c.conv_norm == "layer":
                x = LayerNorm(1e-5, name=f"norm_{i}")(x)
            elif i == 0:
                x = LayerNorm(1e-5, axis=-2, name="norm_0")(x)
            x = _gelu(x)
        return x


class HubertLayer(nn.Module):
    """Transformer layer: norms before the blocks ("stable layer norm") or after them."""

    config: HubertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "N T D"], state: None = None) -> tuple[Float[Array, "N T D"], Array]:
        c = self.config
        dense = lambda name, width: Dense(width, dtype=self.dtype, name=name)  # noqa: E731
        attention_norm = LayerNorm(c.norm_eps, name="attention_norm")
        mlp_norm = LayerNorm(c.norm_eps, name="mlp_norm")

        def attend(x: Array) -> Array:
            q, k, v = (
                rearrange(dense(name, c.width)(x), "n t (h d) -> n t h d", h=c.heads)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            return dense("out_proj", c.width)(rearrange(attention(q, k, v), "n t h d -> n t (h d)"))

        def feed_forward(x: Array) -> Array:
            return dense("fc2", c.width)(_gelu(dense("fc1", c.mlp_width)(x)))

        if c.stable_layer_norm:
            h = h + attend(attention_norm(h))
            h = h + feed_forward(mlp_norm(h))
        else:
            h = attention_norm(h + attend(h))
            h = mlp_norm(h + feed_forward(h))
        return h, h


class Hubert(nn.Module):
    """HuBERT with the pooling AffectGPT uses: mean of the last four hidden states, then of time (QUIRKS 5)."""

    config: HubertConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.front_end = ConvFrontEnd(c, self.dtype)
        if c.projection_norm:
            self.projection_norm = LayerNorm(c.norm_eps)
        self.projection = Dense(c.width, dtype=self.dtype)
        self.position_conv = Conv1D(
            c.width, c.position_kernel, padding=c.position_kernel // 2, groups=c.position_groups
        )
        self.norm = LayerNorm(c.norm_eps)
        self.layer = HubertLayer(c, self.dtype, parent=None)
        self.layers = parameter(self, "layers", init_layers(self.layer, c.layers, jnp.zeros((1, 2, c.width))))

    def hidden_states(self, wave: Float[Array, "N S"]) -> Float[Array, "L1 N T D"]:
        """The L + 1 hidden states, as Hugging Face lists them: the first layer's input, then each layer's output.

        With stable layer norm the last one, and only it, has passed the final norm.
        """
        c = self.config
        x = self.front_end(wave)
        if c.projection_norm:
            x = self.projection_norm(x)
        x = self.projection(x)
        # An even kernel with padding of half its width yields one frame too many.
        x = x + _gelu(self.position_conv(x)[:, : x.shape[1]])
        if not c.stable_layer_norm:
            x = self.norm(x)
        _, outputs = run_layers(self.layer, self.layers, x)
        last = self.norm(outputs[-1]) if c.stable_layer_norm else outputs[-1]
        return jnp.concatenate([x[None], outputs[:-1], last[None]])

    def __call__(self, wave: Float[Array, "N S"]) -> Float[Array, "N D"]:
        """One feature a clip from normalised waveforms at 16 kHz."""
        return jnp.mean(jnp.mean(self.hidden_states(wave)[-4:], axis=0), axis=1)
