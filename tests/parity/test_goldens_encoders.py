"""The encoders from raw sound and frames to features, against the reference's own numbers."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.data.preprocess import clip_pixels, normalise_audio, truncate_frames
from tests.parity import goldens

FOLDER = goldens.FOLDER / "preprocess"
AUDIO = sorted(path.stem for path in FOLDER.glob("a_*.npz"))
VISION = sorted(path.stem for path in FOLDER.glob("b_*.npz"))

# The golden folder's README: encoders differ by up to 7e-6 (of 6) from the same model in float64.
ENCODER = {"atol": 2e-5, "rtol": 1e-5}
INPUT = {"atol": 1e-5, "rtol": 1e-5}


def opened(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file}


def groups(data: dict[str, np.ndarray], ending: str) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each folder inside the file that holds one called `ending`."""
    prefixes = [key.removesuffix(ending) for key in data if f"/{key}".endswith(f"/{ending}")]
    return {
        prefix: {key.removeprefix(prefix): x for key, x in data.items() if key.startswith(prefix)}
        for prefix in prefixes
    }


def audio_tower(name: str, data: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """The file's own tower where it brings one, else the one all golden models share."""
    own = {key.removeprefix("hubert/"): x for key, x in data.items() if key.startswith("hubert/")}
    if not own:
        return goldens.audio()
    return goldens.audio_tower(json.loads((FOLDER / f"{name}_config.json").read_text()), own)


@pytest.mark.parametrize("name", AUDIO)
def test_audio_encoder(name: str) -> None:
    """Raw clips, normalised over the whole batch, to all hidden states and the pooled feature (QUIRKS 1, 5)."""
    data = opened(name)
    tower, params = audio_tower(name, data)

    @jax.jit
    def encode(x: Any) -> Any:
        return tower.apply({"params": params}, x, method="hidden_states"), tower.apply({"params": params}, x)

    cases = groups(data, "raw_audio")
    assert cases
    for prefix, case in cases.items():
        raw = case["raw_audio"]
        samples, clips = raw.shape[:2]
        values = normalise_audio(raw[:, :, 0].reshape(samples * clips, -1))
        if "input_values" in case:
            np.testing.assert_allclose(values, case["input_values"], err_msg=prefix, **INPUT)
        hidden, feature = encode(values)
        states = [key for key in case if key.startswith("hidden_states_")]
        assert len(states) == len(hidden) == tower.config.layers + 1
        for key in states:
            found = hidden[int(key.rpartition("_")[2])]
            np.testing.assert_allclose(found, case[key], err_msg=prefix + key, **ENCODER)
        np.testing.assert_allclose(feature.reshape(samples, clips, -1), case["embedding"], err_msg=prefix, **ENCODER)

        alone = case.get("embedding_when_encoded_one_sample_at_a_time")
        if alone is not None:
            each = np.concatenate([normalise_audio(sample) for sample in raw[:, :, 0]])
            found = encode(each)[1].reshape(alone.shape)
            np.testing.assert_allclose(found, alone, err_msg=prefix, **ENCODER)
            assert np.abs(found - case["embedding"]).max() > 100 * ENCODER["atol"]


@pytest.mark.parametrize("name", VISION)
def test_visual_encoder(name: str) -> None:
    """Raw frames over bytes and pixel values to hidden states, the pooled token and features (QUIRKS 8-9)."""
    data = opened(name)
    tower, params = goldens.vision()

    @jax.jit
    def encode(x: Any) -> Any:
        hidden = tower.apply({"params": params}, x, method="hidden")
        return hidden, tower.apply({"params": params}, hidden, method="pool"), tower.apply({"params": params}, x)

    cases = groups(data, "embedding")
    assert cases
    compared = set()
    for prefix, case in cases.items():
        raw = case["raw_frames_uint8" if "raw_frames_uint8" in case else "raw_frames"]
        frames = truncate_frames(raw.transpose(0, 2, 3, 4, 1).reshape(-1, *raw.shape[3:], 3))
        pixels = clip_pixels(frames, tower.config.image_size)
        np.testing.assert_allclose(pixels, case["pixel_values"], err_msg=prefix, **INPUT)
        hidden, pooled, features = encode(pixels.transpose(0, 2, 3, 1))
        found = {"vision_last_hidden": hidden, "vision_pooled": pooled}
        found["embedding"] = features.reshape(case["embedding"].shape)
        for key in found.keys() & case.keys():
            np.testing.assert_allclose(found[key], case[key], err_msg=prefix + key, **ENCODER)
            compared.add(key)
    assert compared == {"vision_last_hidden", "vision_pooled", "embedding"}
