"""From generated tokens to the text of the answer, and from that to labels."""

import re
from collections.abc import Iterable, Iterator, Sequence

from affectgpt_jax.data.prompts import BOS, END_OF_TEXT, EOS, STOP, Compat, parse_openset
from affectgpt_jax.data.tokenizer import Tokenizer

# What may stand before the labels: the stem our own answers have, in whatever person and number.
_STEM = re.compile(r"\bemotional\s+states?\s+(?:is|are|includes?|can\s+be\s+described\s+as)\b\s*:?", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*(?:[,;/\u3001\uff0c]|\band\b|&)\s*", re.IGNORECASE)
_END = re.compile(r"[.!?\u3002\n]|" + STOP)
_ASSISTANT = "Assistant:"
_QUOTES = " \t\"'`*\u201c\u201d\u2018\u2019"

_MOST_WORDS = 4
"""Words of a label after the stem; more are prose."""
_MOST_WORDS_BARE = 2
"""Words of a label in a list that has neither stem nor brackets."""


def response_text(ids: Iterable[int], tokenizer: Tokenizer, *, compat: Compat = "strict") -> str:
    """Extracts the answer from generated ids (QUIRKS 49).

    What follows the first `<|im_start|>` up to the next, cut at `<|im_end|>`, without the part after the last "###",
    from the last "Assistant:" on, stripped.

    Args:
        ids: generated token ids, stop tokens included or not.
        tokenizer: the tokenizer.
        compat: `strict` also cuts at `<|endoftext|>`, which ends generation too; `reference` leaves it in the answer.

    Returns:
        The answer; may be empty.
    """
    text = tokenizer.decode(ids)
    if BOS in text:
        text = text.split(BOS)[1]
    text = text.split(EOS)[0]
    if compat == "strict":
        text = text.split(END_OF_TEXT)[0]
    if STOP in text:
        text = text.rpartition(STOP)[0]
    return text.rpartition(_ASSISTANT)[2].strip()


def response_pieces(ids: Iterable[int], tokenizer: Tokenizer, *, compat: Compat = "strict") -> Iterator[str]:
    """Tells an answer while its ids come.

    A piece is told once no later id can change it: whole characters, nothing of what ends an answer, no blanks at
    either end. Joined, the pieces are `response_text`, but for an answer of which that drops a beginning already told
    (what stands before a second "Assistant:" or `<|im_start|>`).

    Args:
        ids: as they are generated, stop tokens included or not.
        tokenizer: the tokenizer.
        compat: as `response_text`.
    """
    read: list[int] = []
    told = ""
    for token in ids:
        read.append(token)
        sure = _sure(tokenizer.decode(read), (EOS, STOP, *((END_OF_TEXT,) if compat == "strict" else ())))
        if len(sure) > len(told) and sure.startswith(told):
            yield sure[len(told) :]
            told = sure
    whole = response_text(read, tokenizer, compat=compat)
    if len(whole) > len(told) and whole.startswith(told):
        yield whole[len(told) :]


def _sure(text: str, ends: Sequence[str]) -> str:
    """The beginning of an answer that does not change, whatever comes after this text."""
    if BOS in text:
        text = text.split(BOS)[1]
    for end in ends:
        text = text.split(end)[0]
    text = text.rpartition(_ASSISTANT)[2].rstrip("\ufffd")  # a character of which bytes are missing
    begun = (mark[:size] for mark in (*ends, BOS, _ASSISTANT) for size in range(len(mark) - 1, 0, -1))
    held = max((len(part) for part in begun if text.endswith(part)), default=0)
    return text[: len(text) - held].strip()


def response_labels(text: str) -> list[str]:
    """Reads the labels from an answer to the `ovlabel` question, by rule.

    Understands "The character's emotional state is a, b." with small deviations (plural, missing full stop, "and",
    quotes, text around it), a list in brackets such as label extractors write, and a bare list of short labels.
    Anything else, such as a description, has no labels.

    Args:
        text: the answer.

    Returns:
        Labels in lower case, in order, each once; empty when the answer lists none.
    """
    text = text.strip()
    stem = _STEM.search(text)
    if stem is not None:
        text = text[stem.end() :].strip()
    if text.startswith("["):
        return _unique(parse_openset(text[1:].partition("]")[0]))
    if stem is not None:
        return [label for label in _listed(_END.split(text, maxsplit=1)[0]) if len(label.split()) <= _MOST_WORDS]
    bare = text.removesuffix(".")
    labels = _listed(bare)
    is_prose = _END.search(bare) is not None or any(len(label.split()) > _MOST_WORDS_BARE for label in labels)
    return [] if is_prose else labels


def _listed(text: str) -> list[str]:
    return _unique(part.strip(_QUOTES) for part in _SEPARATOR.split(text))


def _unique(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(label.lower() for label in labels if label))
