"""Closed forms of memory, work and time against what XLA counts, and the roofline's arithmetic by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from affectgpt_jax.config import load_config
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig, Remat
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.engine import Settings, programs
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.decoder import Decoder, empty_cache
from affectgpt_jax.nn.stack import FEW
from affectgpt_jax.ops import packed_attention
from affectgpt_jax.ops.sampling import GREEDY
from affectgpt_jax.planning.estimate import (
    REACHED,
    _link,
    cache_bytes,
    decode_floor,
    estimate,
    logits_bytes,
    read_bytes,
    saved_bytes,
    work_bytes,
)
from affectgpt_jax.planning.job import LOADS, make_job
from affectgpt_jax.planning.layout import abstract_batch, lay_out
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.training.chips import CHIPS
from affectgpt_jax.training.flops import Work, lengths_work
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import nest, paths
from tests.inference.test_engine import small
from tests.planning.jobs import small_job

SEVEN = "affectgpt_qwen2.5_7b_face"
GIB = 2**30


def big(topology: str, *overrides: str, kind: Any = "train", **given: Any) -> Any:
    return make_job(kind, load_config(SEVEN, list(overrides)), parse_topology(topology), given)


@pytest.mark.parametrize("remat", ["none", "names", "full"])
def test_work_is_what_xla_counts(remat: str) -> None:
    """Layers are no loop here and attention is dense, so that the compiler counts all that is executed.

    Sizes are large enough for products to be all but everything; the optimizer and the fusion are in the count too.
    """
    job = small_job(
        "cpu:1", f"model.decoder.remat={remat}", "model.decoder.width=256", "model.decoder.mlp_width=512",
        "model.decoder.head_dim=32", "model.decoder.vocab=2048", "train.rows=2", "data.row_length=256",
    )  # fmt: skip
    plan = lay_out(job, jax.devices()[:1])
    with jax.set_mesh(plan.mesh):
        program = plan.step.lower(plan.state, plan.frozen, abstract_batch(job, plan.mesh)).compile()
    counted: Any = program.cost_analysis()
    assert counted["flops"] == pytest.approx(estimate(job).spent["step"].flops, rel=0.05)


def test_held_bytes_of_the_published_setting() -> None:
    """15.2 GB of bfloat16; 40.4e6 adapter and 16.8e6 fusion parameters at 12 bytes; a batch of kilobytes."""
    found = estimate(big("h200:1"))
    held = 7.615e9 * 2 + (40.4e6 + 16.8e6) * 12
    assert found.memory.arguments == pytest.approx(held, rel=0.01)
    int8 = estimate(big("h200:1", "model.decoder.base=int8")).memory
    assert int8.arguments == pytest.approx(held - 6.525e9, rel=0.01)
    split = estimate(big("h200:8", "train.rows=8", "mesh.data=1", "mesh.fsdp=8")).memory
    assert split.arguments < found.memory.arguments / 6.5  # the fusion lies whole on each device


def test_saved_bytes_of_the_published_setting() -> None:
    """106 KB a token and layer: residuals, queries, keys, values, attention's result, gate and up, and the adapters.

    Without a policy 378 KB, 62 of them what dropout adds; where XLA computes attention 168 more for each token of a
    row, where a kernel does its result and a number a head.
    """
    c = load_config(SEVEN).model.decoder
    assert saved_bytes(c, 1) == 2 * (2 * 3584 + 2 * 3584 + 2 * 512 + 2 * 18944 + 7 * 16)
    assert saved_bytes(c.model_copy(update={"remat": "full"}), 4) == 2 * 3584
    none = c.model_copy(update={"remat": "none"})
    assert saved_bytes(none, 1, 2048) == 377_808 + 28 * 6 * 2048
    assert saved_bytes(none, 1, 2048, dropout=False) == 315_856 + 28 * 6 * 2048
    assert saved_bytes(none, 1) == 377_808 - 28 * 8 + 28 * 4 + 2 * 3584
    assert saved_bytes(none, 1) > saved_bytes(none, 4) > saved_bytes(c, 4)


def trace(c: DecoderConfig, rows: int, length: int, dropout: bool) -> tuple[Any, int]:
    """The gradient of a decoder's adapters and inputs, and bytes that its loop over layers hands to the way back."""
    params = paths(parameter_shapes(AffectGPT(ModelConfig(decoder=c)))["decoder"])
    adapters = {path: x for path, x in params.items() if "/lora_" in path}
    h, seed = jax.ShapeDtypeStruct((rows, length, c.width), c.dtype), jax.ShapeDtypeStruct((), jnp.uint32)

    def loss(adapters: Any, h: Any, params: Any, seed: Any) -> Any:
        ones = jnp.ones(h.shape[:2], jnp.int32)
        out: Any = Decoder(c).apply({"params": nest(params | adapters)}, h, ones, ones, seed if dropout else None)
        return jnp.sum(out.astype(jnp.float32))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(adapters, h, params, seed)
    scan = next(equation for equation in traced.jaxpr.eqns if equation.primitive.name == "scan")
    over = scan.outvars[scan.params["num_carry"] :]
    return traced, sum(out.aval.size * out.aval.dtype.itemsize for out in over)


