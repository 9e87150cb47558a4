"""Sizes of the mesh: what is refused and with which remedy, and which device stands where."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.config import build_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.sharding import check_mesh, make_mesh, place, run_mesh
from tests.sharding.programs import QFORMER, make_config


def test_the_sizes_of_a_mesh() -> None:
    assert dict(make_mesh(MeshConfig()).shape) == {"slice": 1, "data": 8, "fsdp": 1, "tensor": 1}
    mesh = make_mesh(MeshConfig(slice=2, data=1, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2}
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert dict(make_mesh(MeshConfig(slice=-1, data=1)).shape)["slice"] == 8


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 16}, "mesh.data=16, .* needs 16 devices, 8 are there"),
        ({"data": 2, "fsdp": 2}, "needs 4 devices, 8 are there; set one size to -1"),
        ({"fsdp": 3}, "need a multiple of 3 devices, 8 are there; make their product 2 or 4"),
        ({"tensor": 16}, "need a multiple of 16 devices, 8 are there; make their product 8, the largest"),
    ],
)
def test_sizes_that_the_devices_do_not_allow(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize("sizes", [{"data": -1, "fsdp": -1}, {"slice": -1}, {"tensor": 0}, {"slice": -2}])
def test_sizes_that_no_device_allows(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="sizes are positive, and at most one is -1"):
        build_config({"mesh": sizes}, "mesh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mesh": {"tensor": 4}, "model__decoder__heads": 24, "model__decoder__kv_heads": 2},
            r"mesh.tensor=4 does not divide model.decoder.kv_heads=2; use 2, the largest that does",
        ),
        (
            {"mesh": {"tensor": 8}, "model__decoder__kv_heads": 4},
            r"mesh.tensor=8 does not divide model.decoder.kv_heads=4; use 4, the largest",
        ),
        (
            {"mesh": {"tensor": 4}, "model__decoder__heads": 30, "model__decoder__kv_heads": 6},
            r"mesh.tensor=4 does not divide model.decoder.kv_heads=6, model.decoder.heads=30; use 2, the largest",
        ),
        # The joined channels of three heads could be split in two, the heads cannot.
        (
            {"mesh": {"tensor": 2}, "model__decoder__heads": 3, "model__decoder__kv_heads": 3},
            r"mesh.tensor=2 does not divide model.decoder.kv_heads=3, model.decoder.heads=3; use 1, the largest",
        ),
        ({"mesh": {"tensor": 8}, "model__decoder__vocab": 724}, "model.decoder.vocab=724; use 4, the largest"),
        (
            {"mesh": {"fsdp": 8}, "model__decoder__width": 60},
            "mesh.fsdp=8 .* model.decoder.width=60; use 4, the largest",
        ),
        ({"mesh": {"fsdp": 8}, **QFORMER}, "model.vision_width=12, model.audio_width=20; use 4, the largest"),
        ({"mesh": {"tensor": 8}, **QFORMER}, "model.qformer.heads=4, model.qformer.mlp_width=44; use 4, the largest"),
        ({"mesh": {"slice": 2, "fsdp": 2}, "train__rows": 12}, "mesh.slice . mesh.data . mesh.fsdp = 8; use 8 or 16"),
        ({"mesh": {}, "train__rows": 3}, "train.rows=3 cannot be split .* = 8; use 8$"),
    ],
)
def test_sizes_that_the_run_does_not_allow(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_mesh(make_config(**changes))


def test_the_remedy_names_the_sizes_below_and_above() -> None:
    config = make_config({}, model__decoder__heads=24, model__decoder__kv_heads=4)
    with pytest.raises(UserError, match=r"mesh.tensor=3 does not divide model.decoder.kv_heads=4; use 2 or 4$"):
        check_mesh(config, {"slice": 1, "data": 1, "fsdp": 4, "tensor": 3})


@dataclass(frozen=True)
class Chip:
    """A device of a job of several slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "chip"


# Four slices of four chips, listed in another order than their numbers.
CHIPS = [Chip(4 * index + i, index) for index in (2, 0, 3, 1) for i in range(4)]


@pytest.mark.parametrize(
    ("sizes", "slices"),
    [
        # What an axis beyond `slice` sees of the slices, by (slice, data, fsdp), at tensor 0.
        ((4, 1, 2, 2), [[[0, 0]], [[1, 1]], [[2, 2]], [[3, 3]]]),
        ((2, 2, 1, 4), [[[0], [1]], [[2], [3]]]),
        ((8, 1, 1, 2), [[[0]], [[0]], [[1]], [[1]], [[2]], [[2]], [[3]], [[3]]]),
        ((1, 8, 1, 2), [[[0], [0], [1], [1], [2], [2], [3], [3]]]),
        ((1, 1, 16, 1), [[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]]]),
    ],
)
def test_the_outermost_axes_go_over_the_slices_of_the_hardware(sizes: tuple[int, ...], slices: list) -> None:
    placed = place(sizes, CHIPS)
    assert placed.shape == sizes
    assert len(set(placed.flat)) == 16
    found = np.vectorize(lambda chip: chip.slice_index, otypes=[int])(placed)
    assert found[..., 0].tolist() == slices
    if sizes[-1] <= 4:
        assert (found == found[..., :1]).all()


@dataclass(frozen=True)
class Tpu:
    """A chip of a slice of 4 x 4."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int = 0
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"


@pytest.mark.parametrize("sizes", [(1, 4, 1, 4), (1, 1, 16, 1), (1, 8, 1, 2), (1, 2, 4, 2), (1, 2, 2, 4)])
def test_any_size_that_divides_a_slice_can_be_laid_over_it(sizes: tuple[int, ...]) -> None:
    """Also those that the slice's own axes of four do not follow; what talks most stays within reach."""
    placed = place(sizes, [Tpu(4 * y + x, (x, y, 0)) for y in range(4) for x in range(4)])
    assert placed.shape == sizes
    assert len(set(placed.flat)) == 16
    for group in placed.reshape(-1, sizes[-1]):
        spread = np.ptp([chip.coords for chip in group], axis=0)
        assert np.count_nonzero(spread) <= 1  # a line


def test_slices_that_the_hardware_does_not_have() -> None:
    with pytest.raises(UserError, match=r"mesh.slice=3 does not divide the 4 slices of this job; use 2 or 4"):
        place((3, 4, 1, 1), CHIPS)
