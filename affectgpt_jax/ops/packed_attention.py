"""The decoder's attention over rows that pack several samples, by the kernel that suits the device.

One rule, whatever computes it: a token attends to the tokens of its own segment up to itself. Segment 0 is padding; its
results mean nothing, but they and their gradients are finite.

B rows, T tokens, H query heads, K key heads (K divides H), D head width.
"""

from functools import partial
from math import lcm, prod
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from affectgpt_jax.config.networks import Attention
from affectgpt_jax.errors import UserError
from affectgpt_jax.ops.attention import attention, segment_mask
from affectgpt_jax.ops.axes import BATCH_AXES, HEAD_AXIS

Kernel = Literal["xla", "cudnn", "splash"]

LONG = 512
"""Tokens of a row from which on `auto` takes the device's own kernel; of shorter ones attention is a small part."""

BLOCKS = (512, 256, 128)
"""Tiles of the splash kernel, the best first."""

LANES = 128
"""Width of a TPU's vectors: splash heads are padded to a multiple of it."""

RESULT = "attention_out"
"""Name under which remat `names` keeps the result (and what the splash kernel needs besides to go backward)."""


def packed_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    segments: Int[Array, "B T"],
    *,
    kernel: Attention = "auto",
    interpret: bool = False,
) -> Float[Array, "B T H D"]:
    """Causal attention within segments; softmax in float32, the result in the values' type.

    Args:
      q, k, v: queries, keys and values, rotated; each key head serves H / K query heads.
      segments: sample number within the row; 0 is padding.
      kernel: what computes it.
      interpret: run the splash kernel in Pallas' interpreter, on any device; for tests.

    Raises:
      UserError: the kernel cannot serve the device, the type or the sizes.
    """
    platform = "tpu" if interpret else _platform()
    sizes = _mesh_sizes()
    shards = sizes.get(HEAD_AXIS, 1) if sizes or jax.device_count() == 1 else 0
    _, length, heads, width = q.shape
    match choose_kernel(kernel, platform, q.dtype.name, length, heads, width, shards):
        case "xla":
            return checkpoint_name(attention(q, k, v, segment_mask(segments, segments, causal=True)), RESULT)
        case "cudnn":
            # The mask becomes a bias; cuDNN skips what lies above the diagonal. In the backward pass of remat `names`
            # it runs forward again, for its softmax statistics.
            same = segment_mask(segments, segments, causal=False)[:, None]
            out = jax.nn.dot_product_attention(q, k, v, mask=same, is_causal=True, implementation="cudnn")
            return checkpoint_name(out, RESULT)
        case "splash":
            return _splash(q, k, v, segments, interpret)


def choose_kernel(
    wanted: Attention, platform: str, dtype: str, length: int, heads: int, width: int, head_shards: int = 1
) -> Kernel:
    """The kernel that computes a row's attention.

    Args:
      wanted: `auto` takes cuDNN's on GPUs and splash on TPUs for rows of at least `LONG` tokens, if they can serve.
      platform: of the device, as JAX names it.
      dtype: name of the queries' type.
      length: tokens of a row.
      heads: query heads.
      width: of a head.
      head_shards: devices that heads are spread over; 0: there are several devices, but no ambient mesh.

    Raises:
      UserError: the wanted kernel cannot serve.
    """

    def unfit(kernel: Kernel) -> str:
        """Why a kernel cannot serve; empty if it can."""
        match kernel:
            case "cudnn" if platform not in ("gpu", "cuda"):
                return f"runs on NVIDIA GPUs, found {platform}"
            case "cudnn" if dtype not in ("bfloat16", "float16"):
                return f"computes in half precision, found model.decoder.dtype={dtype}"
            case "cudnn" if width % 8 or width > 128:
                return f"takes heads of a multiple of 8 up to 128, found {width}"
            case "cudnn" if length % 2:
                return f"takes rows of an even number of tokens, found {length}"
            case "splash" if platform != "tpu":
                return f"runs on TPUs, found {platform}"
            case "splash" if length % BLOCKS[-1]:
                return f"takes rows of a multiple of {BLOCKS[-1]} tokens, found {length}"
            case "splash" if not head_shards:
                return "must be told by jax.set_mesh how rows and heads lie on several devices"
            case "splash" if heads % head_shards:
                return f"cannot spread {heads} heads over mesh.{HEAD_AXIS}={head_shards}"
        return ""

    if wanted == "auto":
        natives: dict[str, Kernel] = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
        native = natives.get(platform, "xla")
        return "xla" if length < LONG or unfit(native) else native
    if why := unfit(wanted):
        raise UserError(f"model.decoder.attention={wanted} {why}; set model.decoder.attention=auto or xla")
    return wanted


def _platform() -> str:
    """Where the computation will run: on the mesh's devices (which may be of another machine), else on this one's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def _mesh_sizes() -> dict[str, int]:
    """Axes of the ambient mesh that the compiler still spreads arrays over, with their sizes; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return {name: mesh.shape[name] for name in mesh.auto_axes}


def _splash(q: Array, k: Array, v: Array, segments: Array, interpret: bool) -> Array:
    """The Pallas kernel for TPUs, on each device for its own rows and heads."""
    sizes = _mesh_sizes()
    local = partial(_splash_local, interpret=interpret)
    if not sizes:
        return local(q, k, v, segments)
    rows = tuple(axis for axis in BATCH_AXES if axis in sizes)
    if q.shape[0] % prod(sizes[axis] for axis in rows):
        rows = ()  # a few prompts on many devices: each computes them all
    # Where devices are more than key heads, several hold the same one.
    copies = lcm(k.shape[2], sizes.get(HEAD_AXIS, 1)) // k.shape[2]
    k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
    heads = PartitionSpec(rows or None, None, HEAD_AXIS if HEAD_AXIS in sizes else None, None)
    return jax.shard_map(
        local,
        in_specs=(heads, heads, heads, PartitionSpec(rows or None, None)),
        out_specs=heads,
        axis_names=set(sizes),
        check_vma=False,
    )(q, k, v, segments)


def _splash_local(q: Array, k: Array, v: Array, segments: Array, *, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, heads, width = q.shape[1:]
    block = next(size for size in BLOCKS if length % size == 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.CausalMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESULT,
        interpret=interpret,
    )

    def row(q: Array, k: Array, v: Array, segments: Array) -> Array:
        return kernel(q, k, v, splash.SegmentIds(segments, segments))

    padding = ((0, 0), (0, 0), (0, 0), (0, -width % LANES))
    q = q * jnp.asarray(width**-0.5, q.dtype)
    q, k, v = (jnp.swapaxes(jnp.pad(x, padding), 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.vmap(row)(q, k, v, segments), 1, 2)[..., :width]
