"""A small emotion lexicon of our own, for scoring without the official emotion wheels.

It is called `affectgpt-small` in every report and is *not* the wheel folder that MER-UniBench scores with: one wheel
instead of five, ordinary words only, so its scores do not compare with published ones.
"""

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from affectgpt_jax.unibench.wheel import NEUTRAL, WheelTable, build_table

NAME = "affectgpt-small"

_GROUPS = (
    ("joy", +1, """
        happy happiness joy joyful cheerful cheerfulness glad delighted delight pleased pleasure merry jolly elated
        elation excited excitement thrilled enthusiastic enthusiasm amused amusement playful satisfied satisfaction
        overjoyed ecstatic gleeful lighthearted positive
    """),
    ("calm", +1, """
        calm calmness peaceful peace relaxed relaxation serene serenity content contented contentment tranquil
        composed comfortable relieved relief patient gentle
    """),
    ("affection", +1, """
        love loving affection affectionate tender tenderness caring warm warmth friendly kind grateful gratitude
        thankful sympathetic sympathy compassionate appreciative trusting
    """),
    ("interest", +1, """
        curious curiosity interested interest confident confidence proud pride hopeful hope optimistic determined
        inspired eager attentive encouraged
    """),
    ("surprise", 0, "surprised surprise astonished astonishment startled stunned speechless incredulous"),
    ("surprise", +1, "amazed amazement impressed"),
    ("surprise", -1, "shocked shock"),
    ("neutral", 0, "neutral"),
    ("sadness", -1, """
        sad sadness sorrow sorrowful unhappy unhappiness gloomy grief grieving heartbroken depressed depression
        dejected miserable misery lonely loneliness disappointed disappointment hopeless despair desperate hurt
        tearful melancholy helpless regretful regret discouraged bored tired
    """),
    ("anger", -1, """
        angry anger mad furious fury rage enraged irritated irritation annoyed annoyance frustrated frustration
        indignant outraged hostile resentful resentment bitter dissatisfied dissatisfaction impatient impatience
        sarcastic sarcasm mocking mockery ironic contemptuous contempt scornful disdainful jealous envious
        critical blaming
    """),
    ("disgust", -1, "disgusted disgust revolted repulsed disapproving aversion distaste nauseated"),
    ("fear", -1, """
        afraid fear fearful scared frightened terrified terror horrified panic panicked worried worry anxious
        anxiety nervous nervousness tense tension uneasy unease concerned concern apprehensive alarmed insecure
        stressed stress hesitant
    """),
    ("shame", -1, """
        ashamed shame embarrassed embarrassment guilty guilt awkward humiliated shy remorseful apologetic
    """),
)  # fmt: skip
"""Group, sentiment (+1, 0, -1), words."""

GROUP_OF: Mapping[str, str] = MappingProxyType({word: group for group, _, words in _GROUPS for word in words.split()})
"""Word -> its group, `neutral` included."""

POLARITY: Mapping[str, int] = MappingProxyType({word: sign for _, sign, words in _GROUPS for word in words.split()})
"""Word -> +1, 0 or -1."""


def small_table() -> WheelTable:
    """The lexicon as an emotion table of one wheel and one level."""
    words = sorted(GROUP_OF)
    text = "\n".join(f"{word} {GROUP_OF[word]}" for word in words)
    without_neutral = {word: group for word, group in GROUP_OF.items() if group != NEUTRAL}
    return build_table(
        NAME,
        hashlib.sha256(text.encode()).hexdigest(),
        words,
        {("reference", "level1"): [without_neutral], ("strict", "level1"): [dict(GROUP_OF)]},
    )


def polarity(labels: Iterable[str]) -> int:
    """Sentiment of a list of emotion words: the sign of the sum of their polarities.

    Args:
        labels: words; those outside the lexicon count 0.

    Returns:
        +1 positive, -1 negative, 0 neither.
    """
    total = sum(POLARITY.get(word.strip().lower(), 0) for word in labels)
    return (total > 0) - (total < 0)
