"""From one sample's texts to token sequences, and from token sequences to batches of packed rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.prompts import (
    PLACEHOLDERS,
    STOP,
    Compat,
    needs,
    prompt_parts,
    prompt_text,
)
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError

IGNORED_LABEL = -100
"""Label of positions without a target in the reference's batches."""


class Conversation(NamedTuple):
    """The texts of one sample.

    Attributes:
        name: the sample's name, for messages.
        mode: input mode of the prompt.
        subtitle: what is said in the clip; may be empty.
        question: see `prompts.question`.
        answer: see `prompts.answer`; unused at inference.
    """

    name: str
    mode: str
    subtitle: str
    question: str
    answer: str = ""


class Example(NamedTuple):
    """One sample as tokens.

    Attributes:
        tokens: int32 [n].
        soft_index: int32 [n], 0 for text, else the slot from 1 among the sample's own K soft tokens.
        target_positions: int32 [m], positions whose hidden state predicts a target; empty at inference.
        target_ids: int32 [m].
        note: what had to be changed to make the sample fit; empty in most cases.
    """

    tokens: npt.NDArray[np.int32]
    soft_index: npt.NDArray[np.int32]
    target_positions: npt.NDArray[np.int32]
    target_ids: npt.NDArray[np.int32]
    note: str = ""


class Rejected(NamedTuple):
    """A sample that cannot be used; what to do about it is the caller's policy.

    Attributes:
        name: the sample's name.
        reason: one sentence with the numbers that matter.
    """

    name: str
    reason: str


class Sample(NamedTuple):
    """One sample of a batch.

    Attributes:
        example: its tokens.
        features: per stream float [t, D]; absent streams are left out.
        weight: weight of each of its targets in the loss.
    """

    example: Example
    features: Mapping[str, np.ndarray]
    weight: float = 1.0


class BatchShape(NamedTuple):
    """The static shape of a run's batches, in the letters of `batch`.

    Attributes:
        rows: B.
        length: T, tokens of a row.
        targets: N, targets of a row.
        samples: S, samples of a row at most.
        soft: K, soft tokens of a sample (`prompts.layout_size`).
        streams: (t, D) of each feature stream in use.
        feature_dtype: type of the features; shards hold float16, which crosses to the device at half the cost.
    """

    rows: int
    length: int
    targets: int
    samples: int
    soft: int
    streams: Mapping[str, tuple[int, int]]
    feature_dtype: npt.DTypeLike = np.float32


# ---------------------------------------------------------------------------------------------------------------------
# One sample


def training_example(
    conversation: Conversation,
    layout: Mapping[str, range],
    tokenizer: Tokenizer,
    *,
    compat: Compat = "strict",
    max_length: int = 1024,
) -> Example | Rejected:
    """Tokenises a sample for training: bos, prompt, answer, "###", eos; the loss is on what follows the prompt.

    Prompt and answer are tokenised apart, and `max_length` counts neither bos nor eos (QUIRKS 23, 28). Text that
    spells a special token becomes one under `reference` and stays text under `strict`. A sample that is too long is
    rejected under `reference`; under `strict` its subtitle is shortened first.

    Args:
        conversation: the sample's texts.
        layout: the model's soft tokens, see `prompts.soft_layout`.
        tokenizer: the tokenizer.
        compat: see `prompts.Compat`.
        max_length: largest number of prompt and answer tokens together.

    Returns:
        The example, or why there is none.

    Raises:
        UserError: for an input mode that is unknown or has no place in `layout`.
    """
    target = tokenizer.encode(conversation.answer + STOP, literal=compat == "strict")
    prompt, note = _fit_prompt(conversation, layout, tokenizer, compat, room=max_length - len(target))
    if len(prompt) + len(target) > max_length:
        return Rejected(
            conversation.name,
            f"too long: {len(prompt)} prompt and {len(target)} answer tokens, together {max_length} are allowed",
        )
    # The last position of the prompt predicts the first token of the answer.
    tokens, first = [tokenizer.bos, *prompt, *target, tokenizer.eos], len(prompt)
    return _with_soft_index(conversation, layout, tokenizer, tokens, note, first)


