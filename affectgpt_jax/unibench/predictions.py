"""Predictions: the reference's npz files, and our own JSONL or Parquet.

The reference keeps three files per checkpoint: `NAME.npz` (raw answers), `NAME-openset.npz` (labels extracted from
them) and `NAME-openset-sentiment.npz` (the sentiment of those labels). Our own files have one record per clip with
`name`, `labels` (a list) and, for sentiment datasets, `sentiment` (positive, negative or neutral).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import Task
from affectgpt_jax.unibench.safe_npz import load_npz, plain_dict

LABEL_SUFFIX, SENTIMENT_SUFFIX = "-openset", "-openset-sentiment"
RECORD_SUFFIXES = (".jsonl", ".parquet")
POLARITIES: Mapping[str, int] = {"positive": 1, "negative": -1}
"""Sentiment word -> its sign; any other word is neither."""


@dataclass(frozen=True)
class Predictions:
    """What one checkpoint answered.

    Attributes:
        checkpoint: its name.
        path: the file.
        labels: clip -> predicted labels; for sentiment datasets the one word of its sentiment.
    """

    checkpoint: str
    path: Path
    labels: Mapping[str, tuple[str, ...]]


def read_answers(path: Path) -> dict[str, str]:
    """Raw answers of the reference's `NAME.npz`: clip -> text.

    Raises:
        UserError: the file is broken, or an answer is no text.
    """
    answers = plain_dict(path, load_npz(path), "name2reason")
    for name, answer in answers.items():
        if not isinstance(answer, str):
            raise UserError(f"{path}, clip {name!r}: expected an answer in words, found {answer!r}")
    return answers


def find_checkpoints(path: Path, task: Task) -> list[Path]:
    """The prediction files of a folder that a task is scored from, in the order of their names.

    Args:
        path: a folder, or one prediction file.
        task: `sentiment` needs `NAME-openset-sentiment.npz`, the others `NAME-openset.npz`; JSONL and Parquet serve
            all.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"predictions {path} do not exist; expected a folder or a file")
    suffix = SENTIMENT_SUFFIX if task == "sentiment" else LABEL_SUFFIX
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix in RECORD_SUFFIXES or (file.suffix == ".npz" and file.stem.endswith(suffix))
    )
    if not found:
        raise UserError(
            f"{path} has no predictions to score a {task} dataset from; expected *{suffix}.npz, *.jsonl or *.parquet, "
            f"found {', '.join(sorted(file.name for file in path.iterdir())[:5]) or 'nothing'}"
        )
    return found


def checkpoint_name(path: Path) -> str:
    """Name of a prediction file's checkpoint: the file's, without what says which step it is."""
    return path.stem.removesuffix(SENTIMENT_SUFFIX).removesuffix(LABEL_SUFFIX)


def read_predictions(path: Path, task: Task) -> Predictions:
    """Read the predictions of one checkpoint.

    Args:
        path: npz, JSONL or Parquet.
        task: which field of a record counts.

    Raises:
        UserError: the file is broken, a field is missing, or a clip occurs twice.
    """
    if path.suffix == ".npz":
        arrays = load_npz(path)
        for key in ("filenames", "fileitems"):
            if key not in arrays:
                raise UserError(f"{path} has no {key!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
        names, cells = arrays["filenames"].tolist(), arrays["fileitems"].tolist()
    else:
        names, cells = _read_records(path, "sentiment" if task == "sentiment" else "labels")
    if not isinstance(names, list) or not isinstance(cells, list) or len(names) != len(cells):
        raise UserError(f"{path}: the names and the labels are not two lists of one length")
    if any(not isinstance(name, str) for name in names):
        raise UserError(f"{path}: a clip's name is {next(n for n in names if not isinstance(n, str))!r}, not a string")
    labels = {name: _labels(cell) for name, cell in zip(names, cells, strict=True)}
    if len(labels) != len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise UserError(f"{path}: {len(twice)} names occur twice, such as {', '.join(twice[:5])}")
    return Predictions(checkpoint_name(path), path, labels)


def _labels(cell: object) -> tuple[str, ...]:
    """Labels of a cell: a list, a string such as "[happy, calm]", or nothing."""
    if isinstance(cell, list | tuple):
        return tuple(label.strip() for label in cell if isinstance(label, str) and label.strip())
    return tuple(parse_openset(cell))


def _read_records(path: Path, field: str) -> tuple[list[Any], list[Any]]:
    """Names and the named field of a JSONL or Parquet file."""
    records = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    names, cells = [], []
    for number, record in records:
        if not isinstance(record, dict) or "name" not in record or field not in record:
            raise UserError(f"{path}, record {number}: expected the fields name and {field}, found {record!r:.200}")
        names.append(record["name"])
        cells.append(record[field])
    return names, cells


def _jsonl(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except FileNotFoundError:
        raise UserError(f"predictions {path} do not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable as JSON lines ({error})") from error


def _parquet(path: Path) -> Iterable[tuple[int, Any]]:
    import pyarrow  # slow to import, and only these files need it
    import pyarrow.parquet

    try:
        return enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)
    except FileNotFoundError:
        raise UserError(f"predictions {path} do not exist") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not readable as Parquet ({error})") from error


def sentiment_signs(labels: Iterable[tuple[str, ...]]) -> np.ndarray:
    """Sign of each predicted sentiment word: -1, 0 (neutral, any other word, none) or +1; int64 [N]."""
    signs = [POLARITIES.get(words[0].lower(), 0) if len(words) == 1 else 0 for words in labels]
    return np.array(signs, np.int64)
