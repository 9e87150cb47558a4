"""Decode and encode a corpus of clips into feature shards, once and for all runs.

Reads a folder in the MER2025 layout (prepare.corpus) and writes text and features (prepare.streams) into data.shards,
a directory that TFDS opens too. Interrupted, it goes on where it ended; what is there already is not done again, and a
stream that joins leaves the others as they are. Clips with broken media are left out and listed in a report.

  affectgpt prepare demo
  affectgpt prepare demo prepare.missing=drop prepare.streams=[face@8,audio@8,frame@8] --strict
"""

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console

from affectgpt_jax.config import RunConfig, load_config
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


def run(args: argparse.Namespace) -> int:
    """Prepare the corpus and print what became of its clips."""
    config = load_config(args.config, args.overrides)
    for key, value in {"prepare.corpus": config.prepare.corpus, "data.shards": config.data.shards}.items():
        if not value:
            raise UserError(f"{args.config} does not say {key}; add {key}=FOLDER to the command")
    report = prepare_corpus(config, config.prepare.corpus, config.data.shards, overwrite=args.overwrite)
    Console().print(report.summary(), markup=False, highlight=False, soft_wrap=True)
    return 1 if args.strict and (report.broken or report.tables) else 0


def prepare_corpus(config: RunConfig, corpus: str, shards: str, *, overwrite: bool = False) -> "PrepareReport":
    """Prepare a corpus with a config's encoders and settings.

    Args:
      config: names the encoders and says how to prepare.
      corpus: folder in the MER2025 layout.
      shards: where to.
      overwrite: replace streams that were prepared from other files or with another encoder.
    """
    from affectgpt_jax.inference.encoders import Encoders
    from data_prep.prepare import prepare
    from data_prep.readers import read_mer_caption_plus

    listing = read_mer_caption_plus(corpus)
    encoders = Encoders(config.weights.vision, config.weights.audio)
    return prepare(listing.records, encoders, prepare_settings(config, overwrite=overwrite), shards, listing.problems)


def prepare_settings(config: RunConfig, **changes: Any) -> "PrepareSettings":
    """How a config wants clips prepared, but for some changes."""
    from data_prep.prepare import PrepareSettings

    kept = ("streams", "missing", "batch_clips", "shard_clips", "decode_threads")
    return PrepareSettings(**{key: getattr(config.prepare, key) for key in kept} | changes)
