"""The model as a Python object: `from affectgpt_jax import AffectGPT`."""
