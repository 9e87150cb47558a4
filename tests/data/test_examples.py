"""Token sequences and collated batches, against the reference's own."""

import json
from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.data.examples import (
    BatchShape,
    Conversation,
    Example,
    Rejected,
    Sample,
    collate_rows,
    prompt_example,
    reference_batch,
    reference_cut,
    training_example,
)
from affectgpt_jax.data.prompts import Compat, answer, layout_size, question, soft_layout
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.errors import UserError
from tests.data.conftest import TextGolden

MODE = "multiface_audio_face_text"
BOTH: tuple[Compat, ...] = ("reference", "strict")
LAYOUT = soft_layout(MODE, video=2, audio=3)


@pytest.fixture(scope="module")
def tokenizer(text: TextGolden) -> Tokenizer:
    return text.tokenizer


def _conversation(**changed: str) -> Conversation:
    whole = Conversation("clip 1", MODE, "So you came.", question("ovlabel"), answer("ovlabel", labels="calm"))
    return whole._replace(**changed)


def _accept(result: Example | Rejected) -> Example:
    assert isinstance(result, Example), result
    return result


def _arrays(example: Example) -> list[list[int]]:
    return [array.tolist() for array in example[:4]]


@pytest.mark.parametrize("compat", BOTH)
def test_batches_are_the_references(text: TextGolden, compat: Compat) -> None:
    eos = text.tokenizer.eos
    for case, layout, conversations in text.cases():
        examples = [_accept(training_example(c, layout, text.tokenizer, compat=compat)) for c in conversations]
        batch = reference_batch(examples, text.tokenizer.pad)
        np.testing.assert_array_equal(batch.input_ids, case["batch"]["input_ids"])
        np.testing.assert_array_equal(batch.labels, case["batch"]["labels"])
        np.testing.assert_array_equal(batch.attention_mask, np.asarray(case["batch"]["attention_masks"], bool))
        for example in examples:
            assert sorted(example.soft_index[example.soft_index > 0]) == list(range(1, layout_size(layout) + 1))
            for modality, slots in layout.items():
                places = np.isin(example.soft_index, slots)
                assert set(example.tokens[places]) == {text.tokenizer.placeholders[modality]}
                assert example.soft_index[places].tolist() == list(slots)

        # The same as rows of one sample each.
        length = batch.input_ids.shape[1]
        shape = BatchShape(len(examples), length, length, 1, layout_size(layout), {})
        rows = collate_rows([[Sample(example, {})] for example in examples], shape, unattended=eos)
        np.testing.assert_array_equal(rows.segment_ids > 0, batch.attention_mask)
        np.testing.assert_array_equal(rows.tokens[batch.attention_mask], batch.input_ids[batch.attention_mask])
        labels = np.full_like(batch.labels, -100)
        row, target = np.nonzero(rows.loss_weight)
        labels[row, rows.target_positions[row, target] + 1] = rows.target_ids[row, target]
        np.testing.assert_array_equal(labels, batch.labels)


def test_the_tiny_models_inputs(goldens: Path) -> None:
    tokenizer = open_tokenizer(goldens / "models" / "tokenizer_tiny")
    settings = [json.loads(path.read_text(encoding="utf-8")) for path in (goldens / "models").glob("*.json")]
    settings = [facts for facts in settings if "setting" in facts]
    assert settings
    for facts in settings:
        setting = facts["setting"]
        counts = {"video": setting["nv"], "audio": setting["na"], "multi": setting["nm"], "image": setting["ni"]}
        layout = soft_layout(setting["mode"], **counts)
        conversations = [
            Conversation(str(i), setting["mode"], sample["subtitle"] or "", sample["question"], sample["answer"])
            for i, sample in enumerate(facts["samples"])
        ]
        with np.load(goldens / "models" / f"{facts['name']}.npz") as arrays:
            batch = reference_batch(
                [_accept(training_example(c, layout, tokenizer, compat="reference")) for c in conversations],
                tokenizer.pad,
            )
            np.testing.assert_array_equal(batch.input_ids, arrays["in/input_ids"])
            np.testing.assert_array_equal(batch.labels, arrays["in/labels"])
            np.testing.assert_array_equal(batch.attention_mask, arrays["in/attention_masks"])
            for i, generation in enumerate(facts["generation"]):
                conversation = conversations[i]._replace(question=question("ovlabel"))
                assert conversation.question in generation["prompt"]
                example = _accept(prompt_example(conversation, layout, tokenizer, compat="reference"))
                np.testing.assert_array_equal(example.tokens, arrays[f"gen{i}/input_ids"].ravel())


def test_length_limits(text: TextGolden) -> None:
    checked = 0
    for case, layout, conversations in text.cases():
        for conversation, expected in zip(conversations, case["samples"], strict=True):
            total = len(expected["prompt_ids"]) + len(expected["target_ids"])
            for limit in text.facts["length_limits"]:
                if limit.get("text_length") != total:
                    continue
                result = training_example(
                    conversation, layout, text.tokenizer, compat="reference", max_length=limit["max_length"]
                )
                assert isinstance(result, Example) == limit["accepted"]
                if isinstance(result, Example):
                    assert len(result.tokens) == limit["collated_length"]
                else:
                    assert result.name == conversation.name
                    assert str(limit["max_length"]) in result.reason
                checked += 1
    assert checked


