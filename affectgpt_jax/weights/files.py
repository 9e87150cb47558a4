"""Hugging Face folders: safetensors, one file or sharded with an index, read and written tensor by tensor.

A folder that is read is a path, or OWNER/NAME in the Hub's cache.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # makes numpy know bfloat16, the type of most published decoders
import numpy as np
from safetensors import safe_open

from affectgpt_jax.errors import UserError
from affectgpt_jax.model_folders import model_folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _TYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. `tensor[index]` reads a part of it, `np.asarray(tensor)` all."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        # The file is mapped into memory; closing it after each read lets those pages go.
        with _open(self.file) as file:
            if index is Ellipsis or index == () or self.shape == ():
                return file.get_tensor(self.name)
            return file.get_slice(self.name)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self[...]
        return array if dtype is None else array.astype(dtype)


class SafetensorsFolder(Mapping[str, Any]):
    """Tensors of a folder by name (`StoredTensor`), each read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder.

        Raises:
          UserError: no safetensors there, an unreadable file, or a shard of the index is missing.
        """
        self.folder = model_folder(folder)
        if (index := self.folder / INDEX).is_file():
            try:
                self._file_of: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise UserError(f"{index}: not an index of safetensors shards ({error!r})") from error
            lost = sorted({file for file in self._file_of.values() if not (self.folder / file).is_file()})
            if lost:
                raise UserError(f"{self.folder}: shards named in {INDEX} are missing: {', '.join(lost)}")
        elif (self.folder / SINGLE).is_file():
            self._file_of = dict.fromkeys(read_file(self.folder / SINGLE), SINGLE)
        else:
            raise UserError(
                f"{self.folder}: neither {SINGLE} nor {INDEX} is there; expected a Hugging Face model folder with "
                "safetensors weights"
            )

        self._tensors: dict[str, StoredTensor] = {}
        files = {file: read_file(self.folder / file) for file in sorted(set(self._file_of.values()))}
        for name, file in self._file_of.items():
            if name not in files[file]:
                raise UserError(
                    f"{self.folder / file} does not hold {name}, which {INDEX} says it does; fetch the folder again"
                )
            self._tensors[name] = files[file][name]

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file.

    Raises:
      UserError: not such a file, or a type that numpy lacks.
    """
    found = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118  # not a dictionary
            part = file.get_slice(name)
            if (code := part.get_dtype()) not in _TYPES:
                raise UserError(f"{path}: {name} has type {code}; known are {', '.join(_TYPES)}")
            found[name] = StoredTensor(path, name, tuple(part.get_shape()), _TYPES[code])
    return found


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except Exception as error:  # the library raises its own types for truncated and foreign files
        raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


HALVES = ("bfloat16", "float16")
PARTS = {"language": "language_model.", "vision": "vision_tower.", "audio": "audio_tower."}
"""Where the parts of a whole model lie in a folder that `affectgpt export --as transformers` wrote."""


