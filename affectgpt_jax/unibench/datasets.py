"""The nine datasets of MER-UniBench: what is scored, on how many clips, by which metric."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from affectgpt_jax.errors import UserError

Task = Literal["basic", "sentiment", "fine-grained"]
"""`basic`: one of a few emotions, hit rate. `sentiment`: a signed value, weighted F1. `fine-grained`: any number of
free emotion words, F of label sets."""

METRICS: Mapping[Task, tuple[str, ...]] = MappingProxyType(
    {
        "basic": ("hit_rate", "m_score"),
        "sentiment": ("weighted_f1", "accuracy"),
        "fine-grained": ("f_score", "precision", "recall"),
    }
)
"""The metrics of a task; the first is the primary one."""


@dataclass(frozen=True)
class Dataset:
    """A dataset of the benchmark.

    Attributes:
        key: its name in files and on the command line.
        title: its name in tables.
        task: what is scored.
        clips: how many clips the benchmark scores.
        folder: its folder in the reference's layout.
        label_file: its label file in that folder.
        corpus: the dictionary of the label file that holds the scored clips.
        validation: the dictionary of the validation clips, where there is one.
        classes: the class names in the order of the class ids that the label file may hold.
        spellings: other names of classes -> the name in `classes`.
        session: if set, only the clips whose fifth letter it is (IEMOCAP's session) are scored.
        aliases: other names.
    """

    key: str
    title: str
    task: Task
    clips: int
    folder: str
    label_file: str = "label.npz"
    corpus: str = "test_corpus"
    validation: str | None = None
    classes: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    session: str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Its metrics, the primary one first."""
        return METRICS[self.task]

    @property
    def primary(self) -> str:
        """The metric that counts in the benchmark's mean."""
        return self.metrics[0]


_MER_CLASSES = ("worried", "happy", "neutral", "angry", "surprise", "sad")
_MER_SPELLINGS = MappingProxyType({"worry": "worried", "surprised": "surprise"})
_MELD_CLASSES = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")

DATASETS: tuple[Dataset, ...] = (
    Dataset(
        "mer2023", "MER2023", "basic", 411, "mer2023-dataset-process", "label-6way.npz", "test1_corpus",
        classes=_MER_CLASSES, spellings=_MER_SPELLINGS,
    ),
    Dataset(
        "mer2024", "MER2024", "basic", 1169, "mer2024-dataset-process", "label-6way.npz", "test1_corpus",
        classes=_MER_CLASSES, spellings=_MER_SPELLINGS,
    ),
    Dataset("meld", "MELD", "basic", 2610, "meld-process", validation="val_corpus", classes=_MELD_CLASSES),
    Dataset(
        "iemocap", "IEMOCAP", "basic", 1241, "iemocap-process", "label_4way.npz", "whole_corpus",
        classes=("happy", "sad", "neutral", "anger"), session="5", aliases=("iemocapfour",),
    ),
    Dataset(
        "cmumosi", "CMU-MOSI", "sentiment", 686, "cmumosi-process", validation="val_corpus", aliases=("mosi",)
    ),
    Dataset(
        "cmumosei", "CMU-MOSEI", "sentiment", 4659, "cmumosei-process", validation="val_corpus", aliases=("mosei",)
    ),
    Dataset("sims", "CH-SIMS", "sentiment", 457, "sims-process", validation="val_corpus", aliases=("chsims",)),
    Dataset(
        "simsv2", "CH-SIMS v2", "sentiment", 1034, "simsv2-process", validation="val_corpus", aliases=("chsimsv2",)
    ),
    Dataset("ovmerdplus", "OV-MERD+", "fine-grained", 532, "ovmerdplus-process", "ovlabel.csv", corpus=""),
)  # fmt: skip
"""In the order of the paper's main table."""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().replace("+", "plus") if letter.isalnum())


def find_dataset(name: str) -> Dataset:
    """The dataset of a name; case, blanks, dashes and underscores do not matter.

    Raises:
        UserError: there is none of that name.
    """
    for dataset in DATASETS:
        if _plain(name) in (dataset.key, *dataset.aliases):
            return dataset
    raise UserError(f"unknown dataset {name!r}; expected one of {', '.join(dataset.key for dataset in DATASETS)}")
