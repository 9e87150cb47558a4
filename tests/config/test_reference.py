"""The authors' settings become ours, and what does not is said."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml

from affectgpt_jax.cli import main
from affectgpt_jax.config import RunConfig, build_config, load_config
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig, QFormerConfig
from affectgpt_jax.config.reference import export_reference, import_reference
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.pth import check_settings, infer_settings, read_pth
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import split
from tests.conftest import reference_folder

FACE = """
model:
  arch: affectgpt
  model_type: pretrain
  frozen_llm: False
  frozen_video_Qformer: False
  frozen_video_proj: False
  frozen_audio_proj: False
  frozen_multi_llama_proj: False
  multi_fusion_type: attention
  video_fusion_type: attention
  audio_fusion_type: attention
  image_fusion_type: mean
  ckpt: ''
  llama_model: Qwen25
  acoustic_encoder: HUBERT_LARGE
  visual_encoder: CLIP_VIT_LARGE
  num_audio_query_token: 1
  num_video_query_token: 1
  num_multi_query_token: 1
  num_image_query_token: 1
  max_length: 1024
  vis_processor:
    train:
      name: alpro_video_train
      n_frms: 8
      image_size: 224
datasets:
  mercaptionplus:
    data_type: video
    face_or_frame: multiface_audio_face_text
    label_type: hybird
run:
  task: video_text_pretrain
  lr_sched: linear_warmup_cosine_lr
  init_lr: 1e-5
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 60
  iters_per_epoch: 5000
  warmup_steps: 5000
  batch_size_train: 3
  batch_size_eval: 3
  num_workers: 4
  seed: 42
  amp: True
  resume_ckpt_path: null
  device: cuda
  world_size: 1
  dist_url: "env://"
  distributed: True
inference:
  test_epochs: 30-60
"""


def settings(**changes: Any) -> dict[str, Any]:
    """The face settings with dotted keys (`__` for a dot) changed; a change to `...` takes the key out."""
    values = yaml.safe_load(FACE)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = values
        for part in parents:
            node = node.setdefault(part, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return values


def imported(values: dict[str, Any]) -> tuple[RunConfig, list[str]]:
    ours, notes = import_reference(values, "folder/theirs.yaml")
    assert all("\n" not in note for note in notes)
    return build_config(ours, "theirs.yaml"), notes


def note(notes: list[str], part: str) -> str:
    """The one note that speaks of something."""
    (found,) = [note for note in notes if part in note]
    return found


def test_the_published_face_setting() -> None:
    """It is our default setting, in the reference's way of doing things."""
    assert yaml.safe_load(FACE)["run"]["init_lr"] == "1e-5"  # YAML takes it for text
    config, notes = imported(settings())
    default = RunConfig()
    decoder = default.model.decoder.model_copy(update={"dtype": "bfloat16"})  # run.amp
    assert config.model == default.model.model_copy(update={"decoder": decoder})
    assert config.train.optimizer == default.train.optimizer.model_copy(update={"schedule": "reference"})
    assert config.train == default.train.model_copy(update={"optimizer": config.train.optimizer})
    assert (config.name, config.compat, config.prepare.streams) == ("theirs", "reference", ("face@8", "audio@8"))
    data = config.data
    assert (data.label_types, data.label_weights) == (("ovlabel", "description"), (1.0, 1.0))
    assert (data.max_length, data.row_samples, data.weighting) == (1024, 1, "reference")
    assert data.row_length >= 1026
    assert data.row_targets == 1024
    assert config.weights.model_dump() == {"vision": None, "audio": None, "language": None, "tokenizer": ""}
    for folder, published in {
        "vision": "openai/clip-vit-large-patch14",
        "audio": "TencentGameMate/chinese-hubert-large",
        "language": "Qwen/Qwen2.5-7B-Instruct",
    }.items():
        assert published in note(notes, f"weights.{folder}")
    assert not any("unknown" in note or "not in the file" in note for note in notes)


