"""From a plan to batches: the same on any number of hosts, after any stop, in threads or worker processes."""

import multiprocessing
import os
import pickle
import signal
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectgpt_jax.data.asker import Asker
from affectgpt_jax.data.batch import Batch
from affectgpt_jax.data.examples import BatchShape
from affectgpt_jax.data.pipeline import RowLoader, RowSource, training_batches
from affectgpt_jax.data.plan import Limits, Part, Plan
from affectgpt_jax.data.prompts import layout_size, soft_layout
from affectgpt_jax.data.shards import Mixture, mix, open_corpus
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.data.tokens import PLACES, TokenTable, corpus_tokens
from affectgpt_jax.errors import UserError
from tests.tiny_run import AUDIO_WIDTH, VISION_WIDTH, make_shards, make_tiny

MODE = "multiface_audio_face_text"
STREAMS = {"face": "face@8", "audio": "audio@8"}
TYPES = ("ovlabel", "description")


class Parts(NamedTuple):
    """Two corpora read as one, and what makes batches of them."""

    corpus: Mixture
    tables: tuple[TokenTable, ...]

    def plan(self, **changes: object) -> Plan:
        values = {"limits": Limits(256, 96, 2), "step_rows": 16, "seed": 3, "weights": (1.0, 1.0), "window": 16}
        parts = tuple(Part(len(one), weight) for one, weight in zip(self.corpus.corpora, self.corpus.weights))
        tokens, targets = (
            np.concatenate([getattr(table, name) for table in self.tables], axis=1) for name in ("lengths", "targets")
        )
        return Plan(tokens, targets, **({"parts": parts} | values | changes))

    def batches(
        self, plan: Plan, start: int, steps: int, process: int = 0, processes: int = 1, workers: int = 0
    ) -> list[Batch]:
        """This process's batches."""
        return list(self.iterate(plan, start, steps, process, processes, workers))

    def iterate(self, plan: Plan, start: int, steps: int, process: int = 0, processes: int = 1, workers: int = 0):
        load = RowLoader(self.tables, np.arange(23 + 11), STREAMS, self.corpus.features, {"face": 0.3, "text": 0.3}, 3)
        shape = BatchShape(
            plan.step_rows // plan.rounds // processes, 256, 96, 2, layout_size(self.tables[0].ask.layout),
            {"face": (8, VISION_WIDTH), "audio": (8, AUDIO_WIDTH)}, np.float16,
        )  # fmt: skip
        where = {"process": process, "processes": processes, "workers": workers, "threads": 1}
        return training_batches(plan, load, shape, start=start, steps=steps, **where)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = make_tiny(tmp_path_factory.mktemp("tiny"))
    make_shards(folder / "more", {"train": 11})
    corpora = [open_corpus(folder / name, "train", tuple(STREAMS.values())) for name in ("shards", "more")]
    ask = Asker(open_tokenizer(folder / "tokenizer"), MODE, soft_layout(MODE), TYPES, "strict", 254)
    return Parts(mix(corpora, (1.0, 0.5)), tuple(corpus_tokens(corpus, ask) for corpus in corpora))


def flat(batch: Batch) -> dict[str, np.ndarray]:
    columns = batch._asdict()
    return {f"{name}/{key}": x for name in ("features", "present") for key, x in columns.pop(name).items()} | columns


def assert_equal(first: Batch, second: Batch) -> None:
    for name, array in flat(first).items():
        np.testing.assert_array_equal(array, flat(second)[name], err_msg=name)


