"""Sizes of language models to compare: a ladder of our own for training from scratch, and Qwen2.5's.

Rules of our own ladder, for a decoder of about N parameters in all (input embedding included, which is the head too):

- depth: 2 (width / 64)^0.7 layers, rounded, at least 2; that is 2 at width 64, 14 at 1,024, 23 at 2,048;
- heads of 32 up to width 512, of 64 beyond, at least two; half as many for keys and values where that divides;
- the inner width is 8/3 of the width, rounded up to a multiple of 16;
- of all widths the one whose count comes nearest to N.
"""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from affectgpt_jax.errors import UserError

VOCABULARY = 1024
"""Of the synthetic corpus's tokenizer, special and soft tokens included."""
WIDEST = 8192

QWEN: Mapping[str, tuple[int, int, int, int, int, bool]] = {
    "0.5b": (896, 24, 14, 2, 4864, True),
    "1.5b": (1536, 28, 12, 2, 8960, True),
    "3b": (2048, 36, 16, 2, 11008, True),
    "7b": (3584, 28, 28, 4, 18944, False),
    "14b": (5120, 48, 40, 8, 13824, False),
    "32b": (5120, 64, 40, 8, 27648, False),
}
"""Width, layers, heads, heads of keys and values, inner width, tied head of Qwen2.5, by their config.json."""


def decoder_sizes(name: str) -> dict[str, Any]:
    """Settings of `model.decoder`.

    Args:
      name: a number of parameters such as "0.1M", "1M" or "1B", of our own ladder; or "qwen2.5-0.5b" to "-32b".

    Raises:
      UserError: no such size.
    """
    text = str(name).lower()
    if text.startswith("qwen2.5-") and (found := QWEN.get(text.removeprefix("qwen2.5-"))):
        width, layers, heads, kv_heads, mlp_width, tied = found
        # Two of them have a vocabulary of their own: padded to another multiple.
        vocab = 151936 if tied else 152064
        return _settings(width, layers, heads, kv_heads, width // heads, mlp_width, tied) | {"vocab": vocab}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb])", text)
    if match is None or not float(match[1]):
        names = ", ".join(f"qwen2.5-{size}" for size in QWEN)
        raise UserError(f"size {name}: expected a number of parameters such as 0.1M, 20M or 1B, or one of {names}")
    return dict(_rung(float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2]], str(name)))


@cache
def _rung(wanted: float, name: str) -> Mapping[str, Any]:
    rungs = [_by_width(width) for width in range(16, WIDEST + 1, 16)]
    best = min(rungs, key=lambda rung: abs(math.log(decoder_parameters(**rung) / wanted)))
    if not 0.5 < decoder_parameters(**best) / wanted < 2:
        raise UserError(f"size {name}: our ladder goes from 20K to 40B parameters")
    return best


def _by_width(width: int) -> dict[str, Any]:
    head = 32 if width <= 512 else 64  # a narrower head has no fewer scores to compute
    heads = max(2, width // head)
    kv_heads = heads // 2 if heads % 2 == 0 else heads
    layers = max(2, round(2 * (width / 64) ** 0.7))
    mlp_width = 16 * math.ceil(width * 8 / 3 / 16)
    return _settings(width, layers, heads, kv_heads, head, mlp_width, True)


def _settings(
    width: int, layers: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int, tied: bool
) -> dict[str, Any]:
    return {
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_width": mlp_width,
        "tied_head": tied,
    }


def decoder_parameters(
    *,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    mlp_width: int,
    tied_head: bool,
    vocab: int = VOCABULARY,
) -> int:
    """Parameters of a Qwen2-class decoder, adapters not counted."""
    inner, keys = heads * head_dim, kv_heads * head_dim
    attention = width * (2 * inner + 2 * keys) + inner + 2 * keys
    layer = attention + 3 * width * mlp_width + 2 * width
    return layers * layer + width + vocab * width * (1 if tied_head else 2)
