"""Reading tensors from Hugging Face folders: safetensors, one file or sharded with an index."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # makes numpy know bfloat16, the type of most published decoders
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from affectgpt_jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class SafetensorsFolder(Mapping[str, np.ndarray]):
    """Tensors of a folder by name, each read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder.

        Raises:
          UserError: no safetensors there, an unreadable file, or a shard of the index is missing.
        """
        self.folder = Path(folder)
        if (index := self.folder / INDEX).is_file():
            try:
                self._file_of: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{index}: not an index of safetensors shards ({error!r})") from error
            lost = sorted({file for file in self._file_of.values() if not (self.folder / file).is_file()})
            if lost:
                raise UserError(f"{self.folder}: shards named in {INDEX} are missing: {', '.join(lost)}")
        elif (self.folder / SINGLE).is_file():
            with self._open(SINGLE) as file:
                self._file_of = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise UserError(
                f"{self.folder}: neither {SINGLE} nor {INDEX} is there; expected a Hugging Face model folder with "
                "safetensors weights"
            )

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.folder / file, framework="numpy")
        except Exception as error:  # the library raises its own types for truncated and foreign files
            raise UserError(f"{self.folder / file}: not a readable safetensors file ({error})") from error

    def __getitem__(self, name: str) -> np.ndarray:
        with self._open(self._file_of[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


class Renamed(Mapping[str, np.ndarray]):
    """Another mapping's tensors without a prefix of their names."""

    def __init__(self, source: Mapping[str, np.ndarray], prefix: str) -> None:
        self._source = source
        self._names = {name.removeprefix(prefix): name for name in source}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


POSITION_CONV = "encoder.pos_conv_embed.conv"
_SPELLINGS = (
    (f"{POSITION_CONV}.parametrizations.weight.original0", f"{POSITION_CONV}.parametrizations.weight.original1"),
    (f"{POSITION_CONV}.weight_g", f"{POSITION_CONV}.weight_v"),
)


class HubertTensors(Mapping[str, np.ndarray]):
    """HuBERT's tensors with the weight norm of the positional convolution folded in, whichever way it is spelled.

    weight = g * v / |v|, the norm taken over the first two axes, g of shape [1, 1, kernel].
    """

    def __init__(self, source: Mapping[str, np.ndarray]) -> None:
        self._source = source
        self._norm = next((pair for pair in _SPELLINGS if all(name in source for name in pair)), None)
        parts = {name for pair in _SPELLINGS for name in pair}
        self._names = [name for name in source if name not in parts]
        if self._norm:
            self._names.append(f"{POSITION_CONV}.weight")

    def __getitem__(self, name: str) -> np.ndarray:
        if self._norm and name == f"{POSITION_CONV}.weight":
            g, v = (np.asarray(self._source[part], np.float32) for part in self._norm)
            return g * v / np.sqrt(np.sum(np.square(v), axis=(0, 1), keepdims=True))
        return self._source[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def split_position_conv(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `HubertTensors`: spell the positional convolution as weight norm, for files others open."""
    split = dict(tensors)
    v = split.pop(f"{POSITION_CONV}.weight")
    split[_SPELLINGS[0][0]] = np.sqrt(np.sum(np.square(v), axis=(0, 1), keepdims=True))
    split[_SPELLINGS[0][1]] = v
    return split


def read_config(folder: str | Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
      UserError: missing or not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a Hugging Face model folder") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def write_folder(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors; the config comes last, so a folder without one is incomplete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The library writes the memory as it lies, so a transposed view would come out scrambled.
    dense = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(dense, folder / SINGLE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
