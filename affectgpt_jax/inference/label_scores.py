"""Scores of labels without a judge: how likely the model is to begin its list with each word of a vocabulary.

The model was trained to answer the question `ovlabel` with "The character's emotional state is a, b.". The prompt and
the opening of that answer are read once a clip, and all words are read as continuations of it side by side. The score
of a word is

    log p(word | prompt, opening) + log p("," or ".###" | prompt, opening, word),

the log-probability that the first label is this word and no longer one that begins alike; of what ends a label its
first token counts. The sum of exp(score) over a vocabulary is the share of the model's first labels that are in it.

These are probabilities of the *first* label. How likely a word is to stand anywhere in the list cannot be told from
them: that depends on how the model goes on after every first label.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from affectgpt_jax.data.examples import Example, Rejected
from affectgpt_jax.data.prompts import OVLABEL_STEM, STOP
from affectgpt_jax.data.responses import response_labels
from affectgpt_jax.data.tokenizer import Tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import Answer, Answerer, Query, as_prompt, bucket, make_prompt
from affectgpt_jax.inference.engine import Prompts, stack
from affectgpt_jax.inference.evaluate import PLAIN, TEXT, Condition
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.attention import KeysValues
from affectgpt_jax.sharding import batch_shards, mesh_of, whole

TOKENS = 128
"""Tokens of words that a row reads at a time: they share one reading of the weights, and their logits exist at once."""

DIGITS = 4
"""Of log-probabilities, wherever they are kept: all ways to them give the same labels."""

ENDS = (", ", "." + STOP)
"""What follows a label in an answer, more labels or the end."""


class Scores(NamedTuple):
    """What a sample's labels score.

    Attributes:
      name: the sample's.
      logs: float64 [V], log-probability of each word as the first label.
      note: what had to be changed to make the prompt fit; empty in most cases.
    """

    name: str
    logs: np.ndarray
    note: str = ""


class Tokenized(NamedTuple):
    """A vocabulary as tokens.

    Attributes:
      opening: ids of the answer up to the labels.
      words: ids of each word.
      ends: ids that end a word.
    """

    opening: tuple[int, ...]
    words: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]


def tokenized(words: Sequence[str], tokenizer: Tokenizer) -> Tokenized:
    """The words as an answer spells them.

    Args:
      words: the vocabulary.
      tokenizer: the run's.

    Raises:
      UserError: a word is no single label of an answer, or the tokenizer joins it with what stands around it.
    """
    encode = partial(tokenizer.encode, literal=True)
    opening = tuple(encode(OVLABEL_STEM.rstrip()))
    found, ends = [], set()
    for word in words:
        ids = tuple(encode(OVLABEL_STEM + word))
        followed = [tuple(encode(OVLABEL_STEM + word + end)) for end in ENDS]
        # It must be read back as this one label, too.
        if response_labels(f"{OVLABEL_STEM}{word}.") != [word.lower()] or (
            ids[: len(opening)] != opening or any(longer[: len(ids)] != ids for longer in followed)
        ):
            raise UserError(
                f"label {word!r} runs together with what stands around it in an answer; expected a word or a few, "
                "without commas, full stops, quotes or `and`"
            )
        if len(ids) - len(opening) > TOKENS:
            raise UserError(f"label {word!r} has {len(ids) - len(opening)} tokens; expected {TOKENS} at most")
        found.append(ids[len(opening) :])
        ends |= {longer[len(ids)] for longer in followed}
    return Tokenized(opening, tuple(found), tuple(sorted(ends)))


class Chunk(NamedTuple):
    """Words that are read at a time, one after the other.

    Attributes:
      ids: int32 [T].
      depths: int32 [T], each token's number in its word.
      branches: int32 [T], number of its word in the vocabulary; V on padding.
      following: int32 [T], the token that comes next in the word.
      last: bool [T], True where the word ends.
    """

    ids: np.ndarray
    depths: np.ndarray
    branches: np.ndarray
    following: np.ndarray
    last: np.ndarray


def chunks(words: Sequence[Sequence[int]], size: int = TOKENS) -> list[Chunk]:
    """Fit words into chunks of one size, no word in two of them.

    Args:
      words: ids of each.
      size: T at most; less if all words together are less.
    """
    size = min(size, bucket(sum(map(len, words))))
    places: list[list[int]] = [[]]
    room = size
    for number, word in enumerate(words):
        if len(word) > room:
            places.append([])
            room = size
        places[-1].append(number)
        room -= len(word)

    def fill(numbers: list[int]) -> Chunk:
        rows = [
            (token, depth, number, following, depth + 1 == len(words[number]))
            for number in numbers
            for depth, (token, following) in enumerate(zip(words[number], [*words[number][1:], 0], strict=True))
        ]
        rows += [(0, 0, len(words), 0, False)] * (size - len(rows))
        ids, depths, branches, next_ids = np.array([row[:4] for row in rows], np.int32).T
        return Chunk(ids, depths, branches, next_ids, np.array([row[4] for row in rows]))

    return [fill(numbers) for numbers in places]


class Programs(NamedTuple):
    """The compiled functions.

    Attributes:
      read: (params, prompts [B], firsts [V]) -> log-probabilities [B, V] of words' first tokens, and keys and values.
      words: (params, keys and values, used [B, P], chunk, ends) -> log-probabilities [B, T] of what follows each token
        of a chunk: the next one of its word, or what ends it.
    """

    read: jax.stages.Wrapped
    words: jax.stages.Wrapped


@functools.cache
def programs(model: AffectGPT) -> Programs:
    """The functions of a network; another checkpoint of it finds them compiled."""
    return Programs(jax.jit(partial(_read, model)), jax.jit(partial(_words, model)))


def _read(
    model: AffectGPT, params: Any, prompts: Prompts, firsts: Int[Array, " V"]
) -> tuple[Float[Array, "B V"], tuple[KeysValues, ...]]:
    found: Any = model.apply({"params": params}, *prompts, method="prefill")
    logits, keys = found
    return jax.nn.log_softmax(logits.astype(jnp.float32))[:, firsts], keys


def _words(
    model: AffectGPT,
    params: Any,
    keys: tuple[KeysValues, ...],
    used: Bool[Array, "B P"],
    chunk: Chunk,
    ends: Int[Array, " E"],
) -> Float[Array, "B T"]:
    found: Any = model.apply({"params": params}, *chunk[:3], keys, used, method="branch")
    logits = found.astype(jnp.float32)
    following = jnp.take_along_axis(logits, jnp.asarray(chunk.following)[None, :, None], axis=-1)[..., 0]
    ended = jax.nn.logsumexp(logits[..., ends], axis=-1)
    return jnp.where(chunk.last, ended, following) - jax.nn.logsumexp(logits, axis=-1)


class LabelScorer:
    """A run with a vocabulary. Scores depend on the sample and the word, not on other samples and words."""

    def __init__(self, run: Run, words: Sequence[str], *, batch: int, max_new: int) -> None:
        """Prepare the scoring.

        Args:
          run: an opened run.
          words: the vocabulary.
          batch: samples at a time.
          max_new: prompts are those of free answers of at most so many tokens.

        Raises:
          UserError: a word that cannot be scored.
        """
        self._mesh = mesh_of(run.params)
        shards = 1 if self._mesh is None else batch_shards(self._mesh.shape)
        self._rows = -(-batch // shards) * shards
        self._run, self._max_new = run, max_new
        self._tokens = tokenized(words, run.tokenizer)
        self._chunks = chunks(self._tokens.words)
        self._programs = programs(run.model)

    def __call__(
        self, queries: Sequence[Query], report: Callable[[int], None] | None = None
    ) -> list[Scores | Rejected]:
        """Score the vocabulary for all queries, in order.

        Args:
          queries: about the samples; asked with the question `ovlabel`.
          report: called with the number done so far.

        Returns:
          For each query the scores, or why it cannot be asked.
        """
        outcomes: list[Any] = [make_prompt(self._run, query, self._max_new) for query in queries]
        lengths = {i: self._length(made) for i, made in enumerate(outcomes) if isinstance(made, Example)}
        done = len(queries) - len(lengths)
        for length in sorted(set(lengths.values())):
            alike = [i for i in lengths if lengths[i] == length]
            for start in range(0, len(alike), self._rows):
                chosen = alike[start : start + self._rows]
                prompts = [self._prompt(queries[i], outcomes[i]) for i in chosen]
                logs = self._score(stack(prompts, self._rows, length))
                for i, row in zip(chosen, logs, strict=False):
                    outcomes[i] = Scores(queries[i].name, row, outcomes[i].note)
                done += len(chosen)
                if report is not None:
                    report(done)
        return outcomes

    def _length(self, example: Example) -> int:
        return bucket(len(example.tokens) + len(self._tokens.opening))

    def _prompt(self, query: Query, example: Example) -> Prompts:
        opening = np.array(self._tokens.opening, np.int32)
        tokens = np.concatenate([example.tokens, opening])
        soft_index = np.concatenate([example.soft_index, np.zeros_like(opening)])
        return as_prompt(self._run.config, query, example._replace(tokens=tokens, soft_index=soft_index))

    def _score(self, prompts: Prompts) -> np.ndarray:
        """Float64 [B, V]."""
        words, ends = self._tokens.words, np.array(self._tokens.ends, np.int32)
        firsts = np.array([ids[0] for ids in words], np.int32)
        first, keys = self._call(self._programs.read, prompts, firsts)
        parts = [self._call(self._programs.words, keys, prompts.used, chunk, ends) for chunk in self._chunks]
        sums = whole(first).astype(np.float64)
        for chunk, part in zip(self._chunks, parts, strict=True):
            inside = int(np.sum(chunk.branches < len(words)))
            starts = np.flatnonzero(chunk.depths[:inside] == 0)
            sums[:, chunk.branches[starts]] += np.add.reduceat(
                whole(part)[:, :inside].astype(np.float64), starts, axis=1
            )
        return sums

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._mesh is None:
            return function(self._run.params, *args)
        with jax.set_mesh(self._mesh):
            return function(self._run.params, *args)


# ---- evidence


class Found(NamedTuple):
    """What a sample gives under a condition.

    Attributes:
      scores: of its labels.
      answer: in free words; None where none was asked for.
    """

    scores: Scores | Rejected
    answer: Answer | Rejected | None


def without(query: Query, modality: str) -> Query:
    """The query about a sample that lacks a stream of the model, or ("text") what is said."""
    if modality == TEXT:
        return query._replace(subtitle="")
    return query._replace(features={name: x for name, x in query.features.items() if name != modality})


def evidence(
    queries: Sequence[Query],
    scorer: LabelScorer,
    answerer: Answerer | None = None,
    asked: Sequence[Condition] = (PLAIN,),
    report: Callable[[int], None] | None = None,
) -> list[Mapping[str, Found]]:
    """Label scores and answers with everything in its place, and without each modality.

    A model that has not learned what absence looks like is asked in the mode that speaks only of what is left.

    Args:
      queries: the questions, with all that their samples have.
      scorer: scores the labels.
      answerer: answers in free words; None leaves the answers out.
      asked: the conditions (`evaluate.conditions`); only plain ones and such that take a modality away.
      report: called with the number of queries done, under all conditions together.

    Returns:
      For each query, by the condition's name.
    """
    found: list[dict[str, Found]] = [{} for _ in queries]
    for number, condition in enumerate(asked):
        if condition.shuffled:
            raise ValueError(f"{condition.name} needs other clips")
        changed = [without(query, condition.modality) if condition.modality else query for query in queries]
        scores = scorer(changed)
        answers = [None] * len(queries) if answerer is None else answerer(changed)
        for own, score, answer in zip(found, scores, answers, strict=True):
            own[condition.name] = Found(score, answer)
        if report is not None:
            report((number + 1) * len(queries))
    return list(found)
