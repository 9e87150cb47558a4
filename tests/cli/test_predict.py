"""`affectgpt predict` from the command line, on a real run of the smallest size."""

import json
import shutil
from pathlib import Path

import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.inference.answering import Answerer
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.runs import open_run
from tests.inference.clip_run import STEP, make_clip_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a synthetic corpus, with random parameters."""
    return make_clip_run(tmp_path_factory.mktemp("run")).parent


def test_answers_are_those_of_evaluation(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clips of the test split get the very answers that their shards get; a broken one among them costs only itself."""
    opened = open_run(folder / "run")
    corpus = open_corpus(folder / "shards", "test", ("face@8", "audio@8"))
    expected = Answerer(opened, batch=4, max_new=8)(make_queries(opened, corpus, PLAIN, "ovlabel"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    videos = [str(folder / "corpus" / "video" / f"{name}.mp4") for name in corpus.names]
    output = tmp_path / "deep" / "answers.jsonl"
    clips = [videos[0], str(broken), *videos[1:]]
    assert main(["predict", str(folder / "run"), *clips, "--output", str(output), "--max-new", "8"]) == 1
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["clip"] for record in records] == clips
    assert "no media file" in records.pop(1)["error"]
    assert [record["answer"] for record in records] == [answer.text for answer in expected]
    assert len({record["answer"] for record in records}) > 1
    assert all(
        record["step"] == STEP and not record["absent"] and "diagnosis" in record["limits"] for record in records
    )
    shown = capsys.readouterr().out
    assert "3 of 4 clips answered" in shown
    assert corpus.texts()[0].subtitle in shown
    assert "not a diagnosis" in shown


def test_a_clip_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from its corpus a clip is answered by its sound, and the terminal says what was missing."""
    video = next((folder / "corpus" / "video").iterdir())
    shutil.copy(video, tmp_path / "[b]mine.mp4")
    command = ["predict", str(folder / "run"), str(tmp_path / "[b]mine.mp4"), "--question", "What does she feel?"]
    assert main([*command, "--subtitle", "Oh [red] no.", "--max-new", "8"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "[b]mine.mp4",
        "What does she feel?",
        '"Oh [red] no." (given)',
        "no face",
        "pass face crops with --faces",
    ):
        assert part in shown
    assert "no text" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.mp4", "b.mp4", "--subtitle", "Hi"], "--subtitle goes with one clip"),
        (["a.mp4", "--faces", "nowhere.npy"], "no such file or folder"),
        (["a.mp4", "--batch", "0"], "--batch must be at least 1"),
        (["a.mp4", "--question", "lables"], "did you mean labels"),
        (["a.mp4", "--question", "valence", "--field", "low"], "expected KEY=VALUE"),
        (["a.mp4", "--output", "/dev/null/x.jsonl"], "cannot be written"),
        (["a.mp4"], "not a run folder"),
    ],
)
def test_mistakes_of_use(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
