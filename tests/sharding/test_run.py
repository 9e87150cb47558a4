"""A whole run over eight devices: validation, answers, and going on over another mesh."""

import json
import shutil
from pathlib import Path

import pytest

from affectgpt_jax.training.loop import train
from tests.tiny_run import make_tiny, tiny_config


def test_a_run_goes_on_over_another_mesh(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    folders = tmp_path / "first", tmp_path / "second"
    for folder, mesh in zip(folders, ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}), strict=True):
        if folder == folders[1]:
            shutil.copytree(folders[0], folder)
            shutil.rmtree(folder / "checkpoints" / "4")
        config = tiny_config(
            tmp_path, mesh=mesh, train__output=str(folder), train__rows=8, train__accumulate=1, train__steps=4,
            train__checkpoint_every=2, validation={"every": 2, "answers": 2},
        )  # fmt: skip
        assert train(config, folder).finished
    undisturbed, (*before, third, fourth, validated) = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in folders
    )
    assert before == undisturbed
    again = {"loss", "accuracy", "targets", *(key for key in validated if key.startswith("validation"))}
    assert {"validation_loss", "validation_hit_rate"} <= again
    for ours, theirs in zip((third, fourth, validated), undisturbed[-3:], strict=True):
        assert ours["step"] == theirs["step"]
        assert {k: v for k, v in ours.items() if k in again} == pytest.approx(
            {k: v for k, v in theirs.items() if k in again}, rel=1e-5
        )
