"""A run opened over eight devices answers as on one."""

from pathlib import Path

import jax
import pytest

from affectgpt_jax import AffectGPT, Prediction, UserError
from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.evaluate import PLAIN, make_queries
from affectgpt_jax.inference.runs import Placement, open_run, open_shards, parse_mesh
from affectgpt_jax.sharding import make_mesh
from affectgpt_jax.weights.table import paths
from tests.inference.test_placement import MAX_NEW, save
from tests.tiny_run import make_shards, make_tokenizer, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_tokenizer(folder / "tokenizer")
    make_shards(folder / "shards", {"test": 6}, frozenset({1}))
    save(folder / "run", tiny_config(folder))
    return folder


def answers(folder: Path, place: Placement) -> list[tuple[str, int]]:
    run = open_run(folder / "run", place=place)
    found = Answerer(run, batch=4, max_new=MAX_NEW)(
        make_queries(run, open_shards(run.config, "test"), PLAIN, "ovlabel")
    )
    return [(one.text, one.tokens) for one in found if isinstance(one, Answer)]


@pytest.mark.parametrize(("mesh", "how"), [("data=4,tensor=2", None), ("data=2,fsdp=2,tensor=2", "int8")])
def test_answers_are_those_of_one_device(folder: Path, mesh: str, how: str | None) -> None:
    """Data- and tensor-parallel, in float32 and as int8: the same tokens."""
    one = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    expected = answers(folder, Placement(one, how, how))  # type: ignore[arg-type]
    assert len({text for text, _ in expected}) > 1
    assert answers(folder, Placement(make_mesh(parse_mesh(mesh)), how, how)) == expected  # type: ignore[arg-type]


def test_kernels_lie_over_the_mesh_and_the_model_answers(folder: Path) -> None:
    model = AffectGPT.load(folder / "run", mesh="data=4,tensor=2", weights="int8")
    kernel, scale = (paths(model.run.params)[f"decoder/layers/up_proj/{key}"] for key in ("kernel", "kernel_scale"))
    assert kernel.dtype == "int8"
    assert kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // 2
    assert scale.sharding.shard_shape(scale.shape)[-1] == scale.shape[-1] // 2
    found = list(model.predict_many(folder / "shards", max_new=MAX_NEW, batch=4))
    assert all(isinstance(one, Prediction) for one in found)
    with pytest.raises(UserError, match=r"mesh\.tensor=4 does not divide model\.decoder\.kv_heads=2; use 2"):
        AffectGPT.load(folder / "run", mesh="data=2,tensor=4")
