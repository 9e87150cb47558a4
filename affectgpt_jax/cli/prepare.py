"""Decode and encode a corpus of clips into feature shards, once and for all runs.

Reads a corpus (prepare.corpus: a manifest of clips, a folder, or KIND:PATH) and writes text and features
(prepare.streams) into data.shards, a directory that TFDS opens too. Interrupted, it goes on where it ended; what is
there already is not done again, and a stream that joins leaves the others as they are. Clips with broken media are left
out and listed in a report.

Several processes share the work, shard by shard (prepare.shard_clips), each with a number of its own, on one machine
or on many that see the same folder. They need not start together, and the last to finish publishes the corpus. What a
process left undone is done by the next call, whatever its number of processes. Tasks of srun or mpirun number
themselves.

  affectgpt prepare demo
  affectgpt prepare demo prepare.missing=drop prepare.streams=[face@8,audio@8,frame@8] --strict
  affectgpt prepare demo --limit 100                    a trial; written to DATA.SHARDS-first100
  affectgpt prepare demo --processes 4 --process 0      and so on to --process 3
  srun --ntasks 4 affectgpt prepare demo
"""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from affectgpt_jax.config import RunConfig, load_config
from affectgpt_jax.data.storage import is_remote
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from data_prep.prepare import PrepareSettings
    from data_prep.report import PrepareReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace those of the file")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a clip or a table is at fault")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace streams that were prepared from other files or with another encoder",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N clips only, for a trial, into the folder data.shards-firstN"
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="processes that share the work; default: those of srun or mpirun, or 1",
    )
    parser.add_argument("--process", type=int, metavar="I", help="which of them this is, 0 to N-1")


def run(args: argparse.Namespace) -> int:
    """Prepare the corpus and print what became of its clips."""
    config = load_config(args.config, args.overrides)
    for key, value in {"prepare.corpus": config.prepare.corpus, "data.shards": config.data.shards}.items():
        if not value:
            raise UserError(f"{args.config} does not say {key}; add {key}=FOLDER to the command")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: expected at least 1")
    processes, process = share(args.processes, args.process, os.environ)
    report = prepare_corpus(
        config,
        config.prepare.corpus,
        config.data.shards if args.limit is None else trial_folder(config.data.shards, args.limit),
        overwrite=args.overwrite,
        limit=args.limit,
        processes=processes,
        process=process,
    )
    Console().print(report.summary(), markup=False, highlight=False, soft_wrap=True)
    return 1 if args.strict and (report.broken or report.tables) else 0


def trial_folder(shards: str, limit: int) -> str:
    """Where the first clips of a corpus go: beside the whole, which a trial must never be taken for."""
    folder = Path(shards)
    return str(folder.with_name(f"{folder.name}-first{limit}"))


def share(processes: int | None, process: int | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """How many processes share the work, and which this one is.

    Args:
      processes: as the user says it; None for what the environment says.
      process: likewise.
      environ: Slurm's variables count inside a step only: a batch script has them too, as if it were the first of the
        tasks that it has yet to start.

    Raises:
      UserError: one is given without the other, or not numbers of that kind.
    """
    if (processes is None) != (process is None):
        given, lacking = ("--processes", "--process") if process is None else ("--process", "--processes")
        if given == "--processes" and processes == 1:
            return 1, 0
        raise UserError(f"{given} is given without {lacking}; say both, for example --processes 4 --process 0")
    if processes is not None and process is not None:
        if not 0 <= process < processes:
            raise UserError(f"--processes {processes} --process {process}: expected a number from 0 to {processes - 1}")
        return processes, process
    for size, rank, *step in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"),
    ):
        if any(name not in environ for name in (size, rank, *step)):
            continue
        try:
            found = int(environ[size]), int(environ[rank])
        except ValueError:
            found = 0, 0
        if not 0 <= found[1] < found[0]:
            raise UserError(
                f"{size}={environ[size]} and {rank}={environ[rank]} in the environment are no number of processes and "
                "the number of one; say --processes and --process"
            )
        return found
    return 1, 0


def prepare_corpus(
    config: RunConfig,
    corpus: str,
    shards: str,
    *,
    overwrite: bool = False,
    limit: int | None = None,
    processes: int = 1,
    process: int = 0,
) -> "PrepareReport":
    """Prepare a corpus with a config's encoders and settings.

    Args:
      config: names the encoders and says how to prepare.
      corpus: manifest, folder, or KIND:PATH, see `data_prep.corpora`.
      shards: where to.
      overwrite: replace streams that were prepared from other files or with another encoder.
      limit: take so many clips from the beginning; all by default.
      processes: how many processes share the work.
      process: which of them this is.
    """
    from affectgpt_jax.inference.encoders import Encoders
    from data_prep.corpora import read_corpus
    from data_prep.prepare import prepare

    if is_remote(shards):
        raise UserError(f"data.shards={shards}: prepare into a folder, and upload it as it is")
    listing = read_corpus(corpus)
    records = listing.records[:limit]
    taken = {record.name for record in records}
    problems = (
        listing.problems
        if limit is None
        else [problem for problem in listing.problems if not problem.name or problem.name in taken]
    )
    encoders = Encoders.of(config)
    settings = prepare_settings(config, overwrite=overwrite, processes=processes, process=process)
    return prepare(records, encoders, settings, shards, problems)


def prepare_settings(config: RunConfig, **changes: Any) -> "PrepareSettings":
    """How a config wants clips prepared, but for some changes."""
    from data_prep.prepare import PrepareSettings

    kept = ("streams", "missing", "batch_clips", "shard_clips", "decode_threads", "faces", "detector")
    return PrepareSettings(**{key: getattr(config.prepare, key) for key in kept} | changes)
