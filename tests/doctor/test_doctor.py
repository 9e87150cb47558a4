"""Every planted fault is found, by its name and with the right remedy; what is whole is green."""

import hashlib
import json
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from affectgpt_jax import accelerators
from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.cli import main
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.data.shard_schema import stream_directory
from affectgpt_jax.doctor import CHECKS, Finding, Question, examine, left_behind, machine, room
from affectgpt_jax.doctor.findings import fault, within
from affectgpt_jax.errors import UserError
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import make_mesh, parameter_shardings
from affectgpt_jax.unibench.official import FILES
from affectgpt_jax.weights.files import INDEX, SINGLE, write_folder
from affectgpt_jax.weights.initial import base_shapes, initial_parameters, parameter_shapes
from affectgpt_jax.weights.networks import DECODER
from affectgpt_jax.weights.table import paths, write_tree
from affectgpt_jax.weights.towers import weights_hash
from tests.conftest import reference_folder
from tests.inference.clip_run import random_tree
from tests.tiny_run import make_shards, make_tokenizer, tiny_config
from tests.tiny_towers import write_towers

COUNTS = {"train": 7, "validation": 2, "test": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, towers and shards that belong together."""
    folder = write_towers(tmp_path_factory.mktemp("whole"))
    make_tokenizer(folder / "tokenizer")
    hashes = {"face@8": weights_hash(folder / "vision"), "audio@8": weights_hash(folder / "audio")}
    make_shards(folder / "shards", COUNTS, frozenset({1}), "tiny towers", hashes)
    return folder


@pytest.fixture
def lab(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break."""
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("AFFECTGPT_WHEEL_DIR", raising=False)
    return Path(shutil.copytree(whole, tmp_path / "lab"))


def run_of(lab: Path, **changes: object) -> RunConfig:
    folders = {part: str(lab / part) for part in ("tokenizer", "vision", "audio")}
    return tiny_config(lab, weights=folders | changes.pop("weights", {}), **changes)  # type: ignore[operator]


def check(area: str, config: RunConfig | None = None, **more: object) -> list[Finding]:
    return list(examine(area, CHECKS[area], Question(config, name="tiny.yaml", **more)))  # type: ignore[arg-type]


def faults(area: str, config: RunConfig | None = None, **more: object) -> list[Finding]:
    return [finding for finding in check(area, config, **more) if finding.status == "fault"]


def the_fault(area: str, config: RunConfig | None = None, **more: object) -> Finding:
    (found,) = faults(area, config, **more)
    assert "\n" not in found.found + found.remedy
    return found


def flip(path: Path, place: int = -3) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def record_hashes(folder: Path) -> None:
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest()}  {SINGLE}\n")


