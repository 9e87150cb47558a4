"""What each way to be fast is worth: the training step without it, or with one that is not shipped, one at a time.

  python benchmarks/ablations.py
  python benchmarks/ablations.py --shape 7b --only shipped fused unroll=4 "command buffers"      # on a GPU

A decoder with adapters of rank 16 over a random base, samples of `train_step.py`'s lengths, features at hand. Every
variant is a process of its own, and they take turns. Samples a second are those of real tokens, whatever is padded;
"first step" has tracing, compilation and the step itself in it; memory is what the compiled step needs in all. With
`--trace FOLDER` steps of the shipped way are traced once more, for xprof and for a table of what keeps them from the
device's peak. Variants of XLA's flags, which a CPU does not know, take part only where `--only` names them.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common.shapes import LANGUAGE, TOWERS
from common.trace import shares
from train_step import ALPHA, DROPOUT, LONGEST, MODE, PROMPT, RANK, SEED, features, pool, row_loader
from weights import base_items

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape, Example
from affectgpt_jax.data.pipeline import training_batches
from affectgpt_jax.data.plan import Limits, Plan
from affectgpt_jax.data.prompts import layout_size, soft_layout
from affectgpt_jax.prefetch import prefetch
from affectgpt_jax.sharding import put_batch, run_mesh
from affectgpt_jax.training.flops import Work, batch_work, decoder_work, mfu_lora, peak_flops
from affectgpt_jax.training.setup import design, set_up
from affectgpt_jax.weights.files import write_shards
from affectgpt_jax.weights.fused import fuse

ENCODERS = "large"
"""The towers whose features are at hand."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to train; by default the shipped one.

    Attributes:
      decoder: changes of its config.
      train: changes of the section.
      packed: rows of several samples; else rows of one, as many as the others hold samples.
      everywhere: every token is a target.
      donated: the state's memory is used again.
      waits: the loss is looked at before the next step begins.
      ahead: batches are made and placed while a step runs.
      flags: of XLA's for GPUs, after those of the environment.
    """

    decoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packed: bool = True
    everywhere: bool = False
    donated: bool = True
    waits: bool = False
    ahead: bool = True
    flags: str = ""


VARIANTS = {
    "shipped": Variant(),
    "one sample a row": Variant(packed=False),
    "remat=none": Variant({"remat": "none"}),
    "remat=names": Variant({"remat": "names"}),
    "remat=full": Variant({"remat": "full"}),
    "every token a target": Variant(everywhere=True),
    "base trained, too": Variant(train={"trainable": ["^fusion/", "^decoder/"]}),
    "state not donated": Variant(donated=False),
    "loss looked at in every step": Variant(waits=True),
    "batches made when asked for": Variant(ahead=False),
    "unroll=2": Variant({"unroll": 2}),
    "unroll=4": Variant({"unroll": 4}),
    "unroll=all": Variant({"unroll": 1000}),
    "fused": Variant({"fused": True}),
    "int8 base": Variant({"base": "int8"}),
    "Triton's products": Variant(flags="--xla_gpu_enable_triton_gemm=true"),
    "command buffers": Variant(flags="--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN"),
    "one layer in flight": Variant(flags="--xla_gpu_enable_while_loop_double_buffering=false"),
    "least tuning": Variant(flags="--xla_gpu_autotune_level=0"),
}
EVERYWHERE = [name for name, variant in VARIANTS.items() if not variant.flags]

SHAPES: dict[str, dict[str, Any]] = {
    "20m": {"dtype": "float32", "remat": "none", "rows": 2, "accumulate": 2, "row_length": 512, "steps": 4},
    "60m": {"dtype": "float32", "remat": "none", "rows": 2, "accumulate": 2, "row_length": 512, "steps": 2},
    "7b": {"dtype": "bfloat16", "remat": "names", "rows": 4, "accumulate": 1, "row_length": 2048, "steps": 12},
    "tiny": {"dtype": "float32", "remat": "none", "rows": 2, "accumulate": 1, "row_length": 512, "steps": 2},
}


def main() -> None:
    """Measure all variants in turn, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="20m")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=EVERYWHERE, metavar="VARIANT")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", type=Path, metavar="FOLDER", help="new or empty")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.shape, VARIANTS[args.variant], args.folder, args.trace)))
        return
    jax.config.update("jax_platforms", "cpu")  # a GPU's memory is for the variants
    if args.trace and args.trace.exists() and any(args.trace.iterdir()):
        parser.error(f"--trace: {args.trace} is not empty")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in dict.fromkeys(["shipped", *args.only])}
    with tempfile.TemporaryDirectory() as name:
        write_base(args.shape, Path(name))
        for _ in range(args.runs):
            for variant, results in found.items():
                results.append(run(args.shape, variant, name))
                if not found["shipped"][0]:
                    sys.exit("nothing to hold the others against")
        traced = run(args.shape, "shipped", name, "--trace", str(args.trace)) if args.trace else {}
    show(args, found)
    if traced:
        show_gap(traced, shares(args.trace))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if not all(all(results) for results in found.values()):
        sys.exit("some variants failed; see above")


