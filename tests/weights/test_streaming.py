"""A base folder read into shards and merged, at tiny size: what is read of it, and what every device gets."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from affectgpt_jax.config.networks import Base, DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.config.run import MeshConfig, RunConfig, WeightsConfig
from affectgpt_jax.exchange.language import merged_items
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.quantisation import quantise
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.weights.files import Item, SafetensorsFolder, StoredTensor, write_shards
from affectgpt_jax.weights.initial import base_shapes, parameter_shapes, read_base
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import entries, nest, paths, read_part, read_tree

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DEVICES = 8
LORA = LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "down_proj"))
SIZES = {"vocab": 48, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 24}


def run_config(folder: Path, held: Base = "float") -> RunConfig:
    """A run with adapters over the base in a folder."""
    decoder = DecoderConfig(**SIZES, dtype="bfloat16", lora=LORA, base=held)  # type: ignore[arg-type]
    return RunConfig(model=ModelConfig(decoder=decoder), weights=WeightsConfig(language=str(folder)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of several files."""
    folder = tmp_path_factory.mktemp("base")
    write_base(run_config(folder), folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def write_base(config: RunConfig, folder: Path) -> None:
    """Write random tensors in bfloat16, of the sizes of a run's language model."""
    random, items = np.random.default_rng(0), []
    for name, entry in entries(DECODER, base_shapes(config, AffectGPT(config.model))):
        shape = entry.row.their_shape(entry.shape)
        tensor = random.normal(size=shape).astype(BFLOAT16)
        items.append(Item(name, shape, BFLOAT16, lambda x=tensor: x))
    write_shards(folder, items, shard_bytes=10_000)
    (folder / "config.json").write_text("{}")


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts the numbers that are read of each stored tensor."""
    read: Counter[str] = Counter()
    original = StoredTensor.__getitem__

    def getitem(self: StoredTensor, index: Any) -> np.ndarray:
        part = original(self, index)
        read[self.name] += part.size
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredTensor, "__getitem__", getitem)
        yield read


def compare_shards(folder: str, held: Base, *sizes: str) -> None:
    """Read the base onto a mesh of all devices, and compare what each got; runs where there are eight.

    Args:
      folder: the base.
      held: how its kernels are held.
      *sizes: of the mesh.
    """
    config = run_config(Path(folder), held)
    model = AffectGPT(config.model)
    whole = paths(read_tree(DECODER, base_shapes(config, model), SafetensorsFolder(folder), folder))
    if held == "int8":
        kernels = {path for path in whole if path.startswith("decoder/layers/") and path.endswith("/kernel")}
        for path in kernels:
            whole[path], whole[f"{path}_scale"] = map(np.asarray, quantise(jnp.asarray(whole[path])))
            assert whole[path].dtype == np.int8
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), map(int, sizes), strict=True))))
    shardings = parameter_shardings(mesh, parameter_shapes(model))
    with counting() as read:
        found = paths(read_base(config, model, shardings))
    assert jax.device_count() == DEVICES
    assert set(found) == set(whole)
    # What lies on all devices is read once, of the rest each device reads its own part.
    expected = 0
    for path, leaf in found.items():
        shards = leaf.addressable_shards
        assert len({shard.device for shard in shards}) == DEVICES
        for shard in shards:
            assert np.asarray(shard.data).tobytes() == whole[path][shard.index].tobytes(), (path, shard.index)
        copies = 1 if leaf.is_fully_replicated else DEVICES
        if path.endswith("kernel_scale"):
            # It lies as its channels do, and is computed, not read.
            assert leaf.sharding.spec[1] == found[path.removesuffix("_scale")].sharding.spec[2]
            continue
        expected += copies * shards[0].data.size
        if path.endswith(("kernel", "embedding")):
            assert copies * shards[0].data.size == leaf.size * int(sizes[0]), path
    assert sum(read.values()) == expected
    print("compared", len(found))


@pytest.mark.parametrize(("sizes", "kinds"), [("1 8 1", "float"), ("2 2 2", "float int8"), ("1 2 4", "float")])
def test_every_device_gets_its_slice_and_reads_no_more(sizes: str, kinds: str, base: Path) -> None:
    """Held as int8, a kernel is rounded by the largest entries of whole channels, however they are split."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    program = "\n".join(
        ["from tests.weights.test_streaming import compare_shards"]
        + [f"compare_shards({str(base)!r}, {held!r}, *{sizes.split()})" for held in kinds.split()]
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    counts = {"float": 15, "int8": 22}
    assert done.stdout == "".join(f"compared {counts[held]}\n" for held in kinds.split()), done.stderr


def test_no_more_than_a_layer_of_a_kernel_is_ever_a_float(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is held in the end is a byte a number, and a float32 a channel."""
    made: list[tuple[int, ...]] = []
    original = jax.make_array_from_callback

    def make(shape: tuple[int, ...], *args: Any) -> jax.Array:
        made.append(shape)
        return original(shape, *args)

    monkeypatch.setattr(jax, "make_array_from_callback", make)
    config = run_config(base, "int8")
    model = AffectGPT(config.model)
    shapes = parameter_shapes(model)
    held = paths(read_base(config, model, parameter_shardings(make_mesh(MeshConfig()), shapes)))
    layers = SIZES["layers"]
    stacked = [shape for shape in made if len(shape) == 3]
    assert len(stacked) == 7 * layers
    assert {shape[0] for shape in stacked} == {1}
    assert {path: x.dtype for path, x in held.items() if x.dtype != jnp.bfloat16} == {
        path: x.dtype for path, x in paths(shapes).items() if path.endswith(("_proj/kernel", "kernel_scale"))
    }
    kernels = [x for path, x in held.items() if path.endswith("_proj/kernel")]
    rest = [x for path, x in held.items() if not path.endswith(("_proj/kernel", "kernel_scale"))]
    channels = layers * sum(x.shape[-1] for x in kernels)
    numbers, others = (sum(x.size for x in leaves) for leaves in (kernels, rest))
    assert sum(x.nbytes for x in held.values()) == numbers + 4 * channels + 2 * others


def test_one_of_eight_hosts_reads_an_eighth(base: Path) -> None:
    """What stands for another host's device costs nothing: only the part that is asked for is read of the files."""
    config = run_config(base)
    shapes = paths(base_shapes(config, AffectGPT(config.model)))
    source = SafetensorsFolder(base)
    whole = paths(read_tree(DECODER, nest(shapes), source, str(base)))
    places = list(entries(DECODER, nest(shapes)))
    for path in ("decoder/tokens/embedding", "decoder/head/kernel", "decoder/layers/down_proj/kernel"):
        leaf = shapes[path]
        axis = leaf.shape.index(SIZES["width"])
        part = [slice(None)] * len(leaf.shape)
        part[axis] = slice(8, 12)
        with counting() as read:
            own = [(name, entry) for name, entry in places if entry.path == path]
            found = read_part(own, source, leaf.shape, leaf.dtype, tuple(part))
        assert found.tobytes() == whole[path][tuple(part)].tobytes()
        assert sum(read.values()) * DEVICES == leaf.size


def test_merging_reads_every_tensor_once(base: Path, tmp_path: Path) -> None:
    """Each tensor is read when its turn to be written comes; merged ones are base plus adapter, rounded once."""
    config, random = run_config(base), np.random.default_rng(1)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    adapters = {path: random.normal(size=x.shape).astype(np.float32) for path, x in shapes.items() if "/lora_" in path}
    assert {path.split("/")[2] for path in adapters} == set(LORA.targets)
    trained = Trained(config, cast(Any, None), nest(adapters), 0, "test")
    source = SafetensorsFolder(base)
    with counting() as read:
        items = merged_items(trained)
        assert not read
        for item in items[:3]:
            item.read()
        assert set(read) == {item.name for item in items[:3]}
    with counting() as read:
        write_shards(tmp_path, items, shard_bytes=10_000)
    assert read == {name: int(np.prod(tensor.shape)) for name, tensor in source.items()}
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert set(found) == set(source)
    merged = 0
    for name, entry in entries(DECODER, base_shapes(config, AffectGPT(config.model))):
        linear = entry.path.removesuffix("/kernel")
        if f"{linear}/lora_a" not in adapters:
            assert found[name].tobytes() == np.asarray(source[name]).tobytes()
            continue
        a, b = (adapters[f"{linear}/lora_{part}"][entry.layer].astype(np.float64) for part in "ab")
        expected = np.asarray(source[name]).astype(np.float64) + LORA.alpha / LORA.rank * (a @ b).T
        # Half a unit in the last place of bfloat16, and what float32 sums may differ by.
        np.testing.assert_allclose(found[name].astype(np.float64), expected, rtol=2**-8, atol=1e-5)
        merged += 1
    assert merged == len(LORA.targets) * SIZES["layers"]
