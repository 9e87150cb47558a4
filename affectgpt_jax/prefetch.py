"""Batches ahead of the step: a thread makes them and puts them on the devices while the step before is running."""

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


_PATIENCE = 5e-4
"""Seconds for which a thread keeps the interpreter from the one that takes a step; Python's own 5 ms would add up to
more than 1 % of short steps."""


class _End:
    """The last item: the batches are over, or making one failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def prefetch(batches: Iterator[T], place: Callable[[T], U], depth: int = 2) -> Iterator[Iterator[U]]:
    """Run `place` over batches, up to `depth` of them ahead of whoever takes them.

    Args:
      batches: host batches, in order; only the thread touches them, and it closes them at the end if they can be.
      place: makes a batch ready for the step, for example by putting it on the devices.
      depth: placed batches that wait at most.

    Yields:
      The placed batches in order. An error of `batches` or `place` is raised where its batch would have come.
    """
    ready: queue.Queue[U | _End] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: U | _End) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        error: BaseException | None = None
        try:
            for batch in batches:
                put(place(batch))
                if stopped.is_set():
                    break
        except BaseException as caught:  # raised again in the thread that takes the batches
            error = caught
        finally:
            if close := getattr(batches, "close", None):
                close()
        put(_End(error))

    def take() -> Iterator[U]:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    patience = sys.getswitchinterval()
    sys.setswitchinterval(_PATIENCE)
    thread.start()
    try:
        yield take()
    finally:
        stopped.set()
        thread.join()
        sys.setswitchinterval(patience)
