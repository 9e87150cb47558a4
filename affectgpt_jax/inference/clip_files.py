"""What belongs to a clip that somebody names: its faces and its subtitle, from beside it or given.

A clip may lie in a folder of the MER2025 layout, CORPUS/video/NAME.mp4: then CORPUS/openface_face/NAME/NAME.npy holds
its faces, and CORPUS/subtitle_chieng.csv its subtitle.
"""

import csv
import glob
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.data.clips import AUDIO_SECONDS, ClipFiles
from affectgpt_jax.data.media import MediaError, duration, frame_count
from affectgpt_jax.data.preprocess import SAMPLE_RATE, clip_starts, frame_indices
from affectgpt_jax.data.shard_schema import Stream
from affectgpt_jax.errors import UserError

CLIP_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv")
"""Files of a folder that count as clips."""

SUBTITLES = "subtitle_chieng.csv"


@dataclass(frozen=True)
class Source:
    """Where a modality was read.

    Attributes:
      origin: a file, or "given".
      unit: what `places` counts: "second" or "crop"; empty for text.
      places: of frames, face crops, or starts of clips of sound; seconds are those of the file's header.
    """

    origin: str
    unit: str = ""
    places: tuple[float, ...] = ()


class Clip(NamedTuple):
    """A clip with what goes with it.

    Attributes:
      path: the file, as it was named.
      files: what its modalities are read from.
      subtitle: what is said; empty if not known.
      subtitle_from: "given", or the file that was looked up.
      absent: why there are no faces ("face") or no subtitle ("text"), where there are none.
    """

    path: Path
    files: ClipFiles
    subtitle: str
    subtitle_from: str
    absent: Mapping[str, str]


def list_clips(words: Iterable[str]) -> list[Path]:
    """Clips that files, folders and patterns name.

    Args:
      words: a file; a folder, which stands for the media files in it and below; or a pattern with `*`, `?`, `**`.

    Returns:
      Each clip once, in order; those of a folder or pattern by name. What leads to no clip stays in the list as it
      is, so that it fails by name.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in CLIP_ENDINGS)
        elif path.exists():
            inside = [path]
        else:
            inside = sorted(map(Path, glob.glob(word, recursive=True)))
        found |= dict.fromkeys(inside or [path])
    return list(found)


def find_clip(
    path: Path,
    subtitle: str | None,
    faces: str | Path | None,
    subtitles: Callable[[Path], Mapping[str, str]],
) -> Clip:
    """Find what goes with a clip.

    Args:
      path: the clip.
      subtitle: what is said; None looks in the clip's corpus.
      faces: its crops, or a folder with NAME/NAME.npy or NAME.npy; None looks in the clip's corpus.
      subtitles: reads a table of subtitles, see `read_subtitles`.

    Raises:
      MediaError: there is no such file, or it is a folder.
      UserError: the corpus's table of subtitles cannot be read.
    """
    if path.is_dir():
        raise MediaError(path, f"is a folder without a clip ({', '.join(CLIP_ENDINGS)})")
    if not path.is_file():
        raise MediaError(path, "there is no such file")
    corpus = Path(os.path.abspath(path)).parents[1]
    absent: dict[str, str] = {}
    candidates = _face_files(path.stem, corpus, faces)
    named = (
        faces is not None and not Path(faces).is_dir()
    )  # a file that is named is read, and missed if it is not there
    crops = next((file for file in candidates if named or file.exists()), None)
    if crops is None:
        absent["face"] = f"there is no {' and no '.join(map(str, candidates))}; pass face crops with --faces FILE.npy"
    if subtitle is not None:
        said, origin, why = subtitle.strip(), "given", "the subtitle given is empty"
    else:
        table = corpus / SUBTITLES
        known = subtitles(table) if table.is_file() else {}
        said, origin = known.get(path.stem, "").strip(), str(table)
        lacking = f"{table} holds nothing for {path.stem}" if table.is_file() else f"there is no {table}"
        why = f"{lacking}; pass what is said with --subtitle TEXT"
    if not said:
        absent["text"] = why
    return Clip(path, ClipFiles(video=path, faces=crops), said, origin, absent)


def _face_files(name: str, corpus: Path, given: str | Path | None) -> tuple[Path, ...]:
    """Where a clip's crops may lie, the likeliest first."""
    if given is None:
        return (corpus / "openface_face" / name / f"{name}.npy",)
    folder = Path(given)
    return (folder / name / f"{name}.npy", folder / f"{name}.npy") if folder.is_dir() else (folder,)


def read_subtitles(path: Path) -> dict[str, str]:
    """English subtitles by name, as preparation reads them: names are strings, the last line of a name counts, and a
    program's mark for no value is none.

    Raises:
      UserError: not a CSV file with the columns name and english.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not {"name", "english"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path} needs the columns name and english, found {reader.fieldnames}")
            rows = {row["name"]: row["english"] or "" for row in reader}  # None in a line that is too short
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV in UTF-8: {error}; pass --subtitle to go without it") from error
    return {name: "" if text in ("nan", "NaN") else text for name, text in rows.items()}


def places(files: ClipFiles, stream: Stream) -> Source:
    """Says which parts of a clip `data.clips.read_modality` takes.

    Args:
      files: the clip's files; the one of the stream's modality is there and sound.
      stream: the stream.
    """
    path = files.source(stream.modality)
    assert path is not None
    if stream.modality == "face":
        crops = frame_indices(len(np.load(path, mmap_mode="r")), stream.count)
        return Source(str(path), "crop", tuple(crops.tolist()))
    try:
        seconds = duration(path)
    except MediaError:  # a stream without a stated length: what was read is known, when it was is not
        return Source(str(path))
    if stream.modality == "frame":
        frames = frame_count(path)
        starts = frame_indices(frames, stream.count) * (seconds / frames)
    else:
        cut = clip_starts(int(seconds * SAMPLE_RATE), clips=stream.count, seconds=AUDIO_SECONDS)
        starts = np.array([float(start) for start in cut])
    return Source(str(path), "second", tuple(starts.round(2).tolist()))
