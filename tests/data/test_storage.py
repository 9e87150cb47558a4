"""Corpora in object storage, which here is fsspec's file system in memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from affectgpt_jax.data.shard_schema import MANIFEST, TEXT, read_manifest
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.data.storage import is_remote, local_copy
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import open_shards
from affectgpt_jax.training.loop import train
from tests.tiny_run import make_shards, make_tokenizer, tiny_config

ADDRESS = "memory://bucket/corpora/tiny"
STREAMS = ("face@8", "audio@8")


class Storage:
    """The file system, and the files that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: Any = fsspec.filesystem("memory")
        self.fetched: list[str] = []
        original = type(self.files).get_file

        def get_file(files: Any, source: str, target: str, **options: Any) -> Any:
            self.fetched.append(Path(source).name)
            return original(files, source, target, **options)

        monkeypatch.setattr(type(self.files), "get_file", get_file)

    def upload(self, root: Path) -> None:
        if self.files.exists("/bucket"):
            self.files.rm("/bucket", recursive=True)
        for file in root.rglob("*"):
            if file.is_file() and "staged" not in file.parts:
                self.files.pipe_file(f"/bucket/corpora/tiny/{file.relative_to(root).as_posix()}", file.read_bytes())


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path / "cache"))
    storage = Storage(monkeypatch)
    storage.upload(make_shards(tmp_path / "shards", {"train": 5, "test": 3}))
    return storage


def test_what_is_wanted_comes_once(storage: Storage, tmp_path: Path) -> None:
    """A split with its streams reads as the original does; what is there is not fetched again."""
    told: list[str] = []
    place = local_copy(ADDRESS, "train", STREAMS, told.append)
    one, other = (open_corpus(root, "train", STREAMS) for root in (place, tmp_path / "shards"))
    assert one.fingerprint == other.fingerprint
    assert one.texts() == other.texts()
    for stream in STREAMS:
        np.testing.assert_array_equal(one.features(stream, range(5))[0], other.features(stream, range(5))[0])
    assert len(told) == 3
    assert f"{ADDRESS}: fetching 1 shards of face@8" in told[1]
    assert not any("test" in name for name in storage.fetched)
    storage.fetched.clear()
    assert local_copy(f"{ADDRESS}/", "train", STREAMS) == place
    assert storage.fetched == []
    assert local_copy(ADDRESS, "test", ("audio@8",)) == place
    assert len(storage.fetched) == 2
    assert all("-test." in name for name in storage.fetched)


def test_a_corpus_that_was_prepared_anew(storage: Storage, tmp_path: Path) -> None:
    local_copy(ADDRESS, "train", STREAMS)
    storage.fetched.clear()
    changed = make_shards(tmp_path / "other", {"train": 6, "test": 3})
    storage.upload(changed)
    place = local_copy(ADDRESS, "train", STREAMS)
    assert open_corpus(place, "train", STREAMS).fingerprint == open_corpus(changed, "train", STREAMS).fingerprint
    assert any("-train." in name for name in storage.fetched)


def test_damage_on_the_way(storage: Storage) -> None:
    """A damaged file is never kept, neither on the way nor in the cache."""
    (shard,) = storage.files.glob("/bucket/corpora/tiny/mer_caption/face_8/*/*-train.*")
    whole = storage.files.cat_file(shard)
    storage.files.pipe_file(shard, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"face@8 does not have the checksum .* upload it again"):
        local_copy(ADDRESS, "train", STREAMS)
    storage.files.pipe_file(shard, whole)
    place = local_copy(ADDRESS, "train", STREAMS)
    entry = read_manifest(place, "face@8").splits["train"][0]
    (cached,) = place.rglob(f"face_8/*/{entry.file}")
    cached.write_bytes(whole[:-1])
    assert local_copy(ADDRESS, "train", STREAMS) == place
    assert cached.read_bytes() == whole
    assert not list(place.rglob(".*"))


@pytest.mark.slow
def test_training_on_it(storage: Storage, tmp_path: Path) -> None:
    """`data.shards` takes an address."""
    make_tokenizer(tmp_path / "tokenizer")
    config = tiny_config(tmp_path, data__shards=ADDRESS, train__steps=1)
    assert open_shards(config, "train").fingerprint == open_corpus(tmp_path / "shards", "train", STREAMS).fingerprint
    assert train(config, tmp_path / "run").finished


def test_what_is_wrong(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no stream 'text' at memory://.*nowhere.*; prepare it into a local"):
        local_copy("memory://bucket/nowhere", "train", ())
    with pytest.raises(UserError, match=r"there is no stream 'frame@8' at memory://"):
        local_copy(ADDRESS, "train", ("frame@8",))
    with pytest.raises(UserError, match=r"^strange://bucket: .* expected an address such as gs://"):
        local_copy("strange://bucket", "train", ())

    def absent(*_: Any) -> Any:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(UserError, match=r"Please install gcsfs .*pip install 'affectgpt-jax\[gcs\]'"):
        local_copy("gs://bucket/corpus", "train", ())
    monkeypatch.undo()

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(type(storage.files), "cat_file", refuse)
    with pytest.raises(UserError, match=rf"{MANIFEST} cannot be read \(403 Forbidden\); are you logged in\?"):
        local_copy(ADDRESS, "train", ())


def test_addresses() -> None:
    assert is_remote("gs://bucket/path")
    assert is_remote("s3://bucket")
    assert not is_remote("/data/shards")
    assert not is_remote("C:/shards")
    assert not is_remote(Path("runs/demo/shards"))


def test_folders_need_no_client() -> None:
    """Who stays local never loads fsspec through us."""
    code = "import sys, affectgpt_jax.data.storage; assert 'fsspec' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_text_is_always_there(storage: Storage) -> None:
    place = local_copy(ADDRESS, "test", ())
    assert len(open_corpus(place, "test")) == 3
    assert read_manifest(place, TEXT).splits["train"]
