"""The training run: the one place with side effects. It never sees a layer; the step never sees a file."""

import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from affectgpt_jax.checkpoint import Checkpoints, targets
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.pipeline import MediaInLoop
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import UNTRAINED
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.prefetch import prefetch
from affectgpt_jax.sharding import batch_sharding, make_mesh, parameter_shardings, state_shardings
from affectgpt_jax.training.data import make_batches, make_data, open_training_shards
from affectgpt_jax.training.flops import Work, batch_work, decoder_work, peak_flops
from affectgpt_jax.training.optimizer import make_optimizer, make_schedule
from affectgpt_jax.training.start import read_start
from affectgpt_jax.training.state import TrainState, new_state
from affectgpt_jax.training.step import Metrics, make_step
from affectgpt_jax.training.telemetry import CompileCounter, RunLog, clock
from affectgpt_jax.weights.initial import in_base, initial_parameters, parameter_shapes, resolve
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import Tree, join, split

ENVIRONMENT = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Result(NamedTuple):
    """How a run ended."""

    steps: int
    finished: bool
    loss: float
    seconds: float
    compiled: int


class Setup(NamedTuple):
    """A run ready to start."""

    mesh: Mesh
    model: AffectGPT
    frozen: Tree
    state: TrainState
    shardings: TrainState
    step: Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]


def set_up(config: RunConfig, given: Mapping[str, Any] | None = None) -> Setup:
    """Build mesh, parameters, state and the compiled step of a resolved config.

    Args:
      config: the run.
      given: parameters by path to start from, see `initial_parameters`.
    """
    mesh = make_mesh(config.mesh)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.train.rows % rows:
        raise UserError(
            f"train.rows={config.train.rows} cannot be split over mesh.data * mesh.fsdp = {rows}; "
            f"use {-(-config.train.rows // rows) * rows}"
        )
    model = AffectGPT(config.model)
    params = initial_parameters(config, model, parameter_shardings(mesh, parameter_shapes(model)), given)
    trainable, frozen = split(config.model, params, config.train.trainable)
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    abstract = jax.eval_shape(lambda: new_state(trainable, optimizer))
    shardings = state_shardings(mesh, abstract, trainable)
    state = jax.jit(lambda params: new_state(params, optimizer), out_shardings=shardings)(trainable)
    seed = config.train.seed if config.train.dropout else None
    step = jax.jit(make_step(model, optimizer, dropout_seed=seed), donate_argnums=0, out_shardings=(shardings, None))
    return Setup(mesh, model, frozen, state, shardings, step)


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM and the first Ctrl-C ask the run to save and stop; yields whether that happened."""
    stopped: list[int] = []

    def note(number: int, _: Any) -> None:
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(stopped)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def train(config: RunConfig, folder: Path, *, media: MediaInLoop | None = None) -> Result:
    """Run, or go on from the newest checkpoint in the folder.

    Args:
      config: the run.
      folder: run folder; gets config.yaml, metrics.jsonl, tensorboard/ and checkpoints/.
      media: encoders in the loop, for `data.source: media`.

    Raises:
      UserError: anything about the config, the shards or the folder that does not fit.
    """
    config, tokenizer = resolve(config)
    started = time.perf_counter()
    compiles = CompileCounter()
    corpus = open_training_shards(config)
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.train.keep)
    resumed = checkpoints.latest is not None
    if resumed and not checkpoints.holds("progress"):
        raise UserError(
            f"{folder} holds converted weights and no training; start from them with train.init_from={folder} and "
            "another train.output"
        )
    start = None if resumed or not config.train.init_from else read_start(config, tokenizer)
    setup = set_up(config, start.given if start else None)
    with RunLog(folder, config.train.steps) as log, stop_signals() as asked_to_stop:
        data = make_data(config, tokenizer, corpus, log.say)
        state, frozen = setup.state, setup.frozen
        # What is neither trained nor fresh nor the base's can come from nowhere but a checkpoint.
        kept = _outside(config, frozen) if start or checkpoints.holds(UNTRAINED) else {}
        origin: dict[str, Any] = {}
        if start:
            log.say(f"starting from {start.source}" + (f"; made anew: {', '.join(start.fresh)}" if start.fresh else ""))
            origin = {"init_from": {"source": start.source, "model": start.model}}
        if resumed:
            wanted = _items(targets(state)) | ({UNTRAINED: targets(kept)} if kept else {})
            _, items, facts = checkpoints.restore(wanted)
            state = TrainState(items["progress"]["step"], items["params"], items["progress"]["optimizer"])
            kept = items.get(UNTRAINED, {})
            setup = setup._replace(frozen=join(kept, frozen))
            origin = {key: facts[key] for key in ("init_from",) if key in facts}
            if facts["corpus"] != corpus.fingerprint:
                told = (
                    f"{folder} was trained on other shards than {config.data.shards} (fingerprint "
                    f"{facts['corpus'][:12]}, found {corpus.fingerprint[:12]})"
                )
                if not config.train.other_corpus:
                    raise UserError(
                        f"{told}; name those, start in another train.output, or go on with train.other_corpus=true"
                    )
                log.say(f"{told}; going on with these")
            log.say(f"going on from step {int(state.step)}")
        if jax.process_index() == 0:
            save_config(config, folder / "config.yaml")
        facts = {
            "corpus": corpus.fingerprint,
            "environment": {"python": platform.python_version(), **{name: version(name) for name in ENVIRONMENT}},
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            **origin,
        }
        more = {UNTRAINED: kept} if kept else {}
        loop = _Loop(config, setup, log, compiles)
        place = partial(_place, setup.mesh, media.encode if media else None)
        with prefetch(make_batches(config, tokenizer, data, int(state.step), media), place) as batches:
            state = loop.run(
                state,
                batches,
                asked_to_stop,
                lambda step, state: checkpoints.save(step, _items(state) | more, {**facts, "step": step}),
            )
        last = int(state.step)
        checkpoints.save(last, _items(state) | more, {**facts, "step": last})
        checkpoints.wait()
        finished = last >= config.train.steps
        seconds = time.perf_counter() - started
        log.say(
            f"{'finished' if finished else 'stopped and saved'} at step {last} after {clock(seconds)}; "
            f"{compiles.count} programs compiled, {loop.compiled_late} of them after the first step"
        )
    checkpoints.close()
    return Result(last, finished, loop.last_loss, seconds, compiles.count)


def _items(state: TrainState) -> dict[str, Any]:
    """A state as a checkpoint keeps it: what a reader of the model wants stands alone."""
    return {"params": state.params, "progress": {"step": state.step, "optimizer": state.optimizer}}


def _outside(config: RunConfig, frozen: Tree) -> Tree:
    """The frozen parameters that do not stand in the base's folder."""
    return nest({path: leaf for path, leaf in paths(frozen).items() if not in_base(config, path)})


