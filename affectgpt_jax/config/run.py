"""Settings of a run: where weights and data come from, how it trains, where it writes."""

import re
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from affectgpt_jax.config.base import Section
from affectgpt_jax.config.networks import FUSED, LINEARS, Dtype, ModelConfig
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.data.shard_schema import parse_stream

Compat = Literal["strict", "reference"]
Rate = float


class WeightsConfig(Section):
    """Hugging Face folders. What they hold decides sizes wherever a folder is named."""

    vision: str | None = Field(default=None, description="CLIP folder; needed to prepare a corpus and to predict")
    audio: str | None = Field(default=None, description="HuBERT folder; needed to prepare a corpus and to predict")
    language: str | None = Field(default=None, description="Qwen2 folder; None starts from random weights")
    tokenizer: str = Field(default="", description="tokenizer folder; empty takes the one in `language`")


class PrepareConfig(Section):
    """From a corpus of clips to feature shards."""

    corpus: str = Field(default="", description="manifest of clips, folder, or KIND:PATH")
    streams: tuple[str, ...] = Field(default=("face@8", "audio@8"), description="feature streams, name@frames")
    missing: Literal["keep", "drop"] = Field(default="keep", description="clips that lack a modality")
    faces: Literal["files", "detect", "files_or_detect"] = Field(
        default="files", description="face crops: stored with the clips, detected in the video, or the second for want"
    )
    detector: str = Field(default="", description="ONNX face detector of YuNet's form; empty is the built-in one")
    dtype: Dtype = Field(
        default="float32", description="arithmetic of the encoders; bfloat16 is faster on GPUs and TPUs, and less exact"
    )
    batch_clips: PositiveInt = 16
    shard_clips: PositiveInt = 4096
    decode_threads: PositiveInt = 2


class DropoutRates(Section):
    """How often training hides a modality that is there, drawn anew for each sample and epoch."""

    face: Rate = Field(default=0.0, ge=0, lt=1)
    frame: Rate = Field(default=0.0, ge=0, lt=1)
    audio: Rate = Field(default=0.0, ge=0, lt=1)
    text: Rate = Field(default=0.0, ge=0, lt=1)


class MixtureConfig(Section):
    """One more corpus to train on, beside `data.shards`."""

    shards: str = Field(description="folder that `prepare` wrote, or its copy at gs://... or s3://...")
    weight: PositiveFloat = Field(
        default=1.0, description="how often it is gone through while data.shards is once: 0.25 takes a quarter a pass"
    )


class DataConfig(Section):
    """Samples and rows."""

    shards: str = Field(default="", description="folder that `prepare` wrote, or its copy at gs://... or s3://...")
    mixture: tuple[MixtureConfig, ...] = Field(default=(), description="further corpora to train on")
    samples: NonNegativeInt = Field(
        default=0,
        description="train on so many samples of data.shards only, the same for every seed, all of them among those of "
        "a larger number; 0: on all",
    )
    source: Literal["features", "media"] = Field(
        default="features", description="prepared features, or clips decoded and encoded in the loop"
    )
    split: str = "train"
    label_types: tuple[Literal["ovlabel", "description"], ...] = ("ovlabel", "description")
    label_weights: tuple[PositiveFloat, ...] = Field(default=(1.0, 1.0), description="how often each type is asked")
    hide: DropoutRates = DropoutRates()
    max_length: PositiveInt = Field(default=1024, description="longest prompt plus answer, in tokens")
    row_length: PositiveInt = Field(default=2048, description="tokens of a row")
    row_samples: PositiveInt = Field(default=16, description="samples of a row at most; 1 packs nothing")
    row_targets: PositiveInt = Field(default=1024, description="target tokens of a row at most")
    weighting: Literal["token", "sample", "reference"] = Field(
        default="token", description="what the loss is a mean over: target tokens, samples, or the groups of `group`"
    )
    group: PositiveInt = Field(default=3, description="samples of one of the reference's batches, for `weighting`")
    window: PositiveInt = Field(default=512, description="samples among which rows are packed")
    threads: NonNegativeInt = Field(default=2, description="reading threads, of each worker process if there are some")
    workers: NonNegativeInt = Field(
        default=0, description="worker processes that read; pays with many cores for media, hardly for features"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.label_weights) != len(self.label_types):
            raise ValueError(
                f"label_weights has {len(self.label_weights)} entries, label_types {len(self.label_types)}; one each"
            )
        if self.mixture and self.source == "media":
            raise ValueError("mixture needs prepared features: use source=features")
        if self.max_length + 2 > self.row_length:
            raise ValueError(
                f"max_length={self.max_length} plus two special tokens exceeds row_length={self.row_length}; "
                f"use max_length={self.row_length - 2}"
            )
        return self


