"""A whole run at the smallest size: synthetic clips, random towers, shards, a tokenizer, and two steps of training."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.data.prompts import BOS, EOS
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.training.loop import train
from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.networks import CLIP, HUBERT
from affectgpt_jax.weights.table import write_tree
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import read_mer_caption_plus
from data_prep.synth import SplitCounts, write_corpus

VISION = {
    "model_type": "clip",
    "projection_dim": 8,
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
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [40, 10],
    "conv_stride": [40, 10],
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def write_towers(folder: Path, seed: int = 0) -> None:
    """Random towers in Hugging Face layout, folder/vision and folder/audio."""
    vision, audio = VisionConfig.from_hf(VISION), HubertConfig.from_hf(AUDIO)
    size = vision.image_size
    for name, config, table, network, example in (
        ("vision", VISION, CLIP, VisionTower(vision), jnp.zeros((1, size, size, 3))),
        ("audio", AUDIO, HUBERT, Hubert(audio), jnp.zeros((1, 4000))),
    ):
        params: Any = network.init(jax.random.key(seed), example)["params"]
        # The towers' small initial weights would make all clips alike.
        params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
        write_folder(folder / name, config, dict(write_tree(table, params)))


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level tokenizer learned from a few texts, with Qwen2's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def tiny_config(folder: Path, **model: Any) -> RunConfig:
    """The config of the run that `make_tiny_run` makes in a folder."""
    decoder = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 32, "lora": {"rank": 0}}
    return build_config(
        {
            "name": "tiny",
            "weights": {name: str(folder / name) for name in ("vision", "audio", "tokenizer")},
            "prepare": {"corpus": str(folder / "corpus"), "batch_clips": 4, "decode_threads": 1},
            "data": {"shards": str(folder / "shards"), "max_length": 510, "row_length": 512, "row_samples": 2},
            "model": {"absent": True, "decoder": decoder, **model},
            "train": {"output": str(folder / "run"), "trainable": ["^fusion/", "^decoder/"], "steps": 2, "rows": 2},
            "evaluate": {"batch": 2, "max_new": 8},
        },
        "the tiny run",
    )


def make_tiny_run(folder: Path, **model: Any) -> RunConfig:
    """Make folder/corpus (its sound in the videos alone), folder/shards and folder/run; seconds."""
    config = tiny_config(folder, **model)
    corpus = folder / "corpus"
    write_corpus(corpus, SplitCounts(4, 1, 3), seed=0, workers=1)
    for wav in (corpus / "audio").iterdir():
        wav.unlink()
    write_towers(folder)
    listing = read_mer_caption_plus(corpus)
    write_tokenizer(folder / "tokenizer", [text for r in listing.records for text in r.text[2:] if isinstance(text, str)])
    encoders = Encoders(config.weights.vision, config.weights.audio, batch=32)
    settings = PrepareSettings(batch_clips=4, decode_threads=1, progress=False)
    prepare(listing.records, encoders, settings, config.data.shards, listing.problems)
    train(config, folder / "run")
    return config
