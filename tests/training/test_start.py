"""`train.init_from`: a run that goes on from what another has learned, on other clips."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config import load_config, save_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.export import export
from affectgpt_jax.inference.runs import open_trained, write_run
from affectgpt_jax.training.loop import train
from affectgpt_jax.weights.table import paths
from tests.exchange.runs import golden_run, write_bases
from tests.inference.clip_run import make_clip_run
from tests.parity import goldens
from tests.tiny_run import make_tiny, run_parameters, tiny_config

FACES = goldens.find(mode="multiface_audio_face_text")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and a run of three steps that learned the whole language model."""
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    train(tiny_config(folder, train__steps=3), folder / "first")
    return folder


def test_the_first_step_starts_where_the_other_ended(tiny: Path) -> None:
    """With a vanishing learning rate the parameters stay those of the source, trained or not, also after a stop."""
    changes = {"train__optimizer__peak": 1e-30, "train__optimizer__warmup_start": 0, "train__optimizer__end": 0}
    config = tiny_config(
        tiny, train__init_from=str(tiny / "first"), train__trainable=["^fusion/"], train__steps=4,
        train__checkpoint_every=2, train__optimizer__weight_decay=0, **changes,
    )  # fmt: skip
    half = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    train(half, tiny / "second")
    shutil.move(tiny / "first", tiny / "moved")  # the source is not needed again
    try:
        assert train(config, tiny / "second").steps == 4
    finally:
        shutil.move(tiny / "moved", tiny / "first")
    expected, found = run_parameters(tiny / "first"), run_parameters(tiny / "second")
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    fresh = tiny_config(tiny, train__seed=42, train__steps=2)
    train(fresh, tiny / "fresh")
    assert any((leaf != expected[path]).any() for path, leaf in run_parameters(tiny / "fresh").items())


