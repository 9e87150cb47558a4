"""Samples trained on a second: the training step against the same computation in torch.

  python benchmarks/train_step.py

Every part has random weights, the same on both sides; each side is a process of its own, and they take turns. Prompts
of 108 tokens, half of the targets labels of about 12 tokens, half descriptions of about 170 (an assumption: the
lengths of MER-Caption+'s descriptions are not public), 8 crops of 224 x 224 pixels and 8 clips of 2 s a sample, held
in memory. Needs the extra [torch].

  in the loop  the same batch of three on both sides, padded to its longest, CLIP with its image processor and HuBERT
               at every step. torch as the authors have it: transformers and PEFT, eager attention, logits at every
               position, AdamW; on a GPU fp16 under autocast with a gradient scaler. Losses must agree in float32.
  cached       the same with the encoders' features at hand.
  natural      features at hand. Ours in packed rows; torch with sdpa, sixteen samples a batch, bf16 and fused AdamW on
               a GPU, and torch.compile, layer by layer (`--compile`: by default on a GPU).

  full rows    ours alone, rows of one long sample, all tokens but its prompt's targets: to hold against published
               rates of adapters' training.

Warming up does not count; the first step, with what it compiles, is shown apart, and so is the time from a process's
start to its first step in the loop, weights read from files on both sides: of ours with nothing in the compilation
cache, and begun once more with everything there.

  python benchmarks/train_step.py --shape 7b      # on a GPU
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import numpy as np
from common.shapes import LANGUAGE, TOWERS
from common.sides import (
    Found,
    Pieces,
    add_arguments,
    compare,
    hubert_features,
    tower_kinds,
    write_towers,
)

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape, Example, Sample, collate_rows, reference_batch
from affectgpt_jax.data.plan import Limits, Plan, Row
from affectgpt_jax.data.preprocess import SAMPLE_RATE, clip_pixels, normalise_audio
from affectgpt_jax.data.prompts import layout_size, soft_layout

SHAPES: dict[str, dict[str, Any]] = {
    "60m": {
        "language": LANGUAGE["60m"], **TOWERS["small"],
        "dtype": "float32", "remat": "names", "row_length": 512, "rows": 2, "accumulate": 2, "steps": 2, "full": 512,
    },
    "7b": {
        "language": LANGUAGE["7b"], **TOWERS["large"],
        "dtype": "bfloat16", "remat": "names", "row_length": 2048, "rows": 4, "accumulate": 1, "steps": 24,
        "full": 4096,
    },
    "tiny": {
        "language": LANGUAGE["tiny"], **TOWERS["tiny"],
        "dtype": "float32", "remat": "none", "row_length": 512, "rows": 2, "accumulate": 2, "steps": 4, "full": 256,
    },
}  # fmt: skip
MODE = "multiface_audio_face_text"
PROMPT, LABELS, DESCRIPTION, LONGEST = 108, (10, 15), (170.0, 50.0), 380
"""Tokens of a prompt; of a target the range of labels, mean and standard deviation of descriptions, the most."""
PAD = 0
SAME, EASY = 3, 16
"""Samples of a batch: of the authors', of torch's best."""
FRAMES, SIZE, SECONDS = 8, 224, 2
MEDIA, POOL = 6, 1024
"""Samples with media, which come again and again; samples with features."""
RANK, ALPHA, DROPOUT, RATE, DECAY = 16, 32, 0.05, 1e-5, 0.05
SEED = 0
AGREEMENT, FEATURES = 1e-4, 1e-3
"""Largest differences in float32: of the first losses, and of features, which ours rounds to the shards' float16."""
MODES = ("in the loop", "cached", "natural")
FULL = "full rows"
FULL_ROWS = 2
"""Rows of a step of full rows."""


