"""`affectgpt prepare` from the command line: what it prints, and its exit status."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.data.shards import open_corpus
from data_prep.synth import SplitCounts, write_corpus
from tests.data_prep.test_prepare import FakeEncoders
from tests.media_files import write_wav


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A corpus of four clips, and the command that prepares it with towers that cost nothing."""
    write_corpus(tmp_path / "corpus", SplitCounts(2, 1, 1), seed=0, workers=1)
    towers = types.ModuleType("encoders")
    towers.Encoders = types.SimpleNamespace(of=lambda config: FakeEncoders())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "affectgpt_jax.inference.encoders", towers)
    (tmp_path / "run.yaml").write_text(f"prepare: {{corpus: {tmp_path / 'corpus'}}}\n")
    return ["prepare", str(tmp_path / "run.yaml"), f"data.shards={tmp_path / 'shards'}"]


def test_prepares_and_tells(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--strict"]) == 0
    assert "4 listed, 4 kept (train 2, validation 1, test 1)" in capsys.readouterr().out
    assert len(open_corpus(tmp_path / "shards", "train", ("face@8", "audio@8"))) == 2


def test_a_broken_clip_fails_only_under_strict(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wav = sorted((tmp_path / "corpus" / "audio").iterdir())[0]
    write_wav(wav, np.zeros(0, np.float32))
    assert main(command) == 0
    assert f"{wav.name}: holds no sound sample" in capsys.readouterr().out
    assert main([*command, "--strict"]) == 1


def test_says_which_setting_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("name: run\n")
    assert main(["prepare", str(tmp_path / "run.yaml")]) == 2
    assert "does not say prepare.corpus" in capsys.readouterr().err
