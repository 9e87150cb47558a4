"""Predictions on disk, in the order of the clips: JSON lines as they come, or CSV or Parquet made of them at the end.

What the file of predictions holds depends on the model and its inputs alone, so that it is the same whether or not the
work was interrupted. How long each clip took stands beside it, in FILE.timing.jsonl, whose first line says what the
predictions come from. Only whole windows (`predict.How.window`) are gone on from: a clip is always asked about in the
same company.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answer_file import begin, count_lines, keep_lines
from affectgpt_jax.inference.predict import Failed, Prediction
from affectgpt_jax.machine import NoLocks, lock
from affectgpt_jax.replacing import replacing

TEXTS = ("clip", "error", "question", "answer", "subtitle", "run", "model", "version", "limits")
LISTS = ("labels", "notes")
MAPPINGS = ("absent", "sources", "scores", "evidence")
NUMBERS = ("tokens", "seed", "step")
COLUMNS = (
    *("clip", "error", "question", "answer", "labels", "subtitle", "absent", "sources", "notes", "tokens", "seed"),
    *("run", "step", "model", "version", "limits", "scores", "evidence"),
)
"""Of a table; a clip without an answer has the first two."""

ROWS = 1024
"""Of a group in a Parquet file."""


class PredictionFile:
    """A file of predictions that is being written, by one process at a time.

    A context, which leaves the file to others at its end.

    Attributes:
      done: clips that have their record already; the next one is that of the clip of this number.
      failed: how many of them have no answer.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], clips: int, window: int, overwrite: bool = False) -> None:
        """Begin a file, or find where an interrupted attempt ended.

        Args:
          path: where to; the ending says what it is.
          facts: all that the predictions depend on, as JSON gives it back.
          clips: how many there are.
          window: how many are written at a time.
          overwrite: begin anew, whatever is there.

        Raises:
          UserError: no such kind of file, what is there comes from something else, another process is writing it, or it
            cannot be written.
        """
        self._path, self._clips = path, clips
        table = ending(path) != ".jsonl"
        self._lines = path.with_name(f"{path.name}.part.jsonl") if table else path
        self._timing = path.with_name(f"{path.name}.timing.jsonl")
        remedy = "name another --output, or begin it anew with --overwrite"
        if path.exists() and not self._timing.is_file() and not overwrite:
            raise UserError(f"--output {path} is there, and no {self._timing.name} says what it comes from; {remedy}")
        self._locked = _lock(self._timing, path)
        try:
            self._begin(facts, window, overwrite, table, remedy)
        except BaseException:
            self._locked.close()
            raise

    def _begin(self, facts: Mapping[str, Any], window: int, overwrite: bool, table: bool, remedy: str) -> None:
        path, clips = self._path, self._clips
        if overwrite:
            for file in (path, self._lines):
                file.unlink(missing_ok=True)
            keep_lines(self._timing, 0)  # it is what the lock is on
        times = begin(self._timing, facts, remedy)
        finished = table and path.exists() and len(times) == clips
        lines = clips if finished else min(count_lines(self._lines), len(times))
        self.done = lines if lines == clips else lines // window * window
        self.failed = sum(time["failed"] for time in times[: self.done])
        if not finished:
            self._lines.touch()
            keep_lines(self._lines, self.done)
            keep_lines(self._timing, 1 + self.done)
        self._finished = finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._locked.close()

    def write(self, outcomes: Sequence[Prediction | Failed]) -> None:
        """Add the outcomes of a window."""
        records = [outcome.record() for outcome in outcomes]
        times = [
            {"clip": record["clip"], "seconds": record.pop("seconds", None), "failed": "error" in record}
            for record in records
        ]
        for file, lines in ((self._lines, records), (self._timing, times)):
            try:
                with file.open("ab") as out:
                    out.write(b"".join(map(_line, lines)))
            except OSError as error:
                raise UserError(
                    f"{file} cannot be written ({error.strerror}); the same command goes on here"
                ) from error
        self.done += len(records)
        self.failed += sum(time["failed"] for time in times)

    def finish(self) -> None:
        """Make the table, if one is wanted, of the lines."""
        if self._finished or self._lines == self._path:
            return
        with replacing(self._path) as draft:
            (_write_csv if ending(self._path) == ".csv" else _write_parquet)(draft, self._records())
        self._lines.unlink()

    def _records(self) -> Iterator[dict[str, Any]]:
        with self._lines.open("rb") as lines:
            for line in lines:
                yield json.loads(line)


def _lock(file: Path, path: Path) -> BinaryIO:
    """Open a file, which is made if need be, for this process alone.

    Raises:
      UserError: another process has it, or it cannot be written.
    """
    try:
        opened = file.open("ab")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); name another --output") from error
    try:
        taken = lock(opened, wait=False)
    except NoLocks:
        return opened
    except OSError:
        opened.close()
        raise
    if not taken:
        opened.close()
        raise UserError(f"--output {path} is being written by another process; wait for it, or name another --output")
    return opened


def ending(path: Path) -> str:
    """The ending of a file of predictions.

    Raises:
      UserError: it is none.
    """
    known = (".jsonl", ".csv", ".parquet")
    if path.suffix.lower() not in known:
        raise UserError(f"--output {path}: expected a name that ends in {', '.join(known)}")
    return path.suffix.lower()


def _line(record: Mapping[str, Any]) -> bytes:
    # Bytes of a file name that are no text become what JSON has for them.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _write_csv(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """One row a clip; lists and mappings as JSON."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for record in records:
            inner = {key: json.dumps(record[key], ensure_ascii=False) for key in (*LISTS, *MAPPINGS) if key in record}
            table.writerow(record | inner)


def _write_parquet(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """One row a clip; lists as lists of text, mappings as JSON."""
    import pyarrow as pa  # slow to import, and only these files need it
    import pyarrow.parquet as pq

    kinds = dict.fromkeys((*TEXTS, *MAPPINGS), pa.string()) | dict.fromkeys(NUMBERS, pa.int64())
    kinds |= dict.fromkeys(LISTS, pa.list_(pa.string()))
    schema = pa.schema([(column, kinds[column]) for column in COLUMNS])
    with pq.ParquetWriter(path, schema) as table:
        rows: list[dict[str, Any]] = []
        for record in records:
            inner = {key: json.dumps(record[key], ensure_ascii=False) for key in MAPPINGS if key in record}
            rows.append({key: _plain(value) for key, value in (record | inner).items()})
            if len(rows) == ROWS:
                table.write_batch(pa.RecordBatch.from_pylist(rows, schema))
                rows = []
        table.write_batch(pa.RecordBatch.from_pylist(rows, schema))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_plain, value))
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
