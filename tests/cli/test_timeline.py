"""`affectgpt timeline` from the command line, on a real run of the smallest size."""

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

import affectgpt_jax.inference.timeline as library
import data_prep.faces
from affectgpt_jax.cli import main
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.calibration import Calibration, make_vocabulary
from affectgpt_jax.inference.runs import fingerprint, open_trained
from affectgpt_jax.inference.timeline.features import Inputs
from affectgpt_jax.unibench.lexicon import small_table
from tests.data_prep.test_faces import Bright
from tests.inference.clip_run import STEP, make_clip_run
from tests.inference.test_timeline import moving, noise, write_lossless

FILES = ("timeline.csv", "timeline.jsonl", "timeline.png", "timeline.html")
WORDS = ("happy", "sad", "angry")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a synthetic corpus, with random parameters, and a vocabulary."""
    folder = make_clip_run(tmp_path_factory.mktemp("run")).parent
    (folder / "words.txt").write_text("\n".join(WORDS))
    return folder


def timeline(folder: Path, video: Path, out: Path, *more: str) -> int:
    words = ["timeline", str(folder / "run"), str(video), "--output", str(out), "--max-new", "4"]
    return main([*words, "--vocabulary", str(folder / "words.txt"), "--labels", "words", *more])


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "timeline.jsonl").read_text(encoding="utf-8").splitlines()]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "timeline.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a page is made of; complains about elements that are not closed in their order."""

    VOID = ("meta", "img", "br", "path", "rect")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self._named: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
            self._named.append(dict(attrs).get("id") or tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._named.pop()

    def handle_data(self, data: str) -> None:
        if self._named:
            self.texts[self._named[-1]] = self.texts.get(self._named[-1], "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_one_window_is_a_prediction(folder: Path, tmp_path: Path) -> None:
    """A recording that is no longer than a window is answered as `affectgpt predict` answers it."""
    video = folder / "corpus" / "video" / "synth0_test_00000.mp4"
    (tmp_path / "said.srt").write_text("1\n00:00:00,500 --> 00:00:01,000\n- Well, <i>well</i>.\n")
    options = ["--faces", "detect", "--subtitles", str(tmp_path / "said.srt")]
    assert timeline(folder, video, tmp_path / "out", "--window", "60", *options) == 0
    answers = tmp_path / "answers.jsonl"
    words = ["predict", str(folder / "run"), str(video), "--max-new", "4", "--output", str(answers), *options]
    assert main(words) == 0
    (expected,) = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    (found,) = records(out := tmp_path / "out")
    for key in ("answer", "question", "tokens", "notes", "run", "step", "model", "version", "limits"):
        assert found[key] == expected[key], key
    assert found["absent"] == expected["absent"] == {}
    assert found["answer_labels"] == expected["labels"]
    assert found["words"] == expected["subtitle"] == "Well, well."
    for name in ("face", "audio", "text"):
        assert found["sources"][name]["origin"] == expected["sources"][name]["origin"]
    assert found["sources"]["face"]["detector"] == expected["sources"]["face"]["detector"]
    np.testing.assert_allclose(found["sources"]["face"]["boxes"], expected["sources"]["face"]["boxes"], atol=0.06)
    assert found["sources"]["audio"]["places"] == pytest.approx(expected["sources"]["audio"]["places"], abs=0.03)
    assert [row["person"] for row in rows(out)] == ["1"]


def test_two_people(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a curve; the table, the plot and the page hold the same; the page stands beside the recording."""
    monkeypatch.setattr(data_prep.faces, "Cascade", Bright)
    video = write_lossless(tmp_path / "a <b> & c.mkv", moving(200, second=range(60, 140)), noise(200))
    (tmp_path / "a <b> & c.vtt").write_text("WEBVTT\n\n00:03.000 --> 00:03.900\n&lt;/script> I see.\n")
    trained = open_trained(folder / "run")
    place = folder / "run" / "labels" / f"step{STEP:08d}" / "calibration.json"
    vocabulary = make_vocabulary(WORDS, small_table())
    facts = (fingerprint(trained), STEP, WORDS, vocabulary.identity, small_table().name)
    calibration = Calibration(*facts, temperature=5.0, threshold=0.3, n=9)
    out = tmp_path / "out"
    assert timeline(folder, video, out, "--window", "2", "--faces", "detect") == 0
    assert "not calibrated" in capsys.readouterr().out
    raw = rows(out)
    calibration.write(place)
    # Another calibration asks neither towers nor model.
    monkeypatch.setattr(library, "open_encoders", None)
    monkeypatch.setattr(library, "Answerer", None)
    assert timeline(folder, video, out, "--window", "2", "--faces", "detect", "--copy-video") == 0
    place.unlink()
    told = capsys.readouterr().out
    assert "not calibrated" not in told
    assert "8.0 s, windows: 4, people: 2, answers: 6" in told

    found, table = records(out), rows(out)
    assert [row["person"] for row in table] == ["1", "1", "2", "1", "2", "1"]
    assert [(row["start"], row["end"]) for row in table[:3]] == [("0", "2"), ("2", "4"), ("2", "4")]
    assert [record["words"] for record in found] == ["", *["</script> I see."] * 2, "", "", ""]
    assert found[1]["sources"]["face"]["boxes"] != found[2]["sources"]["face"]["boxes"]
    assert found[0]["absent"] == {"text": f"no cue of {tmp_path / 'a <b> & c.vtt'} is shown here"}
    columns = [name for name in table[0] if name.startswith("p_")]
    assert sorted(columns) == sorted(f"p_{word}" for word in WORDS)
    for cold, warm, record in zip(raw, table, found, strict=True):
        logs = np.log([float(cold[f"p_{word}"]) for word in WORDS])
        warmer = np.exp(logs / 5) / np.exp(logs / 5).sum()
        np.testing.assert_allclose([float(warm[f"p_{word}"]) for word in WORDS], warmer, atol=1e-3)
        assert warm["labels"] == ", ".join(record["labels"])
        assert "diagnosis" in record["limits"]
    means = [sum(float(row[name]) for row in table) for name in columns]
    assert means == sorted(means, reverse=True)

    with Image.open(out / "timeline.png") as picture:
        assert picture.width > 1000
    page = Page(out / "timeline.html")
    (player,) = page.all("video")
    assert (out / unquote(player["src"] or "")).resolve() == (out / "video.mkv").resolve()
    assert (out / "video.mkv").read_bytes() == video.read_bytes()
    drawings = [drawing for drawing in page.all("svg") if drawing.get("role") == "slider"]
    assert [drawing["data-person"] for drawing in drawings] == ["1", "2"]
    data = json.loads(page.texts["records"])
    assert [record["words"] for record in data["records"]] == [record["words"] for record in found]
    assert len([button for button in page.all("button") if "data-start" in button]) == 6
    for name in ("src", "href"):
        assert not [tag for tag, attributes in page.tags if re.match(r"(https?:)?//", attributes.get(name) or "")]
    text = (out / "timeline.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in text
    assert "not a diagnosis" in text


def test_another_question_has_its_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is decoded or encoded again; valence is a number where the answer has one."""
    video = folder / "corpus" / "video" / "synth0_test_00000.mp4"
    assert timeline(folder, video, tmp_path, "--window", "1", "--hop", "0.5") == 0
    monkeypatch.setattr(Inputs, "encode", None)
    said = iter(["The valence score is -0.46.", "none", "0.25", "1"])

    class Saying(Answerer):
        def __call__(self, queries: Sequence[Query], report: object = None) -> list:
            return [Answer(query.name, next(said), [], (), 2) for query in queries]

    monkeypatch.setattr(library, "Answerer", Saying)
    assert timeline(folder, video, tmp_path, "--window", "1", "--hop", "0.5", "--question", "valence") == 0
    found = rows(tmp_path)
    assert [row["valence"] for row in found] == ["-0.46", "", "0.25", "1"]
    assert "ranging from -1 to 1" in records(tmp_path)[0]["question"]
    page = Page(tmp_path / "timeline.html")
    assert (tmp_path / unquote(page.all("video")[0]["src"] or "")).resolve() == video.resolve()
    assert len([drawing for drawing in page.all("svg") if drawing.get("role") == "slider"]) == 2
    assert len(list((tmp_path / "cache").glob("features-*"))) == 1
    assert len(list((tmp_path / "cache").glob("answers-*.jsonl"))) == 2
    capsys.readouterr()


def test_going_on_after_an_interruption(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = folder / "corpus" / "video" / "synth0_test_00000.mp4"
    options = ("--window", "1", "--hop", "0.06")
    assert timeline(folder, video, tmp_path / "whole", *options) == 0
    assert len(records(tmp_path / "whole")) > 16  # four batches are asked together
    calls = 0

    class Interrupted(Answerer):
        def __call__(self, queries: Sequence[Query], report: object = None) -> list:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise KeyboardInterrupt
            return super().__call__(queries)

    monkeypatch.setattr(library, "Answerer", Interrupted)
    assert timeline(folder, video, tmp_path / "part", *options) == 130
    assert not (tmp_path / "part" / "timeline.csv").exists()
    (kept,) = (tmp_path / "part" / "cache").glob("answers-*.jsonl")
    kept.write_bytes(kept.read_bytes() + b'{"answer": "cut o')
    assert timeline(folder, video, tmp_path / "part", *options) == 0
    assert calls == 3
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "0"], "--window 0: expected seconds, more than 0"),
        (["--hop", "-1"], "--hop -1: expected seconds, more than 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--faces", "nowhere.npy"], "no such file or folder"),
        (["--subtitles", "nowhere.srt"], "--subtitles nowhere.srt: there is no such file"),
        (["--subtitles", "README.md", "--no-subtitle"], "contradict each other"),
        (["--faces", "files", "--detector", "x.onnx"], "--detector x.onnx goes with --faces detect"),
        (["--question", "lables"], "did you mean labels"),
        (["--question", "valence", "--field", "low=2"], "--field low=2, high=1: expected numbers"),
        ([], "there is no such file"),
    ],
)
def test_mistakes_of_use(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["timeline", str(tmp_path / "run"), str(tmp_path / "a.mp4"), "--output", str(tmp_path / "out")]
    assert main([*words, *options]) == 2
    assert message in capsys.readouterr().err


def test_words_without_times(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = folder / "corpus" / "video" / "synth0_test_00000.mp4"
    table = tmp_path / "said.csv"
    table.write_text("name,text\nsynth0_test_00000,Hello\n")
    assert timeline(folder, video, tmp_path / "out", "--subtitles", str(table)) == 2
    assert "expected .srt or .vtt, which say when something is said" in capsys.readouterr().err
