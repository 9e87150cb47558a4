"""Q-Former: learned queries that read a feature sequence (BLIP-2's, as AffectGPT uses it; QUIRKS 17-18).

Only the query branch of the BERT layers exists: self-attention, cross-attention, feed-forward, each with a
residual connection and a norm after it.

N samples, K queries, T features, D width, F width of the features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from affectgpt_jax.config.networks import QFormerConfig
from affectgpt_jax.nn import init
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.nn.norm import LayerNorm
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.nn.stack import init_layers, run_layers
from affectgpt_jax.ops.attention import attention
from affectgpt_jax.ops.axes import constrain
from affectgpt_jax.ops.dropout import dropout
from affectgpt_jax.ops.random import Seed, fold


class Stages(NamedTuple):
    """What one layer computes on the way."""

    self_attention: Float[Array, "N K D"]
    cross_attention: Float[Array, "N K D"]
    output: Float[Array, "N K D"]


class QFormerLayer(nn.Module):
    """One layer; dropout on hidden states and attention weights iff a seed is given."""

    config: QFormerConfig

    @nn.compact
    def __call__(
        self, h: Float[Array, "N K D"], state: None, features: Float[Array, "N T F"], seed: Seed | None = None
    ) -> tuple[Float[Array, "N K D"], Stages]:
        c = self.config
        seeds = [None if seed is None else fold(seed, i) for i in range(5)]

        def split(x: Array, axis: str | None) -> Array:
            return constrain(x, "batch", None, axis)

        def attend(name: str, x: Array, source: Array, seeds: list[Seed | None]) -> Array:
            q, k, v = (
                rearrange(split(Dense(c.width, name=f"{name}_{part}")(y), "heads"), "n t (h d) -> n t h d", h=c.heads)
                for part, y in (("query", x), ("key", source), ("value", source))
            )
            y = rearrange(attention(q, k, v, seed=seeds[0], dropout_rate=c.dropout), "n t h d -> n t (h d)")
            y = dropout(seeds[1], Dense(c.width, name=f"{name}_out")(y), c.dropout)
            return LayerNorm(c.norm_eps, name=f"{name}_norm")(split(x + y, None))

        own = attend("self", h, h, seeds[:2])
        cross = attend("cross", own, features, seeds[2:4])
        y = jax.nn.gelu(split(Dense(c.mlp_width, name="fc1")(cross), "mlp"), approximate=False)
        y = dropout(seeds[4], Dense(c.width, name="fc2")(y), c.dropout)
        out = LayerNorm(c.norm_eps, name="mlp_norm")(split(cross + y, None))
        return out, Stages(own, cross, out)


class QFormer(nn.Module):
    """K learned queries over T features with a learned position table of `table` entries."""

    config: QFormerConfig
    queries: int
    table: int
    feature_width: int

    def setup(self) -> None:
        c = self.config
        normal = init.normal(0.02)
        self.query_tokens = parameter(self, "query_tokens", normal, (self.queries, c.width))
        self.positions = parameter(self, "positions", normal, (self.table, self.feature_width))
        self.norm = LayerNorm(c.norm_eps)
        self.layer = QFormerLayer(c, parent=None)
        example = (jnp.zeros((1, 1, c.width)), None, jnp.zeros((1, 1, self.feature_width)))
        self.layers = parameter(self, "layers", init_layers(self.layer, c.layers, *example))

    def stages(self, features: Float[Array, "N T F"], seed: Seed | None = None) -> tuple[Float[Array, "N K D"], Stages]:
        """The normalised queries, and every layer's stages stacked on a leading axis.

        Raises:
          ValueError: more features than the position table holds.
        """
        count, length, _ = features.shape
        if length > self.table:
            raise ValueError(f"{length} features exceed the Q-Former's position table of {self.table}")
        features = features + self.positions[:length]
        start = self.norm(jnp.broadcast_to(self.query_tokens, (count, *self.query_tokens.shape)))
        if seed is not None:
            start = dropout(fold(seed, self.config.layers), start, self.config.dropout)
        _, stages = run_layers(self.layer, self.layers, start, (features,), seed=seed)
        return start, stages

    def __call__(self, features: Float[Array, "N T F"], seed: Seed | None = None) -> Float[Array, "N K D"]:
        """The last layer's output; a seed turns dropout on."""
        return self.stages(features, seed)[1].output[-1]
