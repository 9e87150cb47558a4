"""The modelling code that an exported folder carries, opened by transformers and compared with the reference."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import affectgpt_jax
from affectgpt_jax.config.networks import ModelConfig, SoftTokens
from affectgpt_jax.data.prompts import PLACEHOLDERS, needs
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.models.affectgpt import Fusion
from tests.parity import goldens

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CODE = Path(affectgpt_jax.__file__).parent / "exchange" / "remote"
NAMES = goldens.settings()

# The golden folder's README: float32 against float32.
ENCODER = {"atol": 2e-5, "rtol": 1e-5}
EMBEDS = {"atol": 1e-4, "rtol": 1e-5}
LOGITS = {"atol": 2e-4, "rtol": 0}

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


class Opened(NamedTuple):
    """A golden setting, and its exported folder as transformers opens it."""

    golden: goldens.Golden
    model: Any
    info: dict[str, Any]


def merged(trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The golden language model with the setting's adapters added: W + alpha / rank * B A."""
    tensors = dict(goldens.base_weights("qwen/"))
    for name, a in trained.items():
        if ".lora_A." in name:
            b = trained[name.replace(".lora_A.", ".lora_B.")]
            own = name.removeprefix("llama_model.base_model.model.").partition(".lora_A.")[0] + ".weight"
            tensors[own] = tensors[own] + goldens.LORA_ALPHA / a.shape[0] * (b @ a)
    return tensors


def fusion_of(c: ModelConfig) -> dict[str, Any]:
    wanted = needs(c.mode)
    return {"soft": wanted.soft, "fused": wanted.fused} | c.model_dump(exclude={"decoder"})


def config_of(g: goldens.Golden) -> dict[str, Any]:
    base = goldens.base_configs()
    modelling = "modeling_affectgpt.AffectGPTForConditionalGeneration"
    return {
        "architectures": ["AffectGPTForConditionalGeneration"],
        "model_type": "affectgpt",
        "auto_map": {"AutoConfig": "configuration_affectgpt.AffectGPTConfig", "AutoModelForCausalLM": modelling},
        "text_config": base["qwen"],
        "vision_config": base["clip"]["vision_config"],
        "audio_config": base["hubert"],
        "fusion": fusion_of(g.config),
        "placeholders": dict(open_tokenizer(goldens.MODELS / "tokenizer_tiny").placeholders),
    }


