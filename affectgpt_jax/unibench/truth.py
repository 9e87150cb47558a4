"""Ground truth: the reference's label files, and CSV.

Free emotion words may also come as a `-openset.npz`: one system's labels can stand as the truth for another's.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import Dataset
from affectgpt_jax.unibench.predictions import read_predictions
from affectgpt_jax.unibench.safe_npz import load_npz, plain_dict
from affectgpt_jax.unibench.wheel import NEUTRAL

Split = Literal["test", "validation"]

CSV_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "basic": ("label", "emo"),
    "sentiment": ("value", "val"),
    "fine-grained": ("openset", "labels"),
}
"""Task -> the column of a CSV file, beside `name`, that holds the truth (first one present)."""


@dataclass(frozen=True)
class Truth:
    """What is true of N clips.

    Attributes:
        dataset: the dataset.
        names: the clips' names.
        labels: the true labels of each clip (one for `basic`); empty lists for `sentiment`.
        values: float64 [N], the true sentiment; zeros for the other tasks.
        path: where it was read.
    """

    dataset: Dataset
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    values: np.ndarray
    path: Path


def find_labels(path: Path, dataset: Dataset) -> Path:
    """The label file: `path` itself, or the dataset's file in that folder or in its `*-process` folder there.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    names = (dataset.label_file, f"{Path(dataset.label_file).stem}.csv")
    places = [folder / name for folder in (path, path / dataset.folder) for name in names]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"no labels of {dataset.title} at {path}; expected a file (npz or csv), or a folder with "
        f"{dataset.label_file} or {dataset.folder}/{dataset.label_file}"
    )


def read_truth(dataset: Dataset, path: Path, split: Split = "test", *, any_count: bool = False) -> Truth:
    """Read the ground truth of a dataset.

    Args:
        dataset: which one.
        path: a label file, or a folder that holds it (`find_labels`).
        split: the scored clips, or the validation clips where the dataset has them.
        any_count: allow another number of clips than the benchmark's.

    Returns:
        The truth, in the file's order.

    Raises:
        UserError: the file is missing or broken, a class is unknown, a value is NaN, a name occurs twice, there is no
            clip, or the number of clips is not the benchmark's.
    """
    file = find_labels(path, dataset)
    if file.suffix == ".csv":
        entries = _read_csv(file, dataset, CSV_COLUMNS[dataset.task])
    elif dataset.task == "fine-grained":
        entries = dict(read_predictions(file, dataset.task).labels)
    else:
        entries = _read_npz(file, dataset, split)
    if dataset.session is not None:
        entries = {name: entry for name, entry in entries.items() if name[4:5] == dataset.session}
    if dataset.splits_file is not None:
        splits = _read_splits(file.parent / dataset.splits_file, dataset)
        part = dataset.corpus if split == "test" else dataset.validation
        entries = {name: entry for name, entry in entries.items() if splits.get(name) == part}
    if not entries:
        raise UserError(f"{file} has no {split} clip of {dataset.title}, so there is nothing to score")
    if split == "test" and dataset.clips not in (None, len(entries)) and not any_count:
        raise UserError(
            f"{file}: expected the {dataset.clips:,} clips that MER-UniBench scores of {dataset.title}, found "
            f"{len(entries):,}; --any-count scores them all the same, but not comparably"
        )
    labels: tuple[tuple[str, ...], ...] = ((),) * len(entries)
    values = np.zeros(len(entries))
    if dataset.task == "sentiment":
        values[:] = [_value(entry, file, name) for name, entry in entries.items()]
    elif dataset.task == "fine-grained":
        lists = (entry if isinstance(entry, tuple) else tuple(parse_openset(entry)) for entry in entries.values())
        labels = tuple(words or (NEUTRAL,) for words in lists)
    else:
        known: dict[str, tuple[str]] = {}
        texts = [str(entry).strip().lower() for entry in entries.values()]
        for name, text in zip(entries, texts, strict=True):
            if text not in known:
                known[text] = (_class(text, dataset, file, name),)
        labels = tuple(known[text] for text in texts)
    values.setflags(write=False)
    return Truth(dataset, tuple(entries), labels, values, file)


def _class(text: str, dataset: Dataset, path: Path, name: str) -> str:
    """Class name of an entry: a name, or an id in the dataset's order."""
    if text.isdecimal() and int(text) < len(dataset.classes):
        return dataset.classes[int(text)]
    if (label := dataset.spellings.get(text, text)) in dataset.classes:
        return label
    raise UserError(
        f"{path}, clip {name!r}: unknown class {text!r}; {dataset.title} has {', '.join(dataset.classes)} (ids 0 to "
        f"{len(dataset.classes) - 1}). Is this the label file of another dataset?"
    )


def _value(entry: Any, path: Path, name: str) -> float:
    try:
        value = float(entry)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, clip {name!r}: expected a number for its sentiment, found {entry!r}")
    return value


def _read_npz(path: Path, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Clip name -> class or value."""
    corpus = dataset.corpus if split == "test" else dataset.validation
    if not corpus:
        raise UserError(f"{dataset.title} has no {split} clips in {path}")
    field = "val" if dataset.task == "sentiment" else "emo"
    entries = plain_dict(path, load_npz(path), corpus)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or field not in entry:
            raise UserError(f"{path}, clip {name!r}: expected a dictionary with {field!r}, found {entry!r}")
    return {name: entry[field] for name, entry in entries.items()}


def _read_splits(path: Path, dataset: Dataset) -> dict[str, Any]:
    """Clip name -> split."""
    if not path.is_file():
        raise UserError(
            f"there is no {path}, which says which clips of {dataset.label_file} are scored; expected both in one "
            "folder, as `affectgpt synth` writes them"
        )
    splits = _read_csv(path, dataset, ("split",))
    known = [part for part in ("train", dataset.validation, dataset.corpus) if part]
    for name, split in splits.items():
        if split not in known:
            raise UserError(f"{path}, clip {name!r}: unknown split {split!r}; expected one of {', '.join(known)}")
    return splits


def _read_csv(path: Path, dataset: Dataset, columns: tuple[str, ...]) -> dict[str, Any]:
    """Clip name -> cell of the first of the columns that is there. Names stay strings."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        column = next((name for name in columns if name in header), None)
        if "name" not in header or column is None:
            raise UserError(
                f"{path}: expected the columns name, {columns[0]} for {dataset.title}; "
                f"found {', '.join(header) or 'none'}"
            )
        name_at, cell_at = header.index("name"), header.index(column)
        entries: dict[str, Any] = {}
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(f"{path}, line {rows.line_num}: expected {len(header)} cells, found {len(row)}")
            name = row[name_at].strip()
            if not name or name in entries:
                fault = f"the name {name!r} occurs twice" if name else "the name is empty"
                raise UserError(f"{path}, line {rows.line_num}: {fault}")
            entries[name] = row[cell_at]
    return entries
