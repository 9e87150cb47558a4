"""The demo's towers and tokenizer: what they learn from, what others read, what happens to what was there before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config.networks import HubertConfig, VisionConfig
from affectgpt_jax.data.clips import ClipFiles, read_modality
from affectgpt_jax.data.preprocess import clip_pixels
from affectgpt_jax.data.prompts import ANSWERS, BOS, END_OF_TEXT, EOS, prompt_parts, prompt_text, question, soft_layout
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.encoders import Encoders
from affectgpt_jax.weights.towers import open_audio, open_vision
from data_prep.synth import SAMPLE_RATE, attributes, render_clip, sample_specs
from data_prep.synth.language import sentences
from data_prep.synth.media import write_wav
from data_prep.synth.scenes import TEXTS
from data_prep.towers import build
from data_prep.towers.build import train_towers
from data_prep.towers.lessons import SEEN, face_lesson, voice_lesson
from data_prep.towers.probe import probe_accuracy
from data_prep.towers.report import Progress, TowerReport, TowersReport
from data_prep.towers.settings import TowerSettings
from tests.conftest import reference_folder

TINY = TowerSettings(
    seed=5,
    clips=6,
    held_out=4,
    steps=3,
    vocabulary=700,
    vision=VisionConfig(
        width=16, layers=2, heads=2, mlp_width=24, projection=12, image_size=24, patch_size=12, activation="gelu"
    ),
    audio=HubertConfig(
        width=16,
        layers=3,
        heads=2,
        mlp_width=24,
        conv_widths=(8, 12),
        conv_kernels=(40, 16),
        conv_strides=(20, 16),
        conv_bias=True,
        conv_norm="group",
        position_kernel=4,
        position_groups=2,
    ),
)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != build.REPORT)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers of a few steps, trained in this process."""
    folder = tmp_path_factory.mktemp("towers") / "made"
    assert not train_towers(folder, TINY, workers=1).reused
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# What they learn from


def test_faces_are_those_of_preparation(tmp_path: Path) -> None:
    spec = sample_specs(3, "train", 1)[0]
    np.save(tmp_path / "faces.npy", render_clip(spec)[1])
    seen = read_modality(ClipFiles(faces=tmp_path / "faces.npy"), parse_stream(f"face@{SEEN}"))
    assert seen is not None
    lesson = face_lesson([spec], SEEN, 48, lambda: None)
    np.testing.assert_array_equal(np.moveaxis(lesson.inputs[0], -1, 1), clip_pixels(seen, 48))
    few = face_lesson([spec], 3, 48, lambda: None)
    np.testing.assert_array_equal(few.inputs[0], lesson.inputs[0][[0, 4, 7]])
    assert lesson.names[lesson.classes[0]] == attributes(spec)["expression"]
    assert lesson.values.shape == (1, 12)


def test_sounds_are_those_of_preparation(tmp_path: Path) -> None:
    spec = sample_specs(3, "train", 1)[0]
    write_wav(tmp_path / "voice.wav", render_clip(spec)[2], SAMPLE_RATE)
    seen = read_modality(ClipFiles(audio=tmp_path / "voice.wav"), parse_stream(f"audio@{SEEN}"))
    assert seen is not None
    lesson = voice_lesson([spec], SEEN, lambda: None)
    np.testing.assert_array_equal(lesson.inputs[0], seen)
    np.testing.assert_array_equal(voice_lesson([spec], 2, lambda: None).inputs[0], lesson.inputs[0][[0, 7]])
    assert lesson.names[lesson.classes[0]] == attributes(spec)["voice_style"]
    assert lesson.values.shape == (1, 8)


def test_a_probe_counts_what_a_linear_map_can_tell() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(3, size=(2, 300)).astype(np.int32)
    noise = rng.normal(size=(2, 300, SEEN, 6)).astype(np.float32)
    told = noise + 4 * np.eye(3, 6)[classes][:, :, None]
    assert probe_accuracy(told[0], classes[0], told[1], classes[1]) == 1.0
    assert probe_accuracy(noise[0], classes[0], noise[1], classes[1]) < 0.45


# ---------------------------------------------------------------------------------------------------------------------
# What others read


def test_the_folders_open_like_any_encoder(towers: Path) -> None:
    assert open_vision(towers / "vision").network.config == TINY.vision
    assert open_audio(towers / "audio").network.config == TINY.audio
    encoders = Encoders(str(towers / "vision"), str(towers / "audio"), batch=4)
    rng = np.random.default_rng(0)
    assert encoders.vision(rng.integers(256, size=(3, 224, 224, 3)).astype(np.uint8)).shape == (3, 12)
    assert encoders.audio(rng.normal(size=(1, 2, 32000)).astype(np.float32)).shape == (1, 2, 16)


