"""All that lies between the encoders and the language model: projectors, token fusion, pre-fusion.

A folder with `fusion.safetensors`, whose tensors bear the names of the authors' checkpoints, and `config.json`:
`mode` (input mode of the prompt), `soft` (modalities with soft tokens, in the order of the prompt's slots), `fused`
(visual stream that pre-fusion mixes with the audio), `prefusion`, `video`, `audio`, `image` (types of fusion),
`tokens`, `positions` (soft tokens and length of the position table by source), `qformer` (its sizes), `absent`
(whether `absent_*` holds a learned feature for each missing stream), `vision_width`, `audio_width` (widths of the
encoders' features), `width` (of the language model).
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.files import Item, read_file, write_file
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.networks import TRAINED
from affectgpt_jax.weights.table import nest, paths, read_tree, write_tree

WEIGHTS = "fusion.safetensors"


def fusion_config(config: ModelConfig) -> dict[str, Any]:
    """The settings as a folder holds them."""
    wanted = needs(config.mode)
    kept = ("mode", "prefusion", "video", "audio", "image", "absent", "vision_width", "audio_width")
    found = config.model_dump(mode="json")
    qformer = {key: value for key, value in found["qformer"].items() if key != "dropout"}
    return {key: found[key] for key in kept} | {
        "soft": list(wanted.soft),
        "fused": wanted.fused,
        "tokens": found["tokens"],
        "positions": found["positions"],
        "qformer": qformer,
        "width": config.decoder.width,
    }


def fusion_items(trained: Trained, prefix: str = "") -> list[Item]:
    """The tensors, float32."""
    tree = nest({path: x for path, x in paths(trained.params).items() if path.startswith("fusion/")})
    return [Item(prefix + name, x.shape, x.dtype, partial(np.asarray, x)) for name, x in write_tree(TRAINED, tree)]


def write_fusion(trained: Trained, folder: Path) -> None:
    """Write the folder; it is created."""
    folder.mkdir()
    write_file(folder / WEIGHTS, fusion_items(trained))
    (folder / "config.json").write_text(json.dumps(fusion_config(trained.config.model), indent=2) + "\n")


def read_fusion(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """Read the tensors for a model.

    Raises:
      UserError: no such folder, or one of another model.
    """
    tensors = read_file(folder / WEIGHTS)
    halved = [f"{name} ({x.dtype.name})" for name, x in tensors.items() if x.dtype != np.float32]
    if halved:
        raise UserError(f"{folder / WEIGHTS} must be float32, as it is trained; it has {', '.join(halved[:3])}")
    return read_tree(TRAINED, fusion_shapes(config), tensors, str(folder / WEIGHTS))


def fusion_shapes(config: ModelConfig) -> dict[str, Any]:
    """The fusion's parameters as shapes."""
    flat = paths(parameter_shapes(AffectGPT(config)))
    return nest({path: x for path, x in flat.items() if path.startswith("fusion/")})
