"""Tiny torch models with random weights as oracles, and the way from them to our parameter trees.

Importing this skips the test module where torch is not installed.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.weights.files import SafetensorsFolder, read_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


def randomise(model: Any, seed: int) -> Any:
    """Fill every parameter at random, so that none is idle: norms near 1, biases near 0, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                norm = "norm" in name.lower() and name.endswith("weight")
                parameter.copy_(0.2 * noise + (1.0 if norm else 0.0))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return model.eval()


def saved(model: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], SafetensorsFolder]:
    """The model's config.json and tensors after a way over the disk, as anybody's model folder has them."""
    model.save_pretrained(folder, **options)
    return read_config(folder), SafetensorsFolder(folder)


def shapes(model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Our model's parameters without their values."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]


def as_torch(x: np.ndarray) -> Any:
    return torch.from_numpy(np.array(x))


def uniform(seed: int, *shape: int) -> np.ndarray:
    """Random float32 in -1 .. 1."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
