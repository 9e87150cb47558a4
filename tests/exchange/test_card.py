"""The card says what was measured and recorded, its code runs, and the Hub gets whole folders only."""

import json
import re
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from huggingface_hub.utils import validate_repo_id

from affectgpt_jax.cli import main
from affectgpt_jax.config import load_config
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.card import card_name, model_card
from affectgpt_jax.exchange.export import KINDS, export
from affectgpt_jax.exchange.hub import push
from affectgpt_jax.inference.evaluate import Evaluation, write_evaluation
from affectgpt_jax.inference.runs import Trained, open_shards, open_trained, write_run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.training.loop import train
from affectgpt_jax.weights.table import nest, paths
from tests.conftest import ROOT
from tests.exchange.runs import golden_run, write_bases
from tests.media_files import pictures, tone, write_faces, write_video
from tests.parity import goldens
from tests.tiny_run import make_tiny, run_parameters, tiny_config


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card, re.MULTILINE | re.DOTALL)


def lines(card: str, section: str) -> dict[str, str]:
    """The facts of a section."""
    text = card.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^- ([^:]+): (.*)$", text, re.MULTILINE))


def data_of(card: str) -> dict[str, Any]:
    return huggingface_hub.ModelCard(card).data.to_dict()


# ---------------------------------------------------------------------------------------------------------------------
# The code


