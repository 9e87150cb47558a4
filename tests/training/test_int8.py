"""A run over a base held as int8: it trains, answers and leaves as one over the base itself would, nearly."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.export import export
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.evaluate import conditions, make_queries
from affectgpt_jax.inference.runs import open_run, open_shards, open_trained
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.training import loop
from affectgpt_jax.training.data import make_batches, make_data, open_training_shards
from affectgpt_jax.training.step import gradients
from affectgpt_jax.weights.files import write_folder
from affectgpt_jax.weights.initial import base_shapes, initial_parameters, parameter_shapes, resolve
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import nest, paths, write_tree
from affectgpt_jax.weights.trainable import split
from tests.inference.clip_run import random_tree
from tests.tiny_run import make_tiny, run_parameters, tiny_config

pytestmark = pytest.mark.slow


def config(folder: Path, **changes: Any) -> RunConfig:
    common = {
        "weights__language": str(folder / "language"),
        "train__trainable": ["^fusion/", "/lora_[ab]$"],
        "train__accumulate": 1,
        "train__dropout": False,
        "train__steps": 2,
        "model__decoder__base": "int8",
        "model__decoder__lora__targets": ["q_proj", "down_proj"],
        # So many layers are a loop, which compiles once.
        "model__decoder__layers": FEW + 1,
    }
    return tiny_config(folder, **common | changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus and a base of random numbers."""
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    sizes, _ = resolve(tiny_config(folder, model__decoder__layers=FEW + 1))
    named = sizes.model_copy(update={"weights": sizes.weights.model_copy(update={"language": "here"})})
    base = random_tree(base_shapes(named, AffectGPT(sizes.model)), seed=0)
    write_folder(folder / "language", sizes.model.decoder.to_hf(), dict(write_tree(DECODER, base)))
    return folder


@pytest.mark.slow
def test_it_trains_answers_and_leaves_without_int8(tiny: Path) -> None:
    assert loop.train(config(tiny, model__decoder__attention="xla"), tiny / "run").finished
    trained = open_trained(tiny / "run")
    for path, leaf in paths(trained.params).items():
        assert path.startswith("fusion/") or "/lora_" in path
        assert leaf.dtype == jnp.float32
    checkpoints = Checkpoints(tiny / "run" / "checkpoints")
    assert not checkpoints.holds("untrained")
    checkpoints.close()

    run = open_run(tiny / "run")
    assert run.config.model.decoder.attention == "auto"  # it may be opened on another device
    held = {x.dtype.name for path, x in run_parameters(tiny / "run").items() if path.endswith("_proj/kernel")}
    assert held == {"int8"}
    queries = make_queries(run, open_shards(run.config, "test"), conditions(())[0], "ovlabel")
    answers = Answerer(run, batch=4, max_new=4)(queries[:4])
    assert all(isinstance(answer, Answer) and answer.tokens for answer in answers)

    export(tiny / "run", tiny / "merged", "merged", parity=False)
    left = load_config(tiny / "merged" / "affectgpt.yaml").model.decoder
    assert (left.base, left.attention) == ("float", "auto")


def test_loss_and_gradients_are_those_of_the_rounded_base_and_near_those_of_the_base(tiny: Path) -> None:
    """The float model with the kernels rounded agrees to float32's rounding; with the kernels themselves, nearly."""
    rounded, tokenizer = resolve(config(tiny))
    whole, _ = resolve(config(tiny, model__decoder__base="float"))
    batch = first_batch(rounded, tokenizer)
    params, base = (
        initial_parameters(
            c, AffectGPT(c.model), parameter_shardings(make_mesh(c.mesh), parameter_shapes(AffectGPT(c.model)))
        )
        for c in (rounded, whole)
    )
    trained, frozen = split(rounded.model, params, ["/lora_[ab]$"])
    trained = jax.tree.map(lambda x: x + 0.05, trained)  # adapters with effect

    held = paths(frozen)
    scales = {path.removesuffix("_scale"): x for path, x in held.items() if path.endswith("kernel_scale")}
    back = {path: held[path] * scale[:, None] for path, scale in scales.items()}
    rest = {path: x for path, x in held.items() if not path.endswith("kernel_scale")}

    compute = jax.jit(lambda *x: gradients(AffectGPT(whole.model), *x, None))
    _, plain_frozen = split(whole.model, base, ["/lora_[ab]$"])
    near, plain = (compute(trained, kept, batch) for kept in (nest(rest | back), plain_frozen))
    found = jax.jit(lambda *x: gradients(AffectGPT(rounded.model), *x, None))(trained, frozen, batch)
    np.testing.assert_allclose(found[1].loss, near[1].loss, rtol=1e-5)
    np.testing.assert_allclose(found[1].loss, plain[1].loss, rtol=2e-3)
    for path, x in paths(found[0]).items():
        y, z = paths(near[0])[path], paths(plain[0])[path]
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max(), err_msg=path)
        assert np.linalg.norm(x - z) < 0.05 * np.linalg.norm(z), path


def first_batch(config: RunConfig, tokenizer: Tokenizer) -> Batch:
    """The first rows that a run reads."""
    data = make_data(config, tokenizer, open_training_shards(config), lambda _: None)
    host = next(make_batches(config, tokenizer, data, 0))
    return jax.tree.map(lambda x: jnp.asarray(x[0]), host)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__trainable": ["^fusion/", "^decoder/"]}, r"'\^decoder/', which matches decoder/layers/q_proj/kernel"),
        ({"train__trainable": ["down_proj"]}, r"matches decoder/layers/down_proj/kernel.*model.decoder.base=float"),
        ({"weights__language": None}, "base=int8 quantises a base as it is read, and none is named; set weights.lang"),
    ],
)
def test_refusals(tmp_path: Path, tiny: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loop.train(config(tiny, **changes), tmp_path)


def test_norms_and_biases_may_be_trained(tiny: Path) -> None:
    """A pattern that spares the kernels is no mistake."""
    found, _ = resolve(config(tiny, train__trainable=["_norm/scale$", "_proj/bias$"]))
    trained, frozen = split(found.model, parameter_shapes(AffectGPT(found.model)), found.train.trainable)
    assert len(paths(trained)) == 3 + 3
    assert {x.dtype.name for x in jax.tree.leaves(trained)} == {"float32"}
    assert {x.dtype.name for path, x in paths(frozen).items() if path.endswith("_proj/kernel")} == {"int8"}
