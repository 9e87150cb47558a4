"""A corpus asked every question, as tokens: made once, kept in the cache folder, read by place.

The plan needs every length before the first step, so everything is tokenised then anyway; what comes out is 4 bytes a
token, 0.2 GB for 130,000 samples and two questions.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.data.asker import Asker
from affectgpt_jax.data.examples import Conversation, Example, Rejected, training_example
from affectgpt_jax.data.prompts import layout_size, question
from affectgpt_jax.data.shard_schema import TextRecord, digest
from affectgpt_jax.data.shards import Corpus

TOKENS, PLACES, REJECTED = "tokens.int32", "places.npz", "rejected.json"


@dataclass(frozen=True)
class TokenTable:
    """The usable samples of a corpus, asked each type of question. A pickled copy opens the files itself.

    Attributes:
      folder: where the files lie.
      ask: what made the tokens.
    """

    folder: Path
    ask: Asker

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "ask": self.ask}

    @cached_property
    def samples(self) -> npt.NDArray[np.int64]:
        """Indices into the corpus of the usable samples."""
        return self._places["samples"]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each usable sample asked each type of question, int [types, samples]."""
        return np.diff(self._starts).reshape(-1, len(self.ask.label_types)).T

    @cached_property
    def targets(self) -> npt.NDArray[np.int64]:
        """Target tokens of each, int [types, samples]."""
        return self.lengths - 1 - self._firsts.reshape(-1, len(self.ask.label_types)).T

    @cached_property
    def rejected(self) -> tuple[Rejected, ...]:
        """The samples that cannot be used, and why."""
        return tuple(Rejected(*entry) for entry in json.loads((self.folder / REJECTED).read_text(encoding="utf-8")))

    def example(self, sample: int, label_type: int, *, hide_text: bool = False) -> Example:
        """A usable sample, by its place among them, asked a question; `hide_text` leaves its subtitle empty."""
        index = sample * len(self.ask.label_types) + label_type
        tokens = self._tokens[self._starts[index] : self._starts[index + 1]]
        first, slots = int(self._firsts[index]), self._slots[index]
        if hide_text:
            prompt, slots = self._without_text[label_type]
            tokens, first = np.concatenate([prompt, tokens[first + 1 :]]), len(prompt) - 1
        soft_index = np.zeros(len(tokens), np.int32)
        soft_index[slots] = self._numbers
        return Example(tokens, soft_index, self._ramp[first : len(tokens) - 1], tokens[first + 1 :])

    @cached_property
    def _places(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / PLACES, allow_pickle=False) as found:
            return dict(found)

    @cached_property
    def _tokens(self) -> npt.NDArray[np.int32]:
        file = self.folder / TOKENS
        return np.memmap(file, np.int32, "r").view(np.ndarray) if file.stat().st_size else np.zeros(0, np.int32)

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return self._places["starts"]

    @cached_property
    def _firsts(self) -> npt.NDArray[np.int32]:
        return self._places["firsts"]

    @cached_property
    def _slots(self) -> npt.NDArray[np.int32]:
        return self._places["slots"]

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int32]:
        return np.arange(1, layout_size(self.ask.layout) + 1, dtype=np.int32)

    @cached_property
    def _ramp(self) -> npt.NDArray[np.int32]:
        return np.arange(self.ask.max_length + 2, dtype=np.int32)

    @cached_property
    def _without_text(self) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Of each type of question the prompt with an empty subtitle, and where its soft tokens stand."""
        ask = self.ask
        prompts = []
        for kind in ask.label_types:
            empty = Conversation("", ask.mode, "", question(kind))
            example = training_example(empty, ask.layout, ask.tokenizer, compat=ask.compat, max_length=ask.max_length)
            assert isinstance(example, Example)  # a longer one was usable
            size = len(example.tokens) - len(example.target_ids)
            prompts.append((example.tokens[:size], slots_of(example)))
        return prompts


def slots_of(example: Example) -> npt.NDArray[np.int32]:
    """Where the soft tokens 1, 2, ... of an example stand."""
    places = example.soft_index.nonzero()[0]
    return places[np.argsort(example.soft_index[places])].astype(np.int32)


def corpus_tokens(corpus: Corpus, ask: Asker, report: Callable[[int, int], None] | None = None) -> TokenTable:
    """The tokens of a corpus, from the cache folder if they have been made before.

    Args:
      corpus: the corpus.
      ask: the tokenisation.
      report: told how many samples of how many are done; never called if nothing has to be.
    """
    name = digest(corpus.text_fingerprint.encode(), ask.fingerprint.encode())[:32]
    folder = cache_folder() / "tokens" / name
    if (folder / PLACES).is_file():
        return TokenTable(folder, ask)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}."))
    except OSError:  # kept for this process only
        folder = draft = Path(tempfile.mkdtemp(prefix="affectgpt-tokens-"))
        atexit.register(shutil.rmtree, draft, ignore_errors=True)
    tell = None if report is None else lambda done: report(done, len(corpus))
    tokenise(corpus.walk(), ask, draft, tell)
    if draft != folder:
        if not (folder / PLACES).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # what somebody has damaged
        try:
            os.rename(draft, folder)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
    return TokenTable(folder, ask)


def tokenise(
    texts: Iterable[TextRecord], ask: Asker, folder: Path, report: Callable[[int], None] | None = None
) -> TokenTable:
    """Ask every sample each type of question and write the tokens.

    A sample that any of the types cannot use is left out and listed; nothing takes its place.

    Args:
      texts: the samples in order.
      ask: the tokenisation.
      folder: where to; the file of places comes last.
      report: told how many are done.
    """
    starts, firsts, slots, samples = [0], [], [], []
    rejected: list[Rejected] = []
    with (folder / TOKENS).open("wb") as file:
        for index, text in enumerate(texts):
            found = [ask(text, kind) for kind in range(len(ask.label_types))]
            refused = [example for example in found if isinstance(example, Rejected)]
            rejected += refused[:1]
            for example in () if refused else found:
                assert isinstance(example, Example)
                file.write(example.tokens.tobytes())
                starts.append(starts[-1] + len(example.tokens))
                firsts.append(len(example.tokens) - len(example.target_ids) - 1)
                slots.append(slots_of(example))
            samples += [] if refused else [index]
            if report is not None:
                report(index + 1)
    (folder / REJECTED).write_text(json.dumps(rejected, ensure_ascii=False), encoding="utf-8")
    np.savez(
        folder / PLACES,
        allow_pickle=False,
        starts=np.asarray(starts, np.int64),
        firsts=np.asarray(firsts, np.int32),
        slots=np.asarray(slots, np.int32).reshape(len(firsts), layout_size(ask.layout)),
        samples=np.asarray(samples, np.int64),
    )
    return TokenTable(folder, ask)
