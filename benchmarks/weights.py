"""How long, and in how much memory, a language model's weights are read and merged with adapters, beside torch.

  python benchmarks/weights.py
  python benchmarks/weights.py --runs 1 --folder /scratch

Writes a folder of random bfloat16 weights in the shapes of Qwen2.5-7B. Both sides read all of it, torch by the
`from_pretrained` of transformers, and both write it again with adapters of rank 16 merged into all linear maps, torch
by PEFT's `merge_and_unload` and `save_pretrained`; that torch must read the model before it merges is not counted. Ours
alone reads what one of eight hosts holds. Each step is a process of its own, whose peak memory is the step's, and they
take turns. The exit status is 1 if a step of ours takes more memory than it may, or if a merged tensor is not the sum
of its parts. Without room on the disk for three such folders nothing is measured. Needs the extra [torch].
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import ml_dtypes
import numpy as np
from common.shapes import LANGUAGE
from safetensors import safe_open

from affectgpt_jax.config.networks import DecoderConfig, ModelConfig
from affectgpt_jax.config.run import MeshConfig, RunConfig, WeightsConfig
from affectgpt_jax.exchange.language import merged_items
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.weights.files import INDEX, SINGLE, Item, SafetensorsFolder, read_config, write_shards
from affectgpt_jax.weights.initial import base_shapes, parameter_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import Entry, entries, nest, paths, read_part

HOSTS = 8
SHARD_BYTES = 4 * 2**30
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
GB = 1e9
SPARE = 2 * GB
"""Room on the disk that is left to others."""
MERGED = "merged by {}"


class Took(NamedTuple):
    """What a step took: bytes that it read or wrote, seconds, and the process's most memory."""

    bytes: int
    seconds: float
    peak: int


Work = Callable[[Path], tuple[int, float]]
"""Does a step in a folder, and says how many bytes that was and when it began."""


def run_config(folder: Path) -> RunConfig:
    """A run with adapters over folder/base, whose config.json is there."""
    decoder = DecoderConfig.from_hf(read_config(folder / "base"), dtype="bfloat16")
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


def write(folder: Path) -> tuple[int, float]:
    """Write folder/base."""
    items, started = base_items(run_config(folder)), time.perf_counter()
    write_shards(folder / "base", items, shard_bytes=SHARD_BYTES)
    return sum(item.bytes for item in items), started


def read(folder: Path, hosts: int = 1) -> tuple[int, float]:
    """Read what the first of some hosts with a device each holds, onto that device."""
    config = run_config(folder)
    shapes = base_shapes(config, AffectGPT(config.model))
    mesh = make_mesh(MeshConfig(data=1, fsdp=hosts), devices=jax.devices()[:hosts])
    shardings, device = paths(parameter_shardings(mesh, shapes)), mesh.devices.flat[0]
    started = time.perf_counter()
    source = SafetensorsFolder(folder / "base")
    places: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in entries(DECODER, shapes):
        places.setdefault(entry.path, []).append((name, entry))
    held = {}
    for path, leaf in paths(shapes).items():
        index = shardings[path].devices_indices_map(leaf.shape)[device]
        part = read_part(places[path], source, leaf.shape, leaf.dtype, index)
        held[path] = jax.device_put(part, device).block_until_ready()
    return sum(x.nbytes for x in held.values()), started


def adapters(config: RunConfig) -> dict[str, np.ndarray]:
    """Random adapters by path; what they add is larger than the base."""
    random = np.random.default_rng(0)
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    return {
        path: 0.05 * random.standard_normal(leaf.shape, np.float32) for path, leaf in shapes.items() if "/lora_" in path
    }


def merge(folder: Path) -> tuple[int, float]:
    """Write the merged model."""
    config = run_config(folder)
    # Tensors are merged without a tokenizer.
    trained = Trained(config, cast(Any, None), nest(adapters(config)), 0, str(folder))
    into = _emptied(folder / MERGED.format("ours"))
    started = time.perf_counter()
    items = merged_items(trained)
    write_shards(into, items, shard_bytes=SHARD_BYTES)
    return sum(item.bytes for item in items), started