def test_every_setting_of_theirs_is_taken_or_noted() -> None:
    """Changing a value changes the result or a note; nothing is dropped silently."""
    before = import_reference(settings(), "x.yaml")
    changes = {
        "model__arch": "other",
        "model__frozen_llm": True,
        "model__frozen_video_Qformer": True,
        "model__frozen_video_proj": True,
        "model__frozen_audio_proj": True,
        "model__frozen_multi_llama_proj": True,
        "model__multi_fusion_type": "qformer",
        "model__video_fusion_type": "mean",
        "model__audio_fusion_type": "mean",
        "model__image_fusion_type": "token",
        "model__ckpt": "a.pth",
        "model__llama_model": "Qwen2",
        "model__num_audio_query_token": 2,
        "model__num_video_query_token": 2,
        "model__num_multi_query_token": 2,
        "model__num_image_query_token": 2,
        "model__max_length": 512,
        "model__vis_processor__train__n_frms": 16,
        "model__vis_processor__train__image_size": 336,
        "datasets__mercaptionplus__face_or_frame": "multiframe_audio_frame_text",
        "datasets__mercaptionplus__label_type": "ovlabel",
        "run__task": "other",
        "run__init_lr": 2e-5,
        "run__min_lr": "1e-6",
        "run__warmup_lr": "1e-7",
        "run__weight_decay": 0.1,
        "run__max_epoch": 30,
        "run__iters_per_epoch": 500,
        "run__warmup_steps": 500,
        "run__batch_size_train": 6,
        "run__batch_size_eval": 6,
        "run__num_workers": 8,
        "run__seed": 1,
        "run__amp": False,
        "run__world_size": 3,
        "run__brand_new": [1, 2],
        "datasets__mercaptionplus__ratio": 1,
        "inference__test_epochs": "60",
    }
    for key, value in changes.items():
        assert import_reference(settings(**{key: value}), "x.yaml") != before, key
    _, notes = import_reference(settings(run__brand_new=[1, 2], datasets__mercaptionplus__ratio=1), "x.yaml")
    found = note(notes, "unknown here")
    assert "run.brand_new=[1, 2]" in found
    assert "datasets.mercaptionplus.ratio=1" in found


def test_values_arrive() -> None:
    config, _ = imported(
        settings(
            run__init_lr="3e-5", run__min_lr="0", run__warmup_lr=1e-7, run__weight_decay=0, run__warmup_steps=700,
            run__max_epoch=7, run__iters_per_epoch=11, run__batch_size_train=5, run__seed=9, model__max_length=300,
            datasets__mercaptionplus__label_type="description",
        )
    )  # fmt: skip
    optimizer = config.train.optimizer
    assert (optimizer.peak, optimizer.end, optimizer.warmup_start, optimizer.weight_decay) == (3e-5, 0, 1e-7, 0)
    assert (optimizer.warmup_steps, optimizer.epoch_steps, optimizer.schedule) == (700, 11, "reference")
    assert (config.train.steps, config.train.rows, config.train.seed, config.train.checkpoint_every) == (77, 5, 9, 11)
    assert (config.data.max_length, config.data.row_targets) == (300, 300)
    assert 302 <= config.data.row_length < 302 + 128
    assert (config.data.label_types, config.data.label_weights) == (("description",), (1.0,))
    assert config.model.decoder.dtype == "bfloat16"
    assert imported(settings(run__amp=False))[0].model.decoder.dtype == "float32"


def test_the_frame_setting() -> None:
    config, _ = imported(
        settings(
            datasets__mercaptionplus__face_or_frame="multiframe_audio_frame_text",
            model__vis_processor=...,
            datasets__mercaptionplus__vis_processor={"train": {"n_frms": 16}},
        )
    )
    assert config.model.mode == "multiframe_audio_frame_text"
    assert config.prepare.streams == ("frame@16", "audio@8")


