"""Train a model, or go on where the run folder's newest checkpoint ends.

    affectgpt train demo train.steps=200 model.prefusion=qformer

CONFIG is a YAML file or the name of a shipped config; KEY=VALUE changes single settings. The resolved config is
saved in the run folder as config.yaml, which starts the same run again. Ctrl-C or SIGTERM saves and stops.

    affectgpt train runs/demo/config.yaml train.init_from=runs/demo train.output=runs/mine \\
      prepare.corpus=my_clips.csv data.shards=my_shards

goes on from what a run, an exported folder or the authors' .pth has learned, on clips of your own. Shards that are not
there yet are prepared first, if prepare.corpus says of what.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the file's")


def run(args: argparse.Namespace) -> int:
    from affectgpt_jax.cli.prepare import prepare_corpus
    from affectgpt_jax.config import load_config
    from affectgpt_jax.data.shard_schema import TEXT, stream_directory
    from affectgpt_jax.data.storage import is_remote
    from affectgpt_jax.training.loop import train

    config = load_config(args.config, args.overrides)
    folder = Path(config.train.output or f"runs/{config.name}")
    corpus, shards = config.prepare.corpus, config.data.shards
    wanted = config.data.source == "features" and corpus and shards and not is_remote(shards)
    if wanted and not stream_directory(Path(shards), TEXT).is_dir():
        print(prepare_corpus(config, corpus, shards).summary())
    media = None
    if config.data.source == "media":
        from data_prep.in_loop import media_in_loop

        media = media_in_loop(config)
    result = train(config, folder, media=media)
    print(f"{folder}: step {result.steps}, loss {result.loss:.4f}")
    return 0 if result.finished else 130
