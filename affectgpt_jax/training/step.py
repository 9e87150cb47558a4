"""One optimizer step as a pure function.

A rows per accumulation round times B rows; see `data.batch` for the batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.losses import TargetLoss
from affectgpt_jax.ops.random import Seed, fold
from affectgpt_jax.sharding import constrain_parameters
from affectgpt_jax.training.state import TrainState
from affectgpt_jax.weights.trainable import Tree, join


class Metrics(NamedTuple):
    """What one step reports; scalars."""

    loss: Float[Array, ""]
    """Weighted mean cross entropy in nats, before the update."""
    accuracy: Float[Array, ""]
    """Share of target tokens that the largest logit hits."""
    targets: Float[Array, ""]
    """Target tokens in the step."""
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    parameter_norm: Float[Array, ""]
    update_norm: Float[Array, ""]


def gradients(model: AffectGPT, params: Tree, frozen: Tree, batch: Batch, seed: Seed | None) -> tuple[Tree, TargetLoss]:
    """Gradients of the summed loss (not yet divided by its weight) with respect to the trainable tree only."""

    def loss(params: Tree) -> tuple[Float[Array, ""], TargetLoss]:
        sums: Any = model.apply({"params": join(params, frozen)}, batch, seed)
        return sums.loss, sums

    grads, sums = jax.grad(loss, has_aux=True)(params)
    return grads, sums


def make_step(
    model: AffectGPT,
    optimizer: optax.GradientTransformation,
    *,
    dropout_seed: int | None,
    guarded: bool = False,
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """Build the step.

    Args:
      model: the network.
      optimizer: turns gradients into updates.
      dropout_seed: seed of the dropout masks, which are a function of it and the step; None turns dropout off.
      guarded: a step whose loss or gradient is no number leaves parameters and optimizer as they are, and counts.

    Returns:
      `step(state, frozen, batch)`. Every array of `batch` has a leading axis of accumulation rounds; the gradient is
      that of the weighted mean over all of them, whatever the split into rounds.
    """

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        seed = None if dropout_seed is None else fold(jnp.uint32(dropout_seed % 2**32), state.step)

        def accumulate(carry: Any, xs: tuple[Array, Batch]) -> tuple[Any, None]:
            index, part = xs
            own = None if seed is None else fold(seed, index)
            found, sums = gradients(model, state.params, frozen, part, own)
            return jax.tree.map(jnp.add, carry, (constrain_parameters(found), sums)), None

        rounds = batch.tokens.shape[0]
        zero = jnp.zeros((), jnp.float32)
        empty = constrain_parameters(jax.tree.map(jnp.zeros_like, state.params))
        start = (empty, TargetLoss(zero, zero, zero, zero))
        (grads, sums), _ = jax.lax.scan(accumulate, start, (jnp.arange(rounds), batch))
        # An empty batch (the padded end of a pass) must not divide by zero.
        weight = jnp.maximum(sums.weight, 1e-9)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(
            loss=sums.loss / weight,
            accuracy=sums.correct / jnp.maximum(sums.tokens, 1.0),
            targets=sums.tokens,
            gradient_norm=optax.tree.norm(grads),
            parameter_norm=optax.tree.norm(params),
            update_norm=optax.tree.norm(updates),
        )
        if guarded:
            sound = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(sound, new, old), (params, opt_state), (state.params, state.optimizer)
            )
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
