"""Readers of corpora as they lie on disk: each gives one list of clips, and says what was wrong with the files."""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.data.shard_schema import SPLITS, TextRecord
from affectgpt_jax.errors import UserError

LABELS_FILE = "track2_train_mercaptionplus.csv"
DESCRIPTIONS_FILE = "track3_train_mercaptionplus.csv"
OV_MERD_LABELS_FILE = "track2_train_ovmerd.csv"
OV_MERD_DESCRIPTIONS_FILE = "track3_train_ovmerd.csv"
SUBTITLES_FILE = "subtitle_chieng.csv"
SPLITS_FILE = "synth_splits.csv"


@dataclass(frozen=True)
class ClipRecord:
    """One clip of a corpus.

    Attributes:
        text: its name, split, subtitle, labels and description.
        files: its media, as far as they are there.
    """

    text: TextRecord
    files: ClipFiles

    @property
    def name(self) -> str:
        """The clip's name, always a string ("0012")."""
        return self.text.name

    @property
    def split(self) -> str:
        """The split it belongs to."""
        return self.text.split


@dataclass(frozen=True)
class Problem:
    """Something about a corpus that a person should know.

    Attributes:
        name: the clip concerned; empty if it is none in particular.
        file: the file concerned.
        reason: what is wrong and what was done about it.
        skipped: whether a clip is left out for it.
    """

    name: str
    file: str
    reason: str
    skipped: bool = field(default=False, compare=False)


class Listing(NamedTuple):
    """What a reader found.

    Attributes:
        records: the clips, in the order of the corpus.
        problems: what was wrong with its tables.
    """

    records: tuple[ClipRecord, ...]
    problems: tuple[Problem, ...]


class _Row(NamedTuple):
    line: int
    cells: dict[str, str]


def read_mer_caption_plus(root: Path | str) -> Listing:
    """Reads a folder in the layout of the MER2025 release of MER-Caption+, or a synthetic corpus written in it.

    As in the reference, the table of labels says which clips there are and in which order; subtitles and descriptions
    are looked up by name, an empty subtitle is "", and no label at all stays no label (the prompt then says "neutral",
    QUIRKS 31). Names and texts are taken as they are written: "0012" is a name, "None" a subtitle. Unlike in the
    reference, a clip without a line in one of the tables is kept without that text, and of lines that repeat a name the
    last one counts, as there, but not in silence.

    Args:
        root: the folder with `video/`, `audio/`, `openface_face/` and the tables.

    Returns:
        The clips and the problems. A clip's media are None where there is no file.

    Raises:
        UserError: a table or a column is missing, is not UTF-8, names an unknown split, or there is no clip.
    """
    return _read_mer2025(Path(root), LABELS_FILE, DESCRIPTIONS_FILE)


def read_ov_merd(root: Path | str) -> Listing:
    """Reads OV-MERD from a folder in the layout of MER2025, by the same rules as MER-Caption+, beside which it lies.

    Args:
        root: the folder with `video/`, `audio/`, `openface_face/` and the tables.

    Returns:
        The clips and the problems. A clip's media are None where there is no file.

    Raises:
        UserError: a table or a column is missing, is not UTF-8, or there is no clip.
    """
    return _read_mer2025(Path(root), OV_MERD_LABELS_FILE, OV_MERD_DESCRIPTIONS_FILE)


def read_mer_caption(table: Path | str) -> Listing:
    """Reads the unfiltered MER-Caption, whose table has no name that the release would fix, by the same rules.

    Args:
        table: CSV with `name` and `openset`, `reason` or both, in a folder in the layout of MER2025. Where it is called
            track2_... and has no descriptions, those of the track3_... of the same name beside it count.

    Returns:
        The clips and the problems. A clip's media are None where there is no file.

    Raises:
        UserError: a table or a column is missing, is not UTF-8, or there is no clip.
    """
    root, file = Path(table).parent, Path(table).name
    if not Path(table).is_file():
        raise UserError(
            f"there is no file {table}; name MER-Caption's table (columns name, and openset, reason or both)"
        )
    problems: list[Problem] = []
    rows = read_table(root / file, ("name",), problems)
    columns = next(iter(rows.values())).cells if rows else {}
    if rows and not {"openset", "reason"} & set(columns):
        raise UserError(
            f"{table} has neither a column 'openset' nor 'reason'; MER-Caption's table has name, and one of them or "
            f"both, found {', '.join(map(repr, columns))}."
        )
    labels = (file, rows) if "openset" in columns else None
    companion = file.replace("track2", "track3", 1)
    if "reason" not in columns and companion != file and (root / companion).is_file():
        return _clips(root, (file, rows), labels, (companion, _descriptions(root / companion, problems)), problems)
    return _clips(root, (file, rows), labels, (file, rows), problems)


