"""Jobs small enough to be compiled in a test."""

from typing import Any

from affectgpt_jax.config import RunConfig, build_config
from affectgpt_jax.planning.job import Job, Kind, make_job
from affectgpt_jax.planning.topology import parse_topology

VALUES = {
    "model": {
        "absent": True, "vision_width": 12, "audio_width": 20,
        "decoder": {
            "vocab": 640, "width": 64, "layers": 2, "heads": 8, "kv_heads": 8, "head_dim": 8, "mlp_width": 96,
            "lora": {"rank": 2, "targets": ["q_proj", "down_proj"]}, "dtype": "bfloat16",
        },
    },
    "data": {"row_length": 64, "max_length": 62, "row_samples": 2, "row_targets": 64},
    "train": {"rows": 8, "dropout": False},
    "evaluate": {"batch": 8, "max_new": 16},
}  # fmt: skip


def small_config(*overrides: str) -> RunConfig:
    """A config of a small model that rests on a base."""
    return build_config(VALUES, "small", ["name=small", *overrides])


def small_job(topology: str, *overrides: str, kind: Kind = "train", **given: Any) -> Job:
    """A job of it."""
    return make_job(kind, small_config(*overrides), parse_topology(topology), given)
