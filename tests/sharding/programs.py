"""The training step compiled for meshes of eight devices, once a session each, and what is in the programs."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.planning.program import Collective
from affectgpt_jax.sharding import batch_sharding, batch_shards
from affectgpt_jax.training.optimizer import make_optimizer
from affectgpt_jax.training.setup import Setup, set_up
from affectgpt_jax.training.state import TrainState, new_state
from affectgpt_jax.training.step import Metrics, make_step
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import split
from tests.inference.clip_run import random_tree

ROUNDS, ROWS, TOKENS, TARGETS, SAMPLES, CHUNK = 2, 8, 72, 70, 2, 64
LAYERS, WIDTH, JOINED, INNER, VOCABULARY, RANK = 5, 56, 80, 96, 720, 2
"""No two alike, so that a shape tells what an array is. Five layers are scanned."""

QFORMER = {
    "model__prefusion": "qformer",
    "model__positions": {"multi": 16},
    "model__qformer": {"width": 24, "heads": 4, "mlp_width": 44, "layers": 1},
    "model__decoder__tied_head": True,
}


class Case(NamedTuple):
    """A mesh, and what differs from the model and the run that all share."""

    mesh: dict[str, int]
    model: str = "plain"
    full: bool = False
    """Whether all parameters are trained."""


CASES = {
    "mixed": Case({"data": 2, "fsdp": 2, "tensor": 2}),
    "slices": Case({"slice": 2, "data": 1, "fsdp": 2, "tensor": 2}, full=True),
    "data": Case({"data": 8}),
    "fsdp": Case({"data": 1, "fsdp": 8}),
    "tensor": Case({"data": 1, "tensor": 8}),
    "qformer": Case({"data": 2, "fsdp": 2, "tensor": 2}, model="qformer"),
}
MODELS: dict[str, dict[str, Any]] = {"plain": {}, "qformer": QFORMER}


def make_config(mesh: dict[str, int], *, full: bool = False, **changes: Any) -> RunConfig:
    """A run over a mesh; heads enough for eight parts. `changes` are keys with __ for dots."""
    # One adapter before and one behind what is split over `tensor`; the others are like them.
    lora = {"rank": RANK, "dropout": 0.2, "targets": ["q_proj", "down_proj"]}
    values = {
        "model": {
            "absent": True, "vision_width": 12, "audio_width": 20,
            "decoder": {
                "vocab": VOCABULARY, "width": WIDTH, "layers": LAYERS, "heads": 8, "kv_heads": 8, "head_dim": 10,
                "mlp_width": INNER, "lora": lora, "remat": "names",
            },
        },
        "train": {"rows": ROWS, "accumulate": ROUNDS, "optimizer": {"warmup_steps": 0, "peak": 1e-3}},
        "mesh": mesh,
    }  # fmt: skip
    if full:
        values["train"]["trainable"] = [".*"]
    for key, value in changes.items():
        node: Any = values
        *parents, last = key.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return build_config(values, "sharding")


def make_batch(config: RunConfig) -> Batch:
    """Packed rows of two samples, the last row empty; the second sample of every row lacks its face."""
    rng = np.random.default_rng(0)
    shape = (ROUNDS, ROWS)
    first, second = 30, 36
    segments = np.repeat([1, 2, 0], [first, second, TOKENS - first - second])
    positions = np.concatenate([np.arange(first), np.arange(second), np.zeros(TOKENS - first - second, int)])
    soft = np.zeros(TOKENS, int)
    soft[2:5], soft[first + 3 : first + 6] = (1, 2, 3), (4, 5, 6)
    segments, positions, soft = (np.tile(x.astype(np.int32), (*shape, 1)) for x in (segments, positions, soft))
    weights = rng.uniform(0.5, 1.5, size=(*shape, TARGETS)).astype(np.float32)
    weights[..., -20:] = 0
    present = np.ones((*shape, SAMPLES), bool)
    segments[:, -1], weights[:, -1], present[:, -1] = 0, 0, False
    face = present & (np.arange(SAMPLES) == 0)
    widths = {"face": config.model.vision_width, "audio": config.model.audio_width}
    return Batch(
        tokens=rng.integers(0, VOCABULARY, size=(*shape, TOKENS)).astype(np.int32),
        segment_ids=segments,
        positions=positions,
        soft_index=soft,
        target_positions=np.sort(rng.integers(5, 66, size=(*shape, TARGETS)), axis=-1).astype(np.int32),
        target_ids=rng.integers(0, VOCABULARY, size=(*shape, TARGETS)).astype(np.int32),
        loss_weight=weights,
        features={k: rng.normal(size=(*shape, SAMPLES, 8, w)).astype(np.float16) for k, w in widths.items()},
        present={"face": face, "audio": present},
    )


def make_params(config: RunConfig) -> dict[str, Any]:
    """Random parameters by path."""
    tree = paths(random_tree(parameter_shapes(AffectGPT(config.model)), seed=0))
    return {path: leaf / 6 + path.endswith("scale") for path, leaf in tree.items()}


class Program(NamedTuple):
    """A compiled step, and what it did."""

    config: RunConfig
    setup: Setup
    batch: Batch
    text: str
    state: TrainState
    metrics: Metrics


@functools.cache
def program(name: str) -> Program:
    """Compile the step of a case and run it once, where no array may move between host and devices unasked."""
    case = CASES[name]
    config = make_config(case.mesh, full=case.full, **MODELS[case.model])
    setup = set_up(config, make_params(config))
    batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(setup.mesh)), make_batch(config))
    step: Any = setup.step
    with jax.set_mesh(setup.mesh):
        compiled = step.__wrapped__.lower(setup.state, setup.frozen, batch).compile()
    with jax.transfer_guard("disallow"):
        state, metrics = compiled(setup.state, setup.frozen, batch)
    return Program(config, setup, batch, compiled.as_text(), state, metrics)


class Alone(NamedTuple):
    """What one device computes."""

    loss: float
    accuracy: float
    gradients: dict[str, np.ndarray]
    """Of every parameter, whatever a mesh trains."""


@functools.cache
def alone(name: str) -> Alone:
    """The step of the same model, parameters and batch on one device, no mesh anywhere."""
    config = make_config({}, full=True, **MODELS[name])
    model, train = AffectGPT(config.model), config.train
    trainable, frozen = split(config.model, nest(make_params(config)), train.trainable)
    optimizer = make_optimizer(train.optimizer, train.steps)
    step = jax.jit(make_step(model, optimizer, dropout_seed=train.seed))
    state, metrics = step(new_state(trainable, optimizer), frozen, make_batch(config))
    return Alone(float(metrics.loss), float(metrics.accuracy), gradients(config, state))


def gradients(config: RunConfig, state: TrainState) -> dict[str, np.ndarray]:
    """The gradients of a first step, which its moments tell."""
    share = 1 - config.train.optimizer.beta1
    return {path: np.asarray(leaf) / share for path, leaf in paths(moments(state)[0]).items()}


def moments(state: TrainState) -> tuple[Any, Any]:
    """Adam's two trees."""
    (adam,) = [part for part in state.optimizer if hasattr(part, "mu")]
    return adam.mu, adam.nu


