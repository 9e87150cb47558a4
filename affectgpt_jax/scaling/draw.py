"""From a study to its plan: which runs, and what each will cost in parameters, FLOPs, chip-hours and memory.

FLOPs are `training.flops`'s closed form; seconds and memory those of `affectgpt plan`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from affectgpt_jax.config import RunConfig, build_config, load_config
from affectgpt_jax.config.loading import find_config, with_overrides
from affectgpt_jax.data.prompts import unfused_mode
from affectgpt_jax.data.shard_schema import TEXT, digest, parse_stream, stream_directory
from affectgpt_jax.data.storage import is_remote
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.planning.estimate import estimate
from affectgpt_jax.planning.job import make_job
from affectgpt_jax.planning.search import memory_limit
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.scaling.ladder import VOCABULARY, decoder_sizes
from affectgpt_jax.scaling.plan import Cost, Lengths, Plan, Run
from affectgpt_jax.scaling.study import Setting, StudyConfig, settings
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import split

GIB = 2**30
FEWEST = 8
"""Captions of a run at least: with fewer there is nothing to learn from."""


def make_plan(study: StudyConfig, beside: Path) -> Plan:
    """Draw up a study's runs.

    Args:
      study: what is asked for.
      beside: the study's file; its base may lie beside it.

    Raises:
      UserError: the base cannot be read, a size or setting does not exist.
    """
    base = load_config(find_config(study.base, beside)).model_dump(mode="json")
    lengths = _lengths(study, base)
    reckoner = _Reckoner(study, base, lengths)
    parts: dict[tuple[Setting, int], list[str]] = {}
    for name, part in study.parts.items():
        for setting, flops in settings(part):
            complete = reckoner.complete(setting, flops, part.captions_per_parameter, name)
            for seed in range(part.seeds or study.seeds):
                parts.setdefault((complete, seed), []).append(name)
    runs = [reckoner.run(setting, tuple(names), seed) for (setting, seed), names in parts.items()]
    # Seed after seed: a study that is cut short has whole grids.
    return Plan(study, base, lengths, tuple(sorted(runs, key=lambda run: (run.seed, run.cost.flops))))


class _Reckoner:
    """Settings to overrides and costs. Networks of the same shape are laid out once."""

    def __init__(self, study: StudyConfig, base: Mapping[str, Any], lengths: Lengths) -> None:
        self._study, self._base, self._lengths = study, base, lengths
        self._shaped = cache(self._shape)

    def complete(
        self, setting: Setting, flops: float | None, captions_per_parameter: float | None, part: str
    ) -> Setting:
        """A setting with its captions: what its compute pays for, or what a ladder gives its size."""
        captions = setting.captions
        if flops is not None:
            captions = round(flops / setting.epochs / self._caption_flops(setting))
        elif captions_per_parameter is not None:
            captions = round(captions_per_parameter * self._shaped(self.shape(setting)).parameters)
        if captions is None or captions < FEWEST:
            raise UserError(
                f"parts.{part}: size {setting.size} would be trained on {captions} captions, fewer than {FEWEST}; "
                "leave it out, or give it more compute"
            )
        return setting._replace(captions=captions)

    def run(self, setting: Setting, parts: tuple[str, ...], seed: int) -> Run:
        """A run with what it takes."""
        shape = self._shaped(self.shape(setting))
        assert setting.captions is not None
        samples = setting.captions * setting.epochs
        flops = samples * self._caption_flops(setting)
        speed = shape.samples_per_s
        if (reached := self._study.budget.flops_per_s) is not None:
            speed = reached * samples / flops
        hours = None if speed is None else samples / speed * shape.chips / 3600
        rate = self._study.learning_rate
        peak = rate.rate * (shape.width / rate.width) ** rate.exponent
        overrides = (
            *self.shape(setting),
            f"data.samples={setting.captions}",
            "train.optimizer.schedule=strict",
            f"train.optimizer.peak={peak:.6g}",
            f"train.optimizer.end={peak * rate.end:.6g}",
            f"train.optimizer.warmup_start={peak / 10:.6g}",
            f"train.seed={seed}",
        )
        cost = Cost(
            shape.parameters, shape.body, shape.trained, setting.captions, samples, flops, speed, hours, shape.memory,
            shape.refused,
        )  # fmt: skip
        name = _name(self._study, self._base, setting, seed, overrides)
        return Run(name, parts, setting, seed, overrides, cost)

    def shape(self, setting: Setting) -> tuple[str, ...]:
        """The settings that decide a network's shape and how fast it is."""
        study, values = self._study, {name: value for name, value in setting._asdict().items() if value is not None}
        try:
            found = [text.format(**values) for text in study.set]
            found += [text.format(**values) for text in study.encoders.get(setting.encoder or "", ())]
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"set: {error} is no axis that every part gives; known here: {', '.join(values)}"
            ) from error
        if setting.size is not None:
            found += [f"model.decoder.{key}={value}" for key, value in decoder_sizes(setting.size).items()]
        if study.synthetic is not None:
            found.append(f"model.decoder.vocab={VOCABULARY}")
        if setting.rank is not None:
            found += [f"model.decoder.lora.rank={setting.rank}", f"model.decoder.lora.alpha={2 * setting.rank}"]
        if (count := setting.query_tokens) is not None:
            found += [f"model.tokens.{source}={count}" for source in ("multi", "audio", "video")]
        whole = with_overrides(self._base, found)
        if setting.frames is not None:
            names = (f"{parse_stream(stream).modality}@{setting.frames}" for stream in whole["prepare"]["streams"])
            found.append(f"prepare.streams=[{', '.join(names)}]")
        if setting.prefusion is not None:
            found.append(f"model.prefusion={setting.prefusion}")
            if setting.prefusion == "none":
                found.append(f"model.mode={unfused_mode(whole['model']['mode'])}")
        return tuple(found)

    def _caption_flops(self, setting: Setting) -> float:
        return self._shaped(self.shape(setting)).caption_flops

    def _shape(self, overrides: tuple[str, ...]) -> "_Shape":
        budget, (tokens, targets, _) = self._study.budget, self._lengths
        config = _without_absent(build_config(self._base, self._study.name, overrides))
        topology = parse_topology(budget.topology or "cpu:1")
        job = make_job("train", config, topology, {"tokens": tokens, "targets": targets})
        refused = ""
        try:
            found = estimate(job)
        except UserError as error:
            refused, found = str(error), estimate(job._replace(topology=parse_topology("cpu:1")))
        limit, peak = memory_limit(job), found.memory.peak
        if not refused and limit is not None and peak > limit:
            refused = (
                f"needs {peak / GIB:.1f} GiB of {limit / GIB:.1f} a device (affectgpt plan finds a change that fits)"
            )
        model = job.config.model
        shapes = parameter_shapes(AffectGPT(model))
        return _Shape(
            parameters=_count(shapes, "decoder/"),
            body=_count(shapes, "decoder/layers/"),
            trained=_count(split(model, shapes, config.train.trainable)[0]),
            width=model.decoder.width,
            caption_flops=found.useful / found.samples,
            samples_per_s=found.samples / found.seconds if found.times else None,
            chips=topology.chips,
            memory=peak,
            refused=refused,
        )


