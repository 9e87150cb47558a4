"""The training run: the one place with side effects. It never sees a layer; the step never sees a file."""

import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from affectgpt_jax.checkpoint import Checkpoints, targets
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.pipeline import MediaInLoop
from affectgpt_jax.distributed import barrier, part_of_batch
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import BEST, CHECKPOINTS, UNTRAINED
from affectgpt_jax.prefetch import prefetch
from affectgpt_jax.sharding import batch_sharding, put_batch
from affectgpt_jax.training.data import make_batches, make_data, open_training_shards
from affectgpt_jax.training.flops import Work, batch_work
from affectgpt_jax.training.setup import set_up
from affectgpt_jax.training.start import read_start
from affectgpt_jax.training.state import TrainState
from affectgpt_jax.training.steps import Best, Loop, Store
from affectgpt_jax.training.telemetry import CompileCounter, Goodput, RunLog, Tracer, clock
from affectgpt_jax.training.validation import Validator
from affectgpt_jax.weights.fused import fuse
from affectgpt_jax.weights.initial import in_base, resolve
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.trainable import Tree, join

ENVIRONMENT = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
AHEAD_SECONDS = 1800.0
"""How far a process may be ahead of another when training begins; reading shards and weights takes its time."""


class Result(NamedTuple):
    """How a run ended."""

    steps: int
    finished: bool
    loss: float
    seconds: float
    compiled: int


@contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """While inside, SIGTERM and the first Ctrl-C ask the run to save and stop.

    Yields:
      Whether to stop after a step; asked after each one. All processes of a job stop after the same step, whichever of
      them got the signal.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    stopped: list[int] = []

    def note(number: int, _: Any) -> None:
        if stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(stopped)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def train(config: RunConfig, folder: Path, *, media: MediaInLoop | None = None) -> Result:
    """Run, or go on from the newest checkpoint in the folder.

    Args:
      config: the run.
      folder: run folder; gets config.yaml, metrics.jsonl, tensorboard/, checkpoints/, and best/ if it validates.
      media: encoders in the loop, for `data.source: media`.

    Raises:
      UserError: anything about the config, the shards or the folder that does not fit.
    """
    config, tokenizer = resolve(config)
    started = time.perf_counter()
    compiles = CompileCounter()
    corpus = open_training_shards(config)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.train.keep, keep_every=config.train.keep_every)
    bests = Checkpoints(folder / BEST, keep=1) if config.validation.every else None
    managers = [manager for manager in (checkpoints, bests) if manager is not None]
    resumed = checkpoints.latest is not None
    if resumed and not checkpoints.holds("progress"):
        raise UserError(
            f"{folder} holds converted weights and no training; start from them with train.init_from={folder} and "
            "another train.output"
        )
    start = None if resumed or not config.train.init_from else read_start(config, tokenizer)
    setup = set_up(config, start.given if start else None)
    abstract, settings = targets(setup.state), config.model_dump(mode="json")
    with (
        RunLog(folder, config.train.steps, wandb=config.train.wandb, settings=settings) as log,
        stop_signals() as asked_to_stop,
    ):
        data = make_data(config, tokenizer, corpus, log.say)
        state = setup.state
        # What is neither trained nor fresh nor the base's can come from nowhere but a checkpoint.
        kept = _outside(config, setup.frozen) if start or checkpoints.holds(UNTRAINED) else {}
        origin: dict[str, Any] = {}
        found: dict[str, Any] = {}
        if start:
            log.say(f"starting from {start.source}" + (f"; made anew: {', '.join(start.fresh)}" if start.fresh else ""))
            origin = {"init_from": {"source": start.source, "model": start.model}}
        if resumed:
            wanted = _items(abstract) | ({UNTRAINED: targets(kept)} if kept else {})
            _, items, found = checkpoints.restore(wanted)
            state = _state(items)
            kept = items.get(UNTRAINED, {})
            setup = setup._replace(frozen=join(kept, setup.frozen))
            origin = {key: found[key] for key in ("init_from",) if key in found}
            if found["corpus"] != corpus.fingerprint:
                told = (
                    f"{folder} was trained on other shards than {config.data.shards} (fingerprint "
                    f"{found['corpus'][:12]}, found {corpus.fingerprint[:12]})"
                )
                if not config.train.other_corpus:
                    raise UserError(
                        f"{told}; name those, start in another train.output, or go on with train.other_corpus=true"
                    )
                log.say(f"{told}; going on with these")
            log.say(f"going on from step {int(state.step)}")
        if config.model.decoder.fused:
            setup = setup._replace(frozen=fuse(setup.frozen))
        if jax.process_index() == 0:
            save_config(config, folder / "config.yaml")
        barrier("run folder", AHEAD_SECONDS)
        facts = {
            "config": settings,
            "corpus": corpus.fingerprint,
            "environment": {"python": platform.python_version(), **{name: version(name) for name in ENVIRONMENT}},
            "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
            **origin,
        }
        more = {UNTRAINED: kept} if kept else {}
        goodput = Goodput(found.get("goodput"))

        def save(where: Checkpoints | None, step: int, state: TrainState, best: Best | None) -> None:
            assert where is not None
            now = {"step": step, "goodput": goodput.facts(), "best": best and best._asdict()}
            where.save(step, _items(state) | more, facts | now)

        def newest() -> TrainState | None:
            checkpoints.wait()
            return None if checkpoints.latest is None else _state(checkpoints.restore(_items(abstract)).items)

        def check() -> None:
            for manager in managers:
                manager.check()

        store = Store(partial(save, checkpoints), partial(save, bests), check, newest)
        place, part = partial(put_batch, setup.mesh), part_of_batch(batch_sharding(setup.mesh), config.train.rows)
        every = config.validation.every
        validator = Validator(config, tokenizer, setup.model, setup.mesh, part, log.say) if every else None
        best = Best(**found["best"]) if found.get("best") else None
        loop = Loop(config, setup, data, part[1], log, compiles, goodput, store, validator, best)
        ready = partial(_ready, place, media.encode if media else None)
        with (
            prefetch(make_batches(config, tokenizer, data, int(state.step), part, media), ready) as batches,
            Tracer(folder, config.train.profile) as tracer,
        ):
            try:
                state = loop.run(state, batches, tracer, asked_to_stop)
            except UserError:
                for manager in managers:
                    manager.wait()  # what was being saved is whole
                raise
        last = int(state.step)
        store.save(last, state, loop.best)
        for manager in managers:
            manager.wait()
        finished = last >= config.train.steps
        seconds = time.perf_counter() - started
        log.say(
            f"{'finished' if finished else 'stopped and saved'} at step {last} after {clock(seconds)}; "
            f"{compiles.count} programs compiled or found in the cache ({compiles.hits}), {loop.compiled_late} of them "
            f"after the first step; {goodput.share:.0%} of the run's time went into its steps"
        )
    for manager in managers:
        manager.close()
    return Result(last, finished, loop.last_loss, seconds, compiles.count)


def _items(state: TrainState) -> dict[str, Any]:
    """A state as a checkpoint keeps it: what a reader of the model wants stands alone."""
    return {"params": state.params, "progress": {"step": state.step, "optimizer": state.optimizer}}


def _outside(config: RunConfig, frozen: Tree) -> Tree:
    """The frozen parameters that do not stand in the base's folder."""
    return nest({path: leaf for path, leaf in paths(frozen).items() if not in_base(config, path)})


def _state(items: dict[str, Any]) -> TrainState:
    return TrainState(items["progress"]["step"], items["params"], items["progress"]["optimizer"])


def _ready(place: Callable[[Batch], Batch], encode: Callable[[Batch], Batch] | None, host: Batch) -> tuple[Work, Batch]:
    """A batch on the devices, encoded if it holds media, and what work it is."""
    return batch_work(host), place(encode(host) if encode else host)
