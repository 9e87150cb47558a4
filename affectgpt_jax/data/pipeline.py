"""From a corpus and a plan to batches: a Grain pipeline whose items are rows.

Each process makes its own slice of every global batch. Resuming is starting at a step; Grain's own state is not used,
so a run continues on any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import grain
import numpy as np

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import (
    BatchShape,
    Conversation,
    Example,
    LossWeighting,
    Rejected,
    Sample,
    collate_rows,
    training_example,
)
from affectgpt_jax.data.plan import Plan, Row, uniform
from affectgpt_jax.data.prompts import Compat, answer, label_text, question
from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError

ReadStream = Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]]
"""(stream, samples) -> what the encoders gave or will get [n, ...], and whether each sample has it [n]."""


class MediaInLoop(NamedTuple):
    """Encoders in the loop (`data.source: media`): what is read, and how a batch of it becomes features."""

    read: ReadStream
    shapes: dict[str, tuple[int, ...]]
    """Shape of one sample of each of the model's streams."""
    encode: Callable[[Batch], Batch]


@dataclass(frozen=True)
class Asker:
    """Turns a sample's texts into tokens.

    Attributes:
      tokenizer: the tokenizer.
      mode: input mode of the model.
      layout: the model's soft tokens (`prompts.soft_layout`).
      label_types: question types in the plan's order.
      compat: see `prompts.Compat`.
      max_length: longest prompt plus answer.
    """

    tokenizer: Tokenizer
    mode: str
    layout: Mapping[str, range]
    label_types: tuple[str, ...]
    compat: Compat
    max_length: int

    def __call__(self, text: TextRecord, label_type: int, *, hide_text: bool = False) -> Example | Rejected:
        """One question about a sample and its answer; `hide_text` leaves the subtitle empty."""
        kind = self.label_types[label_type]
        if kind == "description":
            if not text.description:
                return Rejected(text.name, "has no description to learn")
            target = answer(kind, description=text.description)
        else:
            target = answer(kind, labels=label_text(text.labels))
        subtitle = "" if hide_text else text.subtitle
        conversation = Conversation(text.name, self.mode, subtitle, question(kind), target)
        return training_example(
            conversation, self.layout, self.tokenizer, compat=self.compat, max_length=self.max_length
        )


class Lengths(NamedTuple):
    """What a plan is made from: [types, samples] each, and what could not be used."""

    tokens: np.ndarray
    targets: np.ndarray
    samples: np.ndarray
    """Indices into the corpus of the usable samples; the plan counts in these."""
    rejected: tuple[Rejected, ...]


def measure(texts: Sequence[TextRecord], ask: Asker, report: Callable[[int], None] | None = None) -> Lengths:
    """Tokenise every sample once for each question type and keep the lengths.

    A sample that any of the types cannot use is left out and listed; nothing takes its place.
    """
    tokens, targets, samples, rejected = [], [], [], []
    for index, text in enumerate(texts):
        examples = [ask(text, kind) for kind in range(len(ask.label_types))]
        refused = [example for example in examples if isinstance(example, Rejected)]
        rejected += refused[:1]
        if not refused:
            usable = [example for example in examples if isinstance(example, Example)]
            tokens.append([len(example.tokens) for example in usable])
            targets.append([len(example.target_ids) for example in usable])
            samples.append(index)
        if report is not None:
            report(index + 1)
    shape = (-1, len(ask.label_types))
    return Lengths(
        np.asarray(tokens, np.int64).reshape(shape).T,
        np.asarray(targets, np.int64).reshape(shape).T,
        np.asarray(samples, np.int64),
        tuple(rejected),
    )


@dataclass(frozen=True)
class RowSource:
    """Grain source: this process's rows of all steps, in order. Item j is row j % local of step j // local."""

    plan: Plan = field(hash=False)
    steps: int
    process: int
    processes: int

    @property
    def local(self) -> int:
        """Rows of a step that this process makes."""
        return self.plan.step_rows // self.processes

    def __len__(self) -> int:
        return self.steps * self.local

    def __getitem__(self, item: Any) -> Row:
        step, row = divmod(int(item), self.local)
        return self.plan.row(step, self.process * self.local + row)


