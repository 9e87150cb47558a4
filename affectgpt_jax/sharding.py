"""Mesh and shardings: one rule per logical axis, specs from the weight tables.

Mesh axes: `data` (batch only), `fsdp` (batch, and parameters split along their width), `tensor` (heads, inner widths,
vocabulary).
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.weights.networks import MODEL
from affectgpt_jax.weights.table import find_row, nest, paths

AXES = ("data", "fsdp", "tensor")

RULES: dict[str | None, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "rank": None,
    None: None,
}
"""Logical axis -> mesh axis."""

BATCH = ("data", "fsdp")
"""Mesh axes that split the rows of a batch."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh.

    Args:
      config: sizes; one of them may be -1 and takes what the others leave.
      devices: all devices of the job by default.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([size for size in sizes if size > 0]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        shown = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f"mesh: {shown} needs {int(np.prod(sizes))} devices, {len(devices)} are there; "
            "set one size to -1 to take what the others leave"
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """A sharding for each parameter.

    Raises:
      UserError: an axis that its mesh axis does not divide.
    """

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        row, _ = find_row(MODEL, path)
        logical = ("layers", *row.axes) if "{layer}" in row.name else row.axes
        spec = [RULES[axis] for axis in logical]
        for axis, size in zip(spec, shape, strict=True):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide {path} {shape}; sizes that do: "
                    f"{', '.join(str(n) for n in range(1, mesh.shape[axis]) if size % n == 0)}"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return nest({path: sharding(path, tuple(leaf.shape)) for path, leaf in paths(params).items()})


def replicated(mesh: Mesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [rounds, rows, ...]: rows over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def state_shardings(mesh: Mesh, state: Any, params: Any) -> Any:
    """Shardings of a training state: optimizer moments lie as their parameters do, scalars everywhere.

    Args:
      mesh: the mesh.
      state: the abstract state.
      params: the abstract trainable tree, which occurs inside the state.
    """
    like: Any = jax.tree.structure(params)
    shardings = parameter_shardings(mesh, params)

    def is_parameters(node: Any) -> bool:
        return isinstance(node, dict) and jax.tree.structure(node) == like

    return jax.tree.map(
        lambda node: shardings if is_parameters(node) else replicated(mesh), state, is_leaf=is_parameters
    )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Put this process's part of a batch [rounds, rows, ...] on its devices; the arrays are global ones."""
    place = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), batch)
