"""From a sample's texts to the tokens of a question and its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from affectgpt_jax.data import examples, prompts, tokenizer
from affectgpt_jax.data.examples import Conversation, Example, Rejected, training_example
from affectgpt_jax.data.prompts import Compat, answer, label_text, question
from affectgpt_jax.data.shard_schema import TextRecord, digest
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