@dataclass(frozen=True)
class RowLoader:
    """Reads and tokenises the samples of a row.

    Attributes:
      corpus: where texts come from.
      samples: corpus index of each of the plan's samples.
      ask: the tokenisation.
      streams: corpus stream of each of the model's ("face" -> "face@8").
      read: reads a stream.
      hide: how often each modality is hidden in training.
      seed: what hiding follows from.
    """

    corpus: Corpus
    samples: np.ndarray
    ask: Asker
    streams: Mapping[str, str]
    read: ReadStream
    hide: Mapping[str, float]
    seed: int

    def __call__(self, row: Row) -> list[Sample]:
        """The row's samples; empty for an empty row."""
        if not row.asks:
            return []
        where = [int(self.samples[ask.sample]) for ask in row.asks]
        texts = self.corpus.texts(where)
        features = {name: self.read(stream, where) for name, stream in self.streams.items()}
        samples = []
        for i, (ask, text) in enumerate(zip(row.asks, texts, strict=True)):
            example = self.ask(text, ask.label_type, hide_text=self._hidden(row.epoch, "text", ask.sample))
            if isinstance(example, Rejected):
                raise UserError(f"sample {example.name} {example.reason}; it was usable when the run was planned")
            found = {
                name: x[i]
                for name, (x, present) in features.items()
                if present[i] and not self._hidden(row.epoch, name, ask.sample)
            }
            samples.append(Sample(example, found))
        return samples

    def _hidden(self, epoch: int, modality: str, sample: int) -> bool:
        rate = self.hide.get(modality, 0.0)
        return bool(rate) and bool(_hiding(self.seed, epoch, modality, len(self.samples))[sample] < rate)


@lru_cache(maxsize=16)
def _hiding(seed: int, epoch: int, modality: str, count: int) -> np.ndarray:
    return uniform(seed, epoch, f"hide {modality}", count)


def training_batches(
    plan: Plan,
    load: RowLoader,
    shape: BatchShape,
    *,
    start: int,
    steps: int,
    rounds: int = 1,
    weighting: LossWeighting = "token",
    group: int = 1,
    unattended: int | None = None,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
) -> Iterator[Batch]:
    """Batches of the steps start .. steps - 1, this process's part.

    Args:
      plan: rows of every step.
      load: reads a row.
      shape: static shape of one accumulation round on this process.
      start: first step, the position of a resumed run.
      steps: where the run ends.
      rounds: accumulation rounds; every array gets a leading axis of that size.
      weighting: what the loss is a mean over.
      group: see `collate_rows`.
      unattended: see `collate_rows`.
      process: number of this process.
      processes: how many there are; they divide the rows of a step.
      threads: reading threads.

    Raises:
      UserError: rows that the processes and rounds do not divide.
    """
    if plan.step_rows != shape.rows * rounds * processes:
        raise UserError(
            f"a step of {plan.step_rows} rows cannot be split into {rounds} rounds on {processes} processes of "
            f"{shape.rows} rows each"
        )

    def collate(rows: Sequence[list[Sample]]) -> Batch:
        parts = [
            collate_rows(rows[i : i + shape.rows], shape, loss_weighting=weighting, group=group, unattended=unattended)
            for i in range(0, len(rows), shape.rows)
        ]
        return Batch(*(_stack(column) for column in zip(*parts, strict=True)))

    source = RowSource(plan, steps, process, processes)
    rows = grain.MapDataset.source(source)[start * source.local :].map(load)
    batches = rows.batch(source.local, batch_fn=collate)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    yield from batches.to_iter_dataset(options)


def _stack(arrays: Sequence[Any]) -> Any:
    if isinstance(arrays[0], dict):
        return {key: np.stack([array[key] for array in arrays]) for key in arrays[0]}
    return np.stack(arrays)
