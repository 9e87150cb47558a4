"""Seconds that a checkpoint costs: how long training stands still, until it is on disk, until it is read.

  python benchmarks/checkpoint.py

The trained parameters of the published setting (adapters of rank 16 and the fusion, 54M float32) and Adam's two
moments. torch as the authors have it: `torch.save` of a dictionary, and `torch.load`. Ours is `affectgpt train`'s
checkpoint: Orbax, written in the background, read onto the devices. Each side is a process of its own, and they take
turns; on disk means that the file system has it (fsync). Needs the extra [torch].
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
from common.sides import Found, Pieces, add_arguments, compare

from affectgpt_jax.config import load_config
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import split

SHAPES = {"7b": "affectgpt_qwen2.5_7b_face", "tiny": "smoke"}
"""Configs whose trained parameters are saved."""
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
        sides = {side: [result[stage] for result in results] for side, results in found.items()}
        middle = {side: statistics.median(values) for side, values in sides.items()}
        cells = "".join(
            f"{middle[side]:>10.3f}{f'{min(values):.3f} - {max(values):.3f}':>20}" for side, values in sides.items()
        )
        print(f"{stage:<16}{cells}{middle['torch'] / middle['ours']:>13.2f}x")


def trained(name: str) -> dict[str, np.ndarray]:
    """A config's trained parameters by path, random numbers."""
    config = load_config(name)
    shapes, _ = split(config.model, parameter_shapes(AffectGPT(config.model)), config.train.trainable)
    rng = np.random.default_rng(0)
    return {path: rng.standard_normal(x.shape, np.float32) for path, x in paths(shapes).items()}


def theirs(args: argparse.Namespace) -> Pieces:
    """torch.save and torch.load."""
    import jax
    import torch

    jax.config.update("jax_platforms", "cpu")  # the shapes come from it, the device is torch's
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = {name: torch.from_numpy(x).to(device) for name, x in trained(SHAPES[args.shape]).items()}
    state = {name: {"exp_avg": torch.randn_like(x), "exp_avg_sq": torch.rand_like(x)} for name, x in tensors.items()}
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
    yield dict(zip(STAGES, (still, disk, time.perf_counter() - started), strict=True))


def ours(args: argparse.Namespace) -> Pieces:
    """`checkpoint.Checkpoints`, as the training loop calls it."""
    import jax
    import jax.numpy as jnp

    from affectgpt_jax.checkpoint import Checkpoints, targets
    from affectgpt_jax.training.optimizer import make_optimizer

    params = nest(jax.tree.map(jnp.asarray, trained(SHAPES[args.shape])))
    config = load_config(SHAPES[args.shape]).train
    optimizer = make_optimizer(config.optimizer, config.steps).init(params)
    rng = np.random.default_rng(1)  # moments of zeros would be packed into nothing
    moments = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32)) if x.ndim else x, optimizer)
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
    yield {
        **dict(zip(STAGES, (still, disk, read), strict=True)),
        "bytes": size,
        "device": jax.devices()[0].device_kind,
    }


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


if __name__ == "__main__":
    main()
