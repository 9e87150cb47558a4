"""Model folders named by path, or as the Hub names what lies in its cache."""

from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.model_folders import hub_name, model_folder, short_name
from affectgpt_jax.weights.files import SafetensorsFolder, read_config, write_folder
from affectgpt_jax.weights.towers import weights_hash
from tests.tiny_run import make_tokenizer


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the Hub's cache, as `hf download owner/some-model` leaves it there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0123456789abcdef0123456789abcdef01234567"
    store = tmp_path / "hub" / "models--owner--some-model"
    folder = store / "snapshots" / revision
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(revision)
    write_folder(folder, {"model_type": "qwen2"}, {"x": np.arange(3, dtype=np.float32)})
    make_tokenizer(folder)
    return folder


def test_names_of_the_hub_open_its_cache(cached: Path) -> None:
    name = "owner/some-model"
    assert model_folder(name) == cached
    assert read_config(name) == {"model_type": "qwen2"}
    np.testing.assert_array_equal(np.asarray(SafetensorsFolder(name)["x"]), [0, 1, 2])
    assert open_tokenizer(name).size == open_tokenizer(cached).size
    assert weights_hash(name) == weights_hash(cached)
    assert hub_name(name) == hub_name(cached) == short_name(str(cached)) == name


def test_folders_are_themselves(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is there is never looked up, whatever it is called."""
    monkeypatch.chdir(tmp_path)
    Path("owner/some-model").mkdir(parents=True)
    assert model_folder("owner/some-model") == Path("owner/some-model")
    assert hub_name("owner/some-model") is None
    assert short_name("owner/some-model") == "some-model"
    assert model_folder("/not/there") == Path("/not/there")
    assert model_folder("../not-there") == Path("../not-there")


@pytest.mark.parametrize("name", ["owner/other", "owner/bad--name"])
def test_what_was_not_downloaded(name: str, cached: Path) -> None:
    with pytest.raises(UserError, match=rf"^{name}: neither a folder nor .*`hf download {name}`"):
        read_config(name)
    assert hub_name(name) == name