def _place(mesh: Mesh, encode: Callable[[Batch], Batch] | None, host: Batch) -> tuple[Work, Batch]:
    """A batch on the devices, encoded if it holds media, and what work it is."""
    work, sharding = batch_work(host), batch_sharding(mesh)
    ready = encode(host) if encode else host
    return work, jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), ready)


class _Loop:
    """The loop proper; metrics are fetched one step late, so that the device never waits for the host."""

    def __init__(self, config: RunConfig, setup: Setup, log: RunLog, compiles: CompileCounter) -> None:
        self._config, self._setup, self._log, self._compiles = config, setup, log, compiles
        self._work = decoder_work(config.model.decoder, setup.state.params, setup.frozen)
        self._peak, source = peak_flops()
        self._rate = jax.jit(make_schedule(config.train.optimizer, config.train.steps))
        self._rate(np.asarray(0))
        self.last_loss = float("nan")
        self.compiled_late = 0
        log.say(f"peak {self._peak / 1e12:.2f} TFLOP/s ({source})")

    def run(
        self,
        state: TrainState,
        batches: Iterator[tuple[Work, Batch]],
        asked_to_stop: Callable[[], bool],
        save: Callable[[int, TrainState], None],
    ) -> TrainState:
        train = self._config.train
        pending: tuple[int, Metrics] | None = None
        works: list[Work] = []
        waited, since = 0.0, time.perf_counter()
        warm: int | None = None
        for number in range(int(state.step) + 1, train.steps + 1):
            before = time.perf_counter()
            work, batch = next(batches)
            works.append(work)
            waited += time.perf_counter() - before
            state, metrics = self._setup.step(state, self._setup.frozen, batch)
            if pending is not None and (pending[0] % train.log_every == 0 or pending[0] == 1):
                values = self._values(*pending)
                now = time.perf_counter()
                self._log.write(pending[0], values | self._speeds(works[:-1], now - since, waited))
                works, waited, since = works[-1:], 0.0, now
            pending = number, metrics
            warm = self._compiles.count if warm is None else warm
            if number % train.checkpoint_every == 0:
                save(number, state)
            if asked_to_stop():
                break
        if pending is not None:
            values = self._values(*pending)
            self._log.write(pending[0], values | self._speeds(works, time.perf_counter() - since, waited))
            self.compiled_late = self._compiles.count - (self._compiles.count if warm is None else warm)
        return state

    def _values(self, step: int, metrics: Metrics) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics._asdict().items()}
        self.last_loss = values["loss"]
        if not np.isfinite(values["loss"]):
            raise UserError(
                f"the loss of step {step} is {values['loss']}; lower train.optimizer.peak, or go on from an earlier "
                "checkpoint"
            )
        return {**values, "learning_rate": float(self._rate(np.asarray(step - 1))), "compiled": self._compiles.count}

    def _speeds(self, works: Sequence[Work], seconds: float, waited: float) -> dict[str, float]:
        total = Work(*(sum(column) * jax.process_count() for column in zip(*works, strict=True)))
        return {
            "samples_per_s": total.samples / seconds,
            "tokens_per_s": total.tokens / seconds,
            "mfu_lora": self._work.flops(total) / seconds / self._peak,
            "data_wait": waited / seconds,
        }
