"""Writing of a prepared corpus: shards one by one, then a stream's metadata, then the move to its final place.

Any number of writers may write shards of one stream at the same time, each its own; none needs to know of the others.
A shard appears under its name only when it is whole, and a stream's directory under its final name only when all of
its files are. Bytes depend on the samples alone: the same corpus is written the same twice.

TensorFlow is not needed: TFDS encodes the fields (`encode_example`, `ExampleSerializer`) and describes the directory
(`DatasetInfo`), and the files are written by array_record.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import dataset_info, example_serializer, naming
from tensorflow_datasets.core import splits as tfds_splits

from affectgpt_jax.data.shard_schema import (
    DATASET,
    FEATURE_DTYPE,
    MANIFEST,
    VERSION,
    Manifest,
    ShardEntry,
    TextRecord,
    config_name,
    digest,
    file_digest,
    parse_stream,
    shard_name,
    stream_directory,
)
from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing

WRITER_OPTIONS = "group_size:1,uncompressed"
"""One record per chunk, so that any record is one read. Compressing float16 features gains next to nothing."""

_TEXT_FEATURES = tfds.features.FeaturesDict(
    {
        "name": tfds.features.Text(),
        "split": tfds.features.Text(),
        "subtitle": tfds.features.Text(),
        "chinese": tfds.features.Text(),
        "labels": tfds.features.Sequence(tfds.features.Text()),
        "description": tfds.features.Text(),
    }
)


def _feature_features(shape: tuple[int, int]) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "present": tfds.features.Scalar(np.bool_),
            "features": tfds.features.Tensor(shape=shape, dtype=FEATURE_DTYPE, encoding="bytes"),
        }
    )


def write_text_shard(directory: Path, split: str, index: int, count: int, records: Sequence[TextRecord]) -> ShardEntry:
    """Writes one shard of the text stream.

    Args:
        directory: where to write; made if need be.
        split: the split's name.
        index: number of the shard in its split.
        count: how many shards the split has.
        records: the samples' texts.

    Returns:
        The shard's entry in the manifest.

    Raises:
        UserError: the disk is full or the file cannot be written; no shard is left behind.
    """
    examples = ({**record._asdict(), "labels": list(record.labels)} for record in records)
    return _write_shard(
        directory / shard_name(split, index, count), _TEXT_FEATURES, examples, [record.name for record in records]
    )


def write_feature_shard(
    directory: Path, split: str, index: int, count: int, names: Sequence[str], features: np.ndarray, present: np.ndarray
) -> ShardEntry:
    """Writes one shard of a feature stream.

    Args:
        directory: where to write; made if need be.
        split: the split's name.
        index: number of the shard in its split.
        count: how many shards the split has.
        names: the samples' names.
        features: float16 [n, count, width]; zeros where a sample lacks the modality.
        present: bool [n].

    Returns:
        The shard's entry in the manifest.

    Raises:
        UserError: the disk is full or the file cannot be written; no shard is left behind.
    """
    form = _feature_features(features.shape[1:])
    examples = (
        {"name": name, "present": bool(flag), "features": values}
        for name, flag, values in zip(names, present, features.astype(FEATURE_DTYPE, copy=False), strict=True)
    )
    absent = tuple(np.flatnonzero(~np.asarray(present, bool)).tolist())
    return _write_shard(directory / shard_name(split, index, count), form, examples, names, absent)


def _write_shard(
    path: Path,
    form: tfds.features.FeaturesDict,
    examples: Iterable[Mapping[str, Any]],
    names: Sequence[str],
    absent: tuple[int, ...] = (),
) -> ShardEntry:
    """Writes under a temporary name, makes sure that the file is whole, and gives it its name."""
    serializer = example_serializer.ExampleSerializer(form.get_serialized_info())
    with replacing(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        for example in examples:
            message = serializer.get_tf_example(form.encode_example(example))
            writer.write(message.SerializeToString(deterministic=True))
        writer.close()
        reader = array_record_module.ArrayRecordReader(str(temporary))
        if reader.num_records() != len(names):
            raise RuntimeError(f"{reader.num_records()} of {len(names)} records can be read back")
        reader.close()
        return ShardEntry(
            file=path.name,
            records=len(names),
            size=temporary.stat().st_size,
            blake2b=file_digest(temporary),
            names=digest("\n".join(names).encode()),
            absent=absent,
        )


def publish_stream(
    staged: Path,
    root: Path,
    stream: str,
    splits: Mapping[str, Sequence[ShardEntry]],
    provenance: Mapping[str, Any],
    shape: tuple[int, int] | None = None,
) -> Manifest:
    """Completes a directory of shards and moves it to its place in the corpus, replacing what is there.

    Args:
        staged: directory with all shards of the stream and nothing else, on the same file system as `root`.
        root: the corpus.
        stream: the stream's name.
        splits: entries of the shards of each split, in order. Splits without a shard are left out.
        provenance: see `Manifest`.
        shape: [count, width] of a sample's features; None for the text stream.

    Returns:
        The stream's manifest.

    Raises:
        UserError: a shard is missing, the disk is full or a file cannot be written.
    """
    shards = {split: tuple(entries) for split, entries in splits.items() if entries}
    for entry in (entry for entries in shards.values() for entry in entries):
        path = staged / entry.file
        if not path.is_file() or path.stat().st_size != entry.size:
            raise UserError(f"{path} is missing or not whole. Delete {staged} and prepare the stream again.")
    form = _TEXT_FEATURES if shape is None else _feature_features(shape)
    if shape is not None and parse_stream(stream).count != shape[0]:
        raise UserError(f"Stream {stream!r} was given {shape[0]} vectors a sample, expected as many as its name says.")
    manifest = Manifest(
        version=VERSION,
        stream=stream,
        shape=shape,
        dtype=None if shape is None else FEATURE_DTYPE.name,
        provenance=provenance,
        splits=shards,
        metadata=_write_tfds_metadata(staged, stream, form, shards),
    )
    for leftover in staged.glob(".*.tmp"):  # of a writer that was killed
        leftover.unlink()
    with replacing(staged / MANIFEST) as temporary:
        temporary.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _move(staged, stream_directory(root, stream))
    return manifest


def _write_tfds_metadata(
    directory: Path, stream: str, form: tfds.features.FeaturesDict, splits: Mapping[str, Sequence[ShardEntry]]
) -> dict[str, str]:
    """Writes features.json and dataset_info.json and returns their checksums."""
    info = dataset_info.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=DATASET,
            version=tfds.core.Version(VERSION),
            data_dir=str(directory),
            module_name="affectgpt_jax.data.shards",
            config_name=config_name(stream),
            config_description=f"stream {stream}",
        ),
        features=form,
        description="Emotion clips with subtitle, open-vocabulary labels and description; one config per stream.",
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(
        tfds_splits.SplitDict(
            tfds_splits.SplitInfo(
                name=split,
                shard_lengths=[entry.records for entry in entries],
                num_bytes=sum(entry.size for entry in entries),
                filename_template=naming.ShardedFileTemplate(
                    data_dir=directory, dataset_name=DATASET, split=split, filetype_suffix="array_record"
                ),
            )
            for split, entries in splits.items()
        )
    )
    try:
        info.write_to_directory(str(directory))
    except OSError as error:
        raise UserError(f"The metadata of {directory} could not be written: {error}") from error
    return {name: file_digest(directory / name) for name in ("dataset_info.json", "features.json")}


def _move(staged: Path, final: Path) -> None:
    """Moves a directory to its place. What stood there is moved out of the way first and deleted last."""
    final.parent.mkdir(parents=True, exist_ok=True)
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
