"""The text format that released checkpoints answer to: prompts, questions, answers, special tokens.

Every string here is part of the checkpoint format and therefore byte-exact, oddities included (QUIRKS 23, 24, 31):
three templates lack the "###Human: " head, one starts in lower case, the valence question spells its first letters
with the ligature U+FB02, and a prompt ends in a space that becomes a token of its own.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from string import Formatter
from typing import Literal, NamedTuple

from affectgpt_jax.data.batch import SOFT_ORDER, STREAMS
from affectgpt_jax.errors import UserError

Compat = Literal["reference", "strict"]
"""`reference` reproduces the reference's behaviour to the letter, `strict` does the right thing where they differ."""

BOS = "<|im_start|>"
EOS = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
STOP = "###"
"""Ends every answer; generation stops at it."""

PLACEHOLDERS: Mapping[str, str] = {
    "image": "<ImageHere>",
    "audio": "<AudioHere>",
    "frame": "<FrameHere>",
    "face": "<FaceHere>",
    "multi": "<MultiHere>",
}
"""The token that stands for one soft token of each modality, in the order in which the tokens are added."""

LABEL_TYPES = ("description", "ovlabel")
"""The two question kinds of MER-Caption training."""

# ---------------------------------------------------------------------------------------------------------------------
# Prompts of the input modes

_HUMAN = "###Human: "
_MULTI = "The audio and video merged info is: <Multi>{multi}</Multi>. "
_AUDIO = "The audio content is as follows: <Audio>{audio}</Audio>. "
_IMAGE = "The image content is as follows: <Image>{image}</Image>. "
_SUBTITLE = "The subtitle of this video is: <Subtitle>{subtitle}</Subtitle>. "
_REQUEST = "Now, please answer my question based on all the provided information. {question} ###Assistant: "


def _frames(we: str) -> str:
    return we + " uniformly sample raw frames from the video: <Video>{frame}</Video>. "


def _faces(we: str) -> str:
    return (
        we + " uniformly sample raw frames from the video and extract faces from these frames: <Video>{face}</Video>. "
    )


_TEMPLATES: Mapping[str, str] = {
    mode: "".join(sentences) + _REQUEST
    for mode, sentences in {
        "multiface_audio_face_text": (_HUMAN, _MULTI, _AUDIO, _faces("Meanwhile, we"), _SUBTITLE),
        "multiface_audio_face_frame_text": (
            *(_HUMAN, _MULTI, _AUDIO, _faces("Meanwhile, we"), _frames("Meanwhile, we"), _SUBTITLE),
        ),
        "multiface_text": (_HUMAN, _MULTI, _SUBTITLE),
        "multiframe_audio_frame_text": (_HUMAN, _MULTI, _AUDIO, _frames("Meanwhile, we"), _SUBTITLE),
        "faceframe": (_HUMAN, _AUDIO, _frames("Meanwhile, we"), _faces("Additionally, we"), _SUBTITLE),
        "face": (_HUMAN, _AUDIO, _faces("Meanwhile, we"), _SUBTITLE),
        "frame": (_HUMAN, _AUDIO, _frames("Meanwhile, we"), _SUBTITLE),
        "audio_text": (_AUDIO, _SUBTITLE),
        "face_text": (_faces("We"), _SUBTITLE),
        "frame_text": (_frames("we"), _SUBTITLE),
        "audioonly": (_HUMAN, _AUDIO),
        "faceonly": (_HUMAN, _faces("We")),
        "frameonly": (_HUMAN, _frames("We")),
        "textonly": (_HUMAN, _SUBTITLE),
        "image": (_HUMAN, _IMAGE),
    }.items()
}

MODES = tuple(_TEMPLATES)
"""Names of the input modes; where two serve equally well the earlier one is preferred."""


class Needs(NamedTuple):
    """What an input mode uses.

    Attributes:
        soft: modalities with soft tokens in the prompt, in `SOFT_ORDER`.
        streams: feature streams behind them, in the order of `STREAMS`.
        fused: the visual stream that `multi` mixes with the audio, or None without `multi`.
        text: whether the prompt has a subtitle.
    """

    soft: tuple[str, ...]
    streams: tuple[str, ...]
    fused: str | None
    text: bool


class Soft(NamedTuple):
    """A run of placeholder tokens in a prompt."""

    modality: str
    times: int


@cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template's literal texts, each with the field that follows it."""
    return tuple((literal, field) for literal, field, _, _ in Formatter().parse(template))


def _template(mode: str) -> str:
    if mode not in _TEMPLATES:
        nearest = difflib.get_close_matches(mode, MODES, n=1, cutoff=0.0)[0]
        raise UserError(f"Unknown input mode {mode!r}; did you mean {nearest!r}? Known modes: {', '.join(MODES)}.")
    return _TEMPLATES[mode]


