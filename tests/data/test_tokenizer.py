"""Token ids, against the reference's and against the transformers library."""

import json
import pickle
import shutil
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import affectgpt_jax.data.tokenizer as tokenizer_module
from affectgpt_jax.data.prompts import PLACEHOLDERS
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.errors import UserError
from tests.conftest import reference_folder
from tests.data.conftest import TextGolden

QWEN2 = open_tokenizer(reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / "qwen2.5")
SPELLED = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<FaceHere>", "<tool_call>", "###", "<|im_"]
TEXTS = st.lists(st.one_of(st.text(max_size=12), st.sampled_from([*SPELLED, " ", "\n", "it's ", "angry, "]))).map(
    "".join
)


def _strings(text: TextGolden) -> list[tuple[str, list[int]]]:
    samples = [sample for case in text.facts["cases"] for sample in case["samples"]]
    return [(sample[part], sample[f"{part}_ids"]) for sample in samples for part in ("prompt", "target")]


def test_special_tokens(text: TextGolden) -> None:
    special, tokenizer = text.facts["special"], text.tokenizer
    assert tokenizer.size == special["n_tokens"]
    assert [tokenizer.bos, tokenizer.eos, tokenizer.pad] == [special[name][1] for name in ("bos", "eos", "pad")]
    assert tokenizer.decode([tokenizer.bos, tokenizer.eos]) == special["bos"][0] + special["eos"][0]
    assert {PLACEHOLDERS[key]: value for key, value in tokenizer.placeholders.items()} == special["added_in_order"]
    assert list(PLACEHOLDERS.values()) == list(special["added_in_order"])
    assert tokenizer.decode([0]) == special["placeholder_id_0"]
    assert [list(sequence) for sequence in tokenizer.stop_sequences] == special["stop_sequences"]
    for string in ("###", "a##", "a#", " ###"):
        assert tokenizer.encode(string) == special[string]


def test_prompts_and_targets(text: TextGolden) -> None:
    for string, ids in _strings(text):
        assert text.tokenizer.encode(string) == ids
        assert text.tokenizer.decode(ids) == unicodedata.normalize("NFC", string)


def test_cutting_on_the_right(text: TextGolden) -> None:
    for case in text.facts["length_limits"]:
        if "truncation_example" in case:
            ids = text.tokenizer.encode(text.tokenizer.decode(case["full"]))
            assert ids[: len(case["truncation_example"])] == case["truncation_example"]


def test_vocabulary_and_merges_give_the_same_tokenizer(text: TextGolden, tmp_path: Path) -> None:
    whole = json.loads((text.folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    shutil.copyfile(text.folder / "tokenizer_config.json", tmp_path / "tokenizer_config.json")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.added == text.tokenizer.added
    assert all(tokenizer.encode(string) == ids for string, ids in _strings(text))


def test_agrees_with_transformers_on_any_text(text: TextGolden) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_file=str(text.folder / "tokenizer.json"))
    oracle.add_tokens(list(PLACEHOLDERS.values()), special_tokens=True)

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def check(string: str) -> None:
        ids = text.tokenizer.encode(string)
        assert ids == oracle(string, add_special_tokens=False)["input_ids"]
        assert text.tokenizer.decode(ids) == oracle.decode(ids, clean_up_tokenization_spaces=False)

    check()


def test_literal_text_never_becomes_a_special_token(text: TextGolden) -> None:
    added = set(text.tokenizer.added.values())

    @settings(max_examples=100, deadline=None)
    @given(TEXTS)
    def check(string: str) -> None:
        ids = text.tokenizer.encode(string, literal=True)
        assert not added & set(ids)
        assert text.tokenizer.decode(ids) == unicodedata.normalize("NFC", string)

    check()


def test_survives_pickling(text: TextGolden) -> None:
    copy: Tokenizer = pickle.loads(pickle.dumps(text.tokenizer))
    assert copy.stop_sequences == text.tokenizer.stop_sequences
    assert all(copy.encode(string) == ids for string, ids in _strings(text)[:20])


def test_placeholders_that_are_there_keep_their_ids(text: TextGolden, tmp_path: Path) -> None:
    import tokenizers

    whole = tokenizers.Tokenizer.from_file(str(text.folder / "tokenizer.json"))
    whole.add_special_tokens(list(PLACEHOLDERS.values()))
    whole.save(str(tmp_path / "tokenizer.json"))
    assert open_tokenizer(tmp_path).added == text.tokenizer.added


def test_what_is_missing_is_named(text: TextGolden, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_tokenizer(tmp_path / "nowhere")
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=r"found: config\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: cannot read"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        open_tokenizer(tmp_path)
    whole = json.loads((text.folder / "tokenizer.json").read_text(encoding="utf-8"))
    whole["added_tokens"] = whole["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match=r"no special token <\|im_start\|> and no <\|im_end\|>"):
        open_tokenizer(tmp_path)


WORDS = st.one_of(
    st.text(max_size=6),
    st.text("ab1 \t\n\r\x0b\x0c\x1c'.,-", max_size=6),
    st.sampled_from(
        ["it's", "well,", "\u00e9", "e\u0301", "\u00a0", "\u3000", "\u0301", "12", "\n", "###", "<|im_end|>", ""]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=12), st.sampled_from([" ", " ", "  ", "\n "]))
def test_words_looked_up_are_what_the_library_gives(words: list[str], between: str) -> None:
    text = between.join(words)
    assert QWEN2.encode(text, literal=True) == QWEN2.base.encode(text).ids
    assert QWEN2.encode(text, literal=True) == QWEN2.base.encode(text).ids  # from what is kept


def test_words_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_KNOWN", 10)
    words = [f"word{i}" for i in range(50)]
    assert QWEN2.encode(" ".join(words), literal=True) == QWEN2.base.encode(" ".join(words)).ids
    assert len(QWEN2._after_space) <= 10
    long = "a" * 200
    assert QWEN2.encode(f"b {long}", literal=True) == QWEN2.base.encode(f"b {long}").ids
    assert long not in QWEN2._after_space


def test_other_ways_to_cut_words_are_left_to_the_library(tmp_path: Path) -> None:
    """Of words after spaces this one makes other tokens: it cuts nowhere."""
    whole = tokenizers.Tokenizer(QWEN2.base.model)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    odd = Tokenizer(whole, QWEN2.added)
    text = "in the in the house"
    assert odd.encode(text, literal=True) == whole.encode(text).ids
