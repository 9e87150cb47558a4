"""Programs of the published setting, lowered for an NVIDIA GPU that is not here: no step of theirs is a CPU's alone."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from affectgpt_jax.config import load_config
from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.inference.engine import Settings, abstract_state, programs
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.ops import packed_attention
from affectgpt_jax.ops.sampling import GREEDY
from affectgpt_jax.planning.job import Job, Kind, make_job
from affectgpt_jax.planning.layout import abstract_batch, abstract_prompts, lay_out
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.training.setup import Design
from affectgpt_jax.weights.fused import fuse

CONFIG = "affectgpt_qwen2.5_7b_face"
LAYERS = 6  # as many as a loop needs


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX asks the device for its library and its generation; there is none to ask."""
    monkeypatch.setattr(packed_attention, "_platform", lambda: "cuda")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")


def plan(kind: Kind, *overrides: str) -> tuple[Job, Design]:
    config = load_config(CONFIG, [f"model.decoder.layers={LAYERS}", *overrides])
    job = make_job(kind, config, parse_topology("h200:1"), {})
    return job, lay_out(job, jax.devices()[:1])


def lower(function: Any, *arguments: Any) -> str:
    return function.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def kernels(program: str) -> Counter[str]:
    return Counter(re.findall(r"@(__cudnn\$\w+)\(", program))


@pytest.mark.parametrize("fused", [False, True])
def test_step(fused: bool) -> None:
    """Packed rows go through cuDNN, in the loops' bodies: forward, forward again for its statistics, and backward."""
    job, design = plan("train")
    frozen = fuse(design.frozen) if fused else design.frozen
    with jax.set_mesh(design.mesh):
        program = lower(design.step, design.state, frozen, abstract_batch(job, design.mesh))
    assert kernels(program) == {"__cudnn$fmhaScaleBiasSoftmax": 2, "__cudnn$fmhaScaleBiasSoftmaxBackward": 1}
    wide = re.findall(r"stablehlo\.dot_general.*-> tensor<1x2048x18944xf32>", program)
    assert not wide  # products of the base are of half precision
    assert ("1x2048x37888xbf16" in program) == fused


def test_answers() -> None:
    job, design = plan("answer")
    prompts = abstract_prompts(job, design.mesh)
    count, length = prompts.tokens.shape
    settings = Settings(design.model, count, length, 16, ((1,),), GREEDY, 0)
    work, state = programs(settings, design.mesh), abstract_state(settings, design.mesh)
    rows, number = jax.ShapeDtypeStruct((count,), np.int32), jax.ShapeDtypeStruct((), np.int32)
    with jax.set_mesh(design.mesh):
        reading = lower(work.prefill, design.params, state, prompts, rows, jax.ShapeDtypeStruct((count,), np.uint32))
        writing = lower(work.decode, design.params, state, number, number)
    assert length < packed_attention.LONG
    assert not kernels(reading)  # of short prompts XLA's attention is as good
    assert "stablehlo.while" in writing


def test_towers() -> None:
    towers = (VisionTower(VisionConfig()), (8, 224, 224, 3), 0), (Hubert(HubertConfig()), (8, 32000), 8)
    for tower, shape, convolutions in towers:
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        program = lower(jax.jit(tower.apply), jax.eval_shape(tower.init, jax.random.key(0), x), x)
        assert program.count("stablehlo.convolution(") == convolutions
        assert "stablehlo.dot_general" in program
