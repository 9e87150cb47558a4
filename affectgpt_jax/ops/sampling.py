"""Choosing the next token: filters in the reference's order (repetition, temperature, top-k, top-p), then a draw.

B rows, V vocabulary, N earlier tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sampling(NamedTuple):
    """How tokens are drawn. Temperature 0 is greedy; top_k 0 and top_p 1 filter nothing.

    The repetition penalty counts generated tokens, and with `penalise_prompt` the prompt's words, too. The reference
    samples with temperature 1, top-k 20 and top-p 0.9 (QUIRKS 46).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    penalise_prompt: bool = False


GREEDY = Sampling()
REFERENCE = Sampling(temperature=1.0, top_k=20, top_p=0.9)


def penalise_repeats(
    logits: Float[Array, "B V"], earlier: Int[Array, "B N"], used: Bool[Array, "B N"], penalty: float
) -> Float[Array, "B V"]:
    """Divide positive and multiply negative logits of tokens that occurred before; float32 whatever the logits are."""
    logits = logits.astype(jnp.float32)  # a small penalty is lost in half precision
    rows = jnp.arange(logits.shape[0])[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, earlier].max(used)
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filter_logits(logits: Float[Array, "B V"], top_k: int, top_p: float) -> Float[Array, "B V"]:
    """Set to -inf what lies outside the top k, then outside the smallest set that holds a share top_p.

    The share is taken over what the first filter left, and the most likely token always stays.
    """
    vocabulary = logits.shape[-1]
    top = jax.lax.top_k(logits, min(top_k, vocabulary))[0] if top_k else jnp.sort(logits, axis=-1)[..., ::-1]
    logits = jnp.where(logits < top[..., -1:], -jnp.inf, logits)
    if top_p < 1.0:
        # A token stays while the share of those before it (more likely ones) has not reached top_p.
        shares = jax.nn.softmax(top, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.min(jnp.where(before < top_p, top, top[..., :1]), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(keys: Array, logits: Float[Array, "B V"], how: Sampling) -> Int[Array, " B"]:
    """One token a row.

    Args:
      keys: a random key a row [B]; unused when greedy.
      logits: next-token logits, any repetition penalty already applied.
      how: temperature and filters.
    """
    logits = logits.astype(jnp.float32)
    if how.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filter_logits(logits / how.temperature, how.top_k, how.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
