"""Reports and the two commands."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.unibench.report.render import latex, markdown
from affectgpt_jax.unibench.report.tables import Table, short_name

MELD_VALUES = ["55.65", "55.42", "54.06", "54.80", "53.81", "54.98", "52.09"]
"""The reference's hit rates of the seven checkpoints, from the golden file."""


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed."""

    VOID = ("meta", "br", "link", "img", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name.split(":")[-1] in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Predictions of a small system with an awkward name on three tasks, and the labels."""
    root = tmp_path_factory.mktemp("system") / "a_<b>&|c"
    labels = root.parent / "labels"
    rng = np.random.default_rng(0)
    truth = {
        "meld-process/label.csv": ("label", ["joy", "sadness", "anger", "neutral", "fear"]),
        "sims-process/label.csv": ("value", ["-1", "0.5", "0"]),
        "ovmerdplus-process/ovlabel.csv": ("openset", ["[happy, calm]", "[sad]", "[]"]),
    }
    answers = {"meld": "labels", "sims": "sentiment", "ovmerdplus": "labels"}
    for (file, (column, cells)), (dataset, field) in zip(truth.items(), answers.items(), strict=True):
        (labels / file).parent.mkdir(parents=True)
        rows = "".join(f'c{i},"{rng.choice(cells)}"\n' for i in range(30))
        (labels / file).write_text(f"name,{column}\n{rows}")
        (root / dataset).mkdir(parents=True)
        for checkpoint in ("checkpoint_000001_loss_1.0", "checkpoint_000002_loss_0.5"):
            words = (
                ["positive", "negative", "neutral"] if field == "sentiment" else ["happy", "sad", "angry", "neutral"]
            )
            lines = []
            for i in range(30):
                label = str(rng.choice(words))
                lines.append(json.dumps({"name": f"c{i}", field: label if field == "sentiment" else [label, "calm"]}))
            (root / dataset / f"{checkpoint}.jsonl").write_text("\n".join(lines) + "\n")
    return root, labels