def test_the_qformer_setting() -> None:
    config, _ = imported(
        settings(
            model__multi_fusion_type="qformer", model__video_fusion_type="qformer", model__audio_fusion_type="qformer",
            model__image_fusion_type="token", model__num_multi_query_token=16, model__num_video_query_token=32,
            model__num_audio_query_token=8, model__num_image_query_token=32,
        )
    )  # fmt: skip
    model = config.model
    assert (model.prefusion, model.video, model.audio, model.image) == ("qformer", "qformer", "qformer", "token")
    assert model.tokens.model_dump() == {"multi": 16, "audio": 8, "video": 32, "image": 32}
    assert (model.decoder.lora.rank, model.decoder.lora.alpha, model.decoder.lora.dropout) == (16, 32.0, 0.05)


@pytest.mark.parametrize("mode", ["textonly", "faceonly", "multiface_audio_face_frame_text"])
def test_other_modes_get_their_streams(mode: str) -> None:
    config, _ = imported(settings(datasets__mercaptionplus__face_or_frame=mode))
    expected = {
        "textonly": (),
        "faceonly": ("face@8",),
        "multiface_audio_face_frame_text": ("face@8", "frame@8", "audio@8"),
    }
    assert config.prepare.streams == expected[mode]


@cache
def small_model() -> tuple[ModelConfig, Any]:
    """A small model with Q-Formers throughout, and the shapes of its parameters."""
    config = ModelConfig(
        vision_width=4, audio_width=4, prefusion="qformer", video="qformer", audio="qformer",
        qformer=QFormerConfig(width=4, layers=1, heads=1, mlp_width=4),
        decoder=DecoderConfig(
            vocab=16, width=8, layers=1, heads=1, kv_heads=1, head_dim=4, mlp_width=8, lora=LoraConfig(rank=2)
        ),
    )  # fmt: skip
    model = AffectGPT(config)
    return config, jax.eval_shape(lambda: model.init(jax.random.key(0), method="initialise"))["params"]


def trained(**changes: Any) -> set[str]:
    """Paths in the small model that an imported setting trains."""
    config, _ = imported(settings(**changes))
    return set(paths(split(*small_model(), config.train.trainable)[0]))


def test_frozen_parts_are_not_trained() -> None:
    everything = trained()
    assert any(path.startswith("decoder/") for path in everything)
    assert all("/lora_" in path for path in everything if path.startswith("decoder/"))
    for flag, prefix in {
        "frozen_llm": "decoder/",
        "frozen_video_Qformer": "fusion/video/qformer/",
        "frozen_audio_Qformer": "fusion/audio/qformer/",
        "frozen_multi_Qformer": "fusion/multi/qformer/",
        "frozen_video_proj": "fusion/video/proj/",
        "frozen_audio_proj": "fusion/audio/proj/",
        "frozen_multi_llama_proj": "fusion/multi/proj/",
    }.items():
        left = trained(**{f"model__{flag}": True})
        assert left == {path for path in everything if not path.startswith(prefix)}, flag
        assert left != everything
    both = trained(model__frozen_llm=True, model__frozen_audio_proj=True, model__frozen_video_Qformer=True)
    frozen = ("decoder/", "fusion/audio/proj/", "fusion/video/qformer/")
    assert both == {path for path in everything if not path.startswith(frozen)}
    _, notes = imported(settings(model__frozen_llm=True))
    assert "model.frozen_llm" in note(notes, "frozen, as the file says")
    _, notes = imported(settings(model__frozen_moon=True))
    assert "model.frozen_moon=True" in note(notes, "unknown here")


def test_several_data_sets() -> None:
    second = {"data_type": "video", "face_or_frame": "multiface_audio_face_text", "label_type": "hybird"}
    config, notes = imported(settings(datasets__ovmerd=second))
    assert config.model.mode == "multiface_audio_face_text"
    assert "one corpus" in note(notes, "datasets mercaptionplus, ovmerd")
    for key, value, name in (
        ("label_type", "ovlabel", "datasets.*.label_type"),
        ("face_or_frame", "audio_text", "datasets.*.face_or_frame"),
    ):
        with pytest.raises(UserError) as refused:
            import_reference(settings(datasets__ovmerd=second | {key: value}), "x.yaml")
        for part in ("x.yaml", f"datasets.mercaptionplus.{key}=", f"datasets.ovmerd.{key}=", name):
            assert part in str(refused.value)


