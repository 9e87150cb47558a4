"""Tests of this folder need an NVIDIA GPU."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("no NVIDIA GPU")
