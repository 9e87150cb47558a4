"""How fast samples come from shards: raw reads, TFDS, tokenised and packed; and clip by clip from media.

  python benchmarks/input_pipeline.py
  python benchmarks/input_pipeline.py --samples 20000 --passes 1

Writes a corpus of feature records by the program's own writer (face@8 of 768 and audio@8 of 1,024 numbers, texts of
MER-Caption+'s lengths: 28 KB and about 200 tokens a sample) into a temporary folder, 2.9 GB for 100,000 samples, and
reads it back in random order from a warm page cache, in this one process. Beside it stands the original's way: every
sample is decoded from its media and tokenised, one after the other. The clips are synthetic, 2 to 4 s long and small;
real ones take longer.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.data.clips import MediaReader
from affectgpt_jax.data.examples import BatchShape, Sample, collate_rows
from affectgpt_jax.data.prompts import layout_size
from affectgpt_jax.data.shard_schema import TEXT, TextRecord, stream_directory
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.prefetch import prefetch
from affectgpt_jax.training.data import RunData, make_batches, make_data, open_training_shards
from affectgpt_jax.weights.initial import resolve
from data_prep.corpora import read_corpus
from data_prep.synth import SplitCounts, write_corpus
from data_prep.synth.tokenizer import write_tokenizer

STREAMS = {"face@8": 768, "audio@8": 1024}
SHARD = 4096
READ = 64
"""Samples of one batched read."""
TFDS_READ = 1024
"""The same through TFDS, which pays for each file of each read."""
STEP_SECONDS = 0.05
RUNS = 3
WORDS = """
the a person seems happy sad worried because of what he she says and voice rises with slight tremble while face shows
raised eyebrows mouth open speaking quickly about something that happened yesterday at work when boss called him into
office tone softens suggesting relief overall emotional state can be described as
"""


Rates = list[float]
"""Samples a second, run by run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--passes", type=int, default=5, help="of the memory measurement")
    parser.add_argument("--clips", type=int, default=24, help="decoded from media")
    parser.add_argument("--tokenizer", help="Qwen2.5 folder; default AFFECTGPT_TOKENIZERS/qwen2.5, else a small one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="affectgpt-bench-") as name:
        folder = Path(name)
        os.environ["AFFECTGPT_CACHE_DIR"] = str(folder / "cache")
        config = run_config(folder, args.tokenizer or own_tokenizer(folder))
        seconds = timed(lambda: write_shards(folder / "shards", args.samples))
        size = sum(path.stat().st_size for path in (folder / "shards").rglob("*.array_record*"))
        print(f"{args.samples:,} samples written in {seconds:.0f} s, {size / 1e9:.1f} GB; {os.cpu_count()} cores")
        print(f"a second, median and spread of {RUNS} runs, of {args.passes} passes where rows are packed\n")
        config, tokenizer = resolve(config)
        corpus = open_training_shards(config, verify=False)
        raw_reads(corpus.corpora[0])
        through_tfds(folder / "shards", args.samples)
        say = lambda line: print(f"  {line}")  # noqa: E731
        data = make_data(config, tokenizer, corpus, say)
        seconds = timed(lambda: make_data(config, tokenizer, corpus, lambda line: None))
        print(f"  planned again with the tokens kept: {seconds:.2f} s\n")
        packed = tokenised_and_packed(config, tokenizer, data, args.passes)
        data_wait(config, tokenizer, data)
        media = clip_by_clip(folder, tokenizer, data, args.clips)
        least, most = min(packed) / max(media), max(packed) / min(media)
        ratio = statistics.median(packed) / statistics.median(media)
        print(f"\nshards against media clip by clip: {ratio:,.0f}x ({least:,.0f} - {most:,.0f})")


def own_tokenizer(folder: Path) -> str:
    """Qwen2.5's where it is at hand, else one trained on the synthetic language."""
    named = Path(os.environ.get("AFFECTGPT_TOKENIZERS", "../shared/tokenizers")) / "qwen2.5"
    if not named.is_dir():
        write_tokenizer(folder / "tokenizer", seed=0, clips=500, vocabulary=2000)
        return str(folder / "tokenizer")
    return str(named)


def run_config(folder: Path, tokenizer: str) -> RunConfig:
    """Rows of 2,048 tokens, eight a step: about 80 samples."""
    return build_config(
        {
            "weights": {"tokenizer": tokenizer},
            "data": {"shards": str(folder / "shards"), "row_length": 2048, "row_targets": 2048, "row_samples": 24},
            "train": {"rows": 8, "steps": 10**9},
        },
        "benchmark",
    )


def write_shards(root: Path, count: int) -> None:
    """Random features and texts in the lengths of the corpus: descriptions of 150 words, 14 words said, 4 labels."""
    rng, vocabulary = np.random.default_rng(0), WORDS.split()
    parts = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]

    def sentence(words: int) -> str:
        return " ".join(vocabulary[i] for i in rng.integers(len(vocabulary), size=max(words, 3))) + "."

    def text(i: int) -> TextRecord:
        labels = tuple(vocabulary[j] for j in rng.integers(len(vocabulary), size=4))
        said, reason = sentence(int(rng.normal(14, 5))), sentence(int(np.clip(rng.normal(150, 45), 40, 400)))
        return TextRecord(f"clip_{i:08d}", "train", said, "", labels, reason)

    staged = root / "staged"
    texts = [
        write_text_shard(staged / TEXT, "train", number, len(parts), [text(i) for i in part])
        for number, part in enumerate(parts)
    ]
    publish_stream(staged / TEXT, root, TEXT, {"train": texts}, {"corpus": "random"})
    for stream, width in STREAMS.items():
        entries = []
        for number, part in enumerate(parts):
            features = rng.standard_normal((len(part), 8, width), np.float32).astype(np.float16)
            names, present = [f"clip_{i:08d}" for i in part], np.ones(len(part), bool)
            entries.append(write_feature_shard(staged / stream, "train", number, len(parts), names, features, present))
        provenance = {"encoder": "random", "weights": "0", "width": width}
        publish_stream(staged / stream, root, stream, {"train": entries}, provenance, (8, width))


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rates_of(count: int, work: Callable[[], object]) -> Rates:
    """How many samples a second some work does, several times."""
    return [count / timed(work) for _ in range(RUNS)]


