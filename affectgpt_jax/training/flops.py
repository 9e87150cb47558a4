"""Closed forms of floating-point work from sizes and lengths, and the peak it is held against.

One multiply and one add count as two. Products alone are counted: norms, activations and softmax are 1 % or less at the
published sizes. Work done again by remat, padding and empty rows does not count. The count of a decoder's layers is the
usual one (Kaplan et al. 2020, section 2.1: 2 FLOPs a parameter and token forward), without the gradient of what is
frozen; docs/performance.md writes it out.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from affectgpt_jax.config.networks import DecoderConfig, HubertConfig, VisionConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.training.chips import find_chip
from affectgpt_jax.weights.table import paths


class Work(NamedTuple):
    """What samples come to: counts of a batch, or what is to be expected of a distribution of lengths."""

    samples: float
    tokens: float
    targets: float
    """Places whose logits are made."""
    pairs: float
    """Of queries and keys, over all samples; under the causal mask half of them."""


def lengths_work(lengths: ArrayLike, targets: ArrayLike) -> Work:
    """What samples come to that are packed: each token counts, and each pair that the causal mask leaves.

    Whole numbers give whole numbers, expected lengths such as 199.5 their own sums.

    Args:
      lengths: tokens of each sample, S: sum of S, sum of S (S + 1) / 2.
      targets: of them learned to be said.

    Raises:
      ValueError: a length or a number of targets below 0 or not finite, or more targets than tokens.
    """
    tokens = _counts("lengths", lengths)
    total, learned = tokens.sum().item(), _counts("targets", targets).sum().item()
    if learned > total:
        raise ValueError(f"{learned} targets are more than the {total} tokens that they are among")
    twice = np.sum(tokens * (tokens + 1)).item()
    return Work(tokens.size, total, learned, twice // 2 if isinstance(twice, int) else twice / 2)


def padded_work(lengths: ArrayLike, batch: int = 3) -> Work:
    """What the same samples come to as the original computes them, in batches drawn at random.

    Each sample is padded to its batch's longest, logits are made of every place (`labels` masks the loss only), and
    attention computes all pairs and masks afterwards. An expectation over draws with replacement, so that samples may
    be fewer than a batch: that one of rank i of n is the longest of b draws has the probability (i/n)^b - ((i-1)/n)^b.

    Args:
      lengths: tokens of each sample.
      batch: samples of a batch, b.

    Raises:
      ValueError: a length below 0 or not finite.
    """
    tokens = np.sort(_counts("lengths", lengths).astype(np.float64).ravel())
    chance = np.diff((np.arange(tokens.size + 1) / max(tokens.size, 1)) ** batch)
    places = tokens.size * float(chance @ tokens)
    return Work(tokens.size, places, places, tokens.size * float(chance @ tokens**2))


def _counts(name: str, values: ArrayLike) -> np.ndarray:
    """As int64, or as float64 if they are not whole or sums of their squares would not fit."""
    x = np.asarray(values)
    if x.size and not (x.min() >= 0 and x.max() < np.inf):
        raise ValueError(f"{name} must be numbers from 0 on, found {x[~((x >= 0) & (x < np.inf))].flat[0]}")
    fits = x.dtype.kind in "biu" and x.size * float(x.max(initial=0)) ** 2 < 2.0**62
    return x.astype(np.int64 if fits else np.float64)


def batch_work(batch: Batch) -> Work:
    """Count a host batch's samples, tokens, targets and attention pairs."""
    segments = np.asarray(batch.segment_ids).reshape(-1, batch.segment_ids.shape[-1])
    keys = (np.arange(len(segments))[:, None] * (segments.max(initial=0) + 1) + segments)[segments > 0]
    return lengths_work(np.unique(keys, return_counts=True)[1], np.count_nonzero(np.asarray(batch.loss_weight) > 0))


class DecoderWork(NamedTuple):
    """Coefficients of a decoder's FLOPs."""

    per_token: float
    per_target: float
    per_pair: float

    def flops(self, work: Work) -> float:
        """FLOPs of this work: layers by tokens, the head by targets, attention by pairs."""
        return self.per_token * work.tokens + self.per_target * work.targets + self.per_pair * work.pairs


def decoder_work(config: DecoderConfig, trainable: Any, frozen: Any) -> DecoderWork:
    """Coefficients of a training step from shapes.

    4 FLOPs a parameter and token (forward, gradient of the input), 2 more if it is trained; 4 a pair and inner width
    forward (scores, weighted sum), 8 backward.

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
    return DecoderWork(layers, head, 12.0 * config.layers * config.heads * config.head_dim)


def forward_work(config: DecoderConfig, params: Any) -> DecoderWork:
    """Coefficients of a forward pass alone: 2 FLOPs a parameter and token, 4 a pair and inner width.

    Args:
      config: the decoder's sizes.
      params: all parameters, arrays or shapes.
    """
    form = decoder_work(config, {}, params)
    return DecoderWork(form.per_token / 2, form.per_target / 2, form.per_pair / 3)


def mfu_lora(form: DecoderWork, work: Work, seconds: float, peak: float) -> float:
    """The share of the peak that useful work took: `form.flops(work)` / (seconds * peak).

    Frozen parameters count 4 FLOPs a token, not the 6 of full training.

    Args:
      form: of the training step.
      work: what was learned from.
      seconds: it took.
      peak: of all devices, FLOP/s.
    """
    return form.flops(work) / seconds / peak


def vision_flops(config: VisionConfig) -> float:
    """FLOPs of one image through a CLIP tower (`models.clip`): patches, layers, projection of the class token."""
    patches = (config.image_size // config.patch_size) ** 2
    embedding = patches * 3 * config.patch_size**2 * config.width
    layers = config.layers * _encoder_layer(patches + 1, config.width, config.mlp_width)
    return 2.0 * (embedding + layers + config.width * config.projection)


def audio_flops(config: HubertConfig, samples: int) -> float:
    """FLOPs of one clip of sound through HuBERT (`models.hubert`): front end, projection, positions, layers.

    Padding of the positional convolution is counted as sound.

    Args:
      config: the tower's sizes.
      samples: of the clip, 32,000 for two seconds.

    Raises:
      ValueError: the clip is too short for a frame.
    """
    products, channels, frames = 0, 1, samples
    for width, kernel, stride in zip(config.conv_widths, config.conv_kernels, config.conv_strides, strict=True):
        frames = (frames - kernel) // stride + 1
        if frames < 1:
            raise ValueError(f"a clip of {samples} samples is too short for a frame")
        products += frames * kernel * channels * width
        channels = width
    products += frames * channels * config.width
    # An even kernel yields one frame too many.
    positions = frames + 1 - config.position_kernel % 2
    products += positions * config.position_kernel * config.width // config.position_groups * config.width
    return 2.0 * (products + config.layers * _encoder_layer(frames, config.width, config.mlp_width))


def _encoder_layer(tokens: int, width: int, mlp_width: int) -> int:
    """Multiplications of a layer: six maps, scores and weighted sum of all pairs."""
    return tokens * (4 * width**2 + 2 * width * mlp_width) + 2 * tokens**2 * width


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