def write(folder: Path, g: goldens.Golden, trained: dict[str, np.ndarray]) -> None:
    """An exported folder of a golden setting."""
    folder.mkdir()
    for file in CODE.glob("*.py"):
        shutil.copy(file, folder)
    vision = {name: x for name, x in goldens.base_weights("clip/").items() if name.startswith("vis")}
    spellings = (".weight_g", ".weight_v")
    audio = {name: x for name, x in goldens.base_weights("hubert/").items() if not name.endswith(spellings)}
    fusion = {name: x for name, x in trained.items() if not name.startswith("llama_model.")}
    parts = {"language_model": merged(trained), "vision_tower": vision, "audio_tower": audio, "fusion": fusion}
    tensors = {f"{part}.{name}": np.ascontiguousarray(x) for part, own in parts.items() for name, x in own.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(g)))
    settings = {"do_sample": False, "max_new_tokens": len(g.data["gen0/ids_20"]), "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))


def load(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny models want one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=NAMES)
def opened(request, tmp_path_factory):
    g = goldens.golden(request.param)
    folder = tmp_path_factory.mktemp("export") / g.name
    write(folder, g, g.group("w/"))
    return Opened(g, *load(folder))


def tensor(x: np.ndarray) -> Any:
    return torch.from_numpy(np.array(x))


def frames(g: goldens.Golden) -> dict[str, Any]:
    """Pixel values [b, t, 3, height, width] by stream, as the reference's processor left them."""
    found = {}
    for stream in ("face", "frame", "image"):
        if f"out/pixel_values_{stream}" in g.data:
            pixels = tensor(g.data[f"out/pixel_values_{stream}"])
            found[stream] = pixels.unflatten(0, (len(g.data["in/input_ids"]), -1))
    return found


def media(g: goldens.Golden) -> dict[str, Any]:
    """Encoder inputs of the golden batch, whose clips the reference normalised all together."""
    pixels = frames(g)
    inputs = {"pixel_values": pixels if len(pixels) > 1 else next(iter(pixels.values()))}
    if "out/hubert_input_values" in g.data:
        clips = tensor(g.data["out/hubert_input_values"])
        inputs["input_values"] = clips.unflatten(0, (len(g.data["in/input_ids"]), -1))
    return inputs


def reference_features(g: goldens.Golden) -> dict[str, Any]:
    return {stream: tensor(x) for stream, x in goldens.encoder_features(g).items()}


def test_loads_strictly(opened):
    """Every tensor of the folder has its place, and every parameter comes from the folder."""
    assert not any(opened.info.values())
    assert type(opened.model).__name__ == "AffectGPTForConditionalGeneration"
    config = transformers.AutoConfig.from_pretrained(opened.model.name_or_path, trust_remote_code=True)
    assert config.fusion == opened.model.config.fusion
    assert config.text_config.vocab_size == goldens.base_configs()["qwen"]["vocab_size"]
    reference = {name for name in opened.golden.group("w/") if not name.startswith("llama_model.")}
    assert set(dict(opened.model.fusion.named_parameters())) == reference


@torch.no_grad()
def test_encoders(opened):
    """Features agree; frozen encoders stay in evaluation, without noise, while the rest is in training."""
    g, model, _ = opened
    found = model.train().encode(**media(g))
    model.eval()
    expected = reference_features(g)
    assert found.keys() == expected.keys()
    for stream, x in expected.items():
        np.testing.assert_allclose(found[stream], x, err_msg=stream, **ENCODER)


@torch.no_grad()
def test_soft_tokens(opened):
    g, model, _ = opened
    found = model.soft_tokens(reference_features(g))
    assert tuple(found) == needs(g.config.mode).soft
    for modality, x in found.items():
        np.testing.assert_allclose(x, g.data[f"out/{modality}_llm"], err_msg=modality, **EMBEDS)


@torch.no_grad()
def test_embeds_logits_and_loss(opened):
    g, model, _ = opened
    ids, labels, mask = (tensor(g.data[f"in/{key}"]) for key in ("input_ids", "labels", "attention_masks"))
    embeds = model.inputs_embeds(ids, reference_features(g))
    np.testing.assert_allclose(embeds[mask], g.data["out/inputs_embeds"][mask], **EMBEDS)
    for inputs in ({"features": reference_features(g)}, media(g)):
        output = model(ids, attention_mask=mask, labels=labels, **inputs)
        np.testing.assert_allclose(output.logits[mask], g.data["out/logits"][mask], **LOGITS)
        np.testing.assert_allclose(output.loss, g.data["out/loss"], atol=1e-5)


def test_generation(opened):
    """Greedy answers from frames and sound, all prompts in one batch, each sample's clips normalised alone."""
    g, model, _ = opened
    prompts = [g.data[f"gen{i}/input_ids"] for i in range(sum(key.endswith("/ids_20") for key in g.data))]
    longest = max(map(len, prompts))
    ids = tensor(np.stack([np.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts]))
    mask = tensor(np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts])).long()
    inputs = {"pixel_values": {stream: x[: len(prompts)] for stream, x in frames(g).items()}}
    if "in/raw_audios" in g.data:
        inputs["input_values"] = model.normalise_audio(tensor(g.data["in/raw_audios"])[: len(prompts), :, 0])
    embeds = model.inputs_embeds(ids, model.encode(**inputs))
    answers = model.generate(ids, attention_mask=mask, **inputs)
    for i, prompt in enumerate(prompts):
        own = embeds[i, longest - len(prompt) :].detach()
        np.testing.assert_allclose(own, g.data[f"gen{i}/inputs_embeds"][0], **EMBEDS)
        np.testing.assert_array_equal(answers[i], g.data[f"gen{i}/ids_20"])


@torch.no_grad()
def test_placeholders_must_fit(opened):
    g, model, _ = opened
    features = reference_features(g)
    ids = tensor(g.data["in/input_ids"])
    for modality in needs(g.config.mode).soft:
        token, count = model.config.placeholders[modality], g.data[f"out/{modality}_llm"].shape[1]
        one_less = ids.clone()
        row, column = (ids == token).nonzero()[-1].tolist()
        one_less[row, column] = 0
        with pytest.raises(
            ValueError, match=f"{modality}: row {row} .* has {count - 1} placeholders, expected {count}"
        ):
            model.inputs_embeds(one_less, features)
    # Nothing stands for placeholders of a stream that was not given.
    with pytest.raises(ValueError, match=r"row 0 .* expected 0 \(features given: none\)"):
        model.inputs_embeds(ids, {})
    assert set(PLACEHOLDERS) == set(model.config.placeholders)


