"""The one folder of what can always be made again: compiled programs, compiled emotion tables."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$AFFECTGPT_CACHE_DIR`, else `affectgpt` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("AFFECTGPT_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "affectgpt"
