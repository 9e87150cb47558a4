"""Counter-based random numbers: a hash of a seed and an index.

Every number depends on its seed and its place in the array alone, so values are the same however an array is sharded.
JAX's own generator has that property too, but each of its calls takes a CPU compiler most of a second, and a model
draws dozens of arrays. The mixing function is the 32-bit finaliser with constants 0x7feb352d and 0x846ca68b (Wellons,
"Prospecting for hash functions", 2018); it serves initial weights and dropout, not statistics.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

Seed = UInt32[Array, ""]


def mix(x: UInt32[Array, "*dims"]) -> UInt32[Array, "*dims"]:
    """A bijection of 32-bit words that flips each output bit with probability one half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@jax.jit
def fold(seed: Seed, *numbers: int | Array) -> Seed:
    """A new seed from a seed and numbers: a step, a layer, a place in the layer."""
    for number in numbers:
        seed = mix(seed ^ mix(jnp.asarray(number).astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))
    return seed


def seed_of(key: Array) -> Seed:
    """The seed that stands for a JAX random key."""
    data = jax.random.key_data(key).reshape(-1)
    return fold(data[0], data[-1])


def bits(seed: Seed, shape: tuple[int, ...]) -> UInt32[Array, "*dims"]:
    """Uniform 32-bit words."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return mix(mix(index + seed) ^ mix(~seed))


@partial(jax.jit, static_argnames="shape")
def uniform(seed: Seed, shape: tuple[int, ...]) -> Float[Array, "*dims"]:
    """Uniform float32 in (0, 1)."""
    # The largest of these sums, 1 - 2^-25, rounds to 1, whose normal would be infinite.
    return jnp.minimum((bits(seed, shape) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25, 1 - 2.0**-24)


@partial(jax.jit, static_argnames="shape")
def normal(seed: Seed, shape: tuple[int, ...]) -> Float[Array, "*dims"]:
    """Standard normal float32, by the inverse of its distribution function."""
    return jnp.sqrt(2.0) * jax.lax.erf_inv(2.0 * uniform(seed, shape) - 1.0)
