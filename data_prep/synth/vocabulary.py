"""The emotion words of the synthetic corpus.

Ordinary words only, each lying on the emotion wheels of MER-UniBench, and none whose place there is an accident of
the synonym tables (`fear` and `excited`, for instance, fall together on most wheels).
"""

EMOTIONS: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "joyful", "cheerful"),
    "calm": ("calm", "peaceful", "relaxed"),
    "sad": ("sad", "sorrowful", "unhappy"),
    "angry": ("angry", "irritated", "furious"),
    "sarcastic": ("sarcastic", "annoyed", "mocking"),
    "worried": ("worried", "anxious", "nervous"),
    "surprised": ("surprised", "amazed", "startled"),
}
"""Emotion group -> its words; the first word names the group and is every clip's primary label."""

FAMILIES: dict[str, str] = {
    "happy": "pleasant",
    "calm": "pleasant",
    "sad": "sad",
    "angry": "hostile",
    "sarcastic": "hostile",
    "worried": "worried",
    "surprised": "surprised",
}
"""Emotion group -> family. An emotion wheel tells families apart but may merge groups of one family, so what a
modality contributes (`data_prep.synth.scenes`) is counted in families."""