def run(shape: str, variant: str, folder: str, *more: str) -> dict[str, Any]:
    """Measure a variant in a process of its own; empty if it failed, which is told."""
    command = [sys.executable, __file__, "--shape", shape, "--variant", variant, "--folder", folder, *more]
    # XLA takes what does not begin with a dash, a space too, for the name of a file.
    flags = f"{os.environ.get('XLA_FLAGS', '')} {VARIANTS[variant].flags}".strip()
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": flags})
    if ran.returncode:
        print(f"{variant}: failed: {' '.join(ran.stderr.strip().splitlines()[-1:])}", file=sys.stderr)
        return {}
    result = json.loads(ran.stdout.splitlines()[-1])
    print(f"{variant}: {result['rate']:.2f} samples/s", file=sys.stderr)
    return result


def show(args: argparse.Namespace, found: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Medians and spreads, and each variant's rate against the shipped one's of the same turn."""
    shape, first = SHAPES[args.shape], found["shipped"][0]
    print(
        f"{args.shape}: {shape['accumulate']} x {shape['rows']} rows of {shape['row_length']} tokens a step, "
        f"{shape['dtype']}, remat={shape['remat']}, {first['device']}, {os.cpu_count()} cores, {args.runs} runs in "
        "turn\n"
    )
    print(f"{'':<30}{'samples/s':>10}{'spread':>18}{'against shipped':>24}{'first step':>12}{'memory':>11}")
    for name, results in found.items():
        if not all(results):
            print(f"{name:<30}{'failed':>10}")
            continue
        rates = sorted(result["rate"] for result in results)
        pairs = zip(results, found["shipped"], strict=True)
        ratios = sorted(result["rate"] / other["rate"] for result, other in pairs if other)
        begin = statistics.median(result["first"] for result in results)
        print(
            f"{name:<30}{statistics.median(rates):>10.2f}{f'{rates[0]:.2f} - {rates[-1]:.2f}':>18}"
            f"{f'{statistics.median(ratios):.2f}x ({ratios[0]:.2f} - {ratios[-1]:.2f})':>24}"
            f"{begin:>10.1f} s{results[0]['memory'] / 1e9:>8.2f} GB"
        )


def show_gap(traced: Mapping[str, Any], parts: Mapping[str, float]) -> None:
    """What the time of the traced steps went into, beside what the device's peak would have needed."""
    products = parts.get("products", 0.0) + parts.get("attention", 0.0)
    print(f"\nof {traced['seconds']:.2f} s a traced step, mfu_lora {traced['mfu']:.1%}:")
    print(f"  {'needed at the peak':<30}{traced['mfu']:>7.1%}")
    print(f"  {'products, attention beyond it':<30}{products - traced['mfu']:>7.1%}")
    for kind, share in parts.items():
        if kind not in ("products", "attention"):
            print(f"  {kind:<30}{share:>7.1%}")


def write_base(name: str, folder: Path) -> None:
    """A folder of random weights, config.json first."""
    base = folder / "language"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "qwen2", **LANGUAGE[name]}))
    write_shards(base, base_items(run_config(name, Variant(), folder)))