def torch_read(folder: Path) -> tuple[int, float]:
    """transformers' `from_pretrained`, and one look at every page of what it gives."""
    import torch
    import transformers

    kind = transformers.Qwen2ForCausalLM  # is imported here, which does not count
    started = time.perf_counter()
    model = kind.from_pretrained(folder / "base", dtype=torch.bfloat16)
    size = 0
    for tensor in model.state_dict().values():  # those that it maps into memory are read when they are used
        size += tensor.nbytes
        tensor.view(torch.int16).flatten()[::2048].sum()
    return size, started


def torch_merge(folder: Path) -> tuple[int, float]:
    """PEFT's `merge_and_unload`, and `save_pretrained`."""
    import peft
    import torch
    import transformers

    config = run_config(folder)
    lora = config.model.decoder.lora
    base = transformers.Qwen2ForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    asked = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    model = peft.get_peft_model(base, asked)
    values = adapters(config)
    for name, parameter in model.named_parameters():
        if found := re.search(r"layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])", name):
            layer, linear, part = found.groups()
            value = values[f"decoder/layers/{linear}/lora_{part.lower()}"][int(layer)]
            parameter.data = torch.from_numpy(value.T.copy())
    into = _emptied(folder / MERGED.format("torch"))
    started = time.perf_counter()
    merged = model.merge_and_unload()
    merged.save_pretrained(into, max_shard_size=SHARD_BYTES)
    return sum(x.nbytes for x in merged.state_dict().values()), started


def check(folder: Path) -> tuple[int, float]:
    """Compare merged tensors with torch's, and some with the sum of their parts, computed without the code above.

    Raises:
        SystemExit: one differs.
    """
    config, started = run_config(folder), time.perf_counter()
    trained = adapters(config)
    decoder, lora = config.model.decoder, config.model.decoder.lora
    last = decoder.layers - 1
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
        every = max(1, len(a) // 512)
        found, base, theirs = (
            tensor(folder / kind, name)[::every].astype(np.float64)
            for kind in (MERGED.format("ours"), "base", MERGED.format("torch"))
        )
        added = lora.alpha / lora.rank * (b.T[::every] @ a.T)
        # Half a unit in the last place of bfloat16, and what float32 sums may differ by. PEFT rounds what it adds, too.
        if not np.allclose(found, base + added, rtol=2**-8, atol=1e-6):
            raise SystemExit(f"{name} is not the base plus its adapter")
        if not (np.abs(found - theirs) <= 2**-7 * (np.abs(base) + np.abs(added)) + 1e-6).all():
            raise SystemExit(f"{name} is not what PEFT makes of it")
        checked += found.size
    unchanged = ["model.norm.weight", f"model.layers.{last}.self_attn.q_proj.bias"]
    for name in unchanged if decoder.tied_head else [*unchanged, "lm_head.weight"]:
        kinds = (MERGED.format("ours"), "base", MERGED.format("torch"))
        found, *others = (tensor(folder / kind, name).view(np.uint16) for kind in kinds)
        if not all(np.array_equal(found, other) for other in others):
            raise SystemExit(f"{name} has no adapter, but is not the base's")
        checked += found.size
    return 2 * checked, started


def tensor(folder: Path, name: str) -> np.ndarray:
    """A tensor as the format's own library reads it."""
    index = folder / INDEX
    file = json.loads(index.read_text())["weight_map"][name] if index.is_file() else SINGLE
    with safe_open(folder / file, framework="numpy") as opened:
        return opened.get_tensor(name)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


class Step(NamedTuple):
    """One row of the table.

    Attributes:
      title: its name there.
      ours: our side.
      torch: the other side, where there is one.
      limit: most memory that ours may take.
    """

    title: str
    ours: Work
    torch: Work | None = None
    limit: float | None = None


STEPS = {
    "write": Step("write the base", write),
    "read": Step("read all of it", read, torch_read),
    "load": Step(f"read 1/{HOSTS} of it into shards", partial(read, hosts=HOSTS), None, 5 * GB),
    "merge": Step("merge adapters, write", merge, torch_merge, 4 * GB),
    "check": Step("compare merged tensors", check),
}
ONCE = ("write", "check")
"""Steps that are not measured again."""


def run_step(step: str, side: str, folder: Path) -> Took:
    """Run one side of a step in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, __file__, "--step", step, "--side", side, "--folder", str(folder)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TQDM_DISABLE": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={HOSTS}",
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the step {step!r} failed")
    took = Took(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{STEPS[step].title}, {side}: {took.seconds:.1f} s", file=sys.stderr)
    return took


def measure(step: str, side: str, folder: Path) -> None:
    """Do one side of a step in this process and print what it took."""
    size, started = getattr(STEPS[step], side)(folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(Took(size, seconds, peak)._asdict()))


def main() -> int:
    """Run all steps and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=LANGUAGE, default="7b")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        measure(args.step, args.side, args.folder)
        return 0
    with tempfile.TemporaryDirectory(prefix="weights.", dir=args.folder) as name:
        folder = Path(name)
        (folder / "base").mkdir()
        sizes = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **LANGUAGE[args.shape]}
        (folder / "base" / "config.json").write_text(json.dumps(sizes))
        size = sum(item.bytes for item in base_items(run_config(folder)))
        needed, free = 3 * size + SPARE, shutil.disk_usage(folder).free
        if free < needed:
            print(f"skipped: {args.folder} has {free / GB:.1f} GB free, {needed / GB:.1f} GB are needed; name --folder")
            return 0
        found: dict[tuple[str, str], list[Took]] = {("write", "ours"): [run_step("write", "ours", folder)]}
        for _ in range(args.runs):
            for step in (name for name in STEPS if name not in ONCE):
                for side in ("torch", "ours"):
                    if getattr(STEPS[step], side):
                        found.setdefault((step, side), []).append(run_step(step, side, folder))
        found["check", "ours"] = [run_step("check", "ours", folder)]
    show(args, found)
    if args.json is not None:
        listed = {f"{step}, {side}": [each._asdict() for each in took] for (step, side), took in found.items()}
        args.json.write_text(json.dumps(listed, indent=1) + "\n")
    peaks = {name: max(took.peak for took in found[name, "ours"]) for name in STEPS}
    over = [name for name, step in STEPS.items() if step.limit and peaks[name] > step.limit]
    for name in over:
        print(
            f"{STEPS[name].title}: {peaks[name] / GB:.2f} GB are more than the {STEPS[name].limit / GB:.0f} GB allowed"
        )
    return 1 if over else 0


