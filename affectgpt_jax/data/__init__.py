"""Everything between a corpus and a batch: media samples, prompts, tokens, rows. Numpy only; never imports jax."""
