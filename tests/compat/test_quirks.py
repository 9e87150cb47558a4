"""Quirks of the reference that no other test shows, and `docs/compatibility.md`, which says where each one is shown."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config import load_config
from affectgpt_jax.config.networks import LoraConfig, QFormerConfig
from affectgpt_jax.config.run import Compat, OptimizerConfig
from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.media import read_audio
from affectgpt_jax.data.prompts import END_OF_TEXT
from affectgpt_jax.data.shard_schema import TextRecord, parse_stream
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.data.tokens import tokenise
from affectgpt_jax.inference import answering
from affectgpt_jax.inference.answering import Answer, Answerer, Query
from affectgpt_jax.inference.engine import Request
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.qformer import QFormer
from affectgpt_jax.nn.linear import Dense
from affectgpt_jax.ops.sampling import REFERENCE
from affectgpt_jax.training import data
from affectgpt_jax.training.optimizer import make_schedule
from affectgpt_jax.weights.initial import base_shapes, parameter_shapes, resolve
from affectgpt_jax.weights.networks import TRAINED
from affectgpt_jax.weights.pth import read_pth
from affectgpt_jax.weights.table import nest, paths, read_tree, write_tree
from tests.conftest import ROOT, reference_folder
from tests.media_files import write_wav
from tests.tiny_run import make_tiny, tiny_config

TABLE = ROOT / "docs" / "compatibility.md"
QUIRKS = 53
MODES: tuple[Compat, ...] = ("reference", "strict")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


# The table


def names_defined(path: Path) -> set[str]:
    """Names of the tests in a file."""
    nodes = ast.parse(path.read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_table_has_every_quirk_and_names_tests_that_exist() -> None:
    lines = [line for line in TABLE.read_text().splitlines() if re.match(r"\| *\d+ *\|", line)]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert [int(row[0]) for row in rows] == list(range(1, QUIRKS + 1))
    for number, *cells, shown in rows:
        assert len(cells) == 3, number
        assert all(cell.strip() for cell in cells), number
        named = re.findall(r"`(tests/[^`]+)`", shown)
        assert named or re.search("(?i)not ported|not yet", "".join(cells)), number
        for test in named:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file(), test
            assert name in names_defined(ROOT / file), test


# Sound


def test_sound_is_prepared_sample_by_sample_without_the_means_of_its_clips(tmp_path: Path) -> None:
    """Quirks 1, 2, 4: what the towers read of three channels with an offset that drifts."""
    rng = np.random.default_rng(0)
    drift = np.linspace(-0.3, 0.3, 64_000)
    path = write_wav(tmp_path / "a.wav", drift + rng.uniform(-0.1, 0.1, (3, 64_000)))
    found = read_modality(ClipFiles(audio=path), parse_stream("audio@8"))
    mono = read_audio(path).samples.mean(axis=0)
    clips = np.stack([mono[int(i * 2 / 7 * 16_000) :][:32_000] for i in range(8)])
    assert np.abs(clips.mean(axis=1)).max() > 0.1
    clips -= clips.mean(axis=1, keepdims=True)
    assert found is not None
    np.testing.assert_allclose(found, clips / np.sqrt(clips.var() + 1e-7), atol=2e-5)


# Networks


def test_a_qformer_starts_from_small_normals() -> None:
    """Quirk 17: N(0, 0.02) throughout, biases 0, norms 1."""
    net = QFormer(QFormerConfig(width=96, heads=3, mlp_width=192), queries=32, table=40, feature_width=64)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"]
    for path, leaf in paths(params).items():
        last = path.rpartition("/")[2]
        if last == "bias":
            assert not np.any(leaf), path
        elif last == "scale":
            np.testing.assert_array_equal(leaf, 1.0, err_msg=path)
        else:
            assert abs(float(np.mean(leaf))) < 2e-3, path
            assert np.std(leaf) == pytest.approx(0.02, rel=0.05), path


def test_dropout_of_adapters_and_qformers() -> None:
    """Quirk 39: 0.05 before an adapter and nowhere else in the decoder, 0.1 inside a Q-Former; both only when asked."""
    assert (LoraConfig().dropout, QFormerConfig().dropout) == (0.05, 0.1)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 40)), jnp.float32)
    layer = Dense(24, lora=LoraConfig(rank=4, alpha=8.0, dropout=0.25))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    apply = jax.jit(lambda params, seed: layer.apply({"params": params}, x, seed))
    base = x @ params["kernel"] + params["bias"]
    whole = np.asarray(apply(params, None))
    np.testing.assert_allclose(whole, base + 2.0 * (x @ params["lora_a"]) @ params["lora_b"], rtol=1e-4, atol=1e-3)
    untrained = params | {"lora_b": jnp.zeros_like(params["lora_b"])}
    np.testing.assert_allclose(apply(untrained, jnp.uint32(1)), base, rtol=1e-5, atol=1e-4)
    # Over many masks the mean is the whole map's: what was dropped is made up for.
    masked = np.asarray(jax.vmap(apply, (None, 0))(params, jnp.arange(400, dtype=jnp.uint32)))
    assert np.all(np.std(masked, axis=0) > 0.1)
    error = (masked.mean(axis=0) - whole) / (masked.std(axis=0) / np.sqrt(len(masked)))
    assert np.mean(np.abs(error) < 3) > 0.98

    net = QFormer(QFormerConfig(width=12, heads=3, mlp_width=16), queries=3, table=8, feature_width=10)
    features = jnp.asarray(rng.normal(size=(2, 5, 10)), jnp.float32)
    variables = net.init(jax.random.key(0), features)
    run = jax.jit(lambda seed: net.apply(variables, features, seed))
    plain, first, second = run(None), run(jnp.uint32(1)), run(jnp.uint32(2))
    np.testing.assert_array_equal(first, run(jnp.uint32(1)))
    assert np.abs(plain - first).max() > 1e-2 < np.abs(first - second).max()


# Training


@pytest.mark.parametrize("compat", MODES)
def test_what_a_runs_compat_changes_in_its_batches(tiny: Path, compat: Compat) -> None:
    """Quirks 22 and 30: what the closing token may be attended by, and how question types are chosen."""
    config, tokenizer = resolve(tiny_config(tiny).model_copy(update={"compat": compat}))
    found = data.make_data(config, tokenizer, data.open_training_shards(config), lambda _: None)
    plan = found.plan

    kinds = np.zeros((4, plan.tokens.shape[1]), int)
    for epoch in range(4):
        rows = plan.epoch(epoch)
        kinds[epoch, rows.samples] = rows.types
    alternating = np.all(kinds[:-1] != kinds[1:])
    assert alternating == (compat == "strict")

    batch = next(data.make_batches(config, tokenizer, found, 0))
    closing = batch.tokens == tokenizer.eos
    assert closing.any()
    assert np.all((batch.segment_ids[closing] > 0) == (compat == "strict"))
    # It is a target either way.
    assert (batch.target_ids[batch.loss_weight > 0] == tokenizer.eos).sum() == closing.sum()


def test_samples_that_cannot_be_used_are_left_out_and_named(tiny: Path, tmp_path: Path) -> None:
    """Quirk 29: nothing takes their place."""
    config, tokenizer = resolve(tiny_config(tiny))
    texts = [
        TextRecord("whole", "train", "Well.", labels=("calm",), description="She is calm."),
        TextRecord("mute", "train", "Well.", labels=("calm",)),
        TextRecord("endless", "train", "Well.", labels=("calm",), description="She is calm. " * 200),
        TextRecord("unlabelled", "train", "Well.", description="She is calm."),
    ]
    found = tokenise(texts, data.make_asker(config, tokenizer), tmp_path)
    assert found.samples.tolist() == [0, 3]
    assert found.lengths.shape == found.targets.shape == (2, 2)
    assert [(rejected.name, rejected.reason.split(":")[0]) for rejected in found.rejected] == [
        ("mute", "has no description to learn"),
        ("endless", "too long"),
    ]


def test_the_strict_schedule_warms_up_once_and_ends_at_its_end() -> None:
    """Quirks 34 and 35, put right; under `reference` the same settings never warm up and rise again at the end."""
    settings: dict[str, Any] = {"epoch_steps": 50, "warmup_steps": 50, "warmup_start": 1e-6, "peak": 1e-4, "end": 1e-5}
    steps = 200
    rates = {
        schedule: np.asarray(
            jax.vmap(make_schedule(OptimizerConfig(**settings, schedule=schedule), steps))(np.arange(steps + 1))
        )
        for schedule in MODES
    }
    strict, reference = rates["strict"], rates["reference"]
    np.testing.assert_allclose(strict[:51], np.linspace(1e-6, 1e-4, 51), rtol=1e-5)
    assert np.all(np.diff(strict[50:]) < 0)
    np.testing.assert_allclose([strict[125], strict[-1]], [5.5e-5, 1e-5], rtol=1e-5)
    assert reference[0] > 1e-5 + 0.8 * (1e-4 - 1e-5)
    assert np.all(np.diff(reference[:150]) < 0)
    assert np.all(np.diff(reference[151:]) > 0)


def test_the_base_is_read_in_its_own_type_and_the_rest_in_float32() -> None:
    """Quirk 38."""
    config = load_config("affectgpt_qwen2.5_7b_face", ["weights.language=anywhere"])
    model = AffectGPT(config.model)
    base = paths(base_shapes(config, model))
    assert {str(leaf.dtype) for leaf in base.values()} == {"bfloat16"}
    rest = {path: leaf for path, leaf in paths(parameter_shapes(model)).items() if path not in base}
    assert {str(leaf.dtype) for leaf in rest.values()} == {"float32"}
    assert all(path.startswith("fusion/") or "/lora_" in path for path in rest)


def test_buffers_of_the_references_checkpoints_are_passed_over() -> None:
    """Quirk 41: what training saved, three steps after the weights we know."""
    folder = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "models"
    from tests.parity import goldens  # skips this whole file where there is none

    buffers = 0
    for path in sorted(folder.glob("*.pth")):
        g = goldens.golden(path.name.partition("_checkpoint")[0])
        expected = g.group("w/") | g.group("w3/")
        tensors = read_pth(path).tensors
        extra = set(tensors) - set(expected)
        assert all(name.endswith(".position_ids") for name in extra)
        buffers += len(extra)
        flat = paths(parameter_shapes(g.model))
        trained = nest({p: leaf for p, leaf in flat.items() if p.startswith("fusion/") or "/lora_" in p})
        found = dict(write_tree(TRAINED, read_tree(TRAINED, trained, tensors, str(path))))
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert buffers == 3


# Answers


@pytest.mark.parametrize("compat", MODES)
def test_what_a_runs_compat_changes_in_its_questions(
    tiny: Path, compat: Compat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quirks 45 and 49: the opening token, and the base model's own end of text."""
    config, tokenizer = resolve(tiny_config(tiny).model_copy(update={"compat": compat}))
    said = tokenizer.encode(f"calm.{END_OF_TEXT}")
    asked: list[Request] = []

    class Saying:
        def __init__(self, *_: Any, **__: Any) -> None:
            """Whatever it is given."""

        def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
            asked.extend(requests)
            yield 0, said

    monkeypatch.setattr(answering, "Engine", Saying)
    run = Run(Path("run"), config, tokenizer, AffectGPT(config.model), {}, 0)
    (answer,) = Answerer(run, batch=1, max_new=8)([Query("a", "Well.", "How does she feel?", {})])
    assert isinstance(answer, Answer)
    assert (asked[0].prompt.tokens[0, 0] == tokenizer.bos) == (compat == "strict")
    assert answer.text == ("calm." if compat == "strict" else f"calm.{END_OF_TEXT}")


def test_sampling_settings_and_end_tokens_are_the_references() -> None:
    """Quirk 46."""
    folder = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "text"
    filters = dict(json.loads((folder / "sampling_filter.json").read_text()))
    asked = json.loads((folder / "response_parsing.json").read_text())["qwen2.5"]["generate_kwargs"]
    assert (REFERENCE.top_k, REFERENCE.top_p) == (filters["TopKLogitsWarper"]["top_k"], asked["top_p"])
    assert (REFERENCE.temperature, REFERENCE.repetition_penalty) == (asked["temperature"], asked["repetition_penalty"])
    folder = reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers")
    assert set(open_tokenizer(folder / "qwen2.5").end_ids) == {151645, 151643}