def test_transformers_computes_the_same_features(towers: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    encoders = Encoders(str(towers / "vision"), str(towers / "audio"), batch=4)
    rng = np.random.default_rng(1)

    def opened(model: Any, folder: str) -> Any:
        network, notes = model.from_pretrained(towers / folder, output_loading_info=True)
        assert not any(notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        return network.eval()

    clip, hubert = (
        opened(transformers.CLIPVisionModelWithProjection, "vision"),
        opened(transformers.HubertModel, "audio"),
    )
    pixels = rng.normal(size=(4, 3, 24, 24)).astype(np.float32)
    wave = rng.normal(size=(1, 4, 32000)).astype(np.float32)
    with torch.no_grad():
        features = clip(torch.from_numpy(pixels)).image_embeds
        output = hubert(torch.from_numpy(wave[0]), output_hidden_states=True)
    # The library lists the last hidden state before the final norm; the feature is made of the normed one.
    states = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])
    np.testing.assert_allclose(encoders.pixels(pixels), features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoders.audio(wave)[0], states[-4:].mean(dim=(0, 2)), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def tokenizer(towers: Path) -> Tokenizer:
    return open_tokenizer(towers / "tokenizer")


def test_the_tokenizer_takes_any_text(tokenizer: Tokenizer, towers: Path) -> None:
    transformers = pytest.importorskip("transformers")
    official = transformers.AutoTokenizer.from_pretrained(towers / "tokenizer")
    texts = ["I'm fine, thanks!\n\n  2 + 2", "谢谢 🙂", f"{BOS}###Human: ###Assistant: sad.{EOS}", "smörgåsbord\t\x00"]
    for text in [*texts, *(english for english, _ in sentences("gloomy", "test")[:20])]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert official(text)["input_ids"] == ids
    assert official.eos_token == EOS
    assert official.pad_token == END_OF_TEXT


def test_words_are_cut_as_qwen_cuts_them(tokenizer: Tokenizer) -> None:
    qwen = open_tokenizer(reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / "qwen2.5")
    for text in ("We'll see, it's 1234 o'clock...\r\n\n then  ", "sad.### ###Assistant: <Video></Video>. é"):
        cut, expected = (t.base.pre_tokenizer.pre_tokenize_str(text) for t in (tokenizer, qwen))
        assert cut == expected
    assert tokenizer.size < 1000


def test_added_tokens_follow_all_others(tokenizer: Tokenizer) -> None:
    first = tokenizer.base.get_vocab_size()
    assert [tokenizer.added[token] for token in (END_OF_TEXT, BOS, EOS)] == [first, first + 1, first + 2]
    assert sorted(tokenizer.added.values()) == list(range(first, first + len(tokenizer.added)))


def test_answers_end_in_a_stop_sequence(tokenizer: Tokenizer) -> None:
    """No token joins the "###" at the end of an answer with what stands before it."""
    stop = tuple(tokenizer.encode("###"))
    assert len(stop) == 1
    assert stop in tokenizer.stop_sequences
    endings = ["angry.", "angry", "sad!", "sad?", "(happy)", 'worried"', "1.5", "sad. ", *ANSWERS.values()]
    for ending in endings:
        ids = tokenizer.encode(ending + "###")
        if not ending.endswith(" "):  # " ###" is a token of its own, as in Qwen2.5, and stops nothing
            assert tuple(ids[-1:]) == stop
            assert tokenizer.decode(ids[:-1]) == ending


def test_the_synthetic_language_costs_what_it_costs_qwen(tmp_path: Path) -> None:
    qwen = open_tokenizer(reference_folder("AFFECTGPT_TOKENIZERS", "../shared/tokenizers") / "qwen2.5")
    default = TowerSettings()
    count = build.write_tokenizer(tmp_path, seed=0, clips=200, vocabulary=default.vocabulary)
    small = open_tokenizer(tmp_path)
    assert count == small.base.get_vocab_size() + 3 <= default.vocabulary + 3
    mode = "multiface_audio_face_text"
    texts = [prompt_text(prompt_parts(mode, "", question("ovlabel"), soft_layout(mode)))]
    texts += [english for text in TEXTS for english, _ in sentences(text, "test")]
    texts += [spec.description for spec in sample_specs(9, "test", 50)]
    assert sum(len(small.encode(text)) for text in texts) < 1.05 * sum(len(qwen.encode(text)) for text in texts)


# ---------------------------------------------------------------------------------------------------------------------
# The folder


@pytest.mark.slow
def test_two_processes_make_the_same_files(towers: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    report = train_towers(tmp_path / "apart", TINY, workers=2, tell=told.append)
    assert contents(tmp_path / "apart") == contents(towers)
    assert {(progress.tower, progress.stage) for progress in told} == {
        (kind, stage) for kind in ("vision", "audio") for stage in ("rendering", "training", "probing")
    }
    stored = TowersReport.model_validate_json((tmp_path / "apart" / build.REPORT).read_text(encoding="utf-8"))
    assert stored == report
    assert set(stored.files) == set(contents(towers))
    for tower in (stored.vision, stored.audio):
        assert 0 <= tower.probe <= 1
        assert tower.cross_entropy > 0
        assert tower.feature_std > 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Towers that cost nothing; the list says which were trained."""
    trained: list[str] = []

    def train(kind: str, folder: Path, settings: TowerSettings, tell: Any) -> TowerReport:
        tell(Progress("vision" if kind == "vision" else "audio", "training", 1, 1))
        trained.append(kind)
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"{kind} {settings.seed}")
        measured = dict.fromkeys(("cross_entropy", "squared_error", "feature_std", "seconds", "cpu_seconds"), 1.0)
        return TowerReport(classes=("a", "b"), probe=0.96, untrained_probe=0.25, **measured)

    monkeypatch.setattr(build, "train_tower", train)
    return trained


def made(folder: Path, **changes: Any) -> TowersReport:
    return train_towers(folder, TINY.model_copy(update=changes), workers=1)


def test_finished_towers_are_used_again(quick: list[str], tmp_path: Path) -> None:
    first = made(tmp_path / "out")
    before = contents(tmp_path / "out")
    again = made(tmp_path / "out")
    assert again.reused
    assert again.files == first.files
    assert contents(tmp_path / "out") == before
    assert quick == ["vision", "audio"]


@pytest.mark.parametrize("damage", ["no report", "no weights", "other weights"])
def test_unfinished_towers_are_made_again(quick: list[str], tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    report = made(out)
    match damage:
        case "no report":  # as an interrupted call leaves it
            (out / build.REPORT).rename(out / build._UNFINISHED)
        case "no weights":
            (out / "audio" / "model.safetensors").unlink()
        case "other weights":
            (out / "vision" / "model.safetensors").write_text("vision 6")
    again = made(out)
    assert not again.reused
    assert again.files == report.files
    assert sorted(path.name for path in out.iterdir()) == ["audio", "tokenizer", "towers.json", "vision"]
    assert made(out).reused


def test_other_towers_are_replaced_on_request_only(quick: list[str], tmp_path: Path) -> None:
    made(tmp_path / "out")
    with pytest.raises(UserError, match=r"seed=5, not 6.*--overwrite"):
        made(tmp_path / "out", seed=6)
    assert made(tmp_path / "out").reused
    report = train_towers(tmp_path / "out", TINY.model_copy(update={"seed": 6}), workers=1, overwrite=True)
    assert report.settings.seed == 6
    assert (tmp_path / "out" / "vision" / "model.safetensors").read_text() == "vision 6"


def test_a_folder_of_something_else_is_left_alone(quick: list[str], tmp_path: Path) -> None:
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "model.safetensors").write_text("of somebody")
    with pytest.raises(UserError, match="no towers of ours"):
        made(tmp_path)
    (tmp_path / build.REPORT).write_text("{}")
    with pytest.raises(UserError, match="another version"):
        made(tmp_path)
    assert (tmp_path / "vision" / "model.safetensors").read_text() == "of somebody"
    assert not quick


def test_a_full_disk_leaves_an_unfinished_folder(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> TowerReport:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build, "train_tower", fail)
        with pytest.raises(UserError, match=r"No space left.*run again"):
            made(tmp_path / "out")
    assert not (tmp_path / "out" / build.REPORT).exists()
    assert not made(tmp_path / "out").reused


def test_command(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["towers", str(tmp_path / "out"), "--workers", "1", "--clips", "3", "--held-out", "2", "--steps", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "0.960" in printed
    assert "0.250" in printed
    settings = json.loads((tmp_path / "out" / build.REPORT).read_text())["settings"]
    assert [settings[key] for key in ("seed", "clips", "held_out", "steps")] == [0, 3, 2, 1]
    assert main(words) == 0
    assert "(found)" in capsys.readouterr().out
    assert main([*words, "--seed", "1"]) == 2
    assert "seed=0, not 1" in capsys.readouterr().err
    assert main([*words[:-1], "0"]) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_towers_tell_expressions_and_voices_of_strangers(tmp_path: Path) -> None:
    report = train_towers(tmp_path, TowerSettings(seed=11))
    assert report.vision.probe >= 0.95
    assert report.audio.probe >= 0.93
    assert report.vision.probe > report.vision.untrained_probe + 0.1
    assert report.audio.probe > report.audio.untrained_probe + 0.1
    assert 0.5 < report.vision.feature_std < 2
    assert 0.5 < report.audio.feature_std < 2
