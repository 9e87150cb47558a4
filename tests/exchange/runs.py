"""Runs made of the golden settings: a base folder, encoders' folders, and what was trained."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from affectgpt_jax.config import build_config
from affectgpt_jax.data.prompts import question
from affectgpt_jax.inference.answering import Query
from affectgpt_jax.inference.runs import Trained
from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.initial import resolve
from affectgpt_jax.weights.table import nest, paths
from tests.parity import goldens
from tests.parity.test_goldens_generation import prompt

STEP = 3


def write_bases(folder: Path, dtype: Any = jnp.float32) -> None:
    """The golden base model and encoders as Hugging Face folders."""
    configs = goldens.base_configs()
    for name, prefix in (("language", "qwen/"), ("vision", "clip/"), ("audio", "hubert/")):
        tensors = goldens.base_weights(prefix)
        # The golden file spells the normed weight in both ways.
        tensors = {key: x for key, x in tensors.items() if not key.endswith((".weight_g", ".weight_v"))}
        config = dict(configs[prefix.removesuffix("/")])
        if name == "language":
            tensors = {key: x.astype(dtype) for key, x in tensors.items()}
            config |= {"torch_dtype": jnp.dtype(dtype).name}
        write_folder(
            folder / name, config | {"model_type": {"language": "qwen2", "vision": "clip"}.get(name, "hubert")}, tensors
        )


def golden_run(name: str, folder: Path, trained: dict[str, Any] | None = None, **changes: Any) -> Trained:
    """A setting as a run over `folder` (see `write_bases`).

    Args:
      name: the setting.
      folder: holds the bases.
      trained: its tensors by the reference's names; those before training by default.
      **changes: keys of the model's config.
    """
    g = goldens.golden(name)
    streams = {
        stream: f"{stream}@{x.shape[1]}" for stream, x in goldens.encoder_features(g).items() if stream != "image"
    }
    values = {
        "name": name,
        "model": json.loads(g.config.model_dump_json()) | changes,
        "weights": {part: str(folder / part) for part in ("language", "vision", "audio")}
        | {"tokenizer": str(goldens.MODELS / "tokenizer_tiny")},
        "prepare": {"streams": list(streams.values()) or ["face@8"]},
        "train": {"optimizer": {"epoch_steps": STEP}},
    }
    config, tokenizer = resolve(build_config(values, name))
    flat = paths(goldens.model_params(g._replace(config=config.model), trained))
    kept = {path: x for path, x in flat.items() if path.startswith("fusion/") or "/lora_" in path}
    return Trained(config, tokenizer, nest(kept), STEP, name)


def golden_queries(name: str) -> list[Query]:
    """The samples for whose prompts the reference generated."""
    g = goldens.golden(name)
    count = sum(key.endswith("/ids_20") for key in g.data)
    found = []
    for i, sample in enumerate(g.facts["samples"][:count]):
        features = {stream: x[0, 0] for stream, x in prompt(g, i, 0).features.items()}
        found.append(Query(str(i), sample["subtitle"], question("ovlabel"), features))
    return found
