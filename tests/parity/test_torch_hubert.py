"""The speech encoder against Hugging Face's HuBERT with random weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.weights.files import split_position_conv, write_folder
from affectgpt_jax.weights.networks import HUBERT
from affectgpt_jax.weights.table import write_tree
from affectgpt_jax.weights.towers import open_audio
from tests.parity.torch_models import as_torch, randomise, saved, torch, transformers, uniform

EXACT = {"atol": 1e-5, "rtol": 1e-5}

STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
BASE = {"do_stable_layer_norm": False, "feat_extract_norm": "group"}
SIZES: dict[str, dict[str, Any]] = {
    "stable_biased_even_kernel": STABLE | {"conv_bias": True, "num_conv_pos_embeddings": 8},
    "stable_unbiased_odd_kernel": STABLE | {"conv_bias": False, "num_conv_pos_embeddings": 7},
    "base_unbiased_even_kernel": BASE | {"conv_bias": False, "num_conv_pos_embeddings": 6},
    "base_biased_odd_kernel_no_projection_norm": BASE
    | {"conv_bias": True, "num_conv_pos_embeddings": 5, "feat_proj_layer_norm": False},
}


def oracle(name: str) -> Any:
    config = transformers.HubertConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=40,
        conv_dim=(8, 12, 10),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        num_conv_pos_embedding_groups=2,
        **SIZES[name],
    )
    return randomise(transformers.HubertModel(config), seed=1)


@pytest.mark.parametrize("name", SIZES)
def test_hidden_states(name: str, tmp_path: Path) -> None:
    """Every hidden state and the pooled feature, for a number of samples that the strides do not divide."""
    model = oracle(name)
    saved(model, tmp_path)
    tower, params, _ = open_audio(tmp_path)
    wave = uniform(2, 3, 707)
    with torch.no_grad():
        output = model(as_torch(wave), output_hidden_states=True)
    # With stable layer norm this version of the library lists the last state before the final norm; the reference's
    # version, like ours, lists the model's output (the goldens hold it).
    expected = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])

    @jax.jit
    def apply(params: Any, x: Any) -> Any:
        return tower.apply({"params": params}, x, method="hidden_states"), tower.apply({"params": params}, x)

    hidden, feature = apply(params, wave)
    assert hidden.shape == (5, 3, tower.config.frames(707), 24)
    np.testing.assert_allclose(hidden, expected, **EXACT)
    np.testing.assert_allclose(feature, expected[-4:].mean(dim=0).mean(dim=1), **EXACT)


def test_old_spelling_of_the_weight_norm(tmp_path: Path) -> None:
    """`weight_g`, `weight_v` and the parametrised spelling are the same weights, and torch's folded ones."""
    model = oracle("stable_biased_even_kernel")
    config, tensors = saved(model, tmp_path / "new")
    spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    renamed = dict(tensors)
    for new, old in spelling.items():
        key = f"encoder.pos_conv_embed.conv.{new}"
        renamed[f"encoder.pos_conv_embed.conv.{old}"] = renamed.pop(key)
    write_folder(tmp_path / "old", config, renamed)

    new, old = open_audio(tmp_path / "new").params, open_audio(tmp_path / "old").params
    assert jax.tree.all(jax.tree.map(np.array_equal, new, old))
    folded = model.encoder.pos_conv_embed.conv.weight.detach().numpy()
    np.testing.assert_allclose(new["position_conv"]["kernel"].transpose(2, 1, 0), folded, rtol=1e-6, atol=1e-7)


def test_exported_folder_opens(tmp_path: Path) -> None:
    """What we write, Hugging Face reads: every tensor bit for bit, the positional convolution in its folded form."""
    model = oracle("base_biased_odd_kernel_no_projection_norm")
    config, _ = saved(model, tmp_path / "theirs")
    params = open_audio(tmp_path / "theirs").params
    write_folder(tmp_path / "ours", config, split_position_conv(dict(write_tree(HUBERT, params))))
    again = transformers.HubertModel.from_pretrained(tmp_path / "ours")
    theirs, ours = model.state_dict(), again.state_dict()
    exact = [name for name in theirs if "parametrizations" not in name and name != "masked_spec_embed"]
    assert len(exact) == len(theirs) - 3
    for name in exact:
        assert torch.equal(ours[name], theirs[name]), name
    conv, expected = again.encoder.pos_conv_embed.conv.weight, model.encoder.pos_conv_embed.conv.weight
    torch.testing.assert_close(conv, expected, rtol=1e-6, atol=1e-7)
