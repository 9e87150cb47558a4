"""Kernels put together for one product: whatever a decoder computes with them is what it computes with them apart."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import Base, DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import open_run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.decoder import Cache, Decoder, LayerCache, empty_cache
from affectgpt_jax.sharding import check_mesh
from affectgpt_jax.training import loop
from affectgpt_jax.weights.fused import fuse
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import nest, paths
from tests.tiny_run import make_tiny, run_parameters, tiny_config

ROWS, LENGTH = 2, 6


def decoder(base: Base) -> tuple[Decoder, Any, Any]:
    """A decoder, its random parameters, and the same ones fused."""
    lora = LoraConfig(rank=2, dropout=0.3, targets=("q_proj", "v_proj", "up_proj", "down_proj"))
    config = DecoderConfig(
        vocab=16, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp_width=24, lora=lora, base=base
    )
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(AffectGPT(ModelConfig(decoder=config)))["decoder"]

    def value(path: str, shape: tuple[int, ...], dtype: Any) -> Any:
        if dtype == jnp.int8:
            return jnp.asarray(rng.integers(-127, 128, shape), jnp.int8)
        return jnp.asarray((0.01 if path.endswith("kernel_scale") else 0.3) * rng.normal(size=shape), dtype)

    flat = {path: value(path, x.shape, x.dtype) for path, x in paths(shapes).items()}
    together = fuse({"decoder": nest(flat)})["decoder"]
    apart = {path for path in flat if not path.endswith(("kernel", "kernel_scale", "bias")) or "o_proj" in path}
    moved = {path for path in flat if any(f"/{name}_proj/" in path for name in ("q", "k", "v", "gate", "up"))} - apart
    kinds = ("kernel", "kernel_scale") if base == "int8" else ("kernel",)
    groups = {f"layers/{group}/{kind}" for group in ("qkv_proj", "gate_up_proj") for kind in kinds}
    assert paths(together).keys() == (flat.keys() - moved) | groups | {"layers/qkv_proj/bias"}
    return Decoder(config), nest(flat), together


@pytest.mark.parametrize("base", ["float", "int8"])
def test_every_way_through_the_decoder(base: Base) -> None:
    model, *both = decoder(base)
    c, rng = model.config, np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(ROWS, LENGTH, c.width)), jnp.float32)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    used = jnp.asarray([[True] * 4 + [False] * 2, [True] * 6])
    ids, numbers = jnp.asarray([3, 5]), jnp.asarray([0, 1, 0])

    def all_of(params: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return model.apply({"params": params}, *args, **options)

        trained = call(h, positions, segments, jnp.uint32(7))
        hidden, keys = call(h, used, method="prefill")
        answers = empty_cache(c, ROWS, LENGTH, 3).layers
        cache = Cache(tuple(LayerCache(k, old.answer) for k, old in zip(keys, answers, strict=True)), used)
        step = call(ids, jnp.sum(used, axis=1), cache, method="step")
        branches = call(jnp.asarray([3, 4, 5]), numbers, jnp.asarray([0, 0, 1]), keys, used, method="branch")
        return trained, hidden, keys, step, branches

    apart, together = map(jax.jit(all_of), both)
    assert len(jax.tree.leaves(apart)) > 12
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert float(jnp.std(apart[0])) > 0.1


def test_a_run_is_the_same_and_leaves_no_trace(tmp_path: Path) -> None:
    """Without a base the frozen kernels are the run's own, and its checkpoints hold them; it goes on from them."""
    folder = make_tiny(tmp_path)
    common: dict[str, Any] = {
        "train__trainable": ["^fusion/", "/lora_[ab]$"], "train__steps": 3, "train__log_every": 1,
        "model__decoder__lora__rank": 2,
    }  # fmt: skip
    apart = loop.train(tiny_config(folder, **common), folder / "apart")
    fused = {"model__decoder__fused": True}
    loop.train(tiny_config(folder, **common | {"train__steps": 1, **fused}), folder / "together")
    together = loop.train(tiny_config(folder, **common | fused), folder / "together")
    assert together.finished
    assert together.loss == pytest.approx(apart.loss, rel=1e-5)
    mine, theirs = (run_parameters(folder / name) for name in ("together", "apart"))
    assert mine.keys() == theirs.keys()
    for path, leaf in theirs.items():
        np.testing.assert_allclose(mine[path], leaf, rtol=1e-4, atol=1e-6, err_msg=path)
    assert not open_run(folder / "together").config.model.decoder.fused


def test_what_is_trained_or_split_stays_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"decoder/layers/q_proj/kernel, but with model.decoder.fused=true"):
        tiny_config(tmp_path, model__decoder__fused=True, train__trainable=["^decoder/"])
    config = tiny_config(tmp_path, model__decoder__fused=True, train__trainable=["^fusion/"])
    with pytest.raises(UserError, match=r"mesh.tensor=2 splits what model.decoder.fused=true puts together"):
        check_mesh(config, {"slice": 1, "data": 1, "fsdp": 1, "tensor": 2})