def test_the_kept_part_of_a_long_prompt(text: TextGolden, goldens: Path) -> None:
    responses = json.loads((goldens / "text" / "response_parsing.json").read_text(encoding="utf-8"))
    for case in responses[text.name]["prompt_limits"]:
        full = range(case["prompt_tokens"])
        kept = full[reference_cut(len(full), case["max_length"], case["max_new_tokens"])]
        assert len(kept) == case["kept"]
        assert f"full[{kept.start}:{kept.stop}]" == case["kept_are"]


def test_a_prompt_cut_into_its_placeholders_is_rejected(tokenizer: Tokenizer) -> None:
    result = prompt_example(_conversation(), LAYOUT, tokenizer, compat="reference", max_length=100, max_new_tokens=60)
    assert isinstance(result, Rejected)
    assert result.name == "clip 1"
    assert "<MultiHere>" in result.reason or "<AudioHere>" in result.reason or "<FaceHere>" in result.reason


def test_strict_differs_only_by_the_bos_on_ordinary_prompts(tokenizer: Tokenizer) -> None:
    reference = _accept(prompt_example(_conversation(), LAYOUT, tokenizer, compat="reference"))
    strict = _accept(prompt_example(_conversation(), LAYOUT, tokenizer))
    training = _accept(training_example(_conversation(), LAYOUT, tokenizer))
    assert strict.tokens.tolist() == [tokenizer.bos, *reference.tokens]
    assert strict.tokens.tolist() == training.tokens[: len(strict.tokens)].tolist()
    assert strict.soft_index[1:].tolist() == reference.soft_index.tolist()
    assert len(strict.target_ids) == len(reference.target_positions) == 0
    assert training.target_positions[0] == len(strict.tokens) - 1


def test_text_that_spells_special_tokens(tokenizer: Tokenizer) -> None:
    spelled = _conversation(subtitle="<FaceHere> said <|im_end|>", answer="<|im_end|> and <MultiHere>")
    strict = _accept(training_example(spelled, LAYOUT, tokenizer))
    assert (strict.tokens == tokenizer.eos).sum() == 1
    assert (strict.soft_index > 0).sum() == layout_size(LAYOUT)
    assert spelled.subtitle in tokenizer.decode(strict.tokens)

    reference = training_example(spelled, LAYOUT, tokenizer, compat="reference")
    assert isinstance(reference, Rejected)
    assert "<FaceHere>" in reference.reason or "<MultiHere>" in reference.reason

    quoted = _conversation(subtitle="said <|im_end|>")
    masked = _accept(training_example(quoted, LAYOUT, tokenizer, compat="reference"))
    assert (masked.tokens == tokenizer.eos).sum() == 2
    assert (reference_batch([masked], tokenizer.pad).attention_mask == 0).sum() == 2


@pytest.mark.parametrize(
    "subtitle", ["It was late, and she had not called. " * 40, "她说\u5979没有打电话。" * 60, "e\u0301" * 400]
)
def test_strict_shortens_a_long_subtitle_as_little_as_possible(tokenizer: Tokenizer, subtitle: str) -> None:
    whole = _conversation(subtitle=subtitle)
    most = len(_accept(training_example(_conversation(subtitle=""), LAYOUT, tokenizer)).tokens) - 2
    for room in (0, 7, 50):
        example = _accept(training_example(whole, LAYOUT, tokenizer, max_length=most + room))
        assert most <= len(example.tokens) - 2 <= most + room
        assert len(example.tokens) - 2 > most + room - 8  # one more character costs a few tokens at most
        assert example.note.startswith(f"subtitle cut from {len(subtitle)} to ")
        assert (example.soft_index > 0).sum() == layout_size(LAYOUT)
        assert tokenizer.decode(example.tokens).endswith(whole.answer + "###<|im_end|>")
        prompt = _accept(prompt_example(whole, LAYOUT, tokenizer, max_length=most + room + 20, max_new_tokens=20))
        assert len(prompt.tokens) <= most + room
    assert isinstance(training_example(whole, LAYOUT, tokenizer, compat="reference", max_length=most + 50), Rejected)
    roomy = [training_example(whole, LAYOUT, tokenizer, compat=compat, max_length=9999) for compat in BOTH]
    assert _arrays(_accept(roomy[0])) == _arrays(_accept(roomy[1]))


def test_what_no_subtitle_can_mend_is_rejected(tokenizer: Tokenizer) -> None:
    for conversation in (_conversation(answer="word " * 300), _conversation(mode="audioonly", subtitle="long " * 300)):
        result = training_example(conversation, LAYOUT, tokenizer, max_length=20)
        assert isinstance(result, Rejected)
        assert "20 are allowed" in result.reason
    prompt = prompt_example(_conversation(), LAYOUT, tokenizer, max_length=60, max_new_tokens=50)
    assert isinstance(prompt, Rejected)
    assert "10 are allowed" in prompt.reason
    with pytest.raises(UserError, match="leaves no room"):
        prompt_example(_conversation(), LAYOUT, tokenizer, max_length=60, max_new_tokens=60)


def test_a_reduced_mode_keeps_the_models_slots(tokenizer: Tokenizer) -> None:
    example = _accept(training_example(_conversation(mode="face_text"), LAYOUT, tokenizer))
    assert example.soft_index[example.soft_index > 0].tolist() == list(LAYOUT["face"])
