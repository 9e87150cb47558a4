"""Eight devices, which a process has to ask for before jax starts.

A session of this folder alone asks for them; any other leaves the folder out, and `tests/test_sharding.py` runs it in
a process of its own.
"""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ASK = "--xla_force_host_platform_device_count=8"


def alone(config: pytest.Config) -> bool:
    """Whether the session runs nothing but this folder."""
    return all(Path(arg.split("::")[0]).resolve().is_relative_to(HERE) for arg in config.args)


def pytest_configure(config: pytest.Config) -> None:
    if alone(config):
        os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {ASK}"


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return None if alone(config) else True
