"""`affectgpt fetch` against a server in a thread."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.fetch import catalogue, download, needs
from affectgpt_jax.fetch.catalogue import CATALOGUE, Address, Item, find_item, markdown
from affectgpt_jax.weights.files import SafetensorsFolder
from tests.conftest import ROOT
from tests.fetch.server import COMMIT, FakeServer, serve, sha256

WEIGHTS = bytes(range(256)) * 4000
MODEL = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "tf_model.h5": WEIGHTS[1:],
    "onnx/model.onnx": WEIGHTS[2:],
    ".gitattributes": b"*.safetensors filter=lfs",
}
SMALL, QWEN = "qwen2.5-0.5b-instruct", "models/Qwen/Qwen2.5-0.5B-Instruct"
MER, MER_NAME = "datasets/MERChallenge/MER2025", "mer2025"


@pytest.fixture(scope="module")
def one_server() -> Iterator[FakeServer]:
    with serve() as server:
        yield server


@pytest.fixture
def server(one_server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """The server as new; the Hub's address is its; no waiting; tmp_path is where one is; nobody is logged in."""
    one_server.__init__(port=one_server.port)  # type: ignore[misc]
    one_server.repos = {
        QWEN: dict(MODEL),
        MER: {"track2_train_mercaptionplus.csv": b"name,openset\n", "v.zip": WEIGHTS},
    }
    one_server.gated = {MER}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", one_server.url)
    template = one_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("AFFECTGPT_WHEEL_DIR", raising=False)
    monkeypatch.setattr(download, "WAITS", (0.0, 0.0))
    monkeypatch.chdir(tmp_path)
    return one_server


