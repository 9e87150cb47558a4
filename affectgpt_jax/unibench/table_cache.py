"""The compiled emotion table on disk: read the Excel files once, afterwards a few milliseconds.

A cache file is named by the hash of the wheel folder's content, so an edited folder never meets a stale table. It is
a plain npz without pickled objects; one that cannot be read is built again.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.unibench.lexicon import GROUP_OF, small_table
from affectgpt_jax.unibench.official import (
    FILES,
    changed_files,
    compile_tables,
    find_wheel_dir,
    parse_files,
    read_files,
)
from affectgpt_jax.unibench.wheel import LEVELS, RULESETS, Grouping, WheelTable

_LAYOUT = b"emotion table 1"
"""Part of the hash: raise the number when the rules or this file's layout change."""


def load_table(wheel_dir: str | Path | None = None, cache_dir: Path | None = None) -> WheelTable:
    """The emotion table to score with.

    Args:
        wheel_dir: the official folder; None looks at `AFFECTGPT_WHEEL_DIR`.
        cache_dir: where compiled tables lie; None for the user's cache folder.

    Returns:
        The official wheels, or the built-in lexicon `affectgpt-small` where no folder is named.

    Raises:
        UserError: the folder is named but missing, incomplete or unreadable.
    """
    folder = find_wheel_dir(wheel_dir)
    return small_table() if folder is None else load_official(folder, cache_dir)


def wheel_words(wheel_dir: str | Path | None = None) -> list[str]:
    """The words that stand on the emotion wheels, without their synonyms and other forms, or those of the lexicon.

    Args:
        wheel_dir: official emotion-wheel folder; as for `load_table`.

    Raises:
        UserError: the folder is missing, incomplete or unreadable.
    """
    folder = find_wheel_dir(wheel_dir)
    return sorted(GROUP_OF if folder is None else parse_files(read_files(folder), folder).wheel_words)


def load_official(folder: Path, cache_dir: Path | None = None) -> WheelTable:
    """The table of the official folder, from the cache if it was compiled before.

    Args:
        folder: the emotion-wheel folder.
        cache_dir: where compiled tables lie; None for the user's cache folder. Where it cannot be written, the
            table is compiled each time.

    Raises:
        UserError: the folder is missing, incomplete or unreadable.
    """
    files = read_files(folder)
    fingerprint = content_hash(files)
    path = (cache_dir or cache_folder()) / f"wheels-{fingerprint[:32]}.npz"
    changed = changed_files(files)
    name = "official wheels" if not changed else f"official wheels, edited: {', '.join(changed)}"
    table = _read(path, name, fingerprint)
    if table is None:
        table = compile_tables(parse_files(files, folder), name, fingerprint)
        _write(path, table)
    return table


def content_hash(files: Mapping[str, bytes]) -> str:
    """Hash of the wheel files and of the rules that compile them."""
    digest = hashlib.sha256(_LAYOUT)
    for name in FILES:
        digest.update(hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def _write(path: Path, table: WheelTable) -> None:
    """Write whole or not at all; a cache that cannot be written is no error."""
    arrays = {"words": np.array(list(table.rows))}
    for (ruleset, level), grouping in table.groupings.items():
        arrays[f"{ruleset}/{level}/ids"] = grouping.ids
        for k, names in enumerate(grouping.classes):
            arrays[f"{ruleset}/{level}/classes{k}"] = np.array(names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(file.name, path)
    except OSError:
        return


def _read(path: Path, name: str, fingerprint: str) -> WheelTable | None:
    try:
        with path.open("rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
        rows = {word: row for row, word in enumerate(arrays["words"].tolist())}
        groupings = {}
        for ruleset in RULESETS:
            for level in LEVELS:
                ids = arrays[f"{ruleset}/{level}/ids"]
                ids.setflags(write=False)
                names = tuple(tuple(arrays[f"{ruleset}/{level}/classes{k}"].tolist()) for k in range(ids.shape[1]))
                groupings[ruleset, level] = Grouping(names, ids)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return WheelTable(name, fingerprint, MappingProxyType(rows), MappingProxyType(groupings))
