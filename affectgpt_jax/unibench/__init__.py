"""MER-UniBench: metrics, emotion wheels, readers and reports. numpy only; nothing here imports jax.

from affectgpt_jax.unibench.lexicon import small_table
from affectgpt_jax.unibench.scoring import score_labels

scores = score_labels([["happy", "excited"]], [["joyful"]], small_table())
scores.scores["hit_rate"].value  # 1.0
"""
