"""`affectgpt benchmark` and `affectgpt submission`, from clips to tables, on runs of the smallest size."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import affectgpt_jax.inference.benchmark
from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.cli import main
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.responses import response_labels
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.calibration import THRESHOLD, given_labels, make_vocabulary, probabilities
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.label_scores import LabelScorer, Scores
from affectgpt_jax.inference.runs import fingerprint, open_run, open_trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.unibench.datasets import SYNTHETIC
from affectgpt_jax.unibench.lexicon import GROUP_OF, polarity, small_table
from affectgpt_jax.unibench.scoring import score_labels
from affectgpt_jax.unibench.table_cache import wheel_words
from affectgpt_jax.unibench.truth import read_truth
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.trainable import split
from tests.data_prep.test_benchmarks import LAYOUTS, make_media, write_layout
from tests.exchange.runs import write_bases
from tests.inference.clip_run import STEP, make_clip_run, random_tree
from tests.parity import goldens

Outcomes = list[Answer | Rejected]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints with random parameters, and the synthetic corpus of its clips."""
    folder = make_clip_run(tmp_path_factory.mktemp("run")).parent
    config = open_trained(folder / "run").config
    params = random_tree(parameter_shapes(AffectGPT(config.model)), seed=2)
    trainable, _ = split(config.model, params, config.train.trainable)
    checkpoints = Checkpoints(folder / "run" / "checkpoints", keep=2)
    checkpoints.save(2 * STEP, {"params": jax.tree.map(jnp.asarray, trainable)}, {"step": 2 * STEP})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips each of MELD and CMU-MOSI in the reference's layout."""
    root = tmp_path_factory.mktemp("datasets")
    media = make_media(root / "media")
    for key in ("meld", "cmumosi"):
        write_layout(root, key, media)
    return root


class Oracle:
    """Stands in for the answerer: a rule says what a checkpoint answers to a query, if anything; keeps the queries."""

    def __init__(self, says: Callable[[Query, int], str | None]) -> None:
        self.says = says
        self.queries: list[Query] = []

    def __call__(self, run: Any, *, batch: int, max_new: int) -> Callable[[Sequence[Query]], Outcomes]:
        def answer(queries: Sequence[Query]) -> Outcomes:
            self.queries += queries
            found = [(query.name, self.says(query, run.step)) for query in queries]
            return [
                Rejected(name, "cannot be asked")
                if text is None
                else Answer(name, text, response_labels(text), (), len(text.split()))
                for name, text in found
            ]

        return answer


def install(monkeypatch: pytest.MonkeyPatch, says: Callable[[Query, int], str | None]) -> Oracle:
    oracle = Oracle(says)
    monkeypatch.setattr(affectgpt_jax.inference.benchmark, "Answerer", oracle)
    return oracle


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def synthetic(folder: Path, out: Path, *more: str) -> int:
    words = ["benchmark", str(folder / "run"), "--data-root", str(folder / "corpus"), "--datasets", "synthetic"]
    return main([*words, "--out", str(out), "--resamples", "20", *more])