def main() -> None:
    """Compare, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="60m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 also keeps torch from autocast")
    parser.add_argument(
        "--steps", type=int, help="timed steps of three samples; of the natural way a third as many, two at least"
    )
    parser.add_argument("--rows", type=int, help="rows of our natural way's microbatch")
    parser.add_argument("--row-length", type=int, help="tokens of such a row")
    parser.add_argument("--accumulate", type=int, help="microbatches of its step")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile in its natural way")
    parser.add_argument("--dropout", type=float, default=DROPOUT, help="0 lets every loss agree, not the first alone")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate")
    add_arguments(parser)
    args = parser.parse_args()
    for key in ("dtype", "steps", "rows", "row_length", "accumulate"):
        if getattr(args, key) is None:
            setattr(args, key, SHAPES[args.shape][key])
    compare(args, theirs, ours, show, prepare, again=True)


def show(args: argparse.Namespace, found: Found) -> None:
    """Print the setting, a row for each side of each mode, the ratios, and whether the first losses agree."""
    from affectgpt_jax.training.flops import DecoderWork, Work, mfu_lora

    ours, torch = found["ours"][0], found["torch"][0]
    peak = ours["peak"]
    samples, tokens, targets, _ = ours["natural"]["work"]
    places = natural_steps(args.steps) * args.accumulate * args.rows * args.row_length
    print(
        f"{args.shape}: decoder {_millions(ours['decoder'])}, CLIP {_millions(torch['vision'])}, HuBERT "
        f"{_millions(torch['audio'])}, trained {_millions(ours['trained'])}; {args.dtype}, {ours['device']}, "
        f"{os.cpu_count()} cores, {args.runs} runs in turn\n"
        f"batch of {SAME}: {torch['cached']['work'][1] / torch['cached']['work'][0]:.0f} tokens a sample, padded to "
        f"{torch['padded']}; natural: {tokens / samples:.0f} tokens a sample, {targets / samples:.0f} of them targets; "
        f"ours {args.accumulate} x {args.rows} rows of {args.row_length} a step, {tokens / places:.0%} filled; torch "
        f"{EASY} samples, {torch['settings']}"
    )

    def rates(side: str, mode: str) -> list[float]:
        return [result[mode]["work"][0] / result[mode]["seconds"] for result in found[side]]

    print(f"\n{'':<22}{'samples/s':>10}{'spread':>20}{'tokens/s':>10}{'mfu_lora':>10}{'first step':>12}")
    for mode in (*MODES, FULL):
        for side in ("torch", "ours"):
            if mode not in found[side][0]:
                continue
            values = sorted(rates(side, mode))
            middle = statistics.median(values)
            done = Work(*found[side][0][mode]["work"])
            spread = f"{values[0]:.3f} - {values[-1]:.3f}"
            share = mfu_lora(DecoderWork(*ours["flops"]), done, done.samples / middle, peak) if peak else None
            mfu = "-" if share is None else f"{share:.1%}"
            tokens = middle * done.tokens / done.samples
            first = statistics.median(result[mode]["first"] for result in found[side])
            print(f"{mode + ', ' + side:<22}{middle:>10.3f}{spread:>20}{tokens:>10.0f}{mfu:>10}{first:>10.1f} s")
    print()
    for mine, other in (*((mode, mode) for mode in MODES), ("natural", "in the loop")):
        values = sorted(a / b for a, b in zip(rates("ours", mine), rates("torch", other), strict=True))
        print(
            f"ours, {mine}, against torch, {other}: {statistics.median(values):.2f}x ({values[0]:.2f} - "
            f"{values[-1]:.2f})"
        )
    waits = sorted(result["natural"]["waited"] / result["natural"]["seconds"] for result in found["ours"])
    print(
        f"ours, natural, waited for data: {statistics.median(waits):.2%} of the time ({waits[0]:.2%} - {waits[-1]:.2%})"
    )
    usual, cold, warm = (sorted(result["start"] for result in found[side]) for side in ("torch", "ours", "again"))
    middle = statistics.median(usual)

    def start(seconds: list[float]) -> str:
        ours = statistics.median(seconds)
        return f"{ours:.1f} s ({seconds[0]:.1f} - {seconds[-1]:.1f}; {middle / ours:.2f}x)"

    print(
        f"from a process's start to its first step: torch {middle:.1f} s ({usual[0]:.1f} - {usual[-1]:.1f}), ours "
        f"{start(cold)} with nothing in the compilation cache, {start(warm)} with it"
    )
    off = [_off(*pair) for pair in zip(torch["features"], ours["features"], strict=True)]
    print(f"features of the first crop and clip of sound: off by {off[0]:.1e}, {off[1]:.1e} of the largest")
    agree = max(off) <= FEATURES
    for mode in ("in the loop", "cached"):
        losses, norms = ([side[mode][key] for side in (torch, ours)] for key in ("losses", "norm"))
        agree &= abs(losses[1][0] / losses[0][0] - 1) <= AGREEMENT
        print(
            f"{mode}, torch and ours: first loss {losses[0][0]:.6f}, {losses[1][0]:.6f}; gradient norm {norms[0]:.5f}, "
            f"{norms[1]:.5f}; last loss {losses[0][-1]:.6f}, {losses[1][-1]:.6f}"
        )
    print(f"the same computation: {'yes' if agree else 'no' if args.dtype == 'float32' else 'to half precision'}")
    if args.dtype == "float32" and not agree:
        sys.exit(f"features differ by more than {FEATURES:g} or first losses by more than {AGREEMENT:g}")


def _off(theirs: list[float], ours: list[float]) -> float:
    return float(np.max(np.abs(np.subtract(theirs, ours))) / np.max(np.abs(theirs)))


def _millions(size: int) -> str:
    return f"{size / 1e6:.2f}M" if size < 1e7 else f"{size / 1e6:.0f}M"


# ---------------------------------------------------------------------------------------------------------------------
# What both sides train on


def target_lengths(rng: np.random.Generator, size: int) -> np.ndarray:
    """Tokens of targets, their "###" and end included: labels and descriptions by turns."""
    described = np.clip(rng.normal(*DESCRIPTION, size), 40, LONGEST).astype(int)
    return np.where(np.arange(size) % 2 == 0, rng.integers(*LABELS, size), described)[rng.permutation(size)]


def example(rng: np.random.Generator, targets: int, vocabulary: int) -> Example:
    """Random words; the soft tokens stand where a prompt has them, among its first words."""
    tokens = rng.integers(PAD + 1, vocabulary, PROMPT + targets).astype(np.int32)
    soft_index = np.zeros(len(tokens), np.int32)
    slots = [slot for slots in soft_layout(MODE).values() for slot in slots]
    soft_index[np.arange(1, len(slots) + 1) * 16] = slots
    return Example(tokens, soft_index, np.arange(PROMPT - 1, len(tokens) - 1, dtype=np.int32), tokens[PROMPT:])


def same_batches(vocabulary: int) -> Iterator[tuple[list[Example], np.ndarray]]:
    """Batches of three and the numbers of their media, without end.

    All have the lengths of one: of 101 that were drawn, the one with the median longest.
    """
    rng = np.random.default_rng(SEED)
    drawn = target_lengths(rng, 101 * SAME + 1)[:-1].reshape(-1, SAME)
    lengths = drawn[np.argsort(drawn.max(axis=1), kind="stable")[len(drawn) // 2]]
    for number in count():
        yield [example(rng, int(n), vocabulary) for n in lengths], (number * SAME + np.arange(SAME)) % MEDIA


def pool(vocabulary: int) -> list[Example]:
    """Samples of the natural way."""
    rng = np.random.default_rng([SEED, 1])
    return [example(rng, int(n), vocabulary) for n in target_lengths(rng, POOL)]


def media() -> tuple[np.ndarray, np.ndarray]:
    """Crops, uint8 [n, 8, 224, 224, 3], and clips of sound, float32 [n, 8, 32000]."""
    rng = np.random.default_rng([SEED, 2])
    faces = rng.integers(0, 256, (MEDIA, FRAMES, SIZE, SIZE, 3), np.uint8)
    return faces, rng.standard_normal((MEDIA, FRAMES, SECONDS * SAMPLE_RATE), np.float32)


def features(shape: dict[str, Any]) -> dict[str, np.ndarray]:
    """What encoders gave, in the shards' type."""
    rng = np.random.default_rng([SEED, 3])
    widths = {"face": shape["vision"]["projection_dim"], "audio": shape["audio"]["hidden_size"]}
    return {name: rng.standard_normal((POOL, FRAMES, n), np.float32).astype(np.float16) for name, n in widths.items()}


