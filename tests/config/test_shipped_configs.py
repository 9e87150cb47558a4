"""The configs of the paper's settings: their commands, their networks at full size, their hyper-parameters."""

import json
import re
import shlex
from functools import cache
from math import prod
from typing import Any

import jax
import numpy as np
import pytest

from affectgpt_jax.cli import COMMANDS
from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.config.loading import config_folder
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig
from affectgpt_jax.data.plan import Limits, Plan
from affectgpt_jax.data.prompts import needs
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.training.optimizer import make_schedule
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.networks import DECODER, TRAINED
from affectgpt_jax.weights.table import entries, nest, paths
from affectgpt_jax.weights.trainable import split
from tests.conftest import reference_folder

SHIPPED = sorted(path.stem for path in config_folder().glob("*.yaml"))
PAPER = [name for name in SHIPPED if name.startswith("affectgpt_")]
FACE = "affectgpt_qwen2.5_7b_face"
QFORMER = "affectgpt_qwen2.5_7b_qformer"

# What Hugging Face counts in the published models (a tied head once).
PUBLISHED = {"0.5b": 494_032_768, "1.5b": 1_543_714_304, "3b": 3_085_938_688, "7b": 7_615_616_512}
TRAINED_COUNTS = {FACE: (412, 57_168_644), QFORMER: (572, 111_865_856)}
GOLDEN = {FACE: "shipped_bestfusion_attention", QFORMER: "all_qformer"}


