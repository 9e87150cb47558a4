"""The generation engine: rows of a batch, each at work on a prompt of its own, or idle.

Two compiled functions over a state that is a value: `prefill` reads a few prompts into rows that are idle, `decode`
writes a token in every row that is not, again and again, until enough rows have ended. Whatever its neighbours do and
whenever it was taken in, a row computes the same.

B rows, A prompts taken in at a time, P tokens of a prompt at most, R tokens of an answer at most, V vocabulary.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int, UInt32

from affectgpt_jax.data.batch import Array as HostArray
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.models.decoder import Cache, empty_cache
from affectgpt_jax.ops.axes import spec
from affectgpt_jax.ops.sampling import GREEDY, Sampling, choose, penalise_repeats
from affectgpt_jax.sharding import batch_shards, mesh_of, whole

StopSequences = tuple[tuple[int, ...], ...]

ADMITTED = 4
"""One part of so many of the rows is filled at a time: fewer prompts would read the weights more often, more would keep
idle rows waiting."""


class Prompts(NamedTuple):
    """One prompt a row, right padded, one sample each."""

    tokens: HostArray  # int32 [A, P]
    soft_index: HostArray  # int32 [A, P]
    used: HostArray  # bool [A, P]
    features: dict[str, HostArray]
    present: dict[str, HostArray]


class Request(NamedTuple):
    """What is asked.

    Attributes:
      prompt: one row of it, of any length.
      number: with the engine's seed it decides the draws.
    """

    prompt: Prompts
    number: int


class Answers(NamedTuple):
    """Generated ids, the tokens of the stop sequence included."""

    ids: Int[Array, "B R"]
    lengths: Int[Array, " B"]


class State(NamedTuple):
    """The engine between two calls.

    Attributes:
      cache: keys and values.
      tokens: the prompts' ids.
      words: where they were read as words, and not replaced by soft tokens.
      ids: of the answers.
      lengths: of the answers so far.
      done: rows that have ended, or never began.
      last: the newest token.
      numbers: of the requests.
    """

    cache: Cache
    tokens: Int[Array, "B P"]
    words: Bool[Array, "B P"]
    ids: Int[Array, "B R"]
    lengths: Int[Array, " B"]
    done: Bool[Array, " B"]
    last: Int[Array, " B"]
    numbers: UInt32[Array, " B"]


class Settings(NamedTuple):
    """What the compiled functions are made for.

    Attributes:
      model: the network.
      rows: B.
      prompt: P.
      answer: R.
      stop: id sequences that end an answer; none writes R tokens always.
      sampling: how tokens are drawn.
      seed: of the draws.
    """

    model: AffectGPT
    rows: int
    prompt: int
    answer: int
    stop: StopSequences
    sampling: Sampling
    seed: int


class Programs(NamedTuple):
    """The engine's functions.

    Attributes:
      start: () -> State, all rows idle.
      prefill: (params, state, prompts, rows, numbers) -> State. Prompts [A] go into `rows` [A] of the batch, those of
        a row that does not exist nowhere; each writes its first token. The state is donated.
      decode: (params, state, steps, idle) -> State. Writes at most `steps` tokens a row, until `idle` rows or more are
        done. The state is donated.
    """

    start: jax.stages.Wrapped
    prefill: jax.stages.Wrapped
    decode: jax.stages.Wrapped


def ends(ids: Int[Array, "B R"], lengths: Int[Array, " B"], stop: StopSequences) -> Bool[Array, " B"]:
    """Rows whose first `lengths` ids end in one of the stop sequences."""
    found = jnp.zeros(ids.shape[0], bool)
    for sequence in stop:
        size = len(sequence)
        if size > ids.shape[1]:
            continue
        places = jnp.maximum(lengths - size, 0)[:, None] + jnp.arange(size)
        tail = jnp.take_along_axis(ids, places, axis=1)
        found |= (lengths >= size) & jnp.all(tail == jnp.asarray(sequence, ids.dtype), axis=1)
    return found


@functools.cache
def programs(settings: Settings, mesh: Mesh | None) -> Programs:
    """The engine's functions; another checkpoint of the same network finds them compiled.

    Args:
      settings: what they are for.
      mesh: over which the parameters lie: rows over its batch axes, heads over `tensor`. None: one device.
    """
    places = None if mesh is None else jax.tree.map(lambda x: x.sharding, abstract_state(settings, mesh))
    return Programs(
        jax.jit(partial(_start, settings), out_shardings=places),
        jax.jit(partial(_prefill, settings), donate_argnums=1, out_shardings=places),
        jax.jit(partial(_decode, settings), donate_argnums=1, out_shardings=places),
    )


def abstract_state(settings: Settings, mesh: Mesh) -> State:
    """The state as shapes, each with its sharding."""

    def place(leaf: Any) -> Any:
        # Of the cache [B, K, S, ...] heads are split, too.
        rest = ("kv_heads",) if leaf.ndim > 2 else ()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec("batch", *rest)))

    return jax.tree.map(place, jax.eval_shape(partial(_start, settings)))


def _start(settings: Settings) -> State:
    rows, prompt, answer = settings.rows, settings.prompt, settings.answer
    return State(
        cache=empty_cache(settings.model.config.decoder, rows, prompt, answer),
        tokens=jnp.zeros((rows, prompt), jnp.int32),
        words=jnp.zeros((rows, prompt), bool),
        ids=jnp.zeros((rows, answer), jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        done=jnp.ones(rows, bool),
        last=jnp.zeros(rows, jnp.int32),
        numbers=jnp.zeros(rows, jnp.uint32),
    )


def _prefill(
    settings: Settings,
    params: Any,
    state: State,
    prompts: Prompts,
    rows: Int[Array, " A"],
    numbers: UInt32[Array, " A"],
) -> State:
    found: Any = settings.model.apply({"params": params}, *prompts, method="prefill")
    logits, keys = found
    count = len(rows)
    # Which of the prompts each row takes in.
    taken = jnp.full(settings.rows, -1, jnp.int32).at[rows].set(jnp.arange(count, dtype=jnp.int32), mode="drop")

    def put(new: Array, old: Array) -> Array:
        chosen = (taken >= 0).reshape(-1, *(1,) * (old.ndim - 1))
        return jnp.where(chosen, new[jnp.maximum(taken, 0)], old)

    layers = [old._replace(prompt=jax.tree.map(put, new, old.prompt)) for new, old in zip(keys, state.cache.layers)]
    none = jnp.zeros(count, jnp.int32)
    state = State(
        cache=Cache(tuple(layers), put(prompts.used, state.cache.prompt_used)),
        tokens=put(prompts.tokens, state.tokens),
        # Soft tokens are no words: what stands in their places was never read.
        words=put(prompts.used & (prompts.soft_index == 0), state.words),
        ids=state.ids,
        lengths=put(none, state.lengths),
        done=put(none > 0, state.done),
        last=state.last,
        numbers=put(numbers, state.numbers),
    )
    return _take(settings, state, logits[jnp.maximum(taken, 0)], taken >= 0)


def _take(settings: Settings, state: State, logits: Array, rows: Bool[Array, " B"]) -> State:
    """Choose the next token of some rows."""
    sampling = settings.sampling
    places = jnp.arange(settings.answer)
    if sampling.repetition_penalty != 1.0:
        ids, used = state.ids, places < state.lengths[:, None]
        if sampling.penalise_prompt:
            ids, used = (jnp.concatenate(pair, axis=1) for pair in ((state.tokens, ids), (state.words, used)))
        logits = penalise_repeats(logits, ids, used, sampling.repetition_penalty)
    own = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(settings.seed), state.numbers)
    chosen = choose(jax.vmap(jax.random.fold_in)(own, state.lengths), logits, sampling)
    ids = jnp.where(rows[:, None] & (places == state.lengths[:, None]), chosen[:, None], state.ids)
    lengths = state.lengths + rows
    done = state.done | (rows & ((lengths == settings.answer) | ends(ids, lengths, settings.stop)))
    return state._replace(ids=ids, lengths=lengths, done=done, last=jnp.where(rows, chosen, state.last))


def _decode(settings: Settings, params: Any, state: State, steps: Int[Array, ""], idle: Int[Array, ""]) -> State:
    def unfinished(carry: tuple[Array, State]) -> Array:
        count, state = carry
        return (count < steps) & (jnp.sum(state.done) < idle)

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        count, state = carry
        at = jnp.sum(state.cache.prompt_used, axis=1, dtype=jnp.int32) + state.lengths - 1
        read: Any = settings.model.apply({"params": params}, state.last, at, state.cache, method="step")
        logits, cache = read
        return count + 1, _take(settings, state._replace(cache=cache), logits, ~state.done)

    return jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), state))[1]


class Engine:
    """Answers requests; rows that have ended are filled again."""

    def __init__(
        self,
        model: AffectGPT,
        params: Any,
        *,
        rows: int,
        max_new: int,
        stop: Sequence[Sequence[int]] = (),
        sampling: Sampling = GREEDY,
        seed: int = 0,
        length: Callable[[int], int],
    ) -> None:
        """Get ready; nothing is compiled yet.

        Args:
          model: the network.
          params: its parameters; the mesh that they lie over is the engine's, too.
          rows: of the batch; rounded up to the parts that the mesh splits it into.
          max_new: tokens of an answer at most.
          stop: id sequences that end an answer.
          sampling: how tokens are drawn; greedy by default.
          seed: of the draws. A row's draws depend on it, on its request's number and on nothing else.
          length: what a prompt of so many tokens is padded to; programs are compiled for each.
        """
        self._mesh = mesh_of(params)
        shards = 1 if self._mesh is None else batch_shards(self._mesh.shape)
        rows = -(-rows // shards) * shards
        ordered = tuple(tuple(int(i) for i in sequence) for sequence in stop)
        self._settings = Settings(model, rows, 0, max_new, ordered, sampling, seed)
        # As many as split evenly.
        self._admitted = -(-rows // ADMITTED // shards) * shards
        self._params, self._length = params, length

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """Answer all; yields each request's place and ids as they are ready, prompts of like length together."""
        waiting: dict[int, deque[int]] = {}
        for place, request in sorted(enumerate(requests), key=lambda pair: pair[1].prompt.tokens.shape[1]):
            waiting.setdefault(self._length(request.prompt.tokens.shape[1]), deque()).append(place)
        for length, places in waiting.items():
            yield from self._run(requests, length, places)

    def _run(self, requests: Sequence[Request], length: int, waiting: deque[int]) -> Iterator[tuple[int, list[int]]]:
        settings = self._settings._replace(prompt=length)
        work = programs(settings, self._mesh)
        rows, admitted = settings.rows, self._admitted
        at_work: dict[int, int] = {}
        state = self._call(work.start)
        while waiting or at_work:
            free = [row for row in range(rows) if row not in at_work]
            while waiting and free and (len(free) >= admitted or not at_work):
                chosen = [waiting.popleft() for _ in range(min(admitted, len(free), len(waiting)))]
                state = self._admit(work, state, [requests[place] for place in chosen], free[: len(chosen)], length)
                at_work |= dict(zip(free, chosen, strict=False))
                free = free[len(chosen) :]
            idle = min(len(free) + admitted, rows) if waiting else rows
            state = self._call(work.decode, self._params, state, np.int32(settings.answer), np.int32(idle))
            done, lengths, ids = (whole(x) for x in (state.done, state.lengths, state.ids))
            for row in [row for row in at_work if done[row]]:
                yield at_work.pop(row), ids[row, : lengths[row]].tolist()

    def stream(self, request: Request) -> Iterator[int]:
        """Answer one request, token by token."""
        length = self._length(request.prompt.tokens.shape[1])
        work = programs(self._settings._replace(prompt=length), self._mesh)
        state = self._admit(work, self._call(work.start), [request], [0], length)
        told = 0
        while True:
            done, lengths, ids = (whole(x)[0] for x in (state.done, state.lengths, state.ids))
            yield from ids[told:lengths].tolist()
            told = int(lengths)
            if done:
                return
            one = np.int32(1)
            state = self._call(work.decode, self._params, state, one, np.int32(self._settings.rows))

    def _admit(
        self, work: Programs, state: State, requests: Sequence[Request], rows: Sequence[int], length: int
    ) -> State:
        prompts = stack([request.prompt for request in requests], self._admitted, length)
        nowhere = self._settings.rows
        places = np.array([*rows, *[nowhere] * (self._admitted - len(rows))], np.int32)
        numbers = np.zeros(self._admitted, np.uint32)
        numbers[: len(requests)] = [request.number for request in requests]
        return self._call(work.prefill, self._params, state, prompts, places, numbers)

    def _call(self, function: Callable[..., State], *args: Any) -> State:
        if self._mesh is None:
            return function(*args)
        with jax.set_mesh(self._mesh):
            return function(*args)


def stack(prompts: Sequence[Prompts], rows: int, length: int) -> Prompts:
    """Prompts of one row each, padded to one length and with empty rows."""

    def join(*parts: HostArray) -> HostArray:
        return np.concatenate(parts + (np.zeros_like(parts[0]),) * (rows - len(parts)))

    def pad(prompt: Prompts) -> Prompts:
        room = ((0, 0), (0, length - prompt.tokens.shape[1]))
        tokens, soft_index, used = (np.pad(x, room) for x in prompt[:3])
        return Prompts(tokens, soft_index, used, prompt.features, prompt.present)

    return jax.tree.map(join, *map(pad, prompts))
