"""Randomly initialised towers in Hugging Face folders, small enough for a test."""

from pathlib import Path

import jax
import jax.numpy as jnp

from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.weights.files import split_position_conv, write_folder
from affectgpt_jax.weights.networks import CLIP, HUBERT
from affectgpt_jax.weights.table import write_tree

VISION = {
    "model_type": "clip",
    "projection_dim": 12,
    "vision_config": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
        "image_size": 28, "patch_size": 14,
    },
}  # fmt: skip
AUDIO = {
    "model_type": "hubert", "hidden_size": 10, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 16, "conv_dim": [8, 8], "conv_kernel": [20, 20], "conv_stride": [16, 20],
    "conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def write_towers(folder: Path) -> Path:
    """`folder`/vision and `folder`/audio."""
    vision, audio = VisionTower(VisionConfig.from_hf(VISION)), Hubert(HubertConfig.from_hf(AUDIO))
    params = jax.jit(vision.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    write_folder(folder / "vision", VISION, dict(write_tree(CLIP, params)))
    params = jax.jit(audio.init)(jax.random.key(1), jnp.zeros((1, 3200)))["params"]
    write_folder(folder / "audio", AUDIO, split_position_conv(dict(write_tree(HUBERT, params))))
    return folder
