"""Greedy generation and sampling filters against the reference's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.inference.engine import Prompts, ends
from affectgpt_jax.ops.sampling import filter_logits
from tests.inference.engines import fresh_cache, generate
from tests.parity import goldens

pytestmark = pytest.mark.slow


def prompt(g, index: int, pad: int) -> Prompts:
    """Prompt of one golden sample, padded by `pad`; encoders as the reference ran them, on this sample alone."""
    ids = g.data[f"gen{index}/input_ids"][None]
    used = np.ones(ids.shape, bool)
    features = {}
    for stream, x in goldens.encoder_features(g).items():
        if stream == "audio":
            clips = g.data["in/raw_audios"][index, :, 0]
            clips = (clips - clips.mean()) / np.sqrt(clips.var() + 1e-7)
            features[stream] = np.asarray(goldens.encode_audio(clips))[None, None]
        else:
            features[stream] = np.asarray(x[index])[None, None]
    return Prompts(
        tokens=np.pad(ids, ((0, 0), (0, pad))).astype(np.int32),
        soft_index=np.pad(goldens.soft_index(g, ids), ((0, 0), (0, pad))),
        used=np.pad(used, ((0, 0), (0, pad))),
        features=features,
        present={stream: np.ones(x.shape[:2], bool) for stream, x in features.items()},
    )


def stack(prompts: list[Prompts]) -> Prompts:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *prompts)


@pytest.mark.parametrize("name", goldens.settings())
def test_greedy(name):
    """Each sample alone and all in one padded batch give the reference's ids, with and without the stop rule."""
    g = goldens.golden(name)
    params = goldens.model_params(g)
    count = sum(key.endswith("/ids_20") for key in g.data)
    lengths = [len(g.data[f"gen{i}/input_ids"]) for i in range(count)]
    batch = stack([prompt(g, i, max(lengths) + 3 - lengths[i]) for i in range(count)])

    steps = len(g.data["gen0/ids_20"])

    @jax.jit
    def prefill(b):
        inputs = b.tokens, b.soft_index, b.features, b.present
        embeds = g.model.apply({"params": params}, *inputs, method="inputs_embeds")
        return embeds, *g.model.apply({"params": params}, *b, method="prefill")

    embeds, logits, keys = prefill(batch)
    cache = fresh_cache(g.model, keys, batch.used, steps)
    for i in range(count):
        expected = g.data[f"gen{i}/inputs_embeds"][0]
        np.testing.assert_allclose(embeds[i, : lengths[i]], expected, atol=1e-4, rtol=1e-5)

    # The cache gives the logits of the full forward pass at every step.
    step = jax.jit(lambda *x: g.model.apply({"params": params}, *x, method="step"))
    for at in range(steps):
        if at:
            ids = jnp.asarray([g.data[f"gen{i}/ids_20"][at - 1] for i in range(count)], jnp.int32)
            logits, cache = step(ids, jnp.asarray(lengths, jnp.int32) + at - 1, cache)
        for i in range(count):
            np.testing.assert_allclose(logits[i], g.data[f"gen{i}/logits_20"][at], atol=2e-4, rtol=0)
            assert jnp.argmax(logits[i]) == g.data[f"gen{i}/ids_20"][at]

    # The reference stops at the stop sequences and at the end tokens of its generation config.
    end = open_tokenizer(goldens.MODELS / "tokenizer_tiny").end_ids
    stop = tuple(tuple(sequence) for sequence in [*g.facts["stop_ids"], *((token,) for token in end)])
    free = jnp.stack([jnp.asarray(g.data[f"gen{i}/ids_20"], jnp.int32) for i in range(count)])
    for i in range(count):
        expected = g.data[f"gen{i}/ids_with_stop"]
        stopped = [at for at in range(1, steps + 1) if bool(ends(free[i : i + 1], jnp.array([at]), stop)[0])]
        assert (stopped or [steps])[0] == len(expected)

    # The engine does all of this.
    answers = generate(g.model, params, batch, steps, stop=stop)
    assert answers == [g.data[f"gen{i}/ids_with_stop"].tolist() for i in range(count)]


def test_sampling_filter():
    folder = goldens.FOLDER / "text"
    filters = dict(json.loads((folder / "sampling_filter.json").read_text()))
    top_k, top_p = filters["TopKLogitsWarper"]["top_k"], filters["TopPLogitsWarper"]["top_p"]
    with np.load(folder / "sampling_filter.npz") as file:
        for key in file:
            if key.endswith("/logits"):
                found = jax.nn.softmax(filter_logits(jnp.asarray(file[key]), top_k, top_p), axis=-1)
                expected = file[key.replace("logits", "probabilities_after_filter")]
                np.testing.assert_array_equal(np.asarray(found) > 0, expected > 0)
                np.testing.assert_allclose(found, expected, atol=1e-6)
