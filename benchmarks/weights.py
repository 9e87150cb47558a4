"""How long, and in how much memory, the weights of Qwen2.5-7B are read into shards and merged with adapters.

  python benchmarks/weights_7b.py
  python benchmarks/weights_7b.py --layers 4 --folder /scratch

Writes a folder of random weights in the shapes of Qwen2.5-7B, reads what one of eight hosts holds of it, and writes it
again with adapters merged into all linear maps. Each step is a process of its own, whose peak memory is the step's. The
exit status is 1 if a step takes more memory than it may, or if a merged tensor is not the sum of its parts. Without
room on the disk for both folders nothing is measured.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import ml_dtypes
import numpy as np
from rich.console import Console
from safetensors import safe_open

from affectgpt_jax.config.networks import DecoderConfig, ModelConfig
from affectgpt_jax.config.run import MeshConfig, RunConfig, WeightsConfig
from affectgpt_jax.exchange.language import merged_items
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.unibench.report.render import print_table
from affectgpt_jax.unibench.report.tables import Table
from affectgpt_jax.weights.files import INDEX, SINGLE, Item, SafetensorsFolder, read_config, write_shards
from affectgpt_jax.weights.initial import base_shapes, parameter_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import Entry, entries, nest, paths, read_part

HOSTS = 8
SHARD_BYTES = 4 * 2**30
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
GB = 1e9
LIMITS = {"load": 5 * GB, "merge": 4 * GB}
"""Most memory that a step may take."""
SPARE = 2 * GB
"""Room on the disk that is left to others."""


def run_config(folder: Path, layers: int | None = None) -> RunConfig:
    """A run with adapters over folder/base: of so many layers of Qwen2.5-7B, or as the config.json there says."""
    if layers is None:
        decoder = DecoderConfig.from_hf(read_config(folder / "base"), dtype="bfloat16")
    else:
        decoder = DecoderConfig(layers=layers, dtype="bfloat16")
    return RunConfig(model=ModelConfig(decoder=decoder), weights=WeightsConfig(language=str(folder / "base")))


def base_items(config: RunConfig) -> list[Item]:
    """The base's tensors under their Hugging Face names, each made of random bits when it is written."""
    items = []
    for name, entry in entries(DECODER, base_shapes(config, AffectGPT(config.model))):
        shape = entry.row.their_shape(entry.shape)
        items.append(Item(name, shape, BFLOAT16, partial(random_bfloat16, shape, len(items))))
    return items


