"""JSON lines that are written as answers come, and gone on with after an interruption.

The first line says what the answers come from; a file that says something else is never continued.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from affectgpt_jax.errors import UserError

Record = dict[str, Any]


def step_name(step: int) -> str:
    """Name of a checkpoint in files, whose order is that of the steps."""
    return f"step{step:08d}"


def begin(file: Path, facts: Mapping[str, Any], remedy: str) -> list[Record]:
    """What an interrupted attempt left in a file; begins the file if there is none.

    Args:
      file: the file.
      facts: what its records come from.
      remedy: what to do about a file that says something else.

    Raises:
      UserError: the file says something else, or is no such file.
    """
    lines = _lines(file) if file.is_file() else []
    if not lines:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
        return []
    found = lines[0]
    if other := {key: value for key, value in facts.items() if found.get(key) != value}:
        listed = ", ".join(f"{key} {found.get(key)!r} instead of {value!r}" for key, value in other.items())
        raise UserError(f"{file} has answers of something else: {listed}; {remedy}")
    return lines[1:]


def keep_lines(file: Path, count: int) -> None:
    """Shorten a file to its first lines."""
    with file.open("r+b") as out:
        for _ in range(count):
            out.readline()
        out.truncate(out.tell())


def count_lines(file: Path) -> int:
    """Whole lines of a file; none if it is not there."""
    if not file.is_file():
        return 0
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def _lines(file: Path) -> list[Record]:
    """The records of a file; a last line that was cut off is taken off the file, too."""
    keep_lines(file, count_lines(file))
    records = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{file}, line {number} is not JSON ({error}); remove the line, or the file") from error
    return records
