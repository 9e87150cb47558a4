"""The language model's tokenizer: Qwen2's byte-level BPE with five placeholder tokens added.

The vocabulary and the merging are those of the `tokenizers` library. Special tokens are cut out of the text here, so
that a caller decides where the text of a user may spell one: the library recognises them everywhere. Words that have
been met before are looked up, which takes a tenth of the library's time or less.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from affectgpt_jax.data.prompts import BOS, END_OF_TEXT, EOS, PLACEHOLDERS, STOP, Soft
from affectgpt_jax.data.shard_schema import digest
from affectgpt_jax.errors import UserError
from affectgpt_jax.model_folders import model_folder

# Qwen2's way to cut text into words, as its published tokenizer.json spells it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN = 300_000
_LONG = 40
"""Texts kept by `_Known`, and characters of the longest: sentences without spaces hardly come again."""


class _Known(dict[str, tuple[int, ...]]):
    """Ids of texts met so far, each encoded with `before` in front."""

    def __init__(self, base: tokenizers.Tokenizer, before: str) -> None:
        super().__init__()
        self._base, self._before = base, before

    def __missing__(self, text: str) -> tuple[int, ...]:
        ids = tuple(self._base.encode(self._before + text).ids)
        if len(text) <= _LONG:
            if len(self) >= _KNOWN:
                self.clear()
            self[text] = ids
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        return _Known, (self._base, self._before)


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back. Immutable; may be shared by threads and pickled.

    Attributes:
        base: the library's tokenizer without any added token.
        added: id of each added token, special or not, placeholders included.
    """

    base: tokenizers.Tokenizer
    added: Mapping[str, int]

    @property
    def bos(self) -> int:
        """Id of `<|im_start|>`, which opens a sample."""
        return self.added[BOS]

    @property
    def eos(self) -> int:
        """Id of `<|im_end|>`, which closes a sample."""
        return self.added[EOS]

    @property
    def pad(self) -> int:
        """Id that the reference pads with: `eos`, not `<|endoftext|>` (QUIRKS 21)."""
        return self.added[EOS]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids at which generation ends: `eos`, and the base model's own end of text where it has one (QUIRKS 46)."""
        return tuple(self.added[token] for token in (EOS, END_OF_TEXT) if token in self.added)

    @cached_property
    def placeholders(self) -> dict[str, int]:
        """Id of each modality's placeholder."""
        return {modality: self.added[token] for modality, token in PLACEHOLDERS.items()}

    def find_placeholders(self, ids: npt.NDArray[np.int32]) -> dict[str, list[int]]:
        """Where each modality's placeholder stands in int32 [n] ids."""
        found: dict[str, list[int]] = {modality: [] for modality in self.placeholders}
        for place in (ids >= self._first_placeholder).nonzero()[0].tolist():
            if (modality := self._modalities.get(int(ids[place]))) is not None:
                found[modality].append(place)
        return found

    @cached_property
    def _modalities(self) -> dict[int, str]:
        return {token_id: modality for modality, token_id in self.placeholders.items()}

    @cached_property
    def _first_placeholder(self) -> int:
        return min(self._modalities)

    @cached_property
    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Id sequences that end an answer: `eos`, and "###" in its three common spellings (QUIRKS 48)."""
        one, two, three = (tuple(self.encode(STOP[:n])) for n in (1, 2, 3))
        return tuple(dict.fromkeys([(self.eos,), three, two + one, one + two]))

    @property
    def size(self) -> int:
        """Number of ids up to the last one in use; an embedding may have more rows."""
        return max(self.base.get_vocab_size(), max(self.added.values()) + 1)

    @cached_property
    def fingerprint(self) -> str:
        """Identity: changes with any token."""
        return digest(self.base.to_str().encode(), json.dumps(dict(self.added), sort_keys=True).encode())

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token_id: token for token, token_id in self.added.items()}

    @cached_property
    def _any_added(self) -> re.Pattern[str]:
        # The longest first, so that of two tokens that begin alike the longer one is found, as the library does.
        longest_first = sorted(self.added, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """Turns text into ids; nothing is put before or after it.

        Args:
            text: any text.
            literal: text that spells an added token such as `<|im_end|>` stays text.

        Returns:
            Token ids.
        """
        if literal:
            return self._encode_plain(text)
        ids: list[int] = []
        for piece in self._any_added.split(text):
            ids += [self.added[piece]] if piece in self.added else self._encode_plain(piece)
        return ids

    def encode_constant(self, parts: tuple[str | Soft, ...]) -> tuple[int, ...]:
        """Turns the beginning of a prompt into ids, text taken literally; kept, as many samples begin alike."""
        if (ids := self._constants.get(parts)) is None:
            pieces = (
                [self.placeholders[part.modality]] * part.times if isinstance(part, Soft) else self._encode_plain(part)
                for part in parts
            )
            ids = self._constants[parts] = tuple(chain.from_iterable(pieces))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        # Qwen2 cuts text before every single space, and merges never cross a cut, so what stands between two spaces
        # has the same ids wherever it stands. Other white space and runs of it are cut by what is around them.
        words = text.split(" ")
        if not self._cuts_as_qwen2 or (words if words[-1] else words[:-1]) != text.split():
            return self.base.encode(text).ids
        return [*self._first[words[0]], *chain.from_iterable(map(self._after_space.__getitem__, words[1:]))]

    @cached_property
    def _constants(self) -> dict[tuple[str | Soft, ...], tuple[int, ...]]:
        return {}

    @cached_property
    def _first(self) -> _Known:
        return _Known(self.base, "")

    @cached_property
    def _after_space(self) -> _Known:
        return _Known(self.base, " ")

    @cached_property
    def _cuts_as_qwen2(self) -> bool:
        """Whether text is cut into words as Qwen2 cuts it; any other way is left to the library."""
        cuts, qwen2 = (json.loads(part.__getstate__()) for part in (self.base.pre_tokenizer, _qwen2_cuts()))
        return bool(cuts == qwen2) and (
            self.base.normalizer is None or isinstance(self.base.normalizer, normalizers.NFC)
        )

    def decode(self, ids: Iterable[int]) -> str:
        """Turns ids into text, added tokens included; ids of no token are left out.

        Args:
            ids: token ids.

        Returns:
            Text; bytes that are no UTF-8 become U+FFFD.
        """
        return "".join(self._decode_runs(int(token_id) for token_id in ids))

    def _decode_runs(self, ids: Iterable[int]) -> Iterator[str]:
        for is_added, run in groupby(ids, key=self._names.__contains__):
            if is_added:
                yield from (self._names[token_id] for token_id in run)
            else:
                yield self.base.decode(list(run), skip_special_tokens=False)


def open_tokenizer(folder: Path | str) -> Tokenizer:
    """Opens a Qwen2-style tokenizer folder.

    Reads `tokenizer.json`, or else `vocab.json` and `merges.txt` with the added tokens of `tokenizer_config.json`, and
    adds the placeholders after all other tokens where they are not yet there (QUIRKS 21).

    Args:
        folder: the folder of the tokenizer or of a whole model.

    Returns:
        The tokenizer.

    Raises:
        UserError: when a file is missing or unreadable, or a token that the format needs is not there.
    """
    folder = model_folder(folder)
    if (folder / "tokenizer.json").is_file():
        base, added = _from_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        base, added = _from_vocab_and_merges(folder)
    else:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
        raise UserError(
            f"{folder}: no tokenizer here. Expected tokenizer.json, or vocab.json with merges.txt; found: "
            f"{found or 'an empty folder'}. Give the folder of a Qwen2 or Qwen2.5 model."
        )
    absent = [token for token in (BOS, EOS) if token not in added]
    if absent:
        raise UserError(
            f"{folder}: the tokenizer has no special token {' and no '.join(absent)}, which Qwen2-style chat models "
            f"have; it has {', '.join(sorted(added)) or 'none'}. Give the folder of a Qwen2 or Qwen2.5 model."
        )
    for token in PLACEHOLDERS.values():
        added.setdefault(token, max(base.get_vocab_size() - 1, *added.values()) + 1)
    return Tokenizer(base, added)


def _from_tokenizer_json(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    try:
        whole = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for whatever is wrong with the file
        raise UserError(f"{path}: not a tokenizer file ({error}). Fetch the file again.") from error
    added: dict[str, int] = {}
    for token_id, token in whole.get_added_tokens_decoder().items():
        if token.normalized or token.lstrip or token.rstrip or token.single_word:
            raise UserError(
                f"{path}: the added token {token.content!r} takes in its surroundings (normalized, lstrip, rstrip or "
                "single_word), which Qwen2's tokens never do. Give the folder of a Qwen2 or Qwen2.5 model."
            )
        added[token.content] = token_id
    base = tokenizers.Tokenizer(whole.model)  # shares the vocabulary with `whole`
    base.normalizer = whole.normalizer
    base.pre_tokenizer = whole.pre_tokenizer
    base.decoder = whole.decoder
    return base, added


def _from_vocab_and_merges(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, int]]:
    config_path = folder / "tokenizer_config.json"
    try:
        config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        added = {entry["content"]: int(token_id) for token_id, entry in config["added_tokens_decoder"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config_path}: cannot read the added tokens (key `added_tokens_decoder`), which must come with "
            f"vocab.json and merges.txt: {error!r}. Fetch the file again or give a folder with tokenizer.json."
        ) from error
    try:
        model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # as above
        raise UserError(f"{folder}: vocab.json or merges.txt is broken ({error}). Fetch both again.") from error
    base = tokenizers.Tokenizer(model)
    base.normalizer = normalizers.NFC()
    base.pre_tokenizer = _qwen2_cuts()
    base.decoder = decoders.ByteLevel()
    return base, added


def _qwen2_cuts() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
