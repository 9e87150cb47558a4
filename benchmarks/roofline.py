"""What the published setting costs and what bounds it: the tables of docs/performance.md, from closed forms.

  python -m benchmarks.roofline
  python -m benchmarks.roofline --update      # writes them into docs/performance.md

Nothing is measured and no array is made. Sizes are those of the config affectgpt_qwen2.5_7b_face and of the published
towers, chips those of `training/chips.py`.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.config import load_config
from affectgpt_jax.config.networks import DecoderConfig, HubertConfig, Remat, VisionConfig
from affectgpt_jax.inference.answering import bucket
from affectgpt_jax.inference.runs import feature_shapes
from affectgpt_jax.models.clip import VisionTower
from affectgpt_jax.models.hubert import Hubert
from affectgpt_jax.planning.estimate import (
    cache_bytes,
    decode_floor,
    estimate,
    logits_bytes,
    read_bytes,
    saved_bytes,
    work_bytes,
)
from affectgpt_jax.planning.job import Job, Kind, make_job
from affectgpt_jax.planning.layout import lay_out
from affectgpt_jax.planning.topology import parse_topology
from affectgpt_jax.sharding import device_bytes
from affectgpt_jax.training.chips import CHIPS
from affectgpt_jax.training.flops import (
    DecoderWork,
    Work,
    audio_flops,
    decoder_work,
    forward_work,
    lengths_work,
    padded_work,
    vision_flops,
)
from affectgpt_jax.training.setup import Design
from affectgpt_jax.unibench.report.render import markdown
from affectgpt_jax.unibench.report.tables import Table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks/roofline.py -->\n", "<!-- end -->\n"

CONFIG = "affectgpt_qwen2.5_7b_face"
PROMPT, LABELS, DESCRIPTION = 110, 10, 170
"""Tokens of a prompt and of the two kinds of answer; half of the samples have each, an assumption."""
TARGETS = np.array([LABELS, DESCRIPTION])
LENGTHS = PROMPT + TARGETS
IMAGES = CLIPS = 8
SOUND = 32_000
"""Values of a clip of sound, two seconds."""
WRITTEN = 64
"""Tokens that the cache has room for beside a prompt."""
POLICIES: tuple[Remat, ...] = ("full", "names", "none")
SHOWN = ("h200", "h100", "v5p", "v5e")
YARDSTICK = 14_110, 4096, "h100"
"""Tokens/s, tokens of a sample (all of them targets) and chip of the nearest published training: NVIDIA NeMo AutoModel,
docs/performance-summary.mdx: LoRA of rank 16 on all linear maps of Qwen2.5-7B, bfloat16, full rows, one H100."""


class Costs(NamedTuple):
    """FLOPs of one sample: the decoder's, forward and backward, here and in the original's way, and the towers'."""

    packed: float
    padded: float
    images: float
    sound: float

    @property
    def towers(self) -> float:
        """Both."""
        return self.images + self.sound


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write them into docs/performance.md")
    if parser.parse_args().update:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2])
    else:
        print(tables(), end="")


def tables() -> str:
    """All tables as Markdown."""
    plan, rounded = _plan(), _plan("model.decoder.base=int8", "model.decoder.cache=int8")
    form = decoder_work(plan.model.config.decoder, plan.state.params, plan.frozen)
    costs = Costs(
        form.flops(lengths_work(LENGTHS, TARGETS)) / len(LENGTHS),
        form.flops(padded_work(LENGTHS)) / len(LENGTHS),
        IMAGES * vision_flops(VisionConfig()),
        CLIPS * audio_flops(HubertConfig(), SOUND),
    )
    found = (
        _sample(plan, form, costs),
        _lengths(form),
        _limits(form, costs),
        _bytes(plan, rounded),
        _sample_bytes(plan),
        _decoding(plan, rounded),
        _stages(),
    )
    return "".join(f"{markdown(table).rstrip()}\n\n" for table in found)


def _plan(*overrides: str) -> Design:
    return lay_out(_job("train", "h200", *overrides))


def _job(kind: Kind, chip: str, *overrides: str) -> Job:
    return make_job(kind, load_config(CONFIG, list(overrides)), parse_topology(f"{chip}:1"), {})


def _mean(work: Work) -> Work:
    """Of one of the samples."""
    return Work(*(total / work.samples for total in work))