FACES = goldens.find(mode="multiface_audio_face_text")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over golden weights, and a clip."""
    folder = tmp_path_factory.mktemp("golden")
    write_bases(folder)
    write_run(golden_run(FACES, folder), folder / "run")
    write_video(folder / "clip.mp4", sound=tone(2.0, 44_100)[None])
    write_faces(folder / "faces.npy", np.stack([pictures(9, 60, 60)] * 3, axis=-1))
    return folder


IDS = np.arange(40, 60, dtype=np.int32)[None]


@pytest.fixture(scope="module")
def logits(golden: Path) -> np.ndarray:
    """Of the run's own language model, adapters included."""
    network = AffectGPT(open_trained(golden / "run").config.model)

    def read(model: AffectGPT) -> Any:
        embeds = model.decoder.embed(jnp.asarray(IDS))
        positions = jnp.arange(IDS.shape[1])[None]
        return model.decoder.logits(model.decoder(embeds, positions, jnp.ones_like(positions)))

    return np.asarray(
        jax.jit(lambda params: network.apply({"params": params}, method=read))(nest(run_parameters(golden / "run")))
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_runs_as_it_stands(kind: Any, golden: Path, logits: np.ndarray, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    export(golden / "run", tmp_path / "FOLDER", kind, parity=False)
    card = model_card(golden / "run", open_trained(golden / "run"), kind, None)
    names = {"FOLDER": tmp_path / "FOLDER", "RUN": tmp_path / "RUN", "CLIP.mp4": golden / "clip.mp4"}
    names |= {"FACES.npy": golden / "faces.npy", "LANGUAGE": golden / "language", "VISION": golden / "vision"}
    names |= {"AUDIO": golden / "audio", "TOKENIZER": ROOT / golden_run(FACES, golden).config.weights.tokenizer}

    def filled(code: str) -> str:
        return re.sub(r"\b(" + "|".join(map(re.escape, names)) + r")\b", lambda m: str(names[m[0]]), code)

    (shell,) = blocks(card, "bash")
    convert, predict = (shlex.split(filled(line))[1:] for line in shell.splitlines())
    assert main(convert) == 0
    written, origin = open_trained(tmp_path / "RUN"), open_trained(golden / "run")
    for path, leaf in paths({"fusion": origin.params["fusion"]}).items():
        np.testing.assert_array_equal(paths(written.params)[path], leaf)
    if kind == "merged":
        assert main([*predict, "--max-new", "8"]) == 0

    python = blocks(card, "python")
    assert len(python) == (kind != "pth")
    for code in python:
        made: dict[str, Any] = {}
        exec(filled(code).replace("=200", "=8"), made)
        model = getattr(made["model"], "language_model", made["model"])
        found = model(input_ids=torch.from_numpy(IDS)).logits.detach().numpy()
        np.testing.assert_allclose(found, logits, atol=2e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The facts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint at the third, and scores of the last one."""
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    config = tiny_config(folder)
    train(config, folder / "run")
    corpus = open_shards(config, "test")
    scores = {
        "hit_rate": {"value": 0.5, "low": 0.25, "high": 0.755},
        "f_score": {"value": 0.4, "low": 0.3, "high": 0.5},
    }
    lost = {
        "hit_rate": {"value": 0.1, "low": 0.0, "high": 0.2},
        "f_score": dict.fromkeys(("value", "low", "high"), np.nan),
    }
    by_need = {"face": {"clips": 3, "hit_rate": {"all modalities": 2 / 3, "without face": 1 / 3}}}
    found = Evaluation({"all modalities": scores, "without face": lost}, by_need, {}, [])
    write_evaluation(found, corpus, folder / "run", {"step": 6, "split": "test", "table": "affectgpt-small"})
    return folder


def test_facts_are_those_of_the_run(tiny: Path) -> None:
    trained = open_trained(tiny / "run", 3)
    card = model_card(tiny / "run", trained, "merged", None)
    corpus = open_shards(trained.config, "train")
    data = lines(card, "Training data")
    assert data["clips"] == "23 train, 2 validation, 6 test"
    assert data["fingerprint"] == f"`{corpus.fingerprint}` (train, face@8, audio@8)"
    assert data["corpus"] == "unknown"
    settings = lines(card, "Settings")
    assert settings["steps"] == "3 of 6"
    assert settings["LoRA"].startswith("rank 2, alpha 32, on q_proj")
    assert settings["batch"] == "4 rows of 256 tokens with 2 samples at most, 2 a step"
    assert "rate 0.001 to 1e-05, warm-up 2 steps" in settings["optimizer"]
    hardware = lines(card, "Hardware")
    assert hardware["devices"] == "1 cpu"
    logged = [json.loads(line) for line in (tiny / "run" / "metrics.jsonl").read_text().splitlines()]
    speed = np.median([line["samples_per_s"] for line in logged if line["step"] <= 3])
    assert f"{speed:,.1f} samples a second" in hardware["median speed"]
    assert "Unknown: it was not opened again" in card


def test_scores_are_those_of_the_checkpoint(tiny: Path) -> None:
    trained, path = open_trained(tiny / "run"), tiny / "run" / "scores.json"
    card = model_card(tiny / "run", trained, "merged", None)
    assert "|  | hit rate | F |" in card
    assert "| all modalities | 50.00 [25.00, 75.50] | 40.00 [30.00, 50.00] |" in card
    assert "| without face | 10.00 [0.00, 20.00] | - |" in card
    assert "6 clips of test, words grouped by affectgpt-small" in card
    assert "|  | need face (3) |" in card
    assert "| all modalities | 66.67 |" in card
    assert "| without face | 33.33 |" in card
    earlier = model_card(tiny / "run", open_trained(tiny / "run", 3), "merged", None)
    assert "Not scored; the run's scores are those of step 6." in earlier
    path.rename(path.with_suffix(".kept"))
    none = model_card(tiny / "run", trained, "merged", None)
    path.with_suffix(".kept").rename(path)
    assert "Not scored.\n" in none
    assert "hit rate" not in earlier + none


def test_what_is_not_known_is_not_said(tiny: Path, golden: Path) -> None:
    """Shards that are not at hand or not those of the training, and weights that came from elsewhere."""
    trained = open_trained(tiny / "run")
    for shards in ("", "elsewhere"):
        data = trained.config.data.model_copy(update={"shards": shards})
        other = trained._replace(config=trained.config.model_copy(update={"data": data}))
        assert "clips" not in lines(model_card(tiny / "run", other, "merged", None), "Training data")
    moved = trained._replace(
        config=trained.config.model_copy(
            update={"data": trained.config.data.model_copy(update={"split": "validation"})}
        )
    )
    assert "clips" not in lines(model_card(tiny / "run", moved, "merged", None), "Training data")

    card = model_card(golden / "run", open_trained(golden / "run"), "pth", None)
    assert "Unknown: the run was not trained here" in card
    assert "Hardware" not in card
    assert not {"optimizer", "batch", "steps", "seed"} & set(lines(card, "Settings"))
    assert str(golden) not in card  # folders of this machine are nobody's business


def test_corpora(golden: Path, tmp_path: Path) -> None:
    trained = open_trained(golden / "run")

    def card(*marks: str) -> tuple[str, dict[str, Any]]:
        for mark in marks:
            (tmp_path / mark).touch()
        prepare = trained.config.prepare.model_copy(update={"corpus": str(tmp_path)})
        known = trained._replace(config=trained.config.model_copy(update={"prepare": prepare}))
        text = model_card(golden / "run", known, "transformers", None)
        return text, data_of(text)

    gated, drawn = "MER-Caption is CC BY-NC 4.0", "It knows drawn faces and made voices only"
    text, data = card()
    assert (gated in text, drawn in text, data.get("datasets")) == (True, False, None)
    text, data = card("track2_train_mercaptionplus.csv")
    assert (gated in text, drawn in text, data["datasets"]) == (True, False, ["MERChallenge/MER2025"])
    text, data = card("synth_attributes.csv")
    assert (gated in text, drawn in text, data.get("datasets")) == (False, True, None)


def test_front_matter(golden: Path) -> None:
    """As the Hub's library reads it; base models are named where their folder is one of the Hub's cache."""
    trained = open_trained(golden / "run")
    for kind in KINDS:
        data = data_of(model_card(golden / "run", trained, kind, None))
        assert data["license"] == "other"
        assert "base_model" not in data
    assert data["pipeline_tag"] == "video-text-to-text"
    snapshots = [
        f"/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/{'a' * 40}",
        "/hub/models--openai--clip/snapshots/b",
    ]
    weights = trained.config.weights.model_copy(update={"language": snapshots[0], "vision": snapshots[1]})
    cached = trained._replace(config=trained.config.model_copy(update={"weights": weights}))
    found = {kind: data_of(model_card(golden / "run", cached, kind, None)) for kind in ("adapter", "transformers")}
    assert found["adapter"]["base_model"] == ["Qwen/Qwen2.5-7B-Instruct"]
    assert found["adapter"]["library_name"] == "peft"
    assert found["transformers"]["base_model"] == ["Qwen/Qwen2.5-7B-Instruct", "openai/clip"]


def test_parity_and_citation(golden: Path) -> None:
    found = {"largest": 1.5e-6, "mean": 2.25e-7, "positions": 12, "argmax_differs": 1, "argmax_differs_clearly": 0}
    card = model_card(golden / "run", open_trained(golden / "run"), "merged", {"differences": {"float32": found}})
    assert "| float32 | 1.50e-06 | 2.25e-07 | 12 | 1 | 0 |" in card
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    for part in (citation["title"], paper["title"], paper["identifiers"][0]["value"], f"{paper['year']}"):
        assert part in card
    for part in ("Not a diagnosis", "no basis for decisions about people", "statistical guess"):
        assert part.lower() in card.lower()


@pytest.mark.parametrize(
    ("config", "step", "kind", "name"),
    [
        ("7b_face", 300_000, "transformers", "affectgpt-mercaptionplus-face-audio-text-7b-step300000"),
        ("7b_frame", 30, "adapter", "affectgpt-mercaptionplus-frame-audio-text-7b-step30-adapter"),
        ("3b_face", 30, "merged", "affectgpt-mercaptionplus-face-audio-text-3b-step30-merged"),
        ("1.5b_face", 30, "transformers", "affectgpt-mercaptionplus-face-audio-text-1.5b-step30"),
        ("0.5b_face", 30, "pth", "affectgpt-mercaptionplus-face-audio-text-494m-step30-pth"),
    ],
)
def test_names(config: str, step: int, kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "track2_train_mercaptionplus.csv").touch()
    read = load_config(f"affectgpt_qwen2.5_{config}", [f"prepare.corpus={tmp_path}"])
    assert card_name(Trained(read, None, {}, step, ""), kind) == name  # type: ignore[arg-type]
    validate_repo_id(f"owner/{name}")
    odd = load_config(f"affectgpt_qwen2.5_{config}", ["data.shards=/data/My Clips..(v2)--" + "x" * 200])
    found = card_name(Trained(odd, None, {}, step, ""), kind)  # type: ignore[arg-type]
    assert found.startswith("affectgpt-my-clips-v2-xxx")
    validate_repo_id(f"owner/{found}")


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "fusion").mkdir(parents=True)
    (folder / "README.md").write_text("# card\n")
    (folder / "fusion" / "config.json").write_text("{}")
    (folder / "parity.json").write_text(json.dumps({"files": {"fusion/config.json": "0"}}))
    return folder


def hub(*, private: bool) -> Any:
    """The Hub's client without a network: calls that the real one would not take fail."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.create_repo.return_value = huggingface_hub.RepoUrl("https://huggingface.co/owner/name")
    api.repo_info.return_value.private = private
    return api


def test_a_complete_folder_is_sent(complete: Path) -> None:
    api = hub(private=True)
    assert push(complete, "owner/name", private=True, api=api) == "https://huggingface.co/owner/name"
    api.create_repo.assert_called_once_with("owner/name", private=True, exist_ok=True)
    sent = api.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["folder_path"]) == ("owner/name", complete)


def test_the_card_names_the_repository(complete: Path) -> None:
    api = hub(private=False)
    (complete / "README.md").write_text("---\nlicense: other\n---\n\n# affectgpt-face-7b-step100\n\n# more\n")
    push(complete, "owner", private=False, api=api)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "owner/affectgpt-face-7b-step100"


def test_a_dry_run_lists_and_sends_nothing(complete: Path) -> None:
    api = hub(private=True)
    listing = push(complete, "owner/name", private=True, api=api, dry_run=True)
    assert not api.mock_calls
    assert [line.split() for line in listing.splitlines()[:2]] == [["7", "README.md"], ["2", "fusion/config.json"]]
    total = sum(path.stat().st_size for path in complete.rglob("*") if path.is_file())
    assert listing.splitlines()[-1].split()[:4] == [str(total), "bytes", "in", "3"]


@pytest.mark.parametrize("lost", ["parity.json", "README.md", "fusion/config.json"])
def test_half_a_folder_is_not_sent(lost: str, complete: Path) -> None:
    (complete / lost).unlink()
    api = hub(private=True)
    with pytest.raises(UserError, match=lost):
        push(complete, "owner/name", private=True, api=api)
    assert not api.mock_calls


@pytest.mark.parametrize("repo", ["na me", "owner/name/more", "owner/na me", "owner/na--me", "", "/name"])
def test_names_that_cannot_be(repo: str, complete: Path) -> None:
    api = hub(private=True)
    with pytest.raises(UserError, match="name"):
        push(complete, repo, private=True, api=api)
    assert not api.mock_calls


def test_a_public_repository_gets_nothing_private(complete: Path) -> None:
    api = hub(private=False)
    with pytest.raises(UserError, match="public, so nothing was sent"):
        push(complete, "owner/name", private=True, api=api)
    api.upload_folder.assert_not_called()
    push(complete, "owner/name", private=False, api=api)
    api.upload_folder.assert_called_once()


def test_what_keeps_it_from_the_hub(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = hub(private=True)
    api.upload_folder.side_effect = RuntimeError("413 too large")
    with pytest.raises(UserError, match=r"owner/name: .*413 too large"):
        push(complete, "owner/name", private=True, api=api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push(complete, "owner/name", private=True)


def test_a_token_that_is_given_is_used(complete: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = hub(private=True)
    seen = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: seen.append(token) or api)
    push(complete, "owner/name", private=True, token="hf_given")
    assert seen == ["hf_given"]