@pytest.fixture
def wheels(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Item:
    """The emotion wheels, at the server and of other content."""
    content = {"format.csv": b"name,format\n" * 9000, "wheel1.xlsx": b"wheel one"}
    server.plain = {f"/plain/{name}": x for name, x in content.items()}
    addresses = {name: Address(f"{server.url}/plain/{name}", len(x), sha256(x)) for name, x in content.items()}
    item = replace(find_item("emotion-wheels"), addresses=addresses)
    monkeypatch.setattr(catalogue, "CATALOGUE", tuple(item if x.name == item.name else x for x in CATALOGUE))
    return item


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_model(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", SMALL]) == 0
    folder = tmp_path / "models" / "Qwen2.5-0.5B-Instruct"
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert files(folder) == wanted | {"SHA256SUMS", "SOURCE.json"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((folder / "SOURCE.json").read_text())["revision"] == COMMIT
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{sha256(MODEL[name])}  {name}" for name in sorted(wanted)]
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    assert "use it with weights.language models/Qwen2.5-0.5B-Instruct" in capsys.readouterr().out
    asked = len(server.requests)
    assert main(["fetch", SMALL]) == 0
    assert len(server.requests) == asked, "what is complete asks no server"


def test_dry_run_writes_nothing(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", SMALL, "--dry-run", "--to", "elsewhere"]) == 0
    out = capsys.readouterr().out
    assert f"Qwen/Qwen2.5-0.5B-Instruct at {COMMIT}" in out
    assert f"{len(WEIGHTS):,}  model.safetensors" in out
    assert "bin" not in out
    total = sum(len(MODEL[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert f"{total:,}  bytes in 3 files, to elsewhere/Qwen2.5-0.5B-Instruct;" in out
    assert "free there" in out
    assert not server.fetched("model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_in_the_folder_is_fetched_again_and_kept(server: FakeServer) -> None:
    assert main(["fetch", SMALL]) == 0
    folder = Path("models/Qwen2.5-0.5B-Instruct")
    (folder / "config.json").write_bytes(b"something else")
    (folder / "tokenizer.json").unlink()
    before = len(server.requests)
    assert main(["fetch", SMALL]) == 0
    assert (folder / "config.json").read_bytes() == MODEL["config.json"]
    assert (folder / "config.json.bad").read_bytes() == b"something else"
    contents = [path for _, path, _, _ in server.requests[before:] if "/resolve/" in path]
    assert sorted(path.rpartition("/")[2] for path in contents) == ["config.json", "tokenizer.json"]


@pytest.mark.parametrize("resumes", [True, False])
def test_resumes_after_a_cut(
    server: FakeServer, wheels: Item, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    server.resumes = resumes
    server.cut = {"format.csv": 30_000}
    monkeypatch.setattr(download, "WAITS", ())
    assert main(["fetch", "emotion-wheels"]) == 2
    assert "run the command again: it goes on where it ended" in capsys.readouterr().err
    part = Path("data/emotion_wheel/format.csv.part")
    assert part.stat().st_size == 30_000
    assert main(["fetch", "emotion-wheels"]) == 0
    assert server.fetched("format.csv") == ["", "bytes=30000-"]
    assert (part.parent / "format.csv").read_bytes() == server.plain["/plain/format.csv"]
    assert files(part.parent) == {*wheels.addresses, "SHA256SUMS", "SOURCE.json"}


def test_goes_on_by_itself(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy, then cut, then redirected with the place in the file and without the token."""
    monkeypatch.setenv("HF_TOKEN", "granted")
    server.status = {"v.zip": [503]}
    server.cut = {"v.zip": 1000}
    assert main(["fetch", MER_NAME]) == 0
    cdn = [(token, span) for _, path, token, span in server.requests if path.startswith("/cdn/")]
    assert cdn == [("", ""), ("", ""), ("", "bytes=1000-")]
    assert {token for _, path, token, _ in server.requests if "/resolve/" in path} == {"Bearer granted"}
    assert Path("data/mer2025-dataset/v.zip").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_checksum(server: FakeServer, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Large files have SHA-256, small ones git's name."""
    server.broken = {name: MODEL[name][:-1] + b"!"}
    assert main(["fetch", SMALL]) == 2
    error = capsys.readouterr().err
    folder = Path("models/Qwen2.5-0.5B-Instruct")
    expected = sha256(WEIGHTS) if name != "config.json" else _git(MODEL[name])
    found = sha256(server.broken[name]) if name != "config.json" else _git(server.broken[name])
    for text in (str(folder / name), f"expected {expected}", found, f"{name}.bad"):
        assert text in error
    assert (folder / f"{name}.bad").read_bytes() == server.broken[name]
    assert not (folder / name).exists()
    assert not (folder / "SHA256SUMS").exists()
    server.broken = {}
    assert main(["fetch", SMALL]) == 0
    assert (folder / name).read_bytes() == MODEL[name]


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_what_an_owner_grants(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fetch", MER_NAME, SMALL]) == 1, "the other is fetched all the same"
    out = capsys.readouterr().out
    assert "the Hub has not granted MERChallenge/MER2025 to this account" in out
    for text in (
        "merchallenge.contact@gmail.com",
        "https://huggingface.co/datasets/MERChallenge/MER2025",
        "hf auth login",
    ):
        assert text in out
    assert not Path("data").exists()
    assert Path("models/Qwen2.5-0.5B-Instruct/SHA256SUMS").is_file()
    monkeypatch.setenv("HF_TOKEN", "granted")
    assert main(["fetch", MER_NAME, "--only", "*.csv"]) == 0
    assert files(Path("data/mer2025-dataset")) == {"track2_train_mercaptionplus.csv", "SHA256SUMS", "SOURCE.json"}
    assert "prepare.corpus=mercaptionplus:data/mer2025-dataset" in capsys.readouterr().out
    assert main(["fetch", MER_NAME]) == 0, "a part of it is not taken for all"
    assert Path("data/mer2025-dataset/v.zip").is_file()


def test_refused_while_it_is_fetched(server: FakeServer, wheels: Item, capsys: pytest.CaptureFixture[str]) -> None:
    server.status = {"wheel1.xlsx": [403]}
    assert main(["fetch", "emotion-wheels"]) == 1
    assert "is not granted to you (HTTP status 403)" in capsys.readouterr().out


def test_by_hand(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "iemocap", "affectgpt-ovmerd-face"]) == 1
    out = capsys.readouterr().out
    assert "https://sail.usc.edu/iemocap/iemocap_release.htm" in out
    assert "https://pan.baidu.com/s/" in out
    assert server.requests == []


def test_errors(
    server: FakeServer, wheels: Item, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: str) -> str:
        assert main(["fetch", *words]) == 2
        return capsys.readouterr().err

    assert "did you mean qwen2.5-7b-instruct" in error("Qwen/Qwen2.5-7B-Instruct")
    assert "no file fits '*.pth'; there are config.json, tokenizer.json, model.safetensors" in error(
        SMALL, "--only", "*.pth"
    )
    assert "--only chooses files of a NAME" in error("--only", "*.pth")
    assert "--for lists what a config needs" in error("--for", "demo", SMALL)
    del server.plain["/plain/wheel1.xlsx"]
    text = error("emotion-wheels")
    assert "wheel1.xlsx: nothing is at" in text
    assert "404" in text
    server.status = {"format.csv": [500] * 9}
    shutil.rmtree("data")
    assert "3 times in a row (HTTP status 500)" in error("emotion-wheels")
    server.repos[QWEN] = {"../outside.json": b"{}", "config.json": b"{}", "model.safetensors": WEIGHTS}
    shutil.rmtree("models", ignore_errors=True)
    assert main(["fetch", SMALL]) == 0, "only what a model has"
    server.repos[MER] = {"../outside.csv": b"name\n"}
    server.gated = set()
    assert "cannot lie in" in error(MER_NAME)
    del server.repos[QWEN]["model.safetensors"]
    shutil.rmtree("models")
    assert "has neither safetensors nor pytorch_model.bin" in error(SMALL)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 10))
    shutil.rmtree("data")
    assert "needs 108 kB more, and the disk of data/emotion_wheel has 10 bytes free" in error("emotion-wheels")
    assert not Path("data").exists()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error(SMALL)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    text = error(SMALL)
    assert "http://127.0.0.1:9 was not reached" in text
    assert "HF_ENDPOINT" in text


def test_a_part_of_another_file_is_dropped(server: FakeServer, wheels: Item) -> None:
    folder = Path("data/emotion_wheel")
    folder.mkdir(parents=True)
    (folder / "wheel1.xlsx.part").write_bytes(b"longer than the file is")
    assert main(["fetch", "emotion-wheels"]) == 0
    assert (folder / "wheel1.xlsx").read_bytes() == b"wheel one"


def test_torch_file_becomes_safetensors(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"encoder.a": torch.randn(3, 50), "encoder.b": shared.T, "c": shared[1], "n": torch.tensor(7)}
    torch.save(state, tmp_path / "made.bin")
    content = (tmp_path / "made.bin").read_bytes()
    repo = "models/TencentGameMate/chinese-hubert-large"
    server.repos[repo] = {"config.json": b"{}", "pytorch_model.bin": content, "x-fairseq-ckpt.pt": WEIGHTS}
    assert main(["fetch", "chinese-hubert-large"]) == 0
    folder = Path("models/chinese-hubert-large")
    assert files(folder) == {"config.json", "model.safetensors", "SHA256SUMS", "SOURCE.json"}
    for name, tensor in SafetensorsFolder(folder).items():
        np.testing.assert_array_equal(tensor, state[name].numpy())
    before = len(server.requests)
    assert main(["fetch", "chinese-hubert-large"]) == 0
    assert len(server.requests) == before
    (folder / "config.json").unlink()
    assert main(["fetch", "chinese-hubert-large"]) == 0
    assert not server.fetched("pytorch_model.bin")[2:], "what was made of a file stands for it"
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"damage")
    assert main(["fetch", "chinese-hubert-large"]) == 0
    assert sha256((folder / "model.safetensors").read_bytes()) in (folder / "SHA256SUMS").read_text()
    assert len(SafetensorsFolder(folder)) == len(state)
    server.repos[repo]["pytorch_model.bin"] = evil = _evil(tmp_path / "evil.bin")
    shutil.rmtree(folder)
    capsys.readouterr()
    assert main(["fetch", "chinese-hubert-large"]) == 2
    assert "nothing of it was run" in capsys.readouterr().err
    assert (folder / "pytorch_model.bin").read_bytes() == evil


def _evil(path: Path) -> bytes:
    import torch

    class Evil:
        def __reduce__(self) -> object:
            return os.system, ("true",)

    torch.save({"a": Evil(), "b": torch.zeros(40)}, path)
    return path.read_bytes()


def test_for_a_config(server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--for", "affectgpt_qwen2.5_0.5b_face"]) == 1
    out = capsys.readouterr().out
    names = f"{SMALL} clip-vit-large-patch14 chinese-hubert-large mer2025 emotion-wheels"
    assert f"missing; fetch: affectgpt fetch {names}\n" in out
    assert "weights.language=models/Qwen2.5-0.5B-Instruct weights.vision=models/clip-vit-large-patch14" in out
    assert server.requests == []
    assert main(["fetch", SMALL]) == 0
    for name in ("models/clip-vit-large-patch14", "models/chinese-hubert-large", "data/mer2025-dataset"):
        Path(name).mkdir(parents=True)
        Path(name, "config.json").write_text("{}")
        Path(name, "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert main(["fetch", "--for", "affectgpt_qwen2.5_0.5b_face"]) == 0, "wheels are for published scores only"
    assert "missing; fetch: affectgpt fetch emotion-wheels\n" in capsys.readouterr().out
    (Path("models/Qwen2.5-0.5B-Instruct") / "model.safetensors").unlink()
    assert main(["fetch", "--for", "affectgpt_qwen2.5_0.5b_face"]) == 1
    assert "in part" in capsys.readouterr().out


def test_for_a_config_with_folders_of_its_own(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--for", "demo"]) == 1
    out = capsys.readouterr().out
    assert "it starts from random weights" in out
    assert "runs/demo/towers/vision" in out
    assert "clip-vit" not in out
    for name in ("towers/vision", "towers/audio", "corpus"):
        Path("runs/demo", name).mkdir(parents=True)
    assert main(["fetch", "--for", "demo"]) == 0


def test_the_environment_says_where_the_hub_is(server: FakeServer, tmp_path: Path) -> None:
    """A process of its own: HF_ENDPOINT is read when the library is imported; neither jax nor torch is."""
    code = "import sys; from affectgpt_jax.cli import main; status = main(sys.argv[1:])\n"
    code += "sys.exit(status or 9 * bool({'jax', 'torch', 'transformers'} & set(sys.modules)))"
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    environment["HF_HOME"] = str(tmp_path / "home")
    ran = subprocess.run([sys.executable, "-c", code, "fetch", SMALL], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path("models/Qwen2.5-0.5B-Instruct/model.safetensors").read_bytes() == WEIGHTS


def test_list(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", SMALL]) == 0
    capsys.readouterr()
    assert main(["fetch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for item in CATALOGUE:
        (line,) = [line for line in lines if line.startswith(f"{item.name} ")]
        assert item.size_text in line
        assert item.terms in line
        assert line.split("open")[-1].split()[0] == ("yes" if item.name == SMALL else "no") or item.access != "open"


def test_catalogue_is_whole() -> None:
    assert len({item.name for item in CATALOGUE}) == len(CATALOGUE)
    assert len({(item.root, item.folder) for item in CATALOGUE}) == len(CATALOGUE)
    for item in CATALOGUE:
        assert item.page.startswith("https://"), item.name
        assert (item.access == "hand") == (not item.repo and not item.addresses), item.name
        assert item.access == "open" or item.grants, item.name


def test_every_shipped_model_has_its_base_in_the_catalogue() -> None:
    from affectgpt_jax.config import load_config

    for path in sorted((ROOT / "configs").glob("affectgpt_*.yaml")):
        found = needs.config_needs(load_config(str(path), []), None, {})
        keys = {need.key: need.item for need in found}
        size = path.stem.split("_")[2].removeprefix("qwen2.5_")
        language = keys["weights.language"]
        assert language is not None, path
        assert f"-{size}-" in language.name, path
        assert None not in (keys["weights.vision"], keys["weights.audio"]), path


def test_docs_show_the_catalogue() -> None:
    text = (ROOT / "docs" / "fetch.md").read_text()
    shown = text.partition("<!-- catalogue -->\n")[2].partition("<!-- end -->")[0]
    assert shown == markdown(), "paste what affectgpt_jax.fetch.catalogue.markdown() returns"