def what(config: RunConfig, mesh: Mesh, found: Collective) -> str:
    """What an exchanged array is, by its shape."""
    sizes = dict(mesh.shape)
    tensor, part = sizes["tensor"], WIDTH // sizes["fsdp"]
    rows = ROWS // batch_shards(mesh.shape)
    group = rows * sizes["fsdp"]
    shape = tuple(size for size in found.shape if size != 1)  # the pieces of an all-to-all have axes of one more
    if not shape:
        return "scalar"
    if shape in parts(config, sizes) or shape[::-1] in parts(config, sizes):
        return "parameter"
    if any(size in (VOCABULARY, VOCABULARY // tensor) for size in shape[1:]):
        return "logits"
    known = [
        ("tokens", (TOKENS,)),
        ("residual", (TOKENS, WIDTH)),
        ("words", (TOKENS, part)),
        ("adapter", (TOKENS, RANK)),
        ("targets", (CHUNK, WIDTH)),
        ("best", (CHUNK, tensor)),
        ("per target", (CHUNK,)),
    ]
    for name, rest in known:
        if shape in ((rows, *rest), (group, *rest), rest):
            return name
    samples = rows * SAMPLES, group * SAMPLES
    return "samples" if shape[0] in samples else f"{found.dtype}{list(found.shape)}"


def parts(config: RunConfig, sizes: dict[str, int]) -> set[tuple[int, ...]]:
    """Shapes of parameters, of one layer where they are stacked, whole or split along some axes."""
    found = set()
    for path, leaf in paths(parameter_shapes(AffectGPT(config.model))).items():
        options: set[tuple[int, ...]] = {()}
        for size in leaf.shape[1:] if "/layers/" in path else leaf.shape:
            split_in = {1, sizes["fsdp"], sizes["tensor"]}
            options = {(*option, size // n) for option in options for n in split_in if size % n == 0}
        found |= {tuple(size for size in option if size != 1) for option in options}
    return found
