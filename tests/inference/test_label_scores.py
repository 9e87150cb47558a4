"""Scores of labels against the full forward pass, and what they may and may not depend on."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import affectgpt_jax.inference.label_scores as label_scores
from affectgpt_jax.data.examples import Example, Rejected
from affectgpt_jax.data.prompts import OVLABEL_STEM, question
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Answerer, Query, as_prompt, make_prompt
from affectgpt_jax.inference.evaluate import PLAIN, Condition, conditions
from affectgpt_jax.inference.label_scores import LabelScorer, Scores, chunks, evidence, tokenized, without
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.unibench.table_cache import wheel_words
from affectgpt_jax.weights.initial import parameter_shapes, resolve
from tests.inference.clip_run import random_tree
from tests.tiny_run import AUDIO_WIDTH, EMOTIONS, VISION_WIDTH, make_tokenizer, tiny_config

WORDS = (*EMOTIONS, "very sad", "sadness", "ill at ease", "x")
MAX_NEW, LONGEST = 8, 192
UNHIDDEN = {"model__absent": False, "data__hide__face": 0.0, "data__hide__text": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_tokenizer(folder / "tokenizer")
    return folder


@functools.cache
def tiny(folder: Path, seed: int = 1, **changes: Any) -> Run:
    """A run of random parameters, large enough for clips and words to differ."""
    config, tokenizer = resolve(tiny_config(folder, **changes))
    model = AffectGPT(config.model)
    params = jax.tree.map(jnp.asarray, random_tree(parameter_shapes(model), seed))
    return Run(folder, config, tokenizer, model, params, 7)


def queries(count: int) -> list[Query]:
    """Samples whose prompts differ in length; the second one lacks a face."""
    made = []
    for i in range(count):
        rng = np.random.default_rng([3, i])
        features = {
            name: rng.normal(size=(8, width)).astype(np.float32)
            for name, width in (("face", VISION_WIDTH), ("audio", AUDIO_WIDTH))
            if (name, i) != ("face", 1)
        }
        made.append(Query(f"clip{i}", "well then " * (i % 3 * 4), question("ovlabel"), features))
    return made


def logs(scorer: LabelScorer, asked: Sequence[Query]) -> np.ndarray:
    found = scorer(asked)
    assert all(isinstance(one, Scores) for one in found)
    assert [one.name for one in found] == [query.name for query in asked]
    return np.stack([one.logs for one in found if isinstance(one, Scores)])


@functools.cache
def _forward(model: AffectGPT) -> Any:
    def logits(params: Any, tokens: Any, soft_index: Any, used: Any, features: Any, present: Any) -> Any:
        def read(module: AffectGPT) -> Any:
            embeds = module.inputs_embeds(tokens, soft_index, features, present)
            positions = jnp.arange(LONGEST)[None]
            return module.decoder.logits(module.decoder(embeds, positions, used.astype(jnp.int32), None))

        return model.apply({"params": params}, method=read)

    return jax.jit(logits)


def whole_pass(run: Run, query: Query, word: str) -> float:
    """The score of one word, by one forward pass over prompt, opening and word."""
    made = make_prompt(run, query, MAX_NEW)
    assert isinstance(made, Example)
    encode = functools.partial(run.tokenizer.encode, literal=True)
    opening, answer = encode(OVLABEL_STEM.rstrip()), encode(OVLABEL_STEM + word)
    ends = {encode(OVLABEL_STEM + word + end)[len(answer)] for end in (", sad", ".###")}
    length = len(made.tokens) + len(answer)
    # What comes after is not looked at: one compiled length for all.
    tokens, soft = (np.zeros(LONGEST, np.int32) for _ in range(2))
    tokens[:length] = [*made.tokens, *answer]
    soft[: len(made.soft_index)] = made.soft_index
    prompt = as_prompt(run.config, query, made._replace(tokens=tokens, soft_index=soft))
    logits = _forward(run.model)(run.params, *jax.tree.map(jnp.asarray, prompt))[0]
    found = jax.nn.log_softmax(logits[:length])
    first = len(made.tokens) + len(opening)
    label = sum(float(found[at - 1, tokens[at]]) for at in range(first, length))
    return label + float(jax.nn.logsumexp(found[-1, jnp.array(sorted(ends))]))


@pytest.mark.parametrize("changes", [{}, {"model__prefusion": "none", "model__mode": "face"}])
def test_scores_are_those_of_the_full_forward_pass(folder: Path, changes: dict[str, Any]) -> None:
    run = tiny(folder, **changes)
    asked = queries(3)
    found = logs(LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW), asked)
    chosen = [(i, j) for i in range(3) for j in range(len(WORDS)) if (i + j) % 2 == 0]
    expected = [whole_pass(run, asked[i], WORDS[j]) for i, j in chosen]
    np.testing.assert_allclose([found[i, j] for i, j in chosen], expected, atol=1e-4, rtol=0)
    assert np.ptp(found, axis=0).min() > 1e-2  # clips differ
    assert np.ptp(found, axis=1).min() > 1  # and words
    assert np.exp(found).sum(axis=1).max() < 1


def test_scores_depend_on_clip_and_word_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on chunks, other words, other clips or the number of clips at a time."""
    run, asked = tiny(folder), queries(5)
    found = logs(LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW), asked)
    turned = logs(LabelScorer(run, WORDS[::-1], batch=2, max_new=MAX_NEW), asked)[:, ::-1]
    np.testing.assert_allclose(turned, found, atol=1e-5, rtol=0)
    few = logs(LabelScorer(run, WORDS[2:5], batch=2, max_new=MAX_NEW), asked)
    np.testing.assert_allclose(few, found[:, 2:5], atol=1e-5, rtol=0)
    alone = [logs(LabelScorer(run, WORDS, batch=4, max_new=MAX_NEW), [query])[0] for query in asked]
    np.testing.assert_allclose(alone, found, atol=1e-5, rtol=0)
    scorer = LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW)
    np.testing.assert_array_equal(logs(scorer, asked[::-1])[::-1], found)  # other company, the same program
    monkeypatch.setattr(scorer, "_chunks", chunks(scorer._tokens.words, size=16))
    assert len(scorer._chunks) > 1
    np.testing.assert_allclose(logs(scorer, asked), found, atol=1e-5, rtol=0)


