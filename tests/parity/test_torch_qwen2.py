"""The decoder against Hugging Face's Qwen2 and PEFT's adapters with random weights; packing against no packing."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import LINEARS, DecoderConfig, LoraConfig, ModelConfig, SoftTokens
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.inference.engine import Prompts
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.training.step import gradients
from affectgpt_jax.weights.files import SafetensorsFolder, read_config, write_folder
from affectgpt_jax.weights.networks import DECODER, MODEL, TRAINED
from affectgpt_jax.weights.table import nest, paths, read_tree, write_tree
from affectgpt_jax.weights.trainable import split
from tests.inference.engines import generate
from tests.parity.torch_models import as_torch, randomise, saved, shapes, torch, transformers, uniform

peft = pytest.importorskip("peft")

EXACT = {"atol": 1e-5, "rtol": 1e-5}
COMPOSITE = {"atol": 1e-4, "rtol": 0}

VOCAB = 61
SEQUENCES = tuple(np.random.default_rng(i).integers(0, VOCAB, length) for i, length in enumerate((9, 14, 6)))


class Case(NamedTuple):
    """A decoder and its adapters."""

    sizes: dict[str, Any]
    lora: LoraConfig
    old_rope: bool
    """Spell the rotary base in config.json as versions before 5 did."""


CASES = {
    "untied": Case(
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": False},
        LoraConfig(rank=3, alpha=12.0, targets=LINEARS),
        old_rope=False,
    ),
    "tied": Case(
        {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1, "tie_word_embeddings": True},
        LoraConfig(rank=2, alpha=1.0, targets=("v_proj", "down_proj")),
        old_rope=True,
    ),
}


def oracle(case: Case) -> Any:
    config = transformers.Qwen2Config(
        vocab_size=VOCAB,
        num_hidden_layers=2,
        intermediate_size=72,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
        **case.sizes,
    )
    return randomise(transformers.Qwen2ForCausalLM(config), seed=4)


def saved_oracle(case: Case, folder: Path) -> tuple[Any, dict[str, Any], SafetensorsFolder]:
    model = oracle(case)
    config, tensors = saved(model, folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    if case.old_rope:
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        assert "rope_theta" not in config
    return model, read_config(folder), tensors


def text_model(config: dict[str, Any], tensors: Any, lora: LoraConfig) -> tuple[AffectGPT, Any, Any]:
    """Our model without modalities, its base parameters, and the shapes of its adapters."""
    model = AffectGPT(ModelConfig(mode="textonly", decoder=DecoderConfig.from_hf(config, lora=lora)))
    abstract = paths(shapes(model, method="initialise"))
    base = {path: leaf for path, leaf in abstract.items() if path.startswith("decoder") and "lora" not in path}
    adapters = {path: leaf for path, leaf in abstract.items() if "lora" in path}
    return model, jax.tree.map(jnp.asarray, read_tree(DECODER, nest(base), tensors, "qwen2")), nest(adapters)


def text_batch(rows: list[list[np.ndarray]]) -> Batch:
    """Rows of one or more token sequences; every token but a sequence's first is a target."""
    length = max(sum(map(len, row)) for row in rows)
    shape = (len(rows), length)
    tokens, segments, positions, places, ids = (np.zeros(shape, np.int32) for _ in range(5))
    weights = np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        start, target = 0, 0
        for number, sequence in enumerate(row, 1):
            size = len(sequence)
            here, there = slice(start, start + size), slice(target, target + size - 1)
            tokens[r, here], segments[r, here], positions[r, here] = sequence, number, np.arange(size)
            places[r, there], ids[r, there] = np.arange(start, start + size - 1), sequence[1:]
            weights[r, there] = 1.0
            start, target = start + size, target + size - 1
    return Batch(tokens, segments, positions, np.zeros(shape, np.int32), places, ids, weights, {}, {})


SEPARATE = text_batch([[sequence] for sequence in SEQUENCES])
PACKED = text_batch([list(SEQUENCES)])


def padded(sequences: tuple[np.ndarray, ...], *, left: bool) -> tuple[Any, Any]:
    """Ids and attention mask for torch."""
    length = max(map(len, sequences))
    ids, mask = np.zeros((2, len(sequences), length), np.int64)
    for row, sequence in enumerate(sequences):
        where = slice(length - len(sequence), None) if left else slice(len(sequence))
        ids[row, where], mask[row, where] = sequence, 1
    return as_torch(ids), as_torch(mask)


