"""Pictures and clips of sound that the towers encode in a second, against the same towers in torch.

  python benchmarks/encoders.py

CLIP's vision tower and HuBERT with random weights, the same on both sides; pictures of 224 x 224 pixels as uint8 and
clips of 2 s at 16 kHz, eight of each a sample, held in memory. Each side is a process of its own, and they take turns.
Needs the extra [torch].

  torch, a sample at a time  as the authors have it: transformers, eager attention, the image processor at every
                             sample; on a GPU fp16 under autocast
  torch, batches             its best easy settings: sdpa, pixels ready, bf16 on a GPU
  ours, with preprocessing   as `affectgpt prepare` and prediction encode: from uint8, in batches of one shape
  ours, batches              pixels ready

  python benchmarks/encoders.py --shape large --batch 256 --samples 256 --dtype bfloat16      # on a GPU
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common.shapes import TOWERS
from common.sides import (
    Found,
    Pieces,
    add_arguments,
    compare,
    hubert_features,
    show_rates,
    tower_kinds,
    write_towers,
)

from affectgpt_jax.data.preprocess import SAMPLE_RATE, clip_pixels, normalise_audio

NAMES = {"vision": "pictures/s", "audio": "clips/s"}
EACH, SIZE, SECONDS = 8, 224, 2
SEED = 0
AGREEMENT = 1e-3
"""Largest difference of features in float32, relative to the largest feature."""


def main() -> None:
    """Compare, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("base", "large", "tiny"), default="base")
    parser.add_argument("--batch", type=int, default=32, help="pictures, or clips of sound, at a time")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours")
    parser.add_argument("--samples", type=int, default=4, help="samples of eight that are encoded")
    add_arguments(parser)
    compare(parser.parse_args(), theirs, ours, show, prepare)


def show(args: argparse.Namespace, found: Found) -> None:
    """Print both sides, and how far their features are apart."""
    ours, torch = found["ours"][0], found["torch"][0]
    sizes = ", ".join(f"{name} {torch['parameters'][name] / 1e6:.1f}M" for name in NAMES)
    print(
        f"{args.shape}: {sizes} parameters, {args.samples} samples of {EACH}, batches of {args.batch}, "
        f"{ours['device']}, {os.cpu_count()} cores, ours in {args.dtype}, {args.runs} runs in turn"
    )
    for name, unit in NAMES.items():
        rates = {side: [result["rates"][name] for result in results] for side, results in found.items()}
        show_rates(name, unit, rates, "a sample at a time")
        mine, others = np.asarray(ours["features"][name]), np.asarray(torch["features"][name])
        off = float(np.abs(mine - others).max() / np.abs(others).max())
        print(f"largest difference of the first sample's features, of the largest of them: {off:.1e}")
        if ours["device"] == "cpu" and args.dtype == "float32" and not off < AGREEMENT:
            sys.exit(f"the {name} towers differ: this is not the same computation")


def media(samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 [n, 8, 224, 224, 3], and sound, float32 [n, 8, samples of 2 s], of noise."""
    rng = np.random.default_rng(SEED)
    pictures = rng.integers(0, 256, (samples, EACH, SIZE, SIZE, 3), np.uint8)
    return pictures, rng.normal(size=(samples, EACH, SECONDS * SAMPLE_RATE)).astype(np.float32)


def rate(encode: Callable[[], Any], count: int) -> float:
    """Things encoded in a second, after a warm-up."""
    encode()
    started = time.perf_counter()
    encode()
    return count / (time.perf_counter() - started)


def prepare(args: argparse.Namespace) -> None:
    """Write random weights."""
    import torch

    torch.manual_seed(SEED)
    write_towers(TOWERS[args.shape], args.folder)


def theirs(args: argparse.Namespace) -> Pieces:
    """transformers: a sample at a time, then batches."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = transformers.CLIPImageProcessorPil()
    pictures, sound = media(args.samples)
    normal = np.stack([normalise_audio(clips) for clips in sound])
    ready = {
        "vision": clip_pixels(pictures.reshape(-1, SIZE, SIZE, 3)),
        "audio": normal.reshape(-1, SECONDS * SAMPLE_RATE),
    }
    rates: dict[str, dict[str, float]] = {}
    features: dict[str, list[list[float]]] = {}
    parameters: dict[str, int] = {}
    for name, kind in tower_kinds().items():

        def opened(attention: str, kind: Any = kind, name: str = name) -> Any:
            return kind.from_pretrained(args.folder / name, attn_implementation=attention).eval().to(device)

        eager, quick = opened("eager"), opened("sdpa")
        if device == "cuda":
            quick = quick.to(torch.bfloat16)

        @torch.no_grad()
        def encode(model: Any, x: np.ndarray, name: str = name) -> Any:
            given = torch.from_numpy(np.ascontiguousarray(x)).to(device, next(model.parameters()).dtype)
            if name == "vision":
                return model(pixel_values=given).image_embeds
            return hubert_features(model(given, output_hidden_states=True))

        def sample(i: int, name: str = name, model: Any = eager, encode: Any = encode) -> Any:
            if name == "vision":
                x = processor(list(pictures[i]), return_tensors="np")["pixel_values"]
            else:
                x = normalise_audio(sound[i])
            with torch.autocast(device, torch.float16, enabled=device == "cuda"):
                return encode(model, x).float().cpu().numpy()

        def batches(name: str = name, model: Any = quick, encode: Any = encode) -> list[Any]:
            whole = ready[name]
            found = [encode(model, whole[i : i + args.batch]) for i in range(0, len(whole), args.batch)]
            return [x.float().cpu().numpy() for x in found]

        count = args.samples * EACH
        rates[name] = {
            "a sample at a time": rate(lambda sample=sample: [sample(i) for i in range(args.samples)], count),
            "batches": rate(batches, count),
        }
        features[name] = sample(0).tolist()
        parameters[name] = sum(p.numel() for p in eager.parameters())
        yield {"rates": rates, "features": features, "parameters": parameters}


def ours(args: argparse.Namespace) -> Pieces:
    """The towers as preparation and prediction have them."""
    import jax

    from affectgpt_jax.inference.encoders import Encoders

    encoders = Encoders(str(args.folder / "vision"), str(args.folder / "audio"), batch=args.batch, dtype=args.dtype)
    pictures, sound = media(args.samples)
    flat = pictures.reshape(-1, SIZE, SIZE, 3)
    pixels, normal = clip_pixels(flat), np.stack([normalise_audio(clips) for clips in sound])
    work: dict[str, dict[str, Callable[[], Any]]] = {
        "vision": {"with preprocessing": lambda: encoders.vision(flat), "batches": lambda: encoders.pixels(pixels)},
        "audio": {
            "with preprocessing": lambda: encoders.audio(np.stack([normalise_audio(clips) for clips in sound])),
            "batches": lambda: encoders.audio(normal),
        },
    }
    count = args.samples * EACH
    yield {
        "features": {"vision": encoders.vision(flat)[:EACH].tolist(), "audio": encoders.audio(normal)[0].tolist()},
        "device": jax.devices()[0].device_kind,
    }
    rates: dict[str, dict[str, float]] = {}
    for name, ways in work.items():
        rates[name] = {how: rate(encode, count) for how, encode in ways.items()}
        yield {"rates": rates}


if __name__ == "__main__":
    main()
