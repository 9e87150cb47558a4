"""What is said in a clip, and when, from files beside it: subtitles (.srt, .vtt), and tables, which have no times.

A side-car of video/NAME.mp4 is NAME.srt, NAME.vtt, NAME.en.srt or NAME.en.vtt beside it; a table is a CSV file with the
columns name and english, subtitle or text.
"""

import csv
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.errors import UserError

SIDE_CARS = tuple(f"{language}{ending}" for language in ("", ".en", ".eng") for ending in (".srt", ".vtt"))
"""What follows a clip's name in that of its side-car, the likeliest first."""

COLUMNS = ("english", "subtitle", "text")
"""Of a table; the first one that is there holds what is said."""

Tables = Callable[[Path], Mapping[str, str]]
"""Reads a table, see `read_table`; kept between clips."""

_TIMES = re.compile(r"^\s*(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})\s*-->\s*(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})")
_WORD_TIME = re.compile(r"<(?:\d+:)?\d{2}:\d{2}\.\d{3}>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|</>|\{\\[^{}]*\}")  # <i>, <v Roger>, <c.yellow>, {\an8}
_DASH = re.compile(r"^\s*(?:[-\u2010-\u2015]+|>>+)\s*(?=\S)")  # before what another person says


class Cue(NamedTuple):
    """A line of subtitles.

    Attributes:
      start: when it begins, in seconds.
      end: when it ends.
      words: what is said.
    """

    start: float
    end: float
    words: str


def find_side_car(folder: Path, name: str) -> Path | None:
    """The subtitles of a clip in a folder, if there are any."""
    return next((file for ending in SIDE_CARS if (file := folder / f"{name}{ending}").is_file()), None)


def read_cues(path: Path) -> list[Cue]:
    """The lines of a subtitle file, without numbers, markup and the dashes before speakers; empty ones are left out.

    Args:
      path: SubRip (.srt) or WebVTT (.vtt) in UTF-8, or UTF-16 with its mark.

    Raises:
      UserError: it cannot be read, is not text, or has no cue.
    """
    text = _text(path)
    lines = [line.strip() for line in text.splitlines()]
    starts = {number: found for number, line in enumerate(lines) if (found := _TIMES.match(line))}
    if not starts:
        raise UserError(f"{path} has no cue (00:00:01,000 --> 00:00:02,000); expected subtitles as .srt or .vtt")
    # A cue ends at a blank line, or, where a program left that out, at the number before the next cue's times.
    ends = [*(start - 1 if lines[start - 1].isdigit() else start for start in [*starts][1:]), len(lines)]
    rolling = _WORD_TIME.search(text) is not None  # live captions say each line again while the next one is written
    said: list[Cue] = []
    for (start, times), end in zip(starts.items(), ends, strict=True):
        first, last = _seconds(*times.groups()[:4]), _seconds(*times.groups()[4:])
        cue = lines[start + 1 : end]
        if rolling:  # a first line without words is the place of a line that is not said yet
            cue = list(dropwhile(lambda line: not line, cue))
        for line in cue[: cue.index("")] if "" in cue else cue:
            words = " ".join(_DASH.sub("", html.unescape(_TAG.sub("", _WORD_TIME.sub("", line)))).split())
            if words and not (rolling and said and said[-1].words == words):
                said.append(Cue(first, last, words))
    return said


def words_between(cues: Iterable[Cue], start: float = -math.inf, end: float = math.inf) -> str:
    """The words of the cues that are shown at some time from `start` on and before `end`, on one line."""
    return " ".join(cue.words for cue in cues if cue.start < end and max(cue.end, cue.start + 1e-3) > start)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def read_table(path: Path) -> dict[str, str]:
    """What is said by name, as preparation reads it: names are strings, the last line of a name counts, and a program's
    mark for no value is none.

    Raises:
      UserError: not a CSV file with the column name and one of `COLUMNS`.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            found = reader.fieldnames or ()
            column = next((column for column in COLUMNS if column in found), None)
            if "name" not in found or column is None:
                raise UserError(f"{path} needs the column name and one of {', '.join(COLUMNS)}; found {list(found)}")
            rows = {row["name"]: row[column] or "" for row in reader}  # None in a line that is too short
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}; mend it, or pass --no-subtitle") from error
    return {name: "" if text in ("nan", "NaN") else text for name, text in rows.items()}


def look_up(name: str, place: Path, tables: Tables) -> tuple[str, str, str]:
    """What a place says of a clip.

    Args:
      name: the clip's.
      place: a table, a file of subtitles, or a folder of them.
      tables: reads tables.

    Returns:
      The words, the file that has them, and if there are none, why; the latter are empty where they say nothing.

    Raises:
      UserError: a file that cannot be read.
    """
    if place.is_dir():
        file = find_side_car(place, name)
        if file is None:
            return "", "", f"{place} has no {name}.srt or {name}.vtt"
    else:
        file = place
    if file.suffix.lower() == ".csv":
        said = tables(file).get(name, "").strip()
        return said, str(file), "" if said else f"{file} holds nothing for {name}"
    said = words_between(read_cues(file))
    return said, str(file), "" if said else f"the cues of {file} are empty"
