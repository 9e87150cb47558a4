"""From clips to features: threads decode ahead while the encoders run on full batches.

Three kinds of threads share the work. Many decode; a few call the encoders, each with one full batch, so that one
batch is made ready while the accelerator is busy with another; the main thread hands clips from these to those, in
order, and waits only if there is nothing to hand over, or too much of it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from affectgpt_jax.data.media import MediaError
from affectgpt_jax.data.shard_schema import FEATURE_DTYPE, Stream
from affectgpt_jax.errors import UserError
from data_prep.faces import FaceCrops
from data_prep.readers import ClipRecord, Problem

MissingPolicy = Literal["keep", "drop"]

_AHEAD = 4
"""Clips that each decoding thread may be ahead of the encoders."""

_CALLS = 2
"""Calls of the encoders at work at the same time: one on the accelerator, one whose batch is made ready."""


class Encoders(Protocol):
    """The frozen towers, as preparation sees them.

    Inputs come in batches of one fixed size, and two threads call at the same time. A provenance is a flat mapping
    that JSON can hold; it names at least `encoder`, `weights` (a hash of them) and `width` (of the features), and
    changes whenever the features do.
    """

    @property
    def vision_provenance(self) -> Mapping[str, Any]:
        """Where the features of faces and frames come from."""

    @property
    def audio_provenance(self) -> Mapping[str, Any]:
        """Where the features of sound come from."""

    def vision(self, frames: np.ndarray) -> np.ndarray:
        """Encodes pictures, uint8 [n, height, width, 3], to float32 [n, width]."""

    def audio(self, clips: np.ndarray) -> np.ndarray:
        """Encodes sound, float32 [n, clips, samples], normalised sample by sample, to float32 [n, clips, width]."""


def provenance_of(encoders: Encoders, stream: Stream) -> Mapping[str, Any]:
    """The provenance of the encoder that a stream comes from.

    Raises:
        UserError: it lacks what every provenance must say.
    """
    provenance = encoders.audio_provenance if stream.modality == "audio" else encoders.vision_provenance
    lacking = [key for key in ("encoder", "weights", "width") if key not in provenance]
    if lacking:
        raise UserError(f"The encoder of stream {stream.name!r} does not state its {', '.join(lacking)}.")
    return provenance


class Encoded(NamedTuple):
    """Clips that went through the encoders.

    Attributes:
        records: the clips that are kept, in order.
        features: per stream float16 [kept, count, width], zeros where a clip lacks the modality.
        present: per stream bool [kept].
        dropped: names of clips left out because they lack a modality.
        broken: clips with media that cannot be used.
        detected: per stream of faces, how many kept clips have crops that were detected and not stored.
        busy: seconds in which an encoder was at work.
    """

    records: tuple[ClipRecord, ...]
    features: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]
    broken: tuple[Problem, ...]
    detected: Mapping[str, int]
    busy: float


def encode_clips(
    records: Sequence[ClipRecord],
    streams: Sequence[Stream],
    encoders: Encoders,
    *,
    missing: MissingPolicy,
    fixed: bool,
    batch: int,
    threads: int,
    on_clip: Callable[[], None],
    faces: FaceCrops | None = None,
) -> Encoded:
    """Decodes and encodes clips.

    Batches depend on the clips alone, and the last one is filled up with zeros: the same clips give the same bytes,
    and an encoder is compiled once.

    Args:
        records: the clips.
        streams: the streams wanted.
        encoders: the towers.
        missing: whether a clip that lacks a modality is kept, marked as absent there, or dropped.
        fixed: keep every clip, whatever happens: the streams join a corpus whose clips are settled. A broken
            modality is then an absent one, and listed.
        batch: clips per call of an encoder.
        threads: decoding threads.
        on_clip: called after each clip.
        faces: where face crops come from; stored files by default.

    Returns:
        The features and what became of each clip.

    Raises:
        UserError: an encoder gives features of another width than it states, or values that float16 cannot hold.
    """
    faces = faces or FaceCrops()
    kept: list[ClipRecord] = []
    dropped: list[str] = []
    broken: list[Problem] = []
    detected = {stream.name: 0 for stream in streams if stream.modality == "face"}
    with _Calls() as calls, closing(_decoded(records, streams, faces, threads)) as decoded:
        columns = {stream.name: _Column(stream, encoders, batch, calls) for stream in streams}
        for record, modalities in decoded:
            faults = [value for value in modalities.values() if isinstance(value, Problem)]
            broken += faults
            lacking = any(value is None for value in modalities.values())
            if fixed or not (faults or (lacking and missing == "drop")):
                kept.append(record)
                for name, value in modalities.items():
                    columns[name].add(record.name, None if isinstance(value, Problem) else value)
                    if name in detected and isinstance(value, np.ndarray) and faces.detects(record.files):
                        detected[name] += 1
            elif not faults:
                dropped.append(record.name)
            on_clip()
        finished = {name: column.finish() for name, column in columns.items()}
    return Encoded(
        tuple(kept),
        {name: features for name, (features, _) in finished.items()},
        {name: present for name, (_, present) in finished.items()},
        tuple(dropped),
        tuple(broken),
        detected,
        calls.busy,
    )


_Modality = np.ndarray | Problem | None


def _decoded(
    records: Sequence[ClipRecord], streams: Sequence[Stream], faces: FaceCrops, threads: int
) -> Generator[tuple[ClipRecord, dict[str, _Modality]], None, None]:
    """Yields the clips in order, decoded by threads that stay a little ahead."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        pending: deque[tuple[ClipRecord, Future[dict[str, _Modality]]]] = deque()
        for record in records:
            pending.append((record, pool.submit(_decode, record, streams, faces)))
            if len(pending) > _AHEAD * threads:
                ready, future = pending.popleft()
                yield ready, future.result()
        while pending:
            ready, future = pending.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(record: ClipRecord, streams: Sequence[Stream], faces: FaceCrops) -> dict[str, _Modality]:
    """Reads all modalities of a clip; one that is broken becomes a problem."""
    modalities: dict[str, _Modality] = {}
    for stream in streams:
        try:
            modalities[stream.name] = faces.media(record.files, stream)
        except MediaError as error:
            modalities[stream.name] = Problem(record.name, str(error.path), error.reason)
        except (OSError, ValueError) as error:  # what a decoding library lets through must not end a long run
            source = faces.source(record.files) if stream.modality == "face" else record.files.source(stream.modality)
            modalities[stream.name] = Problem(record.name, str(source), f"{type(error).__name__}: {error}")
    return modalities


