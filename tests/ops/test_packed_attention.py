"""One rule by several kernels: splash in Pallas' interpreter against XLA's; which is chosen, and what each refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.ops import packed_attention as ops
from affectgpt_jax.ops.packed_attention import choose_kernel, packed_attention

ROWS, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 384, 4, 2, 24


def packed_rows() -> np.ndarray:
    """Segments of two rows: several samples and padding at the end; one with a token nobody attends to within."""
    segments = np.zeros((ROWS, LENGTH), np.int32)
    for number, (start, end) in enumerate([(0, 100), (100, 131), (131, 300), (300, 301), (301, 370)], 1):
        segments[0, start:end] = number
    segments[1, :250] = 1
    segments[1, 200] = 0
    return segments


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def inputs() -> tuple[np.ndarray, ...]:
    heads = draw(ROWS, LENGTH, HEADS, WIDTH), draw(ROWS, LENGTH, KV_HEADS, WIDTH)
    return *heads, draw(ROWS, LENGTH, KV_HEADS, WIDTH + 1)[..., 1:]


def compute(weights: np.ndarray, **options: Any) -> list[np.ndarray]:
    """The result, and the gradients of its weighted sum by queries, keys and values."""

    def loss(*x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = packed_attention(*x, jnp.asarray(packed_rows()), **options)
        return jnp.sum(out * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs())
    return [np.asarray(x) for x in (out, *gradients)]


def test_splash_is_xla() -> None:
    """Result and gradients, packed rows and grouped queries, float32. Blocks of 128: some are skipped, some masked."""
    weights = draw(ROWS, LENGTH, HEADS, WIDTH + 2)[..., 2:]
    expected = compute(weights, kernel="xla")
    found = compute(weights, kernel="splash", interpret=True)
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert np.isfinite(y).all(), name
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5, err_msg=name)


def test_the_rule() -> None:
    """XLA's against a plain softmax over the tokens that a loop finds."""
    q, k, v = inputs()
    segments = packed_rows()
    found = np.asarray(jax.jit(packed_attention)(q, k, v, segments))
    for row, at in ((0, 0), (0, 99), (0, 100), (0, 300), (0, 369), (0, 383), (1, 200), (1, 249), (1, 300)):
        seen = [s for s in range(at + 1) if segments[row, s] == segments[row, at]]
        for head in range(HEADS):
            keys, values = (x[row, seen, head // (HEADS // KV_HEADS)] for x in (k, v))
            scores = keys @ q[row, at, head] / np.sqrt(WIDTH)
            shares = np.exp(scores - scores.max())
            np.testing.assert_allclose(found[row, at, head], shares / shares.sum() @ values, atol=1e-5, rtol=1e-5)


def test_what_cudnn_is_given_is_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask and diagonal as they are handed over, computed by JAX's own implementation, in bfloat16."""
    library = jax.nn.dot_product_attention
    given: list[str] = []

    def attend(*args: Any, implementation: str, **options: Any) -> jax.Array:
        given.append(implementation)
        return library(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(ops, "_platform", lambda: "gpu")
    x = [jnp.asarray(part, jnp.bfloat16) for part in inputs()]
    found, expected = (packed_attention(*x, jnp.asarray(packed_rows()), kernel=kernel) for kernel in ("cudnn", "xla"))
    assert given == ["cudnn"]
    np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03, rtol=0.03)


def calls(jaxpr: Any) -> int:
    """How often a program calls a Pallas kernel; what has no result is dropped by the compiler."""
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found += 1
        elif equation.outvars:
            inner = [getattr(x, "jaxpr", x) for x in equation.params.values()]
            found += sum(calls(x) for x in inner if hasattr(x, "eqns"))
    return found


def test_remat_keeps_what_splash_needs_to_go_backward() -> None:
    """Forward, queries' and keys' gradients: three calls; without the name the first one is made again."""

    def loss(*x: jax.Array) -> jax.Array:
        return jnp.sum(packed_attention(*x, jnp.asarray(packed_rows()), kernel="splash", interpret=True))

    def gradient(*names: str) -> Any:
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        return jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy), argnums=(0, 1, 2)))(*inputs()).jaxpr

    assert calls(gradient(ops.RESULT)) == 3
    assert calls(gradient()) == 4


