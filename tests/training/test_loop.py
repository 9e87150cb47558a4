"""A whole run at tiny size: order, resuming, refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.evaluate import conditions, evaluate, make_queries, write_evaluation
from affectgpt_jax.inference.runs import Run, open_run, open_shards
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.training.loop import train
from affectgpt_jax.training.steps import Loop
from affectgpt_jax.unibench.lexicon import small_table
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from tests.inference.clip_run import random_tree
from tests.tiny_run import make_shards, make_tiny, run_parameters, tiny_config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class RunParts:
    """A run of random parameters."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.tokenizer = resolve(config)
        self.params = random_tree(parameter_shapes(AffectGPT(self.config.model)), seed=0)

    def answerer(self, **changes: object) -> Answerer:
        """What answers, with changes to the model's config."""
        config = self.config.model_copy(update={"model": self.config.model.model_copy(update=changes)})
        run = Run(Path("run"), config, self.tokenizer, AffectGPT(config.model), self.params, 0)
        return Answerer(run, batch=4, max_new=6)


@pytest.fixture(scope="module")
def finished(tiny: Path) -> Path:
    """A run of six steps without interruption."""
    result = train(tiny_config(tiny), tiny / "run")
    assert result.finished
    assert result.steps == 6
    return tiny / "run"