_Named = tuple[str, dict[str, _Row]]
"""A table and what its file is called."""


def _read_mer2025(root: Path, labels_file: str, descriptions_file: str) -> Listing:
    """Reads the clips of one release among those of a folder in the layout of MER2025."""
    problems: list[Problem] = []
    labels = (labels_file, read_table(root / labels_file, ("name", "openset"), problems))
    descriptions = (descriptions_file, _descriptions(root / descriptions_file, problems))
    return _clips(root, labels, labels, descriptions, problems)


def _descriptions(path: Path, problems: list[Problem]) -> dict[str, _Row]:
    return read_table(path, ("name", "reason"), problems)


def _clips(root: Path, clips: _Named, labels: _Named | None, descriptions: _Named, problems: list[Problem]) -> Listing:
    """Puts clips together: the first table says which there are, each of the others what it knows of them."""
    clips_file, names = clips
    subtitles = read_table(root / SUBTITLES_FILE, ("name", "english"), problems)
    splits = read_table(root / SPLITS_FILE, ("name", "split"), problems) if (root / SPLITS_FILE).exists() else None
    if not names:
        raise UserError(f"{root / clips_file} lists no clip.")
    problems += missing_lines(names, {descriptions[0]: descriptions[1], SUBTITLES_FILE: subtitles})
    words = {name: tuple(parse_openset(cell(labels[1], name, "openset"))) for name in names} if labels else {}
    problems += [
        Problem(name, clips_file, f"line {names[name].line}: no label, which trains as neutral")
        for name, found in words.items()
        if not found
    ]
    problems += [
        Problem(name, descriptions[0], "a description without labels: the clip is not used, as in the reference")
        for name in descriptions[1]
        if name not in names
    ]
    available = {folder: listed(root / folder) for folder in ("video", "audio", "openface_face")}
    return Listing(
        tuple(
            ClipRecord(
                TextRecord(
                    name=name,
                    split=_split(root, splits, name, problems),
                    subtitle=cell(subtitles, name, "english"),
                    chinese=cell(subtitles, name, "chinese"),
                    labels=words.get(name, ()),
                    description=cell(descriptions[1], name, "reason"),
                ),
                _files(root, name, available),
            )
            for name in names
        ),
        tuple(problems),
    )