def with_adapters(model: Any, lora: LoraConfig) -> Any:
    """PEFT's adapters on the linear maps, both matrices at random."""
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters(wrapped).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def adapters(wrapped: Any) -> dict[str, Any]:
    """PEFT's parameters under the names that the reference's checkpoints give them."""
    return {f"llama_model.{name}": p for name, p in wrapped.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_gradients(name: str, tmp_path: Path) -> None:
    """Through a sharded folder: the base model's logits, then loss and adapter gradients, packed and not."""
    case = CASES[name]
    theirs, config, tensors = saved_oracle(case, tmp_path)
    model, base, abstract = text_model(config, tensors, case.lora)
    assert model.config.decoder.rope_theta == 500.0
    assert model.config.decoder.tied_head == case.sizes["tie_word_embeddings"]
    assert ("head" in base["decoder"]) != model.config.decoder.tied_head

    ids, mask = padded(SEQUENCES, left=False)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits
    plain = AffectGPT(ModelConfig(mode="textonly", decoder=DecoderConfig.from_hf(config, lora=LoraConfig(rank=0))))
    logits = jax.jit(lambda p, b: plain.apply({"params": p}, b, method="logits"))(base, SEPARATE)
    np.testing.assert_allclose(logits[SEPARATE.segment_ids > 0], expected[mask > 0], **COMPOSITE)

    wrapped = with_adapters(theirs, case.lora)
    loss = wrapped(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss.backward()
    values = {name: p.detach().numpy() for name, p in adapters(wrapped).items()}
    trainable = read_tree(TRAINED, abstract, values, "peft")
    found = {}
    for title, batch in (("separate", SEPARATE), ("packed", PACKED)):
        grads, sums = jax.jit(lambda t, b: gradients(model, t, base, b, None))(trainable, batch)
        np.testing.assert_allclose(sums.loss / sums.weight, loss.item(), **EXACT)
        assert sums.tokens == sum(len(sequence) - 1 for sequence in SEQUENCES)
        found[title] = dict(write_tree(TRAINED, jax.tree.map(lambda g: g / sums.weight, grads)))
        assert set(found[title]) == set(values)
        for key, parameter in adapters(wrapped).items():
            largest = float(parameter.grad.abs().max())
            np.testing.assert_allclose(found[title][key], parameter.grad, atol=1e-4 * largest, rtol=0, err_msg=key)
    for key, grad in found["separate"].items():
        assert np.abs(grad).max() > 1e-3
        np.testing.assert_allclose(found["packed"][key], grad, err_msg=key, **EXACT)


def prompts(sequences: tuple[np.ndarray, ...], pad: int, filler: int) -> Prompts:
    """Right-padded prompts; what stands on the padding must not matter."""
    length = max(map(len, sequences)) + pad
    tokens = np.full((len(sequences), length), filler, np.int32)
    used = np.zeros(tokens.shape, bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)], used[row, : len(sequence)] = sequence, True
    return Prompts(tokens, np.zeros_like(tokens), used, {}, {})


@pytest.mark.parametrize("name", CASES)
def test_greedy_generation(name: str, tmp_path: Path) -> None:
    """The cache gives Hugging Face's answers, in a batch padded on either side as alone."""
    case = CASES[name]
    theirs, config, tensors = saved_oracle(case, tmp_path)
    model, base, _ = text_model(config, tensors, LoraConfig(rank=0))
    ids, mask = padded(SEQUENCES, left=True)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        expected = theirs.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].numpy()
    assert expected.shape == (3, 12)
    assert len(np.unique(expected)) >= 8

    together = generate(model, base, prompts(SEQUENCES, 4, filler=17), 12)
    assert together == expected.tolist()
    alone = generate(model, base, prompts(SEQUENCES[2:], 0, filler=0), 12)
    assert alone == expected[2:].tolist()


def test_exported_folder_opens(tmp_path: Path) -> None:
    """What we write, Hugging Face reads, bit for bit; a head stored beside a tied embedding is left alone."""
    for name, case in CASES.items():
        theirs, config, tensors = saved_oracle(case, tmp_path / name)
        _, base, _ = text_model(config, tensors, case.lora)
        exported = dict(write_tree(DECODER, base))
        assert set(exported) == set(tensors)
        write_folder(tmp_path / f"{name}_ours", config, exported)
        again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / f"{name}_ours")
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), key
    doubled = exported | {"lm_head.weight": exported["model.embed_tokens.weight"]}
    _, base_again, _ = text_model(config, doubled, case.lora)
    assert jax.tree.all(jax.tree.map(np.array_equal, base, base_again))


def test_packed_soft_tokens() -> None:
    """Two samples in one row give the loss and all gradients of two rows, soft tokens of all kinds among the words."""
    config = ModelConfig(
        mode="multiface_audio_face_text",
        vision_width=10,
        audio_width=14,
        prefusion="attention",
        video="attention",
        audio="mean",
        tokens=SoftTokens(multi=2, audio=3, video=2),
        decoder=DecoderConfig(
            vocab=VOCAB, width=24, layers=2, heads=3, kv_heads=1, head_dim=8, mlp_width=32, lora=LoraConfig(rank=2)
        ),
    )
    model = AffectGPT(config)
    random = np.random.default_rng(6)
    abstract = shapes(model, method="initialise")
    params = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.2, x.shape), jnp.float32), abstract)
    trainable, frozen = split(config, params, ("^fusion/", "lora"))

    separate, packed = SEPARATE, PACKED
    features = {"face": uniform(7, 3, 1, 8, 10), "audio": uniform(8, 3, 1, 5, 14)}
    present = {stream: np.ones((3, 1), bool) for stream in features}
    # Seven soft tokens a sample stand at positions 1..7 of the two sequences that are long enough.
    soft = np.zeros_like(separate.tokens)
    soft[:2, 1:8] = np.arange(1, 8)
    row = np.concatenate([soft[i, : len(s)] + 7 * i * (soft[i, : len(s)] > 0) for i, s in enumerate(SEQUENCES)])
    separate = separate._replace(soft_index=soft, features=features, present=present)
    packed = packed._replace(
        soft_index=row[None],
        features={stream: x.swapaxes(0, 1) for stream, x in features.items()},
        present={stream: x.swapaxes(0, 1) for stream, x in present.items()},
    )
    compute = jax.jit(lambda batch: gradients(model, trainable, frozen, batch, None))
    (expected, one), (found, other) = compute(separate), compute(packed)
    assert one.tokens == other.tokens
    np.testing.assert_allclose(other.loss / other.weight, one.loss / one.weight, **EXACT)
    names = dict(write_tree(MODEL, expected))
    for key, grad in write_tree(MODEL, found):
        np.testing.assert_allclose(grad / other.weight, names[key] / one.weight, err_msg=key, **EXACT)
