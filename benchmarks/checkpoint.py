"""Seconds that a checkpoint costs: how long training stands still, until it is on disk, until it is read.

  python benchmarks/checkpoint.py

The trained parameters of the published setting (adapters of rank 16 and the fusion, 57M float32) and Adam's two
moments. torch as the authors have it: `torch.save` of a dictionary, and `torch.load`. Ours is `affectgpt train`'s
checkpoint: Orbax, written in the background, read onto the devices. Each side is a process of its own, and they take
turns; on disk means that the file system has it (fsync). Needs the extra [torch].
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from common.sides import Found, add_arguments, compare

SHAPES = {"7b": 1.0, "tiny": 0.01}
"""Share of the published setting's layers' width."""
LAYERS, RANK = 28, 16
WIDTHS = {
    "q_proj": (3584, 3584), "k_proj": (3584, 512), "v_proj": (3584, 512), "o_proj": (3584, 3584),
    "gate_proj": (3584, 18944), "up_proj": (3584, 18944), "down_proj": (18944, 3584),
}  # fmt: skip
FUSION = (3584, 4680)
"""Its projections, as one matrix of as many numbers."""
STAGES = ("stands still", "on disk", "read")


def main() -> None:
    """Compare, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    add_arguments(parser)
    compare(parser.parse_args(), theirs, ours, show)


def show(args: argparse.Namespace, found: Found) -> None:
    """Print both sides."""
    size = found["ours"][0]["bytes"]
    print(f"{args.shape}: {size / 1e6:.0f} MB, {found['ours'][0]['device']}, {args.runs} runs in turn\n")
    print(f"{'seconds':<16}{'torch':>10}{'spread':>20}{'ours':>10}{'spread':>20}{'torch / ours':>14}")
    for stage in STAGES:
        sides = {side: sorted(result[stage] for result in results) for side, results in found.items()}
        cells = "".join(
            f"{values[len(values) // 2]:>10.3f}{f'{values[0]:.3f} - {values[-1]:.3f}':>20}" for values in sides.values()
        )
        ratio = sides["torch"][len(sides["torch"]) // 2] / sides["ours"][len(sides["ours"]) // 2]
        print(f"{stage:<16}{cells}{ratio:>13.2f}x")


def trained(share: float) -> dict[str, np.ndarray]:
    """Parameters by name: A and B of every linear map, stacked over layers, and the fusion."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(tuple(max(2, int(n * share)) for n in shape), np.float32)

    params = {"fusion": draw(*FUSION)}
    for name, (width, out) in WIDTHS.items():
        params |= {f"{name}/lora_a": draw(LAYERS * width, RANK), f"{name}/lora_b": draw(LAYERS * RANK, out)}
    return params


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    """torch.save and torch.load."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {name: torch.from_numpy(x).to(device) for name, x in trained(SHAPES[args.shape]).items()}
    state = {name: {"exp_avg": torch.zeros_like(x), "exp_avg_sq": torch.zeros_like(x)} for name, x in tensors.items()}
    file = args.folder / "checkpoint.pth"
    started = time.perf_counter()
    torch.save({"model": tensors, "optimizer": {"state": state}, "epoch": 1}, file)
    still = time.perf_counter() - started
    _sync(file)
    disk = time.perf_counter() - started
    started = time.perf_counter()
    torch.load(file, map_location=device)
    if device == "cuda":
        torch.cuda.synchronize()
    return dict(zip(STAGES, (still, disk, time.perf_counter() - started), strict=True))


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """`checkpoint.Checkpoints`, as the training loop calls it."""
    import jax
    import jax.numpy as jnp

    from affectgpt_jax.checkpoint import Checkpoints, targets

    params = jax.tree.map(jnp.asarray, trained(SHAPES[args.shape]))
    moments = {name: jax.tree.map(jnp.zeros_like, params) for name in ("mu", "nu")}
    items = {"params": params, "progress": {"step": jnp.asarray(1), "optimizer": moments}}
    jax.block_until_ready(items)
    folder = args.folder / f"run-{time.time_ns()}"
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(0, jax.tree.map(lambda x: x[:1] if x.ndim else x, items), {})  # threads and loggers are begun
    checkpoints.wait()
    started = time.perf_counter()
    checkpoints.save(1, items, {"step": 1})
    still = time.perf_counter() - started
    checkpoints.wait()
    for file in filter(Path.is_file, folder.rglob("*")):
        _sync(file)
    disk = time.perf_counter() - started
    started = time.perf_counter()
    jax.block_until_ready(checkpoints.restore(targets(items)).items)
    read = time.perf_counter() - started
    checkpoints.close()
    size = sum(x.nbytes for x in jax.tree.leaves(items))
    return {
        **dict(zip(STAGES, (still, disk, read), strict=True)),
        "bytes": size,
        "device": jax.devices()[0].device_kind,
    }


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


if __name__ == "__main__":
    main()
