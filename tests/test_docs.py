"""Every command of README and docs runs as it stands there, at a size that a test can afford."""

import re
import shlex
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml

from affectgpt_jax import LIMITS
from affectgpt_jax.cli import COMMANDS, main
from affectgpt_jax.config import load_config
from affectgpt_jax.config.loading import find_config
from affectgpt_jax.scaling.ladder import decoder_sizes
from affectgpt_jax.scaling.study import PartConfig, StudyConfig, as_study
from tests.conftest import ROOT, reference_folder
from tests.notebooks import run_notebook

SMALLER = {
    "synth": ["--train", "10", "--validation", "4", "--test", "6"],
    "towers": ["--clips", "12", "--held-out", "8", "--steps", "2", "--workers", "1"],
    "train": ["train.steps=2", "train.rows=2", "train.checkpoint_every=2"],
    "predict": ["--max-new", "8"],
    "timeline": ["--max-new", "8"],
}
"""Options that come last and so win."""
PAGES = (
    "README.md",
    "docs/conversion.md",
    "docs/benchmark.md",
    "docs/data.md",
    "docs/training.md",
    "docs/predict.md",
    "docs/timeline.md",
    "docs/doctor.md",
    "docs/fetch.md",
    "docs/running.md",
    "docs/scaling.md",
    "docs/scaling_laws.md",
)
"""In the order in which their commands are run."""


def commands(program: str, *files: str) -> list[list[str]]:
    """Lines of code that call a program, without comments; in the README also those within a sentence."""
    lines = []
    for file in files or ("README.md",):
        text = (ROOT / file).read_text()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines += [line for kind, block in blocks if kind in ("", "sh") for line in block.splitlines()]
        if file == "README.md":
            lines += re.findall(r"`((?:affectgpt|make|pip) [^`]+)`", text)
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == [program]]


@pytest.mark.slow
def test_the_demo_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for _, name, *words in commands("affectgpt", *PAGES):
        if name in ("score", "wheel"):
            continue
        if name in ("predict", "timeline"):
            clips = sorted(Path("runs/demo/corpus/video").glob("*.mp4"))
            words = [word.replace("runs/demo/corpus/video/CLIP.mp4", str(clips[-1])) for word in words]
        assert main([name, *words, *SMALLER.get(name, [])]) == 0, (name, words, capsys.readouterr().err)
        seen.add(name)
    assert seen == set(COMMANDS) - {"score", "wheel", "verify-release"}  # these need reference material
    clip = str(sorted(Path("runs/demo/corpus/video").glob("*.mp4"))[-1])
    for page in ("docs/api.md", "docs/predict.md"):
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
        assert blocks
        for block in blocks:
            exec(block.replace("CLIP.mp4", clip), {})
    monkeypatch.delenv("AFFECTGPT_RUN", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
        assert LIMITS in run_notebook(ROOT / "docs" / "notebook.ipynb")["score"]
    for file in ("report.html", "scores.json", "answers.jsonl", "config.yaml", "metrics.jsonl"):
        assert (tmp_path / "runs" / "demo" / file).is_file(), file


def test_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    folder = reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench")
    places = {
        "PREDICTIONS": str(folder / "predictions" / "meld"),
        "LABELS": str(folder / "labels" / "meld-process"),
        "WHEELS": str(folder / "emotion_wheel"),
    }
    for _, name, *words in commands("affectgpt"):
        if name in ("score", "wheel"):
            extra = ["--wheel-dir", places["WHEELS"]] if name == "wheel" else []
            assert main([name, *(places.get(word, word) for word in words), *extra]) == 0
    assert "55.65" in capsys.readouterr().out


def test_make_and_pip() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target for _, *words in commands("make") for target in words} <= set(targets)
    assert len(commands("make")) >= 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for _, verb, *words in commands("pip"):
        assert verb == "install"
        asked = re.findall(r"\[(.*)\]", words[-1])
        assert {extra for group in asked for extra in group.split(",")} <= set(extras)


def test_commands_that_take_too_long_here_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a study; tests/scaling carries them out on a smaller one."""
    called = []
    monkeypatch.setattr("affectgpt_jax.cli.scaling.run", lambda args: called.append(args) or 0)
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/scaling_laws.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    found = [words[1:] for words in lines if words[0] == "affectgpt"]
    assert all(main(words) == 0 for words in found)
    assert {args.action for args in called} == {"plan", "run", "status", "fit", "report"}
    assert {words[0] for words in lines} == {"affectgpt", "sbatch", "kubectl"}  # tests/launch looks at these


def test_the_study_of_the_page_is_one_and_the_page_has_all_keys() -> None:
    page = (ROOT / "docs/scaling_laws.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for key in (*StudyConfig.model_fields, *PartConfig.model_fields):
        assert re.search(rf"[`.]{key}`|\b{key}:", page), key
    study = as_study(yaml.safe_load(text), "the page")
    for part in study.parts.values():
        for size in part.size:
            assert decoder_sizes(size)
    load_config(find_config(study.base))