def random_bfloat16(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bits, but for those of the exponent that would make a number smaller than 2^-15 or larger than 2^-7."""
    count = int(np.prod(shape))
    bits = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-count // 4), dtype=np.uint64)
    bits &= np.uint64(0x83FF_83FF_83FF_83FF)
    bits |= np.uint64(0x3800_3800_3800_3800)
    return bits.view(BFLOAT16)[:count].reshape(shape)


def write(folder: Path) -> int:
    """Write folder/base, whose config.json is there."""
    items = base_items(run_config(folder))
    write_shards(folder / "base", items, shard_bytes=SHARD_BYTES)
    return sum(item.bytes for item in items)


def load(folder: Path) -> int:
    """Read what the first of eight hosts with a device each holds, onto that device."""
    config = run_config(folder)
    shapes = base_shapes(config, AffectGPT(config.model))
    mesh = make_mesh(MeshConfig(data=1, fsdp=HOSTS))
    shardings, device = paths(parameter_shardings(mesh, shapes)), mesh.devices.flat[0]
    source = SafetensorsFolder(folder / "base")
    places: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in entries(DECODER, shapes):
        places.setdefault(entry.path, []).append((name, entry))
    held = {}
    for path, leaf in paths(shapes).items():
        index = shardings[path].devices_indices_map(leaf.shape)[device]
        part = read_part(places[path], source, leaf.shape, leaf.dtype, index)
        held[path] = jax.device_put(part, device).block_until_ready()
    return sum(x.nbytes for x in held.values())


def adapters(config: RunConfig) -> dict[str, Any]:
    """Random adapters; what they add is larger than the base."""
    random = np.random.default_rng(0)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    return nest(
        {
            path: 0.05 * random.standard_normal(leaf.shape, np.float32)
            for path, leaf in shapes.items()
            if "/lora_" in path
        }
    )


def merge(folder: Path) -> int:
    """Write folder/merged."""
    config = run_config(folder)
    # Tensors are merged without a tokenizer.
    trained = Trained(config, cast(Any, None), adapters(config), 0, str(folder))
    items = merged_items(trained)
    write_shards(folder / "merged", items, shard_bytes=SHARD_BYTES)
    return sum(item.bytes for item in items)


def check(folder: Path) -> int:
    """Compare some merged tensors with the sum of their parts, read and computed without the code above.

    Raises:
        SystemExit: one differs.
    """
    config = run_config(folder)
    trained = paths(adapters(config))
    lora = config.model.decoder.lora
    last = config.model.decoder.layers - 1
    checked = 0
    for layer, place, linear in (
        (0, "self_attn", "q_proj"),
        (last, "self_attn", "k_proj"),
        (last // 2, "self_attn", "o_proj"),
        (last, "mlp", "gate_proj"),
        (0, "mlp", "down_proj"),
    ):
        name = f"model.layers.{layer}.{place}.{linear}.weight"
        a, b = (trained[f"decoder/layers/{linear}/lora_{part}"][layer].astype(np.float64) for part in "ab")
        found, base = (tensor(folder / kind, name)[:: len(a) // 512] for kind in ("merged", "base"))
        exact = base + lora.alpha / lora.rank * (b.T[:: len(a) // 512] @ a.T)
        # Half a unit in the last place of bfloat16, and what float32 sums may differ by.
        if not np.allclose(found, exact, rtol=2**-8, atol=1e-6):
            raise SystemExit(f"{name} is not the base plus its adapter")
        checked += found.nbytes
    for name in ("lm_head.weight", "model.norm.weight", f"model.layers.{last}.self_attn.q_proj.bias"):
        found, expected = (tensor(folder / kind, name).view(np.uint16) for kind in ("merged", "base"))
        if not np.array_equal(found, expected):
            raise SystemExit(f"{name} has no adapter, but is not the base's")
        checked += found.nbytes
    return checked


def tensor(folder: Path, name: str) -> np.ndarray:
    """A tensor as the format's own library reads it."""
    index = folder / INDEX
    file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else SINGLE
    with safe_open(folder / file, framework="numpy") as opened:
        return opened.get_tensor(name)


STEPS: dict[str, tuple[str, Callable[[Path], int]]] = {
    "write": ("write the base", write),
    "load": (f"load 1/{HOSTS} of it into shards", load),
    "merge": ("merge adapters into it", merge),
    "check": ("compare merged tensors", check),
}


def run_step(step: str, folder: Path) -> dict[str, float]:
    """Run a step in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={HOSTS}",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the step {step!r} failed")
    return json.loads(done.stdout)


def measure(step: str, folder: Path) -> None:
    """Do a step in this process and print what it took."""
    start = time.perf_counter()
    size = STEPS[step][1](folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": size, "seconds": seconds, "peak": peak}))


def main(arguments: Iterable[str] | None = None) -> int:
    """Run all steps and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="layers of the model (default: all %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args(None if arguments is None else list(arguments))
    if args.step:
        measure(args.step, args.folder)
        return 0
    config = run_config(args.folder, args.layers)
    size = sum(item.bytes for item in base_items(config))
    needed, free = 2 * size + SPARE, shutil.disk_usage(args.folder).free
    if free < needed:
        print(f"skipped: {args.folder} has {free / GB:.1f} GB free, {needed / GB:.1f} GB are needed; name --folder DIR")
        return 0
    with tempfile.TemporaryDirectory(prefix="weights_7b.", dir=args.folder) as name:
        folder = Path(name)
        for part in ("base", "merged"):
            (folder / part).mkdir()
        (folder / "base" / "config.json").write_text(json.dumps(config.model.decoder.to_hf()))
        found = {step: run_step(step, folder) for step in STEPS}
    over = [step for step, limit in LIMITS.items() if found[step]["peak"] > limit]
    rows = [
        (
            STEPS[step][0],
            f"{took['bytes'] / GB:.2f} GB",
            f"{took['seconds']:.1f} s",
            f"{took['bytes'] / 1e6 / took['seconds']:,.0f} MB/s",
            f"{took['peak'] / GB:.2f} GB",
            f"{LIMITS[step] / GB:.0f} GB" if step in LIMITS else "",
        )
        for step, took in found.items()
    ]
    title = f"Weights of Qwen2.5-7B, {args.layers} layers, bfloat16"
    columns = ("Step", "bytes", "time", "rate", "peak memory", "at most")
    print_table(Console(), Table(title, columns, tuple(rows)))
    for step in over:
        print(f"{STEPS[step][0]}: {found[step]['peak'] / GB:.2f} GB are more than {LIMITS[step] / GB:.0f} GB")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
