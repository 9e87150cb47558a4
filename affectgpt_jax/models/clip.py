"""CLIP vision tower: frames to projected, pooled features (Radford et al. 2021; Hugging Face `CLIPModel`).

N frames, P patches (grid * grid), T = P + 1 tokens, D width, H heads.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from affectgpt_jax.config.networks import VisionConfig
from affectgpt_jax.nn import init
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.nn.norm import LayerNorm
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.nn.stack import init_layers, run_layers
from affectgpt_jax.ops.attention import attention


def _activation(name: str, x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x) if name == "quick_gelu" else jax.nn.gelu(x, approximate=False)


class VisionLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "N T D"], state: None = None) -> tuple[Float[Array, "N T D"], None]:
        c = self.config
        dense = lambda name, width: Dense(width, dtype=self.dtype, name=name)  # noqa: E731
        x = LayerNorm(c.norm_eps, name="attention_norm")(h)
        q, k, v = (
            rearrange(dense(name, c.width)(x), "n t (h d) -> n t h d", h=c.heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        x = rearrange(attention(q, k, v), "n t h d -> n t (h d)")
        h = h + dense("out_proj", c.width)(x)
        x = LayerNorm(c.norm_eps, name="mlp_norm")(h)
        x = _activation(c.activation, dense("fc1", c.mlp_width)(x))
        return h + dense("fc2", c.width)(x), None


class VisionTower(nn.Module):
    """`get_image_features` of CLIP: projected class token, not normalised to unit length (QUIRKS 9)."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c = self.config
        tokens = (c.image_size // c.patch_size) ** 2 + 1
        normal = init.normal(0.02)
        self.class_embedding = parameter(self, "class_embedding", normal, (c.width,))
        self.patch_embedding = Dense(c.width, bias=False, dtype=self.dtype)
        self.position_embedding = parameter(self, "position_embedding", normal, (tokens, c.width))
        self.pre_norm = LayerNorm(c.norm_eps)
        self.layer = VisionLayer(c, self.dtype, parent=None)
        self.layers = parameter(self, "layers", init_layers(self.layer, c.layers, jnp.zeros((1, tokens, c.width))))
        self.post_norm = LayerNorm(c.norm_eps)
        self.projection = Dense(c.projection, bias=False, dtype=self.dtype)

    def hidden(self, pixels: Float[Array, "N height width 3"]) -> Float[Array, "N T D"]:
        """Hidden states after the last layer, before any pooling."""
        c = self.config
        patches = rearrange(pixels, "n (gh ph) (gw pw) c -> n (gh gw) (ph pw c)", ph=c.patch_size, pw=c.patch_size)
        x = self.patch_embedding(patches)
        start = jnp.broadcast_to(self.class_embedding.astype(x.dtype), (x.shape[0], 1, c.width))
        x = jnp.concatenate([start, x], axis=1) + self.position_embedding.astype(x.dtype)
        h, _ = run_layers(self.layer, self.layers, self.pre_norm(x))
        return h

    def pool(self, hidden: Float[Array, "N T D"]) -> Float[Array, "N D"]:
        """The normalised class token."""
        return self.post_norm(hidden[:, 0])

    def __call__(self, pixels: Float[Array, "N height width 3"]) -> Float[Array, "N projection"]:
        """Features of preprocessed frames (channels last, mean and standard deviation removed)."""
        return self.projection(self.pool(self.hidden(pixels)))
