"""Typed configuration: network sizes, run settings, YAML files with overrides."""

from affectgpt_jax.config.loading import build_config, load_config, save_config
from affectgpt_jax.config.run import RunConfig

__all__ = ["RunConfig", "build_config", "load_config", "save_config"]
