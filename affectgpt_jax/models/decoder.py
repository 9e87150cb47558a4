"""The language model: a Qwen2-class causal decoder (Hugging Face `Qwen2ForCausalLM`).

B rows, T tokens, D width, H query heads, K key heads, P prompt slots, R ring slots of generated tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from affectgpt_jax.config.networks import FUSED, LINEARS, DecoderConfig, Linear
from affectgpt_jax.nn.linear import Dense, Embedding
from affectgpt_jax.nn.norm import RMSNorm
from affectgpt_jax.nn.parameter import parameter
from affectgpt_jax.nn.stack import init_layers, run_layers, unroll_layers
from affectgpt_jax.ops.attention import KeysValues, attention, cached_attention, hold, segment_mask
from affectgpt_jax.ops.axes import constrain, split_in
from affectgpt_jax.ops.packed_attention import packed_attention
from affectgpt_jax.ops.random import Seed, fold
from affectgpt_jax.ops.rotary import rotary_angles, rotate

OUTPUT_AXES: dict[Linear, str | None] = {
    "q_proj": "heads",
    "k_proj": "kv_heads",
    "v_proj": "kv_heads",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "o_proj": None,
    "down_proj": None,
}
"""What lies along the output of each linear map; None is the residual stream."""


def output_widths(config: DecoderConfig) -> dict[Linear, int]:
    """The width of each linear map's output."""
    sizes = {
        "heads": config.heads * config.head_dim,
        "kv_heads": config.kv_heads * config.head_dim,
        "mlp": config.mlp_width,
        None: config.width,
    }
    return {name: sizes[axis] for name, axis in OUTPUT_AXES.items()}


class LayerCache(NamedTuple):
    """One layer's keys and values, rotated: of the prompt, which is only read, and of the answer so far."""

    prompt: KeysValues
    answer: KeysValues


class Cache(NamedTuple):
    """The generation cache, a value: every step returns a new one.

    A token's place in the answer's part is its number in the answer, whenever the row began: what a row computes does
    not depend on when it was taken in.
    """

    layers: tuple[LayerCache, ...]
    prompt_used: Bool[Array, "B P"]


class StepMasks(NamedTuple):
    """What a decoding step may look at, and where in the answer's part its own token goes."""

    number: Int[Array, " B"]
    prompt: Bool[Array, "B 1 P"]
    answer: Bool[Array, "B 1 R"]


class BranchMasks(NamedTuple):
    """What the tokens of continuations may look at: their row's prompt, and those before them in their own one."""

    prompt: Bool[Array, "B T P"]
    own: Bool[Array, "B T T"]


class Ending(NamedTuple):
    """Of which token of a row a layer's output is wanted; the others only give keys and values."""

    place: Int[Array, " B"]


