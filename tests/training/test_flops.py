"""Closed forms of work against what XLA counts, and against sums by hand over random lengths."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import DecoderConfig, HubertConfig, LoraConfig, ModelConfig, VisionConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import LOSS_CHUNK, AffectGPT
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.training.flops import (
    Work,
    audio_flops,
    batch_work,
    decoder_work,
    forward_work,
    lengths_work,
    mfu_lora,
    padded_work,
    vision_flops,
)
from affectgpt_jax.training.step import gradients
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.trainable import split

LENGTH, TARGETS = 256, LOSS_CHUNK
MODEL = ModelConfig(
    vision_width=8,
    audio_width=8,
    decoder=DecoderConfig(
        vocab=8192, width=512, layers=1, heads=8, kv_heads=2, head_dim=64, mlp_width=1536, lora=LoraConfig(rank=8)
    ),
)


def batch() -> Batch:
    """One row of one sample that fills it, whose targets are one chunk of the loss."""
    rng = np.random.default_rng(0)
    streams = {"face": np.zeros((1, 1, 8, 8), np.float32), "audio": np.zeros((1, 1, 8, 8), np.float32)}
    return Batch(
        tokens=rng.integers(0, MODEL.decoder.vocab, (1, LENGTH), np.int32),
        segment_ids=np.ones((1, LENGTH), np.int32),
        positions=np.arange(LENGTH, dtype=np.int32)[None],
        soft_index=np.zeros((1, LENGTH), np.int32),
        target_positions=np.arange(TARGETS, dtype=np.int32)[None],
        target_ids=np.zeros((1, TARGETS), np.int32),
        loss_weight=np.ones((1, TARGETS), np.float32),
        features=streams,
        present={name: np.ones((1, 1), bool) for name in streams},
    )


@pytest.mark.parametrize("trainable", [("^fusion/", "/lora_[ab]$"), ("^fusion/", "^decoder/")])
def test_the_compiled_gradients_do_the_work_of_the_closed_form(trainable: tuple[str, ...]) -> None:
    """4 FLOPs a frozen parameter and token, 6 a trained one, within 5 %: no gradient of a frozen kernel is computed.

    The layers are no loop and nothing is recomputed, so that XLA counts all of them once. Two things it does are not
    part of the closed form: dense attention computes all T^2 pairs of a row instead of T (T + 1) / 2 causal ones, and
    the head's product is made again in the backward pass (so that logits are never kept).
    """
    assert MODEL.decoder.layers <= FEW
    assert MODEL.decoder.remat == "none"
    model = AffectGPT(MODEL)
    trained, frozen = split(MODEL, parameter_shapes(model), trainable)
    example = batch()
    program = jax.jit(lambda *x: gradients(model, *x, None)).lower(trained, frozen, example).compile()
    counted: Any = program.cost_analysis()
    work = batch_work(example)
    assert work == Work(samples=1, tokens=LENGTH, targets=TARGETS, pairs=LENGTH * (LENGTH + 1) // 2)
    form = decoder_work(MODEL.decoder, trained, frozen)
    again = 2.0 * MODEL.decoder.width * MODEL.decoder.vocab * TARGETS
    expected = form.flops(work._replace(pairs=LENGTH**2)) + again
    assert counted["flops"] == pytest.approx(expected, rel=0.05)
    # Every part is large enough for a mistake in it to show.
    for part in (form.per_token * LENGTH / 2, form.per_target * TARGETS, form.per_pair * LENGTH**2, again):
        assert part > 0.05 * expected


def test_coefficients_of_the_published_setting() -> None:
    """Qwen2.5-7B with rank 16: 6.53e9 parameters in the layers, 40.4e6 in adapters, a head of 0.545e9."""
    config = ModelConfig(decoder=DecoderConfig(lora=LoraConfig(rank=16)))
    trained, frozen = split(config, parameter_shapes(AffectGPT(config)), ("^fusion/", "/lora_[ab]$"))
    form = decoder_work(config.decoder, trained, frozen)
    assert form.per_token == pytest.approx(4 * 6.525e9 + 6 * 40.4e6, rel=1e-3)
    assert form.per_target == 4 * 3584 * 152064
    assert form.per_pair == 12 * 28 * 28 * 128
    # 250 tokens, 60 of them targets, every term by hand: 6.526 + 0.061 + 0.038 + 0.131 TFLOP.
    sample = lengths_work([250], [60])
    assert form.flops(sample) == pytest.approx(6.755e12, rel=1e-3)
    # A second of a chip that could do ten such samples in it, and did three.
    assert mfu_lora(form, Work(*(3 * x for x in sample)), 1.0, 10 * form.flops(sample)) == pytest.approx(0.3)
    forward = forward_work(config.decoder, {**trained, **frozen, "decoder": frozen["decoder"]})
    assert forward.per_token == pytest.approx(2 * 6.525e9, rel=1e-3)
    assert forward.per_pair == 4 * 28 * 28 * 128


def test_padding_and_packing_count_as_they_are() -> None:
    rows = np.array([[1, 1, 1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]], np.int32)
    example = batch()._replace(segment_ids=rows, loss_weight=np.array([[0.5, 0, 1], [0, 0, 2]], np.float32))
    assert batch_work(example) == Work(samples=4, tokens=13, targets=3, pairs=6 + 3 + 1 + 28)
    doubled = jax.tree.map(lambda x: jnp.stack([x, x]), example)
    assert batch_work(doubled) == Work(samples=8, tokens=26, targets=6, pairs=76)


def test_lengths_of_packed_and_of_padded_samples() -> None:
    """Random lengths: as rows that hold them one after the other, and as every batch of three that can be drawn."""
    rng = np.random.default_rng(3)
    lengths, targets = rng.integers(1, 40, 9), rng.integers(0, 5, 9)
    row = np.repeat(np.arange(1, 10, dtype=np.int32), lengths)[None]
    weights = (np.arange(5) < targets[:, None]).astype(np.float32).reshape(1, -1)
    packed = lengths_work(lengths, targets)
    assert packed == batch_work(batch()._replace(segment_ids=row, loss_weight=weights))
    assert packed.pairs == sum(q >= k for length in lengths for q in range(length) for k in range(length))

    batches = np.array(list(itertools.product(lengths, repeat=3)))
    padded = np.repeat(batches.max(axis=1, keepdims=True), 3, axis=1)
    found = padded_work(lengths)
    assert found.samples == 9
    assert found.tokens == found.targets == pytest.approx(9 * padded.mean())
    assert found.pairs == pytest.approx(9 * (padded**2).mean())
    alone = padded_work(lengths, batch=1)
    assert (alone.tokens, alone.pairs) == (pytest.approx(lengths.sum()), pytest.approx((lengths**2).sum()))


def test_expected_lengths_count_as_they_are() -> None:
    """Fractions are not cut off; whole numbers stay whole, and go to JSON; larger than int64 are floats."""
    assert lengths_work([199.5], [90.25]) == Work(1, 199.5, 90.25, 199.5 * 200.5 / 2)
    whole = lengths_work(np.array([200, 3], np.uint8), np.array([[True, False], [True, True]]))
    assert whole == Work(2, 203, 3, 20_100 + 6)
    assert json.loads(json.dumps([*whole, *lengths_work([2.5], [1])])) == [2, 203, 3, 20_106, 1, 2.5, 1, 4.375]
    assert all(type(x) is int for x in whole)
    large = lengths_work([3_000_000_000, 10_000_000_000], [1, 1])
    assert large.pairs == pytest.approx(5.45e19)
    assert large.tokens == 13_000_000_000
    assert lengths_work(np.full(1000, 10**8), 0).pairs == 1000 * 10**8 * (10**8 + 1) / 2
    assert lengths_work([3e9, 1e10], [0]).pairs == large.pairs


@pytest.mark.filterwarnings("error")
def test_no_samples_are_no_work() -> None:
    assert lengths_work([], []) == padded_work([]) == (0, 0, 0, 0)
    # Fewer samples than a batch: the other two are draws as well.
    assert padded_work([7]) == Work(1, 7, 7, 49)
    assert padded_work([1, 3]) == Work(2, 2 * (1 / 8 + 3 * 7 / 8), 2 * (1 / 8 + 3 * 7 / 8), 2 * (1 / 8 + 9 * 7 / 8))


@pytest.mark.parametrize(
    ("lengths", "targets", "message"),
    [
        ([5, -3], [1, 1], "lengths must be numbers from 0 on, found -3"),
        ([5.0, np.nan], [1, 1], "lengths must be numbers from 0 on, found nan"),
        ([np.inf], [1], "lengths must be numbers from 0 on, found inf"),
        ([5, 3], [1, -2], "targets must be numbers from 0 on, found -2"),
        ([5, 3], [6, 4], "10 targets are more than the 8 tokens"),
    ],
)
def test_what_cannot_be_counted(lengths: list[float], targets: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths_work(lengths, targets)
    if message.startswith("lengths"):
        with pytest.raises(ValueError, match=message):
            padded_work(lengths)


def count(tower: Any, *shape: int) -> float:
    """FLOPs of a tower as XLA counts them; layers are few, so that they are no loop."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    lowered = jax.jit(tower.apply).lower(jax.eval_shape(tower.init, jax.random.key(0), x), x)
    counted: Any = lowered.cost_analysis()
    return float(counted["flops"])


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"mlp_width": 2048}, {"projection": 64}, {"image_size": 224}])
def test_an_image_is_what_xla_counts(changes: dict[str, int]) -> None:
    """Within 2 %, which norms and activations take; each part weighs most in one of the cases."""
    sizes = {"width": 256, "layers": 2, "heads": 4, "mlp_width": 512, "projection": 8192, "image_size": 112}
    config = VisionConfig(**(sizes | changes))  # type: ignore[arg-type]
    side = config.image_size
    assert count(VisionTower(config), 1, side, side, 3) == pytest.approx(vision_flops(config), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "samples"),
    [
        ({}, 4000),
        ({"position_kernel": 65}, 12_001),
        ({"conv_widths": (64, 512, 512), "conv_kernels": (800, 5, 3), "conv_strides": (5, 2, 2)}, 4000),
        ({"mlp_width": 64, "layers": 4}, 12_000),
    ],
)
def test_a_clip_of_sound_is_what_xla_counts(changes: dict[str, Any], samples: int) -> None:
    """Within 3 %, which norms and activations take; each part weighs most in one of the cases.

    XLA does not count a convolution's products with padding, so sounds are long against the kernel.
    """
    config = HubertConfig(
        **{
            "width": 512, "layers": 3, "heads": 4, "mlp_width": 512, "position_kernel": 16, "position_groups": 4,
            "conv_widths": (64, 512), "conv_kernels": (400, 8), "conv_strides": (5, 4),
        }
        | changes
    )  # fmt: skip
    assert count(Hubert(config), 1, samples) == pytest.approx(audio_flops(config, samples), rel=0.03)


def test_the_published_towers() -> None:
    """CLIP ViT-L/14 at 224, 0.162 TFLOP; HuBERT-large on two seconds, 0.0723, of them 0.0098 in the front end."""
    assert vision_flops(VisionConfig()) == pytest.approx(0.1620e12, rel=1e-3)
    assert audio_flops(HubertConfig(), 32_000) == pytest.approx(0.0723e12, rel=1e-3)
    layers = 24 * (99 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 99**2 * 1024)
    rest = 99 * 512 * 1024 + 100 * 128 * 64 * 1024
    assert audio_flops(HubertConfig(), 32_000) - 2 * (layers + rest) == pytest.approx(9.81e9, rel=1e-3)


def test_the_shortest_sound() -> None:
    """One frame of HuBERT sees 400 samples; a clip without one is refused, not counted as less than nothing."""
    config = HubertConfig()
    layer = 4 * 1024**2 + 2 * 1024 * 4096 + 2 * 1024
    assert audio_flops(config, 400) > 2 * 24 * layer
    for samples in (399, 9, 0):
        with pytest.raises(ValueError, match=f"a clip of {samples} samples is too short for a frame"):
            audio_flops(config, samples)
