"""AdamW with the reference's decay groups and learning-rate schedules."""

import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from affectgpt_jax.config.run import OptimizerConfig
from affectgpt_jax.weights.networks import MODEL
from affectgpt_jax.weights.table import find_row, nest, paths

Schedule = Callable[[Any], Array]


def reference_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """The reference's schedule, its oddities included (QUIRKS 34-35).

    Epochs start at 1; the warm-up condition and the cosine see epoch * epoch_steps + step, the warm-up's slope only
    the step within the epoch. In the last epoch the cosine passes its minimum and rises again.
    """

    def rate(step: Array) -> Array:
        within = jnp.mod(step, config.epoch_steps)
        total = step + config.epoch_steps
        slope = (config.peak - config.warmup_start) / max(config.warmup_steps, 1)
        warm = jnp.minimum(config.peak, config.warmup_start + slope * within)
        angle = jnp.pi * total / steps
        cosine = config.end + 0.5 * (config.peak - config.end) * (1.0 + jnp.cos(angle))
        return jnp.where(total < config.warmup_steps, warm, cosine)

    return rate


def strict_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Linear warm-up from `warmup_start` to `peak`, once, then a cosine that reaches `end` at the last step."""

    def rate(step: Array) -> Array:
        warm = config.warmup_start + (config.peak - config.warmup_start) * step / max(config.warmup_steps, 1)
        done = jnp.clip((step - config.warmup_steps) / max(steps - config.warmup_steps, 1), 0.0, 1.0)
        cosine = config.end + 0.5 * (config.peak - config.end) * (1.0 + jnp.cos(jnp.pi * done))
        return jnp.where(step < config.warmup_steps, warm, cosine)

    return rate


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """The learning rate at each optimizer step, from 0, of a run of `steps` steps."""
    return (reference_schedule if config.schedule == "reference" else strict_schedule)(config, steps)


def decays(name: str, ndim: int) -> bool:
    """Whether a tensor is decayed, by its name and rank in the reference: no vector, bias or norm (QUIRKS 36)."""
    return ndim >= 2 and not re.search("bias|ln|bn", name)


def decay_mask(params: Any) -> Any:
    """For each parameter, whether it is decayed; stacked layers count as their single tensors do."""
    mask = {}
    for path, leaf in paths(params).items():
        row, match = find_row(MODEL, path)
        stacked = "{layer}" in row.name
        shape = row.their_shape(tuple(leaf.shape[1:] if stacked else leaf.shape))
        mask[path] = decays(match.expand(row.name), len(shape))
    return nest(mask)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (betas 0.9 and 0.999, eps 1e-8 outside the root), optional clipping by global norm."""
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *parts,
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
