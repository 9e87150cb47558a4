"""The closed form of a step's work against what XLA counts in the compiled gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import LOSS_CHUNK, AffectGPT
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.training.flops import Work, batch_work, decoder_work
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


def test_padding_and_packing_count_as_they_are() -> None:
    rows = np.array([[1, 1, 1, 2, 2, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]], np.int32)
    example = batch()._replace(segment_ids=rows, loss_weight=np.array([[0.5, 0, 1], [0, 0, 2]], np.float32))
    assert batch_work(example) == Work(samples=4, tokens=13, targets=3, pairs=6 + 3 + 1 + 28)
    doubled = jax.tree.map(lambda x: jnp.stack([x, x]), example)
    assert batch_work(doubled) == Work(samples=8, tokens=26, targets=6, pairs=76)
