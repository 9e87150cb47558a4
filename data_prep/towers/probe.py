"""How much a frozen encoder's features tell: a linear classifier on what AffectGPT sees of a clip."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Encode = Callable[[Any, Floats], Floats]

_RIDGE = 1e-3


def encoder(network: Any, batch: int) -> Encode:
    """A function (parameters, inputs [clips, views, ...]) -> features [clips, views, F], compiled for one size.

    Args:
        network: `VisionTower` or `Hubert`.
        batch: views that go through it at once.
    """
    apply = jax.jit(lambda params, x: network.apply({"params": params}, x))

    def encode(params: Any, inputs: Floats) -> Floats:
        flat = inputs.reshape(-1, *inputs.shape[2:])
        parts = []
        for start in range(0, len(flat), batch):
            part = flat[start : start + batch]
            padded = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1))
            parts.append(np.asarray(apply(params, padded))[: len(part)])
        return np.concatenate(parts).reshape(*inputs.shape[:2], -1)

    return encode


def probe_accuracy(
    features: Floats, classes: npt.NDArray[np.int32], new_features: Floats, new_classes: npt.NDArray[np.int32]
) -> float:
    """Accuracy of a linear probe: ridge regression from the views' mean feature to the class indicator.

    Args:
        features: [clips, views, F] that the probe learns from.
        classes: [clips].
        new_features: [clips, views, F] that it is judged on.
        new_classes: [clips].

    Returns:
        Share of the new clips it gets right.
    """
    known, new = (pooled.mean(axis=1).astype(np.float64) for pooled in (features, new_features))
    centre, spread = known.mean(axis=0), known.std(axis=0) + 1e-6
    known, new = ((x - centre) / spread for x in (known, new))
    indicator = np.eye(classes.max() + 1)[classes]
    prior = indicator.mean(axis=0)
    gram = known.T @ known + _RIDGE * len(known) * np.eye(known.shape[1])
    answers = new @ np.linalg.solve(gram, known.T @ (indicator - prior)) + prior
    return float(np.mean(answers.argmax(axis=1) == new_classes))
