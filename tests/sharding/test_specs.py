"""Where every array of a run lies."""

import math
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from affectgpt_jax.config import load_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings, run_mesh, whole
from affectgpt_jax.weights.initial import fresh_parameters, initial_parameters, parameter_shapes
from affectgpt_jax.weights.table import paths
from tests.sharding.programs import make_batch, make_config, make_params, moments, program

SMALL = 2**16
"""Elements up to which nobody asks where a parameter lies."""

WHOLE = {
    # Not split by fsdp, at the sizes of the 7B model.
    "fsdp": {
        r"decoder/layers/\w+_norm/scale": "vectors",
        r"decoder/layers/[qkv]_proj/bias": "vectors",
        r"decoder/layers/(q|k|v|gate|up)_proj/lora_b": "no axis is a width: rank, and what tensor splits",
        r"decoder/layers/(o|down)_proj/lora_a": "no axis is a width: rank, and what tensor splits",
        r"fusion/multi/(audio_in|video_in|mix)/kernel": "features in, features out; two million at most",
        r"fusion/multi/qformer/positions": "a table of 264 features",
    },
    # Not split by tensor.
    "tensor": {
        r"decoder/layers/\w+_norm/scale": "vectors",
        r"decoder/layers/(q|k|v|gate|up)_proj/lora_a": "no axis is split by tensor: width and rank",
        r"decoder/layers/(o|down)_proj/lora_b": "no axis is split by tensor: width and rank",
        r"fusion/multi/(audio_in|video_in|mix)/kernel": "features in, features out; two million at most",
        r"fusion/multi/qformer/positions": "a table of 264 features",
        r"fusion/(image|video|audio|multi)/proj/kernel": "features in, the residual stream out",
    },
}
"""What is replicated on purpose."""


@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_only_what_is_listed_lies_whole(axis: str) -> None:
    found = set()
    for config in ("affectgpt_qwen2.5_7b_face", "affectgpt_qwen2.5_7b_qformer"):
        run = load_config(config, ["train.rows=8", f"mesh.{axis}=4"])
        shapes = parameter_shapes(AffectGPT(run.model))
        places = paths(parameter_shardings(run_mesh(run), shapes))
        for path, leaf in paths(shapes).items():
            own = math.prod(places[path].shard_shape(leaf.shape))
            assert own in (leaf.size, leaf.size // 4), path
            if own == leaf.size and leaf.size > SMALL:
                matching = {pattern for pattern in WHOLE[axis] if re.fullmatch(pattern, path)}
                assert matching, f"{path} {leaf.shape} lies whole on every device and is not listed"
                found |= matching
    assert found == set(WHOLE[axis])


def test_parameters_lie_over_no_axis_of_the_batch_alone() -> None:
    mesh = make_mesh(MeshConfig(slice=2, data=2, fsdp=2))
    for path, place in paths(parameter_shardings(mesh, parameter_shapes(AffectGPT(make_config({}).model)))).items():
        assert not {"slice", "data"} & set(jax.tree.leaves(tuple(place.spec))), path


def test_state_and_metrics() -> None:
    """All parameters trained: moments lie as their parameters do, scalars are global arrays on every device."""
    found = program("slices")
    expected = paths(parameter_shardings(found.setup.mesh, parameter_shapes(AffectGPT(found.config.model))))
    for state in (found.setup.shardings, jax.tree.map(lambda x: x.sharding, found.state)):
        for tree in (state.params, *moments(state)):
            assert {path: place.spec for path, place in paths(tree).items()} == {
                path: expected[path].spec for path in paths(tree)
            }
    assert len(paths(found.state.params)) > len(paths(found.setup.frozen))
    scalars = [x for x in jax.tree.leaves((found.state, found.metrics)) if x.ndim == 0]
    assert len(scalars) >= 8
    for scalar in scalars:
        assert scalar.sharding == NamedSharding(found.setup.mesh, PartitionSpec())
    for path, leaf in paths(found.setup.frozen).items():
        assert leaf.sharding.spec == expected[path].spec, path


def test_a_batch_lies_by_rows() -> None:
    found = program("slices")
    for host, leaf in zip(jax.tree.leaves(make_batch(found.config)), jax.tree.leaves(found.batch), strict=True):
        assert leaf.sharding.spec == PartitionSpec(None, ("slice", "data", "fsdp"))
        for shard in leaf.addressable_shards:
            assert shard.data.shape == (leaf.shape[0], 2, *leaf.shape[2:])
            np.testing.assert_array_equal(shard.data, host[shard.index])


def test_fresh_parameters_are_the_same_wherever_they_are_made() -> None:
    config = make_config({})
    model = AffectGPT(config.model)
    shapes = parameter_shapes(model)
    meshes = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(fsdp=2, tensor=2))
    places = [parameter_shardings(mesh, shapes) for mesh in meshes]
    wanted = {path for path in paths(shapes) if re.search("q_proj|down_proj|tokens|fusion/multi", path)}
    one, many = (paths(fresh_parameters(config, model, place, wanted)) for place in places)
    assert one.keys() == many.keys() == wanted
    for path, leaf in many.items():
        np.testing.assert_allclose(leaf, one[path], rtol=1e-6, atol=1e-7, err_msg=path)
        assert len(leaf.sharding.device_set) == 8


def test_given_parameters_move_from_mesh_to_mesh() -> None:
    config = make_config({"fsdp": 4})
    model = AffectGPT(config.model)
    host = make_params(config)
    given: Any = host
    for sizes in ({"fsdp": 8}, {"data": 2, "tensor": 4}):
        places = parameter_shardings(make_mesh(MeshConfig(**sizes)), parameter_shapes(model))
        given = paths(initial_parameters(config, model, places, given))
        assert {path: leaf.sharding for path, leaf in given.items()} == paths(places)
    for path, leaf in given.items():
        np.testing.assert_array_equal(whole(leaf), host[path], err_msg=path)
