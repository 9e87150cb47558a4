"""The smoke job: a tiny run over the devices and the mesh of a real one, saved, opened again, and compared.

What it finds in two minutes costs hours later: a process that is missing, a device or a network that does not answer,
a mesh that does not fit, a run folder that the processes do not share, a checkpoint that does not come back.
"""

import math
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import jax

from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.distributed import barrier
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import CHECKPOINTS
from affectgpt_jax.sharding import batch_shards, make_mesh
from affectgpt_jax.training.loop import train

AGREEMENT = 1e-3
"""Relative difference of the last loss that the order of sums on a GPU may make; a lost optimizer makes 2e-2."""
SECONDS = 120.0
"""How long processes wait for each other."""


class Smoke(NamedTuple):
    """What a smoke job did.

    Attributes:
      processes: of the job.
      devices: of all processes together, of one `kind`.
      mesh: size of each axis.
      saved: step of the checkpoint that was opened again.
      losses: of the last step, without a stop and after it.
      seconds: from beginning to end.
    """

    processes: int
    devices: int
    kind: str
    mesh: dict[str, int]
    saved: int
    losses: tuple[float, float]
    seconds: float

    def summary(self) -> str:
        """One line."""
        mesh = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "of one device"
        return (
            f"smoke: ok, {_counted(self.processes, 'process', 'processes')}, "
            f"{_counted(self.devices, 'device', 'devices')} ({self.kind}), mesh {mesh}, step {self.saved} saved and "
            f"opened again, loss {self.losses[1]:.4f} with and without the stop, {self.seconds:.0f} s"
        )


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def smoke_config(mesh: MeshConfig, folder: Path, data: Path) -> RunConfig:
    """The shipped config `smoke`, over a mesh: sizes that its axes divide, and two rows for each of its parts.

    Args:
      mesh: of the real run.
      folder: of the smoke job's run.
      data: shards and tokenizer.
    """
    placed = make_mesh(mesh)
    base = load_config("smoke")
    decoder = base.model.decoder
    fsdp, tensor = placed.shape["fsdp"], placed.shape["tensor"]
    heads = math.lcm(decoder.heads, tensor)
    sizes = {
        "model.decoder.width": math.lcm(decoder.width, fsdp),
        "model.decoder.heads": heads,
        "model.decoder.kv_heads": heads,
        "model.decoder.mlp_width": math.lcm(decoder.mlp_width, tensor),
        "train.rows": 2 * batch_shards(placed.shape),
    }
    names = {"train.output": folder, "data.shards": data, "weights.tokenizer": data / "tokenizer"}
    over = {f"mesh.{axis}": size for axis, size in placed.shape.items()}
    return load_config("smoke", [f"{key}={value}" for key, value in (sizes | names | over).items()])


def smoke(config: RunConfig, folder: Path) -> Smoke | None:
    """Train, open an earlier checkpoint, train the same steps again, and compare.

    Args:
      config: of `smoke_config`.
      folder: its run folder, empty.

    Returns:
      What was done; None if the job was asked to stop.

    Raises:
      UserError: the steps after the checkpoint came out otherwise.
    """
    started = time.perf_counter()
    steps, saved = config.train.steps, config.train.checkpoint_every
    whole = train(config, folder)
    if not whole.finished:
        return None
    barrier("first half of the smoke job", SECONDS)
    if jax.process_index() == 0:
        shutil.rmtree(folder / CHECKPOINTS / str(steps))
    barrier("second half of the smoke job", SECONDS)
    again = train(config, folder)
    if not again.finished:
        return None
    losses = whole.loss, again.loss
    if not (math.isfinite(whole.loss) and math.isclose(*losses, rel_tol=AGREEMENT)):
        raise UserError(
            f"step {steps} has the loss {losses[0]:.6f} without a stop and {losses[1]:.6f} after the checkpoint of "
            f"step {saved} was opened, expected the same to {AGREEMENT:g}: this storage or these devices give back "
            "other numbers than they were given; look at the logs of each process, try fewer devices"
        )
    mesh = config.mesh.model_dump()
    kind = jax.devices()[0].device_kind
    seconds = time.perf_counter() - started
    return Smoke(jax.process_count(), jax.device_count(), kind, mesh, saved, losses, seconds)