def run_config(name: str, variant: Variant, folder: Path) -> RunConfig:
    """The run that a variant is, resolved."""
    shape, towers = SHAPES[name], TOWERS[ENCODERS]
    lora = LoraConfig(rank=RANK, alpha=ALPHA, dropout=DROPOUT)
    decoder = DecoderConfig.from_hf(LANGUAGE[name], dtype=shape["dtype"], remat=shape["remat"], lora=lora)
    return build_config(
        {
            "weights": {"language": str(folder / "language")},
            "model": {
                "mode": MODE, "vision_width": towers["vision"]["projection_dim"],
                "audio_width": towers["audio"]["hidden_size"],
                "decoder": decoder.model_dump() | dict(variant.decoder),
            },
            "train": {"rows": shape["rows"], "accumulate": shape["accumulate"], **variant.train},
        },
        "ablations",
    )  # fmt: skip


def measure(name: str, variant: Variant, folder: Path, trace: Path | None = None) -> dict[str, Any]:
    """Compile the variant's step and take some, traced or not."""
    config = run_config(name, variant, folder)
    mesh = run_mesh(config)
    setup = set_up(config)
    state, frozen = setup.state, fuse(setup.frozen) if config.model.decoder.fused else setup.frozen
    step = design(config, mesh).step
    if not variant.donated:
        step = jax.jit(step.__wrapped__)
    batches = make_batches(name, variant, config)
    with jax.set_mesh(mesh), closing(batches), placed(batches, mesh, variant.ahead) as ready:
        _, batch = next(ready)
        started = time.perf_counter()
        program = step.lower(state, frozen, batch).compile()
        state, metrics = program(state, frozen, batch)
        jax.block_until_ready(metrics)
        first = time.perf_counter() - started
        steps, done = SHAPES[name]["steps"], np.zeros(4)
        with jax.profiler.trace(trace) if trace else nullcontext():
            started = time.perf_counter()
            for work, batch in islice(ready, steps):
                state, metrics = program(state, frozen, batch)
                done += work
                if variant.waits:
                    float(metrics.loss)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - started
    if not np.isfinite(float(metrics.loss)):
        sys.exit(f"the loss is {float(metrics.loss)}")
    memory: Any = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    form = decoder_work(config.model.decoder, state.params, frozen)
    return {
        "rate": done[0] / seconds,
        "seconds": seconds / steps,
        "mfu": mfu_lora(form, Work(*done.tolist()), seconds, peak_flops()[0]),
        "first": first,
        "memory": used + memory.temp_size_in_bytes,
        "device": jax.devices()[0].device_kind,
    }


@contextmanager
def placed(batches: Iterator[Batch], mesh: Any, ahead: bool) -> Iterator[Iterator[tuple[Work, Batch]]]:
    """Batches on the device, each with the work that it is."""

    def place(host: Batch) -> tuple[Work, Batch]:
        return batch_work(host), put_batch(mesh, host)

    if ahead:
        with prefetch(batches, place) as ready:
            yield ready
    else:
        yield map(place, batches)


def make_batches(name: str, variant: Variant, config: RunConfig) -> Iterator[Batch]:
    """Rows of the samples, packed or not."""
    shape = SHAPES[name]
    examples = pool(config.model.decoder.vocab)
    if variant.everywhere:
        examples = [_everywhere(one) for one in examples]
    targets = np.array([[len(one.target_ids) for one in examples]])
    length, rows, most = shape["row_length"], shape["rows"], config.data.row_samples
    row_targets = length if variant.everywhere else max(length // 2, LONGEST)
    if not variant.packed:
        per_row = round(length / np.mean([len(one.tokens) for one in examples]))
        length, rows, most, row_targets = PROMPT + LONGEST, rows * per_row, 1, LONGEST
    plan = Plan(
        tokens=np.array([[len(one.tokens) for one in examples]]),
        targets=targets,
        limits=Limits(length, row_targets, most),
        step_rows=rows * shape["accumulate"],
        seed=SEED,
        weights=(1.0,),
        rounds=shape["accumulate"],
    )
    stored = features(TOWERS[ENCODERS])
    streams: Any = {name: x.shape[1:] for name, x in stored.items()}
    sizes = BatchShape(rows, length, row_targets, most, layout_size(soft_layout(MODE)), streams, np.float16)
    loader: Any = row_loader(examples, stored)
    threads = config.data.threads if variant.ahead else 0
    return training_batches(plan, loader, sizes, start=0, steps=10**6, threads=threads)


def _everywhere(one: Example) -> Example:
    """Every token but the last predicts the next one."""
    return one._replace(
        target_positions=np.arange(len(one.tokens) - 1, dtype=np.int32), target_ids=one.tokens[1:].copy()
    )


if __name__ == "__main__":
    main()
