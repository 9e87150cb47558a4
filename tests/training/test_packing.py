"""Packed rows learn what single samples would: the same loss and the same gradients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.training.data import make_batches, make_data, open_training_shards
from affectgpt_jax.training.step import gradients
from affectgpt_jax.weights.initial import initial_parameters, parameter_shapes, resolve
from affectgpt_jax.weights.table import paths
from tests.tiny_run import make_tiny, tiny_config


@pytest.mark.parametrize("weighting", ["token", pytest.param("sample", marks=pytest.mark.slow)])
def test_loss_and_gradients_of_packed_rows_are_those_of_single_samples(tmp_path: Path, weighting: str) -> None:
    make_tiny(tmp_path)
    found = []
    for samples, length, rows in ((4, 512, 8), (1, 512, 23)):
        config, tokenizer = resolve(
            tiny_config(
                tmp_path, data__row_samples=samples, data__row_length=length, data__row_targets=256,
                data__weighting=weighting, train__rows=rows, train__accumulate=1,
            )
        )  # fmt: skip
        data = make_data(config, tokenizer, open_training_shards(config), lambda _: None)
        assert data.plan.epoch_steps(0) == 1  # the whole corpus in one step, either way
        batch: Batch = jax.tree.map(lambda x: jnp.asarray(x[0]), next(make_batches(config, tokenizer, data, 0)))
        assert int(batch.segment_ids.max()) == samples
        model = AffectGPT(config.model)
        params = initial_parameters(config, model, parameter_shardings(make_mesh(config.mesh), parameter_shapes(model)))
        grads, sums = jax.jit(lambda params, batch, model=model: gradients(model, params, {}, batch, None))(
            params, batch
        )
        found.append((float(sums.loss / sums.weight), jax.tree.map(lambda g, w=sums.weight: g / w, grads)))
    (packed, packed_grads), (single, single_grads) = found
    assert packed == pytest.approx(single, abs=1e-5)
    for path, one in paths(packed_grads).items():
        other = paths(single_grads)[path]
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=path)
