"""One way to name a corpus: a manifest, a folder that is known by its files, or KIND:PATH."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, Dataset, find_dataset
from data_prep.benchmarks import find_benchmark_folder, read_benchmark
from data_prep.manifest import ENDINGS, read_manifest_file
from data_prep.readers import (
    LABELS_FILE,
    OV_MERD_LABELS_FILE,
    SPLITS_FILE,
    Listing,
    read_mer_caption,
    read_mer_caption_plus,
    read_ov_merd,
)

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "mercaptionplus": "MER-Caption+",
        "mercaption": "MER-Caption",
        "ovmerd": "OV-MERD",
        SYNTHETIC.key: "synthetic corpus",
        "manifest": "manifest",
        **{dataset.key: dataset.title for dataset in DATASETS},
    }
)
"""Kind of corpus, as on the command line -> what it is called in reports."""

RELEASED_CLIPS: Mapping[str, int] = MappingProxyType({"mercaptionplus": 31_327, "mercaption": 115_595, "ovmerd": 332})
"""Clips of the releases for training; those of a benchmark are `Dataset.clips`, of its scored clips alone."""


@dataclass(frozen=True)
class Corpus:
    """Where a corpus lies and what it is.

    Attributes:
        kind: one of `TITLES`.
        path: its folder, its manifest, or MER-Caption's table.
    """

    kind: str
    path: Path

    @property
    def title(self) -> str:
        """What it is called in reports."""
        return TITLES[self.kind]

    @property
    def dataset(self) -> Dataset | None:
        """The data set of the benchmark that it is, if it is one of the nine."""
        return next((dataset for dataset in DATASETS if dataset.key == self.kind), None)

    @property
    def clips(self) -> int | None:
        """How many clips the release has, of a benchmark scored ones; None where nobody knows."""
        return self.dataset.clips if self.dataset else RELEASED_CLIPS.get(self.kind)

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}"

    def read(self) -> Listing:
        """Reads it; a benchmark with any number of clips.

        Raises:
            UserError: a table is missing or broken, or there is no clip.
        """
        if self.dataset:
            return read_benchmark(self.dataset, self.path, any_count=True)
        readers = {"mercaption": read_mer_caption, "ovmerd": read_ov_merd, "manifest": read_manifest_file}
        return readers.get(self.kind, read_mer_caption_plus)(self.path)


def read_corpus(name: str) -> Listing:
    """Reads the corpus of a name (`find_corpus`)."""
    return find_corpus(name).read()


def find_corpus(name: str) -> Corpus:
    """Finds the corpus of a name.

    Args:
        name: a manifest (CSV, JSONL, Parquet); a folder in the layout of MER2025, a synthetic corpus or a folder of
            the benchmark, which is known by its files; or KIND:PATH, where KIND is one of `TITLES`.

    Raises:
        UserError: there is none, it is of no known kind, or of more than one; the message says how to choose.
    """
    kind, colon, rest = name.partition(":")
    if colon and (known := _kind(kind)) and not Path(name).exists():
        return _of_kind(known, Path(rest), name)
    path = Path(name)
    if path.is_file():
        if path.suffix.lower() in ENDINGS:
            return Corpus("manifest", path)
        raise UserError(f"{path} is no corpus; expected a folder or a manifest ({', '.join(ENDINGS)})")
    if not path.is_dir():
        kinds = f"; {kind!r} is no kind of corpus, expected one of {', '.join(TITLES)}" if colon else ""
        raise UserError(f"there is no corpus {name}{kinds or '; expected a folder, a manifest or KIND:PATH'}")
    found = _candidates(path)
    if not found:
        lying = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{path} is no corpus that is known by its files (found {lying}); expected {LABELS_FILE} or "
            f"{OV_MERD_LABELS_FILE} (MER2025), or a folder of the benchmark such as {DATASETS[0].folder}. Otherwise "
            f"say what it is: KIND:{path}, where KIND is one of {', '.join(TITLES)}"
        )
    if len(found) > 1:
        raise UserError(f"{path} could be several corpora; name one of them: {' or '.join(map(str, found))}")
    return found[0]


def _kind(word: str) -> str | None:
    """The kind that a word names; case, dashes and so on do not matter, as with data sets."""
    plain = "".join(letter for letter in word.lower().replace("+", "plus") if letter.isalnum())
    if plain in TITLES:
        return plain
    try:
        return find_dataset(word).key
    except UserError:
        return None


def _of_kind(kind: str, path: Path, name: str) -> Corpus:
    """The corpus of a kind at a path."""
    for dataset in DATASETS:
        if dataset.key == kind:
            return Corpus(kind, find_benchmark_folder(dataset, path))
    if kind in ("manifest", "mercaption"):
        if path.is_file():
            return Corpus(kind, path)
        if kind == "manifest":
            raise UserError(f"{name}: there is no file {path}; expected a manifest ({', '.join(ENDINGS)})")
        raise UserError(
            f"{name}: {path} is no file; name MER-Caption's table, which no release names: mercaption:DIR/TABLE.csv "
            "with the columns name, and openset, reason or both, beside video/, audio/ and openface_face/"
        )
    if not path.is_dir():
        raise UserError(f"{name}: there is no folder {path}")
    return Corpus(kind, path)


def _candidates(path: Path) -> list[Corpus]:
    """All corpora that a folder could be."""
    found = []
    if (path / LABELS_FILE).is_file():
        found.append(Corpus(SYNTHETIC.key if (path / SPLITS_FILE).is_file() else "mercaptionplus", path))
    if (path / OV_MERD_LABELS_FILE).is_file():
        found.append(Corpus("ovmerd", path))
    for dataset in DATASETS:
        try:
            found.append(Corpus(dataset.key, find_benchmark_folder(dataset, path)))
        except UserError:
            continue
    return found
