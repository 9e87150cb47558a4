"""Dropout masks are functions of the run's seed, the step, the round and the place: no two are the same by accident."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig, QFormerConfig
from affectgpt_jax.models import qformer
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.nn import linear
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.ops import attention, packed_attention
from affectgpt_jax.training import step as steps
from affectgpt_jax.training.state import new_state
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.trainable import join, split
from tests.inference.clip_run import random_tree
from tests.training.test_flops import batch

LENGTH = 256
MODEL = ModelConfig(
    vision_width=8,
    audio_width=8,
    video="mean",
    audio="qformer",
    # So many layers are a loop, which compiles once.
    qformer=QFormerConfig(width=8, layers=FEW + 1, heads=2, mlp_width=8),
    decoder=DecoderConfig(
        vocab=32, width=16, layers=FEW + 1, heads=2, kv_heads=2, head_dim=8, mlp_width=16, lora=LoraConfig(rank=2)
    ),
)
MASKS = (FEW + 1) * (7 + 5) + 1
"""Of a round: one an adapted map and layer; in the Q-Former attention weights and outputs, twice, and the
feed-forward's, a layer, and the queries'."""


def test_every_round_layer_and_place_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds that reach `dropout` in two steps of two equal rounds; the same step draws the same ones again."""
    seen: Counter[int] = Counter()

    def dropout(seed: Any, x: Any, rate: float) -> Any:
        assert rate > 0
        jax.debug.callback(lambda seed: seen.update([int(seed)]), seed)
        return x

    for module in (linear, qformer, attention):
        monkeypatch.setattr(module, "dropout", dropout)
    # Attention without dropout goes through the same function.
    plain = lambda q, k, v, mask: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])  # noqa: E731
    monkeypatch.setattr(packed_attention, "attention", plain)
    # The step's forward passes will do.
    monkeypatch.setattr(
        steps,
        "gradients",
        lambda model, params, frozen, *x: (
            jax.tree.map(jnp.zeros_like, params),
            model.apply({"params": join(params, frozen)}, *x),
        ),
    )
    model, optimizer = AffectGPT(MODEL), optax.sgd(0.1)
    params = jax.tree.map(jnp.asarray, random_tree(parameter_shapes(model), seed=0))
    trained, frozen = split(MODEL, params, ("^fusion/", "/lora_[ab]$"))
    rounds = jax.tree.map(lambda x: jnp.stack([x, x]), batch()._replace(tokens=np.zeros((1, LENGTH), np.int32)))
    step = jax.jit(steps.make_step(model, optimizer, dropout_seed=42))
    first = new_state(trained, optimizer)

    def seeds(state: Any) -> set[int]:
        seen.clear()
        state, _ = step(state, frozen, rounds)
        jax.effects_barrier()
        return set(seen)

    drawn = seeds(first)
    assert len(drawn) == 2 * MASKS
    assert seeds(first) == drawn
    assert not seeds(first._replace(step=first.step + 1)) & drawn
