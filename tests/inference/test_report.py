"""A run's report: self-contained, complete where the run folder is, and plain about what is missing."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from sklearn.metrics import confusion_matrix

from affectgpt_jax.cli import main
from affectgpt_jax.config import save_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.report import figures, write_report
from affectgpt_jax.inference.report.examples import choose_examples
from affectgpt_jax.inference.report.groups import UNKNOWN, confusion, group, is_hit
from affectgpt_jax.inference.report.record import read_record
from affectgpt_jax.unibench.lexicon import GROUP_OF, small_table
from affectgpt_jax.unibench.scoring import hits
from tests.media_files import truncate, write_video
from tests.tiny_run import tiny_config

CONDITIONS = ("all modalities", "without face", "without audio", "without text", "shuffled face", "shuffled audio")
WORDS = ("happy", "sad", "furious", "worried", "peaceful", "zorble")


class Outline(HTMLParser):
    """What a page is made of; checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def make_answers(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def labels() -> list[str]:
        return [str(word) for word in rng.choice(WORDS, 2, replace=False)]

    return [
        {
            "name": f"{i:04d}",
            "subtitle": "<script>alert(1)</script> & co" if i == 0 else f"line {i}",
            "truth": labels(),
            "description": f"In the text, line {i}.",
            "answers": {name: {"text": f"state is {(said := labels())}", "labels": said} for name in CONDITIONS},
        }
        for i in range(count)
    ]


def make_run(folder: Path) -> Path:
    """A run folder with everything in it, and clips of a corpus: one whole, one broken, the others gone."""
    run = folder / "run"
    config = tiny_config(folder, prepare__corpus=str(folder / "corpus"), name="a <b>bold</b> run")
    save_config(config, run / "config.yaml")
    lines = [
        json.dumps({"step": s, "loss": 5.0 / s, "accuracy": s / 8, "learning_rate": 1e-3, "samples_per_s": 10.0 + s})
        for s in range(1, 7)
    ]
    again = json.dumps({"step": 5, "loss": 0.75, "accuracy": 0.5, "learning_rate": 1e-3, "samples_per_s": 12.0})
    (run / "metrics.jsonl").write_text("\n".join([*lines, again, '{"step": 7, "lo']))
    scores = {
        "step": 6,
        "corpus": str(folder / "corpus"),
        "split": "test",
        "fingerprint": "f" * 64,
        "table": small_table().name,
        "clips": 23,
        "scores": {
            name: {"hit_rate": score(0.9 - 0.1 * i), "f_score": score(0.4)} for i, name in enumerate(CONDITIONS)
        },
        "by_need": {
            modality: {"clips": 7, "hit_rate": {name: 0.8 if name == CONDITIONS[0] else 0.5 for name in CONDITIONS}}
            for modality in ("face", "audio", "text")
        },
    }
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in make_answers(23)))
    other = {**scores, "clips": 11, "corpus": "elsewhere", "scores": {CONDITIONS[0]: {"hit_rate": score(0.77)}}}
    (run / "elsewhere").mkdir()
    (run / "elsewhere" / "scores.json").write_text(json.dumps(other))
    for step in ("3", "12", "13.orbax-checkpoint-tmp"):
        (run / "checkpoints" / step / "facts").mkdir(parents=True)
    facts = {"corpus": "c" * 64, "environment": {"python": "3.11", "jax": "0.10.2"}, "devices": "1 abacus", "step": 12}
    (run / "checkpoints" / "12" / "facts" / "metadata").write_text(json.dumps(facts))
    write_video(folder / "corpus" / "video" / "0000.mp4", 10)
    truncate(write_video(folder / "corpus" / "video" / "0002.mp4", 10), 0.5)
    (folder / "corpus" / "synth_manifest.json").write_text(json.dumps({"seed": 4, "counts": {"train": 3, "test": 23}}))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing out, which takes most of a report's time."""
    monkeypatch.setattr(figures, "drawing", lambda draw, size, alt: figures.Picture(b"", b"", (1, 1), alt))