def test_what_is_missing_is_said() -> None:
    config, notes = imported({"model": {}, "run": {}})
    found = note(notes, "not in the file")
    for key in ("run.init_lr", "run.max_epoch", "run.batch_size_train", "datasets.*.face_or_frame", "model.max_length"):
        assert key in found
    assert (config.train.steps, config.train.rows, config.model) == (300_000, 3, ModelConfig())


def test_another_language_model_must_be_named() -> None:
    _, notes = imported(settings(model__llama_model="LLama3"))
    assert "LLama3; it must be of the Qwen2 kind" in note(notes, "weights.language")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model__visual_encoder": "EVA_CLIP_G"}, ["model.visual_encoder='EVA_CLIP_G'", "CLIP_VIT_LARGE"]),
        ({"model__acoustic_encoder": "IMAGEBIND"}, ["model.acoustic_encoder='IMAGEBIND'", "HUBERT_LARGE"]),
        ({"model__multi_fusion_type": "mean"}, ["model.multi_fusion_type='mean'", "attention, qformer"]),
        ({"model__video_fusion_type": "max"}, ["model.video_fusion_type='max'", "attention, qformer, mean"]),
        ({"model__audio_fusion_type": 3}, ["model.audio_fusion_type=3"]),
        ({"model__image_fusion_type": "qformer"}, ["model.image_fusion_type='qformer'", "mean, token"]),
        ({"model__num_video_query_token": 1.5}, ["model.num_video_query_token=1.5", "a whole number"]),
        ({"model__num_video_query_token": 0}, ["model.tokens.video", "greater than 0"]),
        ({"model__frozen_llm": "yes"}, ["model.frozen_llm='yes'", "true or false"]),
        ({"model__max_length": 0}, ["data.max_length", "greater than 0"]),
        ({"run__init_lr": "small"}, ["run.init_lr='small'", "expected a number"]),
        ({"run__init_lr": True}, ["run.init_lr=True", "expected a number"]),
        ({"run__init_lr": "nan"}, ["run.init_lr='nan'", "expected a number"]),
        ({"run__max_epoch": None}, ["run.max_epoch=None", "expected a number"]),
        ({"run__max_epoch": "inf"}, ["run.max_epoch='inf'", "expected a number"]),
        ({"run__max_epoch": 0}, ["train.steps", "greater than 0"]),
        ({"run__lr_sched": "step_lr"}, ["run.lr_sched='step_lr'", "linear_warmup_cosine_lr"]),
        ({"run__accum_grad_iters": 4}, ["run.accum_grad_iters=4", "train.accumulate"]),
        ({"datasets__mercaptionplus__data_type": "image"}, ["datasets.mercaptionplus.data_type='image'", "video"]),
        ({"datasets__mercaptionplus__face_or_frame": "multi"}, ["face_or_frame='multi'", "multiface_audio_face_text"]),
        ({"datasets__mercaptionplus__label_type": "valence"}, ["label_type='valence'", "hybird, ovlabel, description"]),
        ({"model__video_fusion_type": "qformer", "model__num_video_query_token": 64}, ["tokens.video=64", "most 32"]),
        ({"model": "affectgpt"}, ["no sections 'model' and 'run'"]),
        ({"run": ...}, ["no sections 'model' and 'run'", "found model, datasets, inference"]),
    ],
)  # fmt: skip
def test_refusals_name_file_key_and_remedy(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        import_reference(settings(**changes), "folder/theirs.yaml")
    for part in ("folder/theirs.yaml", *parts):
        assert part in str(refused.value), refused.value


def test_our_own_settings_are_not_taken_for_theirs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ours\.yaml: no sections 'model' and 'run'.*found name, compat, model"):
        import_reference(RunConfig().model_dump(), "ours.yaml")


def test_settings_inside_the_golden_checkpoints() -> None:
    files = sorted((reference_folder("AFFECTGPT_GOLDENS", "../shared/goldens") / "models").glob("*_checkpoint_*.pth"))
    assert len(files) == 2
    for file in files:
        checkpoint = read_pth(file)
        ours, notes = import_reference(checkpoint.config, str(file))
        config = build_config(ours, str(file))
        assert config.name == file.stem
        theirs, run = checkpoint.config["model"], checkpoint.config["run"]
        model, optimizer = config.model, config.train.optimizer
        kinds = [theirs[name] for name in ("multi", "video", "audio", "image")]
        assert [model.prefusion, model.video, model.audio, model.image] == kinds
        assert list(model.tokens.model_dump().values()) == [theirs[name] for name in ("nm", "na", "nv", "ni")]
        rates = [run[name] for name in ("init_lr", "min_lr", "warmup_lr", "weight_decay")]
        assert [optimizer.peak, optimizer.end, optimizer.warmup_start, optimizer.weight_decay] == rates
        assert config.train.steps == run["max_epoch"] * run["iters_per_epoch"]
        assert (optimizer.epoch_steps, optimizer.warmup_steps) == (run["iters_per_epoch"], run["warmup_steps"])
        assert "datasets.*.face_or_frame" in note(notes, "not in the file")
        assert not any("unknown" in note for note in notes)
        # What the file says of itself and what its tensors show agree, but for the golden models' tiny sizes.
        with pytest.raises(UserError) as refused:
            check_settings(infer_settings(checkpoint.tensors, str(file)), model, file)
        wrong = {line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]}
        sizes = {"vision_width", "audio_width", "qformer.width", "qformer.mlp_width"}
        sizes |= {f"decoder.{name}" for name in ("width", "layers", "mlp_width", "lora.rank")}
        assert wrong <= {f"model.{name}" for name in sizes}


