"""From a sample's texts to the tokens of a question and its answer, and how long they are."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.data import examples, prompts, tokenizer
from affectgpt_jax.data.examples import Conversation, Example, Rejected, training_example
from affectgpt_jax.data.prompts import Compat, answer, label_text, question
from affectgpt_jax.data.shard_schema import TextRecord, digest
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asker:
    """Turns a sample's texts into tokens.

    Attributes:
      tokenizer: the tokenizer.
      mode: input mode of the model.
      layout: the model's soft tokens (`prompts.soft_layout`).
      label_types: question types in the plan's order.
      compat: see `prompts.Compat`.
      max_length: longest prompt plus answer.
    """

    tokenizer: Tokenizer
    mode: str
    layout: Mapping[str, range]
    label_types: tuple[str, ...]
    compat: Compat
    max_length: int

    def __call__(self, text: TextRecord, label_type: int, *, hide_text: bool = False) -> Example | Rejected:
        """One question about a sample and its answer; `hide_text` leaves the subtitle empty."""
        kind = self.label_types[label_type]
        if kind == "description":
            if not text.description:
                return Rejected(text.name, "has no description to learn")
            target = answer(kind, description=text.description)
        else:
            target = answer(kind, labels=label_text(text.labels))
        subtitle = "" if hide_text else text.subtitle
        conversation = Conversation(text.name, self.mode, subtitle, self._questions[label_type], target)
        return training_example(
            conversation, self.layout, self.tokenizer, compat=self.compat, max_length=self.max_length
        )

    @cached_property
    def _questions(self) -> tuple[str, ...]:
        return tuple(question(kind) for kind in self.label_types)

    @property
    def fingerprint(self) -> str:
        """Identity: changes with any setting, with the tokenizer, and with the code that makes tokens of texts."""
        layout = {name: list(slots) for name, slots in self.layout.items()}
        settings = [self.mode, layout, self.label_types, self.compat, self.max_length]
        return digest(json.dumps(settings).encode(), self.tokenizer.fingerprint.encode(), _code())


@cache
def _code() -> bytes:
    modules = (__file__, prompts.__file__, examples.__file__, tokenizer.__file__)
    return b"".join(Path(file).read_bytes() for file in modules)


class Lengths(NamedTuple):
    """What a plan is made from: [types, samples] each, and what could not be used."""

    tokens: np.ndarray
    targets: np.ndarray
    samples: np.ndarray
    """Indices into the corpus of the usable samples; the plan counts in these."""
    rejected: tuple[Rejected, ...]


def corpus_lengths(corpus: Corpus, ask: Asker, report: Callable[[int, int], None] | None = None) -> Lengths:
    """`measure` of a corpus, kept in the cache folder: another start of the run reads it from there.

    Args:
      corpus: the corpus.
      ask: the tokenisation.
      report: see `measure`; never called if the lengths are known.
    """
    file = cache_folder() / "lengths" / f"{digest(corpus.text_fingerprint.encode(), ask.fingerprint.encode())}.npz"
    if (known := _read(file)) is not None:
        return known
    lengths = measure(corpus.walk(), ask, None if report is None else lambda done: report(done, len(corpus)))
    _write(file, lengths)
    return lengths


def measure(texts: Iterable[TextRecord], ask: Asker, report: Callable[[int], None] | None = None) -> Lengths:
    """Tokenise every sample once for each question type and keep the lengths.

    A sample that any of the types cannot use is left out and listed; nothing takes its place.

    Args:
      texts: the samples in order.
      ask: the tokenisation.
      report: told how many are done.
    """
    tokens, targets, samples, rejected = [], [], [], []
    for index, text in enumerate(texts):
        found = [ask(text, kind) for kind in range(len(ask.label_types))]
        refused = [example for example in found if isinstance(example, Rejected)]
        rejected += refused[:1]
        if not refused:
            usable = [example for example in found if isinstance(example, Example)]
            tokens.append([len(example.tokens) for example in usable])
            targets.append([len(example.target_ids) for example in usable])
            samples.append(index)
        if report is not None:
            report(index + 1)
    shape = (-1, len(ask.label_types))
    return Lengths(
        np.asarray(tokens, np.int64).reshape(shape).T,
        np.asarray(targets, np.int64).reshape(shape).T,
        np.asarray(samples, np.int64),
        tuple(rejected),
    )


def _write(file: Path, lengths: Lengths) -> None:
    """Write whole or not at all; a cache that cannot be written is no error."""
    rejected = np.array([tuple(entry) for entry in lengths.rejected], np.str_).reshape(-1, 2)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as draft:
            np.savez(draft, allow_pickle=False, **{**lengths._asdict(), "rejected": rejected})
        os.replace(draft.name, file)
    except OSError:
        return


def _read(file: Path) -> Lengths | None:
    try:
        with np.load(file, allow_pickle=False) as found:
            rejected = tuple(Rejected(*entry) for entry in found["rejected"].tolist())
            return Lengths(found["tokens"], found["targets"], found["samples"], rejected)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
