"""A study's runs with what each takes, and the file that holds them.

The file is all that running needs. A run's name follows from its settings, so that a study may be changed and planned
anew, and what is done stays done.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing
from affectgpt_jax.scaling.study import Setting, StudyConfig, as_study

PLAN = "plan.json"


class Lengths(NamedTuple):
    """Mean tokens of a caption with its prompt, of them targets, and where the numbers come from."""

    tokens: float
    targets: float
    source: str


class Cost(NamedTuple):
    """What a run takes.

    Attributes:
      parameters: of the decoder with its adapters, N.
      body: of them those of its layers.
      trained: all that is trained, the fusion included.
      captions: unique ones.
      samples: captions seen, D.
      flops: of the training, C.
      samples_per_s: predicted; None where nothing is known of the machine.
      hours: chip-hours; None likewise.
      memory: bytes of a device at most.
      refused: why it cannot run; empty if it can.
    """

    parameters: int
    body: int
    trained: int
    captions: int
    samples: int
    flops: float
    samples_per_s: float | None
    hours: float | None
    memory: float
    refused: str


class Run(NamedTuple):
    """One run of a study.

    Attributes:
      id: its name, which follows from all of its settings.
      parts: of the study that ask for it.
      setting: what it is.
      seed: of weights and order.
      overrides: its changes of the study's base.
      cost: what it takes.
    """

    id: str
    parts: tuple[str, ...]
    setting: Setting
    seed: int
    overrides: tuple[str, ...]
    cost: Cost


class Plan(NamedTuple):
    """A study's runs.

    Attributes:
      study: what was asked for.
      base: the settings of the config that the runs start from.
      lengths: of captions.
      runs: in the order in which they are started, the cheapest first.
    """

    study: StudyConfig
    base: Mapping[str, Any]
    lengths: Lengths
    runs: tuple[Run, ...]

    def config(self, run: Run, more: Sequence[str] = ()) -> RunConfig:
        """Everything that a run is, with further overrides."""
        return build_config(self.base, run.id, [*run.overrides, *more])

    @property
    def captions(self) -> int:
        """Unique ones of the largest run."""
        return max(run.cost.captions for run in self.runs)

    @property
    def shards(self) -> Path | None:
        """Where the synthetic features lie that the study trains on; None if it does not."""
        if self.study.synthetic is None:
            return None
        sizes = {"train": self.captions} | self.study.synthetic.model_dump()
        return self.study.folder / "data" / "-".join(f"{name}{value}" for name, value in sizes.items())

    @property
    def flops(self) -> float:
        """Of all runs."""
        return sum(run.cost.flops for run in self.runs)

    @property
    def hours(self) -> float | None:
        """Chip-hours of all runs; None if they are not known."""
        hours = [run.cost.hours for run in self.runs]
        return None if None in hours else sum(filter(None, hours))

    @property
    def problems(self) -> list[str]:
        """Why the study cannot be run as it is."""
        budget = self.study.budget
        found = [f"{run.id}: {run.cost.refused}" for run in self.runs if run.cost.refused]
        if budget.flops and self.flops > budget.flops:
            found.append(f"all runs take {self.flops:.3g} FLOPs, more than budget.flops={budget.flops:.3g}")
        if budget.chip_hours and (self.hours or 0) > budget.chip_hours:
            found.append(f"all runs take {self.hours:.3g} chip-hours, more than {budget.chip_hours:g}")
        return found


def write_plan(plan: Plan) -> Path:
    """Store a plan in its study's folder; a file that is there whole or not at all."""
    runs = [run._asdict() | {"setting": run.setting._asdict(), "cost": run.cost._asdict()} for run in plan.runs]
    study = plan.study.model_dump(mode="json")
    record = {"study": study, "base": plan.base, "lengths": plan.lengths._asdict(), "runs": runs}
    path = plan.study.folder / PLAN
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def read_plan(folder: Path) -> Plan:
    """Read what `write_plan` stored.

    Raises:
      UserError: there is none, or it is damaged or of another version.
    """
    path = folder / PLAN
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(
            Run(
                run["id"],
                tuple(run["parts"]),
                Setting(**run["setting"]),
                run["seed"],
                tuple(run["overrides"]),
                Cost(**run["cost"]),
            )
            for run in found["runs"]
        )
        return Plan(as_study(found["study"], str(path)), found["base"], Lengths(**found["lengths"]), runs)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {PLAN}: affectgpt scaling plan STUDY draws it up") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): plan the study again") from error
