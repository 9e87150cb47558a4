"""Accelerators by their device files, which are there whatever JAX sees."""

import re
from pathlib import Path

DEV = Path("/dev")


def tpu_chips() -> int:
    """TPU chips of this machine."""
    return len([*DEV.glob("accel[0-9]*"), *(DEV / "vfio").glob("[0-9]*")])


def nvidia_gpus() -> int:
    """NVIDIA GPUs of this machine; none within WSL, which has no such files."""
    return sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in DEV.glob("nvidia*"))


def any_accelerator() -> bool:
    """Whether there is a TPU or a GPU of any make."""
    return bool(tpu_chips() or nvidia_gpus()) or any((DEV / name).exists() for name in ("dxg", "kfd"))
