"""A language at random with heavy tails: any word may follow another, a few of them often, most of them seldom.

What is said of the scenes is learned within a thousand samples by a model of any size. This goes on to be learned with
every sample and every parameter, as real text does, and how well it can be foretold at best is known.
"""

import functools
import re

import numpy as np

from data_prep.synth.language import sentences
from data_prep.synth.scenes import TEXTS

SEED = 0
"""The language is one and the same for all corpora."""
EXPONENT = 1.3
"""Of Zipf's law: the r-th likeliest word after another comes with probability ~ r^-1.3."""


@functools.cache
def words() -> tuple[str, ...]:
    """Its words: those of the scenes' sentences, so that a tokenizer of the corpus knows them."""
    said = " ".join(english.lower() for kind in TEXTS for english, _ in sentences(kind, "train"))
    return tuple(sorted(set(re.findall("[a-z]+", said))))


@functools.cache
def _followers() -> np.ndarray:
    """For each word all words, the likeliest first: int64 [words, words]."""
    rng = np.random.default_rng(SEED)
    return np.stack([rng.permutation(len(words())) for _ in words()])


@functools.cache
def _chances() -> np.ndarray:
    """Probability of each rank, float64 [words]."""
    weights = np.arange(1, len(words()) + 1, dtype=np.float64) ** -EXPONENT
    return weights / weights.sum()


def entropy() -> float:
    """Nats of a word whose predecessor is known: what no model can do better than."""
    chances = _chances()
    return float(-chances @ np.log(chances))


def draw_babble(count: int, rng: np.random.Generator) -> str:
    """A row of `count` words, after a first one that is drawn evenly."""
    word = int(rng.integers(len(words())))
    ranks = np.searchsorted(np.cumsum(_chances())[:-1], rng.random(count), side="right")
    said = []
    for rank in ranks:
        word = int(_followers()[word, rank])
        said.append(words()[word])
    return " ".join(said)
