"""Configs: every shipped one parses, wrong ones are refused in one clear line."""

from pathlib import Path

import pytest

from affectgpt_jax.config import build_config, load_config, save_config
from affectgpt_jax.config.loading import config_folder
from affectgpt_jax.config.networks import RUNTIME, DecoderConfig, HubertConfig, LoraConfig, VisionConfig
from affectgpt_jax.errors import UserError

SHIPPED = sorted(path.stem for path in config_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_parse_and_survive_saving(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_overrides_and_base(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("train: {steps: 7, rows: 5}\nmodel: {prefusion: qformer}\n")
    (tmp_path / "above.yaml").write_text("base: below.yaml\ntrain: {rows: 6}\n")
    config = load_config(tmp_path / "above.yaml", ["train.steps=200", "train.optimizer.peak=3e-4", "name=x"])
    assert (config.train.steps, config.train.rows, config.model.prefusion) == (200, 6, "qformer")
    assert config.train.optimizer.peak == pytest.approx(3e-4)
    assert config.name == "x"


def test_base_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.stpes=3"], ["unknown key train.stpes", "train.steps"]),
        (["model.prefusoin=qformer"], ["model.prefusoin", "model.prefusion"]),
        (["steps=3"], ["unknown key steps", "train.steps"]),
        (["train.steps=many"], ["train.steps", "integer", "'many'"]),
        (["train.steps=0"], ["train.steps", "greater than 0"]),
        (["model.prefusion=fancy"], ["model.prefusion", "'attention'"]),
        (["model.video=qformer", "model.tokens.video=64"], ["tokens.video=64", "positions.video=32", "at most 32"]),
        (["model.qformer.heads=7"], ["model.qformer", "heads=7 does not divide width=768", "nearest that does: 6"]),
        (["model.decoder.kv_heads=5"], ["kv_heads=5 does not divide heads=28", "4"]),
        (["model.decoder.head_dim=65"], ["head_dim=65 is odd"]),
        (["model.decoder.attention=cudnn"], ["attention=cudnn computes in half precision", "dtype=bfloat16"]),
        (
            ["model.decoder.base=int8", "train.trainable=[^fusion/,_proj/]"],
            ["'_proj/'", "decoder/layers/q_proj/kernel", "base=int8 it cannot be trained", "base=float"],
        ),
        (["model.prefusion=none"], ["prefusion=none", "mode=face"]),
        (["model.mode=multi_face"], ["mode='multi_face' is unknown", "multiface_audio_face_text"]),
        (["prepare.streams=[face@8]"], ["lacks audio", "add audio@8"]),
        (["prepare.streams=[face@64,audio@8]", "model.video=qformer"], ["face@64", "positions.video=32"]),
        (["data.label_weights=[1]"], ["label_weights has 1 entries, label_types 2"]),
        (["data.row_length=512"], ["max_length=1024", "use max_length=510"]),
        (["mesh.data=0"], ["mesh", "positive"]),
        (["mesh.fsdp=-1"], ["mesh", "at most one is -1"]),
        (["train.steps"], ["expected key=value"]),
    ],
)
def test_refusals_name_key_file_and_remedy(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    (tmp_path / "run.yaml").write_text("name: run\n")
    with pytest.raises(UserError) as refused:
        load_config(tmp_path / "run.yaml", overrides)
    message = str(refused.value)
    for part in [*parts, *(["run.yaml"] if "=" in overrides[0] else [])]:
        assert part in message, message


def test_unknown_config_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean demo"):
        load_config("demoo")


def test_broken_yaml(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [1,\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml")


def test_the_default_is_the_shipped_setting() -> None:
    config = build_config({}, "defaults")
    assert (config.model.decoder.width, config.model.vision_width, config.model.audio_width) == (3584, 768, 1024)
    assert (config.train.rows, config.train.steps, config.train.optimizer.peak) == (3, 300_000, 1e-5)


def test_hugging_face_configs_old_and_new() -> None:
    old = {
        "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    new = {key: value for key, value in old.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(new)
    # Every key is either in a config.json or of the run's own.
    config = DecoderConfig(
        vocab=64, width=24, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=40, rope_theta=7.0, norm_eps=0.5,
        tied_head=True, lora=LoraConfig(rank=3), dtype="bfloat16", base="int8", cache="int8", attention="splash",
        remat="full", fused=True, unroll=2,
    )  # fmt: skip
    assert all(getattr(config, key) != field.default for key, field in DecoderConfig.model_fields.items())
    assert DecoderConfig.from_hf(config.to_hf(), **{key: getattr(config, key) for key in RUNTIME}) == config
    with pytest.raises(UserError, match="rope_type='yarn' is not supported"):
        DecoderConfig.from_hf({**new, "rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}})
    with pytest.raises(UserError, match="hidden_act"):
        DecoderConfig.from_hf({**old, "hidden_act": "gelu"})
    with pytest.raises(UserError, match="conv_pos_batch_norm"):
        HubertConfig.from_hf({"conv_pos_batch_norm": True})
    with pytest.raises(ValueError, match="patch_size=9 does not divide image_size=224"):
        VisionConfig(patch_size=9)
