"""What is told while the towers are made, and what is kept about them."""

from typing import Literal, NamedTuple

from pydantic import Field

from affectgpt_jax.config.base import Section
from data_prep.towers.settings import TowerSettings

Kind = Literal["vision", "audio"]
"""A tower, and the name of its folder."""


class Progress(NamedTuple):
    """How far a tower is."""

    tower: Kind
    stage: str
    done: int
    total: int


class TowerReport(Section):
    """How a tower came out.

    Attributes:
        classes: what the probe tells apart.
        probe: accuracy of a linear probe on clips of other identities, on the mean feature of `SEEN` views.
        untrained_probe: the same of the tower before it learned.
        cross_entropy: of the class at the end of training, nats.
        squared_error: of the generator's attributes, in units of their variance.
        feature_std: standard deviation of a feature over views, mean over the features.
        seconds: wall clock, everything included.
        cpu_seconds: of the process; with several towers in one process, of this one.
    """

    classes: tuple[str, ...]
    probe: float
    untrained_probe: float
    cross_entropy: float
    squared_error: float
    feature_std: float
    seconds: float
    cpu_seconds: float


class TowersReport(Section):
    """What lies in a finished folder; stored there as towers.json.

    Attributes:
        version: of the stage that made it.
        settings: that it was made with.
        vision: the vision tower.
        audio: the speech tower.
        tokens: of the tokenizer, special ones included.
        seconds: wall clock of the whole stage.
        files: BLAKE2b-256 of each file.
        reused: found finished by this call; not stored.
    """

    version: int
    settings: TowerSettings
    vision: TowerReport
    audio: TowerReport
    tokens: int
    seconds: float
    files: dict[str, str]
    reused: bool = Field(default=False, exclude=True)
