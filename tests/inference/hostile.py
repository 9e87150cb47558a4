"""Readers that end their process, as a decoder does that meets a hostile file; importable in that process."""

import os
import signal
from pathlib import Path

from affectgpt_jax.data.clips import ClipFiles, DetectedFaces

WAYS = {
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
}


def find(files: ClipFiles, count: int) -> DetectedFaces | None:
    """Finds no face; what a clip's name begins with may be its end, or, after "once", that of the first who looks."""
    assert files.video is not None
    way, *_ = files.video.stem.split("_")
    if way == "once":
        try:
            Path(f"{files.video}.seen").touch(exist_ok=False)
        except FileExistsError:
            return None
        way = "segfault"
    if way in WAYS:
        WAYS[way]()
    print("chatter of a library", flush=True)
    return None