def show(args: argparse.Namespace, found: dict[tuple[str, str], list[Took]]) -> None:
    """The table."""
    size = found["write", "ours"][0].bytes
    print(f"{args.shape}: {size / GB:.3f} GB, bfloat16, {os.cpu_count()} cores, {args.runs} runs in turn, median\n")
    head = ("torch, s", "spread", "ours, s", "spread", "torch / ours", "MB/s", "torch, GB", "ours, GB", "at most")
    print(f"{'':<30}" + "".join(f"{x:>16}" for x in head))
    for name, step in STEPS.items():
        cells = []
        middle = {}
        for side in ("torch", "ours"):
            seconds = sorted(took.seconds for took in found.get((name, side), []))
            middle[side] = statistics.median(seconds) if seconds else None
            cells += [f"{middle[side]:.2f}", f"{seconds[0]:.2f} - {seconds[-1]:.2f}"] if seconds else ["", ""]
        cells.append(f"{middle['torch'] / middle['ours']:.2f}x" if middle["torch"] and middle["ours"] else "")
        cells.append(f"{found[name, 'ours'][0].bytes / 1e6 / middle['ours']:,.0f}")
        for side in ("torch", "ours"):
            peaks = [took.peak for took in found.get((name, side), [])]
            cells.append(f"{max(peaks) / GB:.2f}" if peaks else "")
        cells.append(f"{step.limit / GB:.0f}" if step.limit else "")
        print(f"{step.title:<30}" + "".join(f"{x:>16}" for x in cells))


if __name__ == "__main__":
    sys.exit(main())
