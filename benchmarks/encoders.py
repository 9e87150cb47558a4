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

  python benchmarks/encoders.py --shape large --batch 256 --samples 256      # on a GPU
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt_jax.data.preprocess import SAMPLE_RATE, clip_pixels, normalise_audio

HUBERT = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
SHAPES: dict[str, dict[str, Any]] = {
    "base": {
        "vision": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "patch_size": 32, "projection_dim": 512,
        },
        "audio": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, **HUBERT,
        },
    },
    "large": {
        "vision": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            "patch_size": 14, "projection_dim": 768,
        },
        "audio": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
            **HUBERT,
        },
    },
    "tiny": {
        "vision": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "patch_size": 56, "projection_dim": 24,
        },
        "audio": {
            "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
            "conv_dim": [16] * 7, **HUBERT,
        },
    },
}  # fmt: skip
TOWERS = ("vision", "audio")
EACH, SIZE, SECONDS = 8, 224, 2
SEED = 0
AGREEMENT = 1e-3
"""Largest difference of features in float32, relative to the largest feature."""


def main() -> None:
    """Compare, or be one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--batch", type=int, default=32, help="pictures, or clips of sound, at a time")
    parser.add_argument("--samples", type=int, default=4, help="samples of eight that are encoded")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps({"ours": ours, "torch": theirs}[args.side](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run both sides in turn and print them."""
    found: dict[str, list[Any]] = {"torch": [], "ours": []}
    for _ in range(args.runs):
        for side, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                sys.exit(f"{side} failed:\n{ran.stderr[-3000:]}")
            results.append(json.loads(ran.stdout.splitlines()[-1]))
    first = {side: results[0] for side, results in found.items()}
    sizes = ", ".join(f"{name} {first['torch']['parameters'][name] / 1e6:.1f}M" for name in TOWERS)
    print(
        f"{args.shape}: {sizes} parameters, {args.samples} samples of {EACH}, batches of "
        f"{args.batch}, {first['ours']['device']}, {os.cpu_count()} cores, {args.runs} runs in turn"
    )
    for name, unit in zip(TOWERS, ("pictures/s", "clips/s"), strict=True):
        rates = {
            (side, how): sorted(result["rates"][name][how] for result in results)
            for side, results in found.items()
            for how in results[0]["rates"][name]
        }
        base = statistics.median(rates["torch", "a sample at a time"])
        print(f"\n{name:<34}{unit:>12}{'spread':>22}{'against torch, a sample at a time':>36}")
        for (side, how), values in rates.items():
            middle = statistics.median(values)
            spread = f"{values[0]:.2f} - {values[-1]:.2f}"
            print(f"{side + ', ' + how:<34}{middle:>12.2f}{spread:>22}{middle / base:>35.2f}x")
        mine, others = (np.asarray(first[side]["features"][name]) for side in ("ours", "torch"))
        off = float(np.abs(mine - others).max() / np.abs(others).max())
        print(f"largest difference of the first sample's features, of the largest of them: {off:.1e}")
        if first["ours"]["device"] == "cpu" and not off < AGREEMENT:
            sys.exit(f"the {name} towers differ: this is not the same computation")
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


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


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    """transformers; writes the weights that the other side reads."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {
        "vision": (transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig),
        "audio": (transformers.HubertModel, transformers.HubertConfig),
    }
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
    for name, (kind, config) in kinds.items():
        if not (args.folder / name).exists():
            kind._from_config(config(**SHAPES[args.shape][name])).save_pretrained(args.folder / name)

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
            out = model(given, output_hidden_states=True)
            # The authors' version of the library lists the output as the last state, this one what lies before it.
            return torch.stack([*out.hidden_states[-4:-1], out.last_hidden_state]).mean(0).mean(1)

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
    return {"rates": rates, "features": features, "parameters": parameters}


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """The towers as preparation and prediction have them, with the weights that the other side wrote."""
    import jax

    from affectgpt_jax.inference.encoders import Encoders

    encoders = Encoders(str(args.folder / "vision"), str(args.folder / "audio"), batch=args.batch)
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
    return {
        "rates": {name: {how: rate(encode, count) for how, encode in ways.items()} for name, ways in work.items()},
        "features": {"vision": encoders.vision(flat)[:EACH].tolist(), "audio": encoders.audio(normal)[0].tolist()},
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    main()
