"""What remat policies keep and compute again, fused kernels and unrolled loops, read off gradients of the decoder."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, Remat
from affectgpt_jax.models.decoder import Decoder
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.weights.fused import fuse
from affectgpt_jax.weights.table import nest, paths

SIZES = {"vocab": 16, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 96}
# One linear map behind a norm, one behind the attention, one behind SiLU.
LORA = LoraConfig(rank=2, targets=("k_proj", "o_proj", "down_proj"))
ROWS, LENGTH, LAYERS = 2, 48, FEW + 2
TOKENS = ROWS * LENGTH


class Program(NamedTuple):
    """A compiled gradient of a decoder's adapters and inputs, and what it gives."""

    products: int
    """Matrix products with parameters; a loop's body counts once."""
    batched: int
    """Products between a row's tokens: the attention's."""
    kept: int
    """Floats a token and layer that the forward pass hands to the backward pass."""
    memory: int
    """Bytes besides arguments and results."""
    gradients: Any


def compile_gradient(layers: int, remat: Remat, *, fused: bool = False, unroll: int = 0) -> Program:
    config = DecoderConfig(**SIZES, layers=layers, lora=LORA, remat=remat, unroll=unroll)  # type: ignore[arg-type]
    model, rng = Decoder(config), np.random.default_rng(0)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    segments = jnp.ones((ROWS, LENGTH), jnp.int32)
    h = jnp.asarray(rng.normal(size=(ROWS, LENGTH, config.width)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), h, positions, segments))["params"]
    flat = {path: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) for path, x in paths(shapes).items()}
    adapters = {path: x for path, x in flat.items() if "/lora_" in path}
    if fused:
        flat = paths(fuse({"decoder": nest(flat)})["decoder"])

    def loss(adapters: Any, h: Any, flat: Any) -> Any:
        out: Any = model.apply({"params": nest(flat | adapters)}, h, positions, segments)
        return jnp.sum(jnp.square(out))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(adapters, h, flat)
    scan = next(equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan")
    kept = sum(out.aval.size for out in scan.outvars[scan.params["num_carry"] :])
    program = traced.lower().compile()
    dots = re.findall(r" dot\(.*", program.as_text())
    batched = sum("batch_dims={0" in dot for dot in dots)
    memory: Any = program.memory_analysis()
    gradients = program(adapters, h, flat)
    return Program(len(dots) - batched, batched, kept // layers // TOKENS, memory.temp_size_in_bytes, gradients)


@pytest.fixture(scope="module")
def none() -> Program:
    return compile_gradient(LAYERS, "none")


@pytest.fixture(scope="module")
def names() -> Program:
    return compile_gradient(LAYERS, "names")


@pytest.fixture(scope="module")
def full() -> Program:
    return compile_gradient(LAYERS, "full")


def test_names_computes_no_product_with_a_parameter_twice(none: Program, names: Program, full: Program) -> None:
    """Only the attention weights are made again. `full` repeats the forward pass but for what nothing needs again:
    the last sum, that is the product by down_proj and by its B."""
    # Each kernel forward and for its input's gradient; each A and B forward, for their inputs' and for their own.
    forward, adapted = 7, len(LORA.targets)
    assert none.products == 2 * forward + 6 * adapted
    assert none.batched == 2 + 4
    assert (names.products, names.batched) == (none.products, none.batched + 1)
    assert full.products == none.products + forward - 1 + 2 * adapted - 1
    assert full.batched == none.batched + 2


def test_a_few_layers_without_a_loop_are_recomputed_too(full: Program) -> None:
    """The compiler does not merge the second computation with the first."""
    unrolled = compile_gradient(1, "full")
    assert (unrolled.products, unrolled.batched) == (full.products, full.batched)


def test_gradients_are_the_same(none: Program, names: Program, full: Program) -> None:
    for other in (names, full):
        for x, y in zip(*map(jax.tree.leaves, (other.gradients, none.gradients)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("remat", ["names", "full"])
def test_fused_kernels_are_one_product(none: Program, names: Program, full: Program, remat: Remat) -> None:
    """Three kernels and two become one each, forward and for their input's gradient; nothing else changes."""
    apart = {"names": names, "full": full}[remat]
    fused = compile_gradient(LAYERS, remat, fused=True)
    again = 3 if remat == "full" else 0
    assert (fused.products, fused.batched) == (apart.products - 2 * 3 - again, apart.batched)
    assert fused.kept == apart.kept
    for x, y in zip(*map(jax.tree.leaves, (fused.gradients, none.gradients)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_a_turn_of_several_layers(none: Program, names: Program) -> None:
    turns = compile_gradient(LAYERS, "names", unroll=2)
    assert (turns.products, turns.batched) == (2 * names.products, 2 * names.batched)
    for x, y in zip(*map(jax.tree.leaves, (turns.gradients, none.gradients)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


def test_less_is_kept(none: Program, names: Program, full: Program) -> None:
    """`full` keeps the residual stream, `names` also what products with parameters gave; no kernel is kept again."""
    c = DecoderConfig(**SIZES)  # type: ignore[arg-type]
    assert full.kept == c.width
    named = c.width + 2 * (c.heads + c.kv_heads) * c.head_dim + 2 * c.mlp_width + len(LORA.targets) * LORA.rank
    assert names.kept == c.width + named
    assert none.kept > 2 * names.kept
    assert none.memory > 1.5 * names.memory > 1.5 * 1.3 * full.memory
