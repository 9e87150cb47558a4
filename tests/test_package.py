"""The package as users get it: light imports, a wheel that works away from the clone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from affectgpt_jax.cli import COMMANDS
from tests.conftest import ROOT
from tests.tiny_run import make_tiny, tiny_config


def python(code: str, **options: object) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options).stdout  # type: ignore[call-overload]


def test_importing_touches_neither_device_nor_torch() -> None:
    loaded = python("import affectgpt_jax, affectgpt_jax.cli, affectgpt_jax.config, sys; print(*sys.modules)").split()
    assert not {"jax", "torch", "tensorflow", "transformers"} & set(loaded)


def test_training_and_preparing_need_neither_torch_nor_tensorflow() -> None:
    code = "import sys; sys.modules['torch'] = None; import affectgpt_jax.training.loop, data_prep.prepare"
    loaded = python(f"{code}, data_prep.in_loop, data_prep.towers.build; print(*sys.modules)").split()
    assert "tensorflow" not in loaded


WITHOUT_MEDIA = "import sys; sys.modules.update(dict.fromkeys(['av', 'cv2', 'soundfile', 'soxr']))"


def test_training_on_features_and_scoring_need_no_media_library() -> None:
    """Nor do the towers on pixels and samples at hand: all of it runs where nothing can be decoded."""
    modules = "affectgpt_jax.training.loop, affectgpt_jax.cli.evaluate, affectgpt_jax.inference.evaluate"
    python(f"{WITHOUT_MEDIA}; import {modules}; from affectgpt_jax.inference.encoders import encode_batch")


def test_synthetic_features_need_no_media_library(tmp_path: Path) -> None:
    words = ["synth", str(tmp_path / "data"), "--features", "--train", "4", "--workers", "1"]
    python(f"{WITHOUT_MEDIA}; from affectgpt_jax.cli import main; sys.exit(main({words}))")
    assert (tmp_path / "data" / "mer_caption").is_dir()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "affectgpt_jax.cli", command, "--help"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert f"affectgpt {command}" in run.stdout


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "affectgpt_jax.cli", "train", "demo", "train.stpes=3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 2
    assert "nearest valid key: train.steps" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_installed_wheel_trains_outside_the_clone(tmp_path: Path) -> None:
    """Build the wheel, unpack it elsewhere, and train two steps there with the shipped config as base."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(site)], check=True, capture_output=True)
    make_tiny(tmp_path)
    from affectgpt_jax.config import save_config

    save_config(tiny_config(tmp_path, train__steps=2), tmp_path / "tiny.yaml")
    (tmp_path / "based.yaml").write_text("base: demo\nname: based\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(site)}
    where = python("import affectgpt_jax; print(affectgpt_jax.__file__)", cwd=tmp_path, env=environment)
    assert where.startswith(str(site))
    shown = python(
        "from affectgpt_jax.config import load_config; print(load_config('based.yaml').model.absent)",
        cwd=tmp_path,
        env=environment,
    )
    assert shown.strip() == "True"
    run = subprocess.run(
        [sys.executable, "-m", "affectgpt_jax.cli", "train", "tiny.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