class DecoderLayer(nn.Module):
    """Pre-norm layer: grouped-query attention with rotary positions, then SwiGLU.

    Tokens look at those of their own segment in the row, or at what the masks of a decoding step or of continuations
    show. Returns this call's keys and values if `keep_keys`, or the updated cache after a decoding step.
    """

    config: DecoderConfig
    keep_keys: bool = False

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "B T D"],
        state: LayerCache | KeysValues | Ending | None,
        angles: Float[Array, "B T half"],
        look: Int[Array, "B T"] | StepMasks | BranchMasks,
        seed: Seed | None = None,
    ) -> tuple[Float[Array, "B _ D"], Any]:
        c = self.config
        widths = output_widths(c)
        dense = partial(Dense, dtype=jnp.dtype(c.dtype), int8=c.base == "int8")

        def fused(group: str, x: Array) -> dict[Linear, Array]:
            """x W + b of several maps by one product, where their kernels lie together (`weights.fused`)."""
            if not self.has_variable("params", group):
                return {}
            parts = [widths[name] for name in FUSED[group]]
            y = dense(sum(parts), group == "qkv_proj", name=group)(x)
            return dict(zip(FUSED[group], jnp.split(y, np.cumsum(parts)[:-1], axis=-1), strict=True))

        def linear(name: Linear, x: Array, plain: Mapping[Linear, Array] | None = None) -> Array:
            lora = c.lora if name in c.lora.targets else None
            layer = dense(widths[name], name in FUSED["qkv_proj"], lora, name=name)
            y = layer(x, None if seed is None else fold(seed, LINEARS.index(name)), (plain or {}).get(name))
            return constrain(y, "batch", None, OUTPUT_AXES[name])

        def heads(x: Float[Array, "B T D"]) -> Float[Array, "B T H d"]:
            return rearrange(x, "b t (h d) -> b t h d", d=c.head_dim)

        x = RMSNorm(c.norm_eps, name="attention_norm")(h)
        plain = fused("qkv_proj", x)
        k = heads(checkpoint_name(linear("k_proj", x, plain), "key"))
        v = heads(checkpoint_name(linear("v_proj", x, plain), "value"))
        k, own = rotate(k, angles), angles
        if isinstance(state, Ending):
            at = state.place[:, None, None]
            x, h, own, plain = jax.tree.map(partial(jnp.take_along_axis, indices=at, axis=1), (x, h, angles, plain))
        q = heads(checkpoint_name(linear("q_proj", x, plain), "query"))
        q = rotate(q, own)
        output: Any = hold(k, v, c.cache == "int8") if self.keep_keys else None
        if isinstance(look, StepMasks):
            assert isinstance(state, LayerCache)
            answer: Any = jax.tree.map(partial(_write, look.number), hold(k, v, c.cache == "int8"), state.answer)
            output = LayerCache(state.prompt, answer)
            x = cached_attention(q, state.prompt, answer, look.prompt, look.answer)
        elif isinstance(look, BranchMasks):
            assert state is not None
            assert not isinstance(state, LayerCache | Ending)
            x = cached_attention(q, state, hold(k, v, int8=False), look.prompt, look.own)
        elif isinstance(state, Ending):
            x = attention(q, k, v, (look > 0)[:, None])
        else:
            # The parameters' shapes are found with a row of one token, which not every kernel takes.
            x = packed_attention(q, k, v, look, kernel="xla" if self.is_initializing() else c.attention)
        x = rearrange(x, "b t h d -> b t (h d)")
        h = checkpoint_name(h + linear("o_proj", x), "residual")

        x = RMSNorm(c.norm_eps, name="mlp_norm")(h)
        plain = fused("gate_up_proj", x)
        gate = checkpoint_name(linear("gate_proj", x, plain), "gate")
        up = checkpoint_name(linear("up_proj", x, plain), "up")
        h = h + linear("down_proj", jax.nn.silu(gate) * up)
        return constrain(h, "batch", None, None), output


