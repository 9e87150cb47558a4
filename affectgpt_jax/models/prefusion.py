"""Pre-fusion: audio and video mixed before the language model (SPEC 2.4-2.5; paper section 3.2).

It reads the encoders' outputs, not the fused or projected streams (QUIRKS 16).

N samples, Ta / Tv features of audio / video, Fa / Fv their widths, M = max(Fa, Fv), K soft tokens, D width of the
language model.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.models.qformer import QFormer
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.ops.random import Seed


class Prefusion(nn.Module):
    """The multi tokens.

    `attention`: time means, one linear map each, a linear map of the pair to two weights, weighted sum; neither
    activation nor softmax (QUIRKS 14). `qformer`: both sequences, video first, under one position table. `none`
    keeps only the two input maps, which the reference's checkpoints always hold.
    """

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        width = c.multi_width
        self.audio_in = Dense(width)
        self.video_in = Dense(width)
        match c.prefusion:
            case "attention":
                self.mix = Dense(width)
                self.weight = Dense(2)
            case "qformer":
                self.qformer = QFormer(c.qformer, c.tokens.multi, c.positions.multi, width)
        if c.prefusion != "none":
            self.proj = Dense(c.decoder.width)

    def fused(
        self, video: Float[Array, "N Tv Fv"], audio: Float[Array, "N Ta Fa"], seed: Seed | None = None
    ) -> Float[Array, "N k M"]:
        """The fused vectors before their projection: one for `attention`, K for `qformer`."""
        if self.config.prefusion == "qformer":
            return self.qformer(jnp.concatenate([self.video_in(video), self.audio_in(audio)], axis=1), seed)
        v = self.video_in(jnp.mean(video, axis=1))
        a = self.audio_in(jnp.mean(audio, axis=1))
        weights = self.weight(self.mix(jnp.concatenate([v, a], axis=-1)))
        return jnp.sum(weights[..., None] * jnp.stack([v, a], axis=1), axis=1, keepdims=True)

    def __call__(
        self, video: Float[Array, "N Tv Fv"], audio: Float[Array, "N Ta Fa"], seed: Seed | None = None
    ) -> Float[Array, "N K D"]:
        tokens = self.proj(self.fused(video, audio, seed))
        return jnp.repeat(tokens, self.config.tokens.multi // tokens.shape[1], axis=1)