def test_the_page_stands_alone(run: Path) -> None:
    """Nothing is fetched, nothing executed, every picture is there and says what it shows."""
    add_labels(run)
    path = write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 3e6
    page = Outline(path.read_text(encoding="utf-8"))
    assert not page.of("script")
    assert not page.of("link")
    assert not page.of("b")[4:]  # the tiles' own; the run's name is text
    assert "a <b>bold</b> run" in page.text
    assert "<script>alert(1)</script> & co" in page.text
    assert all(str(link["href"]).startswith("#") for link in page.of("a"))
    targets = {attributes["id"] for attributes in page.of("section") if "id" in attributes}
    assert {str(link["href"])[1:] for link in page.of("a")} == targets
    images = page.of("img")
    assert len(images) == 5  # curves, reliability, needs, confusion, one clip
    assert all(image["alt"] for image in images)
    sources = [*(image["src"] for image in images), *(source["srcset"] for source in page.of("source"))]
    for source in sources:
        kind, _, content = str(source).partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert kind == f"data:image/{str(picture.format).lower()}"
            picture.load()
    assert len(set(sources)) == len(sources) == 9
    style = re.search(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert write_report(run, output=run / "again.html").read_bytes() == path.read_bytes()


def test_expected_losses_stand_where_as_many_samples_were_seen() -> None:
    """Between what was logged, and beyond it at the run's pace."""
    curves = {
        "step": np.array([10.0, 20.0, 30.0]),
        "samples": np.array([100.0, np.nan, 400.0]),
        "loss": np.array([3.0, 2.0, 1.0]),
    }
    shown = figures.training_curves(curves, ((50, 2.5), (250, 2.0), (800, 0.5)))
    assert shown is not None
    assert "Expected losses: 2.5 at step 5, 2 at step 20, 0.5 at step 60." in shown.alt
    del curves["samples"]  # of an earlier version of the program
    shown = figures.training_curves(curves, ((50, 2.5),))
    assert shown is not None
    assert "Expected" not in shown.alt


@pytest.mark.usefixtures("undrawn")
def test_what_it_says(run: Path) -> None:
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    for part in (
        "0.900 hit rate",
        "without face 0.800 [0.750, 0.850] 0.400",
        "need face (7)",
        "without audio 0.500 -0.300 0.500 -0.300",
        "elsewhere: 11 clips of elsewhere 0.770",
        "6 of 6 steps",
        "python 3.11, jax 0.10.2",
        "1 abacus",
        "multi 1, audio 1, face 1",
        "emotions from face, voice and words",
        f"affectgpt synth {run.parent / 'corpus'} --train 3 --test 23 --seed 4",
        "not a diagnosis",
        "metrics.jsonl has 1 unreadable line, left out here.",
        "10 of 23 clips",
        "No picture: there is no such file.",
        f"affectgpt labels {run} --calibrate validation --evidence adds probabilities of labels",
    ):
        assert part in text, part
    assert "No picture: is cut short" in text or "No picture: cannot be decoded" in text


def add_labels(run: Path, step: int = 6) -> Path:
    """What `affectgpt labels` leaves: of 23 clips, with evidence of the first and the last."""
    place = run / "labels" / f"step{step:08d}"
    place.mkdir(parents=True)
    fit = {"nll": 0.75, "ece": 0.25, "bins": [[4, 0.3, 0.5], [8, 0.9, 0.75]]}
    calibration = {
        "split": "validation", "n": 12, "temperature": 1.5, "threshold": 0.4, "coverage": 0.75, "precision": 0.875,
        "before": fit | {"nll": 1.25}, "after": fit,
    }  # fmt: skip
    (place / "calibration.json").write_text(json.dumps(calibration))
    rates = {"hit_rate": score(0.625), "f_score": score(0.5)}
    summary = {
        "step": step, "split": "test", "clips": 23, "words": 211, "table": small_table().name, "temperature": 1.5,
        "threshold": 0.4, "fit": fit | {"clips": 22},
        "systems": {
            "scored labels": {"none": 5, "scores": rates, "given": {"hit_rate": score(0.8), "f_score": score(0.7)}},
            "labels in free words": {"none": 0, "scores": {"hit_rate": score(0.55), "f_score": score(0.45)}},
        },
        "evidence": {"without face": {"clips": 2, "change": -0.375}},
    }  # fmt: skip
    (place / "test.summary.json").write_text(json.dumps(summary))
    lines: list[dict[str, Any]] = [
        {"name": f"{i:04d}", "labels": ["happy"], "likeliest": [{"label": "happy", "probability": 0.8, "support": 0.8}]}
        for i in range(23)
    ]
    words = [
        {"label": "happy", "probability": 0.3, "change": -0.5},
        {"label": "sad", "probability": 0.6, "change": 0.45},
    ]
    lines[0]["evidence"] = {
        "without face": {"answer": "They are <i>sad</i>.", "answer_labels": ["sad"], "words": words}
    }
    lines[22] |= {"labels": [], "evidence": {"without face": {"rejected": "has nothing to go by"}}}
    (place / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.mark.usefixtures("undrawn")
def test_labels_by_probability(run: Path) -> None:
    """Calibration, both systems, and for a clip what becomes of its labels without a modality."""
    add_labels(run, 3)
    place = add_labels(run, 6)
    (place.with_name("step00000003") / "calibration.json").write_text("{}")  # an older checkpoint is not looked at
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for line in answers:
        del line["answers"]["without face"]
    (run / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    page = Outline(write_report(run).read_text(encoding="utf-8"))
    for part in (
        "Each of 211 words",
        "checkpoint of step 6",
        "12 clips of validation",
        "1.250 before, 0.750 after",
        "abstains below 0.400: labels 75.0% of these clips, and 87.5% of those rightly",
        "negative log-likelihood 0.750, expected calibration error 0.250 (22 clips with true labels)",
        "scored labels 0.625 [0.575, 0.675] 0.500 [0.450, 0.550] 5",
        "scored labels, where there are any 0.800",
        "labels in free words 0.550 [0.500, 0.600] 0.450 [0.400, 0.500] 0",
        "without face -0.375 (mean of 2 clips)",
        "They are <i>sad</i>.",
        "all modalities without face happy 0.80 0.30 sad 0.15 0.60",
        "none: 0.40 is not reached",
        "has nothing to go by",
    ):
        assert part in page.text, part
    alts = [str(image["alt"]) for image in page.of("img")]
    assert sum("0.50 true at 0.30 (4), 0.75 true at 0.90 (8)" in alt for alt in alts) == 1
    assert [str(bar["style"]) for bar in page.of("i")] == [f"width:{4 * x:.2f}rem" for x in (0.8, 0.3, 0.15, 0.6)]

    (place / "calibration.json").unlink()
    (place / "test.jsonl").write_text('{"na')
    summary = json.loads((place / "test.summary.json").read_text())
    (place / "test.summary.json").write_text(json.dumps(summary | {"evidence": {}, "fit": None}))
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    assert "none: probabilities are the model's own; affectgpt labels" in text
    assert "Without evidence: affectgpt labels" in text
    assert "test.jsonl has 1 unreadable line, left out here." in text


def test_repeated_steps(run: Path) -> None:
    """A run that was killed and went on repeats steps: the last word counts."""
    record = read_record(run)
    np.testing.assert_array_equal(record.curves["step"], np.arange(1, 7))
    np.testing.assert_allclose(record.curves["loss"], [5.0, 2.5, 5 / 3, 1.25, 0.75, 5 / 6])


@pytest.mark.parametrize("name", ["metrics.jsonl", "scores.json", "answers.jsonl", "checkpoints/12/facts/metadata"])
@pytest.mark.parametrize("content", [None, "", "[1"])
@pytest.mark.usefixtures("undrawn")
def test_missing_pieces_are_named(run: Path, name: str, content: str | None) -> None:
    """The page is there without any one of them, and says what is missing."""
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    text = Outline(write_report(run).read_text(encoding="utf-8")).text
    expected = {
        "metrics.jsonl": "Nothing was logged",
        "scores.json": "run `affectgpt evaluate",
        "answers.jsonl": "no answers yet",
    }
    assert expected.get(name, "No checkpoint lies in the run folder") in text


@pytest.mark.usefixtures("undrawn")
def test_without_conditions_and_needs(run: Path) -> None:
    """A corpus that does not say what clips need, and a run that was asked under the plain condition alone."""
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps({**scores, "by_need": {}}))
    assert "does not say which clips need which modality" in Outline(write_report(run).read_text(encoding="utf-8")).text
    plain = {CONDITIONS[0]: scores["scores"][CONDITIONS[0]]}
    (run / "scores.json").write_text(json.dumps({**scores, "scores": plain, "by_need": {}}))
    assert "Only the condition with all modalities" in Outline(write_report(run).read_text(encoding="utf-8")).text


def test_a_new_run(tmp_path: Path) -> None:
    save_config(tiny_config(tmp_path), tmp_path / "run" / "config.yaml")
    text = Outline(write_report(tmp_path / "run").read_text(encoding="utf-8")).text
    assert "Not in this report" in text
    assert "no step is logged" in text


@pytest.mark.usefixtures("undrawn")
def test_mistakes_of_use(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path / "nothing")
    with pytest.raises(UserError, match="has no folder video"):
        write_report(run, corpus=tmp_path / "nothing")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(run, output="/dev/null/report.html")


@pytest.mark.usefixtures("undrawn")
def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(run.parent / "corpus"), "gone"))
    (run.parent / "corpus").rename(tmp_path / "moved")
    assert main(["report", str(run), "--output", str(tmp_path / "pages" / "a.html")]) == 0
    assert f"written: {tmp_path / 'pages' / 'a.html'}" in capsys.readouterr().out
    assert "name their folder with --corpus" in (tmp_path / "pages" / "a.html").read_text(encoding="utf-8")
    assert main(["report", str(run), "--corpus", str(tmp_path / "moved")]) == 0
    assert "name their folder" not in (run / "report.html").read_text(encoding="utf-8")


