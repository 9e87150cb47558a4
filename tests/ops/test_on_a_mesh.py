"""What must not depend on how arrays lie on devices: the splash kernel's attention, dropout masks. Eight devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, Remat
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.models import decoder
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.ops.dropout import dropout
from affectgpt_jax.ops.packed_attention import packed_attention
from affectgpt_jax.sharding import make_mesh
from tests.ops.test_packed_attention import calls

DEVICES = 8


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


def compare_splash() -> None:
    """Rows over two axes, heads over the third; one key head, which two devices share. And three rows, which four
    devices cannot share."""
    q, k, v = draw(4, 256, 4, 16), draw(4, 256, 1, 16), draw(4, 256, 1, 17)[..., 1:]
    segments = jnp.asarray(np.repeat([[1, 2, 0]], 4, axis=0).repeat([100, 120, 36], axis=1), jnp.int32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, kernel: str) -> jax.Array:
        rows = segments[: q.shape[0]]
        out = packed_attention(q, k, v, rows, kernel=kernel, interpret=kernel == "splash")  # type: ignore[arg-type]
        return jnp.sum(jnp.square(out))

    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    forward = jax.jit(loss, static_argnums=3)
    expected, few = compute(q, k, v, "xla"), forward(q[:3], k[:3], v[:3], "xla")
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = compute(q, k, v, "splash")
        assert found[1][0].sharding.spec[::2] == (("data", "fsdp"), "tensor")
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(forward(q[:3], k[:3], v[:3], "splash"), few, rtol=1e-5)


def compare_masks() -> None:
    """Masks of adapters' inputs, in arrays whose rows, positions or channels are split; bit for bit."""
    x = draw(8, 16, 32)
    layer = Dense(16, lora=LoraConfig(rank=2, dropout=0.5))
    params = layer.init(jax.random.key(0), x)["params"] | {"lora_b": draw(2, 16)}

    @jax.jit
    def compute(x: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dropout(seed, x, 0.5), layer.apply({"params": params}, x, seed)  # type: ignore[return-value]

    mask, y = map(np.asarray, compute(x, jnp.uint32(1)))
    assert 0.45 < np.mean(mask == 0) < 0.55
    assert np.abs(y - np.asarray(compute(x, jnp.uint32(2))[1])).max() > 0.1
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for spec in (
        (("data", "fsdp"), None, "tensor"),
        (None, ("data", "tensor"), "fsdp"),
        (None, None, ("tensor", "data")),
    ):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        other, z = map(np.asarray, compute(placed, jnp.uint32(1)))
        np.testing.assert_array_equal(other, mask)
        np.testing.assert_allclose(z, y, atol=1e-5)


def count_splash_calls() -> None:
    """In the decoder's loop on a mesh, remat `names` keeps what the kernel needs to go backward: it is called forward
    once, for all layers, and twice for gradients. `full` calls it forward again."""
    decoder.packed_attention = lambda *x, kernel: packed_attention(*x, kernel=kernel, interpret=kernel == "splash")  # type: ignore[assignment]
    sizes: dict[str, Any] = {"vocab": 16, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 64}
    h, ids = jax.ShapeDtypeStruct((4, 256, 32), jnp.float32), jax.ShapeDtypeStruct((4, 256), jnp.int32)
    remats: tuple[tuple[Remat, int], ...] = (("none", 3), ("names", 3), ("full", 4))
    for remat, expected in remats:
        model = decoder.Decoder(DecoderConfig(**sizes, layers=FEW + 1, remat=remat, attention="splash"))

        def loss(params: Any, h: Any, ids: Any, model: decoder.Decoder = model) -> Any:
            return jnp.sum(model.apply({"params": params}, h, ids, ids))  # type: ignore[arg-type]

        with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
            params = jax.eval_shape(model.init, jax.random.key(0), h, ids, ids)["params"]
            assert calls(jax.make_jaxpr(jax.grad(loss, argnums=1))(params, h, ids).jaxpr) == expected


def compare() -> None:
    assert jax.device_count() == DEVICES
    compare_splash()
    count_splash_calls()
    compare_masks()
    print("same")


@pytest.mark.slow
def test_on_eight_devices() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, "-c", "from tests.ops.test_on_a_mesh import compare; compare()"],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "same\n", done.stderr
