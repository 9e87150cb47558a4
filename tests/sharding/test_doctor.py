"""`affectgpt doctor` on eight devices: the sum over them, and what lies on each."""

import jax
import numpy as np
import pytest

from affectgpt_jax.doctor import CHECKS, Question, examine, machine, room
from affectgpt_jax.doctor.machine import exchange
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import parameter_shardings, run_mesh
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import paths
from tests.sharding.programs import make_config


def test_the_sum_over_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, seconds = exchange(jax.devices(), 2**14)
    assert wrong == []
    assert seconds > 0
    (found,) = examine("all-reduce", CHECKS["all-reduce"], Question())
    assert (found.status, "on each of 8 devices in" in found.found) == ("ok", True)
    # One device of the eight adds something of its own.
    real = jax.lax.psum
    monkeypatch.setattr(
        jax.lax, "psum", lambda x, axis: real(x + (jax.lax.axis_index(axis) == 5).astype(x.dtype), axis)
    )
    assert exchange(jax.devices(), 2**14)[0] == list(range(8))
    monkeypatch.setattr(machine, "exchange", lambda devices, size: ([3, 5], 1.0))
    (found,) = examine("all-reduce", CHECKS["all-reduce"], Question())
    assert found.found == "devices 3, 5 hold a wrong sum"


def test_what_lies_on_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are put where the run puts them and counted; trained ones with their gradient and two moments."""
    config = make_config({"fsdp": 2, "tensor": 2})
    places = paths(parameter_shardings(run_mesh(config), parameter_shapes(AffectGPT(config.model))))
    monkeypatch.setattr(room, "resolved", lambda config: config)
    held = 0
    for parameter in room.parameters(config):
        assert parameter.bytes == 4
        array = jax.device_put(np.zeros(parameter.shape, np.float32), places[parameter.path])
        (here,) = [shard.data.nbytes for shard in array.addressable_shards if shard.device.id == 0]
        held += here * (4 if parameter.trained else 1)
    (found,) = examine("memory", CHECKS["memory"], Question(config))
    assert found.found.startswith(f"{room.amount(8 * held)} of parameters, gradients and optimizer on the host")
