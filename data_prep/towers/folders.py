"""Towers as Hugging Face folders, for our own readers and for transformers (`CLIPVisionModelWithProjection`,
`HubertModel`)."""

from pathlib import Path
from typing import Any

from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.weights.files import split_position_conv, write_folder
from affectgpt_jax.weights.networks import CLIP, HUBERT
from affectgpt_jax.weights.table import write_tree


def write_vision(folder: Path, config: VisionConfig, params: Any) -> None:
    """Write a vision tower."""
    described = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "projection_dim": config.projection,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
    }
    write_folder(folder, described, dict(write_tree(CLIP, params)))


def write_audio(folder: Path, config: HubertConfig, params: Any) -> None:
    """Write a speech tower."""
    described = {
        "architectures": ["HubertModel"],
        "model_type": "hubert",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "conv_dim": list(config.conv_widths),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "num_feat_extract_layers": len(config.conv_widths),
        "conv_bias": config.conv_bias,
        "feat_extract_norm": config.conv_norm,
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": config.projection_norm,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "do_stable_layer_norm": config.stable_layer_norm,
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        # Only a masked model has an embedding for masked frames.
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
    }
    write_folder(folder, described, split_position_conv(dict(write_tree(HUBERT, params))))
