"""Out and back: every kind of export of every golden setting, opened by ourselves and by others."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

from affectgpt_jax.cli import main
from affectgpt_jax.config import save_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.export import KINDS, export, open_whole
from affectgpt_jax.exchange.parity import Opened, compare
from affectgpt_jax.exchange.sources import read_export
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.runs import Run, Trained, open_trained, write_run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.weights.files import INDEX, Item, SafetensorsFolder, read_file, write_file, write_folder
from affectgpt_jax.weights.pth import read_pth
from affectgpt_jax.weights.table import paths
from tests.config.test_reference import settings
from tests.exchange.runs import STEP, golden_queries, golden_run, write_bases
from tests.parity import goldens
from tests.tiny_run import AUDIO_WIDTH, VISION_WIDTH, make_shards

pytestmark = pytest.mark.slow

FACES = goldens.find(mode="multiface_audio_face_text")
SETTINGS = goldens.settings()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    write_bases(folder)
    return folder


@pytest.fixture(scope="module")
def half_bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a language model in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    write_bases(folder, ml_dtypes.bfloat16)
    return folder


@pytest.fixture(scope="module")
def run(bases: Path) -> Path:
    """A run folder of one setting."""
    write_run(golden_run(FACES, bases), bases / "run")
    return bases / "run"


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    export(run, out, "merged")
    return out


def same(one: Any, other: Any) -> None:
    one, other = paths(one), paths(other)
    assert set(one) == set(other)
    for path, leaf in one.items():
        assert np.asarray(leaf).tobytes() == np.asarray(other[path]).tobytes(), path


@pytest.mark.parametrize("name", SETTINGS)
def test_out_and_back(name: str, bases: Path, tmp_path: Path) -> None:
    """Of every setting: the run folder, adapters, fusion and checkpoint come back bit for bit, whatever the mode uses;
    so does the fusion beside a merged model, whose own rounding the next test bounds."""
    trained = golden_run(name, bases)
    write_run(trained, tmp_path / "run")
    again = open_trained(tmp_path / "run")
    same(again.params, trained.params)
    assert again.config == trained.config
    for kind in KINDS:
        if kind == "pth":
            pytest.importorskip("torch")
        export(tmp_path / "run", tmp_path / kind, kind, parity=False)
        back = read_export(tmp_path / kind)
        if kind in ("adapter", "pth"):
            same(back.params, trained.params)
        else:
            same(back.params["fusion"], trained.params["fusion"])
            assert back.config.model.decoder.lora.rank == 0
        assert back.config.model.mode == trained.config.model.mode


@pytest.mark.parametrize("kind", KINDS)
def test_parity_reports(kind: Any, run: Path, tmp_path: Path) -> None:
    """What is written beside an export, and that `verify` finds the same."""
    if kind == "pth":
        pytest.importorskip("torch")
    report = export(run, tmp_path / "out", kind)
    assert report is not None
    single, half = report["differences"]["float32"], report["differences"]["bfloat16"]
    if kind in ("adapter", "pth"):
        assert single["largest"] == half["largest"] == 0.0
    else:
        assert 0 < single["largest"] < 1e-4
        assert single["argmax_differs"] == 0
    assert half["argmax_differs_clearly"] == 0
    assert report["step"] == STEP
    assert set(report["base"]) == {"language", "vision", "audio"}
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_an_upload_is_listed_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), str(tmp_path / "out"), "--as", "adapter"]
    assert main([*words, "--to-hub", "someone", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "adapter_model.safetensors" in shown
    assert "README.md" in shown
    assert re.search(rf"for someone/affectgpt-face-audio-text-\d+k-step{STEP}-adapter; nothing was sent", shown)
    assert main([*words, "--overwrite", "--private"]) == 2
    assert "give --to-hub" in capsys.readouterr().err


def test_for_others(run: Path, bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What goes to the Hub names no folder of this machine; whoever has it says where theirs are."""
    words = ["export", str(run), str(tmp_path / "out"), "--as", "adapter"]
    assert main([*words, "--to-hub", "someone", "--dry-run"]) == 0
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or str(tmp_path.parent).encode() not in file.read_bytes(), file
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "tokenizer_tiny: no tokenizer here" in capsys.readouterr().err
    theirs = {"tokenizer": goldens.MODELS / "tokenizer_tiny", "language": bases / "language"}
    where = [f"weights.{part}={folder}" for part, folder in theirs.items()]
    widths = [f"weights.{part}={bases / part}" for part in ("vision", "audio")]
    assert main(["verify", str(tmp_path / "out"), *where, *widths]) == 0
    capsys.readouterr()
    shutil.copytree(bases / "language", tmp_path / "other")
    tensors = {name: np.asarray(x) for name, x in SafetensorsFolder(bases / "language").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(0.5)
    write_folder(tmp_path / "other", json.loads((bases / "language" / "config.json").read_text()), tensors)
    assert main(["verify", str(tmp_path / "out"), *where[:1], f"weights.language={tmp_path / 'other'}", *widths]) == 1
    shown = capsys.readouterr().out
    assert f"weights.language={tmp_path / 'other'} is not the folder that the run rested on" in shown
    assert "float32 logits differ" in shown


def test_verify_notices(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed number in the weights is found twice: by its hash and by what it computes."""
    file = merged / "fusion" / "fusion.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-5] ^= 0x40
    try:
        file.write_bytes(changed)
        assert main(["verify", str(merged)]) == 1
        shown = capsys.readouterr().out
        assert "fusion.safetensors: has changed" in shown
        file.unlink()
        assert main(["verify", str(merged)]) == 2
    finally:
        file.write_bytes(whole)
    assert main(["verify", str(merged)]) == 0


def test_converted_runs_answer(merged: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run made of an export is a run: it opens, and exports again to the same bytes."""
    assert main(["convert", "weights", str(merged), str(tmp_path / "again")]) == 0
    assert main(["convert", "weights", str(merged), str(tmp_path / "again")]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    back = open_trained(tmp_path / "again")
    assert back.config.weights.language == str(merged)
    export(tmp_path / "again", tmp_path / "out", "merged", parity=False)
    for name, tensor in SafetensorsFolder(merged).items():
        np.testing.assert_array_equal(np.asarray(SafetensorsFolder(tmp_path / "out")[name]), np.asarray(tensor))
    with pytest.raises(UserError, match=r"has no adapters .*--as merged"):
        export(tmp_path / "again", tmp_path / "adapter", "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_authors_checkpoints(bases: Path, tmp_path: Path) -> None:
    """Both golden .pth files become runs, hold the golden parameters, and go out again equal, name by name."""
    torch = pytest.importorskip("torch")
    for file in sorted(goldens.MODELS.glob("*.pth")):
        name = file.name.split("_checkpoint")[0]
        write_run(golden_run(name, bases), tmp_path / f"{name}-config")
        config = tmp_path / f"{name}-config" / "config.yaml"
        trained = read_export(file, str(config))
        assert trained.step == STEP  # one epoch
        expected = goldens.arrays(name)
        again = tmp_path / name
        write_run(trained, again)
        export(again, tmp_path / f"{name}-pth", "pth", parity=False)
        (out,) = (tmp_path / f"{name}-pth").glob("*.pth")
        theirs = torch.load(file, weights_only=True)["model"]
        ours = torch.load(out, weights_only=True)["model"]
        parameters = {key for key in theirs if not key.endswith("position_ids")}
        assert set(ours) == parameters
        for key in parameters:
            assert ours[key].dtype == theirs[key].dtype
            assert torch.equal(ours[key], theirs[key]), key
            if f"w3/{key}" in expected:
                np.testing.assert_array_equal(ours[key].numpy(), expected[f"w3/{key}"])


def test_the_authors_checkpoints_alone(bases: Path, tmp_path: Path) -> None:
    """From the command line, with what such a file says of itself: the loss of the golden batch is the golden one."""
    folders = [f"weights.{part}={bases / part}" for part in ("language", "vision", "audio")]
    for file in sorted(goldens.MODELS.glob("*.pth")):
        g = goldens.golden(file.name.split("_checkpoint")[0])
        # The number of heads shows in no shape; the published one is 12.
        settings = [
            *folders,
            f"weights.tokenizer={goldens.MODELS / 'tokenizer_tiny'}",
            f"model.mode={g.config.mode}",
            f"model.qformer.heads={g.config.qformer.heads}",
        ]
        run = tmp_path / file.stem
        assert main(["convert", "weights", str(file), str(run), *settings]) == 0
        opened = open_whole(open_trained(run))
        network = AffectGPT(opened.config.model)
        sums = jax.jit(lambda p, b, network=network: network.apply({"params": p}, b))(opened.params, goldens.batch(g))
        np.testing.assert_allclose(sums.loss / sums.weight, g.data["opt/loss_after"], atol=1e-5, rtol=0)


def test_the_authors_run_starts_here(bases: Path, tmp_path: Path) -> None:
    """Their settings as they are, with folders named and fewer steps: trained, and out as their checkpoint."""
    make_shards(tmp_path / "shards", {"train": 9})
    theirs, ours, run = tmp_path / "theirs.yaml", tmp_path / "ours.yaml", tmp_path / "run"
    short = {"run__max_epoch": 2, "run__iters_per_epoch": 2, "run__warmup_steps": 1, "model__max_length": 254}
    theirs.write_text(yaml.safe_dump(settings(**short)))
    folders = [f"weights.language={bases / 'language'}", f"weights.tokenizer={goldens.MODELS / 'tokenizer_tiny'}"]
    widths = [f"model.vision_width={VISION_WIDTH}", f"model.audio_width={AUDIO_WIDTH}"]
    data = [f"data.shards={tmp_path / 'shards'}", "prepare.corpus=corpus"]
    assert main(["convert", "config", str(theirs), str(ours), *folders, *widths, *data]) == 0
    assert main(["train", str(ours), f"train.output={run}"]) == 0
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([loss for loss in losses if loss is not None]).all()
    pytest.importorskip("torch")
    export(run, tmp_path / "out", "pth", parity=False)
    (file,) = (tmp_path / "out").glob("*.pth")
    assert re.fullmatch(r"checkpoint_000002_loss_\d+\.\d{3}\.pth", file.name)
    back = read_pth(file)
    assert back.config
    assert back.config["run"]["init_lr"] == 1e-5
    assert any(np.asarray(x).any() for name, x in back.tensors.items() if ".lora_B." in name)


def test_a_checkpoint_of_another_rank(bases: Path, tmp_path: Path) -> None:
    file = sorted(goldens.MODELS.glob("*.pth"))[0]
    trained = golden_run(file.name.split("_checkpoint")[0], bases)
    rank = trained.config.model.decoder.lora.rank
    lora = trained.config.model.decoder.lora.model_copy(update={"rank": rank + 4})
    decoder = trained.config.model.decoder.model_copy(update={"lora": lora})
    model = trained.config.model.model_copy(update={"decoder": decoder})
    write_config = trained.config.model_copy(update={"model": model})
    save_config(write_config, tmp_path / "config.yaml")
    write_run(trained, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "adapter", "adapter", parity=False)
    for source in (file, tmp_path / "adapter"):
        with pytest.raises(UserError, match=rf"decoder\.lora\.rank: {rank} in the file, expected {rank + 4}"):
            read_export(source, str(tmp_path / "config.yaml"))


def test_interrupted_and_existing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted export leaves nothing that looks complete, and the older one as it was."""
    out = tmp_path / "out"
    export(run, out, "adapter", parity=False)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UserError, match="give --overwrite"):
        export(run, out, "adapter", parity=False)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("affectgpt_jax.exchange.export.write_fusion", stop)
    for target in (out, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            export(run, target, "adapter", overwrite=True, parity=False)
    monkeypatch.undo()
    assert (out / "adapter_model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["out"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("affectgpt_jax.exchange.export.write_fusion", full)
    with pytest.raises(UserError, match="No space left on device"):
        export(run, out, "adapter", overwrite=True, parity=False)
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("name", SETTINGS)
def test_others_compute_our_logits(name: str, bases: Path, tmp_path: Path) -> None:
    """PEFT on transformers' base model, transformers on the merged one, and the whole model in one folder."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    write_run(golden_run(name, bases), tmp_path / "run")
    for kind in KINDS:
        export(tmp_path / "run", tmp_path / kind, kind, parity=False)
    language = transformers.Qwen2ForCausalLM
    base = language.from_pretrained(bases / "language", dtype=torch.float32)
    merged, loading = language.from_pretrained(tmp_path / "merged", dtype=torch.float32, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    whole, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "transformers", trust_remote_code=True, output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))

    g = goldens.golden(name)
    batch = goldens.batch(g)
    ours = batch_logits(open_whole(open_trained(tmp_path / "run")), batch)
    mask = torch.from_numpy(g.data["in/attention_masks"])
    expected = ours[mask.numpy()]
    embeds = torch.from_numpy(g.data["out/inputs_embeds"])
    features = {stream: torch.from_numpy(np.array(x)) for stream, x in goldens.encoder_features(g).items()}
    ids = torch.from_numpy(g.data["in/input_ids"])
    with torch.no_grad():
        for model in (peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval(), merged.eval()):
            found = model(inputs_embeds=embeds, attention_mask=mask).logits[mask].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
        found = whole.eval()(ids, attention_mask=mask, features=features).logits[mask].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

        # The checkpoint, into what its authors build: new adapters by PEFT, new layers between.
        (file,) = (tmp_path / "pth").glob("*.pth")
        tensors = torch.load(file, weights_only=True)["model"]
        rules = peft.LoraConfig.from_pretrained(tmp_path / "adapter")
        fresh = language.from_pretrained(bases / "language", dtype=torch.float32)
        theirs = peft.get_peft_model(fresh, rules).eval()
        adapters = {key: x for key, x in tensors.items() if key.startswith("llama_model.")}
        loaded = theirs.load_state_dict({key.removeprefix("llama_model."): x for key, x in adapters.items()}, False)
        assert not loaded.unexpected_keys
        assert not [key for key in loaded.missing_keys if "lora_" in key]
        for parameter in whole.fusion.parameters():
            parameter.fill_(torch.nan)
        whole.fusion.load_state_dict({key: x for key, x in tensors.items() if key not in adapters})
        embeds = whole.inputs_embeds(ids, features)
        found = theirs(inputs_embeds=embeds, attention_mask=mask).logits[mask].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_merged_chooses_as_unmerged(name: str, bases: Path, half_bases: Path, tmp_path: Path) -> None:
    """Greedy answers in float32 are the same; in bfloat16, teacher-forced, so is every clear choice of a token."""
    runs = {}
    for dtype, folder in (("float32", bases), ("bfloat16", half_bases)):
        trained = with_dtype(golden_run(name, folder), dtype)
        write_run(trained, tmp_path / dtype)
        export(tmp_path / dtype, tmp_path / f"{dtype}-merged", "merged", parity=False)
        runs[dtype] = open_whole(trained), open_whole(read_export(tmp_path / f"{dtype}-merged"))
    unmerged, merged = (
        Answerer(Run(tmp_path, *opened[:2], AffectGPT(opened.config.model), opened.params, 0), batch=3, max_new=20)
        for opened in runs["float32"]
    )
    queries = golden_queries(name)
    assert queries
    for one, other in zip(unmerged(queries), merged(queries), strict=True):
        assert isinstance(one, Answer)
        assert one == other
    g = goldens.golden(name)
    expected, found = (batch_logits(opened, goldens.batch(g)) for opened in runs["bfloat16"])
    mask = g.data["in/attention_masks"]
    difference = compare(found[mask], expected[mask])
    assert difference.positions == mask.sum()
    assert difference.argmax_differs_clearly == 0
    assert difference.largest > 0


def with_dtype(trained: Trained, dtype: str) -> Trained:
    """The same, computed in another type."""
    model = trained.config.model
    decoder = model.decoder.model_copy(update={"dtype": dtype})
    config = trained.config.model_copy(update={"model": model.model_copy(update={"decoder": decoder})})
    return trained._replace(config=config)


def batch_logits(opened: Opened, batch: Batch) -> np.ndarray:
    """Logits float32 [rows, T, V] of a batch."""
    network = AffectGPT(opened.config.model)
    logits = jax.jit(lambda p, b: network.apply({"params": p}, b, method="logits"))(opened.params, batch)
    return np.asarray(logits, np.float32)


def test_transformers_opens_the_tokenizer(merged: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    ours = open_tokenizer(merged)
    text = "Hello there<FaceHere> and ###Assistant: "
    assert tokenizer(text)["input_ids"] == ours.encode(text)
    assert tokenizer.convert_tokens_to_ids("<FaceHere>") == ours.placeholders["face"]


def test_bfloat16_base(half_bases: Path, tmp_path: Path) -> None:
    """Merged into bfloat16 the weights are the float32 sum rounded once."""
    trained = golden_run(FACES, half_bases)
    write_run(trained, tmp_path / "run")
    report = export(tmp_path / "run", tmp_path / "out", "merged")
    assert report is not None
    assert report["differences"]["bfloat16"]["argmax_differs_clearly"] == 0
    assert not (tmp_path / "out" / INDEX).exists()
    g = goldens.golden(FACES)
    name = "model.layers.0.mlp.up_proj.weight"
    adapter = "llama_model.base_model.model.model.layers.0.mlp.up_proj.lora_{}.default.weight"
    base = goldens.base_weights("qwen/")[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    lora = trained.config.model.decoder.lora
    expected = base + lora.alpha / lora.rank * (g.data["w/" + adapter.format("B")] @ g.data["w/" + adapter.format("A")])
    found = SafetensorsFolder(tmp_path / "out")[name]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.asarray(found), expected.astype(ml_dtypes.bfloat16))
    kept = SafetensorsFolder(tmp_path / "out")["model.norm.weight"]
    np.testing.assert_array_equal(
        np.asarray(kept), goldens.base_weights("qwen/")["model.norm.weight"].astype(ml_dtypes.bfloat16)
    )


def test_bad_input(run: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is one clear line."""
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--as", "merged"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["convert", "weights", str(tmp_path), str(tmp_path / "run")]) == 2
    assert "neither a .pth checkpoint" in capsys.readouterr().err
    assert main(["convert", "weights", str(merged)]) == 2
    assert "name the run folder to write" in capsys.readouterr().err
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "use_dora": True, "r": 4, "lora_alpha": 8})
    )
    assert main(["convert", "weights", str(odd), str(tmp_path / "run"), "--config", str(run / "config.yaml")]) == 2
    assert "use_dora=True is not supported" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "out"), "--as", "adapter", "--dtype", "bfloat16"]) == 2
    assert "keeps float32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_kind(run: Path, merged: Path, tmp_path: Path) -> None:
    """A base whose config.json says another width, or promises more digits than its files hold."""
    language = open_trained(run).config.weights.language
    assert language
    width = goldens.base_configs()["qwen"]["hidden_size"]
    for key, value, message in (
        ("hidden_size", width // 2, rf"lora_A\.default\.weight: \(\d+, {width}\), expected \(\d+, {width // 2}\)"),
        ("torch_dtype", "float32", r"promises float32, but lm_head\.weight is bfloat16"),
    ):
        folder = tmp_path / key
        shutil.copytree(language, folder)
        config = json.loads((folder / "config.json").read_text()) | {key: value}
        if key == "torch_dtype":
            halved = {name: np.asarray(x).astype(ml_dtypes.bfloat16) for name, x in SafetensorsFolder(language).items()}
            write_folder(folder, config, dict(sorted(halved.items())))
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=message):
            open_whole(read_export(run_with(run, tmp_path / f"{key}-run", folder), str(tmp_path / f"{key}-run.yaml")))
    halved = {
        name: np.asarray(x).astype(np.float16)
        for name, x in read_file(merged / "fusion" / "fusion.safetensors").items()
    }
    shutil.copytree(merged, tmp_path / "half")
    items = [Item(name, x.shape, x.dtype, lambda x=x: x) for name, x in halved.items()]
    write_file(tmp_path / "half" / "fusion" / "fusion.safetensors", items)
    with pytest.raises(UserError, match=r"fusion\.safetensors must be float32"):
        read_export(tmp_path / "half")


def run_with(run: Path, out: Path, language: Path) -> Path:
    """An adapter export of a run, and a config beside it that names another base."""
    export(run, out, "adapter", parity=False)
    config = open_trained(run).config
    weights = config.weights.model_copy(update={"language": str(language)})
    save_config(config.model_copy(update={"weights": weights}), out.with_suffix(".yaml"))
    return out


def test_compare_counts_clear_choices() -> None:
    expected = np.array([[1.0, 0.0, 0.0], [1.0, 1.0 - 2**-9, 0.0], [5.0, 1.0, 0.0]], np.float32)
    found = expected[:, [1, 0, 2]]
    difference = compare(found, expected)
    assert difference.positions == difference.argmax_differs == 3
    assert difference.argmax_differs_clearly == 2
    assert difference.largest == 4.0
