"""Progress bars on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

Report = Callable[[int, int], None]
"""Called with what is done and how much there is in all."""


@contextmanager
def stage_bar(stage: str, total: int) -> Iterator[Callable[[str], Report]]:
    """The bar of one stage, which counts its parts and shows how far the one at work is; nothing if no one looks.

    Args:
      stage: what is done.
      total: number of parts; 0 if it is not known beforehand.

    Yields:
      Begins a part under a title, and returns what its progress is told to.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(stage)
        begun = 0

        def begin(title: str) -> Report:
            nonlocal begun
            begun += 1
            progress.reset(task, description=f"{stage} {begun}/{total}: {title}" if total else f"{stage}: {title}")
            return lambda done, clips: progress.update(task, completed=done, total=clips)

        yield begin


EVERY = 30.0
"""Seconds between two lines where nobody watches a bar."""


@contextmanager
def clip_bar(total: int, done: int, failed: int) -> Iterator[Callable[[bool], None]]:
    """Says how many clips are done, how many failed, how fast it goes and how long it will take: a bar, or lines in a
    log.

    Args:
      total: clips.
      done: how many are done already.
      failed: how many of them failed.

    Yields:
      Is told of each clip whether it failed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    before, started = done, time.monotonic()
    said = started
    with Progress(
        BarColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else what goes into a pipe would end up here
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(f"0 of {total} clips", total=total, completed=done)

        def told(wrong: bool) -> None:
            nonlocal done, failed, said
            done, failed = done + 1, failed + wrong
            now = time.monotonic()
            rate = (done - before) / max(now - started, 1e-9)
            left = round((total - done) / rate)
            line = f"{done} of {total} clips, {failed} failed, {rate:.3g} a second, {timedelta(seconds=left)} left"
            progress.update(task, completed=done, description=line)
            if not console.is_terminal and now - said >= EVERY:
                said = now
                print(line, file=sys.stderr, flush=True)

        yield told
