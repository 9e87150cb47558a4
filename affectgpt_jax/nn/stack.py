"""The layer loop: L copies of one layer whose parameters are stacked on a leading axis.

Scanned, the loop compiles once whatever L is and takes a remat policy (training, encoders). Unrolled, every layer
can keep buffers of its own (decoding). Both read the same stacked parameters; unrolled, each layer's may come apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from affectgpt_jax.config.networks import Remat
from affectgpt_jax.ops.packed_attention import RESULT
from affectgpt_jax.ops.random import Seed, fold

FEW = 4
"""Up to this many layers the loop is unrolled."""

SAVED_NAMES = ("query", "key", "value", RESULT, "residual", "gate", "up", "low_rank")
"""Tensors that remat `names` keeps: what matrix products with parameters gave, so that none is computed twice.

Norms, rotary positions, SiLU, dropout masks and int8 kernels' conversions are recomputed, and so are the attention
weights: they alone would be T^2.
"""


def init_layers(layer: nn.Module, length: int, *example: Any) -> Callable[[Array], Any]:
    """An initialiser of the stacked parameters, to be given to `self.param`.

    Args:
      layer: one layer without a parent, called as `layer(h, state, *shared) -> (h, output)`.
      length: number of layers.
      *example: arguments of the call, of any fitting shape.
    """

    def init(rng: Array) -> Any:
        return jax.vmap(lambda key: layer.init(key, *example)["params"])(jax.random.split(rng, length))

    return init


def run_layers(
    layer: nn.Module,
    params: Any,
    h: Array,
    shared: tuple[Any, ...] = (),
    *,
    seed: Seed | None = None,
    remat: Remat = "none",
    unroll: int = 0,
) -> tuple[Array, Any]:
    """Scan `h` through the layers.

    Args:
      layer: one layer without a parent.
      params: its parameters, stacked [L, ...].
      h: the residual stream.
      shared: arguments every layer gets.
      seed: turns dropout on; each layer folds in its index.
      remat: what the backward pass recomputes.
      unroll: layers in a turn of the loop; 0: all if they are few, else one.

    Returns:
      The last residual stream, and the layers' outputs stacked [L, ...].
    """

    def body(h: Array, xs: tuple[Array, Any]) -> tuple[Array, Any]:
        index, layer_params = xs
        dropout: dict[str, Any] = {} if seed is None else {"seed": fold(seed, index)}
        return layer.apply({"params": layer_params}, h, None, *shared, **dropout)

    length = jax.tree.leaves(params)[0].shape[0]
    # A few layers cost less to compile than their activations cost to stack: on a CPU a step of three layers takes 24 %
    # less time unrolled. Then only a barrier keeps the compiler from computing early, and keeping, what shall be
    # recomputed; in a loop there is nothing to keep it from.
    turn = unroll or (length if length <= FEW else 1)
    unrolled = turn >= length
    match remat:
        case "names":
            keep = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)
            body = jax.checkpoint(body, policy=keep, prevent_cse=unrolled)
        case "full":
            body = jax.checkpoint(body, prevent_cse=unrolled)
    return jax.lax.scan(body, h, (jnp.arange(length), params), unroll=min(turn, length))


def unroll_layers(
    layer: nn.Module, params: Any, h: Array, shared: tuple[Any, ...], states: Sequence[Any]
) -> tuple[Array, list[Any]]:
    """Run the layers one after another, each with a state of its own; returns `h` and each layer's output.

    Args:
      layer: one layer without a parent.
      params: its parameters, stacked [L, ...], or a tuple of each layer's.
      h: the residual stream.
      shared: arguments every layer gets.
      states: of each layer.
    """
    outputs = []
    for index, state in enumerate(states):
        layer_params = params[index] if isinstance(params, tuple) else jax.tree.map(lambda x: x[index], params)  # noqa: B023
        h, output = layer.apply({"params": layer_params}, h, state, *shared)
        outputs.append(output)
    return h, outputs
