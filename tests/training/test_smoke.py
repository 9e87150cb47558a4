"""The smoke job: the sizes it takes, what it finds, and a run of it."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config import load_config
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.sharding import split_sizes
from affectgpt_jax.training import smoke as module
from affectgpt_jax.training.loop import Result
from affectgpt_jax.training.smoke import smoke, smoke_config

CHECKPOINTS = Path("run/checkpoints")


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 4, 1, 1), (1, 1, 256, 1), (1, 2, 6, 4), (2, 1, 8, 8)])
def test_its_sizes_fit_any_mesh(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shape = dict(zip(("slice", "data", "fsdp", "tensor"), sizes, strict=True))
    monkeypatch.setattr(module, "make_mesh", lambda config: SimpleNamespace(shape=shape))
    config = smoke_config(MeshConfig(), tmp_path, tmp_path / "data")
    assert config.mesh.model_dump() == shape
    assert config.train.rows == 2 * math.prod(sizes[:3])
    decoder = config.model.decoder.model_copy(update={"vocab": 1024})
    for axis, parts in split_sizes(config.model.model_copy(update={"decoder": decoder})).items():
        assert all(size % shape[axis] == 0 for size in parts.values()), (axis, parts)


def trains(losses: list[float], finished: bool = True) -> Callable[..., Result]:
    """A training that leaves checkpoints and gives one loss after the other."""

    def train(config: object, folder: Path) -> Result:
        for step in (3, 6):
            (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        return Result(6, finished, losses.pop(0), 1.0, 1)

    return train


@pytest.mark.parametrize("losses", [[5.8, 5.7], [5.8, math.nan], [math.nan, math.nan]])
def test_another_loss_after_the_checkpoint_is_a_fault(
    losses: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "train", trains(losses))
    with pytest.raises(UserError, match=r"step 6 has the loss .* after the checkpoint of step 3 was opened"):
        smoke(load_config("smoke"), tmp_path)


def test_it_goes_on_from_the_earlier_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "train", trains([5.8, 5.8001]))
    folders: list[list[str]] = []
    first = module.train
    monkeypatch.setattr(
        module,
        "train",
        lambda config, folder: (
            folders.append(sorted(path.name for path in (folder / "checkpoints").glob("*"))) or first(config, folder)
        ),
    )
    done = smoke(load_config("smoke"), tmp_path)
    assert folders == [[], ["3"]]
    assert done is not None
    assert done.summary().startswith("smoke: ok, 1 process, 1 device (cpu), mesh of one device, step 3 saved and")
    more = done._replace(processes=4, devices=8, mesh={"slice": 1, "data": 2, "fsdp": 4, "tensor": 1})
    assert ", 4 processes, 8 devices (cpu), mesh data=2 fsdp=4, step 3 " in more.summary()


def test_asked_to_stop_it_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "train", trains([5.8], finished=False))
    assert smoke(load_config("smoke"), tmp_path) is None


def test_a_folder_that_is_not_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)  # process 0 has written, elsewhere
    assert main(["smoke", "demo", f"train.output={tmp_path}"]) == 2
    assert f"process 1 does not see {tmp_path}/smoke/data, which process 0 has just written" in capsys.readouterr().err


def test_a_mesh_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["smoke", "demo", f"train.output={tmp_path}", "mesh.fsdp=3"]) == 2
    assert "mesh.fsdp=3" in capsys.readouterr().err
    assert main(["smoke", "demo", f"train.output={tmp_path}", "--expect-devices", "8"]) == 2
    assert "devices: 1 appeared, expected 8" in capsys.readouterr().err
