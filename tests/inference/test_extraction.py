"""Labels out of free answers: the benchmark's prompts, responses against transformers', what is kept on disk, the
command."""

import json
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from affectgpt_jax.cli import main
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference import extraction
from affectgpt_jax.inference.engine import Engine, Request
from affectgpt_jax.inference.extraction import SAMPLINGS, Extractor, Rules, chat_ids, clean_response, render
from affectgpt_jax.ops.sampling import Sampling
from affectgpt_jax.unibench.predictions import read_predictions, sentiment_signs
from tests.conftest import reference_folder
from tests.inference.engines import fresh_cache, generate

LABELS = "Please assume the role of an expert in the field of emotions. We provide clues that may be related to the emotions of the characters. Based on the provided clues, please identify the emotional states of the main character. The main character is the one with the most detailed clues. Please separate different emotional categories with commas and output only the clearly identifiable emotional categories in a list format. If none are identified, please output an empty list. Input: We cannot recognize his emotional state; Output: [] Input: His emotional state is happy, sad, and angry; Output: [happy, sad, angry] Input: He {smiles}.; Output: "  # noqa: E501
SENTIMENT = "Please act as an expert in the field of emotions.             We provide a few words to describe the emotions of a character.             Please choose the most likely sentiment from the given candidates: [positive, negative, neutral]             Please direct output answer without analyzing process.             Input: [joyful]; Output: positive             Input: []; Output: neutral             Input: [joy, relief]; Output: "  # noqa: E501

TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
"""What Qwen2.5's template says where there are no tools."""

ANSWERS = {
    "a": "The character's emotional state is happy.",
    "b": "In the text, the subtitle reads: oh no! So the person is angry and tired.",
    "c": "sad",
    "d": "他很高兴, 'really'",
    "e": "sad",
    "f": "The face frowns, the voice trembles; worried. " * 3,
}
MAX_NEW = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden base model and its tokenizer in one folder."""
    from tests.exchange.runs import write_bases
    from tests.parity import goldens

    folder = tmp_path_factory.mktemp("bases")
    write_bases(folder)
    for file in (goldens.MODELS / "tokenizer_tiny").iterdir():
        shutil.copyfile(file, folder / "language" / file.name)
    return folder / "language"


class Calls(list[tuple[Any, tuple[int, ...], list[int]]]):
    """Parameters, a prompt and what was generated, of each response; `stop_before` interrupts."""

    stop_before: int | None = None

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        """Rows and tokens of an answer at most, of all engines."""

    def prompts(self) -> list[tuple[int, ...]]:
        """Ids of every prompt."""
        return [prompt for _, prompt, _ in self]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    class Recording(Engine):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            calls.sizes.add((kwargs["rows"], kwargs["max_new"]))
            super().__init__(*args, **kwargs)

        def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
            for place, ids in super().run(requests):
                if len(calls) == calls.stop_before:
                    raise KeyboardInterrupt
                calls.append((self._params, tuple(requests[place].prompt.tokens[0].tolist()), ids))
                yield place, ids

    monkeypatch.setattr(extraction, "Engine", Recording)
    return calls


def changed(language: Path, folder: Path, **config: Any) -> Path:
    """A copy of the model with other values in its config.json; None takes a key out."""
    shutil.copytree(language, folder)
    values = json.loads((folder / "config.json").read_text()) | config
    kept = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def test_prompts_are_the_references() -> None:
    assert extraction.LABEL_PROMPT.format(reason="He {smiles}.") == LABELS
    assert extraction.SENTIMENT_PROMPT.format(reason="[joy, relief]") == SENTIMENT
    assert set(re.findall(" {2,}", SENTIMENT)) == {" " * 13}
    assert "  " not in LABELS


@pytest.mark.parametrize("message", [LABELS, SENTIMENT, "'s  ﬁ\u00e9e\u0301 他\n\n x"])
def test_the_chat_template(message: str) -> None:
    """Text and ids are those of transformers with the tokenizer of Qwen2.5."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("jinja2")
    folder = reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / "qwen2.5"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": message}]
    options = {"tokenize": False, "add_generation_prompt": True}
    text = theirs.apply_chat_template(chat, chat_template=theirs.chat_template or TEMPLATE, **options)
    assert render(message) == text
    assert render(message) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_ids(open_tokenizer(folder), message) == theirs(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_in_an_answer_stay_text() -> None:
    tokenizer = open_tokenizer(reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / "qwen2.5")
    message = LABELS + "<|im_end|>\n<|im_start|>assistant\n[happy]<|endoftext|><FaceHere><tool_call>"
    ids = chat_ids(tokenizer, message)
    start, end = tokenizer.bos, tokenizer.eos
    assert [i for i in ids if i in tokenizer.added.values()] == [start, end, start, end, start]
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", render(message))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" [happy, sad] ", "[happy, sad]"),
        ("Output: [happy]", "[happy]"),
        ("output：[happy]", "[happy]"),
        ("输出： :[happy]", ":[happy]"),
        ("输入输出翻译让我们来翻译一下：outputOutputinputInput:：[happy]", "[happy]"),
        ("InputOutput: [happy]", "Output: [happy]"),
        ("Output Input: [happy]", "Input: [happy]"),
        ("OutputOutput: [happy]", "Output: [happy]"),
        ("::[happy]", ":[happy]"),
        ("：:[happy]", ":[happy]"),
        ("[happy,\nsad]\n\nBecause of this.", "[happy,sad]Because of this."),
        ("Output\n:\n positive\n", "positive"),
        ("outputs [happy]", "s [happy]"),
        ("", ""),
    ],
)
def test_what_stands_around_a_response_is_taken_off(text: str, expected: str) -> None:
    assert clean_response(text) == expected


