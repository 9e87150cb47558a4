"""Batches ahead of the step: order, bounds, errors, ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from affectgpt_jax.prefetch import prefetch


class Source:
    """Counts 0 .. stop - 1 and knows how far it was asked, and by whom."""

    def __init__(self, stop: int, fail_at: int | None = None) -> None:
        self.stop, self.fail_at, self.made, self.closed = stop, fail_at, 0, False
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.made == self.fail_at:
            raise ValueError(f"broken at {self.made}")
        if self.made == self.stop:
            raise StopIteration
        self.made += 1
        return self.made - 1

    def close(self) -> None:
        self.closed = True


def test_all_in_order_and_closed() -> None:
    source = Source(20)
    with prefetch(source, lambda x: x * 10) as batches:
        assert list(batches) == [x * 10 for x in range(20)]
    assert source.closed
    assert threading.get_ident() not in source.threads


def test_no_further_ahead_than_asked() -> None:
    source = Source(100)
    with prefetch(source, lambda x: x, depth=2) as batches:
        assert next(batches) == 0
        deadline = time.monotonic() + 5
        while source.made < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert source.made == 4  # one taken, two waiting, one in the thread's hand
    assert source.closed


@pytest.mark.parametrize("where", ["source", "place"])
def test_an_error_comes_where_its_batch_would_have(where: str) -> None:
    def place(x: int) -> int:
        if where == "place" and x == 3:
            raise ValueError("broken at 3")
        return x

    source = Source(9, fail_at=3 if where == "source" else None)
    taken = []
    with prefetch(source, place) as batches, pytest.raises(ValueError, match="broken at 3"):
        taken.extend(batches)
    assert source.closed


def test_whoever_stops_early_is_not_kept_waiting() -> None:
    started = time.monotonic()
    with prefetch(Source(10**9), lambda x: x) as batches:
        next(batches)
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