def handed_over(c: DecoderConfig, length: int, dropout: bool) -> float:
    """Bytes a token and layer: what two rows more add. The adapters in the decoder's type are handed over once."""
    one, three = (trace(c, rows, length, dropout)[1] for rows in (1, 3))
    return (three - one) / (2 * length * c.layers)


SIZES = {
    "vocab": 16, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 96,
    "lora": LoraConfig(rank=3),
}  # fmt: skip
POLICIES: tuple[Remat, ...] = ("none", "names", "full")


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"width": 48, "heads": 6, "kv_heads": 1, "head_dim": 16, "mlp_width": 40, "layers": 6, "dtype": "bfloat16"},
        {"kv_heads": 4, "base": "int8", "lora": LoraConfig(rank=5, dropout=0.0)},
        {"lora": LoraConfig(rank=2, targets=("k_proj", "o_proj", "down_proj")), "dtype": "bfloat16"},
        {"lora": LoraConfig(rank=2, targets=("gate_proj",))},
        {"lora": LoraConfig(rank=0)},
    ],
)
def test_saved_bytes_are_what_is_handed_over(changes: dict[str, Any], dropout: bool) -> None:
    """Byte for byte, attention computed by XLA."""
    for remat in POLICIES:
        c = DecoderConfig(**(SIZES | changes), remat=remat)  # type: ignore[arg-type]
        assert handed_over(c, 20, dropout) == saved_bytes(c, 1, 20, dropout=dropout)