def test_what_is_whole_is_green(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, of a run folder; every area is there."""
    record_hashes(lab / "vision")
    (lab / "run").mkdir()
    save_config(run_of(lab), lab / "run" / "config.yaml")
    assert main(["doctor", str(lab / "run"), "--json", str(lab / "doctor.json")]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    record = json.loads((lab / "doctor.json").read_text())
    assert [f["area"] for f in record["findings"] if f["status"] == "skipped"] == ["wheels"]
    found = {finding["area"]: finding["found"] for finding in record["findings"]}
    assert {f["status"] for f in record["findings"]} == {"ok", "skipped"}
    assert record["counts"]["ok"] == len(record["findings"]) - 1
    for area in (
        "environment", "versions", "devices", "all-reduce", "config", "weights.tokenizer", "weights.vision",
        "weights.audio", "data.shards", "encoder", "modalities", "start", "wheels", "mesh", "memory", "run folder",
        "cache", "temporary files", "clock", "open files",
    ):  # fmt: skip
        assert area in found
        assert f" {area} " in said
    assert found["weights.vision"].endswith("whole; 1 recorded hashes right")
    assert "no hash is recorded" in found["weights.audio"]
    assert found["modalities"].startswith("1 lack face@8: the model learns")
    assert "faults: 0, warnings: 0" in said


def test_a_machine_alone(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--fast"]) == 0
    said = capsys.readouterr().out
    assert "one device: nothing to exchange" in said
    assert "mesh" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demmo"], "no config demmo: .* did you mean demo"),
        (["demo", "train.steps"], "override 'train.steps': expected key=value"),
        (["--devices", "8"], "--devices 8: expected 1 or more, and a CONFIG"),
        (["demo", "--devices", "0"], "--devices 0: expected 1 or more"),
        (["demo", "--json", "no/such/file"], "there is no folder no/such"),
    ],
)
def test_usage_errors_give_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_wrong_key_is_a_fault_and_the_machine_is_examined_all_the_same(
    lab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "demo", "train.stps=3", "mesh.tensr=2", "--fast"]) == 1
    said = capsys.readouterr().out
    assert "unknown key train.stps\n" in said
    assert "-> nearest valid key: train.steps\n" in said
    assert "-> nearest valid key: mesh.tensor\n" in said
    assert "ok       run folder" in said
    assert "faults: 2" in said


# ---- weights


def test_a_changed_byte_against_sha256sums(lab: Path) -> None:
    record_hashes(lab / "vision")
    flip(lab / "vision" / SINGLE)
    found = the_fault("weights", run_of(lab))
    assert found.area == "weights.vision"
    assert f"{lab / 'vision' / SINGLE} has the hash " in found.found
    assert "SHA256SUMS says " in found.found
    assert f"hf download OWNER/NAME {SINGLE} --local-dir {lab / 'vision'} --force-download" in found.remedy
    assert faults("weights", run_of(lab), fast=True) == []
    (lab / "vision" / "SOURCE.json").write_text('{"item": "clip-vit-large-patch14"}')
    assert the_fault("weights", run_of(lab)).remedy == f"affectgpt fetch clip-vit-large-patch14 --to {lab}"


def test_a_changed_byte_against_what_hf_download_noted(lab: Path) -> None:
    said = lab / "audio" / ".cache" / "huggingface" / "download" / f"{SINGLE}.metadata"
    said.parent.mkdir(parents=True)
    said.write_text(f"{'a' * 40}\n{hashlib.sha256((lab / 'audio' / SINGLE).read_bytes()).hexdigest()}\n1764000000.0\n")
    assert "1 recorded hashes right" in check("weights", run_of(lab))[1].found
    flip(lab / "audio" / SINGLE)
    found = the_fault("weights", run_of(lab))
    assert found.area == "weights.audio"
    assert "the Hub says" in found.found


def test_a_changed_byte_in_the_cache_of_the_hub(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are named by their SHA-256 there, small ones by git's hash."""
    root = lab / "hub" / "models--own--tiny"
    snapshot, blobs = root / "snapshots" / ("c" * 40), root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    weights, table = (lab / "vision" / SINGLE).read_bytes(), b'{"a": 1}'
    git = hashlib.sha1(f"blob {len(table)}\0".encode() + table).hexdigest()
    for name, content, code in ((SINGLE, weights, hashlib.sha256(weights).hexdigest()), ("vocab.json", table, git)):
        (blobs / code).write_bytes(content)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / code)
    shutil.copy(lab / "vision" / "config.json", snapshot)
    config = run_of(lab, weights={"vision": str(snapshot)})
    assert "2 recorded hashes right" in check("weights", config)[0].found
    flip(blobs / git)
    found = the_fault("weights", config)
    assert found.remedy == "hf download own/tiny vocab.json --force-download"


def test_a_shard_of_the_weights_is_missing(lab: Path) -> None:
    folder = lab / "vision"
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    (folder / SINGLE).rename(folder / "model-1.safetensors")
    found = the_fault("weights", run_of(lab))
    assert found.found == f"{folder / 'model-2.safetensors'} is missing"
    assert found.remedy.startswith("hf download OWNER/NAME model-2.safetensors --local-dir")


@pytest.mark.parametrize(
    ("length", "what"), [(-100, "its header counts"), (60, "ends within its header"), (4, "ends within its header")]
)
def test_truncated_weights(lab: Path, length: int, what: str) -> None:
    file = lab / "audio" / SINGLE
    file.write_bytes(file.read_bytes()[:length])
    found = the_fault("weights", run_of(lab))
    assert (found.area, found.status) == ("weights.audio", "fault")
    assert str(file) in found.found
    assert what in found.found
    assert f"{SINGLE} --local-dir" in found.remedy


def test_weights_that_are_not_there(lab: Path) -> None:
    found = the_fault("weights", run_of(lab, weights={"vision": str(lab / "nowhere")}))
    assert found.found == f"{lab / 'nowhere'}: there is no such folder"
    assert found.remedy.startswith("weights.vision=FOLDER, or hf download")
    assert the_fault("weights", run_of(lab, weights={"vision": "own/tiny"})).remedy == "hf download own/tiny"
    (lab / "audio" / "config.json").write_text('{"model_type": "wav2vec2"}')
    assert "expected hubert" in the_fault("weights", run_of(lab)).found
    assert the_fault("tokenizer", run_of(lab, weights={"tokenizer": str(lab)})).area == "weights.tokenizer"