def test_by_rule() -> None:
    answers = {
        "a": "The character's emotional state is Happy, sad and calm.",
        "b": "In the text, the subtitle says nothing. The person seems to be in a hurry.",
        "c": "The character's emotional state is anxious, tense.",
        "d": "The character's emotional state is astonished.",
    }
    labels = Rules().labels(answers)
    assert labels == {"a": "[happy, sad, calm]", "b": "[]", "c": "[anxious, tense]", "d": "[astonished]"}
    sentiments = Rules().sentiments(labels)
    assert sentiments == {"a": "positive", "b": "neutral", "c": "negative", "d": "neutral"}
    assert list(sentiment_signs((word,) for word in sentiments.values())) == [1, 0, -1, 0]


# ---------------------------------------------------------------------------------------------------------------------
# Generation


@pytest.mark.slow
def test_responses_are_those_of_transformers(language: Path, calls: Calls) -> None:
    """Token for token, in batches padded in length and number as alone; then the text that is left of them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    extractor = Extractor(language, batch=4, max_new=MAX_NEW)
    responses = extractor.labels(ANSWERS)
    sentiments = extractor.sentiments(responses)
    model = transformers.Qwen2ForCausalLM.from_pretrained(language)
    tokenizer = transformers.AutoTokenizer.from_pretrained(language)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]

    def ask(ids: list[int], penalty: float) -> list[int]:
        found = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=MAX_NEW,
            do_sample=False,
            repetition_penalty=penalty,
            eos_token_id=ends,
            pad_token_id=0,
        )
        return found[0, len(ids) :].tolist()

    compared: dict[tuple[int, ...], list[int]] = {}
    for _, ids, found in calls:
        compared[ids] = ask(list(ids), 1.05)
        assert found == compared[ids]
    assert len(compared) == len(set(ANSWERS.values())) + len(set(responses.values()))
    assert any(ids[-1] in ends for ids in compared.values())
    assert any(len(ids) == MAX_NEW for ids in compared.values())
    assert any(ask(list(prompt), 1.0) != ids for prompt, ids in compared.items())

    for prompt, reasons, given in (
        (extraction.LABEL_PROMPT, ANSWERS, responses),
        (extraction.SENTIMENT_PROMPT, responses, sentiments),
    ):
        assert given.keys() == ANSWERS.keys()
        for name, reason in reasons.items():
            text = render(prompt.format(reason=reason))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert given[name] == clean_response(tokenizer.decode(compared[tuple(ids)], skip_special_tokens=True))
    assert len(set(responses.values())) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("penalise_prompt", [False, True])
def test_the_penalty_counts_words_and_no_soft_tokens(penalise_prompt: bool) -> None:
    """Against the logits of every step and transformers' processor, for a model with soft tokens in its prompt."""
    from tests.parity import goldens
    from tests.parity.test_goldens_generation import prompt, stack

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    g = goldens.golden(goldens.settings()[0])
    params, steps = goldens.model_params(g), 12
    size = max(len(g.data[f"gen{i}/input_ids"]) for i in range(2)) + 3
    batch = stack([prompt(g, i, size - len(g.data[f"gen{i}/input_ids"])) for i in range(2)])
    prefill = jax.jit(lambda b: g.model.apply({"params": params}, *b, method="prefill"))
    step = jax.jit(lambda *x: g.model.apply({"params": params}, *x, method="step"))
    # What stands in the places of soft tokens and of padding is never read; counted, it would change the first choice.
    likeliest = np.argmax(prefill(batch)[0], axis=-1)[:, None]
    unread = (batch.soft_index > 0) | ~batch.used
    assert (batch.soft_index > 0).any(axis=1).all()
    batch = batch._replace(tokens=jnp.where(unread, likeliest, batch.tokens))
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty=1.5)
    logits, keys = prefill(batch)
    cache = fresh_cache(g.model, keys, batch.used, steps)
    chosen = np.zeros((2, 0), np.int32)
    for at in range(steps):
        for row in range(2):
            words = batch.tokens[row][~unread[row]] if penalise_prompt else np.zeros(0, np.int32)
            earlier = np.concatenate([words, chosen[row]]).astype(np.int64)
            if len(earlier):
                scores = torch.from_numpy(np.array(logits[row : row + 1]))
                logits = logits.at[row].set(processor(torch.from_numpy(earlier[None]), scores).numpy()[0])
        chosen = np.concatenate([chosen, np.argmax(logits, axis=-1)[:, None].astype(np.int32)], axis=1)
        logits, cache = step(chosen[:, -1], jnp.sum(batch.used, axis=1) + at, cache)
    how = Sampling(repetition_penalty=1.5, penalise_prompt=penalise_prompt)
    assert generate(g.model, params, batch, steps, sampling=how) == chosen.tolist()
    other = how._replace(penalise_prompt=not penalise_prompt)
    assert generate(g.model, params, batch, steps, sampling=other) != chosen.tolist()


