"""The frozen towers at work: pictures and sound in, features out, in batches of one compiled shape.

A batch is spread over all accelerators of this process; the parameters are on each of them, put there once.

n pictures or samples, c clips of a sample, s samples of sound, F feature width.
"""

import copy
import threading
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import Dtype
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.preprocess import clip_pixels
from affectgpt_jax.data.shard_schema import FEATURE_DTYPE
from affectgpt_jax.errors import UserError
from affectgpt_jax.weights.towers import Tower, open_audio, open_vision

Floats = npt.NDArray[np.float32]

BATCH = 128
"""Pictures, or clips of sound, that one call of a tower takes unless told otherwise."""


class Encoders:
    """CLIP and HuBERT from their folders; either may be missing as long as nobody asks for it.

    Several threads may call at the same time: while one waits for its features, others ready and send their batches.
    """

    def __init__(self, vision: str | None, audio: str | None, *, batch: int = BATCH, dtype: Dtype = "float32") -> None:
        """Open the towers.

        Args:
          vision: CLIP folder.
          audio: HuBERT folder.
          batch: pictures, and clips of sound, that one call of a tower takes, or a few more where they would not
            spread evenly over the accelerators; fewer are padded.
          dtype: what the towers compute in.

        Raises:
          UserError: a folder that cannot be read.
        """
        devices = jax.local_devices()
        mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
        self._spread = NamedSharding(mesh, PartitionSpec("batch"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._vision = _placed(open_vision(vision, dtype), everywhere) if vision else None
        self._audio = _placed(open_audio(audio, dtype), everywhere) if audio else None
        self._devices, self._batch = len(devices), -(-batch // len(devices)) * len(devices)
        self._dispatching = threading.Lock()
        self._apply: dict[str, Callable[[Any, Any], Any]] = {
            name: jax.jit(lambda params, x, tower=tower: tower.network.apply({"params": params}, x))
            for name, tower in (("vision", self._vision), ("audio", self._audio))
            if tower is not None
        }

    @classmethod
    def of(cls, config: RunConfig, batch: int = BATCH) -> Self:
        """The towers that a config names, in the type that it wants; for the rest as a new object."""
        return cls(config.weights.vision, config.weights.audio, batch=batch, dtype=config.prepare.dtype)

    def sized(self, batch: int) -> Self:
        """The same towers, of which a call takes another number of pictures, and of clips of sound."""
        other = copy.copy(self)
        other._batch = -(-batch // self._devices) * self._devices
        return other

    @property
    def vision_provenance(self) -> dict[str, Any]:
        """Encoder, weights hash and width of picture features."""
        return self._tower("vision").provenance

    @property
    def audio_provenance(self) -> dict[str, Any]:
        """Encoder, weights hash and width of sound features."""
        return self._tower("audio").provenance

    @property
    def image_size(self) -> int:
        """Height and width that the vision tower takes."""
        return self._tower("vision").network.config.image_size

    def vision(self, frames: npt.NDArray[np.uint8]) -> Floats:
        """Encode pictures, uint8 [n, height, width, 3], to [n, F]."""
        return self.pixels(clip_pixels(frames, self.image_size))

    def pixels(self, pixels: Floats) -> Floats:
        """Encode processed pictures, [n, 3, size, size], to [n, F]."""
        return self._run("vision", np.ascontiguousarray(np.moveaxis(pixels, 1, -1)))

    def audio(self, clips: Floats) -> Floats:
        """Encode sound, [n, c, s], normalised sample by sample, to [n, c, F]."""
        features = self._run("audio", clips.reshape(-1, clips.shape[-1]))
        return features.reshape(*clips.shape[:2], -1)

    def _tower(self, name: str) -> Tower:
        tower = self._vision if name == "vision" else self._audio
        if tower is None:
            raise UserError(f"weights.{name} is not set; name the folder of the {name} encoder")
        return tower

    def _run(self, name: str, x: np.ndarray) -> Floats:
        params = self._tower(name).params
        parts = []
        for start in range(0, len(x), self._batch):
            part = x[start : start + self._batch]
            count = len(part)
            if count < self._batch:
                part = np.pad(part, [(0, self._batch - count)] + [(0, 0)] * (x.ndim - 1))
            batch = jax.device_put(part, self._spread)
            with self._dispatching:  # of threads that come first at the same time, one compiles
                parts.append((self._apply[name](params, batch), count))
        # Results are fetched only after every call has been dispatched.
        return np.concatenate([np.asarray(features, np.float32)[:count] for features, count in parts])


def encode_batch(encoders: Encoders, batch: Batch) -> Batch:
    """Replace a batch's media by features in the shards' type; zeros where a sample lacks the stream."""
    features = {name: _encode(encoders, name, media, batch.present[name]) for name, media in batch.features.items()}
    return batch._replace(features=features)


def _encode(encoders: Encoders, name: str, media: np.ndarray, present: np.ndarray) -> np.ndarray:
    chosen = media[present]
    if name == "audio":
        found = encoders.audio(chosen)
    else:
        found = encoders.pixels(chosen.reshape(-1, *chosen.shape[2:]))
        found = found.reshape(*chosen.shape[:2], -1)
    features = np.zeros((*present.shape, *found.shape[1:]), FEATURE_DTYPE)
    features[present] = found.astype(FEATURE_DTYPE)
    return features


def _placed(tower: Tower, sharding: NamedSharding) -> Tower:
    """A tower whose parameters are on the devices; as host arrays they would be sent with each call."""
    return tower._replace(params=jax.device_put(tower.params, sharding))
