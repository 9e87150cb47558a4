"""Feature shards of the synthetic scenes without clips: what a pair of encoders might have said of them.

For work that needs a corpus and no media: the smoke job, and runs over many sizes of data. Each manner of voice and
each expression has a direction of its own, the same for every seed; a sample's vectors are that direction, something
of the person, and noise that differs from vector to vector. Text, labels and descriptions are the corpus's.

A sample is a function of seed, split, shard and its place there, so that a corpus may be made larger, by any number of
processes, and each sample stays the same.
"""

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.data.shard_schema import (
    FEATURE_DTYPE,
    TEXT,
    ShardEntry,
    TextRecord,
    read_manifest,
    stream_directory,
)
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.errors import UserError
from affectgpt_jax.machine import available_cores
from data_prep.synth import language
from data_prep.synth.babble import draw_babble
from data_prep.synth.corpus import SplitCounts
from data_prep.synth.scenes import FACES, FILMED_BY_EMOTION, SCENES, VOICES, Scene
from data_prep.synth.specs import SPLITS, stream
from data_prep.synth.tokenizer import write_tokenizer
from data_prep.synth.vocabulary import EMOTIONS

VERSION = 1
"""Of this generator; another version draws other samples from the same seed."""

GENERATOR = "affectgpt synth --features"
SHARD = 4096
"""Samples of a shard."""
COUNT, WIDTH = 8, 64
"""Vectors of a sample in each stream, and their width."""
PERSON, NOISE = 0.5, 1.0
"""Standard deviation of what the person, and what chance, adds to each entry of a direction, whose own is 1."""
STREAMS = {"face@8": FACES, "audio@8": VOICES}
TOKENIZER = "tokenizer"
TOKENIZER_CLIPS, VOCABULARY = 100, 1016
"""What the tokenizer learns from, and its size: with special and soft tokens 1,024, which most meshes divide."""


class FeatureSummary(NamedTuple):
    """What lies in the folder, `reused` if it was there already."""

    directory: Path
    counts: SplitCounts
    reused: bool
    seconds: float


class _Shard(NamedTuple):
    """One piece of work: shard `number` of the `shards` of a split, with so many samples."""

    staged: Path
    seed: int
    split: str
    number: int
    shards: int
    samples: int
    babble: int


