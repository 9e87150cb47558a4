"""What to change so that a job fits."""

import pytest

from affectgpt_jax.config import load_config
from affectgpt_jax.planning import search
from affectgpt_jax.planning.estimate import estimate
from affectgpt_jax.planning.job import Job, make_job
from affectgpt_jax.planning.program import Account, Compiled
from affectgpt_jax.planning.search import find_change, memory_limit
from affectgpt_jax.planning.topology import parse_topology


def job(topology: str, *overrides: str, kind: str = "train") -> Job:
    return make_job(kind, load_config("affectgpt_qwen2.5_7b_face", list(overrides)), parse_topology(topology), {})  # type: ignore[arg-type]


def nothing(*_: object) -> None:
    """Nobody looks."""


@pytest.mark.parametrize(
    ("topology", "overrides", "words"),
    [
        # A card of 24 GB.
        ("rtx4090:1", (), "model.decoder.base=int8"),
        # One thing is too many rows.
        ("h100:1", ("train.rows=16",), "train.rows=8 train.accumulate=2"),
        # Where the mesh is not legal, what is nearest.
        ("h100:8", ("mesh.tensor=8", "train.rows=8"), "mesh.tensor=1"),
        ("h100:8", (), "train.rows=8"),
    ],
)
def test_one_thing_is_changed(topology: str, overrides: tuple[str, ...], words: str) -> None:
    found = find_change(job(topology, *overrides), None, nothing)
    assert found is not None
    assert found.words == words
    limit = memory_limit(found.job)
    assert limit is not None
    assert estimate(found.job).memory.peak == found.estimate.memory.peak <= limit


def test_two_things_where_one_is_not_enough() -> None:
    """A row each for eight cards, and the base does not leave enough for it."""
    found = find_change(job("rtx4090:8"), None, nothing)
    assert found is not None
    first, second = found.words.rsplit(" ", 1)
    assert second == "train.rows=8"
    assert first in ("model.decoder.remat=full", "model.decoder.base=int8", "mesh.fsdp=2")
    # Of those the fastest: nothing is computed or exchanged more often.
    assert found.estimate.seconds == min(
        estimate(job("rtx4090:8", *change.split(), "train.rows=8")).seconds
        for change in ("model.decoder.remat=full", "model.decoder.base=int8", "mesh.data=4 mesh.fsdp=2")
    )


def test_answers_get_a_smaller_batch() -> None:
    found = find_change(job("h100:1", "evaluate.batch=4096", kind="answer"), None, nothing)
    assert found is not None
    assert found.words.startswith("evaluate.batch=")


def test_nothing_helps() -> None:
    whole = job("rtx4090:1", 'train.trainable=[".*"]')
    assert find_change(whole, None, nothing) is None


def test_the_compiler_has_the_last_word() -> None:
    """On a TPU each change is compiled, the fastest of one thing first, until one fits."""
    tried: list[str] = []

    def compile_job(changed: Job) -> Compiled:
        fits = len(tried) == 3
        return Compiled((Account("step", fits, 1, 1, 2, None, 0.0, 0.0, "" if fits else "exceeds"),), 1, 0.0)

    found = find_change(job("v5e:2x2", "train.rows=32"), compile_job, tried.append)
    assert found is not None
    assert found.compiled is not None
    assert [line for line in tried if "exceeds" in line] == ["  exceeds"] * (len(tried) // 2)
    assert tried[-1] == f"trying {found.words}"
    assert len(set(tried)) == len(tried) // 2 + 2


def test_it_gives_up_after_some_tries() -> None:
    refused = Compiled((Account("step", False, 0, 0, 9, None, 0.0, 0.0, "exceeds"),), 1, 0.0)
    tried: list[str] = []
    assert find_change(job("v5e:2x2", "train.rows=32"), lambda changed: refused, tried.append) is None
    assert sum("trying" in line for line in tried) == search.TRIES