@cache
def needs(mode: str) -> Needs:
    """Says which modalities an input mode uses.

    Args:
        mode: one of `MODES`.

    Returns:
        Its soft tokens, feature streams and text.

    Raises:
        UserError: for an unknown mode.
    """
    fields = {field for _, field in _pieces(_template(mode)) if field}
    fused = None
    if "multi" in fields:
        fused = "frame" if mode.startswith("multiframe") else "face"
    used = fields | ({"audio", fused} if fused else set())
    return Needs(
        soft=tuple(modality for modality in SOFT_ORDER if modality in fields),
        streams=tuple(stream for stream in STREAMS if stream in used),
        fused=fused,
        text="subtitle" in fields,
    )


def unfused_mode(mode: str) -> str:
    """The mode that uses the same streams and text without `multi`: for a model without pre-fusion."""
    wanted = needs(mode)
    return next(
        other
        for other in MODES
        if needs(other).fused is None and (needs(other).streams, needs(other).text) == (wanted.streams, wanted.text)
    )


def matching_mode(mode: str, present: Collection[str]) -> str | None:
    """Finds the mode whose prompt speaks only of what a sample has.

    For models that learned no features for an absent stream. The rule: among the modes that use nothing but what
    `mode` uses too, and nothing that is absent, take the one that uses most; of two equals the one with faces. `multi`
    is there when the sound and the visual stream that it mixes are. Text never counts as absent: a missing subtitle is
    the empty one, as in the reference (QUIRKS 31).

    Args:
        mode: the input mode of the model.
        present: feature streams that the sample has ("face", "frame", "audio", "image").

    Returns:
        The mode to use, `mode` itself if nothing it needs is absent, or None if nothing remains.
    """
    wanted = needs(mode)
    if set(wanted.streams) <= set(present):
        return mode
    behind = {modality: {modality} for modality in wanted.soft} | {"multi": {"audio", wanted.fused}}
    allowed = {modality for modality in wanted.soft if behind[modality] <= set(present)}

    def serves(other: Needs) -> bool:
        # A `multi` that mixes another visual stream than the model's is another modality.
        fits = set(other.soft) <= allowed and other.fused in (None, wanted.fused)
        return fits and (wanted.text or not other.text)

    candidates = {other: needs(other) for other in MODES if serves(needs(other))}
    return max(candidates, key=lambda other: len(candidates[other].soft) + candidates[other].text, default=None)


def soft_layout(mode: str, *, video: int = 1, audio: int = 1, multi: int = 1, image: int = 1) -> dict[str, range]:
    """Numbers the soft tokens of one sample.

    Args:
        mode: the input mode of the model.
        video: tokens of `face` and of `frame`.
        audio: tokens of `audio`.
        multi: tokens of `multi`.
        image: tokens of `image`.

    Returns:
        For each modality of the mode, in `SOFT_ORDER`, the range of its slots in the sample's K, counted from 1.
    """
    counts = {"multi": multi, "audio": audio, "face": video, "frame": video, "image": image}
    layout: dict[str, range] = {}
    start = 1
    for modality in needs(mode).soft:
        layout[modality] = range(start, start + counts[modality])
        start += counts[modality]
    return layout


def layout_size(layout: Mapping[str, range]) -> int:
    """Counts the soft tokens K of one sample."""
    return sum(len(slots) for slots in layout.values())


def prompt_parts(mode: str, subtitle: str, question: str, layout: Mapping[str, range]) -> tuple[str | Soft, ...]:
    """Assembles a prompt, keeping placeholders apart from text, which may spell anything.

    Args:
        mode: input mode of this prompt; its modalities must all have a place in `layout`.
        subtitle: what is said in the clip; ignored by modes without text.
        question: the question, see `question`.
        layout: see `soft_layout`.

    Returns:
        Texts and runs of placeholders in turn; `prompt_text` joins them.

    Raises:
        UserError: when the layout has no place for a modality of the mode.
    """
    fields = {"subtitle": subtitle, "question": question}
    parts: list[str | Soft] = []
    text = ""
    for literal, field in _pieces(_template(mode)):
        text += literal
        if field in fields:
            text += fields[field]
        elif field is not None:
            if field not in layout:
                raise UserError(
                    f"Input mode {mode!r} needs {field!r} tokens, but the model has a place only for "
                    f"{', '.join(layout) or 'text'}. Use a mode that asks for nothing else."
                )
            parts += [text, Soft(field, len(layout[field]))]
            text = ""
    return (*parts, text)