class OptimizerConfig(Section):
    """AdamW and its learning rate (SPEC 2.7)."""

    peak: PositiveFloat = 1e-5
    end: float = Field(default=1e-5, ge=0)
    warmup_start: float = Field(default=1e-6, ge=0)
    warmup_steps: NonNegativeInt = 5000
    epoch_steps: PositiveInt = Field(
        default=5000, description="steps of one of the reference's epochs; only its own schedule looks at it"
    )
    schedule: Compat = Field(default="strict", description="`reference` restarts the warm-up as the original does")
    weight_decay: float = Field(default=0.05, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = None


class MeshConfig(Section):
    """Device counts along each axis, from the slowest network to the fastest; -1 takes what the others leave."""

    slice: int = Field(default=1, description="TPU slices, or nodes over a slower network: they split the rows")
    data: int = Field(default=-1, description="splits the rows of a batch")
    fsdp: int = Field(default=1, description="splits the rows, and parameters along their width")
    tensor: int = Field(default=1, description="splits heads, inner widths and the vocabulary; divides kv_heads")

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = {"slice": self.slice, "data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        if sum(size == -1 for size in sizes.values()) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
            raise ValueError(f"{sizes}: sizes are positive, and at most one is -1")
        return self


class TrainConfig(Section):
    """The loop."""

    output: str = Field(default="", description="run folder; empty is runs/<name>")
    init_from: str = Field(
        default="", description="run folder, export or .pth whose learned parameters the run starts from"
    )
    other_corpus: bool = Field(default=False, description="go on although data.shards is not what the run began with")
    steps: PositiveInt = Field(default=300_000, description="optimizer steps")
    rows: PositiveInt = Field(default=3, description="rows of a batch, over all devices")
    accumulate: PositiveInt = Field(default=1, description="batches of one optimizer step")
    trainable: tuple[str, ...] = Field(
        default=(r"^fusion/", r"/lora_[ab]$"), description="regular expressions of the parameters that are trained"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = Field(default=42, description="initial weights, order of samples and dropout follow from it")
    dropout: bool = Field(default=True, description="adapter and Q-Former dropout")
    checkpoint_every: PositiveInt = 5000
    keep: PositiveInt = Field(default=3, description="latest checkpoints kept")
    keep_every: NonNegativeInt = Field(default=0, description="checkpoints at multiples of this are kept for good")
    log_every: PositiveInt = 10
    expected: tuple[tuple[PositiveInt, float], ...] = Field(
        default=(),
        description="samples seen and loss then of a run to compare with, drawn beside this one's in its report",
    )
    bad_loss: Literal["stop", "skip", "rewind"] = Field(
        default="stop",
        description="at a loss or gradient that is no number: stop; skip the step's update; or go back to the newest "
        "checkpoint's parameters and on with the data after the step",
    )
    bad_losses: PositiveInt = Field(default=5, description="such steps within the last hundred that end the run")
    profile: str = Field(
        default="", description="steps to trace for xprof, FIRST:LAST; SIGUSR1 traces the next five at any time"
    )
    wandb: str = Field(default="", description="Weights & Biases project that gets the metrics too")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.profile:
            first, _, last = self.profile.partition(":")
            if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
                raise ValueError(f"profile={self.profile!r}: expected FIRST:LAST, two step numbers such as 20:24")
        return self


class ValidationConfig(Section):
    """Measuring on a held-out split while training, apart from the run's own data."""

    every: NonNegativeInt = Field(
        default=0, description="optimizer steps between two validations, the last step is one too; 0 never validates"
    )
    split: str = "validation"
    samples: PositiveInt = Field(default=512, description="samples whose loss is measured at most, the first ones")
    answers: NonNegativeInt = Field(
        default=0, description="samples, the first ones, that are answered and scored too, as `evaluate` says"
    )
    best: Literal["loss", "hit_rate", "f_score"] = Field(
        default="loss", description="what says which checkpoint is the best, which is kept in the run folder's best/"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.best != "loss" and not self.answers:
            raise ValueError(f"best={self.best} needs answers: set answers to the number of samples to answer")
        return self


class EvaluateConfig(Section):
    """Answering a split."""

    split: str = "test"
    batch: PositiveInt = 32
    max_new: PositiveInt = Field(default=64, description="tokens of an answer at most")
    question: str = "ovlabel"
    extractor: str = Field(
        default="",
        description="language model that reads labels out of answers, for `benchmark` and `submission`; empty: by rule",
    )


class RunConfig(Section):
    """Everything a run is."""

    name: str = "run"
    compat: Compat = Field(default="strict", description="`reference` reproduces the original's quirks")
    model: ModelConfig = ModelConfig()
    weights: WeightsConfig = WeightsConfig()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_frozen()
        counts = {stream.modality: stream.count for stream in map(parse_stream, self.prepare.streams)}
        wanted = needs(self.model.mode)
        lost = [stream for stream in wanted.streams if stream not in counts and stream != "image"]
        if lost:
            raise ValueError(
                f"prepare.streams={list(self.prepare.streams)} lacks {', '.join(lost)}, which "
                f"model.mode={self.model.mode} needs; add {', '.join(f'{stream}@8' for stream in lost)}"
            )
        tables = {"face": "video", "frame": "video", "audio": "audio"}
        for stream in wanted.streams:
            table = tables.get(stream)
            if table and getattr(self.model, table) == "qformer" and stream in wanted.soft:
                size = getattr(self.model.positions, table)
                if counts[stream] > size:
                    raise ValueError(
                        f"prepare.streams has {stream}@{counts[stream]}, more than the Q-Former's position table "
                        f"model.positions.{table}={size} holds; use {stream}@{size} or fewer"
                    )
        return self

    def _check_frozen(self) -> None:
        """What is held as int8 or fused cannot be trained."""
        decoder = self.model.decoder
        kernels = [f"{linear}/kernel" for linear in LINEARS]
        together = [
            f"{linear}/{leaf}" for linears in FUSED.values() for linear in linears for leaf in ("kernel", "bias")
        ]
        for key, now, other, fixed in (("base", "int8", "float", kernels), ("fused", True, False, together)):
            if getattr(decoder, key) != now:
                continue
            why, remedy = (f"model.decoder.{key}={str(value).lower()}" for value in (now, other))
            for pattern in self.train.trainable:
                paths = (f"decoder/layers/{path}" for path in fixed)
                if found := next((path for path in paths if re.search(pattern, path)), None):
                    raise ValueError(
                        f"train.trainable has {pattern!r}, which matches {found}, but with {why} it cannot be trained; "
                        f"set {remedy}, or train the adapters: ['^fusion/', '/lora_[ab]$']"
                    )
