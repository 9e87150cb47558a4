"""Memory and time of a job from shapes alone: closed forms, on devices that need not exist.

What is held (parameters, optimizer, batch) is exact, by its shardings. Working memory is modelled: the tensors that the
remat policy keeps, one layer's transients, copies of weights where fsdp gathers them or their type changes. Where a
compiler is at hand, its own count goes before this one.

Time is a roofline. Arithmetic runs at the share of the peak that large models have reached on the chip
(`Chip.attained`); memory and links run at `REACHED` of their data sheets. Exchanges over `slice`, `data` and `fsdp`
hide behind arithmetic, those over `tensor` do not:

    seconds = max(arithmetic + exchange over tensor, memory traffic, other exchange)

Bytes, FLOPs and seconds are of one device unless it says otherwise.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from affectgpt_jax.config.networks import FUSED, DecoderConfig
from affectgpt_jax.models.affectgpt import LOSS_CHUNK
from affectgpt_jax.ops.packed_attention import choose_kernel
from affectgpt_jax.planning.job import Job
from affectgpt_jax.planning.layout import abstract_batch, abstract_prompts, answer_rows, lay_out, prompt_bucket
from affectgpt_jax.planning.topology import GPUS_A_HOST, Topology
from affectgpt_jax.sharding import batch_shards, device_bytes
from affectgpt_jax.training.chips import Chip
from affectgpt_jax.training.flops import Work, decoder_work, forward_work
from affectgpt_jax.training.setup import Design
from affectgpt_jax.weights.table import paths

REACHED = 0.8
"""Of the bandwidth of a memory or a link; a copy in the memory of a v6e reaches 0.83."""
USABLE = 0.92
"""Of a GPU's memory, what XLA can be told to take (XLA_PYTHON_CLIENT_MEM_FRACTION)."""


class Memory(NamedTuple):
    """Bytes of one device: what a program is given, and what it works with besides."""

    arguments: float
    temporaries: float

    @property
    def peak(self) -> float:
        """Both together."""
        return self.arguments + self.temporaries


class Spent(NamedTuple):
    """What one call of a program takes: FLOPs, and bytes moved in memory and between devices."""

    flops: float
    memory: float
    exchange: float
    tensor: float


class Time(NamedTuple):
    """Seconds of a call, see the module."""

    arithmetic: float
    memory: float
    exchange: float
    tensor: float

    @property
    def seconds(self) -> float:
        """Of the call."""
        return max(self.arithmetic + self.tensor, self.memory, self.exchange)

    @property
    def bound(self) -> str:
        """What decides it."""
        if self.seconds == self.memory:
            return "memory traffic"
        return "exchange" if self.seconds == self.exchange or self.tensor > self.arithmetic else "arithmetic"


class Estimate(NamedTuple):
    """A job on its topology.

    Attributes:
      sizes: of the mesh.
      memory: the largest program's.
      spent: by program: a training step's, or those that read prompts and write answers.
      times: of each; empty for a CPU, of whose speed nothing is known.
      samples: of a step, all devices together; of answers, clips of a batch.
      tokens: of them, without padding.
      useful: FLOPs of a step, all devices together, by the closed form of `training.flops`.
      steps: of the job.
    """

    sizes: dict[str, int]
    memory: Memory
    spent: dict[str, Spent]
    times: dict[str, Time]
    samples: float
    tokens: float
    useful: float
    steps: int

    @property
    def seconds(self) -> float:
        """Of a step; not a number for a CPU."""
        return sum(time.seconds for time in self.times.values()) if self.times else math.nan


class _Weights(NamedTuple):
    """Bytes of the decoder's weights as one device multiplies them.

    Attributes:
      layers: of all layers.
      head: of the head.
      copied: of one layer, those that exist a second time while it computes: gathered, or in another type.
      head_copied: of the head.
      gathered: of all that fsdp brings together, once.
    """

    layers: float
    head: float
    copied: float
    head_copied: float
    gathered: float


def estimate(job: Job) -> Estimate:
    """Estimate a job.

    Raises:
      UserError: sizes of the mesh that do not fit the topology, the model or the batch.
    """
    plan = lay_out(job)
    return _training(job, plan) if job.kind == "train" else _answering(job, plan)


