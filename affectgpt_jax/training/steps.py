"""The loop over optimizer steps: metrics, validation, checkpoints, traces, and what to do about a bad loss.

Metrics are fetched one step late, so that the device never waits for the host.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.errors import UserError
from affectgpt_jax.training.data import RunData
from affectgpt_jax.training.flops import Work, decoder_work, mfu_lora, peak_flops
from affectgpt_jax.training.optimizer import make_schedule
from affectgpt_jax.training.setup import Setup
from affectgpt_jax.training.state import TrainState
from affectgpt_jax.training.step import Metrics
from affectgpt_jax.training.telemetry import CompileCounter, Goodput, RunLog, Tracer, memory_in_use
from affectgpt_jax.training.validation import Validator

NAMED = 8
"""Samples of a bad step that a message names."""
RECENT = 100
"""Steps among which bad ones are counted."""


class Best(NamedTuple):
    """The best validation so far."""

    step: int
    value: float


class Store(NamedTuple):
    """Where states go to and come from.

    Attributes:
      save: (step, state, best) -> starts saving a checkpoint.
      save_best: the same for the best one.
      check: raises what went wrong with a save in the background.
      newest: the state of the newest checkpoint, None if there is none yet.
    """

    save: Callable[[int, TrainState, Best | None], None]
    save_best: Callable[[int, TrainState, Best | None], None]
    check: Callable[[], None]
    newest: Callable[[], TrainState | None]


class Loop:
    """Takes the steps of a run."""

    def __init__(
        self,
        config: RunConfig,
        setup: Setup,
        data: RunData,
        parts: int,
        log: RunLog,
        compiles: CompileCounter,
        goodput: Goodput,
        store: Store,
        validator: Validator | None,
        best: Best | None,
    ) -> None:
        """Get ready.

        Args:
          config: the run, resolved.
          setup: what takes a step.
          data: the run's plan, which names the samples of a bad step.
          parts: how many processes a batch comes from, each with a part of its own.
          log: where metrics go.
          compiles: counts programs.
          goodput: counts time.
          store: checkpoints.
          validator: measures on held-out samples, if the run asks for it.
          best: the best validation of the run so far.
        """
        self._config, self._setup, self._data, self._parts, self._log = config, setup, data, parts, log
        self._compiles, self._goodput, self._store, self._validator = compiles, goodput, store, validator
        self._work = decoder_work(config.model.decoder, setup.state.params, setup.frozen)
        self._peak, source = peak_flops()
        # All of them now: a program between two steps would wait on the device for the one at work.
        schedule = make_schedule(config.train.optimizer, config.train.steps)
        self._rates = jax.device_get(jax.jit(jax.vmap(schedule))(np.arange(config.train.steps)))
        self._bad: deque[int] = deque()
        self._works: list[Work] = []
        self._waited = self._paused = 0.0
        self._since = time.perf_counter()
        self._warm: int | None = None
        self._validated = False
        self.best = best
        self.last_loss = float("nan")
        log.say(f"peak {self._peak / 1e12:.2f} TFLOP/s ({source})")

    @property
    def compiled_late(self) -> int:
        """Programs compiled after the first step and the first validation."""
        return self._compiles.count - (self._compiles.count if self._warm is None else self._warm)

    def run(
        self,
        state: TrainState,
        batches: Iterator[tuple[Work, Batch]],
        tracer: Tracer,
        asked_to_stop: Callable[[int], bool],
    ) -> TrainState:
        """Step until the run's end, or until asked to stop.

        Args:
          state: where to begin.
          batches: from its step on, on the devices.
          tracer: told of each step.
          asked_to_stop: asked after each step.

        Returns:
          The last state; whoever called saves it.

        Raises:
          UserError: a bad loss that the run's policy does not pass over, or a save that failed.
        """
        train, validation = self._config.train, self._config.validation
        pending: tuple[int, Metrics] | None = None
        self._since = time.perf_counter()
        for number in range(int(state.step) + 1, train.steps + 1):
            before = time.perf_counter()
            work, batch = next(batches)
            self._waited += time.perf_counter() - before
            tracer.before(number, pending)
            state, metrics = self._setup.step(state, self._setup.frozen, batch)
            del batch  # freeing it is no waiting for the next one
            if pending is not None:
                state = self._settle(*pending, state)
            self._works.append(work)
            pending = number, metrics
            self._store.check()
            last = number == train.steps
            validates = self._validator is not None and (last or number % validation.every == 0)
            stops = asked_to_stop(number) or last
            if validates or stops or number % train.checkpoint_every == 0:
                state, pending = self._settle(*pending, state), None
                self._pause(number, state, validates=validates, saves=number % train.checkpoint_every == 0)
            if self._warm is None:
                self._warm = self._compiles.count
            if stops:
                break
        return state

    def _pause(self, number: int, state: TrainState, *, validates: bool, saves: bool) -> None:
        """Validate and save between two steps."""
        before, programs = time.perf_counter(), self._compiles.count
        if validates and self._validator is not None:
            values = self._validator(state.params, self._setup.frozen)
            self._log.note(number, values)
            self._log.say(f"validation at step {number}: {', '.join(f'{k} {v:.4f}' for k, v in values.items())}")
            name = self._config.validation.best
            value = values[f"validation_{name}"]
            sign = 1 if name == "loss" else -1
            if np.isfinite(value) and (self.best is None or sign * value < sign * self.best.value):
                self.best = Best(number, value)
                self._store.save_best(number, state, self.best)
        if saves:
            self._store.save(number, state, self.best)
        if validates and not self._validated:  # the first validation compiles programs of its own
            self._validated = True
            self._warm = None if self._warm is None else self._warm + self._compiles.count - programs
        self._paused += time.perf_counter() - before

    def _settle(self, step: int, metrics: Metrics, state: TrainState) -> TrainState:
        """Look at a step's metrics: log them, or do what the policy says about a loss that is no number."""
        values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
        self.last_loss = values["loss"]
        if not (np.isfinite(values["loss"]) and np.isfinite(values["gradient_norm"])):
            return self._pass_over(step, values, state)
        if step % self._config.train.log_every == 0 or step == 1:
            values |= {"learning_rate": float(self._rates[step - 1]), "samples": self._data.plan.samples_before(step)}
            values |= self._speeds()
            values |= {"compiled": self._compiles.count, "cache_hits": self._compiles.hits, **memory_in_use()}
            self._log.write(step, values)
        return state

    def _pass_over(self, step: int, values: dict[str, float], state: TrainState) -> TrainState:
        """What the policy says about a step without a usable loss or gradient.

        Raises:
          UserError: it says stop, there is nothing to go back to, or it happens too often.
        """
        train = self._config.train
        names = self._data.names(step - 1)  # the plan counts steps taken before
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        told = f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; samples: {shown}"
        self._bad.append(step)
        while self._bad[0] <= step - RECENT:
            self._bad.popleft()
        self._log.note(step, {"bad_loss": 1.0})
        if train.bad_loss == "stop":
            raise UserError(
                f"{told}. Lower train.optimizer.peak, look at the samples (affectgpt explain), or pass over such steps "
                "with train.bad_loss=skip or rewind"
            )
        if len(self._bad) > train.bad_losses:
            raise UserError(
                f"{told}. That is the {len(self._bad)}th such step among the last {RECENT}, more than "
                f"train.bad_losses={train.bad_losses}: lower train.optimizer.peak"
            )
        if train.bad_loss == "skip":
            self._log.say(f"{told}: no update")
            return state
        earlier = self._store.newest()
        if earlier is None:
            raise UserError(f"{told}. There is no checkpoint to go back to yet: lower train.checkpoint_every")
        self._log.say(f"{told}: parameters of step {int(earlier.step)} again, and on with the data")
        return earlier._replace(step=state.step)

    def _speeds(self) -> dict[str, float]:
        """Rates since the last call, without pauses."""
        now = time.perf_counter()
        works: Sequence[Work] = self._works
        total = Work(*(sum(column) * self._parts for column in zip(*works, strict=True)))
        seconds = max(now - self._since - self._paused, 1e-9)
        self._goodput.add(seconds - self._waited)
        found = {
            "samples_per_s": total.samples / seconds,
            "tokens_per_s": total.tokens / seconds,
            "mfu_lora": mfu_lora(self._work, total, seconds, self._peak),
            "data_wait": self._waited / seconds,
            "goodput": self._goodput.share,
        }
        self._works, self._waited, self._paused, self._since = [], 0.0, 0.0, now
        return found
