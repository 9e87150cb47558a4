"""A run small enough for a test: a trained tokenizer, random features in real shards, a config."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.data.prompts import answer, prompt_parts, prompt_text, question, soft_layout
from affectgpt_jax.data.shard_schema import TEXT, TextRecord
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.inference.runs import HERE, Placement, Step, open_base, open_trained
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import join

EMOTIONS = ("happy", "sad", "angry", "calm")
VISION_WIDTH, AUDIO_WIDTH = 12, 10


def make_tokenizer(folder: Path) -> Path:
    """A byte-level BPE tokenizer of a few hundred tokens, in the Qwen2 layout."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    mode = "multiface_audio_face_text"
    parts = [prompt_parts(mode, "", question(kind), soft_layout(mode)) for kind in ("ovlabel", "description")]
    answers = [answer("ovlabel", labels=word) for word in EMOTIONS]
    tokenizer.train_from_iterator([*map(prompt_text, parts), *answers], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_texts(count: int, split: str) -> list[TextRecord]:
    """Samples of which text and features say the same emotion."""
    return [
        TextRecord(f"{i:04d}", split, f"line {i} {EMOTIONS[i % 4]}", "", (EMOTIONS[i % 4],), f"In the text, line {i}.")
        for i in range(count)
    ]


def make_shards(
    root: Path,
    counts: dict[str, int],
    absent: frozenset[int] = frozenset(),
    encoder: str = "random",
    weights: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Shards of texts and random features; samples of `absent` lack a face. `weights` are hashes by stream."""
    staged = root / "staged"
    texts = {split: make_texts(count, split) for split, count in counts.items()}
    for stream, width in (("face@8", VISION_WIDTH), ("audio@8", AUDIO_WIDTH)):
        entries = {}
        for split, records in texts.items():
            rng = np.random.default_rng([width, len(records)])
            features = rng.normal(size=(len(records), 8, width)).astype(np.float16)
            present = np.array([stream != "face@8" or i not in absent for i in range(len(records))])
            features[~present] = 0
            names = [record.name for record in records]
            entries[split] = [write_feature_shard(staged / stream, split, 0, 1, names, features, present)]
        provenance = {"encoder": encoder, "weights": weights.get(stream, "0"), "width": width}
        publish_stream(staged / stream, root, stream, entries, provenance, (8, width))
    entries = {split: [write_text_shard(staged / TEXT, split, 0, 1, records)] for split, records in texts.items()}
    publish_stream(staged / TEXT, root, TEXT, entries, {"corpus": "tiny"})
    return root


def run_parameters(folder: Path, step: Step = None, place: Placement = HERE) -> dict[str, Any]:
    """All parameters of a run by path, base and all, as they stand in checkpoints."""
    trained = open_trained(folder, step, place)
    return paths(join(trained.params, open_base(trained)))


def tiny_config(folder: Path, **changes: object) -> RunConfig:
    """A config over `folder`/shards and `folder`/tokenizer; `changes` are keys with __ for dots."""
    values: dict = {
        "name": "tiny",
        "weights": {"tokenizer": str(folder / "tokenizer")},
        "data": {
            "shards": str(folder / "shards"),
            "hide": {"face": 0.2, "text": 0.2},
            "max_length": 254,
            "row_length": 256,
            "row_samples": 2,
            "row_targets": 96,
            "threads": 1,
        },
        "model": {
            "absent": True,
            "vision_width": VISION_WIDTH,
            "audio_width": AUDIO_WIDTH,
            "decoder": {
                "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 64,
                "lora": {"rank": 2},
            },
        },
        "train": {
            "output": str(folder / "run"),
            "trainable": ["^fusion/", "^decoder/"],
            "steps": 6,
            "rows": 4,
            "accumulate": 2,
            "checkpoint_every": 3,
            "log_every": 1,
            "optimizer": {"peak": 1e-3, "warmup_steps": 2},
        },
        "evaluate": {"batch": 4, "max_new": 8, "split": "test"},
    }  # fmt: skip
    for key, value in changes.items():
        node = values
        *parents, last = key.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return build_config(json.loads(json.dumps(values)), "tiny")


def make_tiny(folder: Path, absent: frozenset[int] = frozenset({1})) -> Path:
    """Tokenizer and shards in a folder."""
    make_tokenizer(folder / "tokenizer")
    make_shards(folder / "shards", {"train": 23, "validation": 2, "test": 6}, absent)
    return folder
