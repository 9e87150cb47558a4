"""The official emotion-wheel folder: read and compiled into one lookup.

The folder is published with AffectGPT and holds `wheel1..5.xlsx` (columns level1, level2, level3: the rings of a wheel
from the inside out), `synonym.xlsx` (eight runs, each a wheel word and its synonyms) and `format.csv` (a word and its
other forms). Nothing of it ships with this project.

How a word finds its class (paper, Eq. 8 and appendix K; the published scorer's behaviour where the paper is silent):
a word is a *form* of one or more *base* words; a base word is *owned* by every wheel word that has it as a synonym,
and by itself if it stands on a wheel. The owners are tried in order of preference; the first that stands on a wheel
gives the word's class on that wheel.
"""

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.wheel import NEUTRAL, Level, Ruleset, WheelTable, build_table

WHEEL_FILES = tuple(f"wheel{k}.xlsx" for k in range(1, 6))
SYNONYM_FILE, FORM_FILE = "synonym.xlsx", "format.csv"
FILES = (*WHEEL_FILES, SYNONYM_FILE, FORM_FILE)
RINGS = ("level1", "level2", "level3")
SYNONYM_RUNS = 8
ENV = "AFFECTGPT_WHEEL_DIR"
SOURCE = "the folder emotion_wheel of https://github.com/zeroQiaoba/AffectGPT"

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "wheel1.xlsx": "e70485d354b82a7491ff24648273182a5f4f13f92c76e6b3e4f9033f5e6afcc1",
        "wheel2.xlsx": "acc001e076a8e60440361f58dd8c05ed900c4890c84bb7d8d1df93708a7d9c87",
        "wheel3.xlsx": "d62f30bf88c17c55876634cd088eacaef98278fc25457474364439872f9dbf83",
        "wheel4.xlsx": "660260561b7fe15550f3679a01e7c783608ce3403d4c28db0a88520f68d83aea",
        "wheel5.xlsx": "2dd4595b2cf8e7628ca06a416a8e38ac831614b244f23d1ae613dc34007649f1",
        "synonym.xlsx": "23f81f9ab1d2418aaf96775304fb5dc52c62bb5d5ef652a97471d045fc9d2e29",
        "format.csv": "ba6de7d61db8e129d1d7ef8a2aae22a9e93a2c2e3e683e6f2735d04455f016f2",
    }
)
"""SHA-256 of the published files. Scores on other files do not compare with published ones."""

Row = tuple[str, str, str]
"""A row of a wheel: its words on the inner, middle and outer ring."""


@dataclass(frozen=True)
class OfficialTables:
    """The content of the folder, all words in lower case.

    Attributes:
        wheels: the rows of each wheel, in file order.
        owners: base word -> the wheel words that own it.
        bases: word form -> the base words it is a form of.
    """

    wheels: tuple[tuple[Row, ...], ...]
    owners: Mapping[str, frozenset[str]]
    bases: Mapping[str, frozenset[str]]

    @property
    def wheel_words(self) -> frozenset[str]:
        """Every word on any ring of any wheel."""
        return frozenset(word for rows in self.wheels for row in rows for word in row)


# ---- reading


def find_wheel_dir(given: str | Path | None) -> Path | None:
    """The wheel folder: the one given, else the environment's `AFFECTGPT_WHEEL_DIR`, else None."""
    named = given or os.environ.get(ENV)
    return Path(named) if named else None


def read_files(folder: Path) -> dict[str, bytes]:
    """The folder's seven files.

    Raises:
        UserError: the folder or a file in it is missing.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        what = "does not exist" if not folder.is_dir() else f"lacks {', '.join(missing)}"
        raise UserError(f"emotion-wheel folder {folder} {what}; expected {', '.join(FILES)}, as in {SOURCE}")
    return {name: (folder / name).read_bytes() for name in FILES}


def changed_files(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Names of the files that differ from the published ones."""
    return tuple(name for name in FILES if hashlib.sha256(files[name]).hexdigest() != PUBLISHED[name])


