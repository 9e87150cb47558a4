"""The training run: the one place with side effects. It never sees a layer; the step never sees a file."""

import platform
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from affectgpt_jax.checkpoint import Checkpoints, targets
from affectgpt_jax.config import RunConfig, save_config
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape
from affectgpt_jax.data.pipeline import Asker, MediaInLoop, RowLoader, measure, training_batches
from affectgpt_jax.data.plan import Limits, Plan
from affectgpt_jax.data.prompts import layout_size
from affectgpt_jax.data.shards import Corpus
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.runs import UNTRAINED, model_layout, model_streams, open_shards
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.sharding import batch_sharding, parameter_shardings, replicated, run_mesh, state_shardings, under
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


def make_asker(config: RunConfig, tokenizer: Tokenizer) -> Asker:
    """The tokenisation of a run."""
    return Asker(
        tokenizer,
        config.model.mode,
        model_layout(config),
        config.data.label_types,
        config.compat,
        config.data.max_length,
    )


def make_plan(config: RunConfig, corpus: Corpus, ask: Asker, say: Callable[[str], None]) -> tuple[Plan, np.ndarray]:
    """The plan of a run, and the corpus index of each of its samples."""
    data = config.data
    started = time.perf_counter()
    lengths = measure(corpus.texts(), ask)
    for rejected in lengths.rejected:
        say(f"left out: {rejected.name} {rejected.reason}")
    plan = Plan(
        tokens=lengths.tokens,
        targets=lengths.targets,
        limits=Limits(data.row_length, data.row_targets, data.row_samples),
        step_rows=config.train.rows * config.train.accumulate,
        seed=config.train.seed,
        weights=data.label_weights,
        types="draw" if config.compat == "reference" else "alternate",
        window=data.window,
    )
    rows = plan.epoch_rows(0)
    filled = sum(int(plan.tokens[ask.label_type, ask.sample]) for row in rows for ask in row.asks)
    say(
        f"{len(lengths.samples)} samples in {len(rows)} rows of {data.row_length}, "
        f"{filled / len(rows) / data.row_length:.0%} filled, {plan.epoch_steps(0)} steps a pass "
        f"(planned in {clock(time.perf_counter() - started)})"
    )
    return plan, lengths.samples


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
    mesh = run_mesh(config)
    model = AffectGPT(config.model)
    params = initial_parameters(config, model, parameter_shardings(mesh, parameter_shapes(model)), given)
    trainable, frozen = split(config.model, params, config.train.trainable)
    optimizer = make_optimizer(config.train.optimizer, config.train.steps)
    abstract = jax.eval_shape(lambda: new_state(trainable, optimizer))
    shardings = state_shardings(mesh, abstract, trainable)
    start = jax.jit(lambda params: new_state(params, optimizer), donate_argnums=0, out_shardings=shardings)
    state = start(trainable)
    seed = config.train.seed if config.train.dropout else None
    places = (shardings, replicated(mesh))
    step = jax.jit(make_step(model, optimizer, dropout_seed=seed), donate_argnums=0, out_shardings=places)
    return Setup(mesh, model, frozen, state, shardings, under(mesh, step))


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
    corpus = open_shards(config, config.data.split)
    ask = make_asker(config, tokenizer)
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
        plan, samples = make_plan(config, corpus, ask, log.say)
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
        batches = _batches(config, corpus, plan, samples, ask, tokenizer, int(state.step), media)
        loop = _Loop(config, setup, log, compiles)
        state = loop.run(
            state,
            batches,
            media.encode if media else None,
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


def _batches(
    config: RunConfig,
    corpus: Corpus,
    plan: Plan,
    samples: np.ndarray,
    ask: Asker,
    tokenizer: Tokenizer,
    start: int,
    media: MediaInLoop | None,
) -> Iterator[Batch]:
    data, streams = config.data, model_streams(config)
    shapes: dict[str, Any] = (
        dict(media.shapes) if media else {name: corpus.shape(stream) for name, stream in streams.items()}
    )
    loader = RowLoader(
        corpus=corpus,
        samples=samples,
        ask=ask,
        streams=streams,
        read=media.read if media else corpus.features,
        hide=data.hide.model_dump(),
        seed=config.train.seed,
    )
    if not config.model.absent:
        _require_complete(config, corpus, samples)
    shape = BatchShape(
        rows=config.train.rows // jax.process_count(),
        length=data.row_length,
        targets=data.row_targets,
        samples=data.row_samples,
        soft=layout_size(ask.layout),
        streams=shapes,
        feature_dtype=np.float32 if media else np.float16,
    )
    return training_batches(
        plan,
        loader,
        shape,
        start=start,
        steps=config.train.steps,
        rounds=config.train.accumulate,
        weighting=data.weighting,
        group=data.group,
        unattended=tokenizer.eos if config.compat == "reference" else None,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=data.threads,
    )


def _require_complete(config: RunConfig, corpus: Corpus, samples: np.ndarray) -> None:
    for stream in model_streams(config).values():
        lost = np.flatnonzero(~corpus.present(stream)[samples])
        if len(lost) or any(config.data.hide.model_dump().values()):
            what = f"{len(lost)} samples lack {stream}" if len(lost) else "data.hide hides modalities"
            raise UserError(
                f"{what}, and the model has nothing to put in their place; set model.absent=true to learn it, "
                "or prepare with prepare.missing=drop"
            )


def _items(state: TrainState) -> dict[str, Any]:
    """A state as a checkpoint keeps it: what a reader of the model wants stands alone."""
    return {"params": state.params, "progress": {"step": state.step, "optimizer": state.optimizer}}


def _outside(config: RunConfig, frozen: Tree) -> Tree:
    """The frozen parameters that do not stand in the base's folder."""
    return nest({path: leaf for path, leaf in paths(frozen).items() if not in_base(config, path)})


class _Loop:
    """The loop proper; metrics are fetched one step late, so that the device never waits for the host."""

    def __init__(self, config: RunConfig, setup: Setup, log: RunLog, compiles: CompileCounter) -> None:
        self._config, self._setup, self._log, self._compiles = config, setup, log, compiles
        self._work = decoder_work(config.model.decoder, setup.state.params, setup.frozen)
        self._peak, source = peak_flops()
        self._rate = jax.jit(make_schedule(config.train.optimizer, config.train.steps))
        self._rate(np.asarray(0))
        self._place = batch_sharding(setup.mesh)
        self.last_loss = float("nan")
        self.compiled_late = 0
        log.say(f"peak {self._peak / 1e12:.2f} TFLOP/s ({source})")

    def run(
        self,
        state: TrainState,
        batches: Iterator[Batch],
        encode: Callable[[Batch], Batch] | None,
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
            host = next(batches)
            works.append(batch_work(host))
            batch = self._put(encode(host) if encode else host)
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

    def _put(self, host: Batch) -> Batch:
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._place, x), host)

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