def _weights(job: Job, plan: Design) -> _Weights:
    c, fsdp = job.config.model.decoder, plan.mesh.shape["fsdp"]
    dtype = jnp.dtype(c.dtype)
    layers = head = copied = head_copied = gathered = 0.0
    for path, leaf in paths(plan.params).items():
        in_layers = path.startswith("decoder/layers/") and leaf.ndim == 3
        in_head = path == ("decoder/tokens/embedding" if c.tied_head else "decoder/head/kernel")
        if not (in_layers or in_head):
            continue
        parts = fsdp if "fsdp" in jax.tree.leaves(tuple(leaf.sharding.spec)) else 1
        size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * parts * dtype.itemsize
        second = size if parts > 1 or leaf.dtype != dtype else 0.0
        layers, head = layers + size * in_layers, head + size * in_head
        copied, head_copied = copied + second * in_layers / c.layers, head_copied + second * in_head
        gathered += size * (parts > 1)
    return _Weights(layers, head, copied, head_copied, gathered)


def _training(job: Job, plan: Design) -> Estimate:
    config, sizes, devices = job.config, dict(plan.mesh.shape), job.topology.devices
    c, train, data = config.model.decoder, config.train, config.data
    weights, shards, tensor = _weights(job, plan), batch_shards(sizes), sizes["tensor"]
    rows, dtype, rounds = train.rows // shards, jnp.dtype(c.dtype), train.accumulate
    positions = rows * data.row_length
    masters = device_bytes(plan.state.params)
    kernel = _kernel(job, data.row_length, tensor)
    chunk = min(LOSS_CHUNK, data.row_targets)

    row = data.row_length if kernel == "xla" else 0
    kept = saved_bytes(c, tensor, row, dropout=train.dropout) * positions * c.layers
    transient = _transient(c, positions, tensor)
    scores = 0.0
    if kernel == "xla":
        scores = rows * c.heads / tensor * data.row_length**2 * (8.0 + dtype.itemsize)
    elif kernel == "cudnn":  # the mask as a bias
        scores = rows * data.row_length**2 * dtype.itemsize
    logits = 3 * logits_bytes(c, rows * chunk) / tensor
    busy = max(transient + scores + 2 * weights.copied, logits)
    arguments = device_bytes((plan.state, plan.frozen, abstract_batch(job, plan.mesh)))
    # Besides: gradients of a round and their sum.
    memory = Memory(arguments, kept + busy + weights.head_copied + 2 * masters)

    form = decoder_work(c, plan.state.params, plan.frozen)
    step_rows = train.rows * rounds
    samples = step_rows * job.row_samples
    length = job.load.tokens
    useful = form.flops(
        Work(samples, samples * length, samples * job.load.targets, samples * length * (length + 1) / 2)
    )
    places, targets = step_rows * data.row_length, step_rows * -(-data.row_targets // chunk) * chunk
    pairs = step_rows * data.row_length**2 * (1.0 if kernel == "xla" else 0.5)
    # Padding is computed as words are, and the head's product is made again in the backward pass.
    again = forward_work(c, plan.params)
    flops = form.flops(Work(0, places, targets, pairs)) + again.per_target * targets
    forward, attention = again.per_token * places, again.per_pair * pairs
    flops += {"none": 0.0, "names": attention, "full": forward + attention}[c.remat]
    passes = 3 if c.remat == "full" else 2
    spent = Spent(
        flops=flops / devices,
        memory=rounds * ((weights.layers + weights.head) * passes + 2 * kept + 8 * transient * c.layers) + 10 * masters,
        exchange=rounds * passes * weights.gathered * _missing(sizes["fsdp"]) + 2 * masters * _missing(shards),
        tensor=rounds * 2 * passes * c.layers * 2.0 * positions * c.width * dtype.itemsize * _missing(tensor),
    )
    times = {"step": _time(spent, job.topology, sizes)} if job.topology.chip else {}
    return Estimate(sizes, memory, {"step": spent}, times, samples, samples * length, useful, train.steps)


def saved_bytes(c: DecoderConfig, tensor: int, row: int = 0, *, dropout: bool = True) -> float:
    """Bytes a token and layer that training keeps from the forward to the backward pass.

    To the byte what JAX hands over where adapters alone are trained. In half precision `none` keeps the adapters in the
    decoder's type besides, once a layer.

    Args:
      c: the decoder.
      tensor: parts that heads and inner widths are split into.
      row: tokens of a row whose attention XLA computes; 0: a kernel does, counted as cuDNN's.
      dropout: whether the adapters' inputs are dropped at the config's rate.
    """
    width, adapted = jnp.dtype(c.dtype).itemsize, c.lora.targets if c.lora.rank else ()
    inner, keys, mlp = (size / tensor for size in (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.mlp_width))
    low_rank = len(adapted) * c.lora.rank
    if c.remat == "full":
        return c.width * width
    if c.remat == "names":
        result = inner if "o_proj" in adapted else 0
        return (inner + 2 * keys + result + 2 * mlp + 2 * c.width + low_rank) * width

    # Without a policy, all that a derivative reads. Of two norms the float32 input, twice that, and two numbers each;
    # gate and up, SiLU, its sigmoid and the sigmoid's derivative; queries, keys, values.
    kept = 2 * (8 * c.width + 8) + (5 * mlp + inner + 2 * keys + low_rank) * width
    if row:  # of softmax the exponentials in float32, the weights, the sum's inverse and that squared
        kept += c.heads / tensor * (row * (4 + width) + 8)
    else:  # the result, and a float32 for each head
        kept += inner * width + c.heads / tensor * 4
    # What adapters read: with dropout each its own, and a mask of bytes.
    reads = {FUSED["qkv_proj"]: c.width, ("o_proj",): inner, FUSED["gate_up_proj"]: c.width, ("down_proj",): mlp}
    for maps, size in reads.items():
        readers = len({*maps} & {*adapted})
        kept += size * (readers * (width + 1) if dropout and c.lora.dropout else min(readers, 1) * width)
    return kept


def logits_bytes(c: DecoderConfig, places: float) -> float:
    """Bytes of the logits of so many places, float32."""
    return 4.0 * c.vocab * places


def cache_bytes(c: DecoderConfig) -> float:
    """Bytes of one token's keys and values in all layers; int8 ones have a float32 scale a head."""
    head = c.head_dim + 4 if c.cache == "int8" else c.head_dim * jnp.dtype(c.dtype).itemsize
    return 2.0 * c.layers * c.kv_heads * head


class WorkBytes(NamedTuple):
    """Bytes of samples, all of them together.

    Attributes:
      kept: from the forward to the backward pass, under the decoder's remat policy.
      logits: of the targets, were all made at once.
      features: in shards, float16.
      cache: keys and values, where they are answered.
    """

    kept: float
    logits: float
    features: float
    cache: float


def work_bytes(c: DecoderConfig, work: Work, streams: Mapping[str, tuple[int, int]]) -> WorkBytes:
    """Bytes of this work, as `DecoderWork.flops` are its FLOPs; of a `Work` of one sample, a sample's.

    Args:
      c: the decoder, on one device; a kernel computes attention.
      work: counts of samples, or what is to be expected of a distribution of lengths (`lengths_work`).
      streams: time steps and width of the features of a sample, by stream (`inference.runs.feature_shapes`).
    """
    return WorkBytes(
        kept=saved_bytes(c, 1) * c.layers * work.tokens,
        logits=logits_bytes(c, work.targets),
        features=work.samples * sum(2.0 * steps * width for steps, width in streams.values()),
        cache=cache_bytes(c) * work.tokens,
    )


def read_bytes(c: DecoderConfig, params: Any) -> float:
    """Bytes of the weights that writing one token reads: layers, final norm and head as they are held.

    Of an embedding that is no head a token reads one row, which is left out.

    Args:
      c: the decoder.
      params: all parameters, arrays or shapes.
    """
    head = "decoder/tokens/" if c.tied_head else "decoder/head/"
    read = ("decoder/layers/", "decoder/final_norm/", head)
    return sum(
        float(math.prod(leaf.shape)) * leaf.dtype.itemsize
        for path, leaf in paths(params).items()
        if path.startswith(read)
    )


def decode_floor(c: DecoderConfig, params: Any, chip: Chip, rows: int, places: float) -> Time:
    """The least time in which one chip can write one token a row: weights and cache read once, at its data sheet.

    rows / `Time.seconds` is a ceiling of tokens/s. Exchange is none.

    Args:
      c: the decoder.
      params: all parameters, arrays or shapes, whole on the chip.
      chip: what writes.
      rows: at work at a time.
      places: tokens of the cache that are read of each row: all that the cache has, for masked ones are read too.
    """
    flops = forward_work(c, params).flops(Work(rows, rows, rows, rows * places))
    read = read_bytes(c, params) + rows * places * cache_bytes(c)
    return Time(arithmetic=flops / chip.flops, memory=read / chip.bandwidth, exchange=0.0, tensor=0.0)


def _answering(job: Job, plan: Design) -> Estimate:
    config, sizes, load = job.config, dict(plan.mesh.shape), job.load
    c, tensor = config.model.decoder, sizes["tensor"]
    weights, dtype = _weights(job, plan), jnp.dtype(c.dtype)
    batch, bucket, ring = answer_rows(job, sizes), prompt_bucket(job), config.evaluate.max_new
    rows = batch // batch_shards(sizes)

    cache = rows * (bucket + ring) * cache_bytes(c) / tensor
    scores = rows * c.heads / tensor * bucket**2 * (4.0 + dtype.itemsize)
    busy = _transient(c, rows * bucket, tensor) + (scores if _kernel(job, bucket, tensor) == "xla" else 0.0)
    logits = 2 * logits_bytes(c, rows) / tensor
    # The loop writes a new ring beside the old one.
    working = cache + max(busy, cache * ring / (bucket + ring)) + logits + 2 * weights.copied + weights.head_copied
    memory = Memory(device_bytes((plan.params, abstract_prompts(job, plan.mesh))), working)

    token, target, pair = forward = forward_work(c, plan.params)
    length = load.prompt + load.new
    useful = forward.flops(Work(batch, batch * length, batch * load.new, batch * length * (length + 1) / 2))
    read_once, gathers = weights.layers + weights.head, weights.gathered * _missing(sizes["fsdp"])
    residual = 2.0 * 2 * c.layers * rows * c.width * dtype.itemsize * _missing(tensor)
    devices = job.topology.devices
    spent = {
        "read prompts": Spent(
            flops=batch * (token * bucket + target + pair * bucket**2) / devices,
            memory=read_once + 8 * _transient(c, rows * bucket, tensor) * c.layers,
            exchange=gathers,
            tensor=residual * bucket,
        ),
        "write answers": Spent(
            flops=batch * load.new * (token + target + pair * (bucket + ring)) / devices,
            memory=load.new * (read_once + cache),
            exchange=load.new * gathers,
            tensor=load.new * residual,
        ),
    }
    times = {name: _time(one, job.topology, sizes) for name, one in spent.items()} if job.topology.chip else {}
    steps = math.ceil(load.clips / batch)
    return Estimate(sizes, memory, spent, times, batch, batch * length, useful, steps)


def _transient(c: DecoderConfig, positions: int, tensor: int) -> float:
    """Bytes that one layer works with."""
    return positions * (3.0 * c.mlp_width / tensor + 6 * c.width) * jnp.dtype(c.dtype).itemsize


def _kernel(job: Job, length: int, tensor: int) -> str:
    c, chip = job.config.model.decoder, job.topology.chip
    platform = chip.family if chip else "cpu"
    return choose_kernel(c.attention, platform, c.dtype, length, c.heads, c.head_dim, tensor)


def _time(spent: Spent, topology: Topology, sizes: Mapping[str, int]) -> Time:
    chip = topology.chip
    assert chip is not None
    return Time(
        arithmetic=spent.flops / (chip.flops * chip.attained),
        memory=spent.memory / (chip.bandwidth * REACHED),
        exchange=spent.exchange / (_link(topology, sizes["tensor"], sizes["fsdp"] * sizes["data"]) * REACHED),
        tensor=spent.tensor / (_link(topology, 1, sizes["tensor"]) * REACHED),
    )


def _link(topology: Topology, stride: int, size: int) -> float:
    """Bytes/s that a device exchanges over a mesh axis of neighbours `stride` devices apart.

    On a TPU an axis takes as many of the torus' own as it needs; on GPUs it stays in a host, or goes by the network.
    """
    chip = topology.chip
    assert chip is not None
    if chip.family == "gpu":
        return chip.link if stride * size <= GPUS_A_HOST else chip.network
    room, axes = 1, 0
    for length in sorted(topology.shape, reverse=True):
        if room >= size:
            break
        room, axes = room * length, axes + 1
    return chip.link * max(axes, 1) / chip.devices


def _missing(parts: int) -> float:
    """Share of an array that a device lacks which holds one of its parts."""
    return (parts - 1) / parts
