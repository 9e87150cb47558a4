"""The training step and the towers in bfloat16 against float32 at the highest precision, on a GPU."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.sharding import put_batch
from affectgpt_jax.training.data import make_batches, make_data, open_training_shards
from affectgpt_jax.training.setup import set_up
from affectgpt_jax.weights.initial import resolve
from affectgpt_jax.weights.table import paths
from tests.tiny_run import make_shards, make_tokenizer, tiny_config
from tests.tiny_towers import write_towers

pytestmark = pytest.mark.gpu

HALF = 2.0**-8
"""Rounding of bfloat16, relative."""
DECODER = {
    "width": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "mlp_width": 512, "lora": {"rank": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    make_tokenizer(folder / "tokenizer")
    make_shards(folder / "shards", {"train": 24, "test": 4})
    return folder


def first_step(tiny: Path, **decoder: Any) -> tuple[float, float, dict[str, np.ndarray]]:
    """Loss, gradient norm, and the change of each parameter, which at a step's length of one is the gradient's sign."""
    rows = {"row_length": 512, "row_samples": 4, "row_targets": 192}
    changes = {f"data__{key}": value for key, value in rows.items()}
    changes |= {"model__decoder": DECODER | decoder, "train__dropout": False, "train__optimizer__warmup_steps": 0}
    config, tokenizer = resolve(tiny_config(tiny, **changes))
    setup = set_up(config)
    before = {path: np.asarray(x) for path, x in paths(setup.state.params).items()}
    data = make_data(config, tokenizer, open_training_shards(config), lambda _: None)
    host = next(make_batches(config, tokenizer, data, 0, (0, 1), None))
    state, metrics = setup.step(setup.state, setup.frozen, put_batch(setup.mesh, host))
    moved = {path: np.asarray(x) - before[path] for path, x in paths(state.params).items()}
    return float(metrics.loss), float(metrics.gradient_norm), moved


@pytest.mark.parametrize("attention", ["xla", "auto"])
def test_a_step(tiny: Path, attention: str) -> None:
    """The loss within two roundings, the gradient's norm within eight, and nearly all parameters move the same way."""
    with jax.default_matmul_precision("highest"):
        loss, norm, moved = first_step(tiny, attention="xla")
    half_loss, half_norm, half_moved = first_step(tiny, dtype="bfloat16", attention=attention)
    assert half_loss == pytest.approx(loss, rel=2 * HALF)
    assert half_norm == pytest.approx(norm, rel=8 * HALF)
    same = [np.mean(np.sign(half_moved[path]) == np.sign(x)) for path, x in moved.items() if np.any(x)]
    assert np.mean(same) > 0.95


def test_towers(tmp_path: Path) -> None:
    write_towers(tmp_path)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (16, 28, 28, 3), np.uint8)
    sound = rng.normal(size=(2, 8, 3200)).astype(np.float32)
    folders = str(tmp_path / "vision"), str(tmp_path / "audio")
    with jax.default_matmul_precision("highest"):
        exact = Encoders(*folders, batch=16)
        expected = exact.vision(pictures), exact.audio(sound)
    half = Encoders(*folders, batch=16, dtype="bfloat16")
    for found, other in zip((half.vision(pictures), half.audio(sound)), expected, strict=True):
        assert np.abs(found - other).max() < 8 * HALF * np.abs(other).max()