def open_part(folder: str | Path, part: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """A network's config and tensors, from a folder of its own or from one that holds a whole AffectGPT.

    Args:
      folder: the Hugging Face folder.
      part: one of `PARTS`.

    Raises:
      UserError: files missing or unreadable, or half precision where float32 was promised.
    """
    config = part_config(folder, part)
    tensors: Mapping[str, Any] = SafetensorsFolder(folder)
    if read_config(folder).get("model_type") == "affectgpt":
        tensors = Within(tensors, PARTS[part])
    _check_type(config, tensors, folder)
    return config, tensors


def _check_type(config: Mapping[str, Any], tensors: Mapping[str, Any], folder: str | Path) -> None:
    """A file may hold more digits than its config.json says, never fewer: then something was lost on the way."""
    said = config.get("dtype") or config.get("torch_dtype")
    fewer = next((name for name, x in tensors.items() if said == "float32" and x.dtype.name in HALVES), None)
    if fewer:
        raise UserError(
            f"{folder}: config.json promises float32, but {fewer} is {tensors[fewer].dtype.name}; fetch the folder "
            "again, or correct dtype in config.json if half precision is meant"
        )


def part_config(folder: str | Path, part: str) -> dict[str, Any]:
    """A network's config.json, as `open_part` finds it."""
    config = read_config(folder)
    if config.get("model_type") != "affectgpt":
        return config
    return config["text_config" if part == "language" else f"{part}_config"]


class Within(Mapping[str, Any]):
    """Those of another mapping's tensors whose names begin with a prefix, without it."""

    def __init__(self, source: Mapping[str, Any], prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self._names = [name.removeprefix(prefix) for name in source if name.startswith(prefix)]

    def __getitem__(self, name: str) -> Any:
        return self._source[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Renamed(Mapping[str, Any]):
    """Another mapping's tensors without a prefix of their names."""

    def __init__(self, source: Mapping[str, Any], prefix: str) -> None:
        self._source = source
        self._names = {name.removeprefix(prefix): name for name in source}

    def __getitem__(self, name: str) -> Any:
        return self._source[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


POSITION_CONV = "encoder.pos_conv_embed.conv"
WEIGHT_NORM = (
    (f"{POSITION_CONV}.parametrizations.weight.original0", f"{POSITION_CONV}.parametrizations.weight.original1"),
    (f"{POSITION_CONV}.weight_g", f"{POSITION_CONV}.weight_v"),
)


class HubertTensors(Mapping[str, Any]):
    """HuBERT's tensors with the weight norm of the positional convolution folded in, whichever way it is spelled.

    weight = g * v / |v|, the norm taken over the first two axes, g of shape [1, 1, kernel].
    """

    def __init__(self, source: Mapping[str, Any]) -> None:
        self._source = source
        self._norm = next((pair for pair in WEIGHT_NORM if all(name in source for name in pair)), None)
        parts = {name for pair in WEIGHT_NORM for name in pair}
        self._names = [name for name in source if name not in parts]
        if self._norm:
            self._names.append(f"{POSITION_CONV}.weight")

    def __getitem__(self, name: str) -> Any:
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
    split[WEIGHT_NORM[0][0]] = np.sqrt(np.sum(np.square(v), axis=(0, 1), keepdims=True))
    split[WEIGHT_NORM[0][1]] = v
    return split


def read_config(folder: str | Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
      UserError: missing or not JSON.
    """
    path = model_folder(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a Hugging Face model folder") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


class Item(NamedTuple):
    """A tensor to be written, made only when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_shards(folder: Path, items: Sequence[Item], *, shard_bytes: int = 5 * 2**30) -> None:
    """Write tensors as safetensors, holding one of them at a time: one file, or shards and their index.

    The library can only write a file whose tensors are all in memory, so the format (a JSON header, then the bytes one
    after another) is written here.

    Args:
      folder: where to; exists.
      items: the tensors, in order.
      shard_bytes: a file ends before it would grow beyond this; a larger tensor gets one of its own.

    Raises:
      UserError: a tensor comes out otherwise than announced.
    """
    shards: list[list[Item]] = [[]]
    for item in items:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + item.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(item)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    weight_map = {item.name: name for name, shard in zip(names, shards, strict=True) for item in shard}
    index = {"metadata": {"total_size": sum(item.bytes for item in items)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_file(path: Path, items: Sequence[Item]) -> None:
    """Write one safetensors file; see `write_shards`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for item in items:
        if item.dtype not in _CODES:
            raise UserError(f"{path}: {item.name} is {item.dtype}, which is not written; known are {', '.join(_TYPES)}")
        header[item.name] = {
            "dtype": _CODES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [start, start + item.bytes],
        }
        start += item.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for item in items:
            array = np.asarray(item.read())
            if array.shape != item.shape or array.dtype != item.dtype:
                raise UserError(
                    f"{path}: {item.name} came out as {array.dtype} {array.shape}, expected {item.dtype} {item.shape}"
                )
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            del array  # before the next one is read


def write_folder(folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write config.json and model.safetensors; the config comes last, so a folder without one is incomplete."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, [Item(name, x.shape, x.dtype, partial(np.asarray, x)) for name, x in tensors.items()])
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