def _sample(plan: Design, form: DecoderWork, costs: Costs) -> Table:
    work = _mean(lengths_work(LENGTHS, TARGETS))
    decoder = plan.model.config.decoder
    forward, frozen = forward_work(decoder, plan.params), forward_work(decoder, plan.frozen)
    layers, adapters = frozen.per_token * work.tokens, (forward.per_token - frozen.per_token) * work.tokens
    pairs, head = forward.per_pair * work.pairs, forward.per_target * work.targets
    others = forward.per_target * (work.tokens - work.targets)
    ahead = layers + adapters + pairs + head

    def row(name: str, ahead: float, back: float) -> tuple[str, ...]:
        share = (ahead + back) / costs.packed
        return name, *(f"{flops / 1e12:.3f}" for flops in (ahead, back, ahead + back)), f"{share:.1%}"

    image, sound = vision_flops(VisionConfig()) / 1e9, audio_flops(HubertConfig(), SOUND) / 1e9
    return Table(
        "One training sample, TFLOP",
        ("part", "forward", "backward", "both", "of the decoder"),
        (
            row("layers, frozen", layers, layers),
            row("adapters", adapters, 2 * adapters),
            row("attention, causal pairs", pairs, 2 * pairs),
            row("head at targets", head, head),
            row("**decoder**", ahead, costs.packed - ahead),
            row(f"CLIP ViT-L/14: {IMAGES} frames of {image:.1f} GFLOP", costs.images, 0),
            row(f"HuBERT-large: {CLIPS} clips of 2 s, {sound:.1f} GFLOP each", costs.sound, 0),
            row("**decoder and towers**", ahead + costs.towers, costs.packed - ahead),
            row("more: `remat=full`", 0, layers + adapters + pairs),
            row("more: head at every token", others, others),
            row("more: gradients of all kernels (full training)", 0, layers + head),
        ),
        f"{work.tokens:.0f} tokens, {work.targets:.0f} of them targets, on average.",
    )


def _lengths(form: DecoderWork) -> Table:
    def row(name: str, answers: np.ndarray) -> tuple[str, ...]:
        lengths, samples = PROMPT + answers, len(answers)
        here, there = lengths_work(lengths, answers), padded_work(lengths)
        packed, padded = form.flops(here) / samples, form.flops(there) / samples
        counts = (f"{x / samples:.0f}" for x in (here.tokens, here.targets, there.tokens))
        return name, *counts, f"{packed / 1e12:.2f}", f"{padded / 1e12:.2f}", f"{padded / packed:.2f}"

    return Table(
        "By length: here and in the original's way",
        ("answers", "tokens", "targets", "places in a batch of 3", "TFLOP here", "the original's way", "ratio"),
        (row("labels", TARGETS[:1]), row("descriptions", TARGETS[1:]), row("half of each", TARGETS)),
        "Decoder, forward and backward. The original's way: padded to the longest of three samples, logits of all "
        "places, all pairs.",
    )


def _limits(form: DecoderWork, costs: Costs) -> Table:
    length = float(np.mean(LENGTHS))
    rows = []
    for name in SHOWN:
        chip = CHIPS[name]
        reached = chip.flops * chip.attained
        rates = [chip.flops / costs.packed, reached / costs.packed, length * reached / costs.packed]
        rates += [reached / (costs.packed + costs.towers), reached / (costs.padded + costs.towers)]
        rates += [reached * IMAGES / costs.images, reached * CLIPS / costs.sound]
        rows.append((
            name, f"{chip.flops / 1e12:.0f}", f"{chip.attained:.1%}",
            *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates),
            f"{chip.flops / chip.bandwidth:.0f}",
        ))  # fmt: skip
    speed, tokens, kind = YARDSTICK
    attained = speed * form.flops(lengths_work([tokens], [tokens])) / tokens
    return Table(
        "Limits of one chip",
        (
            "chip", "peak TFLOP/s", "share", "samples/s at the peak", "samples/s", "tokens/s", "samples/s with towers",
            "the original's way, with towers", "CLIP images/s", "HuBERT clips/s", "tokens a weight must meet",
        ),
        tuple(rows),
        "From the fifth column on at the share of the peak that others have reached in training large models on that "
        f"chip. The nearest published training, NeMo AutoModel's LoRA on Qwen2.5-7B at {speed:,} tokens/s on one "
        f"{kind.upper()} with rows of {tokens:,} tokens, is {attained / 1e12:.0f} TFLOP/s in this count, "
        f"{attained / CHIPS[kind].flops:.1%} of the peak; at that rate {attained / costs.packed:.0f} samples/s, "
        f"{length * attained / costs.packed:,.0f} tokens/s of these samples.",
    )  # fmt: skip


