"""Mesh and shardings: the mesh of a run, and specs from the weight tables by the one table of rules (`ops.axes.RULES`).

Mesh axes, from the slowest network to the fastest: `slice` (whole TPU slices or nodes; batch only), `data` (batch
only), `fsdp` (batch, and parameters split along their width), `tensor` (heads, inner widths, vocabulary).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.config.run import MeshConfig, RunConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.ops.axes import BATCH_AXES, MESH_AXES, constrain, spec
from affectgpt_jax.weights.networks import MODEL
from affectgpt_jax.weights.table import logical_axes

P = ParamSpec("P")
R = TypeVar("R")
Axes = tuple[str | None, ...]
AnyMesh = Mesh | AbstractMesh
"""Devices that are there, or the mere shape of their mesh."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The device mesh.

    Args:
      config: sizes; one of them may be -1 and takes what the others leave.
      devices: all devices of the job by default.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or that the hardware's slices do not allow.
    """
    devices = jax.devices() if devices is None else list(devices)
    placed = place(tuple(mesh_sizes(config, len(devices)).values()), devices)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(config: MeshConfig, count: int) -> AbstractMesh:
    """The mesh that so many devices would form, wherever they are; raises as `make_mesh`, but knows no hardware."""
    return AbstractMesh(tuple(mesh_sizes(config, count).values()), MESH_AXES, (AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(config: MeshConfig, count: int) -> dict[str, int]:
    """The size of each axis on a number of devices.

    Raises:
      UserError: sizes that do not multiply to it.
    """
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    shown = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes:
        if count % known:
            raise UserError(
                f"{shown}: the sizes that are given need a multiple of {known} devices, {count} are there; "
                f"make their product {nearest(known, divisors(count))}"
            )
        sizes[sizes.index(-1)] = count // known
    elif known != count:
        raise UserError(
            f"{shown} needs {known} devices, {count} are there; set one size to -1 to take what the others leave"
        )
    return dict(zip(MESH_AXES, sizes, strict=True))


def place(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of the mesh, hardware slices along its outermost axes.

    Within a slice JAX decides by the topology; where sizes do not follow a TPU's own axes, those are split. Devices
    that know no slice (a CPU's) stay in the order of the processes, so that the outermost axis goes over processes.

    Args:
      sizes: of `MESH_AXES`.
      devices: of the job.

    Raises:
      UserError: the axis `slice` and the hardware's slices do not fit.
    """
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    count, wanted = len(slices), sizes[0]
    if count % wanted and wanted % count:
        use = nearest(wanted, divisors(count))
        raise UserError(f"mesh.slice={wanted} does not divide the {count} slices of this job; use {use}")
    # The slices are used up by the outermost axes; what is left of an axis lies within each slice.
    outer, inner, left = [], [], count
    for size in sizes:
        outer.append(math.gcd(size, left))
        inner.append(size // outer[-1])
        left //= outer[-1]
    # `jax.make_mesh` would refuse to split axes of all TPUs but v5e.
    within = [create_device_mesh(inner, slices[index], allow_split_physical_axes=True) for index in sorted(slices)]
    parts = np.stack(within).reshape(*outer, *inner)
    axes = len(sizes)
    return parts.transpose([i + j for i in range(axes) for j in (0, axes)]).reshape(sizes)


def run_mesh(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run, checked.

    Args:
      config: the run, resolved.
      devices: all devices of the job by default.

    Raises:
      UserError: sizes of the mesh that do not fit the devices, the model or the batch.
    """
    mesh = make_mesh(config.mesh, devices)
    check_mesh(config, mesh.shape)
    return mesh


def check_mesh(config: RunConfig, sizes: Mapping[str, int]) -> None:
    """Hold the sizes of a mesh against those of a run's model and batch.

    Args:
      config: the run, resolved.
      sizes: by axis.

    Raises:
      UserError: sizes that do not divide what lies over them, with the nearest that do.
    """
    check_split(config.model, sizes)
    if config.model.decoder.fused and sizes["tensor"] > 1:
        raise UserError(
            f"mesh.tensor={sizes['tensor']} splits what model.decoder.fused=true puts together; set one of them back "
            "(mesh.tensor=1 or model.decoder.fused=false)"
        )
    rows, shards = config.train.rows, batch_shards(sizes)
    if rows % shards:
        more = -(-rows // shards) * shards
        raise UserError(
            f"train.rows={rows} cannot be split over mesh.slice * mesh.data * mesh.fsdp = {shards}; "
            f"use {nearest(rows, range(shards, more + 1, shards))}"
        )


def check_split(model: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Hold the sizes of a mesh against those of a model.

    Raises:
      UserError: sizes that do not divide what lies over them, with the nearest that do.
    """
    devices = math.prod(sizes.values())
    for axis, parts in split_sizes(model).items():
        size, legal = sizes[axis], divisors(math.gcd(devices, *parts.values()))
        if size not in legal:
            against = ", ".join(f"{key}={count}" for key, count in parts.items() if count % size)
            raise UserError(f"mesh.{axis}={size} does not divide {against}; use {nearest(size, legal)}")


def split_sizes(model: ModelConfig) -> dict[str, dict[str, int]]:
    """What each mesh axis has to divide, by config key; heads stay whole, so that their number counts."""
    decoder, qformer = model.decoder, model.qformer
    widths = {"model.decoder.width": decoder.width}
    inner = {
        "model.decoder.kv_heads": decoder.kv_heads,
        "model.decoder.heads": decoder.heads,
        "model.decoder.mlp_width": decoder.mlp_width,
        "model.decoder.vocab": decoder.vocab,
    }
    if "qformer" in (model.video, model.audio, model.prefusion):
        widths |= {
            "model.qformer.width": qformer.width,
            "model.vision_width": model.vision_width,
            "model.audio_width": model.audio_width,
        }
        inner |= {"model.qformer.heads": qformer.heads, "model.qformer.mlp_width": qformer.mlp_width}
    return {"fsdp": widths, "tensor": inner}


def divisors(whole: int) -> list[int]:
    """The divisors of a number, in order."""
    return [n for n in range(1, whole + 1) if whole % n == 0]


def nearest(size: int, legal: Sequence[int]) -> str:
    """The legal sizes below and above one that is not, in words."""
    below = [n for n in legal if n < size]
    above = [n for n in legal if n > size]
    if not above:
        return f"{below[-1]}, the largest that does"
    return " or ".join(str(n) for n in (*below[-1:], above[0]))


def mesh_of(params: Any) -> Mesh | None:
    """The mesh that parameters lie over; None on one device."""
    place = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = place.mesh if isinstance(place, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def batch_shards(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes splits the rows of a batch."""
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def parameter_shardings(mesh: AnyMesh, params: Any) -> Any:
    """A sharding for each parameter, by its row of the weight tables.

    Raises:
      UserError: an axis that its mesh axis does not divide.
    """

    def sharding(path: Any, axes: Axes, leaf: Any) -> NamedSharding:
        found = NamedSharding(mesh, spec(*axes))
        try:
            found.shard_shape(leaf.shape)
        except ValueError as error:
            name = "/".join(str(key.key) for key in path)
            raise UserError(f"mesh {dict(mesh.shape)} does not divide {name} {tuple(leaf.shape)}") from error
        return found

    return jax.tree.map_with_path(sharding, logical_axes(MODEL, params), params, is_leaf=_is_axes)


def constrain_parameters(tree: Any) -> Any:
    """Gradients, or whatever else has a leaf for each parameter, laid over the mesh as the parameters are."""
    return jax.tree.map(lambda axes, x: constrain(x, *axes), logical_axes(MODEL, tree), tree, is_leaf=_is_axes)


def _is_axes(node: Any) -> bool:
    return isinstance(node, tuple)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """On every device whole."""
    return NamedSharding(mesh, PartitionSpec())


def whole(leaf: Any) -> np.ndarray:
    """All of a parameter as numpy, also where other processes hold parts of it."""
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
        leaf = jax.device_put(leaf, NamedSharding(leaf.sharding.mesh, PartitionSpec()))
    return np.asarray(leaf)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """For arrays [rounds, rows, ...]: rows over the batch axes."""
    return NamedSharding(mesh, spec(None, "batch"))


def state_shardings(mesh: AnyMesh, state: Any, params: Any) -> Any:
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


def device_bytes(tree: Any) -> int:
    """Bytes of arrays, or of shapes with shardings, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def under(mesh: Mesh, function: Callable[P, R]) -> Callable[P, R]:
    """A compiled function whose calls see the mesh: `ops.axes.constrain` reads it while the function is traced."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.set_mesh(mesh):
            return function(*args, **kwargs)

    return call
