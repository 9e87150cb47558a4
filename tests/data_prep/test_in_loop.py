"""From clips to a loss on two ways: through feature shards, and with the encoders in the loop."""

import json
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import open_shards
from affectgpt_jax.training.loop import train
from data_prep.in_loop import media_in_loop
from data_prep.synth import SplitCounts, write_corpus
from tests.tiny_run import make_tokenizer, tiny_config
from tests.tiny_towers import write_towers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Six real clips, one without a face, prepared by the command."""
    folder = tmp_path_factory.mktemp("in_loop")
    write_corpus(folder / "corpus", SplitCounts(6, 1, 1), 0, workers=1)
    name = sorted(path.name for path in (folder / "corpus" / "openface_face").iterdir() if "train" in path.name)[2]
    (folder / "corpus" / "openface_face" / name / f"{name}.npy").unlink()
    write_towers(folder)
    make_tokenizer(folder / "tokenizer")
    config = tiny_config(
        folder,
        weights__vision=str(folder / "vision"),
        weights__audio=str(folder / "audio"),
        prepare__corpus=str(folder / "corpus"),
        data__max_length=510,
        data__row_length=512,
        data__row_targets=384,
        data__hide={},
        train__steps=1,
        train__dropout=False,
        train__accumulate=1,
    )
    save_config(config, folder / "run.yaml")
    assert main(["prepare", str(folder / "run.yaml")]) == 0
    return config


def test_features_and_loss_are_the_same(prepared: RunConfig, tmp_path: Path) -> None:
    corpus = open_shards(prepared, "train")
    media = media_in_loop(prepared)
    losses = {}
    for source, given in (("features", None), ("media", media)):
        folder = tmp_path / source
        assert train(prepared, folder, media=given).finished
        losses[source] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["media"] == pytest.approx(losses["features"], abs=1e-5)

    raw, present = media.read("face@8", range(len(corpus)))
    stored, stored_present = corpus.features("face@8", range(len(corpus)))
    assert present.tolist() == stored_present.tolist()
    assert sorted(present.tolist())[0] is False  # the planted clip without a face
    assert sum(present) == len(corpus) - 1
    assert raw.shape[1:] == media.shapes["face"]
    assert np.isfinite(stored).all()


def test_a_corpus_without_a_sample_is_refused(prepared: RunConfig, tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", SplitCounts(1, 1, 1), 7, workers=1)
    other = prepared.model_copy(
        update={"prepare": prepared.prepare.model_copy(update={"corpus": str(tmp_path / "other")})}
    )
    with pytest.raises(UserError, match="lacks 6 samples"):
        media_in_loop(other)


def test_faces_are_detected_and_worker_processes_can_read(prepared: RunConfig) -> None:
    detecting = prepared.model_copy(
        update={"prepare": prepared.prepare.model_copy(update={"faces": "files_or_detect", "detector": ""})}
    )
    read = media_in_loop(detecting).read
    _, stored = media_in_loop(prepared).read("face@8", range(6))
    raw, present = cloudpickle.loads(cloudpickle.dumps(read))("face@8", range(6))  # as Grain hands it to workers
    assert present.sum() >= stored.sum()
    np.testing.assert_array_equal(raw, read("face@8", range(6))[0])
