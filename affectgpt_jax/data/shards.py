"""Reading of a prepared corpus: random access to texts and features, checked before the first sample is read.

The files are those of `shard_schema`; `tfds.data_source("mer_caption/face_8:1.0.0", data_dir=ROOT, split="train")`
reads the same records. This reader adds what training needs: streams side by side, whole batches at once, and a
refusal of anything that does not fit together.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from array_record.python import array_record_module

from affectgpt_jax.data.shard_records import decode_features, decode_text
from affectgpt_jax.data.shard_schema import (
    FEATURE_DTYPE,
    SPLITS,
    TEXT,
    Manifest,
    ShardEntry,
    TextRecord,
    digest,
    file_digest,
    read_manifest,
    stream_directory,
)
from affectgpt_jax.errors import UserError

_NAME_BATCH = 4096
"""Records that are decoded at a time when a whole corpus is walked through."""


class RecordFiles:
    """Random access to the records of consecutive ArrayRecord files.

    Files are opened on first use and stay open; any number of threads may read. A pickled copy opens its own.

    Args:
        paths: the files in order.
        lengths: how many records each holds.
    """

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int]) -> None:
        self._paths = tuple(paths)
        self._ends = np.asarray(list(accumulate(lengths)), np.int64)
        self._starts = self._ends - np.asarray(lengths, np.int64)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_ends": self._ends, "_starts": self._starts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _readers={}, _lock=threading.Lock())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: npt.ArrayLike) -> list[bytes]:
        """Reads records in the order asked for.

        Args:
            indices: int [n], counted from 0 over all files, repeats allowed.

        Raises:
            IndexError: an index is negative or too large.
            UserError: a file is gone or damaged.
        """
        wanted = np.asarray(indices, np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"records {wanted.min()} to {wanted.max()} wanted, there are {len(self)}")
        files = np.searchsorted(self._ends, wanted, side="right")
        records: list[bytes] = [b""] * len(wanted)
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            local = (wanted[places] - self._starts[file]).tolist()
            try:
                found = self._reader(file).read(local)
            except (RuntimeError, OSError) as error:
                raise UserError(
                    f"{self._paths[file]} cannot be read: {error}. The shard is damaged or gone; prepare the corpus "
                    "again."
                ) from error
            for place, record in zip(places.tolist(), found, strict=True):
                records[place] = record
        return records

    def _reader(self, file: int) -> Any:
        with self._lock:
            if file not in self._readers:
                self._readers[file] = array_record_module.ArrayRecordReader(
                    str(self._paths[file]), "readahead_buffer_size:0", file_reader_buffer_size=32768
                )
            return self._readers[file]


@dataclass(frozen=True)
class Corpus:
    """One split of a prepared corpus. Made by `open_corpus`; picklable, and safe to read from several threads.

    Attributes:
        root: where it lies.
        split: the split's name.
        manifests: the manifest of each open stream, the text first.
    """

    root: Path
    split: str
    manifests: Mapping[str, Manifest] = field(repr=False)
    _files: Mapping[str, RecordFiles] = field(repr=False)

    def __len__(self) -> int:
        return len(self._files[TEXT])

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the open feature streams."""
        return tuple(stream for stream in self.manifests if stream != TEXT)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The samples' names in order; reads all texts once."""
        return tuple(record.name for record in self.walk())

    @cached_property
    def fingerprint(self) -> str:
        """Identity of this split with these streams: changes with any byte of their shards, and with nothing else."""
        files = [entry.blake2b for manifest in self.manifests.values() for entry in self._entries(manifest)]
        return digest("\n".join((self.split, *self.manifests, *files)).encode())

    @cached_property
    def text_fingerprint(self) -> str:
        """Identity of this split's texts alone."""
        return digest("\n".join(entry.blake2b for entry in self._entries(self.manifests[TEXT])).encode())

    def text(self, index: int) -> TextRecord:
        """The raw text of one sample."""
        return self.texts([index])[0]

    def texts(self, indices: npt.ArrayLike | None = None) -> list[TextRecord]:
        """The raw texts of some samples, or of all.

        Raises:
            IndexError: there is no such sample.
            UserError: a file is gone or damaged.
        """
        if indices is None:
            return list(self.walk())
        return [decode_text(record) for record in self._files[TEXT].read(indices)]

    def walk(self) -> Iterator[TextRecord]:
        """Yields all texts in order without holding them all."""
        for start in range(0, len(self), _NAME_BATCH):
            yield from self.texts(np.arange(start, min(start + _NAME_BATCH, len(self))))

    def features(self, stream: str, indices: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Reads features of some samples.

        Args:
            stream: name of an open feature stream.
            indices: int [n], the samples.

        Returns:
            float16 [n, count, width], read-only, zeros where a sample lacks the modality; and bool [n], whether it has
            it.

        Raises:
            IndexError: there is no such sample.
            UserError: the stream is not open, or a file is gone or damaged.
        """
        shape = self._feature_manifest(stream).shape
        assert shape is not None
        found = [decode_features(record, shape) for record in self._files[stream].read(indices)]
        features = np.frombuffer(b"".join([values for values, _ in found]), FEATURE_DTYPE)
        return features.reshape(-1, *shape), np.array([present for _, present in found], np.bool_)

    def present(self, stream: str) -> np.ndarray:
        """Says which samples have a modality, from the manifest alone.

        Returns:
            bool [len(self)].
        """
        flags = np.ones(len(self), np.bool_)
        start = 0
        for entry in self._entries(self._feature_manifest(stream)):
            flags[start + np.asarray(entry.absent, np.int64)] = False
            start += entry.records
        return flags

    def shape(self, stream: str) -> tuple[int, int]:
        """[count, width] of a sample's features."""
        shape = self._feature_manifest(stream).shape
        assert shape is not None
        return shape

    def provenance(self, stream: str) -> Mapping[str, Any]:
        """Where a stream comes from: its encoder, the hash of its weights, how media were read."""
        return (self.manifests[TEXT] if stream == TEXT else self._feature_manifest(stream)).provenance

    def _feature_manifest(self, stream: str) -> Manifest:
        if stream not in self.streams:
            opened = ", ".join(self.streams) or "the text alone"
            raise UserError(f"Stream {stream!r} of {self.root} is not open, only {opened}.")
        return self.manifests[stream]

    def _entries(self, manifest: Manifest) -> Sequence[ShardEntry]:
        return manifest.splits[self.split]


@dataclass(frozen=True)
class Mixture:
    """Corpora one after the other, read as one.

    Attributes:
        corpora: splits of prepared corpora with the same streams; at least one.
        weights: how often each is gone through in a pass.
    """

    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(corpus) for corpus in self.corpora])

    @cached_property
    def fingerprint(self) -> str:
        """Identity: changes with any byte of the shards, and with the weights; of one corpus its own."""
        if len(self.corpora) == 1:
            return self.corpora[0].fingerprint
        parts = [f"{corpus.fingerprint} {weight}" for corpus, weight in zip(self.corpora, self.weights, strict=True)]
        return digest("\n".join(parts).encode())

    def offset(self, corpus: int) -> int:
        """Index of the first sample of a corpus."""
        return int(self._ends[corpus]) - len(self.corpora[corpus])

    def texts(self, indices: npt.ArrayLike) -> list[TextRecord]:
        """See `Corpus.texts`."""
        if len(self.corpora) == 1:
            return self.corpora[0].texts(indices)
        texts: dict[int, TextRecord] = {}
        for corpus, places, local in self._split(indices):
            texts |= zip(places.tolist(), corpus.texts(local), strict=True)
        return [texts[place] for place in range(len(texts))]

    def features(self, stream: str, indices: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """See `Corpus.features`."""
        if len(self.corpora) == 1:
            return self.corpora[0].features(stream, indices)
        count = np.size(np.asarray(indices))
        features = np.empty((count, *self.shape(stream)), FEATURE_DTYPE)
        present = np.empty(count, np.bool_)
        for corpus, places, local in self._split(indices):
            features[places], present[places] = corpus.features(stream, local)
        return features, present

    def present(self, stream: str) -> np.ndarray:
        """See `Corpus.present`."""
        return np.concatenate([corpus.present(stream) for corpus in self.corpora])

    def shape(self, stream: str) -> tuple[int, int]:
        """See `Corpus.shape`."""
        return self.corpora[0].shape(stream)

    def _split(self, indices: npt.ArrayLike) -> Iterator[tuple[Corpus, np.ndarray, np.ndarray]]:
        """For each corpus that has some of the samples: their places among `indices`, and their indices in it."""
        wanted = np.asarray(indices, np.int64).reshape(-1)
        owners = np.searchsorted(self._ends, wanted, side="right")
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            yield self.corpora[owner], places, wanted[places] - self.offset(owner)


def mix(corpora: Sequence[Corpus], weights: Sequence[float]) -> Mixture:
    """Corpora to be read as one.

    Raises:
        UserError: streams of another shape or another encoder than the first corpus has.
    """
    first, *others = corpora
    for other in others:
        for stream in first.streams:
            for key in ("encoder", "weights"):
                ours, theirs = first.provenance(stream).get(key), other.provenance(stream).get(key)
                if ours != theirs:
                    raise UserError(
                        f"stream {stream!r} of {other.root} was made with {key}={theirs!r}, that of {first.root} with "
                        f"{ours!r}. Prepare the one with the encoder of the other"
                    )
            if other.shape(stream) != first.shape(stream):
                raise UserError(
                    f"stream {stream!r} of {other.root} has features of {other.shape(stream)}, that of {first.root} of "
                    f"{first.shape(stream)}. Prepare the one with the encoder of the other"
                )
    return Mixture(tuple(corpora), tuple(weights))


def open_corpus(
    root: Path | str,
    split: str,
    streams: Sequence[str] = (),
    *,
    expect: Mapping[str, Mapping[str, Any]] | None = None,
    verify: bool = True,
) -> Corpus:
    """Opens one split of a prepared corpus and makes sure that all of it fits together.

    Args:
        root: the corpus, the directory that `prepare` wrote.
        split: `train`, `validation` or `test`.
        streams: feature streams to open, for example ("face@8", "audio@8").
        expect: what the provenance of a stream must say, for example {"face@8": {"weights": "3f6c...", "width": 768}}.
        verify: compare the checksum of every file, which reads all of it once. Otherwise only lengths are compared;
            damage within a file then still ends in an error when the record is read.

    Returns:
        The corpus.

    Raises:
        UserError: no such stream or split; a shard missing, of another length, or with a wrong checksum; streams of
            other samples or in another order; another encoder than expected. The message says what to do.
    """
    root = Path(root)
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")
    manifests = {stream: read_manifest(root, stream) for stream in (TEXT, *streams)}
    for stream, manifest in manifests.items():
        _check_order(root, manifests[TEXT], manifest)
        _check_expected(root, stream, manifest, (expect or {}).get(stream, {}))
    if split not in manifests[TEXT].splits:
        raise UserError(f"{root} has no split {split!r}, only {', '.join(manifests[TEXT].splits)}.")
    files = {}
    for stream, manifest in manifests.items():
        entries = manifest.splits[split]
        paths = [stream_directory(root, stream) / entry.file for entry in entries]
        for path, entry in zip(paths, entries, strict=True):
            _check_size(path, entry.size)
        if verify:
            with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
                for path, entry, found in zip(paths, entries, pool.map(file_digest, paths), strict=True):
                    if found != entry.blake2b:
                        raise UserError(
                            f"{path} has checksum {found[:16]}..., expected {entry.blake2b[:16]}...: it was damaged or "
                            f"changed. Delete {path.parent} and prepare the stream again."
                        )
        files[stream] = RecordFiles(paths, [entry.records for entry in entries])
    return Corpus(root, split, manifests, files)


def _check_size(path: Path, expected: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != expected:
        state = "is missing" if found is None else f"has {found} bytes"
        raise UserError(
            f"{path} {state}, expected {expected} bytes. Delete {path.parent} and prepare the stream again."
        )


def _check_order(root: Path, text: Manifest, manifest: Manifest) -> None:
    """Every stream must hold the samples of the text stream, in its order and cut at the same places."""
    if manifest.order == text.order:
        return
    counts = {
        split: (sum(n for n, _ in text.order.get(split, ())), sum(n for n, _ in shards))
        for split, shards in manifest.order.items()
    }
    differing = [
        f"{split}: {theirs} samples, the text has {ours}" for split, (ours, theirs) in counts.items() if ours != theirs
    ]
    raise UserError(
        f"Stream {manifest.stream!r} of {root} does not belong to the text there "
        f"({'; '.join(differing) or 'other samples or another order'}). It was prepared from another corpus: delete "
        f"{stream_directory(root, manifest.stream)} and prepare the stream again."
    )


def _check_expected(root: Path, stream: str, manifest: Manifest, expected: Mapping[str, Any]) -> None:
    known = manifest.provenance
    for key, value in expected.items():
        if key not in known or known[key] != value:
            raise UserError(
                f"Stream {stream!r} of {root} was made with {key}={known.get(key, 'nothing')!r}, but the configuration "
                f"expects {value!r}. Prepare the corpus with the encoder of this configuration, or name the encoder "
                "that made the shards."
            )
