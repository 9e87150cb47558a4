"""AffectGPT: encoder features to soft tokens, soft tokens among the words, a language model over both.

B rows, T tokens, N targets a row, S samples a row, K soft tokens a sample, D width of the language model.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.data.batch import SOFT_ORDER, STREAMS, Batch
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.models.decoder import Cache, Decoder
from affectgpt_jax.models.fusion import ImageFusion, StreamFusion
from affectgpt_jax.models.prefusion import Prefusion
from affectgpt_jax.nn import init
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.ops.attention import KeysValues
from affectgpt_jax.ops.axes import constrain
from affectgpt_jax.ops.losses import TargetLoss, target_loss
from affectgpt_jax.ops.random import Seed, fold

Features = dict[str, Float[Array, "B S t F"]]
Present = dict[str, Bool[Array, "B S"]]

LOSS_CHUNK = 64
"""Targets a row whose logits exist at a time."""


class Fusion(nn.Module):
    """All that lies between encoder features and the language model."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        width = c.decoder.width
        stream = lambda kind, tokens, table, features: StreamFusion(  # noqa: E731
            kind, tokens, table, c.qformer, features, width
        )
        self.video = stream(c.video, c.tokens.video, c.positions.video, c.vision_width)
        self.audio = stream(c.audio, c.tokens.audio, c.positions.audio, c.audio_width)
        self.image = ImageFusion(c.image, c.tokens.image, width)
        self.multi = Prefusion(c)
        if c.absent:
            self.absent = {
                name: parameter(
                    self,
                    f"absent_{name}",
                    init.normal(0.02),
                    (c.audio_width if name == "audio" else c.vision_width,),
                )
                for name in STREAMS
            }

    def __call__(self, features: Features, present: Present, seed: Seed | None = None) -> Float[Array, "B S K D"]:
        """Soft tokens of every sample, in the order of `SOFT_ORDER`.

        Args:
          features: encoder outputs; those of the streams the mode uses.
          present: False where a sample lacks the stream. Its features are replaced by the learned absent feature if
            the model has one; otherwise they are used as they are (the data keep such samples out).
          seed: turns Q-Former dropout on.
        """
        wanted = needs(self.config.mode)
        streams = {}
        for name in wanted.streams:
            x = features[name].astype(jnp.float32)
            if self.config.absent:
                x = jnp.where(present[name][..., None, None], x, self.absent[name])
            streams[name] = x.reshape(-1, *x.shape[2:])
        tokens = []
        for name in wanted.soft:
            own = None if seed is None else fold(seed, SOFT_ORDER.index(name))
            if name == "multi" and wanted.fused:
                tokens.append(self.multi(streams[wanted.fused], streams["audio"], own))
            else:
                part = {"image": self.image, "audio": self.audio}.get(name, self.video)
                tokens.append(part(streams[name], own))
        joined = jnp.concatenate(tokens, axis=1)
        return joined.reshape(*next(iter(features.values())).shape[:2], *joined.shape[1:])

    def everything(self) -> None:
        """Touch every part, so that initialisation creates all parameters whatever the mode uses."""
        c = self.config
        video, audio = jnp.zeros((1, 1, c.vision_width)), jnp.zeros((1, 1, c.audio_width))
        self.video(video), self.audio(audio), self.image(video)
        if c.prefusion == "none":
            self.multi.audio_in(audio), self.multi.video_in(video)
        else:
            self.multi(video, audio)


