"""Try the devices, the mesh and the run folder of a run on a tiny model, for a minute or two.

    affectgpt smoke demo

CONFIG, KEY=VALUE and options are those of `affectgpt train`, which is to follow; of the config only `mesh` and
`train.output` matter here. Process 0 writes synthetic features into smoke/ of the run folder, all processes train a few
steps on them over all devices, save, open a checkpoint, and must come to the same loss again. Nothing is downloaded.

The last line is `smoke: ok, ...`, or says what is wrong; then the exit status is that of `affectgpt train`.
"""

import argparse
import math
import os
import shutil
from pathlib import Path

from affectgpt_jax.cli.train import add_arguments

__all__ = ["add_arguments", "run"]

SAMPLES = 600


def run(args: argparse.Namespace) -> int:
    from affectgpt_jax.distributed import Given, Limits, find_place, supervise, this_machine

    given = Given(args.coordinator, args.processes, args.process, args.local_devices)
    place = find_place(this_machine(os.environ), given)
    if place is None:
        return smoke_here(args)
    # A process that goes on to the training must not meet process 0 of this job, which may still be leaving.
    host, _, port = place.coordinator.rpartition(":")
    place = place._replace(coordinator=f"{host}:{int(port) - 1}")
    limits = Limits(args.start_timeout, args.peer_timeout)
    return supervise(place, limits, lambda: smoke_here(args), "affectgpt smoke")


def smoke_here(args: argparse.Namespace) -> int:
    """This process's part of the smoke job, or all of it."""
    from affectgpt_jax.config import load_config
    from affectgpt_jax.distributed import barrier, log_to, start_jax
    from affectgpt_jax.errors import UserError

    config = load_config(args.config, args.overrides)
    folder = Path(config.train.output or f"runs/{config.name}") / "smoke"
    log_to(folder / "logs")
    sizes = config.mesh.model_dump().values()
    start_jax(args.expect_devices or (None if -1 in sizes else math.prod(sizes)))

    import jax

    from affectgpt_jax.training.smoke import SECONDS, smoke, smoke_config
    from data_prep.synth import SplitCounts
    from data_prep.synth.features import write_features

    data, run_folder = folder / "data", folder / "run"
    if jax.process_index() == 0:
        shutil.rmtree(run_folder, ignore_errors=True)
        write_features(data, SplitCounts(SAMPLES, 0, 0))
    barrier("data of the smoke job", SECONDS)
    if not data.is_dir():
        raise UserError(
            f"process {jax.process_index()} does not see {data.absolute()}, which process 0 has just written: the run "
            "folder is on no storage that all hosts share; set train.output to one that is"
        )
    done = smoke(smoke_config(config.mesh, run_folder, data), run_folder)
    if done is None:
        return 130
    if jax.process_index() == 0:
        print(done.summary())
    return 0
