"""Golden models: their sizes, weights and batches, as our model takes them."""

import json
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import (
    DecoderConfig,
    HubertConfig,
    LoraConfig,
    ModelConfig,
    QFormerConfig,
    SoftTokens,
    VisionConfig,
)
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.prompts import soft_layout
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.weights.files import HubertTensors
from affectgpt_jax.weights.networks import CLIP, DECODER, HUBERT, TRAINED
from affectgpt_jax.weights.table import nest, paths, read_tree
from tests.conftest import reference_folder

FOLDER = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens")
MODELS = FOLDER / "models"
LORA_ALPHA = 32.0  # the reference's constant; the golden settings vary the rank only


def settings() -> list[str]:
    """Names of the golden settings in the folder."""
    return sorted(path.stem for path in MODELS.glob("*.json") if "setting" in json.loads(path.read_text()))


def on_device(tree: Any) -> Any:
    """Host arrays as jax's."""
    return jax.tree.map(jnp.asarray, tree)


def find(**wanted: Any) -> str:
    """The first setting whose model's config has these values; skips where none has."""
    for name in settings():
        config = golden(name).config
        if all(getattr(config, key) == value for key, value in wanted.items()):
            return name
    pytest.skip(f"no golden setting with {wanted}")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(MODELS / f"{name}.npz") as file:
        return {key: file[key] for key in file}


@cache
def base_weights(prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays("base_weights").items() if key.startswith(prefix)}


@cache
def base_configs() -> dict[str, Any]:
    return json.loads((MODELS / "base_configs.json").read_text())


class Golden(NamedTuple):
    """One golden setting."""

    name: str
    facts: dict[str, Any]
    data: dict[str, np.ndarray]
    config: ModelConfig

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in self.data.items() if key.startswith(prefix)}

    @property
    def model(self) -> AffectGPT:
        return AffectGPT(self.config)


def golden(name: str, **decoder: Any) -> Golden:
    """Open a setting; `decoder` changes settings of its decoder (remat)."""
    facts = json.loads((MODELS / f"{name}.json").read_text())
    s, spec = facts["setting"], facts["spec"]
    bert = spec["bert"]
    lora = LoraConfig(rank=spec["lora_r"], alpha=LORA_ALPHA)
    config = ModelConfig(
        mode=s["mode"],
        vision_width=base_configs()["clip"]["projection_dim"],
        audio_width=base_configs()["hubert"]["hidden_size"],
        prefusion=s["multi"],
        video=s["video"],
        audio=s["audio"],
        image=s["image"],
        tokens=SoftTokens(multi=s["nm"], audio=s["na"], video=s["nv"], image=s["ni"]),
        qformer=QFormerConfig(
            width=bert["hidden_size"],
            heads=bert["num_attention_heads"],
            mlp_width=bert["intermediate_size"],
            layers=bert.get("num_hidden_layers", 2),
        ),
        decoder=DecoderConfig.from_hf(base_configs()["qwen"], lora=lora, **decoder),
    )
    return Golden(name, facts, arrays(name), config)


def shapes(model: Any, *args: Any, **kwargs: Any) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]


def model_params(g: Golden, trained: dict[str, np.ndarray] | None = None) -> dict[str, Any]:
    """The setting's parameters, its trained ones from `w/` unless given."""
    abstract = paths(shapes(g.model, method="initialise"))
    adapter = lambda path: path.startswith("fusion") or "lora" in path  # noqa: E731
    base = {path: leaf for path, leaf in abstract.items() if not adapter(path)}
    top = {path: leaf for path, leaf in abstract.items() if adapter(path)}
    trained = g.group("w/") if trained is None else trained
    flat = paths(read_tree(DECODER, nest(base), base_weights("qwen/"), "base weights"))
    return on_device(nest(flat | paths(read_tree(TRAINED, nest(top), trained, g.name))))


@cache
def vision() -> tuple[VisionTower, Any]:
    config = base_configs()["clip"]
    tower = VisionTower(VisionConfig.from_hf(config))
    size = tower.config.image_size
    abstract = shapes(tower, jnp.zeros((1, size, size, 3)))
    return tower, on_device(read_tree(CLIP, abstract, base_weights("clip/"), "clip"))


def audio_tower(config: dict[str, Any], weights: dict[str, np.ndarray]) -> tuple[Hubert, Any]:
    tower = Hubert(HubertConfig.from_hf(config))
    abstract = shapes(tower, jnp.zeros((1, 1000)))
    return tower, on_device(read_tree(HUBERT, abstract, HubertTensors(weights), "hubert"))


@cache
def audio() -> tuple[Hubert, Any]:
    return audio_tower(base_configs()["hubert"], base_weights("hubert/"))


@cache
def _jitted_audio() -> Any:
    tower, params = audio()
    return jax.jit(lambda x: tower.apply({"params": params}, x))


def encode_audio(clips: np.ndarray) -> jax.Array:
    """Features [n, width] of clips [n, samples] by the tower all settings share, compiled once a shape."""
    return _jitted_audio()(clips)


def encoder_features(g: Golden) -> dict[str, jax.Array]:
    """The reference's encoder outputs, [b, t, width] by stream."""
    names = {"face": "out/visual_encoder_face", "frame": "out/visual_encoder_frame"}
    names |= {"image": "out/visual_encoder_image", "audio": "out/acoustic_encoder"}
    return {stream: jnp.asarray(g.data[key]) for stream, key in names.items() if key in g.data}


def soft_index(g: Golden, ids: np.ndarray) -> np.ndarray:
    """Number the placeholders of each row as `Batch.soft_index` does."""
    tokenizer = open_tokenizer(MODELS / "tokenizer_tiny")
    tokens = g.config.tokens
    layout = soft_layout(g.config.mode, multi=tokens.multi, audio=tokens.audio, video=tokens.video, image=tokens.image)
    index = np.zeros(ids.shape, np.int32)
    for modality, slots in layout.items():
        for row in range(ids.shape[0]):
            where = np.flatnonzero(ids[row] == tokenizer.placeholders[modality])
            index[row, where] = slots
    return index


def batch(g: Golden) -> Batch:
    """The golden collated batch as ours: one sample a row."""
    ids, labels, mask = g.data["in/input_ids"], g.data["in/labels"], g.data["in/attention_masks"]
    rows, length = ids.shape
    targets = [np.flatnonzero(row != -100) for row in labels]
    most = max(len(t) for t in targets)
    position, target, weight = (np.zeros((rows, most), dtype) for dtype in (np.int32, np.int32, np.float32))
    for row, where in enumerate(targets):
        position[row, : len(where)] = where - 1
        target[row, : len(where)] = labels[row, where]
        weight[row, : len(where)] = 1.0
    features = {stream: x[:, None] for stream, x in encoder_features(g).items()}
    host = Batch(
        tokens=ids.astype(np.int32),
        segment_ids=mask.astype(np.int32),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape),
        soft_index=soft_index(g, ids),
        target_positions=position,
        target_ids=target,
        loss_weight=weight,
        features=features,
        present={stream: np.ones(x.shape[:2], bool) for stream, x in features.items()},
    )
    return on_device(host)
