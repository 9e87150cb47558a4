"""Dense layers with optional low-rank adapters, embeddings and projections."""

import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from affectgpt_jax.config.networks import LoraConfig
from affectgpt_jax.nn import init
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.ops.dropout import dropout
from affectgpt_jax.ops.product import Turned, product, widen
from affectgpt_jax.ops.quantisation import int8_matmul
from affectgpt_jax.ops.random import Seed


class Dense(nn.Module):
    """y = x W + b, plus (alpha / rank) * drop(x) A B where an adapter is asked for.

    Parameters: `kernel` [in, out], `bias` [out], `lora_a` [in, rank], `lora_b` [rank, out]. With `int8` the kernel is
    int8, with `kernel_scale` [out] beside it, and is not trained; both are made when a base is read.
    Adapter dropout acts iff a seed is given. With `plain`, which is x W + b, nothing but the adapter is left to do, and
    there is no kernel.
    """

    features: int
    bias: bool = True
    lora: LoraConfig | None = None
    dtype: DTypeLike = jnp.float32
    stddev: float = 0.02
    int8: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*dims in"], seed: Seed | None = None, plain: Float[Array, "*dims out"] | None = None
    ) -> Float[Array, "*dims out"]:
        width = x.shape[-1]
        x = x.astype(self.dtype)
        y = self._plain(x) if plain is None else plain
        if self.lora is not None and self.lora.rank:
            # PEFT's initialisation: A uniform in +-1/sqrt(in), B zero, so that training starts at the base model.
            a = parameter(self, "lora_a", init.fan_in_uniform, (width, self.lora.rank)).astype(self.dtype)
            b = parameter(self, "lora_b", init.zeros, (self.lora.rank, self.features)).astype(self.dtype)
            x = dropout(seed, x, self.lora.dropout)
            scale = jnp.asarray(self.lora.alpha / self.lora.rank, self.dtype)
            y = y + widen(checkpoint_name(x @ a, "low_rank"), b) * scale
        return y

    def _plain(self, x: Float[Array, "*dims in"]) -> Float[Array, "*dims out"]:
        width = x.shape[-1]
        if self.int8:
            kernel = parameter(self, "kernel", init.int8_zeros, (width, self.features))
            y = int8_matmul(x, kernel, parameter(self, "kernel_scale", init.ones, (self.features,)))
        else:
            kernel = parameter(self, "kernel", init.normal(self.stddev), (width, self.features))
            y = product(x, kernel)
        if self.bias:
            y = y + parameter(self, "bias", init.zeros, (self.features,)).astype(self.dtype)
        return y


class Embedding(nn.Module):
    """A table of `count` vectors, parameter `embedding` [count, features]; also usable as an output head."""

    count: int
    features: int
    dtype: DTypeLike = jnp.float32
    stddev: float = 0.02

    def setup(self) -> None:
        self.embedding = parameter(self, "embedding", init.normal(self.stddev), (self.count, self.features))

    def __call__(self, ids: Int[Array, "*dims"]) -> Float[Array, "*dims features"]:
        return jnp.take(self.embedding, ids, axis=0, mode="clip").astype(self.dtype)

    def attend(self, x: Float[Array, "*dims features"]) -> Float[Array, "*dims count"]:
        """Logits against every vector of the table."""
        return product(x, Turned(self.embedding))
