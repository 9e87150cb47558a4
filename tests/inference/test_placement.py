"""How an opened model is held: int8 for any run, whatever it was trained with."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.loading import parse_mesh
from affectgpt_jax.config.networks import LINEARS
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.label_scores import LabelScorer, Scores
from affectgpt_jax.inference.runs import (
    Run,
    Trained,
    fingerprint,
    make_placement,
    open_base,
    open_run,
    open_shards,
    open_trained,
    write_run,
)
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.quantisation import quantise
from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.initial import base_shapes, parameter_shapes, resolve
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import nest, paths, write_tree
from affectgpt_jax.weights.trainable import join
from tests.inference.clip_run import random_tree
from tests.tiny_run import make_shards, make_tokenizer, run_parameters, tiny_config

INT8 = make_placement(weights="int8", cache="int8")
KERNELS = {f"decoder/layers/{linear}/kernel" for linear in LINEARS}
ADAPTERS = ["^fusion/", "/lora_[ab]$"]
MAX_NEW = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of random numbers: all trained, over a base that is partly trained, and over one that was held as int8."""
    folder = tmp_path_factory.mktemp("runs")
    make_tokenizer(folder / "tokenizer")
    make_shards(folder / "shards", {"test": 6})
    plain, _ = resolve(tiny_config(folder))
    named = plain.model_copy(update={"weights": plain.weights.model_copy(update={"language": "here"})})
    base = random_tree(base_shapes(named, AffectGPT(plain.model)), seed=0)
    write_folder(folder / "language", plain.model.decoder.to_hf(), dict(write_tree(DECODER, base)))
    language = str(folder / "language")
    trainable = [*ADAPTERS, "(q|down)_proj/kernel$"]
    save(folder / "whole", tiny_config(folder))
    save(folder / "based", tiny_config(folder, weights__language=language, train__trainable=trainable))
    held = {"weights__language": language, "train__trainable": ADAPTERS, "model__decoder__base": "int8"}
    save(folder / "held", tiny_config(folder, **held))
    return folder


def save(folder: Path, config: RunConfig) -> None:
    """A run folder whose trained parameters are random."""
    config, tokenizer = resolve(config)
    learned = random_tree(parameter_shapes(AffectGPT(config.model)), seed=1)
    stored = {path: x for path, x in paths(learned).items() if not config.weights.language or trained(config, path)}
    write_run(Trained(config, tokenizer, jax.tree.map(jnp.asarray, nest(stored)), 7, str(folder)), folder)


def trained(config: RunConfig, path: str) -> bool:
    return path.startswith("fusion/") or any(re.search(pattern, path) for pattern in config.train.trainable)


def logs(run: Run) -> np.ndarray:
    queries = make_queries(run, open_shards(run.config, "test"), PLAIN, "ovlabel")
    found = LabelScorer(run, ("happy", "sad", "angry", "calm"), batch=6, max_new=MAX_NEW)(queries)
    return np.stack([one.logs for one in found if isinstance(one, Scores)])


@pytest.mark.parametrize("name", ["whole", "based"])
def test_kernels_of_any_run_are_rounded_and_nothing_else(folder: Path, name: str) -> None:
    plain, held = run_parameters(folder / name), run_parameters(folder / name, place=INT8)
    assert set(held) - set(plain) == {f"{path}_scale" for path in KERNELS}
    for path, leaf in plain.items():
        if path in KERNELS:
            values, scale = jax.jit(quantise)(leaf)
            assert held[path].dtype == jnp.int8
            np.testing.assert_array_equal(held[path], values)
            np.testing.assert_array_equal(held[f"{path}_scale"], scale)
        else:
            np.testing.assert_array_equal(held[path], leaf)


def test_a_run_held_as_int8_opens_in_its_own_type(folder: Path) -> None:
    floats = make_placement(weights="float")
    own, whole = run_parameters(folder / "held"), run_parameters(folder / "held", place=floats)
    assert open_trained(folder / "held", place=floats).config.model.decoder.base == "float"
    for path in KERNELS:
        assert own[path].dtype == jnp.int8
        values, scale = jax.jit(quantise)(whole[path])
        np.testing.assert_array_equal(own[path], values)
        np.testing.assert_array_equal(own[f"{path}_scale"], scale)


