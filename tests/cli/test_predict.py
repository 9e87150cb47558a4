"""`affectgpt predict` from the command line, on a real run of the smallest size."""

import json
import shutil
from pathlib import Path

import pytest

from affectgpt_jax.cli import main, progress
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.inference.answering import Answerer
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.runs import fingerprint, open_run, open_trained
from tests.inference.clip_run import STEP, make_clip_run
from tests.inference.test_transcription import Endpoint


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
    assert all(record["model"] == fingerprint(open_trained(folder / "run")) for record in records)
    shown = capsys.readouterr().out
    assert "3 of 4 clips answered" in shown
    assert f"failed  {broken}: cannot be decoded" in shown
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


def test_a_manifest_with_detected_faces(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that cannot be used are reported after the others; boxes of faces and side-cars are in the records."""
    video = folder / "corpus" / "video" / "synth0_test_00000.mp4"
    shutil.copy(video, tmp_path / "beside.mp4")
    (tmp_path / "beside.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\n- Well,\n<i>well</i>.\n")
    manifest = tmp_path / "clips.csv"
    rows = [
        "name,video,subtitle",
        f"one,{video},Told by the manifest.",
        "two,beside.mp4,",
        "three,lost.mp4,Words",
        "four,,",
    ]
    manifest.write_text("\n".join(rows) + "\n")
    output = tmp_path / "answers.jsonl"
    words = ["predict", str(folder / "run"), str(manifest), "--faces", "detect", "--output", str(output)]
    assert main([*words, "--max-new", "4", "--question", "candidates", "--field", "candidates=happy, sad"]) == 1
    one, two, three, four = (json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
    assert [one["clip"], two["clip"], three["clip"]] == ["one", "two", "three"]
    assert one["question"].endswith("from the provided candidate labels: happy, sad.")
    assert (one["subtitle"], one["sources"]["text"]["origin"]) == ("Told by the manifest.", str(manifest))
    assert (two["subtitle"], two["sources"]["text"]["origin"]) == ("Well, well.", str(tmp_path / "beside.srt"))
    for record in (one, two):
        face = record["sources"]["face"]
        assert face["detector"].startswith("lbpcascade")
        assert len(face["boxes"]) == len(face["places"]) == 8
        assert all(20 < width < 128 for _, _, width, _ in face["boxes"])
        assert record["sources"]["audio"]["unit"] == "second"
    assert one["sources"]["face"]["boxes"] == two["sources"]["face"]["boxes"]
    assert set(three["absent"]) == {"face", "audio"}
    assert "no such file; the clip is kept without this video" in three["notes"][0]
    assert four["clip"] == f"{manifest}, line 5"
    assert "has none of video, audio, faces, subtitle" in four["error"]
    assert "3 of 4 clips answered" in capsys.readouterr().out
    twin = tmp_path / "other.csv"
    twin.write_text("name,subtitle\none,Hello\n")
    assert main([*words[:3], str(twin)]) == 2
    assert "both name a clip 'one'" in capsys.readouterr().err
    assert main([*words[:2], str(manifest), str(folder / "shards")]) == 2
    assert "feature shards, which are asked about alone" in capsys.readouterr().err


def test_words_that_are_written_down(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip that cannot be transcribed costs itself; an endpoint that serves nobody ends the work until it does."""
    video = next((folder / "corpus" / "video").iterdir())
    clips = [str(shutil.copy(video, tmp_path / name)) for name in ("a.mp4", "b.mp4")]
    output = tmp_path / "answers.jsonl"
    endpoint = Endpoint()
    words = ["predict", str(folder / "run"), *clips, "--transcribe", endpoint.url, "--transcribe-model", "tiny"]
    words += ["--max-new", "4", "--output", str(output)]
    endpoint.replies = [(401, b"who?")] * 2
    assert main(words) == 2
    assert "answers 401 who?; check the address, and the key in AFFECTGPT_TRANSCRIBE_KEY" in capsys.readouterr().err
    endpoint.replies = [(200, b'{"text": "I see."}'), (400, b"no")]
    assert main(words) == 1
    good, bad = sorted(
        map(json.loads, output.read_text(encoding="utf-8").splitlines()), key=lambda line: "error" in line
    )
    assert good["subtitle"] == "I see."
    assert good["sources"]["text"]["origin"] == f"transcribed by tiny at {endpoint.url}/audio/transcriptions"
    assert "answers 400 no" in bad["error"]
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_progress_goes_to_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody watches a bar: what is done, how fast, how long it will take, in lines that are not too many."""
    times = iter([100.0, 104.0, 110.0, 170.0, 171.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.clip_bar(10, 2, 1) as told:
        for wrong in (False, True, False, False):
            told(wrong)
    line = "5 of 10 clips, 2 failed, 0.0429 a second, 0:01:57 left\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.mp4", "b.mp4", "--subtitle", "Hi"], "--subtitle goes with one clip"),
        (["a.mp4", "--faces", "nowhere.npy"], "no such file or folder"),
        (["a.mp4", "--batch", "0"], "--batch must be at least 1"),
        (["a.mp4", "--question", "lables"], "did you mean labels"),
        (["a.mp4", "--question", "valence", "--field", "low"], "expected KEY=VALUE"),
        (["a.mp4", "--output", "/dev/null/x.jsonl"], "cannot be written"),
        (["a.mp4", "--output", "a.txt"], "expected a name that ends in .jsonl, .csv, .parquet"),
        (["a.mp4", "--subtitles", "nowhere"], "--subtitles nowhere: there is no such file"),
        (["a.mp4", "b.mp4", "--subtitles", "docs/x.srt"], "--subtitles docs/x.srt: there is no such file"),
        (["a.mp4", "--subtitle", "Hi", "--no-subtitle"], "contradict each other"),
        (["a.mp4", "--subtitle", "Hi", "--transcribe", "http://x/v1"], "contradict each other"),
        (["a.mp4", "--faces", "files", "--detector", "x.onnx"], "--detector x.onnx goes with --faces detect"),
        (["a.mp4", "--temperature", "-1"], "--temperature -1.0: expected 0 or more"),
        (["a.mp4", "--temperature", "1", "--top-p", "0"], "--top-p 0.0: expected more than 0"),
        (["a.mp4", "--top-k", "5"], "add --temperature 1"),
        (["a.mp4", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["clips.csv"], "there is no file clips.csv"),
        (["a.mp4"], "not a run folder"),
    ],
)
def test_mistakes_of_use(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
