"""What a run does beside its steps: validation, the best checkpoint, bad losses, traces, Weights & Biases."""

import json
import re
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import open_run
from affectgpt_jax.training import data as training_data
from affectgpt_jax.training.loop import train
from tests.tiny_run import make_tiny, run_parameters, tiny_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Path:
    """Six steps without anything beside them."""
    assert train(tiny_config(tiny, train__output=str(tiny / "plain")), tiny / "plain").finished
    return tiny / "plain"


@pytest.fixture(scope="module")
def validated(tiny: Path) -> Path:
    """The same six steps with validation after every second."""
    folder = tiny / "validated"
    config = tiny_config(
        tiny,
        train__output=str(folder),
        validation={"every": 2, "answers": 2, "best": "loss"},
        train__profile="2:3",
    )
    result = train(config, folder)
    assert result.finished
    return folder


def test_validation_changes_nothing_of_the_run(plain: Path, validated: Path) -> None:
    first, second = (
        {line["step"]: line["loss"] for line in lines(folder) if "loss" in line} for folder in (plain, validated)
    )
    assert first == second
    ours, theirs = (run_parameters(folder) for folder in (plain, validated))
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_what_validation_measures(validated: Path) -> None:
    found = [line for line in lines(validated) if "validation_loss" in line]
    assert [line["step"] for line in found] == [2, 4, 6]
    for line in found:
        parts = [line["validation_loss_ovlabel"], line["validation_loss_description"]]
        assert min(parts) <= line["validation_loss"] <= max(parts)
        assert 0 <= line["validation_hit_rate"] <= 1
        assert 0 <= line["validation_f_score"] <= 1
    best = min(found, key=lambda line: line["validation_loss"])
    run = open_run(validated, "best")
    assert run.step == best["step"]
    assert [path.name for path in (validated / "best").iterdir()] == [str(best["step"])]
    facts = json.loads((validated / "checkpoints" / "6" / "facts" / "metadata").read_text())
    assert facts["best"] == {"step": best["step"], "value": best["validation_loss"]}
    assert RunConfig.model_validate(facts["config"]) == load_config(validated / "config.yaml")
    assert {"python", "jax"} <= set(facts["environment"])


def test_a_run_without_validation_has_no_best(plain: Path) -> None:
    with pytest.raises(UserError, match=r"has no best yet; train with validation\.every"):
        open_run(plain, "best")


def test_what_is_told_of_the_machine(validated: Path) -> None:
    last = [line for line in lines(validated) if "loss" in line][-1]
    assert 0 < last["goodput"] < 1
    assert last["cache_hits"] >= 0
    assert last["host_memory_gb"] > 0.1
    assert list((validated / "profile").rglob("*.xplane.pb"))


class Poisoned:
    """Makes batches of which one step's features are no numbers."""

    def __init__(self, step: int) -> None:
        self.step, self.make = step, training_data.make_batches
        self.names: set[str] = set()

    def __call__(self, config: RunConfig, tokenizer: Any, data: Any, start: int, *more: Any) -> Any:
        for number, batch in enumerate(self.make(config, tokenizer, data, start, *more), start + 1):
            if number == self.step:
                self.names = samples_of(batch, data)
                batch.features["audio"][:] = np.nan
            yield batch


def samples_of(batch: Any, data: Any) -> set[str]:
    """Names of a batch's samples, by the features it holds."""
    (corpus,) = data.corpus.corpora
    stream = next(stream for stream in corpus.streams if stream.startswith("audio"))
    every, there = corpus.features(stream, range(len(corpus)))
    held = batch.features["audio"].reshape(-1, *every.shape[1:])
    found = [there[i] and any(np.array_equal(x, y) for y in held) for i, x in enumerate(every)]
    return {name for name, held in zip(corpus.names, found, strict=True) if held}


def poisoned(tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, policy: str, **more: Any) -> Any:
    return train_on(Poisoned(step), tiny, folder, monkeypatch, policy, **more)


def train_on(
    batches: Poisoned, tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, policy: str, **more: Any
) -> Any:
    monkeypatch.setattr("affectgpt_jax.training.loop.make_batches", batches)
    return train(tiny_config(tiny, train__output=str(folder), train__bad_loss=policy, **more), folder)


