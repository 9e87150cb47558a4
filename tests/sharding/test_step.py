"""The step on meshes of eight devices against the step on one, and what the devices tell each other."""

import jax
import numpy as np
import pytest

from affectgpt_jax.planning.program import read_collectives
from affectgpt_jax.weights.table import paths
from tests.sharding.programs import CASES, LAYERS, VOCABULARY, alone, gradients, program, what

QUICK = ["slices"]
cases = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]

GRADIENTS = {("all-reduce", "parameter"), ("all-reduce", "scalar")}
OVER_FSDP = {
    # Weights of one layer or the head, ids, features of samples: never words, hidden states or logits.
    ("all-gather", "parameter"),
    ("all-gather", "tokens"),
    ("all-gather", "samples"),
    # Each device has looked up its part of the width for all rows of the group.
    ("all-to-all", "words"),
    ("all-to-all", "samples"),
}
OVER_TENSOR = {
    # Sums over heads and inner widths, forward and backward.
    ("all-reduce", "residual"),
    ("all-reduce", "adapter"),
    ("all-reduce", "targets"),
    # The vocabulary: largest logit, sum of exponentials, the target's logit; of the best of each part, the best.
    ("all-reduce", "per target"),
    ("all-gather", "best"),
}
OVER_BOTH = {
    # Word embeddings of a part of the width, summed over the parts of the vocabulary.
    ("all-reduce", "words"),
    ("all-reduce", "samples"),
    # XLA gathers what is not split by tensor along the tensor axis, where it has to be brought first.
    ("collective-permute", "parameter"),
    ("collective-permute", "samples"),
}
EXPECTED = {
    "data": GRADIENTS,
    "fsdp": GRADIENTS | OVER_FSDP,
    "tensor": {("all-reduce", "scalar")} | OVER_TENSOR,
    "mixed": GRADIENTS | OVER_FSDP | OVER_TENSOR | OVER_BOTH,
    "slices": GRADIENTS | OVER_FSDP | OVER_TENSOR | OVER_BOTH,
    "qformer": GRADIENTS | OVER_FSDP | OVER_TENSOR | OVER_BOTH,
}


@pytest.mark.parametrize("name", cases)
def test_loss_and_gradients_are_those_of_one_device(name: str) -> None:
    found, expected = program(name), alone(CASES[name].model)
    np.testing.assert_allclose(float(found.metrics.loss), expected.loss, rtol=1e-5)
    assert float(found.metrics.accuracy) == expected.accuracy
    grads = gradients(found.config, found.state)
    assert len(grads) == len(paths(found.setup.state.params))
    # The bias of keys changes no softmax: its gradient is nothing but rounding.
    least = 1e-5 * max(np.abs(g).max() for g in expected.gradients.values())
    for path, gradient in grads.items():
        size = max(np.abs(expected.gradients[path]).max(), least)
        np.testing.assert_allclose(gradient / size, expected.gradients[path] / size, rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", cases)
def test_the_devices_exchange_what_they_must(name: str) -> None:
    """Nothing is brought together that could stay apart: XLA's "involuntary full rematerialization" would show here."""
    found = program(name)
    seen = {(each.kind, what(found.config, found.setup.mesh, each)) for each in read_collectives(found.text)}
    assert seen == EXPECTED[name]


@pytest.mark.parametrize("name", cases)
def test_no_device_ever_holds_all_layers_of_a_split_weight(name: str) -> None:
    """Neither the weights nor their gradients: a stack [L, in, out] exists in parts only."""
    found = program(name)
    split = {
        path: leaf
        for path, leaf in (paths(found.setup.frozen) | paths(found.state.params)).items()
        if leaf.shape[0] == LAYERS and not leaf.sharding.is_fully_replicated
    }
    assert split or name == "data"
    parts = {leaf.sharding.shard_shape(leaf.shape) for leaf in split.values()}
    for path, leaf in split.items():
        if leaf.shape not in parts:
            assert f"[{','.join(map(str, leaf.shape))}]" not in found.text, path


def test_the_next_step_goes_on_with_what_the_last_one_left() -> None:
    """The loop's own call: no array moves unasked, and the state stays where it was."""
    found = program("slices")
    places = jax.tree.map(lambda x: x.sharding, found.state)
    copied = jax.tree.map(lambda x: x.copy(), found.state)
    with jax.transfer_guard("disallow"):
        state, metrics = found.setup.step(copied, found.setup.frozen, found.batch)
    assert jax.tree.map(lambda x: x.sharding, state) == places
    assert int(state.step) == 2
    assert float(metrics.loss) < float(found.metrics.loss)


@pytest.mark.parametrize("name", cases)
def test_the_head_is_exchanged_outside_the_loop_over_its_targets(name: str) -> None:
    """It is gathered before the loop and its gradient is summed after it, within the loop over rounds."""
    found = program(name)
    vocabulary = {VOCABULARY, VOCABULARY // found.setup.mesh.shape["tensor"]}
    loops = [each.where.count("while/body") for each in read_collectives(found.text) if vocabulary & set(each.shape)]
    assert all(count == 1 for count in loops)
    assert len(loops) >= (CASES[name].mesh.get("fsdp", 1) > 1) + CASES[name].full
