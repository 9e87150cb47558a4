"""Parameters as a CPU reads them while it answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.inference.cpu_layout import ALIGNMENT, arrange
from affectgpt_jax.ops.product import Turned
from affectgpt_jax.weights.trainable import Tree


def params(layers: int, dtype: str, head: bool) -> Tree:
    rng = np.random.default_rng(0)
    kernel, other = jnp.asarray(rng.normal(size=(layers, 5, 7)) * 50, dtype), jnp.asarray(rng.normal(size=(5, 9)))
    stacked = {"up": {"kernel": kernel, "bias": jnp.ones((layers, 7)), "lora_a": jnp.ones((layers, 5, 2))}}
    found = {"layers": stacked, "tokens": {"embedding": jnp.ones((9, 5))}}
    return {"decoder": found | ({"head": {"kernel": other}} if head else {})}


@pytest.mark.parametrize(("layers", "dtype", "head"), [(1, "float32", True), (3, "bfloat16", False), (4, "int8", True)])
def test_layers_lie_one_by_one_with_kernels_turned(layers: int, dtype: str, head: bool) -> None:
    given = params(layers, dtype, head)
    found = arrange(given)["decoder"]
    assert isinstance(found["layers"], tuple)
    assert len(found["layers"]) == layers
    np.testing.assert_array_equal(found["tokens"]["embedding"], given["decoder"]["tokens"]["embedding"], strict=True)
    for index, layer in enumerate(found["layers"]):
        expected = jax.tree.map(lambda x: x[index], given["decoder"]["layers"]["up"])
        assert layer["up"].keys() == expected.keys()
        assert isinstance(layer["up"]["kernel"], Turned)
        assert layer["up"]["kernel"].shape == expected["kernel"].shape
        np.testing.assert_array_equal(layer["up"]["kernel"].matrix.T, expected["kernel"], strict=True)
        for name in ("bias", "lora_a"):
            np.testing.assert_array_equal(layer["up"][name], expected[name], strict=True)
    assert ("head" in found) == head
    if head:
        np.testing.assert_array_equal(found["head"]["kernel"].matrix.T, given["decoder"]["head"]["kernel"], strict=True)


def test_nothing_is_held_twice() -> None:
    """JAX's arrays are the places that were written, one after the other."""
    leaves = jax.tree.leaves(arrange(params(3, "float32", head=False))["decoder"]["layers"])
    places = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    rooms = [-(-leaf.nbytes // ALIGNMENT) * ALIGNMENT for leaf in leaves]
    assert sorted(places) == sorted(places)[:1] + [
        sorted(places)[0] + sum(rooms[: i + 1]) for i in range(len(rooms) - 1)
    ]
