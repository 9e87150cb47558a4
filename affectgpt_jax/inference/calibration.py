"""From scores of labels to probabilities that can be relied on, and to labels, or to none.

The scores [V] of a clip become softmax(scores / temperature). Words are grouped by an emotion table, as its metrics
group them: words of one class of a wheel say the same. A word that lies on no class of a wheel is a group of its own
there. The temperature makes the groups' probabilities fit validation clips best.

N clips, V words, K wheels.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.shard_schema import digest
from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench.wheel import WheelTable

THRESHOLD = 0.2
"""Without another one, a label is given if its group has a fifth of the probability."""

TOP_K = 3
"""Labels of a clip at most."""

LIKELIEST = 8
"""Words at most that the record of an answer names with their probabilities; a vocabulary has hundreds."""

FOLDER = "labels"
"""Of scores and calibrations, below a run's folder."""

SUMMARY = ".summary.json"
"""What follows a split's name in the file of its scores."""

BINS = 15
"""Of the expected calibration error."""

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures that are looked through."""


@dataclass(frozen=True)
class Vocabulary:
    """Words that are scored, with their groups.

    Attributes:
      words: the V words, in lower case, each once.
      names: per wheel, the names of the groups.
      groups: int64 [K, V], group of each word.
      table: name of the emotion table.
      identity: changes with words and table.
    """

    words: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    groups: np.ndarray
    table: str
    identity: str

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """Per wheel float64 [V, G], 1 where a word is of a group."""
        return tuple(np.eye(len(names))[own] for names, own in zip(self.names, self.groups, strict=True))


def make_vocabulary(words: Iterable[str], table: WheelTable) -> Vocabulary:
    """Group words by a table.

    Args:
      words: the words; case and outer blanks do not matter.
      table: emotion table.

    Raises:
      UserError: there are fewer than two.
    """
    words = tuple(dict.fromkeys(plain for word in words if (plain := word.strip().lower())))
    if len(words) < 2:
        raise UserError(f"a vocabulary of {len(words)} words: expected two or more, one a line")
    wheels = list(zip(*(word_groups(word, table) for word in words), strict=True))
    names = tuple(tuple(dict.fromkeys(own)) for own in wheels)
    groups = np.array([[found.index(name) for name in own] for own, found in zip(wheels, names, strict=True)])
    return Vocabulary(words, names, groups, table.name, digest(table.fingerprint.encode(), *map(str.encode, words)))


def word_groups(word: str, table: WheelTable) -> tuple[str, ...]:
    """The group of a word on each wheel."""
    return tuple(name or word.strip().lower() for name in table.classes_of(word, "strict"))


def read_words(file: Path) -> list[str]:
    """A vocabulary in a text file, a word or phrase a line; lines that begin with # are remarks.

    Raises:
      UserError: it cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"vocabulary {file} is not readable as UTF-8 text ({error})") from error
    return [line for line in lines if not line.lstrip().startswith("#")]


# ---- probabilities


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax of scores [..., V] at a temperature."""
    x = scores / temperature
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def group_probabilities(words: np.ndarray, vocabulary: Vocabulary) -> list[np.ndarray]:
    """Probabilities of words [..., V] summed over groups: per wheel [..., G]."""
    return [words @ members for members in vocabulary.members]


def support(words: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """How likely each word's group is, [..., V]: the mean over the wheels."""
    found = group_probabilities(words, vocabulary)
    return np.mean([x[..., own] for x, own in zip(found, vocabulary.groups, strict=True)], axis=0)


def best(words: np.ndarray, own_support: np.ndarray) -> np.ndarray:
    """The likeliest word of those with the largest support; int [...]."""
    largest = own_support.max(axis=-1, keepdims=True)
    # Sums in another order differ in their last digits.
    return np.where(own_support >= largest - 1e-9, words, -1.0).argmax(axis=-1)


# ---- calibration


def targets(truth: Sequence[Sequence[str]], vocabulary: Vocabulary, table: WheelTable) -> list[np.ndarray]:
    """What the groups' probabilities should be: per wheel [N, G], equal shares for the groups of the true labels.

    Groups of which the vocabulary has no word are left out; a clip with no other has a row of zeros and is not
    counted on that wheel.

    Args:
      truth: true labels of N clips.
      vocabulary: with the groups.
      table: emotion table.
    """
    shares = [np.zeros((len(truth), len(names))) for names in vocabulary.names]
    places = [{name: g for g, name in enumerate(names)} for names in vocabulary.names]
    for i, labels in enumerate(truth):
        for wheel, own in enumerate(zip(*(word_groups(word, table) for word in labels), strict=True)):
            there = [places[wheel][name] for name in set(own) if name in places[wheel]]
            shares[wheel][i, there] = 1 / max(len(there), 1)
    return shares


