"""Scores of labels on a mesh of eight devices: those of one."""

from pathlib import Path

import jax
import numpy as np

from affectgpt_jax.config.run import MeshConfig
from affectgpt_jax.inference.label_scores import LabelScorer
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.weights.initial import parameter_shapes
from tests.inference.test_label_scores import MAX_NEW, WORDS, logs, queries, tiny
from tests.tiny_run import make_tokenizer


def test_scores_are_those_of_one_device(tmp_path: Path) -> None:
    """Rows over two axes of the mesh, heads over the third, parameters over two; three samples of four rows."""
    make_tokenizer(tmp_path / "tokenizer")
    run, asked = tiny(tmp_path), queries(3)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(run.params, parameter_shardings(mesh, parameter_shapes(run.model)))
    found = logs(LabelScorer(run._replace(params=params), WORDS, batch=3, max_new=MAX_NEW), asked)
    expected = logs(LabelScorer(run, WORDS, batch=3, max_new=MAX_NEW), asked)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
