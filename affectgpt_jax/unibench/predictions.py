"""Predictions: the reference's npz files, and our own JSONL or Parquet.

The reference keeps three files per checkpoint: `NAME.npz` (raw answers), `NAME-openset.npz` (labels extracted from
them) and `NAME-openset-sentiment.npz` (the sentiment of those labels). Our own files have one record per clip with
`name`, `labels` (a list) and, for sentiment datasets, `sentiment` (positive, negative or neutral).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import Task
from affectgpt_jax.unibench.safe_npz import load_npz, plain_dict

if TYPE_CHECKING:
    import pyarrow as pa

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
        names, answers = _read_npz(path)
    else:
        names, answers = _read_records(path, "sentiment" if task == "sentiment" else "labels")
    labels = dict(zip(names, answers, strict=True))
    if len(labels) != len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise UserError(f"{path}: {len(twice)} names occur twice, such as {', '.join(twice[:5])}")
    return Predictions(checkpoint_name(path), path, labels)


def _read_npz(path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names and labels of a file of the reference."""
    arrays = load_npz(path)
    for key in ("filenames", "fileitems"):
        if key not in arrays:
            raise UserError(f"{path} has no {key!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    names, cells = arrays["filenames"].tolist(), arrays["fileitems"].tolist()
    if not isinstance(names, list) or not isinstance(cells, list) or len(names) != len(cells):
        raise UserError(f"{path}: filenames and fileitems are not two lists of one length")
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{path}: a clip's name is {odd[0]!r}, not a string")
    return names, [tuple(parse_openset(cell)) for cell in cells]


def _read_records(path: Path, field: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names and labels of a JSONL or Parquet file."""
    import pyarrow as pa  # slow to import, and only these files need it

    if not path.is_file():
        raise UserError(f"predictions {path} do not exist")
    try:
        table = _parquet(path, field) if path.suffix == ".parquet" else _jsonl(path, field)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, pa.ArrowException) as error:
        raise UserError(f"{path} is not readable as records with name and {field} ({error})") from error
    for column in table.column_names:
        if table.column(column).null_count:
            number = table.column(column).is_null().to_pylist().index(True) + 1
            raise UserError(f"{path}, record {number}: {column} is missing")
    names, cells = table.column("name"), table.column(field)
    if not _is_text(names.type):
        raise UserError(f"{path}: expected strings as names, found {names.type}")
    if _is_text(cells.type):
        return names.to_pylist(), [tuple(parse_openset(cell)) for cell in cells.to_pylist()]
    if not (pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)) or not _is_text(cells.type.value_type):
        raise UserError(f"{path}: expected {field} to be a string or a list of strings, found {cells.type}")
    lists = cells.combine_chunks()
    if lists.values.null_count:
        raise UserError(f"{path}: a label in {field} is missing; expected lists of strings")
    words = list(map(str.strip, lists.values.to_pylist()))
    return names.to_pylist(), [tuple(filter(None, words[a:b])) for a, b in pairwise(lists.offsets.to_pylist())]


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    # a list without any word has no type of its own
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _parquet(path: Path, field: str) -> "pa.Table":
    """The two columns."""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_schema(path).names
    if not {"name", field}.issubset(columns):
        raise UserError(f"{path}: expected the columns name and {field}, found {', '.join(columns)}")
    return pyarrow.parquet.read_table(path, columns=["name", field])


def _jsonl(path: Path, field: str) -> "pa.Table":
    """The two fields of all records; the first record says whether its labels are a string or a list."""
    import pyarrow as pa
    import pyarrow.json

    with path.open(encoding="utf-8") as file:
        first = json.loads(next((line for line in file if not line.isspace()), "{}"))
    if not isinstance(first, dict) or "name" not in first or field not in first:
        raise UserError(f"{path}: expected objects with the fields name and {field}, found {first!r:.200}")
    labels = pa.list_(pa.string()) if isinstance(first[field], list) else pa.string()
    schema = pa.schema([("name", pa.string()), (field, labels)])
    return pyarrow.json.read_json(
        path,
        # the default block ends a line of more than a megabyte
        read_options=pyarrow.json.ReadOptions(block_size=1 << 25),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )


def sentiment_signs(labels: Iterable[tuple[str, ...]]) -> np.ndarray:
    """Sign of each predicted sentiment word: -1, 0 (neutral, any other word, none) or +1; int64 [N]."""
    signs = [POLARITIES.get(words[0].lower(), 0) if len(words) == 1 else 0 for words in labels]
    return np.array(signs, np.int64)