def test_all_forms(system: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, labels = system
    out = tmp_path / "out"
    arguments = ["score", str(root), "--labels", str(labels), "--any-count", "--resamples", "50"]
    assert main([*arguments, "--out", str(out), "--details", "--against", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "affectgpt-small, not with the official emotion wheels" in " ".join(printed.split())
    for title in ("MELD: checkpoints", "MELD: classes", "MELD: wheels", "MELD: most frequent errors", "Difference of"):
        assert title in printed
    assert "CH-SIMS: wheels" not in printed

    text = (out / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert "script" not in page.tags
    assert "<b>&|c" not in text
    assert page.tags.count("svg") == 7  # the bars, and a curve of each dataset of both systems
    assert "url(http" not in text

    scores = json.loads((out / "scores.json").read_text())
    found = scores["systems"][root.name]["meld"]
    assert found["counts"]["strict"] == "checkpoint_000002_loss_0.5"
    value = found["checkpoints"]["checkpoint_000002_loss_0.5"]["strict"]["hit_rate"]
    assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert (out / "report.md").read_text().count("### ") == (out / "report.tex").read_text().count(r"\begin{table}")


def test_the_same_command_writes_the_same_report(system: tuple[Path, Path], tmp_path: Path) -> None:
    root, labels = system
    arguments = ["score", str(root), "--dataset", "sims", "--labels", str(labels), "--any-count", "--resamples", "20"]
    for name in ("first", "second"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_without_intervals(system: tuple[Path, Path], tmp_path: Path) -> None:
    root, labels = system
    arguments = ["score", str(root), "--dataset", "sims", "--labels", str(labels), "--any-count", "--resamples", "0"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    checkpoints = json.loads((tmp_path / "scores.json").read_text())["systems"][root.name]["sims"]["checkpoints"]
    assert all(checkpoint["strict"]["weighted_f1"]["low"] is None for checkpoint in checkpoints.values())


TABLE = Table("50% & more_", ("a|b", "c"), (("[x]", "1"), (r"\y {z} ~^", "<2>")), "note #1", (1,))


def test_markdown() -> None:
    assert markdown(TABLE).splitlines() == [
        "### 50% & more_",
        "",
        r"| a\|b | c |",
        "| :-- | --: |",
        "| [x] | 1 |",
        r"| \\y {z} ~^ | &lt;2> |",
        "",
        "note #1",
    ]


def test_latex() -> None:
    lines = latex(TABLE).splitlines()
    assert lines[2] == r"\caption{50\% \& more\_. note \#1}"
    assert lines[4] == r"\begin{tabular}{lr}"
    assert lines[8:11] == [
        r"{}[x] & 1 \\",
        r"\midrule",
        r"{}\textbackslash{}y \{z\} \textasciitilde{}\textasciicircum{} & <2> \\",
    ]


@pytest.mark.parametrize(
    ("name", "short"), [("checkpoint_000030_loss_0.602", "000030"), ("step_5", "step_5"), ("run", "run")]
)
def test_short_name(name: str, short: str) -> None:
    assert short_name(name) == short


def test_paper_rows_stand_beside_official_scores(
    system: tuple[Path, Path], toy_wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, labels = system
    arguments = ["score", str(root), "--labels", str(labels), "--any-count", "--wheel-dir", str(toy_wheels)]
    assert main([*arguments, "--resamples", "0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "AffectGPT (A+V+T), paper 78.54 78.80 55.65 60.54 81.30 80.90 88.49 86.18 62.52 74.77" in text
    assert "official wheels, edited: wheel1.xlsx" in text
    assert "Mean of 3" in text
    assert main([*arguments, "--resamples", "0", "--no-paper"]) == 0
    assert "paper 78.54" not in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (["--dataset", "nope"], "unknown dataset 'nope'; expected one of mer2023"),
        (["--level", "level2"], "has no 'level2'"),
        (["--wheel-dir", "nowhere"], "emotion-wheel folder nowhere does not exist"),
        (["--drop-names", "nowhere"], "--drop-names nowhere does not exist"),
        (["--resamples", "-1"], "--resamples -1"),
        (["--validation", "nowhere"], "OV-MERD|no labels|predictions nowhere|has no validation clips"),
    ],
)
def test_faults_are_one_message(
    system: tuple[Path, Path], change: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root, labels = system
    assert main(["score", str(root), "--labels", str(labels), "--any-count", *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("affectgpt score: ")
    assert error.count("\n") == 1
    assert re.search(fault, error)


def test_a_folder_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path), "--labels", str(tmp_path)]) == 2
    assert "has no folder named after a dataset" in capsys.readouterr().err


def test_datasets_without_labels_are_left_out_and_named(
    system: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, labels = system
    (tmp_path / "sims-process").symlink_to(labels / "sims-process")
    assert main(["score", str(root), "--labels", str(tmp_path), "--any-count", "--resamples", "0"]) == 0
    printed = capsys.readouterr()
    assert "CH-SIMS: checkpoints" in printed.out
    assert "left out: no labels of MELD" in printed.err
    assert "left out: no labels of OV-MERD+" in printed.err
    (tmp_path / "sims-process").unlink()
    assert main(["score", str(root), "--labels", str(tmp_path), "--any-count"]) == 2
    assert "has labels of none of the datasets" in capsys.readouterr().err


def test_drop_names(system: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, labels = system
    (tmp_path / "seen.csv").write_text("id,name\n1,c0\n2,c1\n")
    (tmp_path / "seen.txt").write_text("c0\n\nc1\n")
    for name in ("seen.csv", "seen.txt"):
        arguments = ["score", str(root), "--labels", str(labels), "--any-count", "--drop-names", str(tmp_path / name)]
        assert main([*arguments, "--resamples", "0"]) == 0
        assert "2 clips shared with training are left out under strict" in capsys.readouterr().out


def test_released_predictions(unibench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the paper prints of MELD, its seven values, and the strict column beside it."""
    arguments = ["score", str(unibench / "predictions/meld"), "--dataset", "meld", "--labels", str(unibench / "labels")]
    assert main([*arguments, "--wheel-dir", str(unibench / "emotion_wheel")]) == 0
    printed = capsys.readouterr().out
    assert "Best hit rate under the reference rules: 55.65" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("0000")]
    assert [row[1] for row in rows] == MELD_VALUES
    assert rows[0][-1] == "reference"
    assert rows[-1][-1] == "strict"
    assert "hit rate strict" in printed
    assert "AffectGPT (A+V+T), paper" in printed


def test_scoring_does_not_import_jax(system: tuple[Path, Path]) -> None:
    root, labels = system
    arguments = ["score", str(root), "--labels", str(labels), "--any-count", "--resamples", "10"]
    program = (
        "import sys; from affectgpt_jax.cli import main; status = main(sys.argv[1:]); "
        "loaded = {'jax', 'flax', 'torch', 'tensorflow', 'transformers', 'matplotlib', 'openpyxl'} & set(sys.modules); "
        "sys.exit(f'imported {loaded}' if loaded else status)"
    )
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_wheel_command(unibench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wheel", "Fear", "let down", "--wheel-dir", str(unibench / "emotion_wheel")]) == 0
    printed = capsys.readouterr().out
    assert "has the synonym fearless, a form of which is fear" in printed
    assert "Base words of 'fear': fear, fearful, fearless." in printed
    assert "wheel 5, strict" in printed
    assert main(["wheel", "fear", "unheard"]) == 0
    printed = capsys.readouterr().out
    assert "built-in lexicon, not the official emotion wheels" in " ".join(printed.split())
