"""Parameters of a module."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax.errors import ScopeParamShapeError


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...] | None = None) -> Any:
    """`module.param`, which traces no initialiser of a parameter that is there.

    Flax does, for its shape: of a training step that would be half of all tracing.

    Args:
      module: whose parameter.
      name: of the parameter.
      init: makes it of a random key, and of the shape if there is one.
      shape: of the parameter; None for a tree of them.

    Raises:
      ScopeParamShapeError: what is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, *([] if shape is None else [shape]))
    found: Any = module.get_variable("params", name)
    if shape is not None and found.shape != shape:
        raise ScopeParamShapeError(name, "/".join(module.path), found.shape, shape)
    return found