class _Shape(NamedTuple):
    """What a network of one shape takes, whatever it is trained on."""

    parameters: int
    body: int
    trained: int
    width: int
    caption_flops: float
    samples_per_s: float | None
    chips: int
    memory: float
    refused: str


def _count(tree: Any, prefix: str = "") -> int:
    """Parameters below a path."""
    return sum(math.prod(leaf.shape) for path, leaf in paths(tree).items() if path.startswith(prefix))


def _name(study: StudyConfig, base: Mapping[str, Any], setting: Setting, seed: int, overrides: Sequence[str]) -> str:
    """What a run is called: its axes, and a digest of everything that makes it what it is."""
    said = (
        ("", setting.size),
        ("c", setting.captions),
        ("e", setting.epochs),
        ("r", setting.rank),
        ("", setting.encoder),
        ("q", setting.query_tokens),
        ("f", setting.frames),
        ("", setting.prefusion),
        ("s", seed),
    )
    words = [f"{letter}{value}" for letter, value in said if value is not None]
    data = study.synthetic.model_dump() if study.synthetic else None
    whole = json.dumps([base, overrides, setting.epochs, data, study.learning_rate.warmup], sort_keys=True)
    return "-".join([*words, digest(whole.encode())[:8]])


def _without_absent(config: RunConfig) -> RunConfig:
    """Without the folders of weights that are not here yet; sizes are then those that the settings say."""
    named = config.weights.model_dump()
    lost = {
        part: None if part != "tokenizer" else "" for part, folder in named.items() if not Path(folder or "").is_dir()
    }
    return config.model_copy(update={"weights": config.weights.model_copy(update=lost)})


def _lengths(study: StudyConfig, base: Mapping[str, Any]) -> Lengths:
    """Of the base's own corpus if it is here, else as the study says."""
    config = build_config(base, study.base, [] if any("{" in text for text in study.set) else study.set)
    shards, weights = config.data.shards, config.weights
    here = shards and not is_remote(shards) and stream_directory(Path(shards), TEXT).is_dir()
    tokenizer = weights.tokenizer or weights.language
    if study.synthetic is not None or not here or not (tokenizer and Path(tokenizer).is_dir()):
        return Lengths(study.tokens, study.targets, "as the study says")
    load = make_job("train", config, parse_topology("cpu:1"), {}).load
    return Lengths(load.tokens, load.targets, load.source)
