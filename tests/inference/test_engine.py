"""The engine against the full forward pass, and what a row's answer may and may not depend on."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.inference.cpu_layout import arrange
from affectgpt_jax.inference.engine import Engine, Prompts, Request, ends, programs
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.sampling import REFERENCE, Sampling
from affectgpt_jax.weights.initial import parameter_shapes
from tests.inference.clip_run import random_tree

VOCABULARY, ANSWER, BUCKET = 64, 12, 16
DECODER = DecoderConfig(
    vocab=VOCABULARY, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=48, lora=LoraConfig(rank=2)
)
STOP = ((62,), (39, 57))


@functools.cache
def small(**changes: Any) -> tuple[AffectGPT, Any]:
    """A model with pre-fusion, and random parameters large enough for answers to differ."""
    config = ModelConfig(vision_width=6, audio_width=10, absent=True, decoder=DECODER.model_copy(update=changes))
    model = AffectGPT(config)
    params = random_tree(parameter_shapes(model), seed=1)
    return model, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


@functools.cache
def arranged(**changes: Any) -> Any:
    """These parameters as runs are opened with them."""
    return arrange(small(**changes)[1])


def request(seed: int, length: int, number: int = 0) -> Request:
    """A prompt of random words, three of them soft tokens, sometimes without a face."""
    rng = np.random.default_rng([seed, length])
    soft = np.zeros((1, length), np.int32)
    soft[0, 1:4] = 1, 2, 3
    widths = {"face": 6, "audio": 10}
    prompt = Prompts(
        tokens=rng.integers(0, VOCABULARY, (1, length)).astype(np.int32),
        soft_index=soft,
        used=np.ones((1, length), bool),
        features={name: rng.normal(size=(1, 1, 8, width)).astype(np.float32) for name, width in widths.items()},
        present={"face": np.array([[seed % 3 > 0]]), "audio": np.ones((1, 1), bool)},
    )
    return Request(prompt, number)


def engine(
    rows: int, bucket: int = BUCKET, stop: Any = STOP, sampling: Sampling | None = None, **changes: Any
) -> Engine:
    model, _ = small(**changes)
    return Engine(
        model, arranged(**changes), rows=rows, max_new=ANSWER, stop=stop, length=lambda n: -(-n // bucket) * bucket,
        **({} if sampling is None else {"sampling": sampling}),
    )  # fmt: skip


def answers(made: Engine, asked: Sequence[Request]) -> list[list[int]]:
    found = dict(made.run(asked))
    return [found[i] for i in range(len(asked))]


@functools.cache
def _forward() -> Any:
    model, params = small()

    def logits(tokens: Any, soft_index: Any, features: Any, present: Any) -> Any:
        embeds = model.apply({"params": params}, tokens, soft_index, features, present, method="inputs_embeds")
        positions = jnp.arange(tokens.shape[1])[None]

        def read(module: AffectGPT) -> Any:
            return module.decoder.logits(module.decoder(embeds, positions, jnp.ones_like(tokens), None))

        return model.apply({"params": params}, method=read)

    return jax.jit(logits)


def step_by_step(asked: Request, stop: Any = STOP) -> tuple[list[int], list[float]]:
    """The answer by the full forward pass over everything before each token; and how clear each choice was."""
    prompt, ids, margins = asked.prompt, [], []
    length = prompt.tokens.shape[1]
    tokens = np.zeros((1, length + ANSWER), np.int32)
    tokens[:, :length] = prompt.tokens
    soft = np.zeros_like(tokens)
    soft[:, :length] = prompt.soft_index
    while len(ids) < ANSWER and not any(tuple(ids[-len(end) :]) == end for end in stop):
        # What comes after is not looked at: one compiled length for each prompt.
        found = np.asarray(_forward()(tokens, soft, prompt.features, prompt.present))[0, length + len(ids) - 1]
        best = np.sort(found)[-2:]
        margins.append(float(best[1] - best[0]))
        tokens[0, length + len(ids)] = np.argmax(found)
        ids.append(int(np.argmax(found)))
    return ids, margins


POOL = [request(seed, length) for seed, length in zip(range(24), [5, 9, 16, 12, 7, 15] * 4, strict=True)]


@functools.cache
def reference(bucket: int = BUCKET) -> list[list[int]]:
    """Each answer of the pool by an engine of four rows that has nothing else to do."""
    made = engine(4, bucket)
    return [answers(made, [one])[0] for one in POOL]


def test_answers_are_those_of_the_full_forward_pass() -> None:
    expected = [step_by_step(one)[0] for one in POOL]
    assert reference() == expected
    assert len({tuple(ids) for ids in expected}) > 12
    lengths = [len(ids) for ids in expected]
    assert min(lengths) < 4  # some stop early, and their rows are filled again
    assert lengths.count(ANSWER) > 3


def test_stacked_layers_answer_as_those_that_lie_apart() -> None:
    """Training's validation has them stacked."""
    model, params = small()
    made = Engine(model, params, rows=4, max_new=ANSWER, stop=STOP, length=lambda n: -(-n // BUCKET) * BUCKET)
    assert answers(made, POOL) == reference()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=20))
