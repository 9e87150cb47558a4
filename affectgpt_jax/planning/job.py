"""A job as it is planned: a config whose weights may not be here yet, what it works on, where it would run."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.inference.extraction import BATCH, MAX_NEW
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.planning.topology import Topology
from affectgpt_jax.training.data import make_data, open_training_shards
from affectgpt_jax.weights.files import part_config
from affectgpt_jax.weights.initial import in_base, parameter_shapes, resolve
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import is_trained

Kind = Literal["train", "answer", "extract"]

FILLED = 0.97
"""Share of a row that packing fills, where no corpus says it."""
NOT_HERE = "(not here yet)"
"""The base model's folder, where the config names none and trains nothing of the base."""


class Load(NamedTuple):
    """What a job works on, on average.

    Attributes:
      tokens: of a training sample, prompt and answer.
      targets: of them learned to be said.
      prompt: tokens of a question, where answers are written.
      new: tokens of an answer.
      clips: to be answered.
      source: where the numbers come from.
    """

    tokens: float
    targets: float
    prompt: int
    new: int
    clips: int
    source: str


LOADS = {
    "train": Load(200, 90, 0, 0, 0, "assumed"),
    "answer": Load(0, 0, 110, 64, 10_000, "assumed"),
    "extract": Load(0, 0, 360, 32, 10_000, "assumed"),
}
"""Half of the answers labels, half descriptions; the prompts of the default mode; a description in the prescribed
prompt, of which labels are drawn."""


class Job(NamedTuple):
    """What is planned.

    Attributes:
      kind: training; answering clips (`evaluate`, `predict`, `benchmark`); drawing labels out of answers (`extract`).
      config: sizes resolved where weights are at hand.
      topology: where it would run.
      load: what it works on.
      rows_samples: samples of a training row, on average.
    """

    kind: Kind
    config: RunConfig
    topology: Topology
    load: Load
    row_samples: float


def make_job(kind: Kind, config: RunConfig, topology: Topology, given: Mapping[str, Any]) -> Job:
    """Complete a config for planning.

    Args:
      kind: of job.
      config: as it was read; folders that it names must be there, it need not name any.
      topology: where it would run.
      given: fields of `Load` that the user says.

    Raises:
      UserError: a folder that is named is not there, or does not fit.
    """
    load, row_samples = LOADS[kind]._replace(**given), 0.0
    if given:
        load = load._replace(source="as given")
    if kind == "extract":
        return Job(kind, _extractor(config), topology, load, row_samples)
    tokenizer = None
    if config.weights.tokenizer or config.weights.language:
        config, tokenizer = resolve(config)
    data = config.data
    if kind == "train" and tokenizer is not None and data.shards and not given:
        plan = make_data(config, tokenizer, open_training_shards(config, verify=False), lambda line: None).plan
        rows = plan.epoch(0)
        tokens, targets = (float(x[rows.types, rows.samples].mean()) for x in (plan.tokens, plan.targets))
        load = load._replace(tokens=tokens, targets=targets, source=f"those of {data.shards}")
        row_samples = len(rows.samples) / len(rows)
    elif kind == "train":
        row_samples = min(data.row_samples, max(1.0, FILLED * data.row_length // load.tokens))
    return Job(kind, _with_base(config), topology, load, row_samples)


def _with_base(config: RunConfig) -> RunConfig:
    """What is neither trained nor an adapter will come from a base, named or not."""
    named = _replace(config, "weights", language=config.weights.language or NOT_HERE)
    stored = [path for path in paths(parameter_shapes(AffectGPT(config.model))) if in_base(named, path)]
    trained = all(is_trained(config.model, path, config.train.trainable) for path in stored)
    return config if trained else named


def _extractor(config: RunConfig) -> RunConfig:
    """The language model that reads labels out of answers: `evaluate.extractor`, or one of the prescribed size."""
    folder = config.evaluate.extractor
    sizes: dict[str, Any] = {"lora": LoraConfig(rank=0), "dtype": "bfloat16"}
    decoder = DecoderConfig.from_hf(part_config(folder, "language"), **sizes) if folder else DecoderConfig(**sizes)
    config = _replace(config, "weights", language=folder or NOT_HERE)
    config = _replace(config, "evaluate", batch=BATCH, max_new=MAX_NEW)
    config = _replace(config, "train", trainable=("^fusion/",))  # nothing of what is read
    return config.model_copy(update={"model": ModelConfig(mode="textonly", decoder=decoder)})


def _replace(config: RunConfig, part: str, **changes: Any) -> RunConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=changes)})