class Fit(NamedTuple):
    """How well probabilities fit true labels.

    Attributes:
      nll: negative log-likelihood: cross entropy of the groups with their targets, in nats, the mean over clips.
      ece: expected calibration error: how far the likeliest group's probability is from its mean target, the mean over
        `BINS` equal bins weighted by their clips.
      bins: of each bin with clips, over all wheels: clips, mean probability, mean target.
    """

    nll: float
    ece: float
    bins: tuple[tuple[int, float, float], ...] = ()


def fit(scores: np.ndarray, wanted: Sequence[np.ndarray], vocabulary: Vocabulary, temperature: float) -> Fit:
    """How well the probabilities at a temperature fit; the mean over the wheels with anything to count.

    Args:
      scores: float [N, V].
      wanted: per wheel [N, G] (`targets`).
      vocabulary: with the groups.
      temperature: of the softmax.
    """
    found = group_probabilities(probabilities(scores, temperature), vocabulary)
    measured, sums = [], np.zeros((3, BINS))
    for x, share in zip(found, wanted, strict=True):
        counted = share.any(axis=1)
        if counted.any():
            clips, confidence, right = bins = _bins(x[counted], share[counted])
            ece = float(np.abs(confidence - right).sum() / clips.sum())
            measured.append((_nll(x[counted], share[counted]), ece))
            sums += bins
    if not measured:
        raise UserError("no clip has a true label whose group the vocabulary knows; add the corpus's own labels to it")
    filled = sums[:, sums[0] > 0].T.tolist()
    told = tuple((int(clips), _short(confidence / clips), _short(right / clips)) for clips, confidence, right in filled)
    nll, ece = np.mean(measured, axis=0).tolist()
    return Fit(nll, ece, told)


def _nll(found: np.ndarray, share: np.ndarray) -> float:
    return float(-(share * np.log(np.maximum(found, np.finfo(np.float64).tiny))).sum(axis=1).mean())


def _bins(found: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Of each bin of the likeliest group's probability: clips, sum of the probabilities, sum of the targets."""
    top = found.argmax(axis=1)[:, None]
    confidence, right = (np.take_along_axis(x, top, axis=1)[:, 0] for x in (found, share))
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(bins, x, BINS) for x in (np.ones(len(bins)), confidence, right)])


def fit_temperature(scores: np.ndarray, wanted: Sequence[np.ndarray], vocabulary: Vocabulary) -> float:
    """The temperature of the smallest negative log-likelihood; arguments as `fit`.

    The best of a grid of logarithms, then a golden section around it; scores that are always right, or say nothing, end
    at `COLDEST` or `HOTTEST`.
    """
    low, high = np.log(COLDEST), np.log(HOTTEST)
    grid = np.linspace(low, high, 41)

    def loss(x: float) -> float:
        return fit(scores, wanted, vocabulary, float(np.exp(x))).nll

    middle = grid[int(np.argmin([loss(x) for x in grid]))]
    step, golden = grid[1] - grid[0], (np.sqrt(5) - 1) / 2
    a, b = max(middle - step, low), min(middle + step, high)
    while b - a > 1e-4:
        left, right = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, right) if loss(left) <= loss(right) else (left, b)
    return float(np.exp((a + b) / 2))


class Choice(NamedTuple):
    """A threshold below which a clip gets no label.

    Attributes:
      threshold: of the support.
      precision: among validation clips at or above it, the share whose best label's group is true (mean over wheels).
      coverage: share of the validation clips at or above it.
    """

    threshold: float
    precision: float
    coverage: float


