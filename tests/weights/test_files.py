"""Model folders: single and sharded files, types, spellings, and what is said about broken ones."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.weights.files import (
    INDEX,
    SINGLE,
    HubertTensors,
    Item,
    Renamed,
    SafetensorsFolder,
    read_config,
    split_position_conv,
    write_folder,
    write_shards,
)
from affectgpt_jax.weights.networks import CLIP
from affectgpt_jax.weights.table import write_tree
from affectgpt_jax.weights.towers import open_vision

RANDOM = np.random.default_rng(0)
TENSORS = {
    "a.weight": RANDOM.normal(size=(3, 4)).astype(np.float32),
    "b.weight": RANDOM.normal(size=(2, 5)).astype(np.float16),
    "c.weight": RANDOM.normal(size=6).astype(ml_dtypes.bfloat16),
}


def write_sharded(folder: Path) -> None:
    files = {name: f"model-{i}-of-3.safetensors" for i, name in enumerate(TENSORS, 1)}
    for name, file in files.items():
        save_file({name: TENSORS[name]}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("sharded", [False, True])
def test_folder(sharded: bool, tmp_path: Path) -> None:
    """Every type arrives as it was stored; bfloat16 too, which numpy alone does not know."""
    if sharded:
        write_sharded(tmp_path)
    else:
        write_folder(tmp_path, {}, TENSORS)
    folder = SafetensorsFolder(tmp_path)
    assert sorted(folder) == sorted(TENSORS)
    assert len(folder) == 3
    for name, tensor in TENSORS.items():
        assert folder[name].dtype == tensor.dtype
        assert folder[name].shape == tensor.shape
        assert np.asarray(folder[name]).tobytes() == tensor.tobytes()
        part = tuple(slice(1, size) for size in tensor.shape)
        assert folder[name][part].tobytes() == tensor[part].tobytes()
    with pytest.raises(KeyError):
        folder["d.weight"]


def test_shards_open_elsewhere(tmp_path: Path) -> None:
    """Every file is one that the format's library opens; they fill up to the limit, and the index names them all."""
    tensors = TENSORS | {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(5, np.int64)}
    items = [Item(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
    write_shards(tmp_path, items, shard_bytes=48)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    files = [index["weight_map"][name] for name in tensors]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert files == [first, second, second, second, second]
    found = load_file(tmp_path / first) | load_file(tmp_path / second)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()
    bad = items[0]._replace(read=lambda: np.zeros((3, 4)))
    with pytest.raises(UserError, match=r"a\.weight came out as float64 \(3, 4\), expected float32"):
        write_shards(tmp_path, [bad])


def test_an_index_that_lies(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    save_file({"other": np.zeros(3)}, tmp_path / "model-2-of-3.safetensors")
    with pytest.raises(UserError, match=r"model-2-of-3\.safetensors does not hold b\.weight"):
        SafetensorsFolder(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    for number in (1, 3):
        (tmp_path / f"model-{number}-of-3.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: model-1-of-3\.safetensors, model-3-of-3\.safetensors"):
        SafetensorsFolder(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_broken_index(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(UserError, match="not an index of safetensors shards"):
        SafetensorsFolder(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    write_folder(tmp_path, {}, TENSORS)
    whole = (tmp_path / SINGLE).read_bytes()
    for size in (0, 4, len(whole) - 1):
        (tmp_path / SINGLE).write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.safetensors: not a readable safetensors file"):
            SafetensorsFolder(tmp_path)


def test_writing_a_transposed_view(tmp_path: Path) -> None:
    """The format's library writes memory as it lies; ours must write the values."""
    tensor = TENSORS["a.weight"].T
    write_folder(tmp_path, {"model_type": "toy"}, {"a": tensor})
    np.testing.assert_array_equal(SafetensorsFolder(tmp_path)["a"], tensor)
    assert read_config(tmp_path) == {"model_type": "toy"}


def test_config_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_config(tmp_path)


def test_renamed() -> None:
    source = Renamed({"hubert.x": np.ones(2), "y": np.zeros(3)}, "hubert.")
    assert sorted(source) == ["x", "y"]
    assert source["x"].shape == (2,)
    with pytest.raises(KeyError):
        source["hubert.x"]


CONV = "encoder.pos_conv_embed.conv"
SPELLINGS = [
    (f"{CONV}.parametrizations.weight.original0", f"{CONV}.parametrizations.weight.original1"),
    (f"{CONV}.weight_g", f"{CONV}.weight_v"),
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weight_norm_is_folded(spelling: tuple[str, str], dtype: type) -> None:
    """g v / |v| with one norm for each kernel position; half-precision parts are folded in float32."""
    g = RANDOM.uniform(0.5, 2, (1, 1, 5)).astype(dtype)
    v = (100 * RANDOM.normal(size=(6, 3, 5))).astype(dtype)
    source = HubertTensors({spelling[0]: g, spelling[1]: v, f"{CONV}.bias": np.zeros(6)})
    assert sorted(source) == [f"{CONV}.bias", f"{CONV}.weight"]
    assert len(source) == 2
    found = source[f"{CONV}.weight"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.reshape(18, 5), axis=0), g.reshape(5), rtol=1e-6)
    direction = v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=(0, 1))
    np.testing.assert_allclose(found, g * direction, rtol=1e-6)


def test_weight_norm_is_split_again() -> None:
    weight = RANDOM.normal(size=(6, 3, 5)).astype(np.float32)
    split = split_position_conv({f"{CONV}.weight": weight, "other": np.ones(1)})
    assert sorted(split) == sorted([*SPELLINGS[0], "other"])
    np.testing.assert_allclose(HubertTensors(split)[f"{CONV}.weight"], weight, rtol=1e-6)
    plain = HubertTensors({f"{CONV}.weight": weight})
    assert plain[f"{CONV}.weight"] is weight


VISION = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 16}
VISION |= {"image_size": 8, "patch_size": 4, "projection_dim": 10, "model_type": "clip_vision_model"}


def test_config_of_another_size(tmp_path: Path) -> None:
    """A config.json whose hidden size is not the weights' lists each tensor with both shapes, in one message."""
    tower = VisionTower(VisionConfig.from_hf(VISION))
    pixels = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), pixels)["params"]
    tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    tensors = dict(write_tree(CLIP, tree))
    write_folder(tmp_path, VISION | {"hidden_size": 24}, tensors)
    with pytest.raises(UserError) as caught:
        open_vision(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} does not fit the CLIP vision tower")
    assert "visual_projection.weight: (10, 12), expected (10, 24)" in message
    assert "vision_model.embeddings.patch_embedding.weight: (12, 3, 4, 4), expected (24, 3, 4, 4)" in message
    # All but the inner width's bias depends on the hidden size.
    assert message.count(", expected (") == len(tensors) - 1


def test_config_of_another_network() -> None:
    hubert = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 8}
    hubert |= {"conv_dim": [8], "conv_kernel": [10], "conv_stride": [5], "hidden_act": "relu"}
    with pytest.raises(UserError, match=r"HuBERT config\.json: hidden_act='relu' is not supported; only 'gelu' is"):
        HubertConfig.from_hf(hubert)
