"""The corpus as the TFDS dataset `mer_caption`, for whoever reads it through TFDS and not through this library.

Three kinds of configs lie side by side in a corpus, and TFDS opens all of them the same way:

    ROOT/mer_caption/face_8/1.0.0/            a stream; only `prepare` writes it (affectgpt_jax.data.shard_schema)
    ROOT/mer_caption/face_8_audio_8/1.0.0/    a stream set: texts and the features of some streams, joined by sample
    ROOT/mer_caption/media/1.0.0/             the clips as they are: texts, and the bytes of their files

    builder = MerCaption(config="face_8_audio_8", data_dir=ROOT)
    builder.download_and_prepare()
    tfds.data_source("mer_caption/face_8_audio_8:1.0.0", data_dir=ROOT, split="train")

Shards are written one by one in the order of the corpus, here or on the workers of a Beam pipeline, and need no
TensorFlow. TFDS's own GeneratorBasedBuilder shuffles, and for a split of more than a gigabyte it needs TensorFlow for
that (its Shuffler spills through tf.io.gfile).
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from rich.console import Console
from rich.progress import track
from tensorflow_datasets.core import example_serializer, naming
from tensorflow_datasets.core import splits as tfds_splits

from affectgpt_jax.data import shard_schema as schema
from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import SPLITS, TEXT, TextRecord, read_manifest
from affectgpt_jax.data.shard_writer import WRITER_OPTIONS
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing
from data_prep.beam import on_beam
from data_prep.corpora import read_corpus
from data_prep.readers import ClipRecord

MEDIA = "media"
"""Name of the config of encoded media."""

SHARD_BYTES = 256 << 20
"""About how much media make a shard: large enough to read fast, small enough to be shared among many workers."""

DESCRIPTION = """\
Clips of people who speak, for emotion understanding: subtitle, open-vocabulary emotion labels and a description of
each, with the features that frozen encoders made of face, frames and sound, or with the media themselves. MER-Caption
and MER-Caption+ are given out by their owners (MER2025 challenge) and are no part of this program; a synthetic corpus
and clips of your own are prepared in the same form.
"""

CITATION = """\
@inproceedings{lian2025affectgpt,
  title = {{AffectGPT}: A New Dataset, Model, and Benchmark for Emotion Understanding with Multimodal Large Language
    Models},
  author = {Lian, Zheng and others},
  booktitle = {International Conference on Machine Learning},
  year = {2025},
  note = {arXiv:2501.16566}
}
"""

HOMEPAGE = "https://arxiv.org/abs/2501.16566"

_TEXTS = {
    field: tfds.features.Sequence(tfds.features.Text()) if field == "labels" else tfds.features.Text()
    for field in TextRecord._fields
}


def config_streams(config: str) -> tuple[str, ...]:
    """The feature streams of a config by its name: none for `text` and `media`, one for a stream, more for a set.

    Args:
        config: for example `face_8`, `face_8_audio_8`, `face_8_siglip_audio_8`, `media`.

    Raises:
        UserError: there can be no config of this name.
    """
    if config in (TEXT, MEDIA):
        return ()
    words, streams = config.split("_"), []
    while words:
        taken = 3 if len(words) > 2 and (len(words) == 3 or not words[3].isdigit()) else 2  # with or without a tag
        (modality, *rest), words = words[:taken], words[taken:]
        streams.append(f"{modality}@{'.'.join(rest)}")
    try:
        names = [schema.parse_stream(stream).name for stream in streams]
    except UserError as error:
        raise UserError(
            f"{config!r} is no config of {schema.DATASET}; there are {TEXT}, {MEDIA}, a stream such as face_8 "
            "(face@8), and stream sets such as face_8_audio_8"
        ) from error
    if len(set(names)) < len(names):
        raise UserError(f"config {config!r} names a stream twice")
    return tuple(names)


@dataclass(frozen=True)
class Shard:
    """A file that is to be written.

    Attributes:
        split: its split.
        index: number of the shard in its split.
        count: how many shards the split has.
        records: how many samples go into it.
        content: what its source needs to know of them.
    """

    split: str
    index: int
    count: int
    records: int
    content: Any

    @property
    def file(self) -> str:
        """Its name."""
        return schema.shard_name(self.split, self.index, self.count)


class Source(Protocol):
    """Where the samples of a config come from. It is pickled, and works on any machine that sees the same folders."""

    @property
    def features(self) -> Mapping[str, Any]:
        """The features of a sample, as TFDS describes them."""

    def identity(self) -> dict[str, Any]:
        """What the samples are made from, as JSON holds it; changes whenever they may."""

    def shards(self) -> list[Shard]:
        """All shards, the same on every call."""

    def examples(self, shard: Shard) -> Iterator[Mapping[str, Any]]:
        """The samples of a shard, in order."""


@dataclass(frozen=True)
class StreamSet:
    """Samples joined from the streams of a prepared corpus, in its order and its shards.

    Attributes:
        root: the corpus.
        streams: names of feature streams.
    """

    root: Path
    streams: tuple[str, ...]

    @property
    def features(self) -> Mapping[str, Any]:
        """Texts; per stream the features, and whether the sample has the modality."""
        shapes = {stream: read_manifest(self.root, stream).shape for stream in self.streams}
        tensor = partial(tfds.features.Tensor, dtype=schema.FEATURE_DTYPE, encoding="bytes")
        return {
            **_TEXTS,
            "features": {stream: tensor(shape=shape) for stream, shape in shapes.items()},
            "present": {stream: tfds.features.Scalar(np.bool_) for stream in self.streams},
        }

    def identity(self) -> dict[str, Any]:
        """Where the streams come from, and a fingerprint of each split."""
        manifests = {stream: read_manifest(self.root, stream) for stream in (TEXT, *self.streams)}
        return {
            "provenance": {stream: dict(manifest.provenance) for stream, manifest in manifests.items()},
            "fingerprints": {
                split: open_corpus(self.root, split, self.streams, verify=False).fingerprint
                for split in manifests[TEXT].splits
            },
        }

    def shards(self) -> list[Shard]:
        """One for each shard of the streams.

        Raises:
            UserError: a stream is missing or damaged, or the streams do not belong together.
        """
        shards = []
        for split, entries in read_manifest(self.root, TEXT).splits.items():
            open_corpus(self.root, split, self.streams)  # checksums
            start = 0
            for index, entry in enumerate(entries):
                shards.append(Shard(split, index, len(entries), entry.records, start))
                start += entry.records
        return shards

    def examples(self, shard: Shard) -> Iterator[Mapping[str, Any]]:
        """Reads the samples one at a time."""
        corpus = open_corpus(self.root, shard.split, self.streams, verify=False)
        for index in range(shard.content, shard.content + shard.records):
            columns = {stream: corpus.features(stream, [index]) for stream in self.streams}
            yield {
                **_texts(corpus.text(index)),
                "features": {stream: features[0] for stream, (features, _) in columns.items()},
                "present": {stream: bool(present[0]) for stream, (_, present) in columns.items()},
            }


@dataclass(frozen=True)
class Media:
    """Clips with their files, byte by byte.

    Attributes:
        corpus: name of a corpus, as `data_prep.corpora` reads it.
        shard_bytes: media that a shard takes before the next one begins; a clip is never cut.
    """

    corpus: str
    shard_bytes: int

    @property
    def features(self) -> Mapping[str, Any]:
        """Texts; per kind of file its bytes, empty where the clip has none, and whether it has one."""
        return {
            **_TEXTS,
            **{kind: tfds.features.Scalar(np.object_) for kind in ClipFiles._fields},
            "present": {kind: tfds.features.Scalar(np.bool_) for kind in ClipFiles._fields},
        }

    def identity(self) -> dict[str, Any]:
        """Digest of the texts and of the names and lengths of the files."""
        facts = [
            (record.text, [path and (path.name, _length(record, path)) for path in record.files])
            for record in self._records()
        ]
        return {"clips": schema.digest(json.dumps(facts).encode())}

    def shards(self) -> list[Shard]:
        """Shards of about `shard_bytes`.

        Raises:
            UserError: the corpus cannot be read, holds no clip, or two of one name; a file is gone.
        """
        shards = []
        records = self._records()
        for split in SPLITS:
            numbers, full = [], 0
            clips = [record for record in records if record.split == split]
            for clip in clips:
                numbers.append(full // self.shard_bytes)
                full += sum(_length(clip, path) for path in clip.files if path)
            parts = [
                tuple(clip for _, clip in group)
                for _, group in groupby(zip(numbers, clips, strict=True), lambda pair: pair[0])
            ]
            shards += [Shard(split, index, len(parts), len(part), part) for index, part in enumerate(parts)]
        return shards

    def examples(self, shard: Shard) -> Iterator[Mapping[str, Any]]:
        """Reads the files of one clip at a time."""
        for record in shard.content:
            yield {
                **_texts(record.text),
                **{kind: _content(record, path) for kind, path in record.files._asdict().items()},
                "present": {kind: path is not None for kind, path in record.files._asdict().items()},
            }

    def _records(self) -> Sequence[ClipRecord]:
        records = read_corpus(self.corpus).records
        names = {record.name for record in records}
        if len(names) < len(records) or not records:
            raise UserError(
                f"{self.corpus} has {len(records)} clips of {len(names)} names; a name must stand for one clip"
                if records
                else f"{self.corpus} holds no clip"
            )
        return records


def _texts(record: TextRecord) -> dict[str, Any]:
    return {**record._asdict(), "labels": list(record.labels)}


def _length(record: ClipRecord, path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(record, path, error) from error


def _content(record: ClipRecord, path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        raise _unreadable(record, path, error) from error


def _unreadable(record: ClipRecord, path: Path | None, error: OSError) -> UserError:
    return UserError(
        f"clip {record.name!r}: {path} cannot be read ({error.strerror}); bring it back, or take the clip out of the "
        "corpus"
    )


@dataclass(frozen=True)
class _WriteShard:
    """Writes a shard; called on whatever machine. A shard has its name only when it is whole."""

    source: Source
    directory: str

    def __call__(self, shard: Shard) -> None:
        form = tfds.features.FeaturesDict(dict(self.source.features))
        serializer = example_serializer.ExampleSerializer(form.get_serialized_info())
        path = Path(self.directory) / shard.file
        with replacing(path) as temporary:
            writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
            for example in self.source.examples(shard):
                message = serializer.get_tf_example(form.encode_example(example))
                writer.write(message.SerializeToString(deterministic=True))
            writer.close()


class MerCaption(tfds.core.ShardBasedBuilder):
    """Opens every config of a corpus, and writes stream sets and media.

    Args:
        data_dir: the corpus, the folder that `affectgpt prepare` writes.
        config: `text`, a stream (`face_8`), a stream set (`face_8_audio_8`) or `media`.
        corpus: the clips that `media` is made from, by a name that `data_prep.corpora` reads; needed only to make it.

    Raises:
        UserError: no such config, or what it is made from is not there.
    """

    VERSION = tfds.core.Version(schema.VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {schema.VERSION: "Streams, stream sets and media."}
    # Where TFDS looks for checksums of downloads. To find out by itself it imports a package that it does not require.
    code_path = epath.Path(__file__)

    def __init__(self, *, corpus: str | None = None, **kwargs: Any) -> None:
        self._corpus = corpus
        super().__init__(**{**kwargs, "file_format": tfds.core.FileFormat.ARRAY_RECORD})
        self._original_state["corpus"] = corpus

    def download_and_prepare(
        self, *, download_config: tfds.download.DownloadConfig | None = None, **kwargs: Any
    ) -> None:
        """Writes a stream set or the media, unless they are there.

        Args:
            download_config: `beam_runner` and `beam_options` have the shards written by a Beam pipeline, whose workers
                see the same folders.
            **kwargs: see TFDS.

        Raises:
            UserError: what is there was made from other samples, or is to be written over; something that the config
                is made from is missing or damaged; the disk is full.
        """
        download_config = download_config or tfds.download.DownloadConfig()
        if kwargs.get("file_format") not in (None, "array_record", tfds.core.FileFormat.ARRAY_RECORD):
            raise UserError(f"{self.info.full_name} is written as array_record, not as {kwargs['file_format']}")
        if self.data_path.exists():
            if download_config.download_mode.overwrite_dataset:  # TFDS would keep what the old files say of themselves
                remedy = (
                    "only `affectgpt prepare` writes streams; prepare it with --overwrite"
                    if self._is_stream
                    else "delete it, and make it again"
                )
                raise UserError(f"{self.data_dir} is not written over: {remedy}.")
            self._check_made_from()
        # TFDS makes a folder for downloads even if there are none.
        with tempfile.TemporaryDirectory() as empty:
            super().download_and_prepare(**{"download_dir": empty, **kwargs}, download_config=download_config)

    @property
    def _is_stream(self) -> bool:
        name = self.builder_config.name
        return name == TEXT or len(config_streams(name)) == 1

    def _check_made_from(self) -> None:
        """Refuses a config that was made from other samples than are there now, as far as that can be seen."""
        source = self._source()
        if source is not None and self.info.metadata.get("made_from") != json.loads(json.dumps(source.identity())):
            raise UserError(
                f"{self.data_dir} was made from other samples or features than are there now. Delete it, and make it "
                "again."
            )

    def _source(self) -> Source | None:
        """What the config is made from; None for a stream, and for media whose corpus is not named."""
        if self._is_stream:
            return None
        if self.builder_config.name == MEDIA:
            return Media(self._corpus, SHARD_BYTES) if self._corpus else None
        return StreamSet(Path(self.data_dir_root).absolute(), config_streams(self.builder_config.name))

    def _create_builder_config(self, builder_config: Any, version: Any) -> tfds.core.BuilderConfig:
        """TFDS would know only configs that the class lists, but a corpus has whatever streams it has."""
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config
        if builder_config is None:
            raise UserError(
                f"{schema.DATASET} needs a config: {TEXT}, {MEDIA}, a stream such as face_8, or a stream set such as "
                "face_8_audio_8"
            )
        streams = config_streams(builder_config)
        if builder_config == MEDIA:
            description = "the bytes of video, sound and face crops"
        else:
            description = f"stream{'s' * (len(streams) > 1)} {', '.join(streams) or TEXT}"
        return tfds.core.BuilderConfig(name=builder_config, description=description)

    def _info(self) -> tfds.core.DatasetInfo:
        described = partial(
            tfds.core.DatasetInfo,
            builder=self,
            description=DESCRIPTION,
            citation=CITATION,
            homepage=HOMEPAGE,
            disable_shuffling=True,
        )
        if (self.data_path / "dataset_info.json").exists():
            return described()  # TFDS reads the rest from there
        if self.data_path.exists():
            raise UserError(f"{self.data_dir} has no dataset_info.json: it is not whole. Delete it, and make it again.")
        if self._is_stream:
            read_manifest(Path(self.data_dir_root), (*config_streams(self.builder_config.name), TEXT)[0])
        source = self._source()
        if source is None:
            raise UserError(
                f"there is no {self.data_dir}; name the corpus to make it from: affectgpt tfds {MEDIA} "
                f"{self.data_dir_root} --corpus CORPUS"
            )
        return described(
            features=tfds.features.FeaturesDict(dict(source.features)),
            metadata=tfds.core.MetadataDict(made_from=source.identity()),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Any]]:
        raise NotImplementedError("shards are written by _download_and_prepare")

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """In place of TFDS's way, which makes two steps of the pipeline for each shard, and runs it once a split."""
        source = self._source()
        assert source is not None
        write, shards = _WriteShard(source, str(Path(self.data_dir).absolute())), source.shards()
        if download_config.beam_runner or download_config.beam_options:
            on_beam(source.shards, write, download_config.beam_runner, download_config.beam_options)
        else:
            for shard in track(shards, "shards", console=Console(stderr=True), transient=True):
                write(shard)
        self.info.set_splits(
            tfds_splits.SplitDict(
                self._split_info(split, list(group)) for split, group in groupby(shards, lambda shard: shard.split)
            )
        )

    def _split_info(self, split: str, shards: Sequence[Shard]) -> tfds.core.SplitInfo:
        """Describes the files of a split, once it is sure that they hold what they should."""
        paths = [Path(self.data_dir) / shard.file for shard in shards]
        for shard, path in zip(shards, paths, strict=True):
            found = 0
            if path.is_file():
                reader = array_record_module.ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            if found != shard.records:
                raise UserError(
                    f"{path} holds {found} records, expected {shard.records}: the workers do not see this folder, or "
                    "the corpus changed meanwhile. Make it again, in a folder that all of them share."
                )
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(path.stat().st_size for path in paths),
            filename_template=naming.ShardedFileTemplate(
                data_dir=self.data_path, dataset_name=self.name, split=split, filetype_suffix="array_record"
            ),
        )