def test_a_bad_loss_stops_and_names_the_samples(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Poisoned(4)
    with pytest.raises(UserError, match=r"step 4: loss nan, gradient norm .*bad_loss=skip") as error:
        train_on(batches, tiny, tmp_path / "run", monkeypatch, "stop")
    told = re.search(r"samples: ([\d, ]+)", str(error.value))
    assert told is not None
    named = set(told[1].split(", "))
    assert len(named) > 1
    assert named == batches.names
    # Nothing of it was saved.
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["3"]


def test_a_bad_step_is_skipped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = poisoned(tiny, tmp_path / "run", monkeypatch, 4, "skip")
    assert result.finished
    assert np.isfinite(result.loss)
    assert "step 4: loss nan" in capsys.readouterr().err
    logged = lines(tmp_path / "run")
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3, 5, 6]
    assert [line["step"] for line in logged if "bad_loss" in line] == [4]
    assert all(np.isfinite(leaf).all() for leaf in run_parameters(tmp_path / "run").values())


def test_a_bad_step_is_answered_by_the_newest_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = poisoned(tiny, tmp_path / "run", monkeypatch, 5, "rewind")
    assert result.finished
    assert "parameters of step 3 again, and on with the data" in capsys.readouterr().err
    with pytest.raises(UserError, match="no checkpoint to go back to yet"):
        poisoned(tiny, tmp_path / "early", monkeypatch, 2, "rewind")


def test_too_many_bad_steps_end_the_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Poisoned, "__call__", lambda self, *args: (b for b in poison_all(self.make(*args))))
    with pytest.raises(UserError, match=r"the 3th such step among the last 100, more than train\.bad_losses=2"):
        poisoned(tiny, tmp_path / "run", monkeypatch, 0, "skip", train__bad_losses=2)


def poison_all(batches: Any) -> Any:
    for batch in batches:
        batch.features["audio"][:] = np.nan
        yield batch


def test_weights_and_biases_gets_the_metrics(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    opened: list[dict[str, Any]] = []
    ended: list[int] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: ended.append(exit_code)
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **words: opened.append(words) or run))
    folder = tmp_path / "run"
    assert train(tiny_config(tiny, train__output=str(folder), train__steps=2, train__wandb="emotions"), folder).finished
    assert [step for step, _ in logged] == [1, 2]
    assert opened[0]["project"] == "emotions"
    assert opened[0]["config"]["train"]["steps"] == 2
    assert ended == [0]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"affectgpt-jax\[wandb\]"):
        train(tiny_config(tiny, train__output=str(tmp_path / "other"), train__wandb="emotions"), tmp_path / "other")


def test_a_folder_that_cannot_be_written_is_said(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be (opened|written)"):
        train(tiny_config(tiny, train__output=str(tmp_path / "file")), tmp_path / "file")


def test_a_disk_that_is_full_in_mid_save_ends_the_run_and_harms_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may not grow beyond what a metrics line needs once step 4 is made; the save of step 6 is the first hit."""
    folder = tmp_path / "run"
    config = tiny_config(tiny, train__output=str(folder), train__steps=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    make = training_data.make_batches

    def filling(*args: Any) -> Any:
        for number, batch in enumerate(make(*args), 1):
            if number == 5:
                while not (folder / "checkpoints" / "3").exists():
                    time.sleep(0.02)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            yield batch

    monkeypatch.setattr("affectgpt_jax.training.loop.make_batches", filling)
    try:
        with pytest.raises(UserError, match=r"could not be written .*\(the newest: step 3\); make room .* run again"):
            train(config, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert open_run(folder).step == 3
    result = train(config, folder)
    assert result.steps == 8
    assert [line["step"] for line in lines(folder)][-5:] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("steps", ["5", "0:3", "7:3", "a:b"])
def test_steps_to_trace_are_checked(tiny: Path, steps: str) -> None:
    with pytest.raises(UserError, match="expected FIRST:LAST"):
        tiny_config(tiny, train__profile=steps)


def test_a_best_by_answers_needs_answers(tiny: Path) -> None:
    with pytest.raises(UserError, match="best=hit_rate needs answers"):
        tiny_config(tiny, validation={"every": 2, "best": "hit_rate"})