def test_prompts_are_padded_to_few_lengths() -> None:
    """At most a quarter of a long prompt is padding, and there are four lengths an octave."""
    lengths = {size: extraction.bucket(size) for size in range(1, 2049)}
    assert all(size <= length <= max(size + 31, 1.25 * size) for size, length in lengths.items())
    assert sorted(set(lengths.values()) - set(range(129))) == [
        160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048,
    ]  # fmt: skip


@pytest.mark.slow
def test_draws_depend_on_prompt_and_seed_alone(language: Path, calls: Calls, cache: Path) -> None:
    """In another batch, another order, and with some of the responses kept already."""
    options = {"sampling": SAMPLINGS["reference"], "max_new": 12}
    together = Extractor(language, batch=4, **options).labels(ANSWERS)
    shutil.rmtree(cache)
    reverse = Extractor(language, batch=2, **options)
    assert reverse.labels({name: ANSWERS[name] for name in ("f", "b")}) == {name: together[name] for name in ("f", "b")}
    asked = len(calls.prompts())
    assert reverse.labels(dict(reversed(ANSWERS.items()))) == together
    assert len(calls.prompts()) - asked == len(set(ANSWERS.values())) - 2
    assert Extractor(language, batch=4, seed=1, **options).labels(ANSWERS) != together


@pytest.mark.slow
def test_half_precision_is_computed_in_bfloat16(language: Path, tmp_path: Path, calls: Calls) -> None:
    folder = changed(language, tmp_path / "half", torch_dtype="float16")
    file = folder / "model.safetensors"
    save_file({name: x.astype(np.float16) for name, x in load_file(file).items()}, file)
    Extractor(folder, batch=1, max_new=2).labels({"a": "happy"})
    Extractor(language, batch=1, max_new=2).labels({"a": "happy"})
    half, full = ({x.dtype.name for x in jax.tree.leaves(params)} for params, _, _ in calls)
    assert (half, full) == ({"bfloat16"}, {"float32"})


# ---------------------------------------------------------------------------------------------------------------------
# Responses on disk


def test_nothing_is_asked_twice(language: Path, calls: Calls) -> None:
    """Equal answers are one question, and what is kept is kept for the next process, too."""
    seen: list[tuple[int, int]] = []
    extractor = Extractor(language, batch=2, max_new=4)
    first = extractor.labels(ANSWERS, lambda done, total: seen.append((done, total)))
    distinct = len(set(ANSWERS.values()))
    assert distinct < len(ANSWERS)
    assert len(calls.prompts()) == len(set(calls.prompts())) == distinct
    assert seen[0] == (0, len(ANSWERS))
    assert seen[-1] == (len(ANSWERS), len(ANSWERS))
    assert len(seen) == len(calls) + 1
    assert seen == sorted(set(seen))

    again = Extractor(language, max_new=4)
    assert again.labels(ANSWERS) == first
    assert len(calls) == distinct
    assert "_engine" not in vars(again)  # not even its weights were read
    assert again.labels(ANSWERS | {"g": "afraid"}) == first | again.labels({"g": "afraid"})
    assert len(calls.prompts()) == distinct + 1


