"""A study: one YAML that says which runs are compared, on what, and at what cost at most.

Runs are drawn up in parts, each a grid, slices of equal compute, or a ladder; a run that several parts ask for is
trained once. configs/scaling has one.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from affectgpt_jax.config.base import Section
from affectgpt_jax.config.loading import check_section, find_config
from affectgpt_jax.config.networks import Prefusion
from affectgpt_jax.errors import UserError
from affectgpt_jax.training.chips import CHIPS

Metric = Literal["loss", "hit_rate", "f_score", "weighted_f1"]
Design = Literal["grid", "isoflop", "ladder"]


def _as_tuple(value: Any) -> Any:
    """A single value stands for a list of one."""
    return (value,) if isinstance(value, (str, int, float)) else value


def _as_words(value: Any) -> Any:
    value = _as_tuple(value)
    return tuple(str(one) for one in value) if isinstance(value, (list, tuple)) else value


Sizes = Annotated[tuple[str, ...], BeforeValidator(_as_words)]
Counts = Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_tuple)]
Ranks = Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_as_tuple)]
Numbers = Annotated[tuple[PositiveFloat, ...], BeforeValidator(_as_tuple)]


class PartConfig(Section):
    """Some runs of a study. Of an axis that is left out, the study's base decides."""

    design: Design = Field(
        default="grid",
        description="grid: every combination; isoflop: every size at every compute of `flops`; ladder: every size at "
        "its own number of captions, `captions_per_parameter`",
    )
    size: Sizes = Field(default=(), description="decoders: 0.1M, 1M, 1B of our own ladder, or qwen2.5-0.5b to -32b")
    captions: Counts = Field(default=(), description="unique captions trained on")
    epochs: Counts = Field(default=(1,), description="how often each is seen")
    rank: Ranks = Field(default=(), description="LoRA ranks; alpha is twice the rank, as the original's")
    encoder: Sizes = Field(default=(), description="names of the study's `encoders`")
    query_tokens: Counts = Field(default=(), description="soft tokens of each source")
    frames: Counts = Field(default=(), description="pictures and clips of sound of a sample; shards must have them")
    prefusion: Annotated[tuple[Prefusion, ...], BeforeValidator(_as_tuple)] = Field(default=(), description="its type")
    flops: Numbers = Field(default=(), description="compute of each slice, FLOPs of training; for isoflop")
    captions_per_parameter: PositiveFloat | None = Field(default=None, description="for ladder")
    seeds: PositiveInt | None = Field(default=None, description="runs of each setting; default: the study's")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.size and self.design != "grid":
            raise ValueError(f"design={self.design} needs sizes: size: [0.1M, 0.5M, 2M]")
        for name, design in (("flops", "isoflop"), ("captions_per_parameter", "ladder")):
            if (self.design == design) != bool(getattr(self, name)):
                raise ValueError(f"{name} goes with design={design}, and design={design} needs it")
        if self.design != "grid" and self.captions:
            raise ValueError(f"design={self.design} finds the captions itself; leave captions out")
        if self.design == "grid" and not self.captions:
            raise ValueError("design=grid needs captions: a list of numbers, such as [1000, 2000, 4000]")
        return self


class SyntheticConfig(Section):
    """Features of synthetic scenes, written by `run` before it trains; as many as the largest run wants."""

    seed: NonNegativeInt = 0
    validation: PositiveInt = 512
    test: PositiveInt = 256
    babble: NonNegativeInt = Field(
        default=0,
        description="words of a random language at the end of each description: what is left to learn for large models",
    )


class RateConfig(Section):
    """The rule of learning rates: rate x (width / `width`)^exponent, warmed up, then a cosine over the whole run."""

    rate: PositiveFloat = 1e-5
    width: PositiveInt = Field(default=64, description="of the decoder at which `rate` holds")
    exponent: float = Field(default=0.0, description="-1: halved when the width doubles; 0: the same for all sizes")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    end: float = Field(default=0.1, ge=0, le=1, description="of the rate, at the last step")