def prompt_example(
    conversation: Conversation,
    layout: Mapping[str, range],
    tokenizer: Tokenizer,
    *,
    compat: Compat = "strict",
    max_length: int = 2000,
    max_new_tokens: int = 1200,
) -> Example | Rejected:
    """Tokenises a prompt for generation.

    Under `reference` there is no bos, although training has one (QUIRKS 45), and a long prompt is cut to `max_length`
    on the right and then to the last `max_length - max_new_tokens` on the left (QUIRKS 47), whatever that removes.
    Under `strict` the bos is there, and the subtitle is what gets cut.

    Args:
        conversation: the sample's texts; the answer is not used.
        layout: the model's soft tokens, see `prompts.soft_layout`.
        tokenizer: the tokenizer.
        compat: see `prompts.Compat`.
        max_length: largest number of prompt and generated tokens together.
        max_new_tokens: tokens to generate at most.

    Returns:
        The example, without targets, or why there is none.

    Raises:
        UserError: for an input mode that is unknown or has no place in `layout`, or limits that leave no room.
    """
    room = max_length - max_new_tokens
    if room < 1:
        raise UserError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt within max_length={max_length}; lower the "
            "one or raise the other."
        )
    if compat == "reference":
        whole = _encode_prompt(conversation, layout, tokenizer, compat)
        kept = whole[reference_cut(len(whole), max_length, max_new_tokens)]
        note = "" if len(kept) == len(whole) else f"prompt cut from {len(whole)} to {len(kept)} tokens"
        return _with_soft_index(conversation, layout, tokenizer, kept, note)
    prompt, note = _fit_prompt(conversation, layout, tokenizer, compat, room=room - 1)
    if len(prompt) + 1 > room:
        return Rejected(
            conversation.name,
            f"too long: {len(prompt) + 1} prompt tokens, {room} are allowed "
            f"({max_length} less {max_new_tokens} new ones)",
        )
    return _with_soft_index(conversation, layout, tokenizer, [tokenizer.bos, *prompt], note)


def reference_cut(tokens: int, max_length: int, max_new_tokens: int) -> slice:
    """Says which part of a prompt the reference keeps (QUIRKS 47).

    Args:
        tokens: length of the prompt.
        max_length: largest number of prompt and generated tokens together; what is beyond goes first, on the right.
        max_new_tokens: tokens to generate at most; room for them is then made on the left.

    Returns:
        The part kept.
    """
    end = min(tokens, max_length)
    return slice(max(0, end - (max_length - max_new_tokens)), end)


def _encode_prompt(
    conversation: Conversation, layout: Mapping[str, range], tokenizer: Tokenizer, compat: Compat
) -> list[int]:
    parts = prompt_parts(conversation.mode, conversation.subtitle, conversation.question, layout)
    if compat == "reference":
        return tokenizer.encode(prompt_text(parts))
    # All but the last part, where the subtitle stands, are the same in all samples.
    return [*tokenizer.encode_constant(parts[:-1]), *tokenizer.encode(str(parts[-1]), literal=True)]


def _fit_prompt(
    conversation: Conversation, layout: Mapping[str, range], tokenizer: Tokenizer, compat: Compat, *, room: int
) -> tuple[list[int], str]:
    """Encodes a prompt and, under `strict`, shortens the subtitle until it has at most `room` tokens.

    Returns:
        The ids and a note on what was cut. They may still be too many.
    """
    ids = _encode_prompt(conversation, layout, tokenizer, compat)
    subtitle = conversation.subtitle
    if len(ids) <= room or compat == "reference" or not needs(conversation.mode).text:
        return ids, ""

    def encode(kept: int) -> list[int]:
        return _encode_prompt(conversation._replace(subtitle=subtitle[:kept]), layout, tokenizer, compat)

    # The prompt grows with the subtitle, but for a token or so at the cut: look by halves for the longest that fits.
    fits, too_long = 0, len(subtitle)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if len(encode(middle)) <= room else (fits, middle)
    return encode(fits), f"subtitle cut from {len(subtitle)} to {fits} characters"


