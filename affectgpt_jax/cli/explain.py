"""Show what the model sees of one sample: frames, sound, prompt with ids, soft tokens, masks, targets.

    affectgpt explain runs/demo --sample synth0_train_00003
    affectgpt explain affectgpt_qwen2.5_7b_face --sample NAME prepare.corpus=DIR weights.tokenizer=DIR

CONFIG is a run folder, a YAML file or the name of a shipped config. Texts and features come from data.shards, pictures
and sound from prepare.corpus; either is enough. Prints the tables, and writes NAME.txt and NAME.png into OUT.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.config import RunConfig
    from affectgpt_jax.data.clips import ClipFiles
    from affectgpt_jax.data.shard_schema import TextRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("config", metavar="CONFIG", help="run folder, YAML file, or the name of a shipped config")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="dotted settings that replace the config's")
    parser.add_argument("--sample", required=True, metavar="NAME", help="the sample's name")
    parser.add_argument(
        "--out", type=Path, default=Path("explained"), help="folder for both files (default: explained)"
    )


def run(args: argparse.Namespace) -> int:
    """Explain, print, write."""
    from affectgpt_jax.config import load_config
    from affectgpt_jax.training.explain import as_text, explain, write
    from affectgpt_jax.weights.initial import resolve

    config = load_config(args.config, args.overrides)
    config, tokenizer = resolve(config)
    prepared, features = _from_shards(config, args.sample)
    listed, files = _from_corpus(config, args.sample)
    text = prepared or listed
    if text is None:
        raise UserError(
            f"no sample is called {args.sample!r} in data.shards={config.data.shards or 'nothing'} or "
            f"prepare.corpus={config.prepare.corpus or 'nothing'}; name one of them, or another sample"
        )
    found = explain(config, tokenizer, text, files, features)
    print(as_text(found, config, tokenizer), end="")
    for path in write(found, config, tokenizer, args.out):
        print(f"written: {path}")
    return 0


def _from_shards(config: "RunConfig", name: str) -> "tuple[TextRecord | None, dict[str, Any] | None]":
    from affectgpt_jax.data.shard_schema import SPLITS, TEXT, stream_directory
    from affectgpt_jax.data.storage import is_remote
    from affectgpt_jax.inference.runs import model_streams, open_shards

    root = config.data.shards
    if not root or not (is_remote(root) or stream_directory(Path(root), TEXT).is_dir()):
        return None, None
    for split in SPLITS:
        try:
            corpus = open_shards(config, split, verify=False)
        except UserError as error:
            if "has no split" in str(error):
                continue
            raise
        if name in corpus.names:
            at = corpus.names.index(name)
            columns = {key: corpus.features(stream, [at]) for key, stream in model_streams(config).items()}
            return corpus.text(at), {key: x[0] for key, (x, present) in columns.items() if present[0]}
    return None, None


def _from_corpus(config: "RunConfig", name: str) -> "tuple[TextRecord | None, ClipFiles | None]":
    from data_prep.corpora import read_corpus

    if not config.prepare.corpus:
        return None, None
    records = read_corpus(config.prepare.corpus).records
    found = next((record for record in records if record.name == name), None)
    return (found.text, found.files) if found else (None, None)
