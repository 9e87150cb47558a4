"""Logical axes: what an axis of an array is, and which mesh axes it lies over.

Models name the axes of what they compute; whether there is a mesh, and how large, they never ask.
"""

import math

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

MESH_AXES = ("slice", "data", "fsdp", "tensor")
"""From the slowest network to the fastest."""

BATCH_AXES = ("slice", "data", "fsdp")
"""What splits the rows of a batch."""

HEAD_AXIS = "tensor"
"""What splits heads, inner widths and the vocabulary."""

RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": BATCH_AXES,
    "group_batch": ("slice", "data"),
    "layers": None,
    "embed": "fsdp",
    "heads": HEAD_AXIS,
    "kv_heads": HEAD_AXIS,
    "mlp": HEAD_AXIS,
    "vocab": HEAD_AXIS,
    "rank": None,
    None: None,
}
"""Logical axis -> mesh axes. Parameters lie over `fsdp` along a model's width and over `tensor` along heads, inner
widths and the vocabulary, never over `slice` or `data`. "group_batch" are rows of which each device of an fsdp group
holds all."""


def spec(*axes: str | None) -> PartitionSpec:
    """The partition of an array with these logical axes."""
    return PartitionSpec(*(RULES[axis] for axis in axes))


def split_in(axis: str) -> int:
    """Into how many parts an axis is split by the mesh that the program is compiled for."""
    sizes = jax.sharding.get_abstract_mesh().shape
    names = RULES[axis] or ()
    return math.prod(sizes.get(name, 1) for name in ((names,) if isinstance(names, str) else names))


def constrain(x: Array, *axes: str | None) -> Array:
    """Lay `x` over the mesh that its program is compiled for (`jax.set_mesh`); without one, x itself.

    Args:
      x: what a model computed.
      axes: the logical axis of each of its axes.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))
