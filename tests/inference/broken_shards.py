"""A run of the smallest size and feature shards some of whose samples are broken, in all the ways that files break."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from affectgpt_jax.data.shard_schema import TEXT, TextRecord, stream_directory
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.inference.runs import Trained, write_run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from tests.inference.clip_run import STEP, random_tree
from tests.tiny_run import AUDIO_WIDTH, EMOTIONS, VISION_WIDTH, make_tokenizer, tiny_config

WAYS = ("not finite", "face record", "text record", "sound record")
"""In which a sample is broken, in turn."""


def make_broken(folder: Path, count: int, broken: Sequence[int], per_shard: int = 500) -> Path:
    """Make folder/shards with a test split of `count` samples, and folder/run; returns the latter."""
    ways = {sample: WAYS[i % len(WAYS)] for i, sample in enumerate(broken)}
    rng = np.random.default_rng(0)
    shards = -(-count // per_shard)
    root, staged = folder / "shards", folder / "staged"
    streams = {"face@8": VISION_WIDTH, "audio@8": AUDIO_WIDTH}
    entries: dict[str, list] = {stream: [] for stream in (TEXT, *streams)}
    for shard in range(shards):
        samples = range(shard * per_shard, min((shard + 1) * per_shard, count))
        records = [
            TextRecord(f"clip{i:05d}", "test", f"line {i} " + " ".join([EMOTIONS[i % 4]] * (i % 5))) for i in samples
        ]
        names = [record.name for record in records]
        entries[TEXT].append(write_text_shard(staged / TEXT, "test", shard, shards, records))
        for stream, width in streams.items():
            features = rng.normal(size=(len(samples), 8, width)).astype(np.float16)
            present = np.array([stream != "face@8" or i % 7 > 0 or i in ways for i in samples])
            features[~present] = 0
            for i in samples:
                if ways.get(i) == "not finite" and stream == "face@8":
                    features[i - samples[0], 3, 5] = np.nan
            entry = write_feature_shard(staged / stream, "test", shard, shards, names, features, present)
            entries[stream].append(entry)
    for stream, width in streams.items():
        provenance = {"encoder": "random", "weights": "0", "width": width}
        publish_stream(staged / stream, root, stream, {"test": entries[stream]}, provenance, (8, width))
    publish_stream(staged / TEXT, root, TEXT, {"test": entries[TEXT]}, {"corpus": "tiny"})
    for way, stream in (("face record", "face@8"), ("text record", TEXT), ("sound record", "audio@8")):
        for file in sorted(stream_directory(root, stream).glob("*.array_record-*")):
            content = bytearray(file.read_bytes())
            for sample in (sample for sample, found in ways.items() if found == way):
                if (place := content.find(f"clip{sample:05d}".encode())) >= 0:
                    content[place + 1 : place + 5] = b"\xff\x00\xff\x00"
            file.write_bytes(content)
    make_tokenizer(folder / "tokenizer")
    config, tokenizer = resolve(tiny_config(folder))
    params = random_tree(parameter_shapes(AffectGPT(config.model)), seed=1)
    write_run(Trained(config, tokenizer, params, STEP, ""), folder / "run")
    return folder / "run"