# ---- data


def test_a_broken_shard(lab: Path) -> None:
    (file,) = stream_directory(lab / "shards", "face@8").glob("*-validation.array_record-*")
    flip(file, 20)
    assert faults("data", run_of(lab)) == []  # nothing reads that split
    config = run_of(lab, validation__every=2)
    found = the_fault("data", config)
    assert f"{file} has checksum" in found.found
    assert found.remedy == f"rm -r {file.parent}; affectgpt prepare tiny.yaml"
    assert faults("data", config, fast=True) == []
    file.unlink()
    assert "is missing" in the_fault("data", config, fast=True).found


def test_a_corpus_of_another_encoder(lab: Path) -> None:
    shutil.rmtree(lab / "shards")
    make_shards(lab / "shards", COUNTS, weights={"face@8": "f" * 32, "audio@8": weights_hash(lab / "audio")})
    found = the_fault("data", run_of(lab))
    assert found.area == "encoder"
    assert found.found.startswith("face@8 was made by random with weights ffffffffffff..., weights.vision=")
    place = stream_directory(lab / "shards", "face@8")
    assert found.remedy == f"weights.vision=the folder that made it, or rm -r {place}; affectgpt prepare tiny.yaml"


def test_samples_that_lack_what_the_model_cannot_replace(lab: Path) -> None:
    config = run_of(lab, model__absent=False, data__hide={})
    found = the_fault("data", config)
    assert found.area == "modalities"
    assert found.found.startswith("of 7 samples 1 lack face@8")
    assert found.remedy.startswith("model.absent=true")
    config = run_of(lab, model__absent=False, data__hide={"text": 0.5})
    assert "1 lack face@8" in the_fault("data", config).found


def test_shards_that_are_not_there(lab: Path) -> None:
    config = run_of(lab, data__shards=str(lab / "none"))
    found = the_fault("data", config)
    assert "nothing is prepared there" in found.found
    assert found.remedy == f"affectgpt prepare tiny.yaml prepare.corpus=CLIPS data.shards={lab / 'none'}"
    config = run_of(lab, data__shards=str(lab / "none"), prepare={"corpus": "clips.csv"})
    clips, shards = check("data", config, clips=lambda name: 12)
    assert (clips.status, clips.found) == ("ok", "clips.csv: 12 clips")
    assert (shards.status, shards.remedy) == ("warning", "affectgpt prepare tiny.yaml")
    unread = the_fault("data", config)
    assert (unread.area, unread.remedy[:20]) == ("prepare.corpus", "prepare.corpus=CLIPS")


def test_a_split_that_the_corpus_lacks(lab: Path) -> None:
    shutil.rmtree(lab / "shards")
    make_shards(lab / "shards", {"train": 3})
    config = run_of(lab, weights={"vision": None, "audio": None}, validation__every=1)
    by_status = {finding.status: finding for finding in check("data", config) if finding.area == "data.shards"}
    assert by_status["fault"].remedy == "validation.split=train, or prepare that split"
    assert by_status["warning"].remedy == "evaluate.split=train, or prepare that split"


def test_shards_of_another_width(lab: Path) -> None:
    found = the_fault("data", run_of(lab, weights={"vision": None}, model__vision_width=16))
    assert "made with width=12, but the configuration expects 16" in found.found


def test_a_run_that_began_with_other_shards(lab: Path) -> None:
    checkpoints = Checkpoints(lab / "run" / "checkpoints", keep=1)
    checkpoints.save(3, {"params": {"x": jnp.zeros(2)}}, {"corpus": "0" * 64})
    checkpoints.close()
    found = the_fault("data", run_of(lab))
    assert found.area == "run folder"
    assert "train.other_corpus=true" in found.remedy
    assert faults("data", run_of(lab, train__other_corpus=True)) == []
    (begins,) = check("start", run_of(lab))
    assert begins.found.endswith("goes on from step 3 of 6")


def test_a_start_that_is_not_there(lab: Path) -> None:
    found = the_fault("start", run_of(lab, train__init_from=str(lab / "none")))
    assert found.remedy == "train.init_from=a folder or file that is there"
    (lab / "empty").mkdir()
    assert "neither a .pth checkpoint" in the_fault("start", run_of(lab, train__init_from=str(lab / "empty"))).found


# ---- wheels