class AffectGPT(nn.Module):
    """Fusion and language model. `__call__` is the training objective's sums; `prefill` and `step` generate,
    `prefill` and `branch` score continuations."""

    config: ModelConfig

    def setup(self) -> None:
        self.fusion = Fusion(self.config)
        self.decoder = Decoder(self.config.decoder)

    def inputs_embeds(
        self,
        tokens: Int[Array, "B T"],
        soft_index: Int[Array, "B T"],
        features: Features,
        present: Present,
        seed: Seed | None = None,
    ) -> Float[Array, "B T D"]:
        """Word embeddings with the soft tokens in their places; nothing crosses rows."""
        words = self.decoder.embed(tokens)
        if not needs(self.config.mode).soft:
            return words
        soft = constrain(self.fusion(features, present, seed), "batch", None, None, None)
        rows, samples, count, width = soft.shape
        table = soft.reshape(rows, samples * count, width).astype(words.dtype)
        placed = jnp.take_along_axis(table, jnp.maximum(soft_index - 1, 0)[..., None], axis=1)
        return constrain(jnp.where(soft_index[..., None] > 0, placed, words), "batch", None, None)

    def hidden(self, batch: Batch, seed: Seed | None = None) -> Float[Array, "B T D"]:
        """Final hidden states of a batch; a seed turns dropout on."""
        own = (None, None) if seed is None else (fold(seed, 0), fold(seed, 1))
        embeds = self.inputs_embeds(batch.tokens, batch.soft_index, batch.features, batch.present, own[0])
        return self.decoder(embeds, batch.positions, batch.segment_ids, own[1])

    def logits(self, batch: Batch) -> Float[Array, "B T V"]:
        """Logits at every position (checks and small models; training never forms them)."""
        return self.decoder.logits(self.hidden(batch))

    def __call__(self, batch: Batch, seed: Seed | None = None) -> TargetLoss:
        """Weighted cross entropy at the batch's targets; a seed turns dropout on."""
        hidden = self.hidden(batch, seed)
        at_targets = jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
        at_targets = constrain(at_targets, "batch", None, None)
        head = self.decoder.gathered_head()
        return target_loss(head, at_targets, batch.target_ids, batch.loss_weight, chunk=LOSS_CHUNK)

    def prefill(
        self,
        tokens: Int[Array, "B P"],
        soft_index: Int[Array, "B P"],
        used: Bool[Array, "B P"],
        features: Features,
        present: Present,
    ) -> tuple[Float[Array, "B V"], tuple[KeysValues, ...]]:
        """Read one prompt a row, right padded, one sample each; returns next-token logits and what a cache holds."""
        hidden, keys = self.decoder.prefill(self.inputs_embeds(tokens, soft_index, features, present), used)
        return self.decoder.logits(hidden), keys

    def step(
        self, ids: Int[Array, " B"], positions: Int[Array, " B"], cache: Cache
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Read one token a row; returns next-token logits and the new cache."""
        hidden, cache = self.decoder.step(ids, positions, cache)
        return self.decoder.logits(hidden), cache

    def branch(
        self,
        ids: Int[Array, " T"],
        depths: Int[Array, " T"],
        branches: Int[Array, " T"],
        prompts: tuple[KeysValues, ...],
        used: Bool[Array, "B P"],
    ) -> Float[Array, "B T V"]:
        """Read continuations of every row's prompt side by side (`Decoder.branch`); returns next-token logits."""
        return self.decoder.logits(self.decoder.branch(ids, depths, branches, prompts, used))

    def initialise(self) -> Float[Array, "1 1 V"]:
        """Create every parameter: `model.init(rng, method="initialise")`."""
        self.fusion.everything()
        one = jnp.zeros((1, 1), jnp.int32)
        return self.decoder.logits(self.decoder.final_norm(self.decoder.embed(one)))


def used_in_training(config: ModelConfig, path: str) -> bool:
    """Whether the mode's loss depends on a parameter; the others are never touched, not even decayed (QUIRKS 19).

    Args:
      config: the model's config.
      path: the parameter's path, for example "fusion/image/proj/kernel".
    """
    wanted = needs(config.mode)
    part = path.removeprefix("fusion/").split("/")[0]
    if not path.startswith("fusion/"):
        return True
    if part.startswith("absent_"):
        return part.removeprefix("absent_") in wanted.streams
    if part == "video":
        return "face" in wanted.soft or "frame" in wanted.soft
    return part in wanted.soft
