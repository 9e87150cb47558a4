"""A run's data: from its config to the plan and this process's batches."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.asker import Asker
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape
from affectgpt_jax.data.pipeline import MediaInLoop, RowLoader, training_batches
from affectgpt_jax.data.plan import Limits, Part, Plan
from affectgpt_jax.data.prompts import layout_size
from affectgpt_jax.data.shards import Mixture, mix
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.data.tokens import TokenTable, corpus_tokens
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import model_layout, model_streams, open_shards
from affectgpt_jax.training.telemetry import clock

TELL_EVERY = 10.0
"""Seconds between lines about how far a corpus is tokenised."""


class RunData(NamedTuple):
    """What a run is fed.

    Attributes:
      corpus: all its samples.
      plan: rows of every step.
      samples: corpus index of each of the plan's samples.
      tables: their tokens, corpus by corpus.
    """

    corpus: Mixture
    plan: Plan
    samples: np.ndarray
    tables: tuple[TokenTable, ...]

    def names(self, step: int) -> list[str]:
        """Names of all samples of a step, row by row."""
        rows = (self.plan.row(step, row) for row in range(self.plan.step_rows))
        asks = [ask.sample for row in rows for ask in row.asks]
        return [text.name for text in self.corpus.texts(self.samples[asks])] if asks else []


def make_asker(config: RunConfig, tokenizer: Tokenizer) -> Asker:
    """The tokenisation of a run."""
    return Asker(
        tokenizer,
        config.model.mode,
        model_layout(config),
        config.data.label_types,
        config.compat,
        config.data.max_length,
    )


def open_training_shards(config: RunConfig, *, verify: bool = True) -> Mixture:
    """The corpora that a run trains on: `data.shards`, once a pass, and those of `data.mixture`."""
    data = config.data
    roots = [data.shards, *(part.shards for part in data.mixture)]
    corpora = [open_shards(config, data.split, root, verify=verify) for root in roots]
    return mix(corpora, [1.0, *(part.weight for part in data.mixture)])


def make_data(
    config: RunConfig,
    tokenizer: Tokenizer,
    corpus: Mixture,
    say: Callable[[str], None],
    *,
    most: int | None = None,
) -> RunData:
    """The plan of a run over its corpora.

    Args:
      config: the run, resolved.
      tokenizer: the run's.
      corpus: what `open_training_shards` opened.
      say: told what is left out, and what a pass is.
      most: only so many samples, the first ones, of a single corpus.
    """
    data = config.data
    started = time.perf_counter()
    ask = make_asker(config, tokenizer)
    tables = tuple(corpus_tokens(part, ask, _teller(str(part.root), say)) for part in corpus.corpora)
    for rejected in (entry for table in tables for entry in table.rejected):
        say(f"left out: {rejected.name} {rejected.reason}")
    subsets = (data.samples, *(0 for _ in data.mixture))
    plan = Plan(
        tokens=np.concatenate([table.lengths[:, :most] for table in tables], axis=1),
        targets=np.concatenate([table.targets[:, :most] for table in tables], axis=1),
        limits=Limits(data.row_length, data.row_targets, data.row_samples),
        step_rows=config.train.rows * config.train.accumulate,
        seed=config.train.seed,
        weights=data.label_weights,
        types="draw" if config.compat == "reference" else "alternate",
        window=data.window,
        rounds=config.train.accumulate,
        weighting=data.weighting,
        group=data.group,
        parts=tuple(
            Part(len(table.samples[:most]), weight, subset)
            for table, weight, subset in zip(tables, corpus.weights, subsets, strict=True)
        ),
    )
    samples = np.concatenate([table.samples + corpus.offset(i) for i, table in enumerate(tables)])
    rows = plan.epoch(0)
    filled = int(plan.tokens[rows.types, rows.samples].sum())
    say(
        f"{len(rows.samples)} samples in {len(rows)} rows of {data.row_length}, "
        f"{filled / len(rows) / data.row_length:.0%} filled, {plan.epoch_steps(0)} steps a pass "
        f"(planned in {clock(time.perf_counter() - started)})"
    )
    return RunData(corpus, plan, samples, tables)


def _teller(root: str, say: Callable[[str], None]) -> Callable[[int, int], None]:
    told = time.perf_counter()

    def report(done: int, total: int) -> None:
        nonlocal told
        if time.perf_counter() - told > TELL_EVERY:
            told = time.perf_counter()
            say(f"{root}: {done} of {total} texts tokenised")

    return report


def batch_shape(
    config: RunConfig, rows: int, streams: Mapping[str, tuple[int, int]], feature_dtype: npt.DTypeLike
) -> BatchShape:
    """The shape of a round of a run's batches.

    Args:
      config: the run, resolved.
      rows: of the round, or of this process's part of it.
      streams: time steps and width of each stream's features.
      feature_dtype: their type.
    """
    data, soft = config.data, layout_size(model_layout(config))
    return BatchShape(rows, data.row_length, data.row_targets, data.row_samples, soft, streams, feature_dtype)


def make_batches(
    config: RunConfig,
    tokenizer: Tokenizer,
    data: RunData,
    start: int,
    part: tuple[int, int] = (0, 1),
    media: MediaInLoop | None = None,
) -> Iterator[Batch]:
    """This process's part of the batches from step `start` on.

    Args:
      config: the run, resolved.
      tokenizer: the run's.
      data: its plan.
      start: optimizer steps taken, the position in the data.
      part: which part of each batch's rows this process makes, and how many parts there are.
      media: encoders in the loop.

    Raises:
      UserError: samples lack a modality that the model has nothing to put in place of.
    """
    streams = model_streams(config)
    shapes: dict[str, Any] = (
        dict(media.shapes) if media else {name: data.corpus.shape(stream) for name, stream in streams.items()}
    )
    if not config.model.absent:
        _require_complete(config, data)
    loader = RowLoader(
        tables=data.tables,
        samples=data.samples,
        streams=streams,
        read=media.read if media else data.corpus.features,
        hide=config.data.hide.model_dump(),
        seed=config.train.seed,
    )
    shape = batch_shape(config, config.train.rows // part[1], shapes, np.float32 if media else np.float16)
    return training_batches(
        data.plan,
        loader,
        shape,
        start=start,
        steps=config.train.steps,
        unattended=tokenizer.eos if config.compat == "reference" else None,
        process=part[0],
        processes=part[1],
        threads=config.data.threads,
        workers=config.data.workers,
    )


def _require_complete(config: RunConfig, data: RunData) -> None:
    for stream in model_streams(config).values():
        lost = np.flatnonzero(~data.corpus.present(stream)[data.samples])
        if len(lost) or any(config.data.hide.model_dump().values()):
            what = f"{len(lost)} samples lack {stream}" if len(lost) else "data.hide hides modalities"
            raise UserError(
                f"{what}, and the model has nothing to put in their place; set model.absent=true to learn it, "
                "or prepare with prepare.missing=drop"
            )
