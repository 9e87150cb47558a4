"""Names of devices that are not there."""

import os
import subprocess
import sys
from typing import Any

import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.planning.topology import open_topology, parse_topology
from affectgpt_jax.training.chips import CHIPS, find_chip


@pytest.mark.parametrize(
    ("text", "chips", "devices", "hosts"),
    [
        ("v5e:4x4", 16, 16, 4),
        ("v5e:1x1", 1, 1, 1),
        ("v5p:2x2x4", 16, 16, 4),
        ("2*v6e:4x4", 32, 32, 8),
        ("tpu7x:2x2x1", 4, 8, 1),
        ("h200:8", 8, 8, 1),
        ("H100:64", 64, 64, 8),
        ("cpu:8", 8, 8, 1),
    ],
)
def test_what_a_name_stands_for(text: str, chips: int, devices: int, hosts: int) -> None:
    found = parse_topology(text)
    assert (found.chips, found.devices, found.hosts) == (chips, devices, hosts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e", "expected such as v5e:4x4"),
        ("v5e:0x4", "expected such as v5e:4x4"),
        ("v7:4x4", "no chip v7; TPUs by their axes .*v5e, v5p, v6e.*GPUs by number .*h100, h200"),
        ("h100:8x8", "of h100 say how many there are in all, h100:64"),
        ("2*h100:8", "say how many"),
        ("v4:2x2x2", "plan for v5p instead"),
    ],
)
def test_names_that_stand_for_nothing(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_topology(text)


def test_chips_are_found_by_what_jax_calls_them() -> None:
    assert find_chip("TPU v5 lite") is CHIPS["v5e"]
    assert find_chip("NVIDIA H200") is CHIPS["h200"]
    assert find_chip("cpu") is None
    assert all(0.3 < chip.attained < 0.8 and chip.flops / chip.bandwidth > 50 for chip in CHIPS.values())


def test_without_the_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import topologies

    def missing(**_: Any) -> None:
        raise RuntimeError("Unknown backend: 'tpu' requested, but no platforms that are instances of tpu are present.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=r"compiling for TPUs needs libtpu: pip install 'affectgpt-jax\[tpu\]'"):
        open_topology(parse_topology("v5e:2x2"))


def test_a_slice_that_does_not_exist() -> None:
    pytest.importorskip("libtpu")
    program = (
        "from affectgpt_jax.planning.topology import *\n"
        "try: open_topology(parse_topology('v5e:3x5'))\n"
        "except Exception as error: print(error)"
    )
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert "not divisible" in found.stdout
    assert "2 axes, multiples of a host's 2x2 chips" in found.stdout
