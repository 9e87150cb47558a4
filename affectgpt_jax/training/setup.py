"""A run ready to start: mesh, parameters, state and the compiled step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import AnyMesh, parameter_shardings, replicated, run_mesh, state_shardings, under
from affectgpt_jax.training.optimizer import make_optimizer
from affectgpt_jax.training.state import TrainState, new_state
from affectgpt_jax.training.step import Metrics, make_step
from affectgpt_jax.weights.initial import held_shapes, initial_parameters
from affectgpt_jax.weights.trainable import Tree, split

Step = Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]


class Design(NamedTuple):
    """A run before any of its arrays exist: what follows from its config and its mesh.

    Attributes:
      mesh: of all devices of the job.
      model: the network.
      optimizer: of the trainable tree.
      params: all parameters as shapes, each with its sharding.
      frozen: those of them that are not trained.
      state: the training state in the same way.
      step: takes a step, compiled at its first call, which must see the mesh (`sharding.under`); donates the state.
    """

    mesh: AnyMesh
    model: AffectGPT
    optimizer: optax.GradientTransformation
    params: Tree
    frozen: Tree
    state: TrainState
    step: jax.stages.Wrapped


class Setup(NamedTuple):
    """A run ready to start."""

    mesh: Mesh
    model: AffectGPT
    frozen: Tree
    state: TrainState
    shardings: TrainState
    step: Step


def design(config: RunConfig, mesh: AnyMesh) -> Design:
    """Lay out a resolved config over a mesh; its devices may be of another machine."""
    model = AffectGPT(config.model)
    shapes = held_shapes(config, model)
    params = _placed(shapes, parameter_shardings(mesh, shapes))
    trainable, frozen = split(config.model, params, config.train.trainable)
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    state = jax.eval_shape(lambda params: new_state(params, optimizer), trainable)
    shardings = state_shardings(mesh, state, trainable)
    seed = config.train.seed if config.train.dropout else None
    step = make_step(model, optimizer, dropout_seed=seed, guarded=config.train.bad_loss != "stop")
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return Design(mesh, model, optimizer, params, frozen, _placed(state, shardings), compiled)


def set_up(config: RunConfig, given: Mapping[str, Any] | None = None) -> Setup:
    """Build mesh, parameters, state and the compiled step of a resolved config.

    Args:
      config: the run.
      given: parameters by path to start from, see `initial_parameters`.
    """
    mesh = run_mesh(config)
    plan = design(config, mesh)
    places, shardings = _places(plan.params), _places(plan.state)
    params = initial_parameters(config, plan.model, places, given)
    trainable, frozen = split(config.model, params, config.train.trainable)
    start = jax.jit(lambda params: new_state(params, plan.optimizer), donate_argnums=0, out_shardings=shardings)
    return Setup(mesh, plan.model, frozen, start(trainable), shardings, under(mesh, plan.step))


def _placed(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)


def _places(shapes: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, shapes)
