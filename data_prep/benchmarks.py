"""The datasets of MER-UniBench as they lie in the reference's `*-process` folders, and the synthetic corpus.

Which clips are scored, and in which order, is what the label file says (`unibench.truth`); where their media and
subtitles lie is what `unibench.datasets.Media` says.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, Dataset, Media
from affectgpt_jax.unibench.safe_npz import load_npz
from affectgpt_jax.unibench.truth import Truth, read_truth
from data_prep.readers import (
    ClipRecord,
    Listing,
    Problem,
    cell,
    is_clip_name,
    listed,
    missing_lines,
    read_mer_caption_plus,
    read_table,
)

FACES = "openface_face"
"""Folder of the face crops, in all datasets."""

_SHOWN = 5
"""Clips that a problem of many names."""


def find_benchmark_folder(dataset: Dataset, data_root: Path | str) -> Path:
    """The folder of a dataset.

    Args:
        dataset: which one.
        data_root: the folder of all datasets, or that of this one: then it is named as in the reference, or holds the
            dataset's label file and is not named as another dataset's.

    Raises:
        UserError: there is none.
    """
    data_root = Path(data_root)
    if (inside := data_root / dataset.folder).is_dir():
        return inside
    name = Path(os.path.abspath(data_root)).name
    holds_labels = all((data_root / file).is_file() for file in (dataset.label_file, dataset.splits_file) if file)
    anothers = any(name == other.folder for other in DATASETS)  # several datasets have label files of one name
    if data_root.is_dir() and (name == dataset.folder or (holds_labels and not anothers)):
        return data_root
    raise UserError(f"there is no folder of {dataset.title} at {data_root}; {_layout(dataset)}")


def read_benchmark(dataset: Dataset, root: Path | str, *, any_count: bool = False) -> Listing:
    """Reads a dataset's folder: the scored clips as split "test", then the validation clips where there are some.

    A clip's labels are the true ones where they are words: its class, or its emotion words; a sentiment is none. Its
    subtitle is the one that the reference puts into the prompt, whatever its language. A clip without media or subtitle
    is kept without them, and told.

    Args:
        dataset: which one.
        root: its folder (`find_benchmark_folder`).
        any_count: allow another number of scored clips than the benchmark's.

    Returns:
        The clips in the order of the label file, and the problems. A clip's media are None where there is no file.

    Raises:
        UserError: the folder, its label file or its table of subtitles is missing or broken, a name cannot be a file's,
            or the number of clips is not the benchmark's.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; {_layout(dataset)}")
    if dataset.splits_file is None:
        records, problems = _read_process_folder(dataset, root, any_count)
    else:
        records, problems = _read_corpus(dataset, root)
    return Listing(records, (*problems, *_absent_media(dataset.media, records)))


def _layout(dataset: Dataset) -> str:
    """What a dataset's folder looks like, in words."""
    media = dataset.media
    if dataset.splits_file is not None:
        return f"expected a corpus, or {dataset.folder}/ with one; write it with `affectgpt synth DIR`"
    return (
        f"expected the reference's layout: {dataset.folder}/ with {dataset.label_file}, {media.subtitles} (columns "
        f"name, {media.column}), {media.video}/NAME{' or '.join(media.endings)}, {media.audio}/NAME.wav and "
        f"{FACES}/NAME.npy"
    )


def _read_corpus(dataset: Dataset, root: Path) -> Listing:
    """The scored and the validation clips of a corpus in the layout of MER2025."""
    listing = read_mer_caption_plus(root)
    parts = (dataset.corpus, dataset.validation)
    records = tuple(record for part in parts for record in listing.records if record.split == part)
    if not any(record.split == dataset.corpus for record in records):
        raise UserError(f"{root} has no test clip; write a corpus with some: `affectgpt synth DIR --test N`")
    return Listing(records, _about(listing.problems, [record.name for record in records]))