def test_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"nothing")
    assert "is not a readable Excel table" in the_fault("wheels", wheel_dir=tmp_path).found
    (tmp_path / "wheel3.xlsx").unlink()
    found = the_fault("wheels", wheel_dir=tmp_path)
    assert "lacks wheel3.xlsx" in found.found
    assert found.remedy.startswith("affectgpt fetch emotion-wheels")
    monkeypatch.setenv("AFFECTGPT_WHEEL_DIR", str(tmp_path / "none"))
    assert "does not exist" in the_fault("wheels").found


def test_published_wheels() -> None:
    folder = reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench") / "emotion_wheel"
    assert [finding.status for finding in check("wheels", wheel_dir=folder)] == ["ok"]


# ---- room


def test_too_few_devices(lab: Path) -> None:
    found = the_fault("mesh", run_of(lab, mesh={"data": 16}))
    assert "needs 16 devices, 1 are there" in found.found
    assert found.remedy == "set one size to -1 to take what the others leave"
    assert check("mesh", run_of(lab, mesh={"data": 16}, train__rows=32), devices=16)[0].status == "ok"


def test_an_axis_that_does_not_divide_the_heads(lab: Path) -> None:
    found = the_fault("mesh", run_of(lab, mesh={"tensor": 4}), devices=4)
    assert found.found == "mesh.tensor=4 does not divide model.decoder.kv_heads=2"
    assert found.remedy == "use 2, the largest that does"
    assert check("memory", run_of(lab, mesh={"tensor": 4}), devices=6)[0].status == "skipped"
    rows = the_fault("mesh", run_of(lab), devices=8)
    assert (rows.found[:12], rows.remedy) == ("train.rows=4", "use 8")


def test_an_attention_that_these_devices_do_not_have(lab: Path) -> None:
    found = the_fault("mesh", run_of(lab, model__decoder__attention="splash"))
    assert found.found == "model.decoder.attention=splash runs on TPUs, found cpu"
    assert found.remedy == "set model.decoder.attention=auto or xla"


def test_memory_is_counted_by_the_mesh(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of(lab)
    arrays = room.parameters(room.resolved(config))
    assert all(parameter.bytes == 4 for parameter in arrays)
    trained = sum(parameter.entries for parameter in arrays if parameter.trained)
    alone = 4 * sum(parameter.entries for parameter in arrays) + 12 * trained
    (found,) = check("memory", config)
    assert found.found.startswith(f"{room.amount(alone)} of parameters")
    halves = [check("memory", run_of(lab, mesh={"fsdp": n}), devices=n)[0].found.split(" ")[0] for n in (1, 2)]
    assert float(halves[1]) < 0.6 * float(halves[0])
    monkeypatch.setattr(room, "host_memory", lambda: alone - 1)
    found = the_fault("memory", config)
    assert "mesh.fsdp" in found.remedy
    assert "model.decoder.base=int8" in found.remedy
    monkeypatch.setattr(room, "host_memory", lambda: int(1.1 * alone))
    assert check("memory", config)[0].status == "warning"


@pytest.mark.parametrize("base", ["float", "int8"])
def test_parameters_are_counted_as_they_are_held(lab: Path, base: str) -> None:
    """Byte by byte what a run over a base in bfloat16 makes of it."""
    sizes = room.resolved(run_of(lab)).model.decoder
    write_folder(lab / "language", sizes.to_hf(), {})
    wanted = base_shapes(
        run_of(lab, weights={"language": str(lab / "language")}), AffectGPT(ModelConfig(decoder=sizes))
    )
    write_folder(lab / "language", sizes.to_hf(), dict(write_tree(DECODER, random_tree(wanted, seed=0))))
    config = run_of(
        lab,
        weights={"language": str(lab / "language")},
        train__trainable=["^fusion/", "/lora_[ab]$"],
        model__decoder={"base": base, "dtype": "bfloat16", "lora": {"rank": 2}},
    )
    assert {finding.status for finding in [*check("weights", config), *check("config", config)]} == {"ok"}
    (lab / "language" / "config.json").write_text(json.dumps(sizes.to_hf() | {"num_hidden_layers": 1}))
    found = the_fault("weights", config)
    assert found.found.startswith(f"{lab / 'language'} does not fit the Qwen2 decoder it was read for")
    assert "not used: model.layers.1." in found.found
    (lab / "language" / "config.json").write_text(json.dumps(sizes.to_hf()))
    config = room.resolved(config)
    model = AffectGPT(config.model)
    made = initial_parameters(config, model, parameter_shardings(make_mesh(config.mesh), parameter_shapes(model)))
    counted = {p.path: p.entries * p.bytes for p in room.parameters(config)}
    assert counted == {path: leaf.nbytes for path, leaf in paths(made).items()}


def test_no_room_on_the_disk(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    config = run_of(lab, train__keep=4)
    each = 12 * sum(p.entries for p in room.parameters(room.resolved(config)) if p.trained)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage(10**12, 0, 2 * 10**9 + 5 * each))
    assert faults("disk", config) == []
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage(10**12, 0, 2 * 10**9 + 5 * each - 1))
    found = faults("disk", config)
    assert found[0].area == "run folder"
    assert f"needed are {room.amount(5 * each)} (2.0 GB with what else" in found[0].found
    assert found[0].found.endswith(f"for 5 checkpoints of {room.amount(each)}")
    assert found[0].remedy == "make room, or train.output=FOLDER on another disk, train.keep=1"
    assert found[1].remedy == "make room, or export AFFECTGPT_CACHE_DIR=FOLDER"