def join(parts: list[Batch]) -> Batch:
    """One global batch of what the processes made."""
    return Batch(
        *(
            {key: np.concatenate([part[key] for part in column], axis=1) for key in column[0]}
            if isinstance(column[0], dict)
            else np.concatenate(column, axis=1)
            for column in zip(*parts, strict=True)
        )
    )


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 2]), st.integers(0, 11), st.sampled_from([1, 2, 3]))
def test_the_sequence_of_global_batches_depends_on_no_host_count_and_no_stop(
    seed: int, rounds: int, stop: int, samples: int
) -> None:
    """Names, question types, packing, weights: as one host makes them, from any step on."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 120, (2, 57))
    made = {
        "tokens": tokens, "targets": tokens // 3, "limits": Limits(256, 96, samples), "step_rows": 16, "seed": seed,
        "weights": (1.0, 1.0), "window": 16, "rounds": rounds, "weighting": "reference", "group": 3,
        "parts": (Part(40), Part(17, 0.7)),
    }  # fmt: skip
    names = [f"clip {i}" for i in range(57)]
    steps = 12

    def sequence(processes: int, start: int) -> list[list[tuple]]:
        rows = 16 // rounds // processes
        sources = [RowSource(Plan(**made), steps, rows, process, processes) for process in range(processes)]
        found = []
        for step in range(start, steps):
            local = [[source[step * source.local + i] for i in range(source.local)] for source in sources]
            found.append(
                [
                    tuple((names[ask.sample], TYPES[ask.label_type], ask.turn, ask.weight) for ask in row.asks)
                    for turn in range(rounds)
                    for part in local
                    for row in part[turn * rows : (turn + 1) * rows]
                ]
            )
        return found

    whole = sequence(1, 0)
    for processes in (1, 2, 4, 8):
        assert sequence(processes, 0)[:stop] + sequence(processes, stop) == whole
    # Each sample exactly once a pass of its corpus.
    asked = Counter((name, turn) for step in whole for row in step for name, _, turn, _ in row)
    assert set(asked.values()) <= {1}
    done, within = Plan(**made).locate(steps)
    complete = done + (within == 0 and steps > 0) - (within == 0)
    for turn in range(complete):
        assert sum(1 for name, at in asked if at == turn and int(name.split()[1]) < 40) == 40


@pytest.mark.parametrize("processes", [2, 8])
def test_global_batches_are_the_same_arrays(parts: Parts, processes: int) -> None:
    plan = parts.plan(rounds=2)
    whole = parts.batches(plan, 0, 5)
    assert whole[0].tokens.shape[:2] == (2, 8)
    split = [parts.batches(parts.plan(rounds=2), 0, 5, process, processes) for process in range(processes)]
    for alone, *together in zip(whole, *split, strict=True):
        assert_equal(join(together), alone)


def test_going_on_from_a_step(parts: Parts) -> None:
    whole, rest = parts.batches(parts.plan(), 0, 6), parts.batches(parts.plan(), 4, 6)
    for first, second in zip(whole[4:], rest, strict=True):
        assert_equal(first, second)


def test_worker_processes_make_the_same_batches_and_one_that_dies_is_told(parts: Parts) -> None:
    plan = parts.plan()
    for first, second in zip(parts.batches(plan, 0, 5), parts.batches(plan, 0, 5, workers=2), strict=True):
        assert_equal(first, second)
    batches = parts.iterate(plan, 0, 100_000, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    # A scheduler's signal does not end it: the run wants its last batches.
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(islice(batches, 3))) == 3
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"worker process was killed .*-9"):
        list(islice(batches, 50_000))


def test_rows_that_do_not_divide_are_refused(parts: Parts) -> None:
    with pytest.raises(UserError, match="a step of 16 rows cannot be split into 1 rounds on 3 processes of 5 rows"):
        parts.batches(parts.plan(), 0, 1, 0, 3)


def test_a_mixture_reads_as_its_corpora(parts: Parts) -> None:
    corpus = parts.corpus
    order = np.random.default_rng(0).permutation(len(corpus))
    names = [text.name for text in corpus.texts(order)]
    expected = [name for one in corpus.corpora for name in one.names]
    assert names == [expected[i] for i in order]
    found, present = corpus.features("face@8", order)
    alone = [one.features("face@8", np.arange(len(one))) for one in corpus.corpora]
    np.testing.assert_array_equal(found, np.concatenate([x for x, _ in alone])[order])
    np.testing.assert_array_equal(present, np.concatenate([p for _, p in alone])[order])
    np.testing.assert_array_equal(corpus.present("face@8")[order], present)
    assert corpus.fingerprint != mix(corpus.corpora, (1.0, 0.25)).fingerprint
    assert mix(corpus.corpora[:1], (1.0,)).fingerprint == corpus.corpora[0].fingerprint


def test_a_corpus_is_tokenised_once(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path))
    corpus, ask = parts.corpus.corpora[0], parts.tables[0].ask
    told: list[int] = []
    table = corpus_tokens(corpus, ask, lambda done, total: told.append(done))
    assert told == list(range(1, len(corpus) + 1))
    again = pickle.loads(pickle.dumps(corpus_tokens(corpus, ask, lambda done, total: pytest.fail("done again"))))
    for sample in range(len(corpus)):
        text = corpus.texts([sample])[0]
        for kind in range(2):
            for hidden in (False, True):
                expected = ask(text, kind, hide_text=hidden)
                for one in (table, again):
                    for ours, theirs in zip(one.example(sample, kind, hide_text=hidden), expected, strict=True):
                        np.testing.assert_array_equal(ours, theirs)
            assert table.lengths[kind, sample] == len(ask(text, kind).tokens)
            assert table.targets[kind, sample] == len(ask(text, kind).target_ids)
    # Another limit: another table, with the samples that are left out.
    short = Asker(ask.tokenizer, MODE, ask.layout, TYPES, "strict", 40)
    assert len(corpus_tokens(corpus, short).rejected) == len(corpus)
    assert len(corpus_tokens(corpus, short).samples) == 0
    assert len(list((tmp_path / "tokens").iterdir())) == 2
    # Half a table is no table; a folder that cannot be written is no error.
    (table.folder / PLACES).unlink()
    np.testing.assert_array_equal(corpus_tokens(corpus, ask).lengths, table.lengths)
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", os.devnull)
    np.testing.assert_array_equal(corpus_tokens(corpus, ask).lengths, table.lengths)
