"""A run ready to start: mesh, parameters, state and the compiled step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import parameter_shardings, replicated, run_mesh, state_shardings, under
from affectgpt_jax.training.optimizer import make_optimizer
from affectgpt_jax.training.state import TrainState, new_state
from affectgpt_jax.training.step import Metrics, make_step
from affectgpt_jax.weights.initial import initial_parameters, parameter_shapes
from affectgpt_jax.weights.trainable import Tree, split


class Setup(NamedTuple):
    """A run ready to start."""

    mesh: Mesh
    model: AffectGPT
    frozen: Tree
    state: TrainState
    shardings: TrainState
    step: Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]


def set_up(config: RunConfig, given: Mapping[str, Any] | None = None) -> Setup:
    """Build mesh, parameters, state and the compiled step of a resolved config.

    Args:
      config: the run.
      given: parameters by path to start from, see `initial_parameters`.
    """
    mesh = run_mesh(config)
    model = AffectGPT(config.model)
    params = initial_parameters(config, model, parameter_shardings(mesh, parameter_shapes(model)), given)
    trainable, frozen = split(config.model, params, config.train.trainable)
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    abstract = jax.eval_shape(lambda: new_state(trainable, optimizer))
    shardings = state_shardings(mesh, abstract, trainable)
    start = jax.jit(lambda params: new_state(params, optimizer), donate_argnums=0, out_shardings=shardings)
    state = start(trainable)
    seed = config.train.seed if config.train.dropout else None
    step = make_step(model, optimizer, dropout_seed=seed, guarded=config.train.bad_loss != "stop")
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return Setup(mesh, model, frozen, state, shardings, under(mesh, compiled))
