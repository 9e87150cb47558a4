"""Prompts, questions and answers, against the reference's own strings."""

import json
import re
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from affectgpt_jax.data.batch import SOFT_ORDER
from affectgpt_jax.data.prompts import (
    ANSWERS,
    MODES,
    QUESTIONS,
    STOP,
    answer,
    label_text,
    layout_size,
    matching_mode,
    needs,
    parse_openset,
    prompt_parts,
    prompt_text,
    question,
    soft_layout,
)
from affectgpt_jax.errors import UserError
from tests.data.conftest import TextGolden


def test_every_prompt_and_target_is_the_references(text: TextGolden) -> None:
    seen = set()
    for case, layout, conversations in text.cases():
        for expected, (_, mode, subtitle, asked, answered) in zip(case["samples"], conversations, strict=True):
            assert prompt_text(prompt_parts(mode, subtitle, asked, layout)) == expected["prompt"]
            assert answered + STOP == expected["target"]
        seen.add(case["mode"])
    assert seen <= set(MODES)


def test_the_tiny_models_prompts_and_needs(goldens: Path) -> None:
    settings = [json.loads(path.read_text(encoding="utf-8")) for path in (goldens / "models").glob("*.json")]
    settings = [facts for facts in settings if "setting" in facts]
    assert settings
    for facts in settings:
        setting = facts["setting"]
        counts = {"video": setting["nv"], "audio": setting["na"], "multi": setting["nm"], "image": setting["ni"]}
        layout = soft_layout(setting["mode"], **counts)
        assert set(needs(setting["mode"]).streams) == set(facts["needed"])
        for sample in facts["samples"]:
            parts = prompt_parts(setting["mode"], sample["subtitle"] or "", sample["question"], layout)
            assert prompt_text(parts) == sample["prompt"]


def _fields(template: str, string: str) -> dict[str, Any]:
    """Reads the fields back out of a filled template."""
    pattern, seen = "", set()
    for literal, field, _, _ in Formatter().parse(template):
        pattern += re.escape(literal)
        if field is not None:
            pattern += f"(?P={field})" if field in seen else f"(?P<{field}>.*?)"
            seen.add(field)
    match = re.fullmatch(pattern, string, re.DOTALL)
    assert match is not None, (template, string)
    return {name: float(value) if name == "valence" else value for name, value in match.groupdict().items()}


def test_question_templates(text: TextGolden) -> None:
    for kind, expected in text.facts["qa_templates"].items():
        assert question(kind, **_fields(QUESTIONS[kind], expected["question"])) == expected["question"]
        assert answer(kind, **_fields(ANSWERS[kind], expected["answer"])) == expected["answer"]


def test_fields_of_a_question_are_checked() -> None:
    assert question("valence", low=-1, high=1).count("-1") == 2
    assert answer("valence", valence=0.456) == "The valence score is 0.46."
    with pytest.raises(UserError, match=r"\['candidates'\]"):
        question("onehot_w_candidates")
    with pytest.raises(UserError, match="known kinds"):
        question("ovlabels")


def test_openset_parsing(goldens: Path) -> None:
    for case in json.loads((goldens / "text" / "openset_parsing.json").read_text(encoding="utf-8")):
        assert parse_openset(case["raw"]) == case["parsed"], case
        assert label_text(case["parsed"]) == case["label"], case
    assert parse_openset(float("nan")) == []


@pytest.mark.parametrize("mode", MODES)
def test_layout_numbers_every_slot_once_in_order(mode: str) -> None:
    layout = soft_layout(mode, video=2, audio=3, multi=4, image=5)
    assert [slot for slots in layout.values() for slot in slots] == list(range(1, layout_size(layout) + 1))
    assert list(layout) == [modality for modality in SOFT_ORDER if modality in layout] == list(needs(mode).soft)


def test_a_prompt_must_fit_the_layout() -> None:
    with pytest.raises(UserError, match="needs 'audio' tokens"):
        prompt_parts("audio_text", "", "?", soft_layout("face_text"))
    with pytest.raises(UserError, match="did you mean 'faceonly'"):
        needs("faceonli")


@pytest.mark.parametrize(
    ("mode", "present", "expected"),
    [
        ("multiface_audio_face_text", {"face", "audio"}, "multiface_audio_face_text"),
        ("multiface_audio_face_text", {"face"}, "face_text"),
        ("multiface_audio_face_text", {"audio", "frame"}, "audio_text"),
        ("multiface_audio_face_text", set(), "textonly"),
        ("multiface_audio_face_frame_text", {"face", "audio"}, "multiface_audio_face_text"),
        ("multiface_audio_face_frame_text", {"frame", "audio"}, "frame"),
        ("multiface_audio_face_frame_text", {"frame", "face"}, "face_text"),
        ("multiframe_audio_frame_text", {"frame"}, "frame_text"),
        ("multiface_text", {"face"}, "textonly"),
        ("faceframe", {"audio", "face"}, "face"),
        ("audioonly", {"face"}, None),
        ("image", set(), None),
        ("textonly", set(), "textonly"),
    ],
)
def test_matching_mode(mode: str, present: set[str], expected: str | None) -> None:
    assert matching_mode(mode, present) == expected


@pytest.mark.parametrize("mode", MODES)
def test_matching_mode_asks_for_nothing_absent(mode: str) -> None:
    streams = needs(mode).streams
    for absent in streams:
        present = set(streams) - {absent}
        found = matching_mode(mode, present)
        if found is not None:
            assert set(needs(found).streams) <= present
            assert set(needs(found).soft) <= set(needs(mode).soft)