class Decoder(nn.Module):
    """Token embedding, layers, final norm and head."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.tokens = Embedding(c.vocab, c.width, dtype)
        self.layer = DecoderLayer(c, parent=None)
        angles, segments = jnp.zeros((1, 1, c.head_dim // 2)), jnp.ones((1, 1), jnp.int32)
        example = (jnp.zeros((1, 1, c.width), dtype), None, angles, segments)
        self.layers = parameter(self, "layers", init_layers(self.layer, c.layers, *example))
        self.final_norm = RMSNorm(c.norm_eps)
        if not c.tied_head:
            self.head = Dense(c.vocab, bias=False, dtype=dtype)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token embeddings; ids beyond the table (placeholders) take its last row, to be overwritten."""
        # Each device looks up its part of the width for all rows of its fsdp group: tokens travel, the table does not.
        words = self.tokens(constrain(ids, "group_batch", None))
        return constrain(constrain(words, "group_batch", None, "embed"), "batch", None, None)

    def logits(self, hidden: Float[Array, "*dims D"]) -> Float[Array, "*dims V"]:
        """Next-token logits of normalised hidden states."""
        return self.tokens.attend(hidden) if self.config.tied_head else self.head(hidden)

    def gathered_head(self) -> Callable[[Float[Array, "B n D"]], Float[Array, "B n V"]]:
        """`logits` for a loop: its weights are gathered once before it, their gradient is summed once after it.

        Each part of the batch has a copy of the weights (on a device, the one it holds anyway), so that over the loop
        gradients add up in place.
        """
        own = self.tokens.embedding.T if self.config.tied_head else self.head.get_variable("params", "kernel")
        parts = split_in("batch")
        copies = constrain(jnp.broadcast_to(constrain(own, None, "vocab"), (parts, *own.shape)), "batch", None, "vocab")

        def head(hidden: Float[Array, "B n D"]) -> Float[Array, "B n V"]:
            rows = rearrange(hidden, "(p b) n d -> p b n d", p=parts)
            y = jnp.einsum("pbnd,pdv->pbnv", rows, copies.astype(hidden.dtype))
            return constrain(rearrange(y, "p b n v -> (p b) n v"), "batch", None, "vocab")

        return head

    def __call__(
        self,
        h: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        seed: Seed | None = None,
    ) -> Float[Array, "B T D"]:
        """Hidden states after the final norm, of rows that may pack several samples.

        Args:
          h: input embeddings.
          positions: from 0 within each sample.
          segment_ids: sample number within the row; 0 is padding.
          seed: turns adapter dropout on.
        """
        c = self.config
        shared = (rotary_angles(positions, c.head_dim, c.rope_theta), segment_ids)
        h, _ = run_layers(self.layer, self.layers, h, shared, seed=seed, remat=c.remat, unroll=c.unroll)
        return self.final_norm(h)

    def prefill(
        self, h: Float[Array, "B P D"], used: Bool[Array, "B P"]
    ) -> tuple[Float[Array, "B D"], tuple[KeysValues, ...]]:
        """Read prompts, right padded.

        Args:
          h: input embeddings.
          used: False on padding.

        Returns:
          The hidden state at each prompt's last token, and each layer's keys and values.
        """
        c = self.config
        rows, length, _ = h.shape
        positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
        segments = used.astype(jnp.int32)
        shared = (rotary_angles(positions, c.head_dim, c.rope_theta), segments)
        layer = DecoderLayer(c, keep_keys=True, parent=None)
        last = Ending(jnp.maximum(jnp.sum(segments, axis=1) - 1, 0))
        h, keys = unroll_layers(layer, self.layers, h, shared, [*[None] * (c.layers - 1), last])
        return self.final_norm(h[:, 0]), tuple(keys)

    def step(
        self, ids: Int[Array, " B"], positions: Int[Array, " B"], cache: Cache
    ) -> tuple[Float[Array, "B D"], Cache]:
        """Read one token a row.

        Args:
          ids: the tokens.
          positions: each token's position in its row's sequence.
          cache: keys and values of what came before.

        Returns:
          The hidden states that predict the next tokens, and the new cache.
        """
        c = self.config
        number = positions - jnp.sum(cache.prompt_used, axis=1, dtype=positions.dtype)
        places = jnp.arange(jax.tree.leaves(cache.layers[0].answer)[0].shape[2])
        masks = StepMasks(number, cache.prompt_used[:, None], (places <= number[:, None])[:, None])
        shared = (rotary_angles(positions[:, None], c.head_dim, c.rope_theta), masks)
        h, layers = unroll_layers(self.layer, self.layers, self.embed(ids[:, None]), shared, cache.layers)
        return self.final_norm(h[:, 0]), Cache(tuple(layers), cache.prompt_used)

    def branch(
        self,
        ids: Int[Array, " T"],
        depths: Int[Array, " T"],
        branches: Int[Array, " T"],
        prompts: tuple[KeysValues, ...],
        used: Bool[Array, "B P"],
    ) -> Float[Array, "B T D"]:
        """Read continuations of every row's prompt side by side; none sees another, the prompts' keys are not copied.

        Args:
          ids: their tokens, one continuation after the other.
          depths: each token's number in its continuation, from 0.
          branches: number of its continuation, ascending.
          prompts: each layer's keys and values, as `prefill` returns them.
          used: False on padding.

        Returns:
          The hidden states that predict what comes after each token.
        """
        c = self.config
        rows, length = used.shape[0], len(ids)
        positions = jnp.sum(used, axis=1, dtype=jnp.int32)[:, None] + depths
        own = segment_mask(branches[None], branches[None], causal=True)
        masks = BranchMasks(
            jnp.broadcast_to(used[:, None], (rows, length, used.shape[1])),
            jnp.broadcast_to(own, (rows, length, length)),
        )
        shared = (rotary_angles(positions, c.head_dim, c.rope_theta), masks)
        words = self.embed(jnp.broadcast_to(ids, (rows, length)))
        h, _ = unroll_layers(self.layer, self.layers, words, shared, prompts)
        return self.final_norm(h)


def empty_cache(config: DecoderConfig, rows: int, prompt: int, answer: int) -> Cache:
    """The cache of rows that are at work on nothing.

    Args:
      config: the decoder.
      rows: B.
      prompt: tokens of a prompt at most, P.
      answer: tokens of an answer at most, R.
    """

    def part(length: int) -> KeysValues:
        x = jnp.zeros((rows, length, config.kv_heads, config.head_dim), jnp.dtype(config.dtype))
        return hold(x, x, config.cache == "int8")

    layers = tuple(LayerCache(part(prompt), part(answer)) for _ in range(config.layers))
    return Cache(layers, jnp.zeros((rows, prompt), bool))


def _write(number: Int[Array, " B"], new: Array, old: Array) -> Array:
    """`new` [B, K, 1, ...] at its row's number of `old` [B, K, R, ...]."""
    # Of each row by itself, the compiler sees that rows on other devices have no part in it.
    return jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=1))(old, new, number)
