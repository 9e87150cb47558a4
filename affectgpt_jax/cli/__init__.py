"""`affectgpt <command>`: parse arguments, call the library, print.

Each command is a module beside this one with a one-line docstring (its help), `add_arguments(parser)` and
`run(args) -> int` (the exit status). A command's module is imported only when it is called, so `affectgpt score`
never loads jax.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from affectgpt_jax.accelerators import any_accelerator
from affectgpt_jax.cache import cache_folder
from affectgpt_jax.errors import UserError
from affectgpt_jax.version import __version__

COMMANDS = {
    "fetch": "list models and data that others publish, and download what is open",
    "synth": "write a synthetic corpus of talking faces in the MER2025 layout",
    "towers": "train the demo's small vision and audio towers and its tokenizer",
    "data": "check a corpus, or count what its shards cost to train on",
    "prepare": "decode and encode a corpus into feature shards",
    "tfds": "write joined streams or the clips themselves as TFDS data sets",
    "scaling": "plan, run, fit and report scaling-law experiments",
    "plan": "see whether a job fits accelerators that are not here, how fast, how many chip-hours",
    "doctor": "check machine, data, weights and sizes before a run",
    "smoke": "try the devices and the storage of a run on a tiny model",
    "train": "train a model",
    "explain": "show what the model sees of one sample",
    "evaluate": "answer a corpus split and score the answers",
    "labels": "score a vocabulary of emotion words: calibrated probabilities, evidence, abstaining",
    "predict": "answer questions about your own clips",
    "timeline": "follow emotions through a long recording: curves beside the video",
    "export": "write a run's weights for PEFT, transformers, vLLM or the authors' code",
    "convert": "bring weights and settings from elsewhere",
    "verify": "check an exported folder against its report",
    "verify-release": "check the authors' weights against their published answers",
    "report": "write a run's HTML report",
    "benchmark": "answer the data sets of MER-UniBench with a run and score it",
    "submission": "answer clips without labels and write a challenge's CSV",
    "extract": "read emotion words out of free answers",
    "score": "score prediction files on MER-UniBench",
    "wheel": "show how words map onto the emotion wheels",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      argv: the words after the program's name; `sys.argv[1:]` when None.

    Returns:
      Exit status: 0 done, 1 done with findings the command was asked to fail on, 2 a usage or user error,
      3 another process of the job is missing or ended, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv and argv[0] in COMMANDS else None
    about = "Emotion understanding with a multimodal language model, in JAX."
    parser = argparse.ArgumentParser(prog="affectgpt", description=about)
    parser.add_argument("--version", action="version", version=f"affectgpt {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="<command>", required=True)
    for command, help_text in COMMANDS.items():
        sub = commands.add_parser(command, help=help_text, description=help_text)
        if command == name:
            module = importlib.import_module(f"affectgpt_jax.cli.{command.replace('-', '_')}")
            sub.description = module.__doc__
            sub.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(sub)
    args, rest = parser.parse_known_args(argv)
    # argparse takes no more KEY=VALUE once an option has come in between.
    if rest and hasattr(args, "overrides") and all(re.match(r"\w+(\.\w+)*=", word) for word in rest):
        args.overrides = [*args.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    set_environment()
    try:
        return module.run(args)
    except UserError as error:
        print(f"affectgpt {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"affectgpt {args.command}: interrupted", file=sys.stderr)
        return 130


def set_environment() -> None:
    """Let JAX keep compiled programs between commands, and transformers be silent about torch, which is not needed.

    Only environment variables that are not set yet; a command that never loads these libraries pays nothing.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if find_spec("libtpu") is not None and not any_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, there to plan with, would complain at every start
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