def test_company_changes_nothing(chosen: list[int]) -> None:
    """Whatever neighbours a row has, in whatever order rows are filled again."""
    found = answers(engine(4), [POOL[i] for i in chosen])
    assert found == [reference()[i] for i in chosen]


def test_not_a_bit_of_a_row_depends_on_its_company() -> None:
    """The cache itself: the same prompt in another row, beside others, taken in while they were at work."""
    made, steps = engine(4), 5
    params = small()[1]
    work = programs(made._settings._replace(prompt=BUCKET), None)

    def kept(neighbours: Sequence[Request], row: int) -> list[np.ndarray]:
        """Keys and values of a row, of the prompt and of what was read since."""
        state = work.start()
        others = [other for other in range(4) if other != row]
        for one, other in zip(neighbours, others, strict=False):
            state = made._admit(work, state, [one], [other], BUCKET)
            state = work.decode(params, state, np.int32(2), np.int32(5))
        state = made._admit(work, state, [POOL[2]], [row], BUCKET)
        state = work.decode(params, state, np.int32(steps), np.int32(5))
        layers = state.cache.layers
        read = [np.asarray(x)[row, :, :steps] for layer in layers for x in layer.answer]
        return read + [np.asarray(x)[row, :, :12] for layer in layers for x in layer.prompt]

    alone = kept([], 0)
    assert all(np.any(x != 0) for x in alone)
    for row, neighbours in ((0, POOL[3:6]), (3, POOL[:1]), (1, POOL[6:9])):
        for own, other in zip(alone, kept(neighbours, row), strict=True):
            np.testing.assert_array_equal(own, other)


def test_another_bucket_gives_the_same_ids_where_the_choice_is_clear() -> None:
    others = reference(bucket=40)
    compared = 0
    for one, ours, theirs in zip(POOL, reference(), others, strict=True):
        clear = next((i for i, margin in enumerate(step_by_step(one)[1]) if margin <= 1e-3), ANSWER)
        assert ours[:clear] == theirs[:clear]
        compared += clear
    assert compared > 80


@pytest.mark.parametrize("how", [REFERENCE, Sampling(temperature=0.7, repetition_penalty=1.2, penalise_prompt=True)])
def test_draws_depend_on_the_number_alone(how: Sampling) -> None:
    numbered = [one._replace(number=i) for i, one in enumerate(POOL[:10])]
    together = answers(engine(4, sampling=how), numbered)
    alone = [answers(engine(4, sampling=how), [one])[0] for one in numbered]
    assert together == alone
    again = answers(engine(4, sampling=how), [one._replace(number=one.number + 100) for one in numbered])
    assert again != together
    assert answers(engine(4, sampling=how), list(reversed(numbered))) == together[::-1]


def test_a_stream_gives_the_answer_token_by_token() -> None:
    made = engine(4)
    for one, expected in zip(POOL[:6], reference(), strict=False):
        assert list(made.stream(one)) == expected
    first = made.stream(POOL[0])
    assert next(first) == reference()[0][0]


def test_no_program_is_compiled_twice() -> None:
    made = engine(4)
    answers(made, POOL)
    work = programs(made._settings._replace(prompt=BUCKET), None)
    counts = [function._cache_size() for function in work]
    answers(made, POOL[::-1])
    list(made.stream(POOL[0]))
    assert [function._cache_size() for function in work] == counts


def test_stop_sequences_end_where_they_end() -> None:
    stop = ((7,), (3, 11))
    ids = jnp.array([[5, 3, 11, 0], [3, 11, 5, 0], [7, 0, 0, 0], [1, 1, 1, 7]])
    assert ends(ids, jnp.array([3, 3, 1, 4]), stop).tolist() == [True, False, True, True]
    assert ends(ids, jnp.array([2, 2, 1, 3]), stop).tolist() == [False, True, True, False]
    assert not ends(ids, jnp.array([0, 0, 0, 0]), ((1,), (1, 2, 3, 4, 5))).any()


def test_a_rounded_cache_says_nearly_the_same() -> None:
    """Keys and values as int8: logits off by less than a hundredth of their spread, most answers the same."""
    found = answers(engine(4, cache="int8"), POOL)
    same = [sum(a == b for a, b in zip(ours, theirs, strict=False)) for ours, theirs in zip(found, reference())]
    assert sum(same) > 0.8 * sum(map(len, reference()))
