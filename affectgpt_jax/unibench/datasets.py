"""The nine datasets of MER-UniBench: what is scored, on how many clips, by which metric, and where the clips lie.

The synthetic corpus is a tenth one, which anyone can make: the whole chain runs on it. It is no part of the benchmark
and its mean.
"""

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
class Media:
    """Where clips and subtitles lie in a dataset's folder, as in the reference's configuration.

    Attributes:
        video: folder of the videos.
        audio: folder of the sound, NAME.wav.
        subtitles: table of what is said, by name.
        column: its column that goes into the prompt.
        endings: of the videos; of two of one name the first counts.
    """

    video: str = "video"
    audio: str = "audio"
    subtitles: str = "transcription-engchi-polish.csv"
    column: str = "english"
    endings: tuple[str, ...] = (".mp4",)


@dataclass(frozen=True)
class Dataset:
    """A dataset of the benchmark.

    Attributes:
        key: its name in files and on the command line.
        title: its name in tables.
        task: what is scored.
        clips: how many clips the benchmark scores; None if any number will do.
        folder: its folder in the reference's layout.
        label_file: its label file in that folder.
        corpus: the dictionary of the label file that holds the scored clips, or their split in `splits_file`.
        media: where its clips and subtitles lie in that folder.
        validation: like `corpus` for the validation clips, where there are some.
        splits_file: table (name, split) beside the label file; None where the label file says itself what is scored.
        classes: the class names in the order of the class ids that the label file may hold.
        spellings: other names of classes -> the name in `classes`.
        session: if set, only the clips whose fifth letter it is (IEMOCAP's session) are scored.
        aliases: other names.
    """

    key: str
    title: str
    task: Task
    clips: int | None
    folder: str
    label_file: str = "label.npz"
    corpus: str = "test_corpus"
    media: Media = Media()
    validation: str | None = None
    splits_file: str | None = None
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
        Media(endings=(".mp4", ".avi")), classes=_MER_CLASSES, spellings=_MER_SPELLINGS,
    ),
    Dataset(
        "mer2024", "MER2024", "basic", 1169, "mer2024-dataset-process", "label-6way.npz", "test1_corpus",
        Media(subtitles="transcription_merge.csv", column="chinese", endings=(".mp4", ".avi")),
        classes=_MER_CLASSES, spellings=_MER_SPELLINGS,
    ),
    Dataset(
        "meld", "MELD", "basic", 2610, "meld-process", media=Media("subvideo", "subaudio"),
        validation="val_corpus", classes=_MELD_CLASSES,
    ),
    Dataset(
        "iemocap", "IEMOCAP", "basic", 1241, "iemocap-process", "label_4way.npz", "whole_corpus",
        Media("subvideo-tgt", "subaudio", endings=(".avi",)),
        classes=("happy", "sad", "neutral", "anger"), session="5", aliases=("iemocapfour",),
    ),
    Dataset(
        "cmumosi", "CMU-MOSI", "sentiment", 686, "cmumosi-process", media=Media("subvideo", "subaudio"),
        validation="val_corpus", aliases=("mosi",),
    ),
    Dataset(
        "cmumosei", "CMU-MOSEI", "sentiment", 4659, "cmumosei-process", media=Media("subvideo_new", "subaudio"),
        validation="val_corpus", aliases=("mosei",),
    ),
    Dataset("sims", "CH-SIMS", "sentiment", 457, "sims-process", validation="val_corpus", aliases=("chsims",)),
    Dataset(
        "simsv2", "CH-SIMS v2", "sentiment", 1034, "simsv2-process", media=Media("video_new"),
        validation="val_corpus", aliases=("chsimsv2",),
    ),
    Dataset(
        "ovmerdplus", "OV-MERD+", "fine-grained", 532, "ovmerdplus-process", "ovlabel.csv", corpus="",
        media=Media(subtitles="subtitle_eng.csv", column="sentence"),
    ),
)  # fmt: skip
"""In the order of the paper's main table."""

SYNTHETIC = Dataset(
    "synthetic", "synthetic", "fine-grained", None, "synthetic", "track2_train_mercaptionplus.csv", "test",
    Media(subtitles="subtitle_chieng.csv"), validation="validation", splits_file="synth_splits.csv",
)  # fmt: skip
"""A corpus of `affectgpt synth`: the labels of its test clips are the truth."""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().replace("+", "plus") if letter.isalnum())


def find_dataset(name: str) -> Dataset:
    """The dataset of a name; case, blanks, dashes and underscores do not matter.

    Raises:
        UserError: there is none of that name.
    """
    known = (*DATASETS, SYNTHETIC)
    for dataset in known:
        if _plain(name) in (dataset.key, *dataset.aliases):
            return dataset
    raise UserError(f"unknown dataset {name!r}; expected one of {', '.join(dataset.key for dataset in known)}")
