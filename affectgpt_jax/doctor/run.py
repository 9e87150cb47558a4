"""A run: its config, its tokenizer, its shards and what encoded them, where it starts, and the wheels that score it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.shard_schema import TEXT, parse_stream, stream_directory
from affectgpt_jax.data.shards import Corpus, Mixture, mix
from affectgpt_jax.data.storage import is_remote
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.doctor.findings import Finding, Question, Status, amount, fault
from affectgpt_jax.doctor.room import parameters, resolved, run_folder
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.sources import kind_of
from affectgpt_jax.inference.runs import CHECKPOINTS, model_streams, open_shards, run_steps
from affectgpt_jax.unibench.official import SOURCE, changed_files, find_wheel_dir, parse_files, read_files
from affectgpt_jax.weights.towers import weights_hash


def config(question: Question) -> Iterator[Finding]:
    """Whether it can be read; how many parameters it makes, and trains."""
    for line in filter(None, map(str.strip, question.unreadable.splitlines())):
        yield fault("config", UserError(line))
    if question.config is None:
        return
    found = resolved(question.config)
    if found.model.decoder.base == "int8" and not found.weights.language:
        what = "model.decoder.base=int8 quantises a base as it is read, and none is named"
        yield Finding("config", "fault", what, "weights.language=FOLDER, or model.decoder.base=float")
        return
    all_of_them = parameters(found)
    learning = any(p.trained and p.path.startswith("decoder/") and p.path.endswith("/kernel") for p in all_of_them)
    if not (found.weights.language or learning):
        what = "weights.language names nothing: the language model is random, and train.trainable leaves it so"
        yield Finding("config", "warning", what, "weights.language=FOLDER, or '^decoder/' in train.trainable")
    count, trained = sum(p.entries for p in all_of_them), sum(p.entries for p in all_of_them if p.trained)
    yield Finding("config", "ok", f"{found.name}: {count:,} parameters, {trained:,} of them trained")


def tokenizer(question: Question) -> Iterator[Finding]:
    """Whether it opens."""
    if question.config is None:
        return
    weights = question.config.weights
    folder = weights.tokenizer or weights.language
    if not folder:
        yield Finding("weights.tokenizer", "fault", "no tokenizer is named", "weights.tokenizer=FOLDER")
        return
    try:
        yield Finding("weights.tokenizer", "ok", f"{folder}: {open_tokenizer(folder).size:,} tokens")
    except UserError as error:
        yield fault("weights.tokenizer", error, "weights.tokenizer=FOLDER of a Qwen2 or Qwen2.5 model")


class _Wanted(NamedTuple):
    """A split that the run reads, and the key of the config that says so."""

    key: str
    root: str
    split: str
    status: Status


def data(question: Question) -> Iterator[Finding]:
    """Every shard of every split that the run reads, against its checksum, its model and its encoders."""
    if question.config is None:
        return
    config = resolved(question.config)
    root, corpus = config.data.shards, config.prepare.corpus
    lies = bool(root) and (is_remote(root) or stream_directory(Path(root), TEXT).is_dir())
    if corpus and (not lies or config.data.source == "media"):
        yield from _clips(question, config, lies)
    if not lies:
        said = f"data.shards={root}: nothing is prepared there" if root else "data.shards names no folder"
        if root and corpus:
            yield Finding("data.shards", "warning", f"{said} yet", f"affectgpt prepare {question.name}")
        else:
            remedy = f"affectgpt prepare {question.name} prepare.corpus=CLIPS data.shards={root or 'FOLDER'}"
            yield Finding("data.shards", "fault", said, remedy)
        return
    corpora = []
    for wanted in _wanted(config):
        if is_remote(wanted.root) and question.fast:
            yield Finding("data.shards", "skipped", f"{wanted.root} is not fetched with --fast")
            continue
        try:
            opened = open_shards(config, wanted.split, wanted.root, verify=not question.fast)
        except UserError as error:
            yield fault("data.shards", error, _remedy(error, wanted, question.name), wanted.status)
            continue
        yield Finding("data.shards", "ok", _described(wanted, opened, question.fast))
        if wanted.split == config.data.split:
            corpora.append(opened)
    if len(corpora) == 1 + len(config.data.mixture):
        mixture = mix(corpora, [1.0, *(part.weight for part in config.data.mixture)])
        yield from _encoders(question, config, corpora[0])
        yield from _modalities(config, mixture)
        yield from _same_corpus(config, mixture)


def _wanted(config: RunConfig) -> list[_Wanted]:
    data = config.data
    found = [_Wanted("data.split", data.shards, data.split, "fault")]
    found += [_Wanted("data.mixture", part.shards, data.split, "fault") for part in data.mixture]
    if config.validation.every:
        found.append(_Wanted("validation.split", data.shards, config.validation.split, "fault"))
    found.append(_Wanted("evaluate.split", data.shards, config.evaluate.split, "warning"))
    return [wanted for i, wanted in enumerate(found) if wanted[1:3] not in [other[1:3] for other in found[:i]]]


def _described(wanted: _Wanted, corpus: Corpus, fast: bool) -> str:
    entries = [entry for manifest in corpus.manifests.values() for entry in manifest.splits[wanted.split]]
    checked = "lengths right, checksums not compared" if fast else "checksums right"
    return (
        f"{wanted.root}, {wanted.split}: {len(corpus):,} samples with {', '.join(corpus.streams) or 'text alone'}, "
        f"{len(entries)} files, {amount(sum(entry.size for entry in entries))}, {checked}"
    )


def _remedy(error: UserError, wanted: _Wanted, name: str) -> str:
    """A command for what `open_shards` finds; empty leaves what the error says itself."""
    message = str(error)
    if damaged := re.search(r"[Dd]elete (.+) and prepare the (stream|corpus) again", message):
        return f"rm -r {damaged[1]}; affectgpt prepare {name}"
    if lacks := re.search(r"has no split '\w+', only (.+)\.", message):
        return f"{wanted.key}={lacks[1].split(', ')[0]}, or prepare that split"
    return f"affectgpt prepare {name}" if "There is no stream" in message else ""


def _clips(question: Question, config: RunConfig, prepared: bool) -> Iterator[Finding]:
    """The corpus that shards will be made of, or whose clips are encoded in the loop, and the encoders for it."""
    try:
        yield Finding(
            "prepare.corpus", "ok", f"{config.prepare.corpus}: {question.clips(config.prepare.corpus):,} clips"
        )
    except UserError as error:
        yield fault(
            "prepare.corpus", error, f"prepare.corpus=CLIPS; affectgpt data check {config.prepare.corpus} says more"
        )
    towers = {_tower(stream) for stream in model_streams(config).values()}
    for tower in sorted(tower for tower in towers if not getattr(config.weights, tower)):
        why = "its clips are encoded in the loop" if prepared else "its clips are not encoded yet"
        yield Finding(f"weights.{tower}", "fault", f"no encoder is named, and {why}", f"weights.{tower}=FOLDER")


def _tower(stream: str) -> str:
    return "audio" if parse_stream(stream).modality == "audio" else "vision"


def _encoders(question: Question, config: RunConfig, corpus: Corpus) -> Iterator[Finding]:
    """Whether the encoders that the config names are those that made the shards: by the hash of their weights."""
    for stream in model_streams(config).values():
        made, key = corpus.provenance(stream), f"weights.{_tower(stream)}"
        folder = getattr(config.weights, _tower(stream))
        if not folder or question.fast:
            why = "not compared with --fast" if folder else f"{key} names nothing to compare with; predict needs it"
            yield Finding("encoder", "skipped", f"{stream} was made by {made['encoder']}; {why}")
            continue
        try:
            own = weights_hash(folder)
        except (UserError, OSError):
            yield Finding("encoder", "skipped", f"{stream} was made by {made['encoder']}; {key} cannot be read")
            continue
        if own == made["weights"]:
            yield Finding("encoder", "ok", f"{stream} was made by {made['encoder']}, as {key} names it")
            continue
        place = stream_directory(corpus.root, stream)
        yield Finding(
            "encoder",
            "fault",
            f"{stream} was made by {made['encoder']} with weights {made['weights'][:12]}..., {key}={folder} has "
            f"{own[:12]}...",
            f"{key}=the folder that made it, or rm -r {place}; affectgpt prepare {question.name}",
        )


def _modalities(config: RunConfig, mixture: Mixture) -> Iterator[Finding]:
    """Whether the model has something to put in the place of what samples lack."""
    streams = list(model_streams(config).values())
    lost = {stream: int(np.sum(~mixture.present(stream))) for stream in streams}
    told = ", ".join(f"{count} lack {stream}" for stream, count in lost.items() if count)
    hidden = [name for name, rate in config.data.hide.model_dump().items() if rate]
    if not config.model.absent and (told or hidden):
        what = f"of {len(mixture):,} samples {told}" if told else f"data.hide hides {', '.join(hidden)}"
        remedy = "model.absent=true learns it" + (", prepare.missing=drop leaves such clips out" if told else "")
        yield Finding("modalities", "fault", f"{what}, and the model has nothing to put in their place", remedy)
    else:
        yield Finding(
            "modalities", "ok", told + ": the model learns what to put there" if told else "no sample lacks one"
        )


def _same_corpus(config: RunConfig, mixture: Mixture) -> Iterator[Finding]:
    """A run that goes on must go on with the shards that it began with."""
    folder = run_folder(config)
    if config.train.other_corpus or not (folder / CHECKPOINTS).is_dir() or not run_steps(folder):
        return
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    before = checkpoints.restore({}).facts.get("corpus", mixture.fingerprint)
    checkpoints.close()
    if before != mixture.fingerprint:
        yield Finding(
            "run folder",
            "fault",
            f"{folder} was trained on other shards than {config.data.shards}",
            "train.output=another folder, or train.other_corpus=true to go on with these",
        )


def start(question: Question) -> Iterator[Finding]:
    """Where the run begins: at a checkpoint of its own, at what another has learned, or fresh."""
    if question.config is None:
        return
    folder, origin = run_folder(question.config), question.config.train.init_from
    if (folder / CHECKPOINTS).is_dir() and (steps := run_steps(folder)):
        yield Finding("start", "ok", f"{folder} goes on from step {steps[-1]:,} of {question.config.train.steps:,}")
    elif not origin:
        yield Finding("start", "ok", f"{folder} begins anew")
    elif not Path(origin).exists():
        what = f"train.init_from={origin}: there is no such run folder, export or .pth file"
        yield Finding("start", "fault", what, "train.init_from=a folder or file that is there")
    elif (Path(origin) / "config.yaml").is_file():
        if steps := run_steps(origin):
            yield Finding("start", "ok", f"{folder} begins with {origin}, step {steps[-1]:,}")
        else:
            what = f"train.init_from={origin} has no checkpoint yet"
            yield Finding("start", "fault", what, "let it train up to its first one, or name another run")
    else:
        yield Finding("start", "ok", f"{folder} begins with {origin} ({kind_of(Path(origin))})")


def wheels(question: Question) -> Iterator[Finding]:
    """The official emotion wheels, which scores need that shall compare with published ones."""
    folder = find_wheel_dir(question.wheel_dir)
    if folder is None:
        what = "no --wheel-dir: a small lexicon scores, and its scores do not compare with published ones"
        yield Finding("wheels", "skipped", what, f"--wheel-dir {SOURCE.removeprefix('the folder ')}")
        return
    remedy = "affectgpt fetch emotion-wheels, and --wheel-dir data/emotion_wheel"
    try:
        files = read_files(folder)
        if changed := changed_files(files):
            parse_files(files, folder)
    except UserError as error:
        yield fault("wheels", error, remedy)
        return
    if changed:
        what = f"{folder}: {', '.join(changed)} differ from the published files; scores do not compare"
        yield Finding("wheels", "warning", what, remedy)
    else:
        yield Finding("wheels", "ok", f"{folder}: {len(files)} files, as published")
