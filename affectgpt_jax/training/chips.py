"""What accelerators can do, by their data sheets, and which share of it large models have reached."""

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Chip(NamedTuple):
    """One accelerator, as far as JAX takes it for one device.

    Attributes:
      name: as a person writes it.
      family: whose compiler serves it.
      kinds: what JAX calls it.
      flops: dense bfloat16 peak, FLOP/s.
      memory: bytes of its memory; of a TPU those that its compiler lets programs take.
      bandwidth: of the memory, bytes/s.
      link: to its neighbours, bytes/s one way: of one axis of a TPU's torus in both of its directions together, of a
        GPU to those of its own host.
      network: of a GPU to those of other hosts, of a TPU to other slices, bytes/s one way.
      attained: share of the peak that training is reckoned with.
      source: where that share was seen.
      devices: as how many of them JAX sees a whole chip.
    """

    name: str
    family: Literal["tpu", "gpu"]
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    attained: float
    source: str
    devices: int = 1


_MAXTEXT = "published by MaxText for"
_ASSUMED = "assumed"

CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", ("TPU v4",), 275e12, 32 * 2**30, 1.23e12, 9e10, 6.25e9, 0.50, _ASSUMED),
        Chip(
            "v5e", "tpu", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * 2**30, 0.82e12, 9e10, 6.25e9, 0.61,
            f"{_MAXTEXT} a model of 16B on v5e-256",
        ),
        Chip(
            "v5p", "tpu", ("TPU v5", "TPU v5p"), 459e12, 95.74 * 2**30, 2.77e12, 18e10, 6.25e9, 0.65,
            f"{_MAXTEXT} Llama 2 70B on v5p-512",
        ),
        Chip(
            "v6e", "tpu", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * 2**30, 1.64e12, 18e10, 12.5e9, 0.455,
            f"{_MAXTEXT} Llama 3.1 8B on v6e-256",
        ),
        Chip("tpu7x", "tpu", ("TPU7x",), 1154e12, 94.75 * 2**30, 3.69e12, 18e10, 12.5e9, 0.45, _ASSUMED, devices=2),
        Chip("a100", "gpu", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2.04e12, 300e9, 25e9, 0.45, _ASSUMED),
        Chip(
            "h100", "gpu", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3.35e12, 450e9, 50e9, 0.497,
            f"{_MAXTEXT} Llama 2 7B on 8 H100",
        ),
        Chip(
            "h200", "gpu", ("NVIDIA H200",), 989e12, 141e9, 4.8e12, 450e9, 50e9, 0.514,
            f"{_MAXTEXT} Llama 3.1 70B on H200",
        ),
        Chip("b200", "gpu", ("NVIDIA B200",), 2250e12, 180e9, 7.7e12, 900e9, 50e9, 0.45, _ASSUMED),
        Chip("l40s", "gpu", ("NVIDIA L40S",), 362e12, 48e9, 0.864e12, 32e9, 12.5e9, 0.40, _ASSUMED),
        Chip("rtx4090", "gpu", ("NVIDIA GeForce RTX 4090",), 165e12, 24e9, 1.01e12, 25e9, 1.25e9, 0.40, _ASSUMED),
    )
}  # fmt: skip
"""By name. Peaks, memories and bandwidths are the vendors'; a TPU's links are those of "How to Scale Your Model"; what
leaves a host or slice is an assumption of one network card of the usual size."""


def find_chip(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)
