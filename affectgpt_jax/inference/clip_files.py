"""What belongs to a clip that somebody names: its faces and what is said in it, from beside it, given, or made.

What is said lies beside a clip as its subtitles (`subtitles.find_side_car`) or in a table subtitles.csv. A clip may
also lie in a folder of the MER2025 layout, CORPUS/video/NAME.mp4: then CORPUS/openface_face/NAME/NAME.npy holds its
faces, and CORPUS/subtitle_chieng.csv what is said.
"""

import glob
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.clips import AUDIO_SECONDS, ClipFiles, DetectedFaces
from affectgpt_jax.data.media import MediaError, duration, frame_count
from affectgpt_jax.data.preprocess import SAMPLE_RATE, clip_starts, frame_indices
from affectgpt_jax.data.shard_schema import Stream, digest
from affectgpt_jax.inference.subtitles import Tables, find_side_car, look_up
from affectgpt_jax.inference.transcription import Transcriber

CLIP_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".flv", ".wmv")
"""Files of a folder that count as clips."""

SUBTITLES = "subtitle_chieng.csv"
"""A corpus's table of what is said."""

TABLE = "subtitles.csv"
"""A table of what is said, beside the clips."""


@dataclass(frozen=True)
class Source:
    """Where a modality was read.

    Attributes:
      origin: a file, or "given".
      unit: what `places` counts: "second", "crop" of a file of crops, or "frame" of a video; empty for text.
      places: of frames, face crops, or starts of clips of sound; seconds are those of the file's header.
      boxes: of each face that a detector found, see `data.clips.DetectedFaces`.
      detector: which one.
    """

    origin: str
    unit: str = ""
    places: tuple[float, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    detector: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON holds it, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value}


class Item(NamedTuple):
    """A clip that somebody names.

    Attributes:
      name: what records call it: the file as it was named, or a name that a manifest gives.
      files: what its modalities are read from, as far as that is said.
      key: its name in tables, and those of files beside it.
      subtitle: what is said, if a manifest says it.
      origin: the manifest.
      notes: what else is to be known about its answer.
      fault: why it cannot be asked about; empty in most cases.
    """

    name: str
    files: ClipFiles
    key: str
    subtitle: str = ""
    origin: str = ""
    notes: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Beside:
    """Where to look for what goes with clips.

    Attributes:
      subtitle: what is said in all of them; None looks it up.
      subtitles: a table, a folder of subtitles, or the file of subtitles of the one clip; None looks beside each clip.
      words: whether the model is told what is said.
      transcribe: writes down what is said where nothing else tells; None leaves it absent.
      faces: face crops of all of them, or a folder of crops by name; None looks in each clip's corpus.
      stored: whether stored crops are used where there are any.
      detect: finds faces in the video of a clip that has no crops, so many of them; None leaves them absent.
      detector: its name.
    """

    subtitle: str | None = None
    subtitles: Path | None = None
    words: bool = True
    transcribe: Transcriber | None = None
    faces: Path | None = None
    stored: bool = True
    detect: Callable[[ClipFiles, int], DetectedFaces | None] | None = None
    detector: str = ""


class Clip(NamedTuple):
    """A clip with what goes with it.

    Attributes:
      item: as it was named.
      files: what its modalities are read from.
      subtitle: what is said; empty if not known.
      subtitle_from: "given", the file that was looked up, or what wrote it down.
      absent: why there are no stored faces ("face") or no subtitle ("text"), where there are none.
    """

    item: Item
    files: ClipFiles
    subtitle: str
    subtitle_from: str
    absent: Mapping[str, str]


def file_item(path: Path) -> Item:
    """A clip that is named by its file."""
    return Item(str(path), ClipFiles(video=path), path.stem)


def identity(items: Iterable[Item]) -> str:
    """Changes with the clips, their order, and the names and sizes of their files."""

    def size(path: Path | None) -> str:
        return "" if path is None else f"{path} {path.stat().st_size if path.is_file() else None}"

    lines = (repr((item.name, item.key, item.subtitle, item.fault, *map(size, item.files))) for item in items)
    return digest("\n".join(lines).encode(errors="backslashreplace"))


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


def find_clip(item: Item, beside: Beside, tables: Tables) -> Clip:
    """Find what goes with a clip.

    Args:
      item: the clip.
      beside: where to look.
      tables: reads tables of what is said, see `subtitles.read_table`.

    Raises:
      MediaError: there is no such file, or it is a folder, or it cannot be transcribed.
      UserError: what lies beside it cannot be read.
    """
    video = item.files.video
    if video is not None and video.is_dir():
        raise MediaError(video, f"is a folder without a clip ({', '.join(CLIP_ENDINGS)})")
    if video is not None and not video.is_file():
        raise MediaError(video, "there is no such file")
    absent: dict[str, str] = {}
    crops = item.files.faces
    if not beside.stored:
        crops = None
    elif crops is None:
        candidates = _face_files(item, beside.faces)
        # A file that is named is read, and missed if it is not there.
        named = beside.faces is not None and not beside.faces.is_dir()
        crops = next((file for file in candidates if named or file.exists()), None)
        if crops is None:
            lost = f"there is no {' and no '.join(map(str, candidates))}" if candidates else "it has no video"
            absent["face"] = f"{lost}; pass face crops with --faces FILE.npy, or let them be detected: --faces detect"
    files = item.files._replace(faces=crops)
    said, origin, why = _said(item, beside, tables)
    if not said:
        absent["text"] = why
    return Clip(item, files, said, origin, absent)


def _said(item: Item, beside: Beside, tables: Tables) -> tuple[str, str, str]:
    """What is said in a clip, where that comes from, and why it is not known if it is not."""
    if not beside.words:
        return "", "", "left out on request"
    if beside.subtitle is not None:
        return beside.subtitle.strip(), "given", "the subtitle given is empty"
    if item.subtitle.strip():
        return item.subtitle.strip(), item.origin, ""
    places = [beside.subtitles] if beside.subtitles else _places_of_words(item)
    reasons = []
    for place in places:
        said, origin, why = look_up(item.key, place, tables)
        if said:
            return said, origin, ""
        reasons.append(why)
    why = "; ".join(reasons) or "there is no subtitle beside it, and no table of subtitles"
    sound = item.files.source("audio")
    if beside.transcribe is None:
        return "", "", f"{why}; pass what is said with --subtitle TEXT or --subtitles FILE"
    words = None if sound is None else beside.transcribe(sound)
    return (
        words or "",
        beside.transcribe.origin,
        "there is no sound to transcribe" if words is None else "no word is said",
    )


def _places_of_words(item: Item) -> Sequence[Path]:
    """Where what is said in a clip may stand, of those places that are there."""
    if item.files.video is None:
        return ()
    folder = Path(os.path.abspath(item.files.video)).parent
    tables = (folder / TABLE, folder.parent / SUBTITLES)
    return [
        place
        for place in (find_side_car(folder, item.files.video.stem), *tables)
        if place is not None and place.is_file()
    ]


def _face_files(item: Item, given: Path | None) -> tuple[Path, ...]:
    """Where a clip's crops may lie, the likeliest first."""
    name = item.key
    if given is not None:
        return (given / name / f"{name}.npy", given / f"{name}.npy") if given.is_dir() else (given,)
    if item.files.video is None:
        return ()
    return (Path(os.path.abspath(item.files.video)).parent.parent / "openface_face" / name / f"{name}.npy",)


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