class _Calls:
    """Calls of the encoders, made by threads of their own; no more of them wait than are at work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_CALLS, thread_name_prefix="encode")
        self._pending: deque[Future[np.ndarray]] = deque()
        self._lock = threading.Lock()
        self._running = 0
        self._since = 0.0
        self.busy = 0.0
        """Seconds in which at least one call was at work."""

    def __enter__(self) -> "_Calls":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, call: Callable[[], np.ndarray]) -> Future[np.ndarray]:
        """Adds a call; waits for the oldest one, and raises what it raised, where too many are under way."""
        self._pending.append(self._pool.submit(self._run, call))
        if len(self._pending) > _CALLS:
            self._pending.popleft().result()
        return self._pending[-1]

    def _run(self, call: Callable[[], np.ndarray]) -> np.ndarray:
        self._count(1)
        try:
            return call()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.monotonic()
            self.busy += now - self._since if self._running else 0.0
            self._running += change
            self._since = now


class _Column:
    """Collects one stream of some clips; has a batch encoded whenever one is full."""

    def __init__(self, stream: Stream, encoders: Encoders, batch: int, calls: _Calls) -> None:
        self._stream = stream
        self._encoders = encoders
        self._batch = batch
        self._calls = calls
        self._width = int(provenance_of(encoders, stream)["width"])
        self._waiting: list[tuple[str, np.ndarray]] = []
        self._encoded: list[Future[np.ndarray]] = []
        self._present: list[bool] = []

    def add(self, name: str, modality: np.ndarray | None) -> None:
        """Adds a clip; None if it lacks the modality."""
        self._present.append(modality is not None)
        if modality is not None:
            self._waiting.append((name, modality))
            if len(self._waiting) == self._batch:
                self._begin()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Encodes what waits and returns float16 [n, count, width] and bool [n]."""
        if self._waiting:
            self._begin()
        present = np.asarray(self._present, np.bool_)
        features = np.zeros((len(present), self._stream.count, self._width), FEATURE_DTYPE)
        if self._encoded:
            features[present] = np.concatenate([future.result() for future in self._encoded])
        return features, present

    def _begin(self) -> None:
        full, self._waiting = self._waiting, []
        self._encoded.append(self._calls.submit(lambda: self._encode(full)))

    def _encode(self, clips: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """Features of a batch of clips, float16 [n, count, width]."""
        names, modalities = zip(*clips, strict=True)
        inputs = np.zeros((self._batch, *modalities[0].shape), modalities[0].dtype)
        inputs[: len(modalities)] = modalities
        if self._stream.modality == "audio":
            outputs = self._encoders.audio(inputs)
        else:
            outputs = self._encoders.vision(inputs.reshape(-1, *inputs.shape[2:]))
        expected = (*inputs.shape[:2], self._width)
        if outputs.size != np.prod(expected) or outputs.shape[-1] != self._width:
            raise UserError(
                f"The encoder of stream {self._stream.name!r} gave features of shape {list(outputs.shape)} for inputs "
                f"of shape {list(inputs.shape)}; it states a width of {self._width}."
            )
        with np.errstate(over="ignore"):
            features = np.asarray(outputs).reshape(expected)[: len(names)].astype(FEATURE_DTYPE)
        finite = np.isfinite(features).all(axis=(1, 2))
        if not finite.all():
            raise UserError(
                f"The encoder of stream {self._stream.name!r} gave values for clip {names[int(finite.argmin())]!r} "
                "that float16 cannot hold (not finite, or beyond 65504). Its weights or their type are at fault."
            )
        return features