def test_examples_are_spread(run: Path) -> None:
    examples = choose_examples(read_record(run))
    names = [example.line["name"] for example in examples]
    assert (names[0], names[-1], len(set(names))) == ("0000", "0022", 10)
    assert examples[0].picture is not None
    with Image.open(io.BytesIO(examples[0].picture)) as picture:
        assert picture.width > 3.9 * picture.height


def test_confusion_against_sklearn() -> None:
    answers = make_answers(200)
    counted = confusion(answers, CONDITIONS[1])
    true = [group(line["truth"][:1]) for line in answers]
    found = [group(line["answers"][CONDITIONS[1]]["labels"]) for line in answers]
    expected = confusion_matrix(true, found, labels=counted.columns)
    chosen = [counted.columns.index(row) for row in counted.rows]
    np.testing.assert_array_equal(counted.counts, expected[chosen])
    assert counted.counts.sum() == 200
    true_of, found_as, clips = counted.mistakes(3)[0]
    off_diagonal = counted.counts * (np.array(counted.rows)[:, None] != np.array(counted.columns))
    assert clips == off_diagonal.max()
    assert clips == sum(pair == (true_of, found_as) for pair in zip(true, found, strict=True))


def test_hits_are_those_of_the_scores() -> None:
    """The mark beside a clip says what the hit rate counted."""
    rng = np.random.default_rng(1)
    words = [*GROUP_OF, "zorble", "Happy "]
    truth = [[str(word) for word in rng.choice(words, rng.integers(1, 3))] for _ in range(500)]
    labels = [[str(word) for word in rng.choice(words, rng.integers(0, 4))] for _ in range(500)]
    measure = hits(truth, labels, small_table(), "strict")
    marks = [is_hit(true, found) for true, found in zip(truth, labels, strict=True)]
    assert 50 < sum(marks) < 450
    np.testing.assert_array_equal(marks, measure.right)
    np.testing.assert_array_equal([group(true[:1]) != UNKNOWN for true in truth], measure.scored)


def test_smoothing_against_scipy() -> None:
    values = np.random.default_rng(0).normal(size=80)
    ones = gaussian_filter1d(np.ones(80), 4.0, mode="constant", truncate=3.0)
    expected = gaussian_filter1d(values, 4.0, mode="constant", truncate=3.0) / ones
    np.testing.assert_allclose(figures.smooth(values, 4.0), expected, rtol=1e-12)
    holed = np.where(np.arange(80) == 40, np.nan, values)
    assert np.isfinite(figures.smooth(holed, 4.0)).all()
    np.testing.assert_array_equal(figures.smooth(np.array([3.0]), 1.0), [3.0])
    assert np.isnan(figures.smooth(np.full(3, np.nan), 1.0)).all()
