"""SHA256SUMS of a folder, in coreutils' format: `sha256sum -c SHA256SUMS` checks it."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from affectgpt_jax.errors import UserError
from affectgpt_jax.replacing import replacing

SUMS = "SHA256SUMS"
BLOCK = 1 << 20
Report = Callable[[int, int], None]
"""Called with the bytes that are done and those there are."""


class Hashes:
    """Checksums of a file as it comes: SHA-256, and git's name of it (SHA-1), which the Hub knows small files by.

    Attributes:
      size: bytes so far.
    """

    def __init__(self, size: int | None = None) -> None:
        """Begin a file of `size` bytes; without it there is no git name."""
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = None if size is None else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        if self._git:
            self._git.update(block)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def git(self) -> str | None:
        return self._git.hexdigest() if self._git else None


def hash_file(path: Path, report: Report = lambda done, size: None, size: int | None = None) -> Hashes:
    """Checksums of a file on disk, whose git name is that of `size` bytes (by default as many as it has)."""
    length = path.stat().st_size
    hashes = Hashes(length if size is None else size)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hashes.update(block)
            report(hashes.size, length)
    return hashes


def write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Write file name -> SHA-256.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(folder / SUMS) as draft:
        draft.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256; empty where there is no such file.

    Raises:
      UserError: a line is not of the format.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.rstrip())
        if not match:
            raise UserError(f"{path}: line {number} is not SHA-256, two spaces, file name; remove the file")
        sums[match[2]] = match[1].lower()
    return sums
