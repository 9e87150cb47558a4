"""The reference's texts and the tokenizers they were made with."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from affectgpt_jax.data.examples import Conversation
from affectgpt_jax.data.prompts import answer, question, soft_layout
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from tests.conftest import ROOT, reference_folder

_TEXT = Path(os.environ.get("AFFECTGPT_GOLDENS", ROOT / "../shared/goldens")) / "text"
_NAMES = sorted(path.stem.removeprefix("e_prompts_") for path in _TEXT.glob("e_prompts_*.json"))


class TextGolden(NamedTuple):
    """All that the reference made of one tokenizer."""

    name: str
    folder: Path
    tokenizer: Tokenizer
    facts: dict[str, Any]

    def cases(self) -> list[tuple[dict[str, Any], dict[str, range], list[Conversation]]]:
        """Each case with its layout and the conversations of its samples."""
        return [
            (
                case,
                soft_layout(case["mode"], **case["tokens_per_modality"]),
                [
                    Conversation(
                        name=sample["name"],
                        mode=case["mode"],
                        subtitle=sample["subtitle"],
                        question=question(case["label_type"]),
                        answer=answer("description", description=sample["description"])
                        if case["label_type"] == "description"
                        else answer("ovlabel", labels=sample["ovlabel"]),
                    )
                    for sample in self.facts["samples"]
                ],
            )
            for case in self.facts["cases"]
        ]


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of reference results."""
    return reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens")


@pytest.fixture(scope="session", params=_NAMES or ["absent"])
def text(request: pytest.FixtureRequest, goldens: Path) -> TextGolden:
    """One tokenizer's texts: the tiny one lies with the tiny models, the others with the public tokenizers."""
    name = request.param
    folder = goldens / "models" / f"tokenizer_{name}"
    if not folder.is_dir():
        folder = reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / name
    facts = json.loads((goldens / "text" / f"e_prompts_{name}.json").read_text(encoding="utf-8"))
    return TextGolden(name, folder, open_tokenizer(folder), facts)
