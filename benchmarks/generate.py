"""Answers a second: the engine against Hugging Face's `generate`, one clip at a time and in batches.

  python benchmarks/generate.py

A Qwen2-class decoder of 100M parameters with random weights, prompts of 110 tokens, 64 new tokens, greedy, float32, the
same weights and prompts on both sides, in turn, each side a process of its own. Needs the extra [torch].

  python benchmarks/generate.py --shape 7b --dtype bfloat16 --batches 1 32 128      # on a GPU
"""

import argparse
import os
import time
from typing import Any

import numpy as np
from common.shapes import LANGUAGE
from common.sides import Found, Pieces, add_arguments, compare, show_rates

PROMPT, NEW = 110, 64
SEED = 0


def main() -> None:
    """Compare, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("100m", "7b", "tiny"), default="100m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32], help="rows at a time of the engine and of torch"
    )
    parser.add_argument("--single", type=int, default=4, help="clips that torch answers one by one")
    add_arguments(parser)
    compare(parser.parse_args(), theirs, ours, show, prepare)


def show(args: argparse.Namespace, found: Found) -> None:
    """Print both sides."""
    first = {side: results[0] for side, results in found.items()}
    print(
        f"{args.shape}: {first['ours']['parameters'] / 1e6:.0f}M parameters, {args.dtype}, prompts of {PROMPT}, {NEW} "
        f"new tokens, {first['ours']['device']}, {os.cpu_count()} cores, {args.runs} runs in turn"
    )
    rates = {side: [result["rates"] for result in results] for side, results in found.items()}
    show_rates("", "clips/s", rates, "one by one", tokens=NEW)
    if (floor := first["ours"]["floor"]) is not None:
        for name, share in floor.items():
            print(f"ours, {name}: {share:.0%} of the floor of decoding: weights and cache read once a token")
    same = first["torch"]["ids"] == first["ours"]["ids"]
    print(f"\nthe same ids on both sides: {'yes' if same else 'no (half precision or a tie)'}")


def prompts(count: int, vocabulary: int) -> np.ndarray:
    """Random words, the same on both sides."""
    return np.random.default_rng(SEED).integers(0, vocabulary, (count, PROMPT)).astype(np.int32)


def prepare(args: argparse.Namespace) -> None:
    """Write random weights."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LANGUAGE[args.shape]))
    model.to(getattr(torch, args.dtype)).save_pretrained(args.folder)


def theirs(args: argparse.Namespace) -> Pieces:
    """transformers: answers one by one, then in batches."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.Qwen2ForCausalLM.from_pretrained(args.folder, dtype=getattr(torch, args.dtype))
    model = model.to(device).eval()
    model.generation_config.eos_token_id = None
    rows = max([*args.batches, args.single])
    ids = torch.from_numpy(prompts(rows, model.config.vocab_size)).long().to(device)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    def run(asked: Any) -> Any:
        with torch.no_grad():
            found = model.generate(asked, attention_mask=torch.ones_like(asked), **options)[:, PROMPT:]
        return found.cpu()

    run(ids[:1])
    rates = {}
    started = time.perf_counter()
    single = [run(ids[i : i + 1])[0].tolist() for i in range(args.single)]
    rates["one by one"] = args.single / (time.perf_counter() - started)
    yield {"rates": rates, "ids": single}
    for batch in args.batches:
        run(ids[:batch, :8])
        started = time.perf_counter()
        run(ids[:batch])
        rates[f"{batch} at a time"] = batch / (time.perf_counter() - started)
        yield {"rates": rates}


def ours(args: argparse.Namespace) -> Pieces:
    """The engine, in batches."""
    import jax
    import jax.numpy as jnp

    from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig
    from affectgpt_jax.inference.cpu_layout import arrange
    from affectgpt_jax.inference.engine import Engine, Prompts, Request
    from affectgpt_jax.models.affectgpt import AffectGPT
    from affectgpt_jax.planning.estimate import decode_floor
    from affectgpt_jax.training.chips import find_chip
    from affectgpt_jax.weights.files import open_part
    from affectgpt_jax.weights.initial import parameter_shapes
    from affectgpt_jax.weights.networks import DECODER
    from affectgpt_jax.weights.table import read_tree

    config, tensors = open_part(args.folder, "language")
    decoder = DecoderConfig.from_hf(config, lora=LoraConfig(rank=0), dtype=args.dtype)
    model = AffectGPT(ModelConfig(mode="textonly", decoder=decoder))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(args.dtype)), {"decoder": parameter_shapes(model)["decoder"]}
    )
    place = jax.tree.map(lambda x: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    params = arrange(read_tree(DECODER, shapes, tensors, str(args.folder), place))
    size = sum(x.size for x in jax.tree.leaves(shapes))

    def ask(count: int) -> list[Request]:
        return [
            Request(Prompts(row[None], np.zeros((1, PROMPT), np.int32), np.ones((1, PROMPT), bool), {}, {}), i)
            for i, row in enumerate(prompts(count, decoder.vocab))
        ]

    def padded(tokens: int) -> int:
        return -(-tokens // 16) * 16

    rates, floor = {}, {}
    device = jax.devices()[0].device_kind
    chip = find_chip(device)
    for batch in args.batches:
        engine = Engine(model, params, rows=batch, max_new=NEW, length=padded)
        dict(engine.run(ask(batch)))
        started = time.perf_counter()
        found = dict(engine.run(ask(batch)))
        seconds = time.perf_counter() - started
        rates[f"{batch} at a time"] = batch / seconds
        if chip is not None:
            least = decode_floor(decoder, shapes, chip, batch, padded(PROMPT) + NEW)
            floor[f"{batch} at a time"] = NEW * least.seconds / seconds
        if len(rates) == 1:
            ids = [found[i] for i in range(min(args.single, batch))]
            yield {"ids": ids, "parameters": size, "device": device}
        yield {"rates": rates, "floor": floor or None}


if __name__ == "__main__":
    main()
