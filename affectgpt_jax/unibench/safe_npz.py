"""Reading npz files that hold pickled dictionaries, without trusting them.

A pickle is a program: unpickling one from the network can run anything. The released prediction and label files need
only plain containers, strings and numpy scalars, so nothing else is admitted.
"""

import codecs
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from affectgpt_jax.errors import UserError

MAX_BYTES = 1 << 30
"""Most bytes that an archive may unpack to."""

_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMPY_FUNCTIONS = ("_reconstruct", "scalar")


class _NotPlain(Exception):
    """The pickle asks for something that is not plain data."""


def _latin1(text: str, encoding: str) -> bytes:
    """How old pickles spell bytes: `codecs.encode(text, "latin1")`, and nothing else."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise _NotPlain(f"codecs.encode(..., {encoding!r})")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    """Admits plain containers, strings and numpy arrays and scalars."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _NUMPY_MODULES and name in _NUMPY_FUNCTIONS:
            return super().find_class("numpy._core.multiarray", name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise _NotPlain(f"{module}.{name}")


def _object_array(content: bytes) -> Any:
    """The pickled object of a .npy file: what follows the magic, the version, and the header with its length."""
    wide = content[6] >= 2
    (length,) = struct.unpack_from("<I" if wide else "<H", content, 8)
    return _PlainUnpickler(io.BytesIO(content[8 + (4 if wide else 2) + length :])).load()


def _array(content: bytes) -> np.ndarray:
    try:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
    return np.asarray(_object_array(content), dtype=object)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """Read an npz file, pickled plain objects included.

    Args:
        path: the file.

    Returns:
        Its arrays by name; a pickled object is an object array of no dimension.

    Raises:
        UserError: the file is missing, broken, larger than `MAX_BYTES` unpacked, or holds a pickle with anything but
            plain containers, strings and numpy scalars; nothing of such a pickle has run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > MAX_BYTES:
                raise UserError(f"{path} would unpack to {size:,} bytes; expected at most {MAX_BYTES:,}")
            return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except _NotPlain as error:
        raise UserError(
            f"{path} holds a pickle that asks for {error}; only plain dictionaries, lists, strings and numbers are "
            "admitted, and nothing of it was run. Do not use this file unless you know where it comes from"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{path} is not a readable npz file ({type(error).__name__}: {error})") from error


def plain_dict(path: Path, arrays: dict[str, np.ndarray], key: str) -> dict[str, Any]:
    """The dictionary that an npz file stores under a key.

    Raises:
        UserError: the key is missing, or does not hold a dictionary with string keys.
    """
    if key not in arrays:
        raise UserError(f"{path} has no {key!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    value = arrays[key].item() if arrays[key].shape == () else None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: {key!r} is not a dictionary from sample name to value")
    return value
