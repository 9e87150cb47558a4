"""The authors' checkpoints (`torch.save`), read without torch and without running what they pickle.

A .pth file is a zip archive: NAME/data.pkl describes the objects, NAME/data/KEY holds the numbers of one storage. A
pickle is a program, so here it may only build plain containers and records of what it would have called. They are
interpreted afterwards, once everything about them has been checked.
"""

import io
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from affectgpt_jax.config.networks import LINEARS, ModelConfig
from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing

MAX_PICKLE = 1 << 28
"""Most bytes that the description of the objects may unpack to; a checkpoint's has about a thousandth of that."""

_STORAGES: Mapping[str, np.dtype] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": np.float64,
        "Float": np.float32,
        "Half": np.float16,
        "BFloat16": ml_dtypes.bfloat16,
        "Long": np.int64,
        "Int": np.int32,
        "Short": np.int16,
        "Char": np.int8,
        "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_SIZE = "torch.Size"
_DEVICE = "torch.device"
_DTYPES = {f"torch.{dtype.name}" for dtype in _STORAGES.values()}
_ADMITTED = {*_STORAGES, *_DTYPES, _TENSOR, _PARAMETER, _SIZE, _DEVICE}


class _NotPlain(Exception):
    """The pickle asks for something that a checkpoint does not need."""


class _Call(NamedTuple):
    """A call that the pickle asks for: recorded, not made."""

    name: str
    arguments: tuple[Any, ...]


class _Global(NamedTuple):
    """An admitted name. It cannot be changed, so no pickle can alter what it means to the next one."""

    name: str

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _Ordered(dict[Any, Any]):
    """Stands for `OrderedDict`. What a pickle would set on it, the attributes of a state dict, is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _RecordingUnpickler(pickle.Unpickler):
    """Builds plain containers, `_Ordered`, `_Call`, `_Global` and `_Storage`; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (full := f"{module}.{name}") in _ADMITTED:
            return _Global(full)
        if full == "collections.OrderedDict":
            return _Ordered
        raise _NotPlain(full)

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Global(name), str(key), _, int(numel)) if name in _STORAGES:
                return _Storage(_STORAGES[name], key, numel)
        raise _NotPlain(f"the storage {pid!r}")


class _Archive:
    """An open .pth file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"{path} is not there; expected a checkpoint file (.pth)") from None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} {_diagnosis(path)} ({error})") from error
        names = [name for name in self._zip.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(names) != 1:
            raise UserError(
                f"{path} is a zip archive, but not one that torch.save wrote: it has {len(names)} entries NAME/data.pkl"
            )
        self._folder = names[0].removesuffix("data.pkl")
        order = self.read("byteorder") if self.size("byteorder") is not None else b"little"
        if order not in (b"little", b"big"):
            raise UserError(f"{path} says byteorder={order!r}, expected b'little' or b'big'; fetch the file again")
        self.swapped = order.decode() != sys.byteorder

    def size(self, entry: str) -> int | None:
        """Unpacked bytes of an entry; None where there is none."""
        try:
            return self._zip.getinfo(self._folder + entry).file_size
        except KeyError:
            return None

    def read(self, entry: str) -> bytes:
        """An entry, its checksum compared."""
        try:
            return self._zip.read(self._folder + entry)
        except Exception as error:  # zipfile, zlib and the file system have errors of their own
            raise UserError(f"{self.path}: {self._folder}{entry} is damaged ({error}); fetch the file again") from error

    def objects(self) -> Any:
        """What data.pkl describes."""
        if (size := self.size("data.pkl") or 0) > MAX_PICKLE:
            raise UserError(f"{self.path}: data.pkl would unpack to {size:,} bytes; expected at most {MAX_PICKLE:,}")
        content = io.BytesIO(self.read("data.pkl"))
        try:
            return _RecordingUnpickler(content, encoding="utf-8").load()
        except _NotPlain as error:
            remedy = "Do not open this file with torch.load unless you know where it comes from"
            if str(error).startswith("omegaconf."):
                remedy = "Whoever wrote it can turn the settings into plain ones first: OmegaConf.to_container(config)"
            raise UserError(
                f"{self.path} holds a pickle that asks for {error}; only tensors, plain containers, strings and "
                f"numbers are admitted, and nothing of it was run. {remedy}"
            ) from None
        except Exception as error:  # a broken pickle can raise anything
            raise UserError(
                f"{self.path}: data.pkl is damaged ({type(error).__name__}: {error}); fetch the file again"
            ) from error


def _diagnosis(path: Path) -> str:
    """What a file is that is no zip archive, and what to do about it."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return "cannot be read"
    if head.startswith(b"PK\x03\x04"):
        return "was cut off: the end of the archive is missing; fetch the file again"
    if head.startswith(b"\x80"):
        return (
            "is in torch's format from before version 1.6, or a bare pickle; if you know where it comes from, save it "
            "again: torch.save(torch.load(old, weights_only=True), new)"
        )
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the checkpoint itself; run `git lfs pull`"
    return "is not a checkpoint that torch.save wrote"


