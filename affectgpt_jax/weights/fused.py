"""Kernels of linear maps that have one input, put together when a run starts, so that one product gives them all.

Files, checkpoints and exports know nothing of it.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from affectgpt_jax.config.networks import FUSED
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import Tree

LAYERS = "decoder/layers/"


def fuse(params: Tree) -> Tree:
    """Put kernels, their scales and biases together along their outputs.

    Args:
      params: parameters, or their shapes, with the decoder's layers stacked [L, ...] and their outputs not split over
        devices; adapters may be among them and stay as they are.

    Returns:
      The tree with `qkv_proj` in the place of `q_proj`, `k_proj` and `v_proj`, and `gate_up_proj` in that of
      `gate_proj` and `up_proj`.
    """
    flat = paths(params)
    for group, names in FUSED.items():
        for leaf in ("kernel", "kernel_scale", "bias"):
            parts = [flat.pop(f"{LAYERS}{name}/{leaf}", None) for name in names]
            if parts[0] is not None:
                flat[f"{LAYERS}{group}/{leaf}"] = _side_by_side(parts)
    return nest(flat)


def _side_by_side(parts: Sequence[Any]) -> Any:
    """Arrays of like sharding, along their last axis."""
    first = parts[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        shape = (*first.shape[:-1], sum(part.shape[-1] for part in parts))
        return jax.ShapeDtypeStruct(shape, first.dtype, sharding=first.sharding)
    return jax.jit(lambda *x: jnp.concatenate(x, axis=-1), out_shardings=first.sharding)(*parts)
