"""Stage 0 of the demo: two small encoders and a tokenizer, from the synthetic corpus's own generator."""
