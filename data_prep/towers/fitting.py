"""Fitting an encoder to a lesson, with a linear head that nobody keeps.

B views in a batch, F feature width, C classes, K attributes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
import optax
from jaxtyping import Array

from affectgpt_jax.weights.table import nest, paths
from data_prep.towers.lessons import Lesson

Params = dict[str, Any]
View = Callable[[npt.NDArray[np.float32], np.random.Generator], npt.NDArray[np.float32]]

_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
_LAST = 0.1
"""Share of the steps that the final losses are averaged over."""
_TELL_EVERY = 10


class Fitted(NamedTuple):
    """A fitted encoder.

    Attributes:
        params: its parameters, without the head.
        cross_entropy: of the class, nats, mean of the last tenth of the steps.
        squared_error: of the attributes in units of their variance, likewise.
    """

    params: Params
    cross_entropy: float
    squared_error: float


class _Batch(NamedTuple):
    inputs: Any  # float [B, ...]
    classes: Any  # int [B]
    values: Any  # float [B, K]


def initial_parameters(network: Any, example: npt.NDArray[np.float32], seed: int) -> Params:
    """Fresh parameters, scaled by the number of inputs of each map.

    The networks' own initial scale of 0.02 suits widths near 1000; in a tower of width 64 it slows learning down.

    Args:
        network: `VisionTower` or `Hubert`.
        example: an input of a batch.
        seed: decides the values.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
    rng = np.random.default_rng(seed)
    params = {}
    for path, leaf in paths(shapes).items():
        kind = path.rpartition("/")[2]
        if kind in ("scale", "bias"):
            params[path] = np.full(leaf.shape, kind == "scale", np.float32)
        else:
            fan_in = leaf.shape[1:-1] if path.startswith("layers/") else leaf.shape[:-1]
            scale = np.prod(fan_in) ** -0.5 if kind == "kernel" else 0.02
            params[path] = scale * rng.standard_normal(leaf.shape, np.float32)
    return nest(params)


def random_excerpt(length: int) -> View:
    """A view that cuts a random part of each sound, so that a step costs less and no two epochs are the same.

    Args:
        length: samples of the part.
    """

    def cut(inputs: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        starts = rng.integers(0, inputs.shape[1] - length + 1, len(inputs))
        return np.stack([row[start : start + length] for row, start in zip(inputs, starts, strict=True)])

    return cut


def whole(inputs: npt.NDArray[np.float32], _: np.random.Generator) -> npt.NDArray[np.float32]:
    """The view that shows everything."""
    return inputs


def fit(
    network: Any,
    params: Params,
    lesson: Lesson,
    *,
    steps: int,
    batch: int,
    peak: float,
    seed: int,
    view: View,
    on_step: Callable[[int], None],
) -> Fitted:
    """Teach an encoder: cross-entropy of the class plus mean squared error of the standardised attributes, by Adam.

    Args:
        network: `VisionTower` or `Hubert`.
        params: its parameters.
        lesson: what to learn; each view of a clip counts for itself.
        steps: optimizer steps.
        batch: views a step.
        peak: highest learning rate; it rises, then falls as a cosine.
        seed: decides the head's start, the order and what `view` draws.
        view: what a step sees of its inputs.
        on_step: called now and then with the number of steps done.

    Returns:
        The fitted encoder.
    """
    rng = np.random.default_rng([seed, 1])
    count, classes = lesson.inputs.shape[1], len(lesson.names)
    inputs = lesson.inputs.reshape(-1, *lesson.inputs.shape[2:])
    spread = lesson.values.std(axis=0)
    targets = (lesson.values - lesson.values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    outputs = classes + targets.shape[1]
    width = jax.eval_shape(network.apply, {"params": params}, inputs[:1]).shape[-1]
    head = {
        "kernel": width**-0.5 * rng.standard_normal((width, outputs), np.float32),
        "bias": np.zeros(outputs, np.float32),
    }
    # One flat vector instead of dozens of leaves: the update compiles to one loop.
    schedule = optax.cosine_onecycle_schedule(steps, peak, _WARM_UP)
    optimizer = optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)))

    def losses(learned: Params, batch: _Batch) -> tuple[Array, tuple[Array, Array]]:
        features = network.apply({"params": learned["tower"]}, batch.inputs)
        answers = features @ learned["head"]["kernel"] + learned["head"]["bias"]
        entropy = optax.softmax_cross_entropy_with_integer_labels(answers[:, :classes], batch.classes).mean()
        error = optax.losses.squared_error(answers[:, classes:], batch.values).mean()
        return entropy + error, (entropy, error)

    @jax.jit
    def step(learned: Params, state: optax.OptState, batch: _Batch) -> tuple[Params, optax.OptState, Any]:
        gradients, parts = jax.grad(losses, has_aux=True)(learned, batch)
        updates, state = optimizer.update(gradients, state, learned)
        return optax.apply_updates(learned, updates), state, parts

    learned: Params = {"tower": params, "head": head}
    state = jax.jit(optimizer.init)(learned)
    order = _order(len(inputs), steps * batch, rng).reshape(steps, batch)
    curve = []
    for number, chosen in enumerate(order, start=1):
        clips = chosen // count
        shown = _Batch(view(inputs[chosen], rng), lesson.classes[clips], targets[clips])
        learned, state, parts = step(learned, state, shown)
        curve.append(parts)
        if number % _TELL_EVERY == 0 or number == steps:
            jax.block_until_ready(parts)
            on_step(number)
    entropy, error = np.mean(curve[-max(round(_LAST * steps), 1) :], axis=0).tolist()
    return Fitted(jax.device_get(learned["tower"]), entropy, error)


def _order(inputs: int, wanted: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Whole epochs, each in another order, cut off where enough is drawn."""
    epochs = -(-wanted // inputs)
    return np.concatenate([rng.permutation(inputs) for _ in range(epochs)])[:wanted]
