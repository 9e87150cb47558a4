"""The model as an object: the same answers as the command line's, on any kind of clips, with limits on every one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import affectgpt_jax
from affectgpt_jax import LIMITS, AffectGPT, Failed, Prediction, Sampling, ScoredLabels, UserError
from affectgpt_jax.cli import main
from affectgpt_jax.data.responses import response_pieces, response_text
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.exchange.export import export
from affectgpt_jax.inference.calibration import probabilities
from affectgpt_jax.inference.clip_scores import calibration_file
from affectgpt_jax.inference.evaluate import PLAIN, Condition, make_queries
from affectgpt_jax.inference.label_scores import LabelScorer, Scores
from affectgpt_jax.inference.predict import longest_answer
from affectgpt_jax.inference.runs import open_shards
from tests.inference.clip_run import STEP, make_clip_run
from tests.tiny_run import make_tokenizer

MAX_NEW = 4
"""The same everywhere, and a clip at a time but once: few programs to trace."""
WORDS = ("happy", "sad", "angry")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip_run(tmp_path_factory.mktemp("clips")).parent


@pytest.fixture(scope="module")
def model(folder: Path) -> AffectGPT:
    return AffectGPT.load(folder / "run")


@pytest.fixture(scope="module")
def videos(folder: Path, model: AffectGPT) -> list[Path]:
    return [folder / "corpus" / "video" / f"{name}.mp4" for name in open_shards(model.config, "test").names]


def answered(outcomes: Iterator[Prediction | Failed]) -> list[Prediction]:
    found = list(outcomes)
    assert all(isinstance(one, Prediction) for one in found), found
    return [one for one in found if isinstance(one, Prediction)]


def test_importing_is_light() -> None:
    code = "import affectgpt_jax, sys; print(affectgpt_jax.UserError, dir(affectgpt_jax)); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, modules = shown.splitlines()
    assert "AffectGPT" in first
    assert not {"jax", "numpy", "pydantic"} & set(modules.split())
    with pytest.raises(AttributeError, match="no attribute 'Affect'"):
        affectgpt_jax.Affect  # noqa: B018


def test_one_clip_many_clips_and_the_command_line_agree(
    folder: Path, model: AffectGPT, videos: list[Path], tmp_path: Path
) -> None:
    """A folder, a pattern, a manifest, shards and single clips: one answer each, which the command line writes too."""
    out = tmp_path / "answers.jsonl"
    words = ["--max-new", str(MAX_NEW), "--output", str(out), "--batch", "1"]
    assert main(["predict", str(folder / "run"), *map(str, videos), *words]) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    many = answered(model.predict_many(videos, max_new=MAX_NEW, batch=1))
    told = [(record["clip"], record["answer"], record["labels"], record["limits"]) for record in written]
    assert [(one.clip, one.answer, list(one.labels), one.limits) for one in many] == told
    assert all(record["limits"] == LIMITS for record in written)
    assert len({one.answer for one in many}) > 1

    first = model.predict(videos[0], max_new=MAX_NEW)
    assert (first.answer, first.step, first.run) == (many[0].answer, STEP, str(folder / "run"))
    assert {"face", "audio", "text"} <= set(first.sources)

    manifest = tmp_path / "clips.jsonl"
    rows = [{"name": path.stem, "video": str(path), "subtitle": many[i].subtitle} for i, path in enumerate(videos)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = answered(model.predict_many(manifest, max_new=MAX_NEW, batch=1, faces=folder / "corpus" / "openface_face"))
    assert [one.answer for one in listed] == [one.answer for one in many]
    shards = answered(model.predict_many(folder / "shards", split="test", max_new=MAX_NEW, batch=1))
    assert [one.answer for one in shards] == [one.answer for one in many]
    everything = answered(model.predict_many(str(folder / "corpus" / "video"), max_new=MAX_NEW, batch=1))
    pattern = answered(model.predict_many(str(folder / "corpus" / "video" / "*.mp4"), max_new=MAX_NEW, batch=1))
    assert len(everything) == len(pattern) > len(many)


def test_what_is_asked_and_told(model: AffectGPT, videos: list[Path]) -> None:
    asked = model.predict(videos[0], "candidates", candidates="happy, sad", subtitle="Well.", max_new=MAX_NEW)
    assert "happy, sad" in asked.question
    assert asked.subtitle == "Well."
    silent = model.predict(videos[0], subtitle="", max_new=MAX_NEW)
    assert (silent.subtitle, list(silent.absent)) == ("", ["text"])
    drawn = [model.predict(videos[0], max_new=MAX_NEW, sampling=Sampling(1.0), seed=seed) for seed in (1, 1, 2)]
    assert drawn[0].answer == drawn[1].answer
    assert drawn[0].seed == 1
    assert str(silent).splitlines()[0] == str(videos[0])
    assert LIMITS in str(silent)
    assert LIMITS in silent._repr_html_()
    assert silent.absent["text"] in str(silent)


def test_one_bad_clip_stops_nothing(model: AffectGPT, videos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "broken.mp4"
    bad.write_text("no video")
    some = [videos[0], bad, videos[1]]
    assert [type(one) for one in model.predict_many(some, max_new=MAX_NEW, batch=1)] == [Prediction, Failed, Prediction]
    assert [type(one) for one in model.score_many(some, WORDS, batch=1)] == [ScoredLabels, Failed, ScoredLabels]
    for ask in (model.predict, model.score, model.stream):
        with pytest.raises(UserError, match=r"broken\.mp4: .*no media file"):
            ask(bad)


def test_pieces_join_to_the_answer(model: AffectGPT, videos: list[Path]) -> None:
    pieces = list(model.stream(videos[0], max_new=24))
    assert "".join(pieces) == model.predict(videos[0], max_new=24).answer
    assert len(pieces) > 1
    sampled = {"max_new": 24, "sampling": Sampling(1.0), "seed": 3}
    assert "".join(model.stream(videos[0], **sampled)) == model.predict(videos[0], **sampled).answer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(str(make_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.mark.parametrize(
    "text",
    [
        "The character's emotional state is happy, sad.###",
        "  Ärger über 悲しみ 😀, froh.###",
        "one # two ## three.<|im_end|>",
        "Assistant: calm.###",
        "An Assistant walks in.<|im_end|>",
        "no end, but a blank ",
        "###",
    ],
)
def test_no_piece_is_taken_back(tokenizer: Tokenizer, text: str) -> None:
    """Characters of several tokens come whole, and nothing of what ends an answer is told, not even its beginning."""
    ids = tokenizer.encode(text)
    pieces = list(response_pieces(ids, tokenizer))
    assert "".join(pieces) == response_text(ids, tokenizer)
    assert "\ufffd" not in "".join(pieces)
    if "😀" in text:
        assert any(len(tokenizer.encode(sign)) > 1 for sign in "悲😀")
    cut = tokenizer.encode("a 😀")[:-1]
    assert "".join(response_pieces(cut, tokenizer)) == response_text(cut, tokenizer)


def test_scores_with_and_without_calibration(folder: Path, model: AffectGPT, videos: list[Path]) -> None:
    run = model.run
    queries = make_queries(run, open_shards(run.config, "test"), PLAIN, "ovlabel")
    logs = LabelScorer(run, WORDS, batch=1, max_new=longest_answer(run.config))(queries)
    raw = [probabilities(one.logs) for one in logs if isinstance(one, Scores)]
    found = [one for one in model.score_many(videos, WORDS, batch=1) if isinstance(one, ScoredLabels)]
    for one, expected in zip(found, raw, strict=True):
        assert [one.probabilities[word] for word in WORDS] == pytest.approx(expected.tolist(), abs=1e-3)
        assert list(one.probabilities.values()) == sorted(one.probabilities.values(), reverse=True)
        assert not one.calibrated
        assert one.limits == LIMITS
        assert one.record()["limits"] == LIMITS
        json.dumps(one.record())
    shards = [one for one in model.score_many(folder / "shards", WORDS, batch=1) if isinstance(one, ScoredLabels)]
    for one, other in zip(found, shards, strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-3)
    silent = model.score(videos[0], WORDS, threshold=1.0)
    assert silent.abstained
    assert silent.labels == ()
    assert "none: the likeliest group" in str(silent)
    assert LIMITS in silent._repr_html_()
    assert len(model.score(videos[0], WORDS, threshold=0.0, top_k=2).labels) == 2

    deaf = model.score(videos[0], WORDS, without="audio")
    assert deaf.absent == {"audio": "left out on request"}
    assert set(deaf.sources) == {"face", "text"}
    without = make_queries(run, open_shards(run.config, "test"), Condition("", "audio"), "ovlabel")
    (one, *_) = LabelScorer(run, WORDS, batch=1, max_new=longest_answer(run.config))(without)
    assert isinstance(one, Scores)
    assert [deaf.probabilities[word] for word in WORDS] == pytest.approx(probabilities(one.logs).tolist(), abs=1e-3)
    with pytest.raises(UserError, match="without='sound': expected one of face, audio, text"):
        model.score(videos[0], WORDS, without="sound")

    file = folder / "words.txt"
    known = open_shards(run.config, "validation").text(0).labels
    file.write_text("\n".join([*WORDS, *known]))
    calibrate = [
        "--calibrate",
        "validation",
        "--split",
        "test",
        "--vocabulary",
        str(file),
        "--no-answers",
        "--batch",
        "1",
    ]
    assert main(["labels", str(folder / "run"), *calibrate]) == 0
    place = folder / "run" / "labels" / f"step{STEP:08d}"
    written = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    calibration = json.loads((place / "calibration.json").read_text())
    assert all(record["limits"] == LIMITS for record in written)
    for record, one in zip(written, model.score_many(folder / "shards", batch=1), strict=True):
        assert isinstance(one, ScoredLabels)
        assert one.calibrated
        assert one.temperature == calibration["temperature"]
        assert list(one.labels) == record["labels"]
        assert one.confidence == record["confidence"]
        assert one.model == model.fingerprint == calibration["model"]
    other = model.score(videos[0], WORDS)
    assert (other.calibrated, other.temperature) == (False, 1.0)
    assert "is of other words" in other.notes[-1]
    rounded = AffectGPT.load(folder / "run", weights="int8")
    assert calibration_file(rounded.trained).parent.name == f"step{STEP:08d}-weights-int8"
    assert rounded.fingerprint != model.fingerprint


@pytest.mark.slow
def test_exports_open_as_runs_do(folder: Path, model: AffectGPT, videos: list[Path], tmp_path: Path) -> None:
    expected = [one.answer for one in answered(model.predict_many(videos, max_new=MAX_NEW, batch=1))]
    export(folder / "run", tmp_path / "merged", "merged", parity=False)
    merged = AffectGPT.load(tmp_path / "merged")
    assert [one.answer for one in answered(merged.predict_many(videos, max_new=MAX_NEW, batch=1))] == expected
    held = AffectGPT.load(tmp_path / "merged", weights="int8", cache="int8")
    assert held.config.model.decoder.base == "int8"
    assert held.predict(videos[0], max_new=MAX_NEW).limits == LIMITS
    with pytest.raises(UserError, match="no run folder and holds one checkpoint"):
        AffectGPT.load(tmp_path / "merged", step=3)


def test_mistakes_of_use(folder: Path, model: AffectGPT, videos: list[Path]) -> None:
    with pytest.raises(UserError, match="there is no such run folder"):
        AffectGPT.load(folder / "nowhere")
    with pytest.raises(UserError, match="weights='int4': expected one of float, int8"):
        AffectGPT.load(folder / "run", weights="int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"leave out 'weights\.language=x'"):
        AffectGPT.load(folder / "run", overrides=["weights.language=x"])
    with pytest.raises(UserError, match=r"5 clips are named, expected one; use predict_many"):
        model.predict(folder / "corpus" / "video")
    with pytest.raises(UserError, match="no kind of question is called 'labls'; did you mean labels"):
        model.predict(videos[0], "labls")
    with pytest.raises(UserError, match="subtitle goes with media files"):
        model.predict(folder / "shards", subtitle="Hello.")
    with pytest.raises(UserError, match="split='test' goes with feature shards"):
        model.predict_many(videos, split="test")
    with pytest.raises(UserError, match=r"faces nowhere\.npy: there is no such file"):
        model.predict(videos[0], faces="nowhere.npy")
    with pytest.raises(UserError, match="are the faces of one clip, but 3 are named"):
        model.predict_many(videos, faces=videos[0])
    with pytest.raises(UserError, match="expected words, such as"):
        model.score(videos[0], "happy")
    with pytest.raises(UserError, match="batch must be at least 1"):
        model.predict_many(videos, batch=0)
