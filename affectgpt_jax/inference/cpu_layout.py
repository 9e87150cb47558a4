"""How a language model's parameters lie when a CPU answers.

XLA's CPU backend copies a layer's part of a stack before it uses it, for every token anew; products of few rows are
quicker with matrices [out, in] (`ops.product`); and all matrices are read at every token, so that the pages count that
they lie on.
"""

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from affectgpt_jax.ops.product import Turned
from affectgpt_jax.sharding import mesh_of
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import Tree

ALIGNMENT = 64
"""Bytes; arrays at such places JAX takes as they are."""


def arrange(params: Tree) -> Tree:
    """Parameters as their device reads them fastest while it writes answers.

    Args:
      params: of a model, the decoder's layers stacked.

    Returns:
      On one CPU the decoder's layers as a tuple of each layer's, their kernels and the head's `Turned`, with whatever
      gives the logits beside them; elsewhere everything as it was.
    """
    decoder = dict(params["decoder"])
    stacked = paths(decoder["layers"])
    first = next(iter(stacked.values()))
    if mesh_of(params) is not None or next(iter(first.devices())).platform != "cpu":
        return params
    hosts = {path: np.asarray(leaf) for path, leaf in stacked.items()}
    trees = [{path: x[index] for path, x in hosts.items()} for index in range(len(first))]
    last = "head" if "head" in decoder else "tokens"
    trees.append({path: np.asarray(leaf) for path, leaf in paths(decoder[last]).items()})
    *layers, decoder[last] = map(nest, _in_one_piece(trees))
    return params | {"decoder": decoder | {"layers": tuple(layers)}}


def _in_one_piece(trees: list[dict[str, np.ndarray]]) -> Iterator[Tree]:
    """Arrays copied into one piece of memory, in the order in which they are read."""
    memory = _huge_pages(sum(_room(x) for tree in trees for x in tree.values()))
    offset = 0
    for tree in trees:
        placed: Tree = {}
        for path, x in tree.items():
            kernel = path.rpartition("/")[2] == "kernel"
            lying = x.T if kernel else x
            view: Any = np.ndarray(lying.shape, lying.dtype, buffer=memory, offset=offset)
            view[...] = lying
            offset += _room(x)
            taken = jax.device_put(view, may_alias=True)
            placed[path] = Turned(taken) if kernel else taken
        yield placed


def _room(x: np.ndarray) -> int:
    return -(-x.nbytes // ALIGNMENT) * ALIGNMENT


def _huge_pages(size: int) -> mmap.mmap:
    """Memory on large pages where the system has some: a CPU remembers where few pages lie, and a step reads all."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