def test_an_interrupted_job_goes_on(language: Path, calls: Calls) -> None:
    calls.stop_before = 2
    with pytest.raises(KeyboardInterrupt):
        Extractor(language, batch=2, max_new=4).labels(ANSWERS)
    calls.stop_before = None
    found = Extractor(language, batch=2, max_new=4).labels(ANSWERS)
    assert len(calls.prompts()) == len(set(calls.prompts())) == len(set(ANSWERS.values()))
    calls.clear()
    shutil.rmtree(Extractor(language, max_new=4).file.parent)
    assert Extractor(language, batch=2, max_new=4).labels(ANSWERS) == found


def test_a_line_that_was_cut_off_is_asked_for_again(language: Path, calls: Calls) -> None:
    extractor = Extractor(language, batch=1, max_new=4)
    first = extractor.labels(ANSWERS)
    distinct = len(calls)
    whole = extractor.file.read_bytes()
    extractor.file.write_bytes(whole[:-9])
    for _ in range(2):  # what follows the cut line is whole
        assert extractor.labels(ANSWERS) == first
        assert len(calls) == distinct + 1
    assert len(extraction.read_responses(extractor.file)) == distinct


def test_several_writers(tmp_path: Path) -> None:
    """Lines longer than any buffer, from several at once, are all there."""
    file = tmp_path / "deep" / "responses.jsonl"

    def write(writer: int) -> None:
        for i in range(20):
            extraction.add_responses(file, {f"{writer}-{i}": f"{writer}-{i}" * 5000})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert extraction.read_responses(file) == {f"{w}-{i}": f"{w}-{i}" * 5000 for w in range(6) for i in range(20)}