def _with_soft_index(
    conversation: Conversation,
    layout: Mapping[str, range],
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    note: str,
    first: int | None = None,
) -> Example | Rejected:
    """Numbers the placeholders among the tokens; their count must be what the prompt's mode asks for.

    The position `first` predicts the first target, if there are any; all tokens after it are targets.
    """
    ids = np.asarray(tokens, np.int32)
    soft_index = np.zeros(len(ids), np.int32)
    wanted = needs(conversation.mode).soft
    for modality, places in tokenizer.find_placeholders(ids).items():
        slots = layout[modality] if modality in wanted else range(0)
        if len(places) != len(slots):
            return Rejected(
                conversation.name,
                f"has {len(places)} {PLACEHOLDERS[modality]} tokens where mode {conversation.mode!r} wants "
                f"{len(slots)}: its text spells one, or a long prompt was cut there",
            )
        for place, slot in zip(places, slots, strict=True):
            soft_index[place] = slot
    first = len(ids) - 1 if first is None else first
    return Example(ids, soft_index, np.arange(first, len(ids) - 1, dtype=np.int32), ids[first + 1 :], note)


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def collate_rows(rows: Sequence[Sequence[Sample]], shape: BatchShape, *, unattended: int | None = None) -> Batch:
    """Packs samples into a batch of static shape.

    Args:
        rows: the samples of each row, in order; fewer than `shape.rows` leave empty rows at the end.
        shape: the static shape.
        unattended: id of a token that nothing attends to. The reference masks every `<|im_end|>`, for it pads with
            it (QUIRKS 22); such tokens get segment 0.

    Returns:
        The batch.

    Raises:
        UserError: when the samples do not fit the shape.
    """
    _check_fit(rows, shape)
    b, t, n, s = shape.rows, shape.length, shape.targets, shape.samples
    batch = Batch(
        tokens=np.zeros((b, t), np.int32),
        segment_ids=np.zeros((b, t), np.int32),
        positions=np.zeros((b, t), np.int32),
        soft_index=np.zeros((b, t), np.int32),
        target_positions=np.zeros((b, n), np.int32),
        target_ids=np.zeros((b, n), np.int32),
        loss_weight=np.zeros((b, n), np.float32),
        features={stream: np.zeros((b, s, *size), shape.feature_dtype) for stream, size in shape.streams.items()},
        present={stream: np.zeros((b, s), np.bool_) for stream in shape.streams},
    )
    ramp = np.arange(t, dtype=np.int32)
    for r, row in enumerate(rows):
        start = first_target = 0
        for i, (example, features, weight) in enumerate(row):
            end, last_target = start + len(example.tokens), first_target + len(example.target_ids)
            batch.tokens[r, start:end] = example.tokens
            batch.segment_ids[r, start:end] = i + 1
            batch.positions[r, start:end] = ramp[: end - start]
            own = example.soft_index
            np.add(own, i * shape.soft, out=batch.soft_index[r, start:end], where=own > 0)
            batch.target_positions[r, first_target:last_target] = example.target_positions + start
            batch.target_ids[r, first_target:last_target] = example.target_ids
            batch.loss_weight[r, first_target:last_target] = weight
            for stream in shape.streams:
                if stream in features:
                    batch.features[stream][r, i] = features[stream]
                    batch.present[stream][r, i] = True
            start, first_target = end, last_target
    if unattended is not None:
        batch.segment_ids[batch.tokens == unattended] = 0
    return batch


def _check_fit(rows: Sequence[Sequence[Sample]], shape: BatchShape) -> None:
    if len(rows) > shape.rows:
        raise UserError(f"A batch has {shape.rows} rows, but {len(rows)} were given.")
    for r, row in enumerate(rows):
        counts = {
            "samples": (len(row), shape.samples),
            "tokens": (sum(len(sample.example.tokens) for sample in row), shape.length),
            "targets": (sum(len(sample.example.target_ids) for sample in row), shape.targets),
        }
        for what, (found, limit) in counts.items():
            if found > limit:
                raise UserError(
                    f"Row {r} of the batch has {found} {what}, but a row holds {limit}. Make the rows larger or put "
                    "fewer samples into each."
                )
        for i, (example, features, _) in enumerate(row):
            if (slot := int(example.soft_index.max(initial=0))) > shape.soft:
                raise UserError(
                    f"Sample {i} of row {r} uses soft token {slot}, but a sample has {shape.soft}. Build the samples "
                    "with the model's own layout."
                )
            for stream, size in shape.streams.items():
                if stream in features and features[stream].shape != size:
                    raise UserError(
                        f"Sample {i} of row {r} has {stream} features of shape {features[stream].shape}, expected "
                        f"{size}. Prepare the shards with the encoder and the counts of this configuration."
                    )


class ReferenceBatch(NamedTuple):
    """A batch as the reference collates it: one sample a row, padded on the right.

    Attributes:
        input_ids: int64 [B, T], padded with the pad id.
        labels: int64 [B, T], -100 where nothing is to be predicted; labels are not shifted.
        attention_mask: bool [B, T], False wherever the id is the pad id (QUIRKS 22).
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.bool_]


def reference_batch(examples: Sequence[Example], pad: int) -> ReferenceBatch:
    """Collates training examples as the reference does.

    Args:
        examples: one per row.
        pad: the tokenizer's pad id.

    Returns:
        The batch, as long as its longest example.
    """
    size = (len(examples), max(len(example.tokens) for example in examples))
    input_ids = np.full(size, pad, np.int64)
    labels = np.full(size, IGNORED_LABEL, np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.tokens)] = example.tokens
        labels[row, example.target_positions + 1] = example.target_ids
    return ReferenceBatch(input_ids, labels, input_ids != pad)
