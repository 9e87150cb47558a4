"""Answers cut out of generated ids, against the reference's, and labels read from answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectgpt_jax.data.prompts import answer, label_text
from affectgpt_jax.data.responses import response_labels, response_text
from affectgpt_jax.data.tokenizer import open_tokenizer
from tests.data.conftest import TextGolden


def test_response_text(text: TextGolden, goldens: Path) -> None:
    responses = json.loads((goldens / "text" / "response_parsing.json").read_text(encoding="utf-8"))
    cases = responses[text.name]["responses"]
    assert cases
    for case in cases:
        assert text.tokenizer.decode(case["generated_ids"]) == case["generated_text"]
        assert response_text(case["generated_ids"], text.tokenizer, compat="reference") == case["response"], case


def test_the_base_models_end_of_text_is_no_answer(text: TextGolden) -> None:
    ids = text.tokenizer.encode("calm.<|endoftext|>")
    assert response_text(ids, text.tokenizer) == "calm."
    assert response_text(ids, text.tokenizer, compat="reference") == "calm.<|endoftext|>"


def test_generated_tiny_texts(goldens: Path) -> None:
    tokenizer = open_tokenizer(goldens / "models" / "tokenizer_tiny")
    for path in sorted((goldens / "models").glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if "setting" not in facts:
            continue
        with np.load(path.with_suffix(".npz")) as arrays:
            for i, generation in enumerate(facts["generation"]):
                ids = arrays[f"gen{i}/ids_with_stop"]
                assert response_text(ids, tokenizer, compat="reference") == generation["response"]


WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9).filter(lambda word: word != "and")
LABELS = st.lists(st.lists(WORD, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=6, unique=True)


@given(LABELS)
def test_own_answers_are_read_back(labels: list[str]) -> None:
    assert response_labels(answer("ovlabel", labels=label_text(labels))) == labels
    assert response_labels(f"[{', '.join(labels)}]") == labels
    assert response_labels(str(labels)) == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("The character's emotional state is angry, upset.", ["angry", "upset"]),
        ("The character\u2019s emotional states are Angry and very upset", ["angry", "very upset"]),
        ("The person's emotional state is: happy.###", ["happy"]),
        ("Well. The character's emotional state is sad, sad, calm. He left.", ["sad", "calm"]),
        ("The character's emotional state is \"sad\", 'calm'.", ["sad", "calm"]),
        ("The character's emotional state is ['sad', 'calm'].", ["sad", "calm"]),
        ("The character's emotional state is", []),
        ("happy, worried", ["happy", "worried"]),
        ("Happy.", ["happy"]),
        ("[]", []),
        ("", []),
        ("In the text, he says he is fine. His frown, however, shows anger.", []),
        ("A soft smile and a calm tone suggest relief.", []),
        ("The character's emotional state is one that nobody could describe in short, sad.", ["sad"]),
    ],
)
def test_labels_of_responses(text: str, labels: list[str]) -> None:
    assert response_labels(text) == labels
