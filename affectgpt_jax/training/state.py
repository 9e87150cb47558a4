"""What changes from step to step."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from affectgpt_jax.weights.trainable import Tree


class TrainState(NamedTuple):
    """The training state; the frozen parameters stay outside."""

    step: Int[Array, ""]
    """Optimizer steps taken."""
    params: Tree
    """Trainable parameters, float32."""
    optimizer: optax.OptState


def new_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