def random_reads(count: int, size: int = READ) -> Iterator[np.ndarray]:
    """All samples once in random order, some at a time."""
    order = np.random.default_rng(1).permutation(count)
    yield from (order[start : start + size] for start in range(0, count, size))


def show(what: str, rates: Rates, target: int | None = None) -> None:
    """One line: samples a second, their spread, and what they are held against."""
    aim = f"  (at least {target:,})" if target else ""
    spread = f"{min(rates):,.0f} - {max(rates):,.0f}"
    print(f"{what:<62}{statistics.median(rates):>10,.0f}{spread:>20}{aim}")


def raw_reads(corpus: Corpus) -> None:
    """Bytes of records, and features decoded by hand."""
    count = len(corpus)

    def raw(stream: str) -> None:
        for part in random_reads(count):
            corpus._files[stream].read(part)

    def decoded() -> None:
        for part in random_reads(count):
            for stream in corpus.streams:
                corpus.features(stream, part)

    for stream in corpus.streams:
        show(f"raw records of {stream}, {READ} at a time", rates_of(count, partial(raw, stream)), 20_000)
    show("samples with both streams, decoded", rates_of(count, decoded))
    print()


def through_tfds(root: Path, count: int) -> None:
    """`tfds.data_source` on the same files: whole records, and the tensor alone."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(stream_directory(root, "face@8"))
    whole = builder.as_data_source(split="train")
    records = whole.data_source  # the bytes
    tensor = tfds.features.FeaturesDict({"features": builder.info.features["features"]})

    def all_fields(part: np.ndarray) -> object:
        return whole.__getitems__(part.tolist())

    def tensor_only(part: np.ndarray) -> object:
        return [tensor.deserialize_example_np(record) for record in records.__getitems__(part.tolist())]

    with ThreadPoolExecutor(2) as pool:
        for what, read, target in (
            ("TFDS, face@8: name, presence and features, two threads", all_fields, None),
            ("TFDS, face@8: features, two threads", tensor_only, 10_000),
        ):
            work = partial(read_all, pool, read, count)
            show(f"{what}, {TFDS_READ} at a time", rates_of(count, work), target)
    print()


def read_all(pool: ThreadPoolExecutor, read: Callable[[np.ndarray], object], count: int) -> None:
    """Every sample once, without keeping any."""
    for _ in pool.map(read, random_reads(count, TFDS_READ)):
        pass


def tokenised_and_packed(config: RunConfig, tokenizer: Tokenizer, data: RunData, passes: int) -> Rates:
    """Training batches of whole passes, and the memory that this process holds after each."""
    rates, held = [], []
    batches = make_batches(config, tokenizer, data, 0)
    for _ in range(20):
        next(batches)
    step = 20
    for epoch in range(passes):
        last = sum(data.plan.epoch_steps(i) for i in range(epoch + 1))
        samples, started = 0, time.perf_counter()
        for _ in range(last - step):
            samples += int(sum(present.sum() for present in list(next(batches).present.values())[:1]))
        rates.append(samples / (time.perf_counter() - started))
        held.append(memory())
        step = last
    batches.close()
    mean = data.plan.tokens.mean()
    show(f"tokenised and packed, {mean:.0f} tokens a sample, {config.data.threads} threads", rates, 5_000)
    print(f"memory after each of {passes} passes: {', '.join(f'{size / 1e6:,.0f} MB' for size in held)}\n")
    return rates


def memory() -> int:
    """Bytes that this process holds for itself now; files that are mapped lie in the page cache."""
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def data_wait(config: RunConfig, tokenizer: Tokenizer, data: RunData, steps: int = 200) -> None:
    """How long a step of 50 ms on another device waits for its batch of at least 64 samples."""
    rows = 64 / (len(data.plan.epoch(0).samples) / len(data.plan.epoch(0)))
    config = config.model_copy(update={"train": config.train.model_copy(update={"rows": math.ceil(rows)})})
    data = make_data(config, tokenizer, data.corpus, lambda line: None)
    waits, samples = [], 0
    with prefetch(make_batches(config, tokenizer, data, 0), lambda batch: (batch, jax.device_put(batch))) as batches:
        next(batches)
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - started)
            samples += int(batch[0].present["face"].sum())
            del batch  # the step's own business
            time.sleep(STEP_SECONDS)
    share = sum(waits) / (sum(waits) + steps * STEP_SECONDS)
    print(
        f"data wait of {steps} steps of {STEP_SECONDS * 1000:.0f} ms, {samples / steps:.0f} samples each: {share:.2%} "
        f"(below 1 %), longest {max(waits) * 1000:.1f} ms"
    )


def clip_by_clip(folder: Path, tokenizer: Tokenizer, data: RunData, count: int) -> Rates:
    """The original's way: each sample's crops and sound are read, cut and normalised when its turn comes."""
    write_corpus(folder / "corpus", SplitCounts(count, 1, 1), 0)
    found = [entry for entry in read_corpus(str(folder / "corpus")).records if entry.text.split == "train"]
    reader = MediaReader(tuple(entry.files for entry in found), 224)
    rates = {}
    for streams in (("face@8", "audio@8"), ("frame@8", "audio@8")):

        def work(streams: tuple[str, ...] = streams) -> None:
            for start in range(0, len(found), 3):
                rows = []
                for index in range(start, min(start + 3, len(found))):
                    media = {stream.split("@")[0]: reader(stream, [index])[0][0] for stream in streams}
                    example = data.tables[0].ask(found[index].text, index % 2)
                    rows.append([Sample(example, media)])  # type: ignore[arg-type]
                longest = max(len(row[0].example.tokens) for row in rows)
                shapes = {name: x.shape for name, x in rows[0][0].features.items()}
                shape = BatchShape(len(rows), longest, longest, 1, layout_size(data.tables[0].ask.layout), shapes)
                collate_rows(rows, shape)

        rates[streams] = rates_of(len(found), work)
        show(f"media clip by clip, batches of 3: {', '.join(streams)}", rates[streams])
    return rates["face@8", "audio@8"]


if __name__ == "__main__":
    main()