@pytest.mark.parametrize("dropout", [False, True])
def test_saved_bytes_beside_a_kernel(dropout: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's is asked for on a device that is not here."""
    monkeypatch.setattr(packed_attention, "_platform", lambda: "cuda")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")
    for remat in POLICIES:
        c = DecoderConfig(**SIZES, dtype="bfloat16", remat=remat, attention="cudnn")  # type: ignore[arg-type]
        assert handed_over(c, 64, dropout) == saved_bytes(c, 1, dropout=dropout)


def test_the_compiler_keeps_what_is_handed_over() -> None:
    """Values that are another's double or square are not merged: what three layers more take in memory."""
    memory, over = [], []
    for layers in (FEW + 2, FEW + 5):  # loops
        c = DecoderConfig(**(SIZES | {"layers": layers}))  # type: ignore[arg-type]
        traced, size = trace(c, 2, 64, dropout=True)
        memory.append(traced.lower().compile().memory_analysis().temp_size_in_bytes)
        over.append(size)
    assert memory[1] - memory[0] == pytest.approx(over[1] - over[0], rel=1e-3)


@pytest.mark.parametrize(("mesh", "rows"), [(("mesh.fsdp=8", "mesh.data=1"), 8), (("mesh.data=8",), 8)])
def test_more_devices_hold_less_or_do_less(mesh: tuple[str, ...], rows: int) -> None:
    one, many = estimate(big("h100:1", f"train.rows={rows}")), estimate(big("h100:8", f"train.rows={rows}", *mesh))
    assert many.memory.peak < one.memory.peak
    assert many.spent["step"].flops == pytest.approx(one.spent["step"].flops / 8)
    assert many.useful == one.useful


def test_the_roofline_by_hand() -> None:
    """One H200, one row: nothing is exchanged, and arithmetic decides."""
    found, chip = estimate(big("h200:1")), CHIPS["h200"]
    (time,), (spent,) = found.times.values(), found.spent.values()
    assert time.exchange == time.tensor == 0.0
    assert found.seconds == spent.flops / (chip.flops * chip.attained)
    assert time.memory == spent.memory / (chip.bandwidth * REACHED)
    assert time.bound == "arithmetic"
    assert found.samples == 3
    assert found.tokens == 600
    # 2,048 positions through 28 layers and back, the head at 1,024 targets three times, half of the pairs.
    blocks = 2048 * (4 * 6.525e9 + 6 * 40.4e6)
    head, pairs = 1024 * 6 * 3584 * 152064, 12 * 28 * 28 * 128 * 2048**2 / 2 * 4 / 3
    assert spent.flops == pytest.approx(blocks + head + pairs, rel=0.01)


def test_writing_answers_reads_all_weights_for_each_token() -> None:
    found, chip = estimate(big("h200:1", kind="answer", new=50)), CHIPS["h200"]
    write = found.times["write answers"]
    assert write.bound == "memory traffic"
    floor = 50 * (6.525e9 + 0.545e9) * 2 / chip.bandwidth
    assert floor < write.seconds < 1.6 * floor
    assert found.steps == math.ceil(LOADS["answer"].clips / 32)


@pytest.mark.parametrize("changes", [{}, {"cache": "int8"}, {"tied_head": True}, {"base": "int8"}])
def test_a_written_token_reads_what_an_engine_holds(changes: dict[str, Any]) -> None:
    """Parameters that are there and the engine's own cache, all but an embedding that is no head, byte for byte."""
    model, params = small(**changes)
    c, rows, prompt, answer = model.config.decoder, 3, 16, 12
    state = programs(Settings(model, rows, prompt, answer, (), GREEDY, 0), None).start()
    if c.base == "int8":  # the parameters of the test are float32 throughout
        params = jax.tree.map(lambda x, held: x.astype(held.dtype), params, parameter_shapes(model))
    words = 0 if c.tied_head else params["decoder"]["tokens"]["embedding"].nbytes
    held = sum(x.nbytes for x in jax.tree.leaves(params["decoder"])) - words
    cache = sum(x.nbytes for x in jax.tree.leaves(state.cache.layers))
    assert read_bytes(c, params) == held
    assert rows * (prompt + answer) * cache_bytes(c) == cache
    chip = CHIPS["h200"]
    assert decode_floor(c, params, chip, rows, prompt + answer).memory * chip.bandwidth == pytest.approx(held + cache)


def test_a_written_token_does_what_xla_counts() -> None:
    """A step of the decoder for four rows: two FLOPs a parameter, and all places of the cache, masked or not."""
    c = DecoderConfig(
        vocab=4096, width=512, layers=2, heads=8, kv_heads=2, head_dim=64, mlp_width=768, lora=LoraConfig(rank=64)
    )
    params, rows, places = parameter_shapes(AffectGPT(ModelConfig(decoder=c))), 4, 512

    def step(params: Any, ids: Any, positions: Any, cache: Any) -> Any:
        model = Decoder(c)
        hidden, cache = model.apply({"params": params}, ids, positions, cache, method="step")
        return model.apply({"params": params}, hidden, method="logits"), cache

    ids = jax.ShapeDtypeStruct((rows,), jnp.int32)
    cache = jax.eval_shape(lambda: empty_cache(c, rows, places - 128, 128))
    lowered = jax.jit(step).lower(params["decoder"], ids, ids, cache)
    counted: Any = lowered.cost_analysis()
    chip = CHIPS["h200"]
    assert counted["flops"] == pytest.approx(
        decode_floor(c, params, chip, rows, places).arithmetic * chip.flops, rel=0.02
    )


def test_the_floor_of_the_published_setting() -> None:
    """14.14 GB of layers and head and 0.16 of adapters; 57 KB a token: 335 tokens/s on one H200, ever more by batch."""
    plan, chip = lay_out(big("h200:1", kind="answer")), CHIPS["h200"]
    c = plan.model.config.decoder
    assert read_bytes(c, plan.params) == pytest.approx((6.525e9 + 0.545e9) * 2 + 40.4e6 * 4, rel=1e-3)
    assert cache_bytes(c) == 2 * 28 * 4 * 128 * 2
    assert logits_bytes(c, 250) == pytest.approx(152e6, rel=1e-3)
    floors = {rows: decode_floor(c, plan.params, chip, rows, 192) for rows in (1, 32, 128, 1024)}
    assert 1 / floors[1].seconds == pytest.approx(335, abs=1)
    rates = [rows / floor.seconds for rows, floor in floors.items()]
    assert rates == sorted(rates)
    assert [floor.bound for floor in floors.values()] == ["memory traffic"] * 3 + ["arithmetic"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 1)), min_size=1, max_size=40), st.sampled_from(POLICIES))