def prompt_text(parts: Sequence[str | Soft]) -> str:
    """Writes a prompt out as one string, placeholders included."""
    return "".join(PLACEHOLDERS[part.modality] * part.times if isinstance(part, Soft) else part for part in parts)


# ---------------------------------------------------------------------------------------------------------------------
# Questions and answers

_PREFERENCE = (
    "We provide two descriptions. a1: {first} \t\t\t a2: {second} "
    "Please select the one that best matches the video content."
)

QUESTIONS: Mapping[str, str] = {
    "description": "Please infer the person's emotional state and provide your reasoning process.",
    "ovlabel": "Please recognize all possible emotional states of the character.",
    "onehot_w_candidates": (
        "Please select the label that can best describe the person's emotional state "
        "from the provided candidate labels: {candidates}."
    ),
    "onehot_wo_candidates": "Please recognize the character's most likely emotional state.",
    "valence": (
        "Please identify the overall positive or negative emotional polarity of the main characters. "
        "The output should be a \ufb02oating-point number ranging from {low} to {high}. "
        "Here, {low} indicates extremely negative emotions, 0 indicates neutral emotions, "
        "and {high} indicates extremely positive emotions. "
        "Please provide your judgment as a \ufb02oating-point number."
    ),
    "sentiment": (
        "Please select the most likely sentiment label that can best describe the person's emotional state: "
        "positive, negative, neutral."
    ),
    "direct": "{question}",
    "preference": _PREFERENCE,
    "preference_same": _PREFERENCE,
    "reward": (
        "We have provided a description: {description} \t\t\t Please evaluate and decide whether to accept or reject "
        "this description based on its alignment with the video content."
    ),
}
"""Question kinds; what stands in braces is a field of `question`."""

OVLABEL_STEM = "The character's emotional state is "

ANSWERS: Mapping[str, str] = {
    "description": "{description}",
    "ovlabel": OVLABEL_STEM + "{labels}.",
    "onehot_w_candidates": "The most likely label is {label}.",
    "onehot_wo_candidates": OVLABEL_STEM + "{label}.",
    "valence": "The valence score is {valence:.2f}.",
    "sentiment": "The character's sentiment state is {sentiment}.",
    "direct": "{answer}",
    "preference": "The best one is {best}.",
    "preference_same": "These two sentences describe the content of the video with the same accuracy.",
    "reward": "{decision} this sentence.",
}
"""Answers to the questions of the same name; what stands in braces is a field of `answer`."""


def _fill(what: str, templates: Mapping[str, str], kind: str, fields: Mapping[str, object]) -> str:
    if kind not in templates:
        raise UserError(f"Unknown question kind {kind!r}; known kinds: {', '.join(templates)}.")
    expected = sorted({field for _, field in _pieces(templates[kind]) if field})
    if sorted(fields) != expected:
        raise UserError(
            f"The {what} of kind {kind!r} takes the fields {expected}, but {sorted(fields)} were given "
            "(--field KEY=VALUE)."
        )
    return templates[kind].format(**fields)


def question(kind: str, **fields: object) -> str:
    """Writes a question.

    Args:
        kind: one of `QUESTIONS`.
        **fields: what the template names in braces, e.g. `candidates="happy, sad"`, `low=-3, high=3`.

    Returns:
        The question, ready for `prompt_parts`.

    Raises:
        UserError: for an unknown kind, a missing or a superfluous field.
    """
    return _fill("question", QUESTIONS, kind, fields)


def answer(kind: str, **fields: object) -> str:
    """Writes the answer that training expects, without its `STOP`.

    Args:
        kind: one of `ANSWERS`.
        **fields: what the template names in braces, e.g. `labels=label_text(["happy"])`, `valence=-0.46`.

    Returns:
        The answer.

    Raises:
        UserError: for an unknown kind, a missing or a superfluous field.
    """
    return _fill("answer", ANSWERS, kind, fields)


def parse_openset(cell: object) -> list[str]:
    """Reads a cell of open-vocabulary labels such as "['happy', 'sad']".

    Brackets at the ends are dropped, the rest is split at every quote and comma, as the reference does (QUIRKS 31),
    so that an apostrophe inside a label splits it too.

    Args:
        cell: text of the cell; None or NaN for an empty one.

    Returns:
        The labels, stripped, without empty ones.
    """
    if not isinstance(cell, str):
        return []
    inner = cell.strip().removeprefix("[").removesuffix("]")
    return [label for part in re.split("['\",]", inner) if (label := part.strip())]


def label_text(labels: Sequence[str]) -> str:
    """Joins labels as an answer lists them; no label at all is "neutral" (QUIRKS 31)."""
    return ", ".join(labels) or "neutral"