@cache
def built(name: str) -> tuple[RunConfig, dict[str, Any], dict[str, Any]]:
    """A config with its network's parameters as shapes: those that `train.trainable` names, and the others."""
    config = load_config(name)
    flat = paths(parameter_shapes(AffectGPT(config.model)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in flat.values())
    named = {path for path in flat if any(re.search(pattern, path) for pattern in config.train.trainable)}
    trained, base = ({p: leaf for p, leaf in flat.items() if (p in named) == wanted} for wanted in (True, False))
    return config, trained, base


def size(tree: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def linear_maps(c: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear map of a layer."""
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "q_proj": (c.width, queries), "k_proj": (c.width, keys), "v_proj": (c.width, keys),
        "o_proj": (queries, c.width), "gate_proj": (c.width, c.mlp_width), "up_proj": (c.width, c.mlp_width),
        "down_proj": (c.mlp_width, c.width),
    }  # fmt: skip


def base_size(c: DecoderConfig) -> int:
    """Parameters of a Qwen2 decoder: embedding, head, layers with two norms and biases on q, k and v, final norm."""
    maps = linear_maps(c)
    layer = sum(map(prod, maps.values())) + sum(maps[name][1] for name in ("q_proj", "k_proj", "v_proj")) + 2 * c.width
    return (1 if c.tied_head else 2) * c.vocab * c.width + c.layers * layer + c.width


def adapter_size(c: DecoderConfig) -> int:
    """Parameters of the low-rank adapters."""
    return c.layers * c.lora.rank * sum(sum(linear_maps(c)[name]) for name in c.lora.targets)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_network_is_built_and_counted(name: str) -> None:
    config, trained, base = built(name)
    decoder = {path: leaf for path, leaf in (trained | base).items() if path.startswith("decoder/")}
    adapters = {path: leaf for path, leaf in decoder.items() if "/lora_" in path}
    assert size(adapters) == adapter_size(config.model.decoder)
    assert size(decoder) - size(adapters) == base_size(config.model.decoder)


@pytest.mark.parametrize("name", PAPER)
def test_sizes_are_the_published_ones(name: str) -> None:
    config, trained, base = built(name)
    letters = name.split("_")[2]
    decoder = config.model.decoder
    assert decoder.heads * decoder.head_dim == decoder.width
    assert decoder.head_dim == (64 if letters == "0.5b" else 128)
    assert (decoder.rope_theta, decoder.norm_eps, decoder.tied_head) == (1e6, 1e-6, letters != "7b")
    assert size(base) == base_size(decoder) == PUBLISHED[letters]
    assert set(paths(nest(base))) == {entry.path for _, entry in entries(DECODER, nest(base))}
    if letters == "7b":
        assert adapter_size(decoder) == 40_370_176  # paper, table 8
        same = QFORMER if name == QFORMER else FACE
        assert (len(dict(entries(TRAINED, nest(trained)))), size(trained)) == TRAINED_COUNTS[same]
    # Of what the patterns name, only the projection of images has no part in the loss.
    learned, frozen = split(config.model, nest(trained | base), config.train.trainable)
    assert set(trained) - set(paths(learned)) == {"fusion/image/proj/kernel", "fusion/image/proj/bias"}
    assert size(learned) + size(frozen) == size(trained) + size(base)


@pytest.mark.parametrize("name", GOLDEN)
def test_trained_tensors_are_the_references(name: str) -> None:
    folder = reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "fullsize"
    facts = json.loads((folder / f"trainable_{GOLDEN[name]}.json").read_text())
    config, trained, base = built(name)
    model, tokens = config.model, config.model.tokens
    assert facts["setting"] == {
        "multi": model.prefusion, "video": model.video, "audio": model.audio, "image": model.image,
        "nm": tokens.multi, "nv": tokens.video, "na": tokens.audio, "ni": tokens.image,
    }  # fmt: skip
    assert (facts["lora_r"], facts["lora_alpha"]) == (model.decoder.lora.rank, model.decoder.lora.alpha)
    expected = {row["name"]: tuple(row["shape"]) for row in facts["trainable"]}
    found = {theirs: entry.row.their_shape(entry.shape) for theirs, entry in entries(TRAINED, nest(trained))}
    assert found == expected
    assert size(base) == facts["frozen_parameters"]["llm"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_line_says_how_to_run_it(name: str) -> None:
    first = (config_folder() / f"{name}.yaml").read_text().splitlines()[0]
    assert re.match(rf"# .*\b(affectgpt train|make) {re.escape(name)}( |$)", first), first


@pytest.mark.parametrize("name", PAPER)
def test_the_commands_on_top_are_the_files_own(name: str) -> None:
    header = re.match(r"(#.*\n)+", (config_folder() / f"{name}.yaml").read_text())
    assert header is not None
    lines = header.group().replace("\\\n#", "").splitlines()
    commands = [shlex.split(line[1:]) for line in lines if line.startswith("# affectgpt ")]
    assert commands[0][1] == "train"
    for program, command, config, *overrides in commands:
        assert (program, config) == ("affectgpt", name)
        assert command in COMMANDS
        assert "SHARDS" in load_config(config, overrides).data.shards
    _, _, _, *overrides = commands[0]
    language = load_config(name, overrides).weights.language
    assert language is not None
    assert language.lower().endswith(f"qwen2.5-{name.split('_')[2]}-instruct")


def test_settings_are_those_of_the_reference() -> None:
    config = load_config(FACE)
    assert config.compat == "strict"
    assert config.model.decoder.lora == LoraConfig(rank=16, alpha=32.0, dropout=0.05)
    assert config.model.qformer.dropout == 0.1
    assert (config.model.decoder.dtype, config.model.decoder.remat) == ("bfloat16", "names")
    data, train = config.data, config.train
    assert set(data.label_types) == {"ovlabel", "description"}
    assert len(set(data.label_weights)) == 1
    assert (data.max_length, train.seed, train.accumulate, train.dropout) == (1024, 42, 1, True)
    assert train.steps * train.rows * data.row_samples == 60 * 5000 * 3
    optimizer = train.optimizer
    assert (optimizer.weight_decay, optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.05, 0.9, 0.999, 1e-8)
    assert optimizer.clip_norm is None
    rates = jax.vmap(make_schedule(optimizer, train.steps))(np.array([0, 2500, 5000, 100_000, 299_999]))
    np.testing.assert_allclose(rates, [1e-6, 5.5e-6, 1e-5, 1e-5, 1e-5], rtol=1e-6)


def test_the_others_differ_in_the_network_only() -> None:
    face = load_config(FACE)
    for name in PAPER:
        config = load_config(name)
        assert config.name == name
        # Losses to compare with are those of the authors' network.
        train = face.train.model_copy(update={"expected": face.train.expected if "_7b_" in name else ()})
        assert (config.data, config.train, config.mesh, config.compat) == (face.data, train, face.mesh, face.compat)
        kept = config.model.decoder.lora, config.model.decoder.dtype, config.model.decoder.remat
        assert kept == (face.model.decoder.lora, face.model.decoder.dtype, face.model.decoder.remat)
        picture = "frame" if name.endswith("_frame") else "face"
        assert needs(config.model.mode).streams == (picture, "audio")
        assert needs(config.model.mode).fused == picture
        assert config.prepare.streams == (f"{picture}@8", "audio@8")


def test_a_row_is_the_references_batch() -> None:
    """Three samples as the shuffle brings them, not three of like length."""
    config = load_config(FACE)
    data = config.data
    count = 3000
    rng = np.random.default_rng(0)
    # A label answer makes about 120 tokens, a description about 300.
    targets = np.stack([rng.integers(9, 14, count), rng.normal(190, 50, count).clip(60, 400).astype(int)])
    plan = Plan(
        tokens=targets + 110,
        targets=targets,
        limits=Limits(data.row_length, data.row_targets, data.row_samples),
        step_rows=config.train.rows,
        seed=config.train.seed,
        weights=data.label_weights,
        window=data.window,
    )
    rows = plan.epoch(0)
    assert set(np.diff(rows.starts)) == {3}
    assert plan.epoch_steps(0) == count // 3
    # Of three drawn evenly from two kinds, three in four rows hold both.
    mixed = np.mean([len(set(row)) == 2 for row in rows.types.reshape(-1, 3)])
    assert 0.7 < mixed < 0.8