def row_loader(
    examples: Sequence[Example], stored: dict[str, np.ndarray]
) -> Callable[[Sequence[Row]], list[list[Sample]]]:
    """Gives planned rows the samples that they name, with their features."""

    def one(ask: Any) -> Sample:
        return Sample(examples[ask.sample], {name: x[ask.sample] for name, x in stored.items()}, ask.weight)

    return lambda rows: [[one(ask) for ask in row.asks] for row in rows]


def work(examples: Sequence[Example]) -> np.ndarray:
    """Samples, tokens, targets, and pairs of query and key."""
    from affectgpt_jax.training.flops import lengths_work  # and with it jax, which torch's side does without

    return np.array(lengths_work([len(x.tokens) for x in examples], [len(x.target_ids) for x in examples]))


def natural_steps(steps: int) -> int:
    """Its steps are larger."""
    return max(2, steps // 3)


# ---------------------------------------------------------------------------------------------------------------------
# torch


def torch_model(args: argparse.Namespace, language: Any) -> Any:
    """AffectGPT in torch around a language model: adapters by PEFT, parts named as in the authors' checkpoints."""
    import peft
    import torch
    from torch import nn

    shape = SHAPES[args.shape]
    vision, audio = shape["vision"]["projection_dim"], shape["audio"]["hidden_size"]
    shared, width = max(vision, audio), language.config.hidden_size
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=args.dropout, target_modules=linears, task_type="CAUSAL_LM"
    )

    class AffectGPT(nn.Module):
        """Fusion by attention, soft tokens among the words, a language model."""

        def __init__(self) -> None:
            super().__init__()
            self.llama_model = peft.get_peft_model(language, lora)
            self.video_attention_mlp, self.affectgpt_proj = nn.Linear(vision, 1), nn.Linear(vision, width)
            self.audio_attention_mlp, self.audio_llama_proj = nn.Linear(audio, 1), nn.Linear(audio, width)
            self.multi_video_embs, self.multi_audio_embs = nn.Linear(vision, shared), nn.Linear(audio, shared)
            self.attention_mlp, self.fc_att = nn.Linear(2 * shared, shared), nn.Linear(shared, 2)
            self.multi_llama_proj = nn.Linear(shared, width)
            self.image_llama_proj = nn.Linear(vision, width)  # of another input mode

        def forward(self, ids: Any, labels: Any, mask: Any, places: Any, face: Any, audio: Any) -> Any:
            v, a = self.multi_video_embs(face.mean(1)), self.multi_audio_embs(audio.mean(1))
            weights = self.fc_att(self.attention_mlp(torch.cat([v, a], -1)))
            soft = {
                "multi": self.multi_llama_proj((weights[..., None] * torch.stack([v, a], 1)).sum(1)),
                "audio": self.audio_llama_proj((self.audio_attention_mlp(audio) * audio).sum(1)),
                "face": self.affectgpt_proj((self.video_attention_mlp(face) * face).sum(1)),
            }
            embeds = self.llama_model.get_input_embeddings()(ids)
            placed = torch.stack([soft[name] for name in soft_layout(MODE)], 1).to(embeds.dtype)
            embeds = embeds.index_put((torch.arange(len(ids), device=ids.device)[:, None], places), placed)
            return self.llama_model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss

    return AffectGPT().train()