@pytest.mark.parametrize("mode", ["multiface_audio_face_text", "multiframe_audio_frame_text", "face"])
@pytest.mark.parametrize("kind", ["attention", "qformer"])
def test_our_settings_in_their_words_come_back(mode: str, kind: str) -> None:
    """What we write into a checkpoint for the authors' code is what we read from one."""
    frames = 6 if kind == "attention" else 8
    streams = [f"{'frame' if 'frame' in mode else 'face'}@{frames}", "audio@8"]
    values = {
        "compat": "reference",
        "model": {"mode": mode, "prefusion": kind, "video": kind, "audio": "mean", "tokens": {"video": 5, "multi": 3}},
        "prepare": {"streams": streams},
        "data": {"label_types": ["description"], "label_weights": [1.0], "max_length": 700, "weighting": "reference"},
        "train": {
            "steps": 9000,
            "rows": 2,
            "seed": 7,
            "optimizer": {"peak": 2e-5, "warmup_steps": 30, "epoch_steps": 3000, "schedule": "reference"},
        },
    }
    config = build_config(values, "ours")
    back, notes = import_reference(export_reference(config), "theirs")
    found = build_config(back, "theirs")
    assert found.model == config.model
    assert set(found.prepare.streams) == set(config.prepare.streams)
    assert found.data.label_types == config.data.label_types
    assert found.data.max_length == config.data.max_length
    assert found.data.group == found.train.rows == config.train.rows
    assert found.train.optimizer == config.train.optimizer
    assert (found.train.steps, found.train.seed) == (config.train.steps, config.train.seed)
    assert not any("unknown here" in line for line in notes)


def test_the_command_writes_what_trains(tmp_path: Path) -> None:
    """Settings on the command line are in the file, and `train` takes the file as it is."""
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(yaml.safe_dump(settings()))
    words = ["convert", "config", str(theirs), str(ours), "train.seed=7", "weights.language=/models/qwen"]
    assert main(words) == 0
    found = load_config(ours)
    assert found.train.seed == 7
    assert found.weights.language == "/models/qwen"
    assert found.train.optimizer.schedule == "reference"
    assert main(words) == 2  # it is there already
    assert main([*words[:4], "train.seeed=7", "--overwrite"]) == 2
    assert load_config(ours) == found
