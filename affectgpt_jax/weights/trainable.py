"""Two trees: what is trained and what is frozen. Gradients, optimizer state and checkpoints know only the first."""

import re
from collections.abc import Sequence
from typing import Any

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import used_in_training
from affectgpt_jax.weights.table import nest, paths

Tree = dict[str, Any]


def split(config: ModelConfig, params: Tree, trainable: Sequence[str]) -> tuple[Tree, Tree]:
    """Divide parameters into the trainable and the frozen tree.

    Args:
      config: the model's config; what its mode never uses is frozen whatever the patterns say.
      params: all parameters.
      trainable: regular expressions searched for in the paths.

    Raises:
      UserError: a pattern that matches nothing.
    """
    flat = paths(params)
    idle = [pattern for pattern in trainable if not any(re.search(pattern, path) for path in flat)]
    if idle:
        raise UserError(
            f"train.trainable: no parameter matches {', '.join(map(repr, idle))}; paths look like "
            f"{', '.join(list(flat)[:3])}"
        )
    chosen = {path for path in flat if is_trained(config, path, trainable)}
    return (
        nest({path: leaf for path, leaf in flat.items() if path in chosen}),
        nest({path: leaf for path, leaf in flat.items() if path not in chosen}),
    )


def is_trained(config: ModelConfig, path: str, trainable: Sequence[str]) -> bool:
    """Whether a parameter is trained; see `split`."""
    return any(re.search(pattern, path) for pattern in trainable) and used_in_training(config, path)


def join(trainable: Tree, frozen: Tree) -> Tree:
    """The one tree that the model takes."""
    return nest(paths(frozen) | paths(trainable))