def write_features(
    directory: Path | str,
    counts: SplitCounts,
    seed: int = 0,
    *,
    babble: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
    on_samples: Callable[[int], None] = lambda count: None,
) -> FeatureSummary:
    """Write the streams text, face@8 and audio@8 and a tokenizer beside them, or find them already there.

    Called from a script, it needs the usual `if __name__ == "__main__":` guard unless there is one shard or worker.

    Args:
      directory: root of the shards: new, empty, or one that this function has written.
      counts: samples of each split.
      seed: >= 0.
      babble: words of `synth.babble` at the end of each description.
      workers: processes; None takes the cores this process may use.
      overwrite: replace shards of another seed, size or version.
      on_samples: called with the number of samples of each shard that is written.

    Raises:
      UserError: counts or seed make no sense, the folder holds something else, or it cannot be written.
    """
    started = time.monotonic()
    if seed < 0 or min(counts) < 0 or sum(counts) == 0 or babble < 0:
        raise UserError(
            f"features need a seed >= 0, at least one sample and no negative number of words, not seed {seed}, "
            f"{counts} and {babble} words"
        )
    directory = Path(directory)
    identity = _identity(counts, seed, babble)
    reused = _is_reusable(directory, identity, overwrite)
    if not reused:
        staged = directory / ".staged"
        try:
            shutil.rmtree(staged, ignore_errors=True)
            write_tokenizer(directory / TOKENIZER, seed=0, clips=TOKENIZER_CLIPS, vocabulary=VOCABULARY)
            work = [
                _Shard(staged, seed, split, i, -(-total // SHARD), min(SHARD, total - i * SHARD), babble)
                for split, total in zip(SPLITS, counts, strict=True)
                for i in range(-(-total // SHARD))
            ]
            _write(directory, staged, work, identity, workers or available_cores(), on_samples)
        except OSError as error:
            raise UserError(f"{directory}: the features cannot be written: {error}") from error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return FeatureSummary(directory, counts, reused, time.monotonic() - started)


def draw_samples(seed: int, split: str, shard: int, count: int, babble: int = 0) -> list[tuple[Scene, TextRecord]]:
    """The first samples of a shard: their scenes and texts. Emotions come in shuffled rounds of all groups."""
    rng, words = stream(seed, split, "features", shard), stream(seed, split, "babble", shard)
    names = tuple(EMOTIONS)
    rounds = np.tile(np.arange(len(names)), (-(-SHARD // len(names)), 1))
    order = rng.permuted(rounds, axis=1).ravel()
    samples = []
    for place, number in enumerate(order[:count]):
        emotion = names[number]
        scene = FILMED_BY_EMOTION[emotion][rng.integers(len(FILMED_BY_EMOTION[emotion]))]
        assert SCENES[scene] == emotion
        english, chinese = language.draw_sentence(scene.text, split, rng)
        labels = language.draw_labels(emotion, rng)
        description = language.draw_description(scene, labels, rng)
        if babble:
            description += f" The person mutters {draw_babble(babble, words)}."
        name = f"features{seed}_{split}_{shard * SHARD + place:07d}"
        samples.append((scene, TextRecord(name, split, english, chinese, labels, description)))
    return samples


def directions(name: str, values: Sequence[str]) -> np.ndarray:
    """What each value of a stream looks like, of any seed: float32 [values, WIDTH]."""
    return np.stack([stream(VERSION, name, value).normal(size=WIDTH) for value in values]).astype(np.float32)


def draw_features(seed: int, split: str, shard: int, name: str, scenes: Sequence[Scene]) -> np.ndarray:
    """Features of a shard's samples in one stream: float16 [samples, COUNT, WIDTH]."""
    rng = stream(seed, split, name, shard)
    values = STREAMS[name]
    shown = [values.index(scene.face if name.startswith("face") else scene.voice) for scene in scenes]
    person = PERSON * rng.standard_normal((SHARD, 1, WIDTH), np.float32)[: len(shown)]
    noise = NOISE * rng.standard_normal((SHARD, COUNT, WIDTH), np.float32)[: len(shown)]
    return (directions(name, values)[shown][:, None] + person + noise).astype(FEATURE_DTYPE)


def _identity(counts: SplitCounts, seed: int, babble: int) -> dict[str, object]:
    """What decides whether two folders hold the same."""
    said = {"generator": GENERATOR, "version": VERSION, "seed": seed, "counts": counts._asdict()}
    return said | ({"babble": babble} if babble else {})


def _is_reusable(directory: Path, identity: Mapping[str, object], overwrite: bool) -> bool:
    """Whether the wanted shards are there; UserError where others are."""
    # The text comes last.
    if not stream_directory(directory, TEXT).is_dir():
        return False
    found = dict(read_manifest(directory, TEXT).provenance)
    if found == identity:
        return True
    if found.get("generator") != GENERATOR:
        raise UserError(f"{directory}: holds shards that this command has not written; choose another folder")
    if not overwrite:
        raise UserError(
            f"{directory}: holds features of {_told(found)}, not {_told(identity)}; choose another folder or give "
            "--overwrite"
        )
    return False


def _told(identity: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in identity.items() if name != "generator")


def _write(
    directory: Path,
    staged: Path,
    work: Sequence[_Shard],
    identity: Mapping[str, object],
    workers: int,
    on_samples: Callable[[int], None],
) -> None:
    entries: dict[str, dict[str, list[ShardEntry]]] = {name: {} for name in (*STREAMS, TEXT)}
    for shard, written in zip(work, _written(work, workers), strict=True):
        for name, entry in written.items():
            entries[name].setdefault(shard.split, []).append(entry)
        on_samples(shard.samples)
    for name in STREAMS:
        # What `prepare` says of an encoder; features of another seed go together with these.
        provenance = {"encoder": GENERATOR, "weights": str(VERSION), "width": WIDTH}
        publish_stream(staged / name, directory, name, entries[name], provenance, (COUNT, WIDTH))
    publish_stream(staged / TEXT, directory, TEXT, entries[TEXT], identity)


def _written(work: Sequence[_Shard], workers: int) -> Iterator[dict[str, ShardEntry]]:
    if workers == 1 or len(work) == 1:
        yield from map(_write_shard, work)
        return
    # Not fork: a caller may hold threads that do not survive it.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_write_shard, work)


def _write_shard(shard: _Shard) -> dict[str, ShardEntry]:
    """One shard of every stream; gives their entries."""
    where = (shard.split, shard.number, shard.shards)
    samples = draw_samples(shard.seed, shard.split, shard.number, shard.samples, shard.babble)
    names, present = [text.name for _, text in samples], np.ones(len(samples), bool)
    entries = {}
    for name in STREAMS:
        features = draw_features(shard.seed, shard.split, shard.number, name, [scene for scene, _ in samples])
        entries[name] = write_feature_shard(shard.staged / name, *where, names, features, present)
    entries[TEXT] = write_text_shard(shard.staged / TEXT, *where, [text for _, text in samples])
    return entries