def _read_process_folder(dataset: Dataset, root: Path, any_count: bool) -> Listing:
    """A folder in the reference's layout."""
    media = dataset.media
    if not (root / media.subtitles).is_file():
        raise UserError(f"there is no {root / media.subtitles}; {_layout(dataset)}")
    truths, problems = _truths(dataset, root, any_count)
    names = [name for truth in truths.values() for name in truth.names]
    if odd := [name for name in names if not is_clip_name(name)]:
        raise UserError(f"{truths['test'].path}: {odd[0]!r} cannot name a clip; is this a label file of the reference?")
    told: list[Problem] = []
    subtitles = read_table(root / media.subtitles, ("name", media.column), told)
    problems += [*_about(told, names), *missing_lines(names, {media.subtitles: subtitles})]
    available = {folder: listed(root / folder) for folder in (media.video, media.audio, FACES)}
    records = (
        ClipRecord(
            TextRecord(
                name=name,
                split=split,
                subtitle=cell(subtitles, name, media.column),
                chinese=cell(subtitles, name, "chinese"),
                labels=labels,
            ),
            _files(root, media, name, available),
        )
        for split, truth in truths.items()
        for name, labels in zip(truth.names, truth.labels, strict=True)
    )
    return Listing(tuple(records), tuple(problems))


def _truths(dataset: Dataset, root: Path, any_count: bool) -> tuple[dict[str, Truth], list[Problem]]:
    """Truth of each split; that of the validation clips only where the label file has them."""
    test = read_truth(dataset, root, any_count=any_count)
    if dataset.validation is None:
        return {"test": test}, []
    if test.path.suffix == ".npz" and dataset.validation in load_npz(test.path):
        return {"test": test, "validation": read_truth(dataset, test.path, "validation")}, []
    return {"test": test}, [Problem("", test.path.name, f"no {dataset.validation}, so there are no validation clips")]


def _about(problems: Sequence[Problem], names: Sequence[str]) -> tuple[Problem, ...]:
    """Problems of these clips or of none in particular; the tables also list clips that are not scored."""
    wanted = {"", *names}
    return tuple(problem for problem in problems if problem.name in wanted)


def _files(root: Path, media: Media, name: str, available: Mapping[str, frozenset[str]]) -> ClipFiles:
    """The files of a clip, as far as they are among those available in their folders."""

    def first(folder: str, *files: str) -> Path | None:
        return next((root / folder / file for file in files if file in available[folder]), None)

    faces = first(FACES, f"{name}.npy", name)
    if faces is not None and faces.name == name:  # the layout of MER2025: a folder a clip
        faces = faces / f"{name}.npy" if (faces / f"{name}.npy").is_file() else None
    return ClipFiles(
        video=first(media.video, *(f"{name}{ending}" for ending in media.endings)),
        audio=first(media.audio, f"{name}.wav"),
        faces=faces,
    )


def _absent_media(media: Media, records: Sequence[ClipRecord]) -> list[Problem]:
    """A problem for each video and each sound that is not there; one for all of them together, as for all faces."""
    problems = []
    for part, folder, endings in (
        ("video", media.video, media.endings),
        ("audio", media.audio, (".wav",)),
        ("faces", FACES, (".npy",)),
    ):
        lacking = [record for record in records if getattr(record.files, part) is None]
        if lacking and (part == "faces" or len(lacking) == len(records)):
            some = ", ".join(record.name for record in lacking[:_SHOWN]) + (", ..." if len(lacking) > _SHOWN else "")
            problems.append(
                Problem("", folder, f"{len(lacking):,} of {len(records):,} clips have no file here: {some}")
            )
            continue
        for record in lacking:
            kept = "heard from its video" if part == "audio" and record.files.video else f"kept without {part}"
            files = " or ".join(f"{folder}/{record.name}{ending}" for ending in endings)
            problems.append(Problem(record.name, files, f"not there; the clip is {kept}"))
    return problems
