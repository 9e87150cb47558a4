"""The options that say where a model lies, and how it is held."""

import argparse
from typing import TYPE_CHECKING, get_args

from affectgpt_jax.config.networks import Base

if TYPE_CHECKING:
    from affectgpt_jax.inference.runs import Placement


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Declare --mesh, --weights and --cache."""
    group = parser.add_argument_group("where the model lies, and how it is held")
    group.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="devices along slice, data, fsdp and tensor, such as data=4,tensor=2 (default: all along data, each with "
        "the whole model)",
    )
    group.add_argument(
        "--weights",
        choices=get_args(Base),
        help="kernels of the language model's layers: in its own type, or as int8 with scales, rounded while they are "
        "read (default: as the run says)",
    )
    group.add_argument("--cache", choices=get_args(Base), help="keys and values of answers, likewise")


def placement(args: argparse.Namespace) -> "Placement":
    """What the options say.

    Raises:
      UserError: a mesh of other axes, or of sizes that do not fit the devices.
    """
    from affectgpt_jax.inference.runs import make_placement

    return make_placement(args.mesh, args.weights, args.cache)
