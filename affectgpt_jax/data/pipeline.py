"""From a corpus and a plan to batches: a Grain pipeline whose items are rows.

Each process makes its own slice of every global batch. Resuming is starting at a step; Grain's own state is not used,
so a run continues on any number of processes.
"""

import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape, Sample, collate_rows
from affectgpt_jax.data.plan import Plan, Row, uniform
from affectgpt_jax.data.tokens import TokenTable
from affectgpt_jax.errors import UserError

T = TypeVar("T")

ReadStream = Callable[[str, Sequence[int]], tuple[np.ndarray, np.ndarray]]
"""(stream, samples) -> what the encoders gave or will get [n, ...], and whether each sample has it [n]."""


class MediaInLoop(NamedTuple):
    """Encoders in the loop (`data.source: media`): what is read, and how a batch of it becomes features."""

    read: ReadStream
    shapes: dict[str, tuple[int, ...]]
    """Shape of one sample of each of the model's streams."""
    encode: Callable[[Batch], Batch]


@dataclass(frozen=True)
class RowSource:
    """Grain source: this process's rows of all steps, in order, `rows` of each of a step's accumulation rounds.

    A round's rows are dealt to the processes one block after the other, so the global batch is the same whatever their
    number.
    """

    plan: Plan = field(hash=False)
    steps: int
    rows: int
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
        turn, row = divmod(row, self.rows)
        return self.plan.row(step, (turn * self.processes + self.process) * self.rows + row)


@dataclass(frozen=True)
class RowLoader:
    """Reads the samples of rows.

    Attributes:
      tables: tokens of the usable samples, corpus by corpus; the plan counts through all of them.
      samples: index of each of the plan's samples for `read`.
      streams: corpus stream of each of the model's ("face" -> "face@8").
      read: reads a stream.
      hide: how often each modality is hidden in training.
      seed: what hiding follows from.
    """

    tables: tuple[TokenTable, ...]
    samples: np.ndarray
    streams: Mapping[str, str]
    read: ReadStream
    hide: Mapping[str, float]
    seed: int

    def __call__(self, rows: Sequence[Row]) -> list[list[Sample]]:
        """The samples of each row, read at once; none for an empty row."""
        asks = [ask for row in rows for ask in row.asks]
        if not asks:
            return [[] for _ in rows]
        where = self.samples[[ask.sample for ask in asks]].tolist()
        features = {name: self.read(stream, where) for name, stream in self.streams.items()}
        samples = []
        for i, ask in enumerate(asks):
            number = bisect_right(self._ends, ask.sample)
            place = ask.sample - (self._ends[number - 1] if number else 0)
            hide_text = self._hidden(ask.turn, "text", ask.sample)
            example = self.tables[number].example(place, ask.label_type, hide_text=hide_text)
            found = {
                name: x[i]
                for name, (x, present) in features.items()
                if present[i] and not self._hidden(ask.turn, name, ask.sample)
            }
            samples.append(Sample(example, found, ask.weight))
        left = iter(samples)
        return [[next(left) for _ in row.asks] for row in rows]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(table.samples) for table in self.tables))

    def _hidden(self, turn: int, modality: str, sample: int) -> bool:
        rate = self.hide.get(modality, 0.0)
        return bool(rate) and bool(_hiding(self.seed, turn, modality, len(self.samples))[sample] < rate)


@lru_cache(maxsize=16)
def _hiding(seed: int, turn: int, modality: str, count: int) -> np.ndarray:
    return uniform(seed, turn, f"hide {modality}", count)


def training_batches(
    plan: Plan,
    load: RowLoader,
    shape: BatchShape,
    *,
    start: int,
    steps: int,
    unattended: int | None = None,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches of the steps start .. steps - 1, this process's part; every array has a leading axis of rounds.

    Args:
      plan: rows of every step.
      load: reads rows.
      shape: static shape of one accumulation round on this process.
      start: first step, the position of a resumed run.
      steps: where the run ends.
      unattended: see `collate_rows`.
      process: number of this process.
      processes: how many there are; they divide the rows of a step.
      threads: reading threads, of each worker process if there are some.
      workers: worker processes; 0 reads in this one.

    Raises:
      UserError: rows that the processes and rounds do not divide; anything wrong with a shard or a sample; a worker
        process that was killed.
    """
    if plan.step_rows != shape.rows * plan.rounds * processes:
        raise UserError(
            f"a step of {plan.step_rows} rows cannot be split into {plan.rounds} rounds on {processes} processes of "
            f"{shape.rows} rows each"
        )
    source = RowSource(plan, steps, shape.rows, process, processes)
    whole = shape._replace(rows=source.local)

    def make(rows: Sequence[Row]) -> Batch:
        batch = collate_rows(load(rows), whole, unattended=unattended)
        return Batch(*(_map(lambda x: x.reshape(plan.rounds, shape.rows, *x.shape[1:]), part) for part in batch))

    batches = grain.MapDataset.source(source)[start * source.local :].batch(source.local, batch_fn=tuple).map(make)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, 2 * threads))
    return _read(batches.to_iter_dataset(options), workers)


def _map(change: Callable[[np.ndarray], np.ndarray], part: Any) -> Any:
    return {key: change(x) for key, x in part.items()} if isinstance(part, dict) else change(part)


def _read(batches: "grain.IterDataset[T]", workers: int) -> Iterator[T]:
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks a flag of its own whether to profile its workers
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_outlive_signals)
    iterator = iter(batches)
    try:
        yield from iterator
    except RuntimeError as error:
        if "terminated unexpectedly" in str(error):
            raise UserError(
                f"a data worker process was killed ({str(error).splitlines()[0]}); if memory ran out, lower "
                "data.workers or data.threads. The run goes on from its last checkpoint"
            ) from error
        raise
    finally:
        iterator.close()


def _outlive_signals(number: int, count: int) -> None:
    """A scheduler's SIGTERM or Ctrl-C reaches every process of a job; the batches go on until the run has saved."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
