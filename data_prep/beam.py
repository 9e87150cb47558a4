"""Work on the machines of a cluster by Apache Beam (extra `[beam]`).

Any runner will do whose workers see the same folders under the same names: Flink or Spark over a shared file system,
Dataflow where one is mounted, or the DirectRunner on one machine.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from affectgpt_jax.errors import UserError

_T = TypeVar("_T")


def pipeline_options(options: Iterable[str]) -> Any:
    """Options of a pipeline, as TFDS takes them (`DownloadConfig.beam_options`).

    Args:
        options: each KEY=VALUE, or KEY for what is switched on, as in Beam's documentation without the dashes.

    Raises:
        UserError: Beam is not installed.
    """
    _import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    return PipelineOptions(flags=[f"--{option}" for option in options])


def on_beam(plan: Callable[[], Iterable[_T]], work: Callable[[_T], object], runner: Any, options: Any = None) -> None:
    """Does the parts of some work on the workers of a pipeline, and waits for all of them.

    Beam may do a part again, also while it is being done elsewhere, so doing it twice must be as good as once.

    Args:
        plan: gives the parts. A worker calls it, so that the pipeline's graph, which runners limit, stays small.
        work: does one part; what it returns is dropped.
        runner: name of a runner, or a runner; None for the one that the options name.
        options: see `pipeline_options`.

    Raises:
        UserError: Beam is not installed, knows no such runner, or what a worker says to a user.
    """
    beam = _import_beam()
    try:
        pipeline = beam.Pipeline(runner=runner, options=options)
    except ValueError as error:
        raise UserError(f"Apache Beam: {error}") from error
    try:
        with pipeline:
            _ = (
                pipeline
                | "begin" >> beam.Create([None])
                | "plan" >> beam.FlatMap(lambda _: plan())
                | "spread" >> beam.Reshuffle()
                | "work" >> beam.Map(work)
            )
    except Exception as error:  # runners raise errors of their own, with the worker's traceback for a text
        said = re.search(
            rf"{re.escape(_kind(UserError))}: (.*?)(?: \[while running |$)",
            f"{_kind(type(error))}: {error}",
            re.MULTILINE,
        )
        if said:
            raise UserError(said[1]) from error
        raise


def _kind(error: type[Exception]) -> str:
    return f"{error.__module__}.{error.__name__}"


def _import_beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise UserError(
            f"Apache Beam is not installed ({error}). It comes with the extra [beam], in an environment of its own: "
            "pip install 'affectgpt-jax[beam]'"
        ) from error
    return apache_beam