class ChipConfig(Section):
    """What the runs are planned for."""

    topology: str = Field(default="", description="such as h200:8 or v5e:4x4, of each run; empty: cpu:1")
    flops_per_s: PositiveFloat | None = Field(
        default=None, description="what a run reaches on a machine of which no data sheet is known, such as a CPU"
    )
    chip_hours: PositiveFloat | None = Field(default=None, description="budget of the whole study")
    flops: PositiveFloat | None = Field(default=None, description="budget of the whole study")

    @model_validator(mode="after")
    def _check(self) -> Self:
        cpu = self.topology.split(":")[0] in ("", "cpu")
        if cpu and self.chip_hours and not self.flops_per_s:
            raise ValueError(f"chip_hours need a topology ({', '.join(CHIPS)}), or flops_per_s of this machine")
        if not cpu and self.flops_per_s:
            raise ValueError("flops_per_s is for machines without a data sheet; leave it out")
        return self


class StudyConfig(Section):
    """Everything a study is."""

    name: str = Field(pattern=r"^[\w.-]+$")
    base: str = Field(description="config that every run starts from: a shipped one, or a file beside the study")
    set: tuple[str, ...] = Field(
        default=(),
        description="settings of every run; {size}, {captions}, {epochs}, {rank}, {encoder}, {query_tokens}, {frames} "
        "and {prefusion} stand for the run's own",
    )
    synthetic: SyntheticConfig | None = Field(default=None, description="train on synthetic features; none: the base's")
    encoders: dict[str, tuple[str, ...]] = Field(default={}, description="settings of each encoder, by name")
    parts: dict[str, PartConfig]
    seeds: PositiveInt = 1
    learning_rate: RateConfig = RateConfig()
    metrics: tuple[Metric, ...] = Field(
        default=("loss",),
        description="loss in nats a target token on `validation.split`; scores of answers to `evaluate.split`",
    )
    points: PositiveInt = Field(default=8, description="losses along a training")
    tokens: PositiveFloat = Field(default=200.0, description="of a caption with its prompt, where no shards say it")
    targets: PositiveFloat = Field(default=90.0, description="of them learned to be said")
    retries: NonNegativeInt = Field(default=1, description="further attempts at a run that failed")
    keep_checkpoints: bool = Field(default=False, description="of runs that are done")
    budget: ChipConfig = ChipConfig()
    output: str = Field(default="", description="folder; empty is runs/scaling/<name>")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.parts:
            raise ValueError("parts: name at least one, such as `law: {size: [0.1M, 1M], captions: [1000, 4000]}`")
        for name, part in self.parts.items():
            if unknown := sorted({*part.encoder} - {*self.encoders}):
                raise ValueError(f"parts.{name}.encoder names {', '.join(unknown)}, which `encoders` does not have")
        return self

    @property
    def folder(self) -> Path:
        """Where everything of the study lies."""
        return Path(self.output or f"runs/scaling/{self.name}")


class Setting(NamedTuple):
    """What one run is, apart from its seed; None where the base decides.

    Attributes:
      size: name of the decoder's size.
      captions: unique ones; None until they are reckoned from a compute or a size.
      epochs: how often each caption is seen.
      rank: of the adapters.
      encoder: its name.
      query_tokens: soft tokens of each source.
      frames: of a sample.
      prefusion: its type.
    """

    size: str | None
    captions: int | None
    epochs: int
    rank: int | None
    encoder: str | None
    query_tokens: int | None
    frames: int | None
    prefusion: str | None


def settings(part: PartConfig) -> list[tuple[Setting, float | None]]:
    """What a part compares, each with the compute it is given if that decides its captions."""
    axes: list[tuple[Any, ...]] = [getattr(part, name) or (None,) for name in Setting._fields]
    return [(Setting(*values), flops) for *values, flops in product(*axes, part.flops or (None,))]


def read_study(path: Path | str) -> StudyConfig:
    """Read a study.

    Args:
      path: a YAML file, or the name of a shipped one (`configs/scaling`).

    Raises:
      UserError: no such file, an unknown key, a value of the wrong type, an impossible combination.
    """
    file = find_config(str(path))
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {error}") from error
    return as_study(values, str(file))


def as_study(values: Mapping[str, Any], origin: str) -> StudyConfig:
    """Check what a file says of a study."""
    return check_section(StudyConfig, values, origin)