def test_no_room_in_shared_memory(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room, "SHARED", lab)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage(1, 0, 1000 if place == lab else 10**12))
    (found,) = [finding for finding in faults("disk", run_of(lab, data__workers=2)) if finding.area == "shared memory"]
    assert found.remedy == "docker run --shm-size 1g, or data.workers=0"


def test_a_run_folder_that_cannot_be_written(lab: Path) -> None:
    found = the_fault("disk", run_of(lab, train__output="/proc/affectgpt"))
    assert found.area == "run folder"
    assert found.found.startswith("/proc/affectgpt cannot be written: ")
    assert found.remedy.startswith("train.output=FOLDER")
    (lab / "file").write_text("")
    assert "cannot be written" in the_fault("disk", run_of(lab, train__output=str(lab / "file" / "run"))).found
    assert not list(lab.glob(".affectgpt-doctor-*"))


@pytest.mark.parametrize(("ahead", "word"), [(90, "behind"), (-90, "ahead of")])
def test_a_clock_that_is_off(lab: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, word: str) -> None:
    monkeypatch.setattr(room, "time", SimpleNamespace(time=lambda: time.time() - ahead))
    found = the_fault("clock", run_of(lab))
    assert found.found.startswith(f"this machine is 90 s {word} the file system of ")
    assert found.remedy.startswith("timedatectl set-ntp true")


def test_the_clock_of_the_network(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(room, "_network_time", lambda address: time.time() + 600)
    assert the_fault("clock", run_of(lab)).found == "this machine is 600 s behind http://hub.invalid"
    assert faults("clock", run_of(lab), fast=True) == []

    def silent(address: str) -> float:
        raise OSError("no route")

    monkeypatch.setattr(room, "_network_time", silent)
    (found,) = check("clock", run_of(lab))
    assert (found.status, found.found.rpartition("; ")[2]) == ("ok", "http://hub.invalid does not answer")


# ---- machine


def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.installed
    monkeypatch.setattr(machine, "installed", lambda name: {"flax": "0.10.1", "optax": None}.get(name, real(name)))
    flax, optax = faults("versions")
    assert (flax.found, flax.remedy) == ("flax 0.10.1, needed is flax>=0.12", "pip install 'flax>=0.12'")
    assert optax.found.startswith("optax is not installed")


def test_a_jaxlib_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    real, own = machine.installed, machine.installed("jax")
    monkeypatch.setattr(machine, "plugins", lambda: ["jax-cuda13-plugin"])
    others = {"jaxlib": "0.11.0", "jax-cuda13-plugin": own}
    monkeypatch.setattr(machine, "installed", lambda name: others.get(name, real(name)))
    found = the_fault("versions")
    assert (found.found, found.remedy) == (f"jaxlib 0.11.0 with jax {own}", f"pip install 'jaxlib=={own}'")


def test_an_accelerator_that_jax_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "DEV", tmp_path)
    monkeypatch.setattr(machine, "plugins", list)
    monkeypatch.setattr(machine, "installed", lambda name: None)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert faults("devices") == []
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    found = the_fault("devices")
    assert found.found == "2 NVIDIA GPUs are there, but jax has no CUDA"
    assert found.remedy == "pip install 'affectgpt-jax[cuda]'"
    monkeypatch.setattr(machine, "plugins", lambda: ["jax-cuda13-plugin"])
    assert the_fault("devices").remedy.startswith("JAX_PLATFORMS=cuda affectgpt doctor says why")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert check("devices")[0] == Finding(
        "devices", "warning", "2 NVIDIA GPUs are left alone: JAX_PLATFORMS=cpu", "unset JAX_PLATFORMS"
    )
    monkeypatch.delenv("JAX_PLATFORMS")
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "accel0").touch()
    assert the_fault("devices").remedy == "pip install 'affectgpt-jax[tpu]'"


