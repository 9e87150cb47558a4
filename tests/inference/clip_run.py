"""A run over real clips at the smallest size, made in seconds: synthetic corpus, random towers, shards, checkpoint."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from affectgpt_jax.weights.networks import CLIP, HUBERT
from affectgpt_jax.weights.table import write_tree
from affectgpt_jax.weights.trainable import split
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import read_mer_caption_plus
from data_prep.synth import SplitCounts, write_corpus
from tests.tiny_run import make_tokenizer, tiny_config

VISION = {
    "model_type": "clip",
    "projection_dim": 12,
    "vision_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 16,
    },
}
AUDIO = {
    "model_type": "hubert",
    "hidden_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "conv_dim": [8, 8],
    "conv_kernel": [40, 10],
    "conv_stride": [40, 10],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STEP = 7


def random_tree(shapes: Any, seed: int) -> Any:
    """Arrays of the shapes, with values large enough that other inputs give other outputs."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)


def write_towers(folder: Path, seed: int = 0) -> None:
    """Random towers in Hugging Face layout, folder/vision and folder/audio."""
    vision, audio = VisionConfig.from_hf(VISION), HubertConfig.from_hf(AUDIO)
    pixels, sound = jnp.zeros((1, vision.image_size, vision.image_size, 3)), jnp.zeros((1, 4000))
    for name, config, table, network, example in (
        ("vision", VISION, CLIP, VisionTower(vision), pixels),
        ("audio", AUDIO, HUBERT, Hubert(audio), sound),
    ):
        shapes: Any = jax.eval_shape(network.init, jax.random.key(0), example)["params"]
        write_folder(folder / name, config, dict(write_tree(table, random_tree(shapes, seed))))


def make_clip_shards(folder: Path) -> RunConfig:
    """Make folder/corpus (its sound in the videos alone), the towers and folder/shards."""
    towers = {f"weights__{name}": str(folder / name) for name in ("vision", "audio")}
    config = tiny_config(folder, prepare__corpus=str(folder / "corpus"), prepare__decode_threads=1, **towers)
    write_corpus(folder / "corpus", SplitCounts(1, 1, 3), seed=0, workers=1)
    for wav in (folder / "corpus" / "audio").iterdir():
        wav.unlink()
    write_towers(folder)
    listing = read_mer_caption_plus(folder / "corpus")
    settings = PrepareSettings(batch_clips=4, decode_threads=1, progress=False)
    encoders = Encoders(config.weights.vision, config.weights.audio, batch=32)
    prepare(listing.records, encoders, settings, config.data.shards, listing.problems)
    return config


def make_clip_run(folder: Path) -> Path:
    """Make all of it: shards, tokenizer, and folder/run with a checkpoint of random parameters."""
    make_tokenizer(folder / "tokenizer")
    config, _ = resolve(make_clip_shards(folder))
    params = random_tree(parameter_shapes(AffectGPT(config.model)), seed=1)
    trainable, _ = split(config.model, params, config.train.trainable)
    save_config(config, folder / "run" / "config.yaml")
    checkpoints = Checkpoints(folder / "run" / "checkpoints", keep=1)
    checkpoints.save(STEP, {"params": jax.tree.map(jnp.asarray, trainable)}, {"corpus": "", "step": STEP})
    checkpoints.close()
    return folder / "run"