def parse_files(files: Mapping[str, bytes], folder: Path) -> OfficialTables:
    """Read the tables out of the files.

    Args:
        files: file name -> content.
        folder: where they came from, for messages.

    Raises:
        UserError: a file is not what its name says, or lacks a column or a ring.
    """
    wheels = tuple(_read_wheel(folder / name, files[name]) for name in WHEEL_FILES)
    owners: dict[str, set[str]] = defaultdict(set)
    for rows in wheels:
        for row in rows:
            for word in row:
                owners[word].add(word)
    for owner, synonyms in _read_synonyms(folder / SYNONYM_FILE, files[SYNONYM_FILE]):
        for synonym in synonyms:
            owners[synonym].add(owner)
    bases: dict[str, set[str]] = defaultdict(set)
    for base, forms in _read_forms(folder / FORM_FILE, files[FORM_FILE]):
        for form in forms:
            bases[form].add(base)
    return OfficialTables(wheels, _frozen(owners), _frozen(bases))


def _frozen(sets: Mapping[str, set[str]]) -> Mapping[str, frozenset[str]]:
    return MappingProxyType({word: frozenset(words) for word, words in sets.items()})


def _words(cell: object) -> list[str]:
    return [word for word in (part.strip().lower() for part in str(cell or "").split(",")) if word]


def _read_sheet(path: Path, content: bytes, columns: Iterable[str]) -> list[list[object]]:
    """The cells of the first sheet under the named columns, row by row."""
    import io
    import zipfile

    import openpyxl  # slow to import, and not needed once the table is compiled

    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True).worksheets[0]
        header, *rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, openpyxl.utils.exceptions.InvalidFileException) as error:
        raise UserError(f"{path} is not a readable Excel table ({error}); get it anew from {SOURCE}") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"{path}: expected a column {missing[0]!r}, found {header}; get it anew from {SOURCE}")
    places = [header.index(column) for column in columns]
    return [[row[i] for i in places] for row in rows]


def _read_wheel(path: Path, content: bytes) -> tuple[Row, ...]:
    """The rows of a wheel; an empty inner or middle cell repeats the one above."""
    rows: list[Row] = []
    rings = ["", ""]
    for number, cells in enumerate(_read_sheet(path, content, RINGS), start=2):
        inner, middle, outer = (str(cell or "").strip().lower() for cell in cells)
        rings = [inner or rings[0], middle or rings[1]]
        if not (rings[0] and rings[1] and outer):
            raise UserError(f"{path}, row {number}: a ring is empty ({cells}); get the file anew from {SOURCE}")
        rows.append((rings[0], rings[1], outer))
    return tuple(rows)


def _read_synonyms(path: Path, content: bytes) -> list[tuple[str, list[str]]]:
    """(wheel word, its synonyms) of every run."""
    columns = [f"{kind}_run{run}" for run in range(1, SYNONYM_RUNS + 1) for kind in ("word", "synonym")]
    pairs = []
    for cells in _read_sheet(path, content, columns):
        for owner, synonyms in zip(cells[::2], cells[1::2], strict=True):
            pairs += [(word, _words(synonyms)) for word in _words(owner)]
    return pairs