@pytest.mark.parametrize("width", [64, 128])
def test_splash_lowers_for_a_tpu(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, in bfloat16, at the lengths of training rows."""
    monkeypatch.setattr(ops, "_platform", lambda: "tpu")

    def loss(*x: jax.Array) -> jax.Array:
        return jnp.sum(packed_attention(*x).astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((2, 2048, heads, width), jnp.bfloat16) for heads in (4, 2, 2)]
    segments = jax.ShapeDtypeStruct((2, 2048), jnp.int32)
    program = jax.export.export(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), platforms=["tpu"])(*shapes, segments)
    assert program.mlir_module().count("@tpu_custom_call") == 3


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "expected"),
    [
        ("cpu", "float32", 256, "xla"),
        ("cpu", "bfloat16", 4096, "xla"),
        ("gpu", "bfloat16", 256, "xla"),
        ("gpu", "bfloat16", 512, "cudnn"),
        ("cuda", "bfloat16", 2048, "cudnn"),
        ("gpu", "float32", 2048, "xla"),
        ("gpu", "bfloat16", 2047, "xla"),
        ("tpu", "bfloat16", 256, "xla"),
        ("tpu", "bfloat16", 2048, "splash"),
        ("tpu", "float32", 1024, "splash"),
        ("tpu", "bfloat16", 1000, "xla"),
        ("metal", "bfloat16", 2048, "xla"),
    ],
)
def test_what_auto_chooses(platform: str, dtype: str, length: int, expected: str) -> None:
    assert choose_kernel("auto", platform, dtype, length, heads=28, width=128) == expected
    assert choose_kernel("xla", platform, dtype, length, heads=28, width=128) == "xla"


def test_auto_keeps_to_xla_where_heads_cannot_be_spread() -> None:
    choose = lambda **x: choose_kernel("auto", **{"dtype": "bfloat16", "length": 2048, "heads": 28, "width": 128} | x)  # noqa: E731
    assert choose(platform="tpu", head_shards=4) == "splash"
    assert choose(platform="tpu", head_shards=8) == "xla"
    assert choose(platform="tpu", head_shards=0) == "xla"
    assert choose(platform="gpu", width=136) == "xla"


@pytest.mark.parametrize(
    ("kernel", "changes", "message"),
    [
        ("cudnn", {}, "cudnn runs on NVIDIA GPUs, found cpu; set model.decoder.attention=auto"),
        ("cudnn", {"platform": "gpu", "dtype": "float32"}, "half precision, found model.decoder.dtype=float32"),
        ("cudnn", {"platform": "gpu", "width": 100}, "heads of a multiple of 8 up to 128, found 100"),
        ("cudnn", {"platform": "gpu", "length": 129}, "even number of tokens, found 129"),
        ("splash", {}, "splash runs on TPUs, found cpu"),
        ("splash", {"platform": "tpu", "length": 1000}, "rows of a multiple of 128 tokens, found 1000"),
        ("splash", {"platform": "tpu", "head_shards": 8}, "cannot spread 28 heads over mesh.tensor=8"),
        ("splash", {"platform": "tpu", "head_shards": 0}, "jax.set_mesh"),
    ],
)
def test_refusals(kernel: Any, changes: dict[str, Any], message: str) -> None:
    facts = {"platform": "cpu", "dtype": "bfloat16", "length": 1024, "heads": 28, "width": 128}
    with pytest.raises(UserError, match=message):
        choose_kernel(kernel, **facts | changes)


def test_splash_on_a_cpu_is_refused_where_it_is_called() -> None:
    with pytest.raises(UserError, match="splash runs on TPUs, found cpu"):
        packed_attention(*map(jnp.asarray, inputs()), jnp.asarray(packed_rows()), kernel="splash")
