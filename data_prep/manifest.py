"""A manifest of one's own: which clips there are, where their files lie and what is known of them, one row a clip."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.data.shard_schema import SPLITS, TextRecord
from affectgpt_jax.errors import UserError
from data_prep.readers import ClipRecord, Listing, Problem, is_clip_name, read_rows

MEDIA_COLUMNS = ("video", "audio", "faces")
COLUMNS = ("name", *MEDIA_COLUMNS, "subtitle", "chinese", "labels", "description", "split")
_KNOWN = ", ".join(COLUMNS)
CONTENT = (*MEDIA_COLUMNS, "subtitle")
"""Columns of which a row needs one."""


class _Entry(NamedTuple):
    """A row of any of the formats.

    Attributes:
        place: "line 3" of a text file, "row 2" of a Parquet file.
        cells: what it says, by column.
    """

    place: str
    cells: Mapping[str, Any]


class _Unusable(Exception):
    """Why a row cannot be used."""


def read_manifest_file(path: Path | str) -> Listing:
    """Reads a manifest: CSV, JSON Lines or Parquet, by its ending.

    Its columns are name, video, audio, faces, subtitle, chinese, labels, description and split. A row needs a name and
    one of video, audio, faces and subtitle. Files are named relative to the manifest's folder, or absolutely; labels
    are a list, or text such as "['happy', 'calm']" or "happy, calm"; the split is train if nothing is said. Names are
    text: "0012" stays "0012". A cell that is empty, null or NaN says nothing.

    Args:
        path: the file.

    Returns:
        The clips in the order of the file, and the problems: columns that are not known, rows that cannot be used and
        are skipped, files that are not there, for which the clip is kept without them.

    Raises:
        UserError: the file is missing, not of its format or not UTF-8, lacks a column, names are numbers, two rows
            have one name, or there is no clip.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: a manifest is a file that ends in {', '.join(_FORMATS)}")
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected a manifest with the columns {', '.join(COLUMNS)}")
    problems: list[Problem] = []
    records: list[ClipRecord] = []
    places: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for place, cells in _FORMATS[path.suffix.lower()](path, problems):
        unknown |= {column: place for column in cells if column not in (*COLUMNS, *unknown)}
        try:
            record, absent = _record(cells, path.parent)
        except _Unusable as reason:
            name = cells.get("name")
            named = name if isinstance(name, str) and is_clip_name(name) else ""
            skipped = f"{place}: {reason}; the {place.split()[0]} is skipped"
            problems.append(Problem(named, path.name, skipped, skipped=True))
            continue
        if record.name in places:
            raise UserError(
                f"{path}: {places[record.name]} and {place} have one name, {record.name!r}; a name must stand for one "
                "clip. Rename or remove one of them."
            )
        places[record.name] = place
        records.append(record)
        problems += [
            Problem(record.name, file, f"{path.name}, {place}: no such file; the clip is kept without this {part}")
            for part, file in absent.items()
        ]
    problems += [
        Problem("", path.name, f"column {column!r}, first in {place}, is not known and left out; known: {_KNOWN}")
        for column, place in unknown.items()
    ]
    if not records:
        first = f"; the first fault: {problems[0].reason}" if problems else ""
        raise UserError(f"{path} has no clip that can be used{first}")
    return Listing(tuple(records), tuple(problems))


def _record(cells: Mapping[str, Any], folder: Path) -> tuple[ClipRecord, dict[str, str]]:
    """A row as a clip, and the files it names that are not there, by column.

    Raises:
        _Unusable: it cannot be one.
    """
    name = cells.get("name")
    if name is not None and not isinstance(name, str):
        raise _Unusable(f"the name {name!r} is no text; write it in quotes")
    if not is_clip_name(name or ""):
        raise _Unusable(f"{name or ''!r} cannot name a clip")
    texts = {column: _text(cells, column) for column in COLUMNS if column not in ("name", "labels")}
    if not any(texts[column].strip() for column in CONTENT):
        raise _Unusable(f"has none of {', '.join(CONTENT)}")
    split = texts["split"].strip() or "train"
    if split not in SPLITS:
        raise _Unusable(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    named = {part: folder / texts[part].strip() for part in MEDIA_COLUMNS if texts[part].strip()}
    there = {part: file for part, file in named.items() if file.is_file()}
    text = TextRecord(
        str(name), split, texts["subtitle"], texts["chinese"], _labels(cells.get("labels")), texts["description"]
    )
    return ClipRecord(text, ClipFiles(**there)), {part: str(file) for part, file in named.items() if part not in there}


def _is_empty(value: Any) -> bool:
    """Whether a cell says nothing: it is empty, or a program wrote its mark for no value."""
    return value is None or value in ("nan", "NaN") or (isinstance(value, float) and value != value)


def _text(cells: Mapping[str, Any], column: str) -> str:
    value = cells.get(column)
    if _is_empty(value):
        return ""
    if not isinstance(value, str):
        raise _Unusable(f"{column} must be text, found {value!r}")
    return value


def _labels(value: Any) -> tuple[str, ...]:
    if _is_empty(value):
        return ()
    if isinstance(value, str):
        return tuple(parse_openset(value))
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        return tuple(label.strip() for label in value if label.strip())
    raise _Unusable(f"labels must be a list of text, or text, found {value!r}")


def _require(path: Path, columns: Sequence[str]) -> None:
    if "name" not in columns or not set(columns) & set(CONTENT):
        raise UserError(
            f"{path}: a manifest has the column name and at least one of {', '.join(CONTENT)}; found "
            f"{', '.join(map(repr, columns)) or 'none'}"
        )


def _csv(path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    for number, row in enumerate(read_rows(path, ("name",), problems)):
        if not number:
            _require(path, tuple(row.cells))
        yield _Entry(f"line {row.line}", row.cells)


def _jsonl(path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    cells = json.loads(line)
                except json.JSONDecodeError as error:
                    cells = error
                if isinstance(cells, dict):
                    yield _Entry(f"line {number}", cells)
                    continue
                found = f"no JSON ({cells.msg})" if isinstance(cells, json.JSONDecodeError) else "no JSON object"
                problems.append(Problem("", path.name, f"line {number}: {found}; the line is skipped", skipped=True))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error


def _parquet(path: Path, problems: list[Problem]) -> Iterator[_Entry]:
    import pyarrow as pa  # slow to import, and only these files need it
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _require(path, names)
        kind = file.schema_arrow.field("name").type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"{path}: the column name is {kind}, which loses leading zeros; write names as text")
        problems += [
            Problem("", path.name, f"column {name!r} is not known and left out; known: {_KNOWN}")
            for name in names
            if name not in COLUMNS
        ]
        known = [name for name in names if name in COLUMNS]
        rows = (row for batch in file.iter_batches(columns=known) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield _Entry(f"row {number}", row)
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}); write it anew") from error


_FORMATS: Mapping[str, Callable[[Path, list[Problem]], Iterator[_Entry]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}

ENDINGS = tuple(_FORMATS)
"""Of files that are manifests."""
