"""Closed forms of a training step's floating-point work, and the peak it is held against.

One multiply and one add count as two. Work done again by remat, padding and empty rows does not count.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.config.networks import DecoderConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.training.chips import find_chip
from affectgpt_jax.weights.table import paths


class Work(NamedTuple):
    """What a batch really holds."""

    samples: int
    tokens: int
    targets: int
    pairs: int
    """Query and key pairs under the causal mask, over all samples."""


def batch_work(batch: Batch) -> Work:
    """Count a host batch's samples, tokens, targets and attention pairs."""
    segments = np.asarray(batch.segment_ids).reshape(-1, batch.segment_ids.shape[-1])
    keys = (np.arange(len(segments))[:, None] * (segments.max(initial=0) + 1) + segments)[segments > 0]
    lengths = np.unique(keys, return_counts=True)[1]
    pairs = int(np.sum(lengths * (lengths + 1) // 2))
    return Work(len(lengths), int(lengths.sum()), int(np.sum(np.asarray(batch.loss_weight) > 0)), pairs)


class DecoderWork(NamedTuple):
    """Coefficients of a decoder's training FLOPs."""

    per_token: float
    per_target: float
    per_pair: float

    def flops(self, work: Work) -> float:
        """FLOPs of one step: 4N + 2 N_trained a token, the head at targets only, attention by pairs."""
        return self.per_token * work.tokens + self.per_target * work.targets + self.per_pair * work.pairs


def decoder_work(config: DecoderConfig, trainable: Any, frozen: Any) -> DecoderWork:
    """Coefficients from shapes: 4 FLOPs a parameter and token (forward, input gradient), 2 more if it is trained.

    The fusion before the language model is left out: it is below 0.1 % of the whole.

    Args:
      config: the decoder's sizes.
      trainable: trainable tree of arrays or shapes.
      frozen: the rest.
    """
    layers = head = 0.0
    for tree, factor in ((trainable, 6.0), (frozen, 4.0)):
        for path, leaf in paths(tree).items():
            size = factor * float(np.prod(leaf.shape))
            if path.startswith("decoder/layers/") and path.endswith(("kernel", "lora_a", "lora_b")):
                layers += size
            elif path == "decoder/head/kernel" or (config.tied_head and path == "decoder/tokens/embedding"):
                head += size
    # Scores and weighted sum forward, four products of the same size backward.
    return DecoderWork(layers, head, 12.0 * config.layers * config.heads * config.head_dim)


def peak_flops() -> tuple[float, str]:
    """FLOP/s of all devices together, and where the number comes from.

    Unknown devices (CPUs above all) are timed on a float32 matrix product.
    """
    device = jax.devices()[0]
    if (chip := find_chip(device.device_kind)) is not None:
        return chip.flops * jax.device_count(), f"{device.device_kind}, bf16 data sheet"
    size = 1024
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(seconds), f"{device.device_kind}, measured on a {size}^3 float32 product"