def test_bytes_of_work_are_sums_over_samples(samples: list[tuple[int, float]], remat: Remat) -> None:
    """Whatever the lengths: each token's, each target's, each sample's. A distribution's mean is a mean of them."""
    c = load_config(SEVEN).model.decoder.model_copy(update={"remat": remat})
    lengths, targets = np.array([(length, int(share * length)) for length, share in samples]).T
    work = lengths_work(lengths, targets)
    found = work_bytes(c, work, {"face": (8, 768), "audio": (8, 1024)})
    one = {"full": 7168, "names": 106_720, "none": 384_864}[remat]
    assert found.kept == sum(28 * one * int(length) for length in lengths)
    assert found.logits == sum(4 * 152_064 * int(count) for count in targets)
    assert found.features == len(samples) * 28_672
    assert found.cache == sum(57_344 * int(length) for length in lengths)
    mean = work_bytes(c, Work(*(total / len(samples) for total in work)), {"face": (8, 768), "audio": (8, 1024)})
    assert mean == pytest.approx([total / len(samples) for total in found])
    assert work_bytes(c, lengths_work([], []), {}) == (0, 0, 0, 0)


def test_labels_are_read_out_by_the_prescribed_size() -> None:
    found = estimate(make_job("extract", load_config("demo"), parse_topology("h200:1"), {}))
    assert found.memory.arguments == pytest.approx(7.615e9 * 2, rel=0.01)


def test_links() -> None:
    """An axis of a slice takes one axis of the torus, or as many as it needs; a host's GPUs have links of their own."""
    pod = parse_topology("v5p:4x4x4")
    assert _link(pod, 1, 4) == CHIPS["v5p"].link
    assert _link(pod, 1, 64) == 3 * CHIPS["v5p"].link
    gpus = parse_topology("h100:64")
    assert _link(gpus, 1, 8) == CHIPS["h100"].link
    assert _link(gpus, 1, 64) == CHIPS["h100"].network
    assert _link(gpus, 8, 8) == CHIPS["h100"].network


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"train.rows=1 cannot be split .* = 8; use 8"):
        estimate(big("h100:8"))
    with pytest.raises(UserError, match=r"mesh.tensor=8 does not divide model.decoder.kv_heads=4"):
        estimate(big("h100:8", "mesh.tensor=8"))
    # Answers know no train.rows: their batch is rounded up.
    assert estimate(big("h100:8", "evaluate.batch=3", kind="answer")).samples == 8
