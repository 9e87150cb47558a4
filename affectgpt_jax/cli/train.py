"""Train a model, or go on where the run folder's newest checkpoint ends.

    affectgpt train demo train.steps=200 model.prefusion=qformer

CONFIG is a YAML file or the name of a shipped config; KEY=VALUE changes single settings. The resolved config is
saved in the run folder as config.yaml, which starts the same run again. Ctrl-C or SIGTERM saves and stops.

    affectgpt train runs/demo/config.yaml train.init_from=runs/demo train.output=runs/mine \\
      prepare.corpus=my_clips.csv data.shards=my_shards

goes on from what a run, an exported folder or the authors' .pth has learned, on clips of your own. Shards that are not
there yet are prepared first, if prepare.corpus says of what.

Tasks of srun, ranks of mpirun, workers of a TPU slice and pods of an indexed Kubernetes job that get this command train
one model together; elsewhere each process is told its place:

    affectgpt train demo --coordinator node-0:61440 --processes 2 --process 0      and --process 1 on the other machine

Every process keeps what it prints in logs/ of the run folder. Exit status 3: another process is missing or ended.
"""

import argparse
import math
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the file's")
    several = parser.add_argument_group("training as one of several processes")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which of them this is, 0 to N-1")
    several.add_argument(
        "--local-devices", type=_numbers, metavar="I,J", help="this process's GPUs among those it can see; default: "
        "its share of them"
    )  # fmt: skip
    several.add_argument(
        "--expect-devices",
        type=int,
        metavar="N",
        help="stop at once unless all processes together have so many devices; default: the product of mesh sizes",
    )
    several.add_argument(
        "--start-timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long to wait for all processes and their devices (default: %(default)g)",
    )
    several.add_argument(
        "--peer-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a process that has been silent for so long ends the job (default: %(default)g)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run(args: argparse.Namespace) -> int:
    from affectgpt_jax.distributed import Given, Limits, find_place, supervise, this_machine

    given = Given(args.coordinator, args.processes, args.process, args.local_devices)
    place = find_place(this_machine(os.environ), given)
    if place is None:
        return train_here(args)
    return supervise(place, Limits(args.start_timeout, args.peer_timeout), lambda: train_here(args))


def train_here(args: argparse.Namespace) -> int:
    """This process's part of the training, or all of it."""
    from affectgpt_jax.cli.prepare import prepare_corpus
    from affectgpt_jax.config import load_config
    from affectgpt_jax.data.shard_schema import TEXT, stream_directory
    from affectgpt_jax.data.storage import is_remote
    from affectgpt_jax.distributed import log_to, start_jax
    from affectgpt_jax.errors import UserError

    config = load_config(args.config, args.overrides)
    folder = Path(config.train.output or f"runs/{config.name}")
    log_to(folder / "logs")
    sizes = config.mesh.model_dump().values()
    start_jax(args.expect_devices or (None if -1 in sizes else math.prod(sizes)))

    import jax

    from affectgpt_jax.training.loop import train

    corpus, shards = config.prepare.corpus, config.data.shards
    wanted = config.data.source == "features" and corpus and shards and not is_remote(shards)
    if wanted and not stream_directory(Path(shards), TEXT).is_dir():
        if jax.process_count() > 1:
            raise UserError(f"data.shards={shards} is not there; `affectgpt prepare {args.config}` first")
        print(prepare_corpus(config, corpus, shards).summary())
    media = None
    if config.data.source == "media":
        from data_prep.in_loop import media_in_loop

        media = media_in_loop(config)
    result = train(config, folder, media=media)
    if jax.process_index() == 0:
        print(f"{folder}: step {result.steps}, loss {result.loss:.4f}")
    return 0 if result.finished else 130
