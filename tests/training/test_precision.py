"""bfloat16 compute over float32 masters: which numbers are of which type, read off the traced step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import Base, DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.config.run import OptimizerConfig, RunConfig, TrainConfig, WeightsConfig
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.training.optimizer import make_optimizer
from affectgpt_jax.training.state import new_state
from affectgpt_jax.training.step import make_step
from affectgpt_jax.weights.files import SafetensorsFolder
from affectgpt_jax.weights.initial import base_shapes, initial_parameters, parameter_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import nest, paths, write_tree
from affectgpt_jax.weights.trainable import split
from tests.training.test_flops import batch
from tests.weights.test_streaming import write_base

ADAPTERS = ("^fusion/", "/lora_[ab]$")
SIZES = {"vocab": 32, "width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 64}


def model_config(base: Base = "float") -> ModelConfig:
    decoder = DecoderConfig(**SIZES, dtype="bfloat16", base=base, lora=LoraConfig(rank=2))  # type: ignore[arg-type]
    return ModelConfig(vision_width=8, audio_width=8, decoder=decoder)


def types(tree: Any) -> set[str]:
    return {np.dtype(x.dtype).name for x in jax.tree.leaves(tree)}


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every operation of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)]
        inner = [x for x in inner if hasattr(x, "eqns")]
        if not inner:
            yield equation
        for part in inner:
            yield from equations(part)


def _is_program(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def traced_step(config: ModelConfig, trainable: tuple[str, ...]) -> tuple[list[Any], Any]:
    """The operations of the training step over a base in the decoder's type, and the new state's shapes."""
    model, optimizer = AffectGPT(config), make_optimizer(OptimizerConfig(), 10)
    held = RunConfig(model=config, weights=WeightsConfig(language="anywhere"), train=TrainConfig(trainable=trainable))
    read = paths(base_shapes(held, model))
    shapes = {
        path: x if x.dtype == jnp.int8 else read.get(path, x) for path, x in paths(parameter_shapes(model)).items()
    }
    trained, frozen = split(config, nest(shapes), trainable)
    state = jax.eval_shape(lambda: new_state(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trained), optimizer))
    rounds = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch())
    step = make_step(model, optimizer, dropout_seed=0)
    program, (after, _) = jax.make_jaxpr(step, return_shape=True)(state, frozen, rounds)
    return list(equations(program.jaxpr)), (trained, frozen, after)


@pytest.mark.parametrize(("base", "trainable"), [("float", ADAPTERS), ("int8", ADAPTERS), ("float", (".*",))])
def test_types_of_a_step(base: Base, trainable: tuple[str, ...]) -> None:
    """Products of the language model are of bfloat16 forward and backward; what sums, scales or updates is float32."""
    config = model_config(base)
    operations, (trained, frozen, after) = traced_step(config, trainable)
    assert types((trained, after.params)) == {"float32"}
    assert types([x for x in jax.tree.leaves(after.optimizer) if x.ndim]) == {"float32"}
    held = types({path: x for path, x in paths(frozen).items() if path.startswith("decoder/") and "lora" not in path})
    assert held == (
        set() if trainable != ADAPTERS else {"bfloat16"} | ({"int8", "float32"} if base == "int8" else set())
    )

    products = [op for op in operations if op.primitive.name == "dot_general"]
    halves = [op for op in products if types([x.aval for x in op.invars]) == {"bfloat16"}]
    # The fusion computes in float32 up to its soft tokens; no product has operands of two types.
    others = [op for op in products if types([x.aval for x in op.invars]) == {"float32"}]
    assert len(halves) + len(others) == len(products)
    decoder_axes = {SIZES["vocab"], SIZES["mlp_width"], SIZES["heads"] * SIZES["head_dim"], batch().tokens.shape[1]}
    for op in others:
        assert not decoder_axes & {size for x in op.invars for size in x.aval.shape}, op
    # The loop over layers is written once: kernels, adapters, attention. The head's product is made forward, once more
    # for the backward pass, and for the gradient of its input. Trained kernels, the head's too, have a gradient each.
    expected = (7 * 2 + 7 * 6 + 2 + 4) + 3 + (0 if trainable == ADAPTERS else 7 + 1)
    assert len(halves) == expected

    # Softmax, cross entropy and norms.
    for name in ("exp", "log", "rsqrt", "reduce_max"):
        assert types([x.aval for op in operations if op.primitive.name == name for x in op.outvars]) == {"float32"}, (
            name
        )


def test_masters_of_a_trained_base_are_float32(tmp_path: Path) -> None:
    """A base in bfloat16: what is trained of it is read as float32, the rest as it is; both have the file's values."""
    config = RunConfig(
        model=model_config(),
        weights=WeightsConfig(language=str(tmp_path)),
        train=TrainConfig(trainable=("^fusion/", "^decoder/layers/.*_proj/", "final_norm")),
    )
    write_base(config, tmp_path)
    model = AffectGPT(config.model)
    shardings = parameter_shardings(make_mesh(config.mesh), parameter_shapes(model))
    params = initial_parameters(config, model, shardings)
    trained, frozen = split(config.model, params, config.train.trainable)
    assert types(trained) == {"float32"}
    decoder = {path: x for path, x in paths(frozen).items() if path.startswith("decoder/")}
    assert set(decoder) == {
        "decoder/tokens/embedding", "decoder/head/kernel",
        "decoder/layers/attention_norm/scale", "decoder/layers/mlp_norm/scale",
    }  # fmt: skip
    assert types(decoder) == {"bfloat16"}
    base = nest({path: x for path, x in paths(params).items() if path.startswith("decoder/") and "lora" not in path})
    stored = SafetensorsFolder(tmp_path)
    for name, tensor in write_tree(DECODER, base):
        np.testing.assert_array_equal(tensor.astype(np.float32), np.asarray(stored[name]).astype(np.float32), name)