def test_an_untrained_model_prefers_no_word(folder: Path) -> None:
    """Parameters near nothing: words of as many tokens score alike, those of more score less."""
    run = tiny(folder)
    run = run._replace(params=jax.tree.map(lambda x: x * 1e-3, run.params))
    words = wheel_words()
    sizes = np.array([len(ids) for ids in tokenized(words, run.tokenizer).words])
    found = logs(LabelScorer(run, words, batch=2, max_new=MAX_NEW), queries(2))
    vocabulary = run.config.model.decoder.vocab
    np.testing.assert_allclose(found, [np.log(2) - np.log(vocabulary) * (sizes + 1)] * 2, atol=1e-2)


def test_words_that_run_together_with_the_answer_are_refused(folder: Path) -> None:
    tokenizer: Tokenizer = tiny(folder).tokenizer
    for word in ("sad,", "sad.", "", "sad and angry", "'sad'", "a b c d e"):
        with pytest.raises(UserError, match="runs together"):
            tokenized(["happy", word], tokenizer)
    with pytest.raises(UserError, match="tokens; expected 128 at most"):
        tokenized(["s" + "a" * 200 + "d"], tokenizer)


def test_chunks_hold_every_word_once() -> None:
    words = [(1, 2, 3), (4,), (5, 6), (7, 8, 9, 10), (11,)]
    found = chunks(words, size=5)
    assert [len(chunk.ids) for chunk in found] == [5] * len(found)
    whole: dict[int, list[int]] = {}
    for chunk in found:
        for token, depth, branch, following, last in zip(*chunk, strict=True):
            if branch < len(words):
                word = whole.setdefault(int(branch), [])
                assert depth == len(word)
                word.append(int(token))
                assert last == (len(word) == len(words[branch]))
                assert last or following == words[branch][depth + 1]
    assert [tuple(whole[i]) for i in range(len(words))] == words


def test_evidence_takes_one_modality_away_at_a_time(folder: Path) -> None:
    run, asked = tiny(folder), queries(3)
    scorer = LabelScorer(run, WORDS, batch=4, max_new=MAX_NEW)
    answerer = Answerer(run, batch=4, max_new=MAX_NEW)
    wanted = [condition for condition in conditions(("face", "audio")) if not condition.shuffled]
    told: list[int] = []
    found = evidence(asked, scorer, answerer, wanted, told.append)
    assert told[-1] == len(asked) * len(wanted)
    assert [list(one) for one in found] == [[condition.name for condition in wanted]] * 3
    for condition in wanted:
        changed = [without(query, condition.modality) if condition.modality else query for query in asked]
        for one, score, answer in zip(found, scorer(changed), answerer(changed), strict=True):
            own = one[condition.name]
            assert isinstance(own.scores, Scores)
            assert isinstance(score, Scores)
            np.testing.assert_array_equal(own.scores.logs, score.logs)
            assert own.answer == answer

    def moved(clip: int, condition: str) -> float:
        plain, other = found[clip][PLAIN.name].scores, found[clip][condition].scores
        assert isinstance(plain, Scores)
        assert isinstance(other, Scores)
        return float(np.abs(plain.logs - other.logs).max())

    assert moved(0, "without face") > 1e-3
    assert moved(0, "without audio") > 1e-3
    assert moved(1, "without face") == 0  # it had none
    assert moved(0, "without text") == 0  # nothing was said
    assert moved(2, "without text") > 1e-3
    with pytest.raises(ValueError, match="other clips"):
        evidence(asked, scorer, asked=[Condition("shuffled face", "face", shuffled=True)])


def test_a_model_without_absent_features_is_asked_about_what_is_left(folder: Path) -> None:
    """In the mode that speaks of nothing else; where nothing is left, the reason is given."""
    run = tiny(folder, **UNHIDDEN)
    scorer = LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW)
    silent = queries(1)[0]
    only_face = silent._replace(features={"face": silent.features["face"]}, subtitle="")
    found = evidence([only_face], scorer, asked=[PLAIN, Condition("without face", "face")])[0]
    plain, nothing = found[PLAIN.name].scores, found["without face"].scores
    assert isinstance(plain, Scores)
    assert "face_text" in plain.note
    assert found[PLAIN.name].answer is None
    assert isinstance(nothing, Rejected)
    assert "nothing to go by" in nothing.reason
    assert not isinstance(found[PLAIN.name].answer, Answer)


def test_no_program_is_compiled_twice(folder: Path) -> None:
    run, asked = tiny(folder), queries(3)
    logs(LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW), asked)
    work = label_scores.programs(run.model)
    counts = [function._cache_size() for function in work]
    logs(LabelScorer(run, WORDS, batch=2, max_new=MAX_NEW), asked[::-1])
    assert [function._cache_size() for function in work] == counts