def _bytes(plan: Design, rounded: Design) -> Table:
    c = plan.model.config.decoder
    masters = device_bytes(plan.state.params)
    vision = _size(VisionTower(VisionConfig()), (1, 224, 224, 3))
    audio = _size(Hubert(HubertConfig()), (1, SOUND))

    def kept(remat: Remat) -> tuple[str, str]:
        size = c.layers * saved_bytes(_under(c, remat), 1)
        return f"kept for the backward pass, a token, `remat={remat}`", f"{size / 1e6:.2f} MB"

    batch = 3 * padded_work(LENGTHS).targets / len(LENGTHS)
    return Table(
        "Bytes on one device",
        ("what", "bytes"),
        (
            ("frozen base, bfloat16", f"{device_bytes(plan.frozen) / 1e9:.2f} GB"),
            ("frozen base, layers int8", f"{device_bytes(rounded.frozen) / 1e9:.2f} GB"),
            ("towers, bfloat16; none with feature shards", f"{2 * (vision + audio) / 1e9:.2f} GB"),
            (f"trained: {masters / 4e6:.1f} M float32 masters", f"{masters / 1e9:.2f} GB"),
            ("Adam's two moments", f"{device_bytes(plan.state.optimizer) / 1e9:.2f} GB"),
            ("gradients", f"{masters / 1e9:.2f} GB"),
            *map(kept, POLICIES),
            ("logits of three samples padded, float32", f"{logits_bytes(c, batch) / 1e6:.0f} MB"),
            ("keys and values of a token, bfloat16", f"{cache_bytes(c) / 1e3:.1f} KB"),
            ("keys and values of a token, int8", f"{cache_bytes(rounded.model.config.decoder) / 1e3:.1f} KB"),
        ),
    )


def _under(c: DecoderConfig, remat: Remat) -> DecoderConfig:
    return c.model_copy(update={"remat": remat})


def _size(tower: Any, shape: tuple[int, ...]) -> int:
    shapes = jax.eval_shape(lambda: tower.init(jax.random.key(0), jnp.zeros(shape)))
    return sum(x.size for x in jax.tree.leaves(shapes))


def _sample_bytes(plan: Design) -> Table:
    c, streams = plan.model.config.decoder, feature_shapes(load_config(CONFIG))

    def row(name: str, answers: np.ndarray) -> tuple[str, ...]:
        work = _mean(lengths_work(PROMPT + answers, answers))
        by_policy = [work_bytes(_under(c, remat), work, streams) for remat in POLICIES]
        one = by_policy[0]
        megabytes = (*(found.kept for found in by_policy), one.logits, one.cache)
        return name, *(f"{size / 1e6:,.1f} MB" for size in megabytes), f"{one.features / 1e3:.1f} KB"

    return Table(
        "Bytes of a sample",
        ("answers", *(f"kept, `remat={remat}`" for remat in POLICIES), "logits", "keys and values", "features"),
        (row("labels", TARGETS[:1]), row("descriptions", TARGETS[1:]), row("half of each", TARGETS)),
        "Kept for the backward pass; logits of the targets, float32; keys and values where the answer is written, "
        "bfloat16; features in shards, float16.",
    )


def _decoding(plan: Design, rounded: Design) -> Table:
    batches, places = (1, 32, 128), bucket(PROMPT) + WRITTEN
    rows = []
    for name in SHOWN:
        for kind, one in (("bfloat16", plan), ("int8", rounded)):
            c, params, chip = one.model.config.decoder, one.params, CHIPS[name]
            cells = []
            for batch in batches:
                least = decode_floor(c, params, chip, batch, places)
                cells.append(f"{least.seconds * 1e3:.2f} ms, {batch / least.seconds:,.0f}")
            # Both times are straight lines: memory's begins with the weights, arithmetic's is the steeper one.
            none, first = (decode_floor(c, params, chip, batch, places) for batch in (0, 1))
            meet = none.memory / (first.arithmetic - (first.memory - none.memory))
            rows.append((name, kind, f"{read_bytes(c, params) / 1e9:.2f}", *cells, f"{meet:.0f}"))
    return Table(
        "The floor of writing answers",
        (
            "chip",
            "weights, cache",
            "weights GB",
            *(f"{batch} at a time" for batch in batches),
            "arithmetic decides from",
        ),
        tuple(rows),
        f"Least time of a step and tokens/s of all rows, at the data sheet's bandwidth. {places} places a row: prompts "
        f"of {PROMPT} tokens padded to {bucket(PROMPT)}, and {WRITTEN} written.",
        names=2,
    )


def _stages() -> Table:
    rows = []
    for name in ("h200", "h100"):
        jobs: tuple[tuple[Kind, tuple[str, ...], str], ...] = (
            ("train", ("train.rows=8", "data.row_samples=16", "data.window=512"), "a step of 8 rows of 2,048 tokens"),
            ("answer", ("evaluate.batch=128", f"evaluate.max_new={WRITTEN}"), "128 answers"),
        )
        for kind, overrides, what in jobs:
            for stage, time in estimate(_job(kind, name, *overrides)).times.items():
                spent = (f"{seconds * 1e3:,.0f}" for seconds in (time.arithmetic, time.memory))
                rows.append((name, what if kind == "train" else f"{what}: {stage}", *spent, time.bound))
    return Table(
        "What bounds each stage",
        ("chip", "stage", "arithmetic ms", "memory ms", "decided by"),
        tuple(rows),
        "The roofline of `affectgpt plan`: arithmetic at the share above, memory at 80 % of the data sheet.",
        names=2,
    )


if __name__ == "__main__":
    main()