def test_the_run_folder(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "gradient_norm", "update_norm", "samples_per_s", "tokens_per_s", "mfu_lora", "data_wait"):
        assert all(np.isfinite(line[name]) for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    seen = [line["samples"] for line in lines]
    assert seen == sorted(set(seen))
    # Nothing is compiled after the first step.
    assert lines[-1]["compiled"] == lines[1]["compiled"]
    assert list((finished / "tensorboard").iterdir())


def test_two_packed_passes_compile_nothing_and_move_nothing_unasked(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever thread: batches, metrics, checkpoints and validation go between host and devices when told to.

    To look at a step's metrics asks nothing of the devices: it would wait for the step at work.
    """
    run, settle = Loop.run, Loop._settle

    def guarded(self: Loop, *args: Any) -> Any:
        jax.config.update("jax_transfer_guard", "disallow")
        try:
            return run(self, *args)
        finally:
            jax.config.update("jax_transfer_guard", "allow")

    def settled(self: Loop, *args: Any) -> Any:
        with jax.transfer_guard_host_to_device("disallow_explicit"):
            return settle(self, *args)

    monkeypatch.setattr(Loop, "run", guarded)
    monkeypatch.setattr(Loop, "_settle", settled)
    validation = {"every": 2, "answers": 0}
    config = tiny_config(tiny, train__output=str(tiny / "guarded"), train__checkpoint_every=2, validation=validation)
    assert train(config, tiny / "guarded").finished
    said = capsys.readouterr().err
    assert "2 steps a pass" in said  # of which these are three
    assert ", 0 of them after the first step" in said


@pytest.mark.slow
def test_the_saved_config_starts_the_same_run(finished: Path, tiny: Path) -> None:
    from affectgpt_jax.config import load_config

    result = train(load_config(finished / "config.yaml", [f"train.output={tiny / 'again'}"]), tiny / "again")
    assert result.finished
    first, second = run_parameters(finished), run_parameters(tiny / "again")
    assert all(np.array_equal(first[path], second[path]) for path in first)


def test_killed_and_started_again(finished: Path, tiny: Path) -> None:
    """SIGKILL after the first checkpoint; the second start ends with the parameters of the undisturbed run."""
    folder = tiny / "killed"
    save_config(tiny_config(tiny, train__output=str(folder)), tiny / "killed.yaml")
    command = [sys.executable, "-m", "affectgpt_jax.cli", "train", str(tiny / "killed.yaml")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([*command, "train.steps=100000"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "3" / "_CHECKPOINT_METADATA").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Keep only the checkpoint of step 3, as if the kill had come right after it.
    import shutil

    for other in (folder / "checkpoints").iterdir():
        if other.name != "3":
            shutil.rmtree(other)
    result = train(tiny_config(tiny, train__output=str(folder)), folder)
    assert result.steps == 6
    first, second = run_parameters(finished), run_parameters(folder)
    assert all(np.array_equal(first[path], second[path]) for path in first)


def test_sigterm_saves(tiny: Path) -> None:
    folder = tiny / "stopped"
    save_config(tiny_config(tiny, train__output=str(folder), train__steps=100000), tiny / "stopped.yaml")
    command = [sys.executable, "-m", "affectgpt_jax.cli", "train", str(tiny / "stopped.yaml")]
    process = subprocess.Popen(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped and saved at step" in errors
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert f"stopped and saved at step {max(steps)}" in errors


def test_frozen_parameters_do_not_move(finished: Path, tiny: Path) -> None:
    """What the mode does not use is not trained; the rest is."""
    start = train(tiny_config(tiny, train__output=str(tiny / "start"), train__steps=1), tiny / "start")
    assert start.finished
    before, after = run_parameters(tiny / "start"), run_parameters(finished)
    for path in before:
        same = np.array_equal(before[path], after[path])
        # This config never hides the voice, so nothing has taught its absent feature yet.
        still = ("fusion/image", "fusion/absent_frame", "fusion/absent_image", "fusion/absent_audio")
        assert same == path.startswith(still), path


def test_evaluation_and_answers_in_any_company(finished: Path, tiny: Path) -> None:
    run = open_run(finished)
    corpus = open_shards(run.config, "test")
    found = evaluate(run, corpus, small_table(), needs={"0000": ["face"], "0001": ["audio", "text"]})
    names = [condition.name for condition in conditions(("face", "audio"))]
    assert list(found.scores) == names
    assert all(0 <= found.scores[name]["hit_rate"]["value"] <= 1 for name in names)
    assert {need: entry["clips"] for need, entry in found.by_need.items()} == {"face": 1, "audio": 1, "text": 1}
    write_evaluation(found, corpus, tiny / "scores", {"table": "x"})
    assert len((tiny / "scores" / "answers.jsonl").read_text().splitlines()) == len(corpus)

    queries = make_queries(run, corpus, conditions(("face",))[0], "ovlabel")
    assert "face" not in queries[1].features  # planted: this sample has no face
    answerer = Answerer(run, batch=4, max_new=8)
    together = answerer(queries)
    assert [answer.name for answer in together] == [query.name for query in queries]
    assert all(isinstance(answer, Answer) for answer in together)
    assert together[1].absent == ("face",)
    alone = [answerer([query])[0] for query in queries]
    assert [answer.text for answer in alone] == [answer.text for answer in together]


def test_without_absent_features_the_prompt_speaks_of_what_is_there(tiny: Path) -> None:
    """A model that learned nothing for an absent face is asked as one that never had faces."""
    config = tiny_config(tiny, model__absent=False, data__hide={})
    found = RunParts(config)
    features = {"audio": np.random.default_rng(3).normal(size=(8, config.model.audio_width)).astype(np.float32)}
    query = Query("a", "line 0 happy", "How does the person feel?", features)
    words, nothing = query._replace(name="b", features={}), query._replace(name="c", features={}, subtitle="")
    answer, spoken, refused, _ = found.answerer()([query, words, nothing, query])
    assert isinstance(answer, Answer)
    assert "'audio_text'" in answer.note
    assert answer.absent == ("face",)
    # The same parameters in a model whose mode is that one.
    (expected,) = found.answerer(mode="audio_text")([query])
    assert isinstance(expected, Answer)
    assert expected.note == ""
    assert answer.text == expected.text
    assert isinstance(spoken, Answer)
    assert "'textonly'" in spoken.note
    assert isinstance(refused, Rejected)
    assert refused.reason == "has nothing to go by: no subtitle, and nothing of face, audio"
    # Without words in the mode nothing may remain; that is said, and the others are answered.
    (answered, refused) = found.answerer(mode="audioonly")([query, query._replace(features={})])
    assert isinstance(answered, Answer)
    assert isinstance(refused, Rejected)
    assert "nothing that mode 'audioonly' could go by" in refused.reason


@pytest.mark.slow
def test_another_split_of_rows_gives_the_same_steps(tiny: Path) -> None:
    """Two rounds of four rows and one round of eight are the same objective."""
    losses = []
    for rows, rounds in ((8, 1), (4, 2)):
        folder = tiny / f"rounds{rounds}"
        # Without dropout, whose masks are another round's own.
        shape = {"train__rows": rows, "train__accumulate": rounds, "train__dropout": False, "train__steps": 3}
        assert train(tiny_config(tiny, train__output=str(folder), **shape), folder).finished
        losses.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__shards": "/nowhere"}, "/nowhere"),
        ({"weights__tokenizer": ""}, "weights.tokenizer"),
        ({"model__vision_width": 13}, "width"),
        ({"model__absent": False, "data__hide": {}}, "1 samples lack face@8"),
        ({"train__trainable": ["^nothing"]}, r"no parameter matches '\^nothing'"),
        ({"mesh__data": 3}, "needs 3 devices, 1 are there"),
        ({"data__row_targets": 5}, "target tokens, a row holds 5"),
        ({"data__split": "validtion"}, "validtion"),
    ],
)
def test_refusals(tiny: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config(tiny, **{"train__output": str(tiny / "refused"), **changes}), tiny / "refused")


def test_other_model_or_other_shards_are_refused(finished: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not fit this model"):
        train(tiny_config(tiny, model__decoder__mlp_width=48), finished)
    make_tiny(tmp_path, absent=frozenset())
    with pytest.raises(UserError, match="was trained on other shards"):
        train(tiny_config(tiny, data__shards=str(tmp_path / "shards")), finished)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 77; found: "):
        open_run(finished, 77)


def test_modality_dropout_hides_whole_modalities(tiny: Path) -> None:
    from affectgpt_jax.data.pipeline import RowLoader
    from affectgpt_jax.data.plan import Ask, Row
    from affectgpt_jax.data.tokenizer import open_tokenizer
    from affectgpt_jax.training.data import make_data, open_training_shards

    config = tiny_config(tiny)
    corpus = open_training_shards(config)
    data = make_data(config, open_tokenizer(tiny / "tokenizer"), corpus, lambda _: None)
    ask = data.tables[0].ask
    hide = {"face": 0.5, "text": 0.5}
    load = RowLoader(data.tables, data.samples, {"face": "face@8"}, corpus.features, hide, seed=1)
    seen = [load([Row((Ask(2, 0, turn, 1.0),))])[0][0] for turn in range(40)]
    faces = sum("face" in sample.features for sample in seen)
    text = corpus.texts([2])[0]
    examples = {}
    for hidden in (False, True):
        examples[hidden] = ask(text, 0, hide_text=hidden)
        assert not isinstance(examples[hidden], Rejected)
    assert len(examples[True].tokens) < len(examples[False].tokens)
    texts = 0
    for sample in seen:
        hidden = len(sample.example.tokens) == len(examples[True].tokens)
        texts += not hidden
        for ours, asked in zip(sample.example, examples[hidden], strict=True):
            np.testing.assert_array_equal(ours, asked)
    assert 8 < faces < 32
    assert 8 < texts < 32
    again = [load([Row((Ask(2, 0, turn, 1.0),))])[0][0] for turn in range(40)]
    assert [set(a.features) for a in seen] == [set(b.features) for b in again]


def test_a_mixture_is_trained_on_and_belongs_to_the_run(tiny: Path, tmp_path: Path) -> None:
    make_shards(tmp_path / "more", {"train": 9})
    folder = tmp_path / "run"

    def config(weight: float, steps: int) -> RunConfig:
        more = [{"shards": str(tmp_path / "more"), "weight": weight}]
        return tiny_config(tiny, data__mixture=more, train__output=str(folder), train__steps=steps)

    assert train(config(0.5, 2), folder).finished
    with pytest.raises(UserError, match="was trained on other shards"):
        train(config(1.0, 3), folder)
    assert train(config(0.5, 3), folder).finished
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    make_shards(tmp_path / "other", {"train": 9}, encoder="another")
    wrong = tiny_config(tiny, data__mixture=[{"shards": str(tmp_path / "other")}])
    with pytest.raises(UserError, match=r"was made with encoder='another', that of .* with 'random'"):
        train(wrong, tmp_path / "wrong")
    with pytest.raises(UserError, match="mixture needs prepared features"):
        tiny_config(tiny, data__mixture=[{"shards": str(tmp_path / "more")}], data__source="media")
