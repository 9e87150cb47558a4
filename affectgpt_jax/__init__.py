"""AffectGPT in JAX: what a clip's face, voice and words may tell of a person's feelings.

    from affectgpt_jax import AffectGPT

    model = AffectGPT.load("runs/demo")
    print(model.predict("clip.mp4"))

Importing the package is cheap; what these names stand for is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from affectgpt_jax.errors import UserError
from affectgpt_jax.version import __version__

if TYPE_CHECKING:
    from affectgpt_jax.api.model import AffectGPT
    from affectgpt_jax.inference.limits import LIMITS
    from affectgpt_jax.inference.predict import Failed, Prediction
    from affectgpt_jax.inference.scored import ScoredLabels
    from affectgpt_jax.ops.sampling import Sampling

__all__ = ["LIMITS", "AffectGPT", "Failed", "Prediction", "Sampling", "ScoredLabels", "UserError", "__version__"]

_PLACES = {
    "AffectGPT": "api.model",
    "Failed": "inference.predict",
    "LIMITS": "inference.limits",
    "Prediction": "inference.predict",
    "Sampling": "ops.sampling",
    "ScoredLabels": "inference.scored",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