def test_full_size():
    """At full size the fusion has the tensors of the reference's checkpoints, by name and shape."""
    files = sorted((goldens.FOLDER / "fullsize").glob("trainable_*.json"))
    assert files
    fusion_class = transformers.dynamic_module_utils.get_class_from_dynamic_module("modeling_affectgpt.Fusion", CODE)
    for facts in (json.loads(file.read_text()) for file in files):
        s = facts["setting"]
        config = ModelConfig(
            prefusion=s["multi"],
            video=s["video"],
            audio=s["audio"],
            image=s["image"],
            tokens=SoftTokens(multi=s["nm"], audio=s["na"], video=s["nv"], image=s["ni"]),
        )
        with torch.device("meta"):
            fusion = fusion_class(fusion_of(config), config.decoder.width)
        found = {name: list(p.shape) for name, p in fusion.named_parameters()}
        assert found == {
            row["name"]: row["shape"] for row in facts["trainable"] if not row["name"].startswith("llama_model.")
        }


def test_missing_and_superfluous_tensors_are_noticed(tmp_path):
    g = goldens.golden(goldens.find(prefusion="qformer"))
    write(tmp_path / "bad", g, g.group("w/"))
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    lost = "fusion.multi_Qformer.bert.encoder.layer.1.crossattention.self.key.weight"
    tensors["fusion.attention_mlp.weight"] = tensors.pop(lost)
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    _, info = load(tmp_path / "bad")
    assert set(info["missing_keys"]) == {lost}
    assert set(info["unexpected_keys"]) == {"fusion.attention_mlp.weight"}


@torch.no_grad()
def test_absent_streams(tmp_path):
    """A model with features for absent streams gives the soft tokens ours gives."""
    g = goldens.golden(goldens.find(mode="multiframe_audio_frame_text"))
    g = g._replace(config=g.config.model_copy(update={"absent": True}))
    rng = np.random.default_rng(0)
    vision, audio = g.config.vision_width, g.config.audio_width
    widths = {"face": vision, "frame": vision, "audio": audio, "image": vision}
    absent = {f"absent_{stream}": rng.standard_normal(width, np.float32) for stream, width in widths.items()}
    trained = g.group("w/") | absent
    write(tmp_path / "absent", g, trained)
    model, info = load(tmp_path / "absent")
    assert not any(info.values())

    features = reference_features(g)
    first = np.arange(len(features["frame"])) == 0
    present = {"frame": first, "audio": ~first}
    found = model.soft_tokens(features, {stream: tensor(x) for stream, x in present.items()})
    params = goldens.model_params(g, trained)["fusion"]
    ours = jax.jit(lambda *x: Fusion(g.config).apply({"params": params}, *x)[:, 0])
    one = lambda tree: {stream: np.asarray(tree[stream])[:, None] for stream in present}  # noqa: E731
    expected = ours(one(features), one(present))
    np.testing.assert_allclose(torch.cat(list(found.values()), 1), expected, **EMBEDS)
    there = model.soft_tokens(features)
    assert all((found[modality] - there[modality]).abs().max() > 0.1 for modality in found)


@torch.no_grad()
def test_bfloat16_and_saving_again(tmp_path):
    """The language model alone takes another type; what transformers saves opens again, its code with it."""
    g = goldens.golden(goldens.find(prefusion="qformer"))
    write(tmp_path / "first", g, g.group("w/"))
    model, _ = load(tmp_path / "first", dtype=torch.bfloat16)
    types = {name: {p.dtype for p in part.parameters()} for name, part in model.named_children()}
    single, half = {torch.float32}, {torch.bfloat16}
    assert types == {"language_model": half, "vision_tower": single, "audio_tower": single, "fusion": single}
    ids, mask = tensor(g.data["in/input_ids"]), tensor(g.data["in/attention_masks"])
    found, expected = model(ids, attention_mask=mask, **media(g)).logits[mask], tensor(g.data["out/logits"])[mask]
    # Eight bits of precision through three layers.
    assert (found - expected).abs().mean() < 0.04 * expected.abs().mean()

    load(tmp_path / "first")[0].save_pretrained(tmp_path / "second")
    again, info = load(tmp_path / "second")
    assert not any(info.values())
    np.testing.assert_allclose(again(ids, attention_mask=mask, **media(g)).logits[mask], expected, **LOGITS)