def read_unlabelled(root: Path | str, names: Path | str | None = None) -> Listing:
    """Reads clips without labels from a folder in the layout of MER2025, as split "test".

    Args:
        root: the folder with `video/`, `audio/`, `openface_face/` and the table of subtitles.
        names: table with a column `name` of the clips wanted; all in `video/` by default.

    Returns:
        The clips in the order of the table, or of their names, and the problems.

    Raises:
        UserError: there is no such folder or table, or no clip.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; expected video/NAME.mp4 and what belongs to it")
    problems: list[Problem] = []
    available = {folder: listed(root / folder) for folder in ("video", "audio", "openface_face")}
    if names is None:
        wanted = sorted(file.removesuffix(".mp4") for file in available["video"] if file.endswith(".mp4"))
    else:
        wanted = list(read_table(Path(names), ("name",), problems))
    if not wanted:
        raise UserError(f"{names or root / 'video'} names no clip")
    subtitles = read_table(root / SUBTITLES_FILE, ("name", "english"), problems)
    problems += missing_lines(wanted, {SUBTITLES_FILE: subtitles})
    return Listing(
        tuple(
            ClipRecord(
                TextRecord(name, "test", cell(subtitles, name, "english"), cell(subtitles, name, "chinese"), (), ""),
                _files(root, name, available),
            )
            for name in wanted
        ),
        tuple(problems),
    )


def read_table(path: Path, columns: Sequence[str], problems: list[Problem]) -> dict[str, _Row]:
    """Reads a CSV file with a header into rows by name; rows that cannot be used become problems."""
    rows: dict[str, _Row] = {}
    for row in read_rows(path, columns, problems):
        name = row.cells["name"]
        if not is_clip_name(name):
            problems.append(
                Problem(name, path.name, f"line {row.line}: {name!r} cannot name a clip; the line is skipped")
            )
            continue
        if name in rows:
            same = "says the same" if rows[name].cells == row.cells else "says something else; the last one counts"
            problems.append(Problem(name, path.name, f"line {row.line}: repeats line {rows[name].line} and {same}"))
        rows[name] = row
    return rows


def is_clip_name(name: str) -> bool:
    """Whether files can be named after it."""
    return bool(name.strip()) and not any(sign in name for sign in "/\\\n\r\0") and name not in (".", "..")


def read_rows(path: Path, columns: Sequence[str], problems: list[Problem]) -> Iterator[_Row]:
    """Reads the rows of a CSV file with a header that has these columns; a row of another length becomes a problem."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise UserError(
                    f"{path} has no column {missing[0]!r}; expected at least {', '.join(columns)}, found "
                    f"{', '.join(map(repr, header)) or 'no header at all'}."
                )
            if twice := [column for column in header if column and header.count(column) > 1]:
                raise UserError(f"{path} has two columns {twice[0]!r}; rename or remove one of them.")
            for cells in reader:
                if not cells:
                    continue  # a blank line
                if len(cells) != len(header):
                    reason = (
                        f"line {reader.line_num}: {len(cells)} cells under {len(header)} columns; the line is skipped"
                    )
                    problems.append(Problem("", path.name, reason, skipped=True))
                    continue
                yield _Row(reader.line_num, dict(zip(header, cells, strict=True)))
    except FileNotFoundError as error:
        tables, release = (LABELS_FILE, DESCRIPTIONS_FILE), "A MER-Caption+"
        if path.name in (OV_MERD_LABELS_FILE, OV_MERD_DESCRIPTIONS_FILE):
            tables, release = (OV_MERD_LABELS_FILE, OV_MERD_DESCRIPTIONS_FILE), "An OV-MERD"
        raise UserError(
            f"There is no {path}. {release} folder holds {', '.join(tables)} and {SUBTITLES_FILE} beside video/, "
            "audio/ and openface_face/."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}. Mend the quotes of that line.") from error


def cell(table: Mapping[str, _Row], name: str, column: str) -> str:
    """A cell of the row of a name; "" where there is none, or where a program wrote its mark for no value."""
    text = table[name].cells.get(column, "") if name in table else ""
    return "" if text in ("nan", "NaN") else text


def missing_lines(names: Collection[str], tables: Mapping[str, Mapping[str, _Row]]) -> list[Problem]:
    """A problem for each clip that lacks a line in one of the tables."""
    return [
        Problem(name, file, "no line for this clip, which is kept without that text")
        for file, table in tables.items()
        for name in names
        if name not in table
    ]


def _split(root: Path, splits: Mapping[str, _Row] | None, name: str, problems: list[Problem]) -> str:
    """The split of a clip; a release without a table of splits is all training data."""
    if splits is None:
        return "train"
    if name not in splits:
        problems.append(Problem(name, SPLITS_FILE, "no line for this clip, which goes to train"))
        return "train"
    line, cells = splits[name]
    if cells["split"] not in SPLITS:
        raise UserError(
            f"{root / SPLITS_FILE}, line {line}: unknown split {cells['split']!r}, expected one of {', '.join(SPLITS)}."
        )
    return cells["split"]


def listed(folder: Path) -> frozenset[str]:
    """Names of what lies in a folder; none if there is no such folder."""
    return frozenset(entry.name for entry in folder.iterdir()) if folder.is_dir() else frozenset()


def _files(root: Path, name: str, available: Mapping[str, frozenset[str]]) -> ClipFiles:
    video, audio, faces = f"{name}.mp4", f"{name}.wav", root / "openface_face" / name / f"{name}.npy"
    return ClipFiles(
        video=root / "video" / video if video in available["video"] else None,
        audio=root / "audio" / audio if audio in available["audio"] else None,
        faces=faces if name in available["openface_face"] and faces.exists() else None,
    )
