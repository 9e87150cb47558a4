"""Opening the frozen encoders from Hugging Face folders."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from affectgpt_jax.config.networks import Dtype, HubertConfig, VisionConfig
from affectgpt_jax.data.shard_schema import file_digest
from affectgpt_jax.errors import UserError
from affectgpt_jax.model_folders import model_folder, short_name
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.weights.files import INDEX, SINGLE, HubertTensors, Renamed, open_part, part_config
from affectgpt_jax.weights.networks import CLIP, HUBERT
from affectgpt_jax.weights.table import read_tree


class Tower(NamedTuple):
    """An encoder with its parameters and where they come from."""

    network: Any
    params: dict[str, Any]
    provenance: dict[str, Any]


def vision_config(folder: str | Path) -> VisionConfig:
    """Sizes of the CLIP tower in a folder."""
    config = part_config(folder, "vision")
    if "clip" not in config.get("model_type", "clip"):
        raise UserError(f"{folder}: config.json says model_type={config['model_type']!r}, expected a CLIP model")
    return VisionConfig.from_hf(config)


def audio_config(folder: str | Path) -> HubertConfig:
    """Sizes of the HuBERT encoder in a folder."""
    config = part_config(folder, "audio")
    if config.get("model_type", "hubert") != "hubert":
        raise UserError(f"{folder}: config.json says model_type={config['model_type']!r}, expected hubert")
    return HubertConfig.from_hf(config)


def weights_hash(folder: str | Path) -> str:
    """Identity of a folder's weights: a digest of its safetensors files."""
    folder = model_folder(folder)
    files = sorted(folder.glob("*.safetensors")) if (folder / INDEX).is_file() else [folder / SINGLE]
    return "-".join(_digest(file, file.stat().st_size, file.stat().st_mtime_ns)[:32] for file in files)


@functools.cache
def _digest(file: Path, size: int, changed: int) -> str:
    """A large file is read once as long as it stays as it is."""
    return file_digest(file)


def _provenance(folder: str | Path, part: str, width: int, dtype: Dtype) -> dict[str, Any]:
    kind = part_config(folder, part).get("model_type", "")
    found = {"encoder": f"{short_name(folder)} ({kind})", "weights": weights_hash(folder), "width": width}
    return found if dtype == "float32" else found | {"dtype": dtype}


def open_vision(folder: str | Path, dtype: Dtype = "float32") -> Tower:
    """A CLIP vision tower that computes in a type; its parameters, norms and softmax are float32.

    Raises:
      UserError: files missing, damaged or of another shape than config.json says.
    """
    config = vision_config(folder)
    network = VisionTower(config, jnp.dtype(dtype))
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)["params"]
    params = read_tree(CLIP, shapes, open_part(folder, "vision")[1], str(folder))
    return Tower(network, params, _provenance(folder, "vision", config.projection, dtype))


def open_audio(folder: str | Path, dtype: Dtype = "float32") -> Tower:
    """A HuBERT encoder, typed like the vision tower; weight norm folded, with or without a fine-tuned model's prefix.

    Raises:
      UserError: files missing, damaged or of another shape than config.json says.
    """
    config = audio_config(folder)
    network = Hubert(config, jnp.dtype(dtype))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16000)))["params"]
    tensors = HubertTensors(Renamed(open_part(folder, "audio")[1], "hubert."))
    params = read_tree(HUBERT, shapes, tensors, str(folder))
    return Tower(network, params, _provenance(folder, "audio", config.width, dtype))
