"""Budgets as people say them, in FLOPs."""

import re
from collections.abc import Sequence

from affectgpt_jax.errors import UserError
from affectgpt_jax.training.chips import CHIPS


def parse_budgets(texts: Sequence[str], measured: float | None) -> dict[str, float]:
    """FLOPs of each budget.

    Args:
      texts: "1e18" (FLOPs), "100 h200-hours" (at the share of its peak that `affectgpt plan` reckons with), or
        "2 hours" of the machine that the runs were trained on, at what they reached.
      measured: FLOP/s that they reached; None if it is not known.

    Raises:
      UserError: a text that is none of these, or no speed for it.
    """
    return {text: _flops(text, measured) for text in texts}


def _flops(text: str, measured: float | None) -> float:
    match = re.fullmatch(r"\s*([\d.]+(?:e\+?\d+)?)\s*(?:([\w.]+)-)?(hours|h|flops)?\s*", text.lower())
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or amount <= 0 or (match[2] and match[3] == "flops"):
        raise UserError(
            f"--budget {text!r}: expected FLOPs such as 1e18, '100 h200-hours', or '2 hours' of this machine"
        )
    if match[3] in (None, "flops"):
        return amount
    if match[2]:
        if match[2] not in CHIPS:
            raise UserError(f"--budget {text!r}: no chip {match[2]}; known are {', '.join(CHIPS)}")
        chip = CHIPS[match[2]]
        return amount * 3600 * chip.flops * chip.attained
    if measured is None:
        raise UserError(
            f"--budget {text!r}: no run says how fast this machine is; name a chip, '100 h200-hours', or FLOPs"
        )
    return amount * 3600 * measured
