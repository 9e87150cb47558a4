"""Reading clips: decoded, or what is wrong with them; in this process, or in others that may crash.

Decoders are C and C++, and a hostile file can make one end its process. Nothing here needs the model or JAX, so that a
process that only reads is small.
"""

import contextlib
import dataclasses
import functools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from affectgpt_jax.data.clips import read_modality
from affectgpt_jax.data.shard_schema import Stream
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.clip_files import Beside, Clip, Item, Source, find_clip, places
from affectgpt_jax.inference.subtitles import Tables, read_table
from affectgpt_jax.inference.transcription import EndpointError

ATTEMPTS = 2
"""Processes that may end over a clip before it is given up: the first may have ended for another reason."""

PATIENCE = 5.0
"""Seconds that a process which says nothing more may take to end."""


@dataclass(frozen=True)
class Failed:
    """A clip without an answer.

    Attributes:
      clip: the file, or its name.
      error: what is wrong with it.
    """

    clip: str
    error: str

    def record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


class Inputs(NamedTuple):
    """A clip, decoded."""

    clip: Clip
    media: dict[str, np.ndarray]
    absent: dict[str, str]
    sources: dict[str, Source]
    seconds: float


def read_clip(
    item: Item, *, beside: Beside, streams: Mapping[str, Stream], text: bool, tables: Tables
) -> Inputs | Failed:
    """A clip, decoded, or what is wrong with it, be it what a decoding library lets through."""
    try:
        if item.fault:
            return Failed(item.name, item.fault)
        started = time.perf_counter()
        clip = find_clip(item, beside if text else dataclasses.replace(beside, words=False), tables)
        return _decode(clip, streams, beside, text, started)
    except EndpointError:
        raise
    except Exception as error:
        return failure(item.name, error)


def failure(clip: str, error: Exception) -> Failed:
    """What a clip's error is in words."""
    words = str(error).removeprefix(f"{clip}: ")
    return Failed(
        clip, words if isinstance(error, UserError | OSError) and words else f"{type(error).__name__}: {words}"
    )


def _decode(clip: Clip, streams: Mapping[str, Stream], beside: Beside, text: bool, started: float) -> Inputs:
    """Read what the streams need of a clip, and say what it lacks.

    Raises:
      UserError: a file is broken, or there is nothing to go by.
    """
    media: dict[str, np.ndarray] = {}
    absent: dict[str, str] = {}
    sources: dict[str, Source] = {}
    for name, stream in streams.items():
        if name == "face" and clip.files.faces is None and beside.detect is not None:
            faces = beside.detect(clip.files, stream.count)
            if faces is None:
                video = clip.files.video
                absent[name] = f"{beside.detector} found no face in {video}" if video else "there is no video"
                continue
            media[name] = faces.crops
            sources[name] = Source(str(clip.files.video), "frame", faces.frames, faces.boxes, beside.detector)
            continue
        found = read_modality(clip.files, stream)
        if found is None:
            lacking = "sound track" if name == "audio" else "picture"
            absent[name] = clip.absent.get(name, f"the file has no {lacking}")
        else:
            media[name], sources[name] = found, places(clip.files, stream)
    if text and clip.subtitle:
        sources["text"] = Source(clip.subtitle_from)
    elif text:
        absent["text"] = clip.absent["text"]
    if not media and not (text and clip.subtitle):
        reasons = [*absent.values(), *clip.item.notes]
        raise UserError("there is nothing to go by: " + "; ".join(reasons))
    return Inputs(clip, media, absent, sources, time.perf_counter() - started)


# ---------------------------------------------------------------------------------------------------------------------
# In other processes


class ReadingProcesses:
    """`read_clip` in a process of its own for each thread that calls. One that crashes costs the clip it was reading,
    and another takes its place."""

    def __init__(self, *, beside: Beside, streams: Mapping[str, Stream], text: bool) -> None:
        """Nothing is started yet; arguments as of `read_clip`."""
        self._task = pickle.dumps((beside, streams, text))
        self._threads = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, item: Item) -> Inputs | Failed:
        """A clip, decoded, or what is wrong with it.

        Raises:
          EndpointError: a transcription endpoint serves no clip at all.
          RuntimeError: no process can be started.
        """
        how = ""
        for _ in range(ATTEMPTS):
            if getattr(self._threads, "process", None) is None:
                self._threads.process = self._start()
            process = self._threads.process
            try:
                _send(process.stdin, item)
                found = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                how = _ended(process)
                self._threads.process = None
                continue
            if isinstance(found, EndpointError):
                raise found
            return found
        return Failed(item.name, f"its decoder crashed: the process that read it ended with {how}, {ATTEMPTS} times")

    def _start(self) -> subprocess.Popen[bytes]:
        # The same modules as here, from whatever folder.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._processes.append(process)
        try:
            process.stdin.write(self._task)  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            pickle.load(process.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError) as error:
            raise RuntimeError(
                f"no process that reads clips can be started: it ended with {_ended(process)}"
            ) from error
        return process

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not sent is of no use any more
                    pipe.close()  # type: ignore[union-attr]
            _ended(process)
        self._processes.clear()


def serve() -> None:
    """What a reading process does: clips from standard input, one after the other, to standard output."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which closes the pipes
    beside, streams, text = pickle.load(source)
    tables = functools.cache(read_table)
    _send(sink, None)
    for item in _received(source):
        try:
            found: Any = read_clip(item, beside=beside, streams=streams, text=text, tables=tables)
        except EndpointError as error:
            found = error
        _send(sink, found)


def _send(pipe: Any, message: Any) -> None:
    pickle.dump(message, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _received(pipe: Any) -> Iterator[Item]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return


def _ended(process: subprocess.Popen[bytes]) -> str:
    """How a process ended that has nothing more to say."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