def trained_by_torch(model: Any) -> dict[str, Any]:
    """Parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def prepare(args: argparse.Namespace) -> None:
    """Write random weights of all parts; the language model's in bfloat16 where the sides compute in halves."""
    import torch
    import transformers
    from safetensors.torch import save_file

    shape = SHAPES[args.shape]
    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.float32 if args.dtype == "float32" else torch.bfloat16)
        language = transformers.Qwen2ForCausalLM._from_config(transformers.Qwen2Config(**shape["language"]))
        torch.set_default_dtype(torch.float32)
        language.save_pretrained(args.folder / "language")
        write_towers(shape, args.folder)
        model = torch_model(args, language)
    trained = {name: p.detach().float().cpu() for name, p in trained_by_torch(model).items()}
    save_file(trained, args.folder / "trained.safetensors")


def theirs(args: argparse.Namespace) -> Pieces:
    """transformers and PEFT."""
    import torch
    import transformers
    from safetensors.torch import load_file
    from torch import nn

    shape = SHAPES[args.shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = args.dtype != "float32"
    compiled = device == "cuda" if args.compile is None else args.compile
    vocabulary = shape["language"]["vocab_size"]
    reference = torch.float16 if half else torch.float32

    def opened(kind: Any, name: str, dtype: Any) -> Any:
        part = kind.from_pretrained(args.folder / name, dtype=dtype, attn_implementation="eager")
        return part.to(device).requires_grad_(False)

    language = opened(transformers.Qwen2ForCausalLM, "language", reference)
    vision, audio = (opened(kind, name, torch.float32).eval() for name, kind in tower_kinds().items())
    with torch.device(device):
        model = torch_model(args, language)
    _, unknown = model.load_state_dict(load_file(args.folder / "trained.safetensors", device), strict=False)
    assert not unknown, unknown
    trained = trained_by_torch(model)
    processor = transformers.CLIPImageProcessorPil()
    faces, sound = media()
    stored = features(shape)

    def on_device(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    encoded: list[Any] = []

    @torch.no_grad()
    def encode(which: np.ndarray) -> list[Any]:
        pixels = processor(list(faces[which].reshape(-1, SIZE, SIZE, 3)), return_tensors="pt")["pixel_values"]
        seen = vision(pixel_values=pixels.to(device)).image_embeds
        heard = on_device(np.concatenate([normalise_audio(sound[i]) for i in which]))
        heard = hubert_features(audio(heard, output_hidden_states=True))
        found = [x.view(len(which), FRAMES, -1) for x in (seen, heard)]
        if not encoded:
            encoded.extend(x[0, 0].tolist() for x in found)
        return found

    def cached(which: np.ndarray) -> list[Any]:
        return [on_device(stored[name][which]).float() for name in ("face", "audio")]

    def make_optimizer(fused: bool) -> Any:
        decayed = [p for name, p in trained.items() if p.ndim > 1]
        others = [p for name, p in trained.items() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.999), fused=fused)

    def run(
        mode: str,
        batches: Iterator[tuple[list[Example], np.ndarray]],
        read: Callable[[np.ndarray], list[Any]],
        steps: int,
        dtype: Any,
        optimizer: Any,
    ) -> Pieces:
        scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
        losses: list[Any] = []

        def step(examples: list[Example], which: np.ndarray, norm: bool = False) -> float:
            host = reference_batch(examples, PAD)
            # Where the soft tokens stand, in the order of their slots.
            index = np.stack(
                [np.nonzero(x.soft_index)[0][np.argsort(x.soft_index[x.soft_index > 0])] for x in examples]
            )
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                inputs = [on_device(x) for x in (*host, index)]
                loss = model(*inputs, *read(which))
            scaler.scale(loss).backward()
            found = 0.0
            if norm:
                scaler.unscale_(optimizer)
                found = float(nn.utils.get_total_norm([p.grad for p in trained.values() if p.grad is not None]))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            return found

        def finish() -> None:
            if device == "cuda":
                torch.cuda.synchronize()

        started = time.perf_counter()
        norm = step(*next(batches), norm=True)
        finish()
        first = time.perf_counter() - started
        if mode == MODES[0]:
            yield {"start": time.time() - args.spawned}
        for batch in islice(batches, warmup(device)):
            step(*batch)
        finish()
        taken: list[Example] = []
        started = time.perf_counter()
        for batch in islice(batches, steps):
            step(*batch)
            taken += batch[0]
        finish()
        seconds = time.perf_counter() - started
        losses = [float(x) for x in losses]
        yield {mode: {"seconds": seconds, "work": work(taken).tolist(), "first": first, "norm": norm, "losses": losses}}

    optimizer = make_optimizer(fused=False)
    yield from run("in the loop", same_batches(vocabulary), encode, args.steps, reference, optimizer)
    yield {
        "features": encoded,
        "padded": max(len(one.tokens) for one in next(same_batches(vocabulary))[0]),
        "settings": f"sdpa{', bf16, fused AdamW' if half else ''}{', torch.compile' if compiled else ', not compiled'}",
        **{name: sum(p.numel() for p in part.parameters()) for name, part in (("vision", vision), ("audio", audio))},
    }
    yield from run("cached", same_batches(vocabulary), cached, args.steps, reference, optimizer)
    best = torch.bfloat16 if half else torch.float32
    language.set_attn_implementation("sdpa")
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(best)
    if compiled:  # a layer's program serves them all
        for layer in language.model.layers:
            layer.compile()
    examples = pool(vocabulary)
    order = np.random.default_rng([SEED, 4]).permutation(POOL)
    easy = (([examples[i] for i in part], part) for part in _endless(order))
    if not compiled:  # what is not compiled is warm: a small batch is enough for the first
        easy = chain(islice(same_batches(vocabulary), 1), easy)
    fused = make_optimizer(fused=device == "cuda")
    yield from run("natural", easy, cached, natural_steps(args.steps), best, fused)


def _endless(order: np.ndarray) -> Iterator[np.ndarray]:
    for number in count():
        yield np.take(order, np.arange(number * EASY, (number + 1) * EASY), mode="wrap")


def warmup(device: str) -> int:
    """Steps after the first that do not count; on a GPU some, for programs of other lengths to be compiled."""
    return 0 if device == "cpu" else 8


# ---------------------------------------------------------------------------------------------------------------------
# Ours


def ours(args: argparse.Namespace) -> Pieces:
    """The step as `affectgpt train` takes it."""
    import jax

    from affectgpt_jax.config import build_config
    from affectgpt_jax.config.networks import DecoderConfig
    from affectgpt_jax.data.pipeline import training_batches
    from affectgpt_jax.inference.encoders import Encoders, encode_batch
    from affectgpt_jax.models.affectgpt import AffectGPT
    from affectgpt_jax.prefetch import prefetch
    from affectgpt_jax.sharding import put_batch
    from affectgpt_jax.training.chips import find_chip
    from affectgpt_jax.training.flops import batch_work, decoder_work
    from affectgpt_jax.training.setup import set_up
    from affectgpt_jax.weights.files import part_config, read_file
    from affectgpt_jax.weights.initial import in_base, parameter_shapes
    from affectgpt_jax.weights.networks import TRAINED
    from affectgpt_jax.weights.table import nest, paths, read_tree

    jax.config.update("jax_compilation_cache_dir", str(args.folder / f"compiled-{args.turn}"))
    shape = SHAPES[args.shape]
    folders = {name: str(args.folder / name) for name in ("language", "vision", "audio")}
    decoder = DecoderConfig.from_hf(part_config(folders["language"], "language"))
    sizes = {key: value for key, value in decoder.model_dump().items() if key not in ("lora", "dtype", "remat")}
    lora = {"rank": RANK, "alpha": ALPHA, "dropout": args.dropout}
    config = build_config(
        {
            "weights": folders,
            "model": {
                "mode": MODE,
                "vision_width": shape["vision"]["projection_dim"],
                "audio_width": shape["audio"]["hidden_size"],
                "decoder": {**sizes, "lora": lora, "dtype": args.dtype, "remat": shape["remat"]},
            },
            "train": {
                "rows": 1,
                "dropout": args.dropout > 0,
                "optimizer": {"peak": args.rate, "end": args.rate, "warmup_steps": 0, "weight_decay": DECAY},
            },
        },
        "benchmark",
    )
    shapes = paths(parameter_shapes(AffectGPT(config.model)))
    own = nest({path: x for path, x in shapes.items() if not in_base(config, path)})
    file = args.folder / "trained.safetensors"
    given = paths(read_tree(TRAINED, own, read_file(file), str(file)))
    setup = set_up(config, given)
    state = setup.state
    encoders = Encoders(folders["vision"], folders["audio"], batch=SAME * FRAMES, dtype=args.dtype)
    faces, sound = media()
    stored = features(shape)
    soft = layout_size(soft_layout(MODE))

    def same(encoded: bool) -> Iterator[Batch]:
        """Batches of three; of media, pixels and sound are made ready where `data.source=media` does it."""
        for examples, which in same_batches(decoder.vocab):
            rows = []
            for one, i in zip(examples, which, strict=True):
                inputs = {name: x[i] for name, x in stored.items()}
                if not encoded:
                    inputs = {"face": clip_pixels(faces[i]), "audio": normalise_audio(sound[i])}
                rows.append([Sample(one, inputs)])
            length = max(len(one.tokens) for one in examples)
            targets = max(len(one.target_ids) for one in examples)
            streams: Any = {name: x.shape for name, x in rows[0][0].features.items()}
            kind = np.float16 if encoded else np.float32
            host = collate_rows(rows, BatchShape(SAME, length, targets, 1, soft, streams, kind))
            yield jax.tree.map(lambda x: x[None], host)

    examples = pool(decoder.vocab)
    row_targets = max(args.row_length // 2, LONGEST)
    plan = Plan(
        tokens=np.array([[len(one.tokens) for one in examples]]),
        targets=np.array([[len(one.target_ids) for one in examples]]),
        limits=Limits(args.row_length, row_targets, config.data.row_samples),
        step_rows=args.rows * args.accumulate,
        seed=SEED,
        weights=(1.0,),
        rounds=args.accumulate,
    )

    def packed() -> Iterator[Batch]:
        streams: Any = {name: x.shape[1:] for name, x in stored.items()}
        rows = BatchShape(args.rows, args.row_length, row_targets, config.data.row_samples, soft, streams, np.float16)
        loader: Any = row_loader(examples, stored)
        return training_batches(plan, loader, rows, start=0, steps=10**6, threads=config.data.threads)

    def full() -> Iterator[Batch]:
        targets = shape["full"] - PROMPT
        rng = np.random.default_rng([SEED, 5])
        streams: Any = {name: x.shape[1:] for name, x in stored.items()}
        rows = BatchShape(FULL_ROWS, shape["full"], targets, 1, soft, streams, np.float16)
        while True:
            samples = [
                [Sample(example(rng, targets, decoder.vocab), {name: x[i] for name, x in stored.items()})]
                for i in range(FULL_ROWS)
            ]
            yield jax.tree.map(lambda x: x[None], collate_rows(samples, rows))

    encoded: list[Any] = []

    def run(mode: str, batches: Iterator[Batch], steps: int, encode: bool = False) -> Pieces:
        def ready(host: Batch) -> tuple[Any, Batch]:
            if encode:
                host = jax.tree.map(lambda x: x[None], encode_batch(encoders, jax.tree.map(lambda x: x[0], host)))
                if not encoded:
                    encoded.extend(host.features[name][0, 0, 0, 0].tolist() for name in ("face", "audio"))
            return batch_work(host), put_batch(setup.mesh, host)

        def take(number: int) -> tuple[np.ndarray, list[Any], float]:
            nonlocal state
            done, taken, waited = np.zeros(4, np.int64), [], 0.0
            # What is made ready ahead is made within the call: it begins and ends with nothing at hand.
            with prefetch(islice(batches, number), ready) as placed:
                for _ in range(number):
                    asked = time.perf_counter()
                    counted, batch = next(placed)
                    waited += time.perf_counter() - asked
                    state, metrics = setup.step(state, setup.frozen, batch)
                    done += np.array(counted)
                    jax.block_until_ready(taken[-1:])  # one step late, as the training loop looks at them
                    taken.append(metrics)
            return done, jax.device_get(taken), waited

        started = time.perf_counter()
        begin = take(1)[1]
        first = time.perf_counter() - started
        if mode == MODES[0]:
            yield {"start": time.time() - args.spawned}
        begin += take(warmup(jax.default_backend()))[1]
        started = time.perf_counter()
        done, metrics, waited = take(steps)
        seconds = time.perf_counter() - started
        losses = [float(x.loss) for x in (*begin, *metrics)]
        norm = float(begin[0].gradient_norm)
        yield {
            mode: {
                "seconds": seconds, "waited": waited, "work": done.tolist(), "first": first, "norm": norm,
                "losses": losses,
            }
        }  # fmt: skip

    yield from run("in the loop", same(encoded=False), args.steps, encode=True)
    chip = find_chip(jax.devices()[0].device_kind)
    yield {
        "features": encoded,
        "decoder": sum(x.size for path, x in shapes.items() if in_base(config, path)),
        "trained": sum(x.size for x in jax.tree.leaves(state.params)),
        "device": jax.devices()[0].device_kind,
        "flops": list(decoder_work(config.model.decoder, state.params, setup.frozen)),
        "peak": None if chip is None else chip.flops,
    }
    yield from run("cached", same(encoded=True), args.steps)
    yield from run("natural", packed(), natural_steps(args.steps))
    yield from run(FULL, full(), natural_steps(args.steps))


if __name__ == "__main__":
    main()