def test_devices_that_do_not_appear(monkeypatch: pytest.MonkeyPatch, lab: Path) -> None:
    monkeypatch.setattr(machine, "find_devices", lambda: ((), "Unable to initialize backend 'cuda'"))
    monkeypatch.setattr(room, "find_devices", machine.find_devices)
    assert the_fault("devices").found == "Unable to initialize backend 'cuda'"
    assert check("all-reduce")[0].status == "skipped"
    assert check("mesh", run_of(lab))[0].remedy == "--devices N asks about a machine that has N"
    assert check("mesh", run_of(lab), devices=4)[0].status == "ok"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(platform="gpu", device_kind="chip", memory_stats=lambda: {"bytes_limit": 8 * 10**9})
    monkeypatch.setattr(machine, "find_devices", lambda: ((device, device), ""))


def test_sums_over_devices(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("devices")[-1].found == "2 x chip (gpu), 8.0 GB of memory each"
    monkeypatch.setattr(machine, "exchange", lambda devices, size: ([], 0.001))
    assert check("all-reduce")[0].found.startswith("67.1 GB/s over the bus: 67.1 MB on each of 2 devices in 1.00 ms")
    assert check("all-reduce", fast=True)[0].status == "skipped"
    monkeypatch.setattr(machine, "exchange", lambda devices, size: ([1], 0.001))
    found = the_fault("all-reduce")
    assert found.found == "devices 1 hold a wrong sum"
    assert found.remedy.startswith("NCCL_P2P_DISABLE=1 affectgpt doctor")


def test_a_sum_that_never_ends(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(machine, "EXCHANGE_SECONDS", 0.05)
    monkeypatch.setattr(machine, "exchange", lambda devices, size: done.wait())
    found = the_fault("all-reduce")
    assert found.found == "2 devices cannot sum an array: no answer within 0.05 s"
    assert found.remedy.startswith("NCCL_DEBUG=INFO affectgpt doctor")
    assert left_behind()
    done.set()


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    (found,) = check("limits")
    assert (found.status, found.remedy) == ("warning", "ulimit -n 1024")


def test_a_process_of_several(monkeypatch: pytest.MonkeyPatch, lab: Path) -> None:
    for name, value in {"JOB_ID": "7", "STEP_NODELIST": "a1", "PROCID": "1", "LOCALID": "1", "NTASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    _, process = check("environment")
    assert process.found.startswith("process 1 of 4 (Slurm)")
    assert "data=4" in check("mesh", run_of(lab))[0].found  # each of them is taken to have what this one has


# ---- the frame


def test_a_check_that_breaks_is_a_fault_and_no_more() -> None:
    def broken(question: Question) -> Iterator[Finding]:
        yield Finding("x", "ok", "so far")
        raise ZeroDivisionError("by nothing\nat all")

    first, second = examine("x", broken, Question())
    assert first.status == "ok"
    assert (second.status, second.found) == ("fault", "the check itself failed: ZeroDivisionError: by nothing")


@pytest.mark.parametrize(
    ("message", "found", "remedy"),
    [
        ("a=3 is odd; use 2", "a=3 is odd", "use 2"),
        ("/x/1.0.0/f is bad. Delete /x/1.0.0 and go.", "/x/1.0.0/f is bad", "Delete /x/1.0.0 and go"),
        ("a; b. Do c; or d.", "a; b", "Do c; or d"),
        ("several\n  lines; one remedy", "several lines", "one remedy"),
        ("nothing more", "nothing more", "mend what it names"),
    ],
)
def test_the_remedy_of_an_error(message: str, found: str, remedy: str) -> None:
    assert fault("x", UserError(message)) == Finding("x", "fault", found, remedy)


def test_work_with_an_end() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])


def test_a_random_language_model_that_stays_random(lab: Path) -> None:
    config = run_of(lab, train__trainable=["^fusion/", "/lora_[ab]$"])
    found = check("config", config)
    assert (found[0].status, found[0].remedy) == (
        "warning",
        "weights.language=FOLDER, or '^decoder/' in train.trainable",
    )
