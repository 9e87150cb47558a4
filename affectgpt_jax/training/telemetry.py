"""What a run says about itself: JSONL, TensorBoard, Weights & Biases, a live line, traces, where its time goes."""

import json
import resource
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from affectgpt_jax.data.shard_schema import digest
from affectgpt_jax.errors import UserError

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
HIT_EVENT = "/jax/compilation_cache/cache_hits"
TRACED = 5
"""Steps of a trace that a signal asks for."""


class CompileCounter:
    """Counts programs made ready in this process, compiled or found in the cache; no more come once a run is warm."""

    def __init__(self) -> None:
        self.count = 0
        self.hits = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)
        jax.monitoring.register_event_listener(self._note_hit)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            self.count += 1
            self.seconds += duration_secs

    def _note_hit(self, event: str, **_: str | int) -> None:
        self.hits += event == HIT_EVENT


class Goodput:
    """Share of a run's time that went into steps that count, from its first start on: restarts, compiling, waiting for
    data, validation and steps that a crash undid are what is missing to 1."""

    def __init__(self, facts: dict[str, float] | None = None) -> None:
        """Begin, or go on from what a checkpoint says (`facts`)."""
        self._started = facts["started"] if facts else time.time()
        self._productive = facts["productive"] if facts else 0.0

    def add(self, seconds: float) -> None:
        """Count time of steps."""
        self._productive += seconds

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return min(self._productive / max(time.time() - self._started, 1e-9), 1.0)

    def facts(self) -> dict[str, float]:
        """What the next start needs to go on, for a checkpoint."""
        return {"started": self._started, "productive": self._productive}


def memory_in_use() -> dict[str, float]:
    """Memory in GB: of the fullest local device now and at most; of this process where devices do not say."""
    found = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not found:
        return {"host_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    names = {"hbm_gb": "bytes_in_use", "hbm_peak_gb": "peak_bytes_in_use"}
    return {name: max(stats.get(key, 0) for stats in found) / 1e9 for name, key in names.items()}


class Tracer:
    """Traces steps for xprof into RUN/profile: those of `train.profile`, and the next ones whenever SIGUSR1 comes.

    Use it as a context manager in the main thread.
    """

    def __init__(self, folder: Path, steps: str) -> None:
        """Plan the trace.

        Args:
          folder: run folder.
          steps: "FIRST:LAST" or empty.
        """
        self._folder = folder / "profile"
        self._first, self._last = map(int, steps.split(":")) if steps else (0, -1)
        self._asked = self._tracing = False

    def __enter__(self) -> Self:
        self._old = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGUSR1, self._old)
        self._stop()

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before(self, step: int, pending: Any) -> None:
        """Start or stop ahead of a step; `pending` are results of the step before, waited for where a trace ends."""
        if self._tracing and step > self._last:
            jax.block_until_ready(pending)
            self._stop()
        if self._asked and not self._tracing:
            self._asked, self._first, self._last = False, step, step + TRACED - 1
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def _stop(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False


def clock(seconds: float) -> str:
    """Seconds as 1h02m, 3m20s or 12s."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class RunLog:
    """Writes a run's metrics; only process 0 does. Use it as a context manager."""

    def __init__(self, folder: Path, total_steps: int, *, wandb: str = "", settings: Any = None) -> None:
        """Open the files.

        Args:
          folder: run folder.
          total_steps: where the run ends.
          wandb: Weights & Biases project that gets the metrics too; empty for none.
          settings: what it is told of the run's config.

        Raises:
          UserError: the wandb package is missing, or the folder cannot be written.
        """
        self._main = jax.process_index() == 0
        self._total = total_steps
        self._started = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._first: int | None = None
        if self._main:
            from tensorboardX import SummaryWriter  # imports torch wherever it is installed

            self._wandb = _open_wandb(wandb, folder, settings) if wandb else None
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = (folder / "metrics.jsonl").open("a", buffering=1)
                self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error}); name another folder: train.output") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            if self._live:
                print(file=sys.stderr)
            self._file.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish(exit_code=0 if error is None else 1)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Record values of a step that are no part of its metrics, such as a validation's."""
        if self._main:
            self._record(step, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step's values and show the live line.

        Args:
          step: optimizer steps taken.
          values: by name; `loss`, `samples_per_s`, `tokens_per_s`, `mfu_lora` and `data_wait` are shown.
        """
        if not self._main:
            return
        self._first = step if self._first is None else self._first
        self._record(step, values)
        done = step - self._first
        passed = time.perf_counter() - self._started
        eta = clock(passed / done * (self._total - step)) if done else "-"
        line = (
            f"step {step}/{self._total}  loss {values['loss']:.4f}  {values['samples_per_s']:.1f} samples/s  "
            f"{values['tokens_per_s']:.0f} tokens/s  mfu_lora {values['mfu_lora']:.1%}  "
            f"data wait {values['data_wait']:.1%}  eta {eta}"
        )
        print(f"\r{line:<118}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._main:
            print(f"\n{text}" if self._live and self._first is not None else text, file=sys.stderr, flush=True)


def _open_wandb(project: str, folder: Path, settings: Any) -> Any:
    """A run of Weights & Biases that goes on where the one of the same folder ended."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "train.wandb needs the wandb package: pip install 'affectgpt-jax[wandb]', or leave train.wandb empty"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    identity = digest(str(folder.resolve()).encode())[:16]
    return wandb.init(project=project, name=folder.name, id=identity, resume="allow", dir=str(folder), config=settings)