def test_what_changes_a_response_changes_where_it_is_kept(language: Path, tmp_path: Path) -> None:
    weights = changed(language, tmp_path / "weights")
    tensors = load_file(weights / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1e-3)
    save_file(tensors, weights / "model.safetensors")
    tokens = changed(language, tmp_path / "tokens")
    text = (tokens / "tokenizer.json").read_text(encoding="utf-8")
    assert "<|endoftext|>" in text
    (tokens / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|end_of_it|>"), encoding="utf-8")
    reference = SAMPLINGS["reference"]
    extractors = [
        Extractor(language),
        Extractor(language, sampling=reference),
        Extractor(language, sampling=reference, seed=1),
        Extractor(language, sampling=reference._replace(top_p=0.9)),
        Extractor(language, max_new=100),
        Extractor(weights),
        Extractor(tokens),
        Extractor(changed(language, tmp_path / "config", rope_theta=10000.0)),
    ]
    assert len({extractor.file for extractor in extractors}) == len(extractors)
    assert (extraction.BATCH, extraction.MAX_NEW, reference) == (8, 512, (0.7, 0, 0.8, 1.05, True))
    assert SAMPLINGS["greedy"] == (0.0, 0, 1.0, 1.05, True)
    same = Extractor(changed(language, tmp_path / "copy"), seed=5, batch=3)  # the likeliest words need no seed
    assert same.file == extractors[0].file


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be done


def test_an_answer_that_is_too_long_is_named(language: Path, tmp_path: Path, calls: Calls) -> None:
    longest = max(
        len(chat_ids(open_tokenizer(language), extraction.LABEL_PROMPT.format(reason=x))) for x in ANSWERS.values()
    )
    fits = changed(language, tmp_path / "fits", max_position_embeddings=longest + 4)
    assert Extractor(fits, max_new=4).labels(ANSWERS).keys() == ANSWERS.keys()
    calls.clear()
    tight = Extractor(fits, max_new=5)
    with pytest.raises(UserError, match=rf"^f: the prompt has {longest} tokens.*at most {longest - 1} "):
        tight.labels(ANSWERS)
    assert not calls


def test_half_a_character(language: Path) -> None:
    with pytest.raises(UserError, match=r"clip 7: 'oh \\ud83d' holds '\\ud83d', half a character"):
        Extractor(language, max_new=4).labels({"clip 7": "oh \ud83d"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama', expected a Qwen2"),
        ({"torch_dtype": "float64"}, "dtype='float64', expected one of float32, bfloat16, float16"),
        ({"torch_dtype": None}, "dtype=None, expected one of"),
    ],
)
def test_other_models_are_refused(config: dict[str, Any], message: str, language: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Extractor(changed(language, tmp_path / "other", **config))


def test_missing_files_are_named(language: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.config\.json is missing"):
        Extractor(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"NoSuch/Model: neither a folder nor a model in the Hub's cache"):
        Extractor("NoSuch/Model")
    bare = changed(language, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        Extractor(bare)
    mute = changed(language, tmp_path / "mute")
    for file in ("tokenizer.json", "vocab.json"):
        (mute / file).unlink()
    with pytest.raises(UserError, match="no tokenizer here"):
        Extractor(mute)
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"responses cannot be kept .* AFFECTGPT_CACHE_DIR"):
        Extractor(language, batch=1, max_new=1).labels({"a": "happy"})


# ---------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two checkpoints in a folder, one as the reference keeps it, with its labels beside it."""
    folder = tmp_path / "raw"
    folder.mkdir()
    answers = {
        name: f"The character's emotional state is {text}." for name, text in zip("xyz", ("happy, calm", "", "sad"))
    }
    np.savez_compressed(folder / "ckpt_030_loss_0.602.npz", name2reason=answers)
    labels = {"filenames": list(answers), "fileitems": ["[happy]", "[]", "[sad]"]}
    for suffix in ("-openset", "-openset-sentiment"):
        np.savez_compressed(folder / f"ckpt_030_loss_0.602{suffix}.npz", **labels)
    lines = [
        json.dumps({"name": name, "answer": text, "other": 1}, ensure_ascii=False) for name, text in ANSWERS.items()
    ]
    (folder / "later.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    (folder / "notes.txt").write_text("")
    return folder


def read_records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_folder_by_rule(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["extract", str(raw), str(out), "--sentiment"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["ckpt_030_loss_0.602.jsonl", "later.jsonl"]
    assert read_records(out / "ckpt_030_loss_0.602.jsonl") == [
        {"name": "x", "answer": "The character's emotional state is happy, calm.", "labels": ["happy", "calm"],
         "response": "[happy, calm]", "sentiment": "positive"},
        {"name": "y", "answer": "The character's emotional state is .", "labels": [], "response": "[]",
         "sentiment": "neutral"},
        {"name": "z", "answer": "The character's emotional state is sad.", "labels": ["sad"], "response": "[sad]",
         "sentiment": "negative"},
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "ckpt_030_loss_0.602.jsonl: 3 answers, 1 gave no label\n" in shown
    predictions = read_predictions(out / "ckpt_030_loss_0.602.jsonl", "fine-grained")
    assert predictions.checkpoint == "ckpt_030_loss_0.602"
    assert dict(predictions.labels) == {"x": ("happy", "calm"), "y": (), "z": ("sad",)}
    signs = read_predictions(out / "ckpt_030_loss_0.602.jsonl", "sentiment").labels
    assert dict(signs) == {"x": ("positive",), "y": ("neutral",), "z": ("negative",)}

    assert main(["extract", str(raw), str(out)]) == 2
    assert "is there already; give --overwrite" in capsys.readouterr().err
    assert main(["extract", str(raw), str(out), "--overwrite", "--limit", "2"]) == 0
    assert [record["name"] for record in read_records(out / "later.jsonl")] == ["a", "b"]
    assert "sentiment" not in read_records(out / "later.jsonl")[0]
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_file_by_a_language_model(
    raw: Path,
    language: Path,
    tmp_path: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is written is what the extractor says; a second time nothing is asked."""
    monkeypatch.setattr(extraction, "MAX_NEW", 24)
    out = tmp_path / "out"
    command = ["extract", str(raw / "later.jsonl"), str(out), "--language", str(language), "--sentiment"]
    assert main([*command, "--batch", "5"]) == 0
    assert calls.sizes == {(5, 24)}
    asked = len(calls)
    extractor = Extractor(language)
    labels = extractor.labels(ANSWERS)
    sentiments = extractor.sentiments(labels)
    records = read_records(out / "later.jsonl")
    assert [(r["name"], r["answer"]) for r in records] == list(ANSWERS.items())
    assert {r["name"]: r["response"] for r in records} == labels
    assert {r["name"]: r["sentiment"] for r in records} == sentiments
    assert all(r["labels"] == extraction.parse_openset(r["response"]) for r in records)
    assert "6 answers, 0 gave no label, 6 gave a sentiment that counts as neutral, such as" in capsys.readouterr().out
    assert main([*command, "--overwrite"]) == 0
    assert len(calls) == asked
    assert read_records(out / "later.jsonl") == records
    read = read_predictions(out / "later.jsonl", "fine-grained").labels
    assert {name: list(found) for name, found in read.items()} == {r["name"]: r["labels"] for r in records}

    # Drawn words are others, and the seed decides which.
    drawn = {}
    for seed in ("0", "1"):
        options = ["--sampling", "reference", "--seed", seed, "--limit", "2"]
        assert main([*command[:-1], *options, "--overwrite"]) == 0
        drawn[seed] = [record["response"] for record in read_records(out / "later.jsonl")]
    asked = len(calls)
    expected = Extractor(language, sampling=SAMPLINGS["reference"], seed=1).labels({k: ANSWERS[k] for k in "ab"})
    assert len(calls) == asked
    assert drawn["1"] == list(expected.values())
    assert drawn["0"] != drawn["1"] != [labels["a"], labels["b"]]


def test_a_clip_that_cannot_be_asked_about_is_named_with_its_file(
    raw: Path, language: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = changed(language, tmp_path / "small", max_position_embeddings=600)
    assert main(["extract", str(raw / "later.jsonl"), str(tmp_path / "out"), "--language", str(small)]) == 2
    assert f"{raw / 'later.jsonl'}: a: the prompt has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere", "out"], "PREDICTIONS nowhere do not exist"),
        (["raw", "raw"], "OUT raw is where the raw answers lie"),
        (["raw/later.jsonl", "raw/"], "OUT raw is where the raw answers lie"),
        (["raw", "raw/notes.txt"], "OUT raw/notes.txt is a file"),
        (["raw", "out", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["raw", "out", "--batch", "4"], "--batch: only a language model is asked so"),
        (["raw", "out", "--sampling", "greedy", "--seed", "1"], "--sampling and --seed: only a language model"),
        (["raw", "out", "--language", "x", "--batch", "0"], "--batch must be at least 1, not 0"),
        (["raw", "out", "--language", "x", "--seed", "1"], "--seed: nothing is drawn without --sampling reference"),
        (["raw", "out", "--language", "x", "--sampling", "reference", "--seed", "-1"], "--seed must be from 0 to"),
        (["raw", "out", "--language", "x"], "config.json is missing"),
        (["raw/notes.txt", "out"], "raw/notes.txt: expected raw answers as NAME.npz or NAME.jsonl"),
        (["raw/ckpt_030_loss_0.602-openset.npz", "out"], "has no 'name2reason'"),
        (["empty", "out"], "empty has no raw answers; expected NAME.npz or NAME.jsonl, found nothing"),
        (["twins", "out"], "twins/a.jsonl and twins/a.npz would both become out/a.jsonl"),
        (["bad/json.jsonl", "out"], "bad/json.jsonl, line 2 is not JSON"),
        (["bad/answer.jsonl", "out"], "bad/answer.jsonl, line 1: expected an object with name and answer"),
        (["bad/list.jsonl", "out"], "bad/list.jsonl, line 1: expected an object with name and answer"),
        (["bad/twice.jsonl", "out"], "bad/twice.jsonl, line 3: 'x' occurs a second time"),
        (["bad/bytes.jsonl", "out"], "bad/bytes.jsonl is not readable as UTF-8"),
        (["raw", "/dev/null/out"], "/dev/null/out/ckpt_030_loss_0.602.jsonl: cannot be written"),
    ],
)
def test_mistakes_of_use(
    options: list[str], message: str, raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(raw.parent)
    for folder in ("empty", "twins", "bad"):
        Path(folder).mkdir()
    for name in ("a.npz", "a.jsonl"):
        Path("twins", name).touch()
    good = '{"name": "x", "answer": "sad"}\n'
    Path("bad/json.jsonl").write_text(good + "{\n")
    Path("bad/answer.jsonl").write_text('{"name": "x", "answer": null}\n')
    Path("bad/list.jsonl").write_text("[]\n")
    Path("bad/twice.jsonl").write_text(good + "\n" + good)
    Path("bad/bytes.jsonl").write_bytes(b"\xff")
    before = sorted(Path(".").rglob("*"))
    assert main(["extract", *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(Path(".").rglob("*")) == before