def test_one_kernel_at_a_time_is_a_float(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of the checkpoint is read alone, and is gone before the next one is read."""
    config, _ = resolve(tiny_config(folder))
    shapes = {paths(parameter_shapes(AffectGPT(config.model)))[path].shape for path in KERNELS}
    restore = ocp.PyTreeCheckpointer.restore
    read: list[set[str]] = []

    others = jax.live_arrays()  # held, so that none goes meanwhile

    def kernels() -> int:
        """How many new arrays there are that may be kernels of layers."""
        known = set(map(id, others))
        alike = (x for x in jax.live_arrays() if x.dtype == jnp.float32 and x.shape in shapes)
        return sum(id(x) not in known for x in alike)

    def watched(self: ocp.PyTreeCheckpointer, place: Path, args: Any) -> Any:
        assert kernels() == 0
        read.append(KERNELS & paths(args.item).keys())
        found = restore(self, place, args=args)
        assert kernels() == len(read[-1])
        return found

    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", watched)
    open_trained(folder / "whole", place=INT8)
    assert max(map(len, read)) == 1
    assert sorted(path for part in read for path in part) == sorted(KERNELS)


def test_answers_depend_on_it_a_little_and_say_so(folder: Path) -> None:
    """Scores of a random model move by far less than they differ; identity changes with weights and with cache."""
    plain, held = logs(open_run(folder / "whole")), logs(open_run(folder / "whole", place=INT8))
    moved = np.abs(held - plain)
    assert 0 < moved.max() < 0.25 * np.std(plain)
    places = [make_placement(), make_placement(weights="int8"), make_placement(cache="int8"), INT8]
    assert len({fingerprint(open_trained(folder / "based", place=place)) for place in places}) == 4
    own = fingerprint(open_trained(folder / "based"))
    assert own == fingerprint(open_trained(folder / "based", place=make_placement("data=1", "float", "float")))


def test_resumed_files_know_how_the_model_was_held(folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "answers.jsonl"
    words = [
        "predict",
        str(folder / "based"),
        str(folder / "shards"),
        "--batch",
        "4",
        "--max-new",
        "8",
        "--output",
        str(out),
    ]
    assert main(words) == 0
    assert main([*words, "--weights", "int8"]) == 2
    assert "weights None instead of 'int8'" in capsys.readouterr().err
    held = ["--weights", "int8", "--cache", "int8"]
    assert main([*words, *held, "--overwrite"]) == 0
    assert main(words) == 2
    assert main([*words, *held, "--mesh", "data=1"]) == 0  # nothing is left to do
    evaluated = ["evaluate", str(folder / "based"), "--plain", "--output", str(tmp_path), *held]
    assert main(evaluated) == 0
    facts = json.loads((tmp_path / "scores.json").read_text())
    assert (facts["weights"], facts["cache"]) == ("int8", "int8")
    assert all(json.loads(line)["limits"] for line in (tmp_path / "answers.jsonl").read_text().splitlines())


def test_meshes_in_words() -> None:
    assert parse_mesh("data=4,tensor=2") == MeshConfig(data=4, tensor=2)
    assert parse_mesh("tensor=2, fsdp=2") == MeshConfig(data=-1, fsdp=2, tensor=2)
    for text, message in (
        ("tenser=2", "unknown key mesh.tenser; nearest valid key: mesh.tensor"),
        ("data", "expected key=value"),
        ("data=two", "mesh.data: input should be a valid integer"),
        ("data=0", "sizes are positive"),
    ):
        with pytest.raises(UserError, match=message):
            parse_mesh(text)
    with pytest.raises(UserError, match=r"mesh\.data=2.* needs 2 devices, 1 are there"):
        make_placement("data=2")


def test_a_base_is_read_once_for_all_checkpoints(folder: Path) -> None:
    """What is trained is not read from the base, too."""
    found = open_trained(folder / "based", place=INT8)
    base = paths(open_base(found))
    assert {"decoder/layers/q_proj/kernel", "decoder/layers/down_proj/kernel"}.isdisjoint(base)
    assert set(paths(join(found.params, nest(base)))) == set(paths(parameter_shapes(AffectGPT(found.config.model))))