def confidence_and_truth(
    scores: np.ndarray, wanted: Sequence[np.ndarray], vocabulary: Vocabulary, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """The largest support of each counted clip, and the share of wheels on which the best label's group is true."""
    words = probabilities(scores, temperature)
    own = support(words, vocabulary)
    chosen = best(words, own)
    clips = np.arange(len(scores))
    hits = np.stack([share[clips, groups[chosen]] > 0 for share, groups in zip(wanted, vocabulary.groups, strict=True)])
    counted = np.stack([share.any(axis=1) for share in wanted])
    kept = counted.any(axis=0)
    return own.max(axis=1)[kept], (hits & counted).sum(axis=0)[kept] / counted.sum(axis=0)[kept]


def measure_threshold(confidence: np.ndarray, right: np.ndarray, threshold: float) -> Choice:
    """What a threshold gives on clips of which `confidence_and_truth` tells."""
    answered = confidence >= threshold
    return Choice(threshold, float(right[answered].mean()) if answered.any() else 0.0, float(answered.mean()))


def choose_threshold(
    confidence: np.ndarray, right: np.ndarray, *, precision: float | None = None, coverage: float | None = None
) -> Choice:
    """The lowest threshold that reaches a precision, or the highest that covers a share of the clips.

    Args:
      confidence: [N].
      right: [N].
      precision: to be reached, 0 to 1; or
      coverage: share of the clips that shall get labels, 0 to 1.

    Raises:
      UserError: no threshold reaches the precision.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, gained = confidence[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Equal confidences are on one side of any threshold.
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    if coverage is not None:
        end = ends[ends + 1 >= coverage * len(ranked) - 1e-9][0]
    else:
        reaching = ends[gained[ends] >= (precision or 0.0) - 1e-12]
        if not len(reaching):
            raise UserError(
                f"--precision {precision}: no threshold reaches it on the validation clips, the best one is "
                f"{gained[ends].max():.3f}; ask for less, or for a --coverage"
            )
        end = reaching[-1]
    return measure_threshold(confidence, right, float(ranked[end]))


@dataclass(frozen=True)
class Calibration:
    """How scores of one model become probabilities and labels.

    Attributes:
      model: `runs.fingerprint` of the checkpoint.
      step: its step.
      words: the vocabulary.
      identity: of vocabulary and table.
      table: name of the emotion table.
      temperature: of the softmax.
      threshold: of a label's support.
      clips: `Corpus.fingerprint` of the validation clips, and
      split: their split; both empty without calibration.
      n: how many were counted.
      before: fit at temperature 1.
      after: fit at `temperature`.
      precision: that the threshold had there.
      coverage: that it had there.
    """

    model: str
    step: int
    words: tuple[str, ...]
    identity: str
    table: str
    temperature: float = 1.0
    threshold: float = THRESHOLD
    clips: str = ""
    split: str = ""
    n: int = 0
    before: Fit | None = None
    after: Fit | None = None
    precision: float | None = None
    coverage: float | None = None

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        record = asdict(self)
        for name in ("before", "after"):
            value = getattr(self, name)
            record[name] = None if value is None else value._asdict()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_calibration(file: Path, model: str | None = None) -> Calibration:
    """A calibration of a model, or of any.

    Raises:
      UserError: it is of another model, or no calibration.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        for name in ("before", "after"):
            if record[name]:
                bins = tuple(map(tuple, record[name].get("bins", ())))
                record[name] = Fit(**record[name] | {"bins": bins})
        found = Calibration(**record | {"words": tuple(record["words"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no calibration ({error}); write it with affectgpt labels RUN --calibrate SPLIT"
        ) from error
    if model is not None and found.model != model:
        raise UserError(
            f"{file} calibrates another model (step {found.step}); calibrate this one: affectgpt labels RUN "
            "--calibrate SPLIT"
        )
    return found


def calibrate(
    scores: np.ndarray,
    truth: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    table: WheelTable,
    base: Calibration,
    *,
    threshold: float | None = None,
    precision: float | None = None,
    coverage: float | None = None,
) -> Calibration:
    """Fit the temperature, and choose the threshold.

    Args:
      scores: float [N, V], of validation clips.
      truth: their true labels.
      vocabulary: the words.
      table: emotion table.
      base: what else the calibration says.
      threshold: of the support, if it is given; or
      precision: to be reached; or
      coverage: to be reached; else `THRESHOLD`.
    """
    wanted = targets(truth, vocabulary, table)
    temperature = fit_temperature(scores, wanted, vocabulary)
    confidence, right = confidence_and_truth(scores, wanted, vocabulary, temperature)
    if precision is None and coverage is None:
        choice = measure_threshold(confidence, right, THRESHOLD if threshold is None else threshold)
    else:
        choice = choose_threshold(confidence, right, precision=precision, coverage=coverage)
    return Calibration(
        **{name: getattr(base, name) for name in ("model", "step", "words", "identity", "table", "clips", "split")},
        temperature=temperature,
        n=len(confidence),
        before=fit(scores, wanted, vocabulary, 1.0),
        after=fit(scores, wanted, vocabulary, temperature),
        **choice._asdict(),
    )


# ---- labels


def given_labels(words: np.ndarray, vocabulary: Vocabulary, threshold: float, top_k: int = TOP_K) -> list[str]:
    """The labels of a clip, none where the model had better abstain: of each group that is likely enough (words whose
    groups are the same on all wheels) the likeliest word.

    Args:
      words: probabilities [V].
      vocabulary: the words.
      threshold: what a word's support must reach.
      top_k: labels at most.
    """
    enough = support(words, vocabulary) >= threshold
    first: dict[tuple[int, ...], str] = {}
    for i in np.argsort(-words, kind="stable"):
        if enough[i]:
            first.setdefault(tuple(vocabulary.groups[:, i].tolist()), vocabulary.words[i])
    return list(first.values())[:top_k]


def label_record(
    scores: np.ndarray,
    vocabulary: Vocabulary,
    temperature: float,
    threshold: float,
    top_k: int = TOP_K,
    named: int | None = None,
) -> dict[str, Any]:
    """What the scores of a clip say, as JSON holds it.

    Args:
      scores: float [V].
      vocabulary: the words.
      temperature: of the softmax.
      threshold: what a label's support must reach.
      top_k: labels at most.
      named: words at most that are named with their probability; `top_k` by default.

    Returns:
      `labels` given (none: `abstained`), `confidence`, the largest support; `likeliest`, the `named` likeliest words
      with probability and support; `groups`, per wheel name -> probability, the likeliest first; `entropy` of the words
      in nats; `in_vocabulary`, the share of the model's first labels that the vocabulary has.
    """
    words = probabilities(scores, temperature)
    own = support(words, vocabulary)
    order = np.argsort(-words, kind="stable")[: top_k if named is None else named]
    labels = given_labels(words, vocabulary, threshold, top_k)
    return {
        "labels": labels,
        "abstained": not labels,
        "confidence": _short(own.max()),
        "likeliest": [
            {"label": vocabulary.words[i], "probability": _short(words[i]), "support": _short(own[i])} for i in order
        ],
        "groups": [
            {names[g]: _short(x[g]) for g in np.argsort(-x, kind="stable")}
            for names, x in zip(vocabulary.names, group_probabilities(words, vocabulary), strict=True)
        ],
        "entropy": _short(-(words * np.log(np.maximum(words, np.finfo(np.float64).tiny))).sum()),
        "in_vocabulary": _short(np.exp(scores).sum()),
    }


def changes(scores: np.ndarray, plain: np.ndarray, vocabulary: Vocabulary, temperature: float) -> dict[str, Any]:
    """How probabilities change against those of the plain condition.

    Args:
      scores: float [V], under the condition.
      plain: float [V], with everything in its place.
      vocabulary: the words.
      temperature: of both softmaxes.

    Returns:
      `label`, the plain condition's best one, with `probability` and its `change`; `groups`, per wheel name -> change.
    """
    now, before = (probabilities(x, temperature) for x in (scores, plain))
    top = int(best(before, support(before, vocabulary)))
    moved = group_probabilities(now - before, vocabulary)
    return {
        "label": vocabulary.words[top],
        "probability": _short(now[top]),
        "change": _short(now[top] - before[top]),
        "groups": [
            {name: _short(x) for name, x in zip(names, own, strict=True)}
            for names, own in zip(vocabulary.names, moved, strict=True)
        ],
    }


def moves(
    scores: np.ndarray, plain: np.ndarray, vocabulary: Vocabulary, temperature: float, most: int = LIKELIEST
) -> list[dict[str, Any]]:
    """How the probabilities of words change against those of the plain condition.

    Args:
      scores: float [V], under the condition.
      plain: float [V], with everything in its place.
      vocabulary: the words.
      temperature: of both softmaxes.
      most: words.

    Returns:
      `label`, `probability` under the condition and its `change`: of the `most` likeliest words of the plain condition,
      then of those of the `TOP_K` likeliest under this one that are not among them.
    """
    now, before = (probabilities(x, temperature) for x in (scores, plain))
    first, then = (np.argsort(-x, kind="stable").tolist() for x in (before, now))
    return [
        {"label": vocabulary.words[i], "probability": _short(now[i]), "change": _short(now[i] - before[i])}
        for i in dict.fromkeys([*first[:most], *then[:TOP_K]])
    ]


def _short(x: Any) -> float:
    return round(float(x), 6)
