"""What a run says about itself: JSONL, TensorBoard, and a live line."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts programs compiled in this process; it must not grow after a run has warmed up."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == COMPILE_EVENT


def clock(seconds: float) -> str:
    """Seconds as 1h02m, 3m20s or 12s."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class RunLog:
    """Writes a run's metrics; only process 0 does. Use it as a context manager."""

    def __init__(self, folder: Path, total_steps: int) -> None:
        self._main = jax.process_index() == 0
        self._total = total_steps
        self._started = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._first: int | None = None
        if self._main:
            from tensorboardX import SummaryWriter  # imports torch wherever it is installed

            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), flush_secs=30)

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

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step's values and show the live line.

        Args:
          step: optimizer steps taken.
          values: by name; `loss`, `samples_per_s`, `tokens_per_s`, `mfu_lora` and `data_wait` are shown.
        """
        if not self._main:
            return
        self._first = step if self._first is None else self._first
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
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
