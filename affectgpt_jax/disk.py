"""Disks: how much is free."""

import shutil
from pathlib import Path


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next((place for place in (folder, *folder.absolute().parents) if place.exists()), Path("/"))


def free_space(folder: Path) -> int:
    """Free bytes of the disk that a folder lies on, or would."""
    return shutil.disk_usage(existing(folder)).free