def _read_forms(path: Path, content: bytes) -> list[tuple[str, list[str]]]:
    """(base word, its forms)."""
    try:
        rows = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not readable as CSV ({error}); get it anew from {SOURCE}") from error
    if not rows or rows[0] != ["name", "format"]:
        raise UserError(f"{path}: expected the columns name, format, found {rows[:1]}; get it anew from {SOURCE}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2:
            raise UserError(f"{path}, line {number}: expected 2 cells, found {len(row)}; get it anew from {SOURCE}")
    return [(base.strip().lower(), _words(forms)) for base, forms in rows[1:]]


# ---- the rules


def preference(word: str, tables: OfficialTables, ruleset: Ruleset) -> list[str]:
    """The wheel words that may stand for a word, best first.

    `reference` collects the owners of all base words and sorts them by alphabet: "fear" becomes "brave", because
    "fearless" has the form "fear". `strict` tries the word itself, then its base words that are wheel words, then
    those base words' owners, then the owners of the other base words; by alphabet inside each step.
    """
    bases = tables.bases.get(word, frozenset())
    if ruleset == "reference":
        return sorted({owner for base in bases for owner in tables.owners.get(base, ())})
    on_wheels = {base for base in bases if base in tables.owners.get(base, ())}
    steps = [
        [word] if word in tables.owners.get(word, ()) else [],
        sorted(on_wheels),
        sorted({owner for base in on_wheels for owner in tables.owners[base]}),
        sorted({owner for base in bases - on_wheels for owner in tables.owners.get(base, ())}),
    ]
    return list(dict.fromkeys(owner for step in steps for owner in step))


def ring_classes(rows: Iterable[Row], level: Level) -> dict[str, str]:
    """Class of every word of a wheel.

    A word that stands in several places takes the last one in file order. At level 2 a word of the inner ring takes
    the alphabetically first of its middle-ring words.
    """
    rows = list(rows)
    if level == "level1":
        return {word: row[0] for row in rows for word in row}
    inner = {ring: min(row[1] for row in rows if row[0] == ring) for ring in {row[0] for row in rows}}
    return inner | {word: row[1] for row in rows for word in row[1:]}


def _case_class(word: str, tables: OfficialTables, ruleset: Ruleset, level: Level) -> str | None:
    """Class of a word without a wheel: its base word (case1), or the wheel word that owns it (case2)."""
    bases = sorted(tables.bases.get(word, ()))
    if ruleset == "strict":
        owners = preference(word, tables, ruleset)
        bases = [word] if word in bases else bases
    else:
        owners = sorted(tables.owners.get(bases[0], ())) if bases else []
    choices = bases if level == "case1" else owners
    return choices[0] if choices else None


def word_classes(words: Iterable[str], tables: OfficialTables, ruleset: Ruleset, level: Level) -> list[dict[str, str]]:
    """Class of every word on every wheel (`case1`, `case2`: on one "wheel"); words without a class are absent."""
    words = list(words)
    if level in ("case1", "case2"):
        found = {word: _case_class(word, tables, ruleset, level) for word in words}
        classes = [{word: name for word, name in found.items() if name is not None}]
    else:
        owners = {word: preference(word, tables, ruleset) for word in words}
        classes = []
        for rows in tables.wheels:
            ring = ring_classes(rows, level)
            first = {word: next((o for o in owners[word] if o in ring), None) for word in words}
            classes.append({word: ring[owner] for word, owner in first.items() if owner is not None})
    if ruleset == "strict":
        for wheel in classes:
            wheel[NEUTRAL] = NEUTRAL
    return classes


class Place(NamedTuple):
    """Where a word lies on a wheel.

    Attributes:
        wheel_word: the word of the wheel that stands for it.
        route: how it got there, in words.
        classes: its class at level 1 and at level 2.
    """

    wheel_word: str
    route: str
    classes: tuple[str, str]


def explain(word: str, tables: OfficialTables, ruleset: Ruleset) -> list[Place | None]:
    """Where a word lies on each wheel, and why; None where it lies nowhere."""
    owners = preference(word, tables, ruleset)
    places: list[Place | None] = []
    for rows in tables.wheels:
        level1, level2 = ring_classes(rows, "level1"), ring_classes(rows, "level2")
        owner = next((owner for owner in owners if owner in level1), None)
        if owner is not None:
            places.append(Place(owner, _route(word, owner, tables), (level1[owner], level2[owner])))
        elif ruleset == "strict" and word == NEUTRAL:
            places.append(Place(NEUTRAL, "a class of its own", (NEUTRAL, NEUTRAL)))
        else:
            places.append(None)
    return places


def _route(word: str, owner: str, tables: OfficialTables) -> str:
    if owner == word:
        return "the word itself"
    bases = tables.bases.get(word, frozenset())
    if owner in bases:
        return f"has the form {word}"
    synonyms = sorted(base for base in bases if owner in tables.owners.get(base, ()))
    return f"has the synonym {synonyms[0]}" + (f", a form of which is {word}" if synonyms[0] != word else "")


def compile_tables(tables: OfficialTables, name: str, fingerprint: str) -> WheelTable:
    """Work out the class of every word under both rulesets and at all levels.

    Args:
        tables: the folder's content.
        name: what reports call the table.
        fingerprint: hash of the folder's files.
    """
    words = sorted({*tables.bases, *tables.wheel_words, NEUTRAL})
    keys: list[tuple[Ruleset, Level]] = [
        (ruleset, level) for ruleset in ("reference", "strict") for level in ("level1", "level2", "case1", "case2")
    ]
    return build_table(name, fingerprint, words, {key: word_classes(words, tables, *key) for key in keys})
