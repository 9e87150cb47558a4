"""Train a model, or go on where the run folder's newest checkpoint ends.

    affectgpt train demo train.steps=200 model.prefusion=qformer

CONFIG is a YAML file or the name of a shipped config; KEY=VALUE changes single settings. The resolved config is
saved in the run folder as config.yaml, which starts the same run again. Ctrl-C or SIGTERM saves and stops.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the file's")


def run(args: argparse.Namespace) -> int:
    from affectgpt_jax.config import load_config
    from affectgpt_jax.training.loop import train

    config = load_config(args.config, args.overrides)
    folder = Path(config.train.output or f"runs/{config.name}")
    media = None
    if config.data.source == "media":
        from data_prep.in_loop import media_in_loop

        media = media_in_loop(config)
    result = train(config, folder, media=media)
    print(f"{folder}: step {result.steps}, loss {result.loss:.4f}")
    return 0 if result.finished else 130
