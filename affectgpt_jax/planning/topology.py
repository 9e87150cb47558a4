"""Devices that are not there: a TPU slice, GPUs of some hosts, or virtual devices of this machine's CPU."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from affectgpt_jax.errors import UserError
from affectgpt_jax.training.chips import CHIPS, Chip

GPUS_A_HOST = 8


class Topology(NamedTuple):
    """What a job would run on.

    Attributes:
      name: as it was asked for.
      chip: None for a CPU, of which nothing is known.
      shape: chips along each axis of one slice; of GPUs and CPUs their number.
      slices: how many of them.
      hosts: machines in all.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]
    slices: int
    hosts: int

    @property
    def chips(self) -> int:
        """Accelerators of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """What JAX would see."""
        return self.chips * (self.chip.devices if self.chip else 1)

    @property
    def compiles(self) -> bool:
        """Whether there is a compiler that needs no device."""
        return self.chip is None or self.chip.family == "tpu"


def parse_topology(text: str) -> Topology:
    """Read v5e:4x4, v5p:2x2x4, 2*v6e:16x16 (two slices), h200:8, cpu:8.

    Raises:
      UserError: nothing of that kind.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text.strip())
    tpus = [name for name, chip in CHIPS.items() if chip.family == "tpu" and name != "v4"]
    gpus = [name for name, chip in CHIPS.items() if chip.family == "gpu"]
    known = f"TPUs by their axes ({', '.join(tpus)}), GPUs by number ({', '.join(gpus)}), or cpu:N"
    if match is None or 0 in (sizes := tuple(int(size) for size in match[3].split("x"))):
        raise UserError(f"--topology {text}: expected such as v5e:4x4, 2*v5p:4x4x4 or h200:8: {known}")
    slices, name = int(match[1] or 1), match[2].lower()
    if name == "v4":
        raise UserError(f"--topology {text}: the compiler for v4 takes half a chip for a device; plan for v5p instead")
    if name != "cpu" and name not in CHIPS:
        raise UserError(f"--topology {text}: no chip {name}; {known}")
    chip = CHIPS.get(name)
    if chip is None or chip.family == "gpu":
        if len(sizes) > 1 or slices > 1:
            raise UserError(f"--topology {text}: of {name} say how many there are in all, {name}:{math.prod(sizes)}")
        hosts = -(-sizes[0] // GPUS_A_HOST) if chip else 1
        return Topology(text, chip, sizes, 1, hosts)
    return Topology(text, chip, sizes, slices, max(1, math.prod(sizes) // 4) * slices)


def open_topology(topology: Topology) -> Sequence[Any]:
    """The devices, to compile for.

    For a CPU they are this process's, which must have been started with as many
    (`--xla_force_host_platform_device_count`).

    Raises:
      UserError: libtpu is missing, or has no such slice.
    """
    import jax
    from jax.experimental import topologies

    if topology.chip is None:
        return jax.devices()
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if math.prod(topology.shape) == 1:
        more["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except Exception as error:  # the plugin's own errors, of many kinds
        why = str(error).splitlines()[0]
        hint = (
            f"TPU slices go by {'3 axes' if topology.chip.name in ('v5p', 'tpu7x') else '2 axes'}, multiples of a "
            "host's 2x2 chips"
            if "opology" in why
            else "compiling for TPUs needs libtpu: pip install 'affectgpt-jax[tpu]'"
        )
        raise UserError(f"--topology {topology.name}: {why}; {hint}") from error
    return list(found.devices)
