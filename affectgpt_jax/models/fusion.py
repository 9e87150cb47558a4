"""From one encoder's feature sequence to soft tokens: score-weighted sum, Q-Former, or mean (SPEC 2.5).

N samples, T features, F width of the features, K soft tokens, D width of the language model.
"""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from affectgpt_jax.config.networks import QFormerConfig, TokenFusion
from affectgpt_jax.models.qformer import QFormer
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.ops.random import Seed


class StreamFusion(nn.Module):
    """One stream's soft tokens.

    `attention` has linear scores and no softmax, so its scale grows with T (QUIRKS 13); it and `mean` repeat one
    vector K times (QUIRKS 15).
    """

    kind: TokenFusion
    tokens: int
    table: int
    qformer: QFormerConfig
    feature_width: int
    width: int

    def setup(self) -> None:
        match self.kind:
            case "attention":
                self.score = Dense(1)
            case "qformer":
                self.qformer_net = QFormer(self.qformer, self.tokens, self.table, self.feature_width, name="qformer")
        self.proj = Dense(self.width)

    def __call__(self, features: Float[Array, "N T F"], seed: Seed | None = None) -> Float[Array, "N K D"]:
        match self.kind:
            case "attention":
                fused = jnp.sum(self.score(features) * features, axis=1, keepdims=True)
            case "mean":
                fused = jnp.mean(features, axis=1, keepdims=True)
            case "qformer":
                return self.proj(self.qformer_net(features, seed))
        return jnp.repeat(self.proj(fused), self.tokens, axis=1)


class ImageFusion(nn.Module):
    """An image's soft tokens: its single feature, projected and repeated (QUIRKS 19-20)."""

    kind: Literal["mean", "token"]
    tokens: int
    width: int

    @nn.compact
    def __call__(self, features: Float[Array, "N T F"], seed: Seed | None = None) -> Float[Array, "N K D"]:
        # `token` expects one feature and repeats it, `mean` averages however many there are.
        fused = features[:, :1] if self.kind == "token" else jnp.mean(features, axis=1, keepdims=True)
        return jnp.repeat(Dense(self.width, name="proj")(fused), self.tokens, axis=1)
