"""Progress bars on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
