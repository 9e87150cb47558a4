"""The tables of the real networks: every parameter has one name, at full size the reference's own."""

import json
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import (
    DecoderConfig,
    HubertConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    SoftTokens,
    VisionConfig,
)
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.training.optimizer import decay_mask, decays
from affectgpt_jax.weights.networks import CLIP, DECODER, HUBERT, MODEL, TRAINED
from affectgpt_jax.weights.table import Table, entries, find_row, logical_axes, nest, paths, read_tree, write_tree
from tests.conftest import reference_folder


def shapes(model: Any, *args: Any, **kwargs: Any) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]


def model_shapes(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "vision_width": 6,
        "audio_width": 10,
        "qformer": QFormerConfig(width=12, layers=2, heads=3, mlp_width=16),
        "tokens": SoftTokens(multi=2, audio=3, video=4, image=5),
        "decoder": DecoderConfig(
            vocab=30,
            width=20,
            layers=2,
            heads=6,
            kv_heads=3,
            head_dim=4,
            mlp_width=28,
            lora=LoraConfig(rank=2),
            tied_head=changes.pop("tied_head", False),
            base=changes.pop("base", "float"),
        ),
    }
    return shapes(AffectGPT(ModelConfig(**config | changes)), method="initialise")


def vision_shapes() -> Any:
    config = VisionConfig(width=12, layers=2, heads=3, mlp_width=16, projection=10, image_size=8, patch_size=4)
    return shapes(VisionTower(config), jnp.zeros((1, 8, 8, 3)))


def audio_shapes(**changes: Any) -> Any:
    sizes = {"width": 12, "layers": 3, "heads": 3, "mlp_width": 16, "position_kernel": 5, "position_groups": 2}
    convolutions = {"conv_widths": (6, 8), "conv_kernels": (10, 3), "conv_strides": (5, 2)}
    return shapes(Hubert(HubertConfig(**sizes | convolutions | changes)), jnp.zeros((1, 400)))


NETWORKS: dict[str, tuple[Table, Any]] = {
    "clip": (CLIP, vision_shapes()),
    "hubert stable": (HUBERT, audio_shapes(conv_bias=True)),
    "hubert base": (HUBERT, audio_shapes(stable_layer_norm=False, conv_norm="group", projection_norm=False)),
    "model attention": (MODEL, model_shapes(absent=True)),
    "model qformer": (MODEL, model_shapes(prefusion="qformer", video="qformer", audio="qformer", tied_head=True)),
    "model int8": (MODEL, model_shapes(base="int8")),
    "model mean": (MODEL, model_shapes(mode="audio_text", prefusion="none", video="mean", audio="mean")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_row_a_leaf(name: str) -> None:
    """Each leaf matches exactly one row, whose axes fit it, and no two tensors share a name."""
    table, tree = NETWORKS[name]
    for path in paths(tree):
        find_row(table, path)
    axes = logical_axes(table, tree)
    jax.tree.map(lambda leaf, own: np.testing.assert_equal(len(own), len(leaf.shape)), tree, axes)
    names = [theirs for theirs, _ in entries(table, tree)]
    assert len(names) == len(set(names))
    assert sum(prod(entry.shape) for _, entry in entries(table, tree)) == sum(
        leaf.size for leaf in jax.tree.leaves(tree)
    )


def test_no_row_is_idle() -> None:
    for table in (CLIP, HUBERT, MODEL):
        trees = [tree for own, tree in NETWORKS.values() if own is table]
        used = {find_row(table, path)[0] for tree in trees for path in paths(tree)}
        assert used == set(table.rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_is_bit_for_bit(name: str) -> None:
    table, tree = NETWORKS[name]
    random = np.random.default_rng(0)
    flat = paths(tree)
    tensors = {
        theirs: random.normal(scale=9, size=entry.row.their_shape(entry.shape)).astype(flat[entry.path].dtype)
        for theirs, entry in entries(table, tree)
    }
    read = read_tree(table, tree, tensors, "here")
    assert jax.tree.structure(read) == jax.tree.structure(tree)
    written = dict(write_tree(table, read))
    assert set(written) == set(tensors)
    for theirs, tensor in tensors.items():
        assert written[theirs].shape == tensor.shape
        assert written[theirs].tobytes() == tensor.tobytes(), theirs
    again = read_tree(table, tree, written, "here")
    assert jax.tree.all(jax.tree.map(np.array_equal, read, again))


def full_size(lora: LoraConfig, **changes: Any) -> tuple[Any, Any]:
    """Trained and base parameters at the default sizes: Qwen2.5-7B, CLIP ViT-L/14, HuBERT-large."""
    config = ModelConfig(decoder=DecoderConfig(lora=lora), **changes)
    flat = paths(shapes(AffectGPT(config), method="initialise"))
    base = {path: leaf for path, leaf in flat.items() if path.startswith("decoder/") and "/lora_" not in path}
    return nest({path: leaf for path, leaf in flat.items() if path not in base}), nest(base)


def test_full_size_names() -> None:
    """The trained tensors are the reference's, name by name, with its shapes and decay groups."""
    folder = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "fullsize"
    files = sorted(folder.glob("trainable_*.json"))
    assert files
    # Hugging Face counts the mask embedding and the weight norm's lengths too; neither is a parameter of ours.
    hubert = HubertConfig()
    tower = shapes(Hubert(hubert), jnp.zeros((1, 400)))
    hubert_size = sum(leaf.size for leaf in jax.tree.leaves(tower)) + hubert.width + hubert.position_kernel
    for file in files:
        facts = json.loads(file.read_text())
        s = facts["setting"]
        trained, base = full_size(
            LoraConfig(rank=facts["lora_r"], alpha=facts["lora_alpha"]),
            prefusion=s["multi"],
            video=s["video"],
            audio=s["audio"],
            image=s["image"],
            tokens=SoftTokens(multi=s["nm"], audio=s["na"], video=s["nv"], image=s["ni"]),
        )
        found = {name: entry.row.their_shape(entry.shape) for name, entry in entries(TRAINED, trained)}
        expected = {row["name"]: row for row in facts["trainable"]}
        assert found == {name: tuple(row["shape"]) for name, row in expected.items()}, file.stem
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(trained)} == {row["dtype"] for row in expected.values()}
        assert len(found) == facts["trainable_tensors"]
        assert sum(map(prod, found.values())) == facts["trainable_parameters"]

        masks = paths(decay_mask(trained))
        for name, entry in entries(TRAINED, trained):
            decay = expected[name]["weight_decay"]
            assert decays(name, len(found[name])) == masks[entry.path] == decay, name
        assert sum(leaf.size for leaf in jax.tree.leaves(base)) == facts["frozen_parameters"]["llm"]
        assert hubert_size == facts["frozen_parameters"]["hubert"]


def test_full_size_counts() -> None:
    """The numbers published for the shipped setting and for Q-Formers throughout, and those of Qwen2.5-7B."""
    trained, base = full_size(LoraConfig())
    assert len(dict(entries(TRAINED, trained))) == 412
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 57_168_644
    assert len(dict(entries(DECODER, base))) == 339
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 7_615_616_512
    tokens = SoftTokens(video=32, audio=8, multi=16, image=32)
    trained, _ = full_size(
        LoraConfig(), prefusion="qformer", video="qformer", audio="qformer", image="token", tokens=tokens
    )
    assert len(dict(entries(TRAINED, trained))) == 572
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 111_865_856