@pytest.mark.slow
def test_it_learns_on(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is new in the model is made from the seed and told; the steps count from nothing."""
    config = tiny_config(tiny, train__init_from=str(tiny / "first"), train__steps=2, model__decoder__lora__rank=3)
    with pytest.raises(UserError, match=r"decoder/.*lora_a.*: \(.*\) in .*first, expected \(.*\)"):
        train(config, tiny / "other")
    shallow = tiny_config(tiny, model__absent=False, data__hide={}, train__steps=1, prepare__missing="drop")
    source = tiny / "present"
    save_config(shallow, source / "config.yaml")
    write_run(_without_absent(tiny), source)
    assert train(tiny_config(tiny, train__init_from=str(source), train__steps=2), tiny / "more").finished
    said = capsys.readouterr().err
    assert f"starting from {source}, step 3; made anew: fusion/absent_" in said
    assert open_trained(tiny / "more").step == 2


def _without_absent(tiny: Path):  # type: ignore[no-untyped-def]
    """The first run's parameters in a model that knows no absent modality."""
    trained = open_trained(tiny / "first")
    model = trained.config.model.model_copy(update={"absent": False})
    params = {
        **trained.params,
        "fusion": {name: leaf for name, leaf in trained.params["fusion"].items() if not name.startswith("absent_")},
    }
    return trained._replace(config=trained.config.model_copy(update={"model": model}), params=params)


def test_fine_tuning_on_a_users_clips_is_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a run and a table of clips to a new run: prepared, started from, trained, answered."""
    folder = make_clip_run(tmp_path / "theirs").parent
    videos = sorted((folder / "corpus" / "video").iterdir())
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "video", "subtitle", "labels", "description", "split"))
        for i, video in enumerate(videos):
            rows.writerow(
                (f"clip {i} \u597d", video, "So.", "happy, calm", "In the text, so.", "train" if i else "test")
            )
    run = tmp_path / "mine"
    words = ["train", str(folder / "run" / "config.yaml"), f"train.init_from={folder / 'run'}", f"train.output={run}"]
    words += [f"prepare.corpus={tmp_path / 'mine.csv'}", f"data.shards={tmp_path / 'shards'}", "train.steps=1"]
    assert main([*words, "train.rows=2", "train.accumulate=1", "data.row_targets=254"]) == 0
    assert f"starting from {folder / 'run'}" in capsys.readouterr().err
    assert open_trained(run).step == 1
    assert main(["predict", str(run), str(videos[0]), "--subtitle", "So.", "--max-new", "4"]) == 0


@pytest.mark.parametrize("kind", ["adapter", "merged", "pth"])
def test_from_exports_and_checkpoints(kind: str, tmp_path: Path) -> None:
    """What left comes back as the start of another run; adapters merged away are made anew."""
    if kind == "pth":
        pytest.importorskip("torch")
    write_bases(tmp_path)
    trained = golden_run(FACES, tmp_path)
    write_run(trained, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", kind, parity=False)  # type: ignore[arg-type]
    from affectgpt_jax.training.start import read_start

    source = next((tmp_path / "out").glob("*.pth")) if kind == "pth" else tmp_path / "out"
    base = source if kind == "merged" else tmp_path / "language"
    weights = trained.config.weights.model_copy(update={"language": str(base)})
    start_at = trained.config.train.model_copy(update={"init_from": str(source)})
    config = trained.config.model_copy(update={"weights": weights, "train": start_at})
    start = read_start(config, trained.tokenizer)
    expected = paths(trained.params)
    assert {path.startswith("fusion/") or "/lora_" in path for path in start.given} == {True}
    assert set(start.given) | set(start.fresh) == set(expected)
    assert all("/lora_" in path for path in start.fresh) == (kind == "merged") or not start.fresh
    for path, leaf in start.given.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[path]), err_msg=path)


def test_what_does_not_fit(tiny: Path, tmp_path: Path) -> None:
    """Each mistake is one clear error, before the first step."""
    for changes, message in (
        ({"train__init_from": str(tmp_path / "nowhere")}, "there is no such run folder, export or .pth file"),
        ({"train__init_from": str(tiny / "first"), "model__video": "mean"}, "not in this run's model"),
        (
            {"train__init_from": str(tiny / "first"), "model__decoder__lora__alpha": 3},
            r"model\.decoder\.lora\.alpha: 32\.0 in .*first, here 3\.0",
        ),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_config(tiny, train__steps=1, **changes), tmp_path / "run")
    write_bases(tmp_path)
    write_run(golden_run(FACES, tmp_path), tmp_path / "converted")
    config = load_config(tmp_path / "converted" / "config.yaml")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "language", other)
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(raw)
    from affectgpt_jax.training.start import read_start
    from affectgpt_jax.weights.initial import resolve

    changed = config.model_copy(
        update={
            "weights": config.weights.model_copy(update={"language": str(other)}),
            "train": config.train.model_copy(update={"init_from": str(tmp_path / "converted")}),
        }
    )
    with pytest.raises(UserError, match=r"rests on the language model .*language, this run on .*other; set weights"):
        read_start(*resolve(changed))


def test_converted_weights_are_no_training(tiny: Path, tmp_path: Path) -> None:
    write_run(open_trained(tiny / "first"), tmp_path / "converted")
    with pytest.raises(
        UserError, match=r"holds converted weights and no training; start from them with train\.init_from"
    ):
        train(load_config(tmp_path / "converted" / "config.yaml"), tmp_path / "converted")


@pytest.mark.slow
def test_another_corpus_on_request(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Resuming on other shards is refused, unless told."""
    shutil.copytree(tiny / "first", tmp_path / "run")
    other = make_tiny(tmp_path / "else", frozenset())
    config = tiny_config(tiny, data__shards=str(other / "shards"), train__steps=4)
    with pytest.raises(UserError, match=r"was trained on other shards .* train\.other_corpus=true"):
        train(config, tmp_path / "run")
    told = config.model_copy(update={"train": config.train.model_copy(update={"other_corpus": True})})
    assert train(told, tmp_path / "run").steps == 4
    assert "going on with these" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4
