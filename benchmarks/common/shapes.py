"""Sizes of the models that are compared with torch, as transformers' configs name them."""

from typing import Any

Sizes = dict[str, Any]


def _language(vocabulary: int, width: int, layers: int, heads: int, key_heads: int, mlp: int, tied: bool) -> Sizes:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "intermediate_size": mlp, "tie_word_embeddings": tied,
    }  # fmt: skip


def _layers(width: int, layers: int, heads: int, mlp: int) -> Sizes:
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": mlp,
    }  # fmt: skip


def _towers(vision: Sizes, patch: int, projection: int, audio: Sizes, channels: int) -> dict[str, Sizes]:
    """CLIP's vision tower, and a HuBERT built as the large one is."""
    norms = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_dim": [channels] * 7}
    return {
        "vision": vision | {"patch_size": patch, "projection_dim": projection},
        "audio": audio | norms,
    }


LANGUAGE = {
    "100m": _language(32000, 768, 12, 12, 2, 2048, tied=True),
    "60m": _language(32000, 512, 12, 8, 2, 2048, tied=True),
    "20m": _language(8192, 384, 12, 6, 2, 1536, tied=True),
    "7b": _language(152064, 3584, 28, 28, 4, 18944, tied=False),
    "tiny": _language(512, 64, 2, 4, 2, 96, tied=True),
}
"""Qwen2-class decoders; 7b is Qwen2.5-7B's."""

TOWERS = {
    "large": _towers(_layers(1024, 24, 16, 4096), 14, 768, _layers(1024, 24, 16, 4096), 512),
    "base": _towers(_layers(768, 12, 12, 3072), 32, 512, _layers(768, 12, 12, 3072), 512),
    "small": _towers(_layers(384, 6, 6, 1536), 32, 384, _layers(256, 4, 4, 1024), 128),
    "tiny": _towers(_layers(32, 2, 2, 48), 56, 24, _layers(32, 3, 2, 48), 16),
}
"""large: CLIP ViT-L/14 and HuBERT-large; base: CLIP ViT-B/32 and a HuBERT of the base one's width and depth."""
