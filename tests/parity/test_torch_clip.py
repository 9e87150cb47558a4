"""The vision tower against Hugging Face's CLIP with random weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.networks import CLIP
from affectgpt_jax.weights.table import write_tree
from affectgpt_jax.weights.towers import open_vision
from tests.parity.torch_models import as_torch, randomise, saved, torch, transformers, uniform

EXACT = {"atol": 1e-5, "rtol": 1e-5}

SIZES: dict[str, dict[str, Any]] = {
    "quick_gelu": {"hidden_size": 32, "num_attention_heads": 4, "patch_size": 14, "hidden_act": "quick_gelu"},
    "gelu_three_heads": {"hidden_size": 24, "num_attention_heads": 3, "patch_size": 7, "hidden_act": "gelu"},
}
COMMON = {"intermediate_size": 40, "num_hidden_layers": 2, "image_size": 28}


def vision_only(sizes: dict[str, Any]) -> Any:
    config = transformers.CLIPVisionConfig(**COMMON, **sizes, projection_dim=20)
    return randomise(transformers.CLIPVisionModelWithProjection(config), seed=1)


def both_towers(sizes: dict[str, Any]) -> Any:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text |= {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=COMMON | sizes, projection_dim=20)
    return randomise(transformers.CLIPModel(config), seed=2)


@pytest.mark.parametrize("name", SIZES)
def test_features(name: str, tmp_path: Path) -> None:
    """The last hidden states, the pooled class token and its projection; the text tower of a whole model is left."""
    pixels = 2 * uniform(3, 3, 28, 28, 3)
    for build in (vision_only, both_towers):
        model = build(SIZES[name])
        saved(model, tmp_path / build.__name__)
        tower, params, _ = open_vision(tmp_path / build.__name__)
        inputs = as_torch(pixels.transpose(0, 3, 1, 2))
        with torch.no_grad():
            expected = model.vision_model(inputs)
            features = model.visual_projection(expected.pooler_output)
            official = model(inputs).image_embeds if build is vision_only else model.get_image_features(inputs)
        torch.testing.assert_close(getattr(official, "pooler_output", official), features)

        @jax.jit
        def apply(params: Any, x: Any) -> Any:
            hidden = tower.apply({"params": params}, x, method="hidden")
            pooled = tower.apply({"params": params}, hidden, method="pool")
            return hidden, pooled, tower.apply({"params": params}, x)

        hidden, pooled, found = apply(params, pixels)
        np.testing.assert_allclose(hidden, expected.last_hidden_state, **EXACT)
        np.testing.assert_allclose(pooled, expected.pooler_output, **EXACT)
        np.testing.assert_allclose(found, features, **EXACT)


def test_exported_folder_opens(tmp_path: Path) -> None:
    """What we write, Hugging Face reads, bit for bit."""
    model = vision_only(SIZES["gelu_three_heads"])
    config, _ = saved(model, tmp_path / "theirs")
    tower = open_vision(tmp_path / "theirs")
    write_folder(tmp_path / "ours", config, dict(write_tree(CLIP, tower.params)))
    again = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