@dataclass(frozen=True)
class PthTensor:
    """A tensor in a file. `tensor[index]` reads a part of it, `np.asarray(tensor)` all."""

    archive: _Archive
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Both in elements of the storage."""

    @property
    def dtype(self) -> np.dtype:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> np.ndarray:
        size = self.dtype.itemsize
        content = self.archive.read(entry := f"data/{self.storage.key}")
        if len(content) != self.storage.numel * size:  # the directory of a forged archive can say anything
            raise UserError(f"{self.archive.path}: {entry} has {len(content):,} bytes, unlike its directory says")
        raw = np.frombuffer(content, f"u{size}")
        numbers = (raw.byteswap() if self.archive.swapped else raw).view(self.dtype)
        # No element lies outside the storage: `_tensor` has checked.
        strides = [step * size for step in self.stride]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self[...]
        return array if dtype is None else array.astype(dtype)


def _tensor(archive: _Archive, name: str, value: Any, place: str, expected: str) -> PthTensor:
    """A record as a tensor, after checking that it is one and lies inside its storage."""
    if isinstance(value, _Call) and value.name == _PARAMETER and value.arguments:
        value = value.arguments[0]
    match value:
        case _Call(called, (_Storage() as storage, int(offset), tuple(shape), tuple(stride), _, _)) if (
            called == _TENSOR
        ):
            pass
        case _:
            raise UserError(f"{archive.path}: {name!r} of {place} is not a plain tensor; expected {expected}")
    entry, size = f"data/{storage.key}", storage.numel * storage.dtype.itemsize
    held = archive.size(entry)
    if held != size:
        found = "is missing" if held is None else f"has {held:,} bytes, expected {size:,}"
        raise UserError(f"{archive.path}: {entry}, which holds {name}, {found}; fetch the file again")
    fits = len(shape) == len(stride) and all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride))
    if fits:
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if all(shape) else -1
        fits = offset + last < storage.numel and prod(shape) * storage.dtype.itemsize <= sys.maxsize
    if not fits:
        raise UserError(
            f"{archive.path}: {name} of shape {shape} and stride {stride}, starting at {offset}, lies outside its "
            f"storage of {storage.numel} numbers; fetch the file again"
        )
    return PthTensor(archive, storage, offset, shape, stride)


def _plain(value: Any) -> Any:
    """Settings as plain containers, strings and numbers."""
    match value:
        case _Call(called, parts) if called == _DEVICE:
            return ":".join(map(str, parts))
        case _Call(called, (shape,)) if called == _SIZE:
            return _plain(shape)
        case _Global(name):
            return name
        case None | bool() | int() | float() | str():
            return value
        case dict():
            return {_plain(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple() if not isinstance(value, _Call | _Storage):
            return [_plain(inner) for inner in value]
    raise TypeError(f"{value.name if isinstance(value, _Call) else type(value).__name__} is no setting")


class PthCheckpoint(NamedTuple):
    """What one of the reference's checkpoints holds, but for the optimizer.

    Attributes:
      tensors: the entry `model` by name, each read when it is asked for: trained parameters, and buffers.
      config: the settings of the run; empty where the file has none.
      epoch: epochs finished; 0 where the file does not say.
    """

    tensors: Mapping[str, PthTensor]
    config: dict[str, Any]
    epoch: int


def read_pth(path: str | Path) -> PthCheckpoint:
    """Open a checkpoint that the reference's runner wrote (QUIRKS 41).

    Nothing that the file pickles is run. The file stays open for as long as its tensors are in use.

    Raises:
      UserError: the file is missing, damaged, of another kind or from before torch 1.6; it asks for anything but
        tensors and plain containers; a tensor does not fit its storage; there is no entry `model`.
    """
    archive = _Archive(Path(path))
    found = archive.objects()
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        held = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise UserError(
            f"{path} has no entry 'model' with tensors by name; it holds {held[:200] or 'nothing'}. Expected a "
            "checkpoint of the reference's runner: model, optimizer, config, scaler, epoch"
        )
    expected = "the state dict that the reference's runner saves"
    tensors = {
        str(name): _tensor(archive, str(name), value, "the entry 'model'", expected)
        for name, value in found["model"].items()
    }
    config, epoch = found.get("config") or {}, found.get("epoch", 0)
    if not isinstance(config, dict) or not isinstance(epoch, int):
        raise UserError(
            f"{path}: 'config' is of type {type(config).__name__} and 'epoch' of type {type(epoch).__name__}; "
            "expected dict and int"
        )
    try:
        return PthCheckpoint(tensors, _plain(config), epoch)
    except (TypeError, RecursionError) as error:
        raise UserError(f"{path}: 'config' is not made of plain containers, strings and numbers ({error})") from None


def read_state_dict(path: str | Path) -> dict[str, PthTensor]:
    """Open a file that holds tensors by name and nothing else, such as pytorch_model.bin of a Hugging Face folder.

    Raises:
      UserError: as `read_pth`, or it holds anything else.
    """
    archive, expected = _Archive(Path(path)), "tensors by name, as torch.save(model.state_dict(), file) writes them"
    found = archive.objects()
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds {type(found).__name__ if found else 'nothing'}; expected {expected}")
    return {str(name): _tensor(archive, str(name), value, "the file", expected) for name, value in found.items()}


def write_pth(
    path: str | Path,
    tensors: Mapping[str, Any],
    config: Mapping[str, Any],
    epoch: int,
    optimizer: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint that the reference opens; `torch.load(weights_only=True)` does too.

    Args:
      path: the file. It is written under another name beside and then renamed, so it is never there in part.
      tensors: parameters by the reference's names, anything that `np.asarray` takes.
      config: settings, plain containers.
      epoch: epochs finished.
      optimizer: state of torch's optimizer; arrays in it become tensors.

    Raises:
      UserError: torch is not installed, or the file cannot be written.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: writing a .pth file needs torch; install it with pip install 'affectgpt-jax[torch]'"
        ) from None

    def convert(value: Any) -> Any:
        match value:
            case np.ndarray() if value.dtype == ml_dtypes.bfloat16:
                return torch.tensor(value.view(np.int16)).view(torch.bfloat16)
            case np.ndarray():
                return torch.tensor(value)
            case np.generic():
                return value.item()
            case Mapping():
                return {key: convert(inner) for key, inner in value.items()}
            case list() | tuple():
                return type(value)(map(convert, value))
        return value

    checkpoint = {
        "model": {name: convert(np.asarray(tensor)) for name, tensor in tensors.items()},
        "optimizer": convert(optimizer),
        "config": convert(config),
        "scaler": None,
        "epoch": epoch,
    }
    with replacing(Path(path)) as draft:
        torch.save(checkpoint, draft)


# ---------------------------------------------------------------------------------------------------------------------
# What names and shapes say about the model

_ADAPTER = r"llama_model\..*\.layers\.(\d+)\.\w+\.(\w+)\.lora_[AB]\.default\.weight"
_QFORMER_LAYER = r"(?:video|audio|multi)_Qformer\.bert\.encoder\.layer\.(\d+)\..*"

_SIZES = (
    # setting, names of tensors, axis that has its size
    (
        "vision_width",
        r"(image_llama_proj|multi_video_embs|video_attention_mlp|video_frame_position_embedding)\.weight",
        1,
    ),
    ("audio_width", r"(multi_audio_embs|audio_attention_mlp|audio_position_embedding)\.weight", 1),
    *((f"tokens.{name}", f"{name}_query_tokens", 1) for name in ("video", "audio", "multi")),
    ("positions.video", r"video_frame_position_embedding\.weight", 0),
    *((f"positions.{name}", rf"{name}_position_embedding\.weight", 0) for name in ("audio", "multi")),
    ("qformer.width", r"(video|audio|multi)_query_tokens", 2),
    ("qformer.width", r".*_Qformer\..*\.LayerNorm\.weight", 0),
    ("qformer.mlp_width", r".*_Qformer\..*\.intermediate_query\.dense\.weight", 0),
    ("decoder.width", r"(affectgpt|(image|audio|multi)_llama)_proj\.weight", 0),
    ("decoder.width", r".*\.(q|k|v|gate|up)_proj\.lora_A\.default\.weight", 1),
    ("decoder.width", r".*\.(o|down)_proj\.lora_B\.default\.weight", 0),
    ("decoder.mlp_width", r".*\.(gate|up)_proj\.lora_B\.default\.weight", 0),
    ("decoder.mlp_width", r".*\.down_proj\.lora_A\.default\.weight", 1),
    ("decoder.lora.rank", r".*\.lora_A\.default\.weight", 0),
    ("decoder.lora.rank", r".*\.lora_B\.default\.weight", 1),
)


def infer_settings(tensors: Mapping[str, Any], origin: str = "the checkpoint") -> dict[str, Any]:
    """What tensor names and shapes say about the model.

    Args:
      tensors: by the reference's names, of anything with `shape`.
      origin: where they come from, for messages.

    Returns:
      Dotted keys of `ModelConfig` with their values; None where the file does not show it: token counts of what is no
      Q-Former, and all of what was frozen and therefore not saved.

    Raises:
      UserError: two tensors speak of different sizes.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("prefusion", "video", "audio", *(key for key, _, _ in _SIZES), "qformer.layers", "decoder.layers")
    )
    witness: dict[str, str] = {}
    for key, pattern, axis in _SIZES:
        for name in filter(re.compile(pattern).fullmatch, tensors):
            shape = tuple(tensors[name].shape)
            size = shape[axis] if axis < len(shape) else None
            if key in witness and found[key] != size:
                raise UserError(
                    f"{origin} contradicts itself: {witness[key]} says {key}={found[key]}, but {name} of shape {shape} "
                    f"says {size}; it is not a checkpoint of one model"
                )
            found[key], witness[key] = size, name
    for key, pattern in (("qformer.layers", _QFORMER_LAYER), ("decoder.layers", _ADAPTER)):
        numbers = [int(match[1]) for match in map(re.compile(pattern).fullmatch, tensors) if match]
        found[key] = max(numbers) + 1 if numbers else None
    linears = {match[2] for match in map(re.compile(_ADAPTER).fullmatch, tensors) if match}
    found["decoder.lora.targets"] = tuple(name for name in LINEARS if name in linears) or None

    for key, part, proj in (
        ("video", "video", "affectgpt_proj"),
        ("audio", "audio", "audio_llama_proj"),
        ("prefusion", "multi", "multi_llama_proj"),
    ):
        # Buffers are saved even of a frozen Q-Former, so any of its names will do.
        if any(name.startswith((f"{part}_Qformer.", f"{part}_query_tokens")) for name in tensors):
            found[key] = "qformer"
        elif ("fc_att.weight" if part == "multi" else f"{part}_attention_mlp.weight") in tensors:
            found[key] = "attention"
        elif part != "multi" and f"{proj}.weight" in tensors:
            found[key] = "mean"
        elif part == "multi" and f"{proj}.weight" not in tensors and "multi_audio_embs.weight" in tensors:
            found[key] = "none"
    return found


def check_settings(found: Mapping[str, Any], config: ModelConfig, path: str | Path) -> None:
    """Compare what `infer_settings` found with a config.

    Raises:
      UserError: every contradiction, in one message.
    """
    wrong = []
    for key, value in found.items():
        expected = reduce(getattr, key.split("."), config)
        same = set(value) == set(expected) if isinstance(value, tuple) else value == expected
        if value is not None and not same:
            wrong.append(f"model.{key}: {value!r} in the file, expected {expected!r} by the config")
    if wrong:
        raise UserError("\n  ".join([f"{path} does not fit the config; change one or the other:", *wrong]))
