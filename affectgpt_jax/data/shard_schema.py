"""The form of a prepared corpus on disk, shared by the writer and the reader.

A corpus is one TFDS dataset whose configs are its *streams*: columns of the same samples in the same order, each with
files, an encoder and a manifest of its own, so that a stream is added or replaced without touching the others:

    ROOT/mer_caption/text/1.0.0/     mer_caption-train.array_record-00000-of-00003 ...   raw text of each sample
    ROOT/mer_caption/face_8/1.0.0/   the same file names                                 stream face@8
    ROOT/mer_caption/audio_8/1.0.0/                                                      stream audio@8
        features.json, dataset_info.json    what tfds.builder_from_directory reads
        manifest.json                       ours: provenance, and length and checksum of every file; written last

A stream is named `modality@count`, with an optional tag where a corpus keeps two of a kind: `face@8`, `frame@16`,
`face@8.siglip`. All streams are cut into shards at the same samples. A record is a serialised tf.Example.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from affectgpt_jax.errors import UserError

DATASET = "mer_caption"
VERSION = "1.0.0"
"""Version of this form; a reader takes no other."""

MANIFEST = "manifest.json"
TEXT = "text"
"""The stream of the raw text. Every corpus has it, and it says which samples there are."""

SPLITS = ("train", "validation", "test")
FEATURE_DTYPE = np.dtype("<f2")


class TextRecord(NamedTuple):
    """The raw text of a sample; what is not known is empty.

    Attributes:
        name: the sample's name, always a string ("0012").
        split: one of `SPLITS`.
        subtitle: what is said, in English.
        chinese: what is said, in Chinese.
        labels: open-vocabulary emotion words.
        description: the emotion described in sentences.
    """

    name: str
    split: str
    subtitle: str = ""
    chinese: str = ""
    labels: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class Stream:
    """A feature stream by its parts: `face@8.siglip` is ("face", 8, "siglip")."""

    modality: str
    count: int
    tag: str = ""

    @property
    def name(self) -> str:
        """The name in configurations and messages."""
        return f"{self.modality}@{self.count}" + (f".{self.tag}" if self.tag else "")


def parse_stream(name: str) -> Stream:
    """Reads the name of a feature stream.

    Raises:
        UserError: the name is not of the form `modality@count` or `modality@count.tag`.
    """
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)(?:\.([a-z0-9]+))?", name)
    if match is None:
        raise UserError(
            f"{name!r} is not the name of a feature stream; it is written modality@count, for example face@8 or audio@8"
        )
    return Stream(match[1], int(match[2]), match[3] or "")


def config_name(stream: str) -> str:
    """Name of a stream's TFDS config, which may hold neither `@` nor `.`: `face@8` is `face_8`."""
    if stream != TEXT:
        parse_stream(stream)
    return stream.replace("@", "_").replace(".", "_")


def dataset_directory(root: Path) -> Path:
    """The dataset's directory in a corpus."""
    return root / DATASET


def stream_directory(root: Path, stream: str) -> Path:
    """The directory that holds a stream's files."""
    return dataset_directory(root) / config_name(stream) / VERSION


def shard_name(split: str, index: int, count: int) -> str:
    """File name of shard `index` of the `count` shards of a split, as TFDS names it."""
    return f"{DATASET}-{split}.array_record-{index:05d}-of-{count:05d}"


# ---------------------------------------------------------------------------------------------------------------------
# The manifest


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Entry):
    """One file of records.

    Attributes:
        file: its name.
        records: how many records it holds.
        size: length in bytes.
        blake2b: checksum of the file, as `b2sum -l 256` prints it.
        names: digest of the names of its samples in order, the same in every stream.
        absent: records, counted from 0, whose sample lacks the modality; their features are zeros.
    """

    file: str
    records: int
    size: int
    blake2b: str
    names: str
    absent: tuple[int, ...] = ()


class Manifest(_Entry):
    """What a stream's directory holds and where it comes from.

    Attributes:
        version: `VERSION` of the form.
        stream: the stream's name.
        shape: [count, width] of a sample's features; None for the text stream.
        dtype: how features are stored; None for the text stream.
        provenance: for features at least `encoder` and `weights` (a hash); what else makes the numbers what they are.
        splits: the shards of each split, in order.
        metadata: checksums of the directory's other files.
    """

    version: str
    stream: str
    shape: tuple[int, int] | None
    dtype: str | None
    provenance: Mapping[str, Any]
    splits: Mapping[str, tuple[ShardEntry, ...]]
    metadata: Mapping[str, str]

    @cached_property
    def order(self) -> Mapping[str, tuple[tuple[int, str], ...]]:
        """Length and names digest of each shard of each split: equal in all streams of a corpus."""
        return {split: tuple((entry.records, entry.names) for entry in shards) for split, shards in self.splits.items()}


def read_manifest(root: Path, stream: str) -> Manifest:
    """Reads a stream's manifest.

    Raises:
        UserError: the stream is not there, is half-written, or was written in another form.
    """
    directory = stream_directory(root, stream)
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        if directory.exists():
            raise UserError(
                f"{directory} has no {MANIFEST}: it was not written to its end or not by this program. "
                "Delete it and prepare the corpus again."
            ) from error
        raise UserError(
            f"There is no stream {stream!r} in {root}; {_available(root)}. Prepare it with `affectgpt prepare`."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is damaged or of another version: {where}: {first['msg']}") from error
    if (manifest.version, manifest.stream) != (VERSION, stream):
        raise UserError(
            f"{path} is the manifest of stream {manifest.stream!r} in version {manifest.version}, expected {stream!r} "
            f"in version {VERSION}. Prepare the corpus again."
        )
    return manifest


def _available(root: Path) -> str:
    found = sorted(path.parent.parent.name for path in dataset_directory(root).glob(f"*/{VERSION}/{MANIFEST}"))
    return f"it holds {', '.join(found)}" if found else "no prepared corpus is there"


def digest(*parts: bytes) -> str:
    """Checksum of some bytes in the form that `ShardEntry.blake2b` has."""
    state = hashlib.blake2b(digest_size=32)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Checksum of a file, as `b2sum -l 256` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
