"""A small tokenizer of Qwen2's kind for the synthetic language."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from string import Formatter

from affectgpt_jax.data.prompts import (
    ANSWERS,
    BOS,
    END_OF_TEXT,
    EOS,
    MODES,
    QUESTIONS,
    STOP,
    label_text,
    prompt_parts,
    soft_layout,
)
from data_prep.synth.language import sentences
from data_prep.synth.scenes import TEXTS
from data_prep.synth.specs import sample_specs
from data_prep.synth.vocabulary import EMOTIONS

_SPECIAL = (END_OF_TEXT, BOS, EOS)


def write_tokenizer(folder: Path, *, seed: int, clips: int, vocabulary: int) -> int:
    """Train a byte-level BPE and write tokenizer.json and tokenizer_config.json.

    Words are cut as Qwen2 cuts them, special tokens come after all others, and any text can be encoded.

    Args:
        folder: where to; made if it is not there.
        seed: of the clips whose descriptions are learned from.
        clips: how many of them.
        vocabulary: most tokens before the special ones; at least the 256 bytes.

    Returns:
        Number of tokens, special ones included.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    qwen2 = Qwen2Tokenizer().backend_tokenizer  # without a vocabulary, but with the pattern that cuts words
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = qwen2.normalizer
    tokenizer.pre_tokenizer = qwen2.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(seed, clips), trainer)
    special = [AddedToken(token, special=True, normalized=False) for token in _SPECIAL]
    tokenizer.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in _SPECIAL
        },
        "bos_token": None,
        "eos_token": EOS,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def _texts(seed: int, clips: int) -> Iterator[str]:
    """The synthetic language: prompts of all modes and questions, answers, and sentences of the training split.

    No answer is followed by "###" here: a token that joined the two would hide the end of an answer from the stop
    rule, which knows "###" as a token of its own.
    """
    yield STOP
    said = [english for kind in TEXTS for english, _ in sentences(kind, "train")]
    yield from said
    questions = [_literals(template) for template in QUESTIONS.values()]
    subtitles = cycle(said)
    for mode in MODES:
        for question in questions:
            parts = prompt_parts(mode, next(subtitles), question, soft_layout(mode))
            yield from (part for part in parts if isinstance(part, str))
    yield from map(_literals, ANSWERS.values())
    yield label_text([word for words in EMOTIONS.values() for word in words])
    for spec in sample_specs(seed, "train", clips):
        yield spec.description
        yield ANSWERS["ovlabel"].format(labels=label_text(spec.labels))


def _literals(template: str) -> str:
    """A template without its fields."""
    return "".join(literal for literal, *_ in Formatter().parse(template))