def test_the_chain_on_the_synthetic_corpus(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint's own answers, kept, scored and reported; a second time nothing is answered or encoded."""
    assert synthetic(folder, tmp_path, "--max-new", "8") == 0
    place = Path("synthetic") / "test" / f"step{2 * STEP:08d}.jsonl"
    facts, *kept = lines(tmp_path / "answers" / place)
    opened = open_run(folder / "run")
    assert facts["model"] == fingerprint(open_trained(folder / "run"))
    assert facts["step"] == 2 * STEP
    corpus = open_corpus(folder / "shards", "test", ("face@8", "audio@8"))
    expected = Answerer(opened, batch=4, max_new=8)(make_queries(opened, corpus, PLAIN, "ovlabel"))
    assert [(record["name"], record["answer"]) for record in kept] == [(a.name, a.text) for a in expected]  # type: ignore[union-attr]
    predicted = lines(tmp_path / "predictions" / place)
    assert [record["name"] for record in predicted] == [record["name"] for record in kept]
    for name in ("report.html", "report.md", "report.tex"):
        assert f"step{2 * STEP:08d}" in (tmp_path / "report" / name).read_text()
    capsys.readouterr()
    monkeypatch.setattr("affectgpt_jax.inference.encoders.Encoders", None)
    oracle = install(monkeypatch, lambda query, step: "")
    assert synthetic(folder, tmp_path, "--max-new", "8") == 0
    assert not oracle.queries
    assert synthetic(folder, tmp_path, "--max-new", "9") == 2
    assert "max_new 8 instead of 9" in capsys.readouterr().err
    # A line that was cut off is asked again, and nothing else.
    whole = (tmp_path / "answers" / place).read_bytes()
    (tmp_path / "answers" / place).write_bytes(whole[:-9])
    assert synthetic(folder, tmp_path, "--max-new", "8") == 0
    assert len(oracle.queries) == 1
    assert len(lines(tmp_path / "answers" / place)) == len(kept) + 1


def test_scored_labels_are_a_system_of_their_own(
    folder: Path, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the labels in free words, in the same tables; calibrated where the checkpoint is."""
    out = tmp_path / "out"
    assert synthetic(folder, out, "--max-new", "8", "--scored") == 0
    told = capsys.readouterr().out
    assert "probabilities are not calibrated" in told
    assert "tiny, scored labels" in told
    systems = json.loads((out / "report" / "scores.json").read_text())["systems"]
    assert list(systems) == ["tiny", "tiny, scored labels"]
    name = f"step{2 * STEP:08d}"
    predicted = {
        record["name"]: record["labels"]
        for record in lines(out / "predictions-scored/synthetic/test" / f"{name}.jsonl")
    }
    vocabulary = make_vocabulary(wheel_words(), small_table())
    run = open_run(folder / "run")
    queries = make_queries(run, open_corpus(folder / "shards", "test", ("face@8", "audio@8")), PLAIN, "ovlabel")
    for scored in LabelScorer(run, vocabulary.words, batch=4, max_new=8)(queries):
        assert isinstance(scored, Scores)
        assert predicted[scored.name] == given_labels(probabilities(scored.logs), vocabulary, THRESHOLD)
    truth = read_truth(SYNTHETIC, folder / "corpus")
    expected = score_labels(truth.labels, [predicted[clip] for clip in truth.names], small_table(), resamples=0)
    found = systems["tiny, scored labels"]["synthetic"]["checkpoints"][name]["strict"]["f_score"]["value"]
    assert found == pytest.approx(expected.scores["f_score"].value)

    # Two words, one of them true of the validation clip: with a threshold of 0 both are given.
    true = read_truth(SYNTHETIC, folder / "corpus", "validation").labels[0][0]
    words = [true, next(word for word in ("happy", "angry") if GROUP_OF[word] != GROUP_OF[true])]
    (tmp_path / "words.txt").write_text("\n".join(words))
    shutil.copytree(folder / "run", tmp_path / "run")
    run_folder, given = str(tmp_path / "run"), ["--vocabulary", str(tmp_path / "words.txt"), "--threshold", "0"]
    shards = ["--shards", str(folder / "shards"), "--calibrate", "validation", "--no-answers"]
    assert main(["labels", run_folder, *given, *shards]) == 0
    more = ["--max-new", "8", "--out", str(tmp_path / "again"), "--resamples", "20", "--scored", "--any-count"]
    assert main(["benchmark", run_folder, "--data-root", str(datasets), "--datasets", "cmumosi", *more]) == 0
    kept = lines(tmp_path / "again/predictions-scored/cmumosi/test" / f"{name}.jsonl")
    assert [sorted(record["labels"]) for record in kept] == [sorted(words)] * 2
    sign = {1: "positive", 0: "neutral", -1: "negative"}[polarity(words)]
    assert [record["sentiment"] for record in kept] == [sign] * 2


def test_checkpoints_are_chosen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right answers on the test clips by the first checkpoint, on the validation clips by the second."""
    labels = {
        name: words
        for part in ("test", "validation")
        for name, words in zip(*truth_of(folder, part), strict=True)  # type: ignore[arg-type]
    }

    def says(query: Query, step: int) -> str:
        right = ("test" in query.name) == (step == STEP)
        return f"The character's emotional state is {', '.join(labels[query.name]) if right else 'none'}."

    install(monkeypatch, says)
    assert synthetic(folder, tmp_path, "--steps", "all", "--validation") == 0
    found = json.loads((tmp_path / "report" / "scores.json").read_text())["systems"]["tiny"]["synthetic"]
    names = [f"step{step:08d}" for step in (STEP, 2 * STEP)]
    assert list(found["checkpoints"]) == names
    assert found["counts"] == {"reference": names[0], "strict": names[1]}
    truth, table = read_truth(SYNTHETIC, folder / "corpus"), small_table()
    for name, predicted in zip(names, (truth.labels, [("none",)] * len(truth.names)), strict=True):
        expected = score_labels(truth.labels, predicted, table, resamples=0).scores["f_score"].value
        assert found["checkpoints"][name]["strict"]["f_score"]["value"] == pytest.approx(expected)
    assert found["checkpoints"][names[0]]["strict"]["f_score"]["value"] == 1.0


def truth_of(folder: Path, part: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    truth = read_truth(SYNTHETIC, folder / "corpus", part)  # type: ignore[arg-type]
    return truth.names, truth.labels


def test_folders_of_the_reference(
    folder: Path, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hit rate and sentiment of what was said; a clip that cannot be answered is named and counts as wrong."""
    first, second = LAYOUTS["meld"].test
    said = {first: "The character's emotional state is surprised.", second: None}
    said |= dict(zip(LAYOUTS["cmumosi"].test, ("He is sad.", "The character's emotional state is happy."), strict=True))
    install(monkeypatch, lambda query, step: said[query.name])
    words = ["benchmark", str(folder / "run"), "--data-root", str(datasets), "--out", str(tmp_path), "--any-count"]
    assert main([*words, "--resamples", "0", "--no-paper"]) == 0
    shown = capsys.readouterr().out
    assert f"no answer about {second}, which cannot be asked" in shown
    found = json.loads((tmp_path / "report" / "scores.json").read_text())["systems"]["tiny"]
    assert set(found) == {"meld", "cmumosi"}
    name = f"step{2 * STEP:08d}"
    assert found["meld"]["checkpoints"][name]["strict"]["hit_rate"]["value"] == 0.5
    assert any(second in finding and "counted as wrong" in finding for finding in found["meld"]["findings"])
    records = {
        record["name"]: record for record in lines(tmp_path / "predictions" / "cmumosi" / "test" / f"{name}.jsonl")
    }
    negative, positive = LAYOUTS["cmumosi"].test
    assert records[negative]["sentiment"] == "neutral"  # prose without a list has no labels by rule
    assert records[positive]["sentiment"] == "positive"
    assert found["cmumosi"]["checkpoints"][name]["reference"]["accuracy"]["value"] == 1.0
    assert found["cmumosi"]["checkpoints"][name]["strict"]["accuracy"]["value"] == 0.5
    assert main(words[:-1]) == 2
    assert "expected the 2,610 clips" in capsys.readouterr().err


def test_labels_by_a_language_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The responses of the model that --language names, not the rule's, are what is scored."""
    write_bases(tmp_path / "models")
    shutil.copytree(goldens.MODELS / "tokenizer_tiny", tmp_path / "models" / "language", dirs_exist_ok=True)
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("affectgpt_jax.inference.extraction.MAX_NEW", 6)
    install(monkeypatch, lambda query, step: "He sounds happy.")
    out = tmp_path / "out"
    assert synthetic(folder, out, "--language", str(tmp_path / "models" / "language"), "--limit", "2") == 0
    records = lines(out / "first2" / "predictions" / "synthetic" / "test" / f"step{2 * STEP:08d}.jsonl")
    assert len(records) == 2
    (kept,) = (tmp_path / "cache" / "extraction").iterdir()
    responses = {json.loads(line)["response"].strip() for line in kept.read_text().splitlines() if line}
    assert {record["response"] for record in records} <= {" ".join(text.split("\n")) for text in responses}
    assert records[0]["answer"] == "He sounds happy."


@pytest.mark.parametrize("track", ["fg", "des"])
def test_a_submission(
    track: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for every name of the list, in its order; who has no answer is told, and the exit status says so."""
    names = [path.stem for path in sorted((folder / "corpus" / "video").iterdir())][::-1]
    table = tmp_path / "names.csv"
    table.write_text("name\n" + "\n".join([*names, "nowhere"]) + "\n")
    reason, labels = 'In the text, "so".', "The character's emotional state is happy, calm."

    def says(query: Query, step: int) -> str | None:
        if not query.features:
            return None
        return reason if "reasoning" in query.question else labels

    oracle = install(monkeypatch, says)
    out = tmp_path / "deep" / "out.csv"
    words = ["submission", str(folder / "run"), "--track", track, "--corpus", str(folder / "corpus")]
    words += ["--names", str(table), "--out", str(out), "--work", str(tmp_path / "work")]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "1 clips have no answer and an empty list: nowhere" in shown
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "openset", "reason"][: 2 if track == "fg" else 3]
    assert [row[0] for row in rows[1:]] == [*names, "nowhere"]
    assert rows[1:-1] == [[name, "[happy, calm]", reason][: len(rows[0])] for name in names]
    assert rows[-1] == ["nowhere", "[]", "", ""][: len(rows[0])]
    assert len(oracle.queries) == (len(names) + 1) * (1 if track == "fg" else 2)
    assert main(words) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 1
    assert len(oracle.queries) == (len(names) + 1) * (1 if track == "fg" else 2)
    table.write_text(f"name\n{names[0]}\n")
    assert main([*words, "--overwrite"]) == 2
    assert "was prepared from another list" in capsys.readouterr().err


def test_bad_input(folder: Path, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is one clear line."""
    for words, message in (
        (["--datasets", "melt"], "unknown dataset 'melt'"),
        (["--datasets", "meld"], "there is no folder of MELD"),
        (["--steps", "3"], f"no checkpoint of 3; there are {STEP}, {2 * STEP}"),
        (["--steps", "last"], "expected newest, all, or numbers"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--language", str(tmp_path / "nowhere")], "config.json is missing"),
    ):
        assert synthetic(folder, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
    assert main(["benchmark", str(folder), "--data-root", str(datasets), "--any-count"]) == 2
    assert "has no checkpoints" in capsys.readouterr().err
    assert main(["benchmark", str(folder / "run"), "--data-root", str(tmp_path)]) == 2
    assert "holds none of the data sets; expected folders such as mer2023-dataset-process" in capsys.readouterr().err
