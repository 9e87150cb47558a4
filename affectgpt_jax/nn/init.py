"""Initialisers: functions of a random key and a shape."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from affectgpt_jax.ops import random

Initialiser = Callable[[Array, tuple[int, ...]], Array]


def normal(stddev: float) -> Initialiser:
    """Normal with mean 0."""
    return lambda key, shape: stddev * random.normal(random.seed_of(key), shape)


def fan_in_normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Normal with variance 1 / fan-in, which is every axis but the last."""
    return random.normal(random.seed_of(key), shape) * math.prod(shape[:-1]) ** -0.5


def fan_in_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in +-1/sqrt(fan-in): what PyTorch and PEFT start linear maps and adapters with."""
    bound = shape[0] ** -0.5
    return bound * (2.0 * random.uniform(random.seed_of(key), shape) - 1.0)


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """All 0, float32."""
    return jnp.zeros(shape, jnp.float32)


def int8_zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """All 0, int8."""
    return jnp.zeros(shape, jnp.int8)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    """All 1, float32."""
    return jnp.ones(shape, jnp.float32)
