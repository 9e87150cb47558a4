"""What a person names, as clips with media files or as a split of feature shards, and where to look for what goes with
clips."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import dataset_directory
from affectgpt_jax.data.storage import is_remote
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.clip_files import Beside, Item, file_item, list_clips
from affectgpt_jax.inference.runs import model_streams
from affectgpt_jax.inference.transcription import Transcriber
from data_prep.faces import FaceCrops, face_crops
from data_prep.manifest import ENDINGS, read_manifest_file

POLICIES = ("files", "detect", "files_or_detect")
"""Where faces come from, beside a place that has them."""


def find_shards(words: Sequence[str]) -> str:
    """The folder or address of feature shards among what is named; empty if there is none.

    Raises:
      UserError: it is named beside something else.
    """
    found = [word for word in words if is_remote(word) or dataset_directory(Path(word)).is_dir()]
    if found and len(words) > 1:
        raise UserError(f"{found[0]} holds feature shards, which are asked about alone; name it alone")
    return found[0] if found else ""


def find_items(words: Iterable[str]) -> Iterator[Item]:
    """Clips of files, folders, patterns and manifests.

    Raises:
      UserError: two of them name a clip alike, or a manifest cannot be read.
    """
    names: dict[str, Path] = {}
    for path in list_clips(words):
        manifest = path.suffix.lower() in ENDINGS
        for item in _manifest(path) if manifest else (file_item(path),):
            if item.name in names:
                raise UserError(f"{names[item.name]} and {path} both name a clip {item.name!r}; ask about them apart")
            names[item.name] = path
            yield item


def _manifest(path: Path) -> Iterator[Item]:
    """Clips of a manifest, and rows of it that are none."""
    listing = read_manifest_file(path)
    notes: dict[str, list[str]] = {}
    for problem in listing.problems:
        if problem.name and not problem.skipped:
            notes.setdefault(problem.name, []).append(f"{problem.file}: {problem.reason}")
    for record in listing.records:
        said = record.text.subtitle
        yield Item(record.name, record.files, record.name, said, str(path), tuple(notes.get(record.name, ())))
    for problem in listing.problems:
        if problem.skipped:
            yield Item(f"{path}, {problem.reason.partition(':')[0]}", ClipFiles(), "", fault=problem.reason)


def check_single(
    clips: int, subtitle: str | None, subtitles: Path | None, faces: str | None, option: str = "{}"
) -> None:
    """Refuse what is of one clip if there are several.

    Args:
      clips: how many.
      subtitle: as `look`.
      subtitles: as `look`.
      faces: as `look`.
      option: how an option is spelled, in messages.

    Raises:
      UserError: one of them is of one clip alone.
    """
    if clips < 2:
        return
    if subtitle is not None:
        name = option.format("subtitle")
        raise UserError(f"{name} goes with one clip, but {clips} are named; ask about them one by one")
    if subtitles is not None and subtitles.suffix.lower() in (".srt", ".vtt"):
        name = option.format("subtitles")
        raise UserError(f"{name} {subtitles} is of one clip, but {clips} are named; name a folder or a table")
    if faces is not None and faces not in POLICIES and not Path(faces).is_dir():
        raise UserError(
            f"{option.format('faces')} {faces} are the faces of one clip, but {clips} are named; give a folder with "
            "NAME.npy for each clip"
        )


def choose_faces(config: RunConfig, faces: str | None, detector: str | None) -> tuple[FaceCrops, bool, Path | None]:
    """Where faces come from.

    Args:
      config: the run's, which says so unless `faces` does.
      faces: as `look`.
      detector: as `look`.

    Returns:
      The crops' reader, with a detector if one is needed; whether stored crops count; and a place that has them.

    Raises:
      UserError: the detector cannot be opened.
    """
    policy: Any = config.prepare.faces
    if faces is not None:
        policy = faces if faces in POLICIES else "files"
    looked = policy != "files" and "face" in model_streams(config)
    crops = face_crops(policy, detector or config.prepare.detector) if looked else face_crops("files", "")
    return crops, policy != "detect", None if faces is None or faces in POLICIES else Path(faces)


def look(
    config: RunConfig,
    *,
    subtitle: str | None = None,
    subtitles: Path | None = None,
    words: bool = True,
    transcribe: Transcriber | None = None,
    faces: str | None = None,
    detector: str | None = None,
) -> tuple[Beside, Mapping[str, Any]]:
    """Where to look for what goes with clips.

    Args:
      config: the run's, which says where faces come from unless `faces` does.
      subtitle: see `Beside`.
      subtitles: see `Beside`.
      words: see `Beside`.
      transcribe: see `Beside`.
      faces: one of `POLICIES`, or a file or folder of crops.
      detector: YuNet's ONNX file; the run's by default.

    Returns:
      The places, and what the answers depend on because of them, as JSON holds it.

    Raises:
      UserError: the detector cannot be opened.
    """
    crops, stored, given = choose_faces(config, faces, detector)
    provenance = dict(crops.provenance)
    beside = Beside(
        subtitle=subtitle,
        subtitles=subtitles,
        words=words,
        transcribe=transcribe,
        faces=given,
        stored=stored,
        detect=crops.find if crops.detector else None,
        detector=provenance.get("detector", ""),
    )
    facts = {
        "words": words,
        "subtitle": subtitle,
        "subtitles": subtitles and str(subtitles),
        "transcribe": transcribe and transcribe.origin,
        "faces": given and str(given),
        "detected": provenance,
    }
    return beside, facts
