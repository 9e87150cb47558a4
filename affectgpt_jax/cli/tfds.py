"""Write texts and features joined, or the clips as they are, beside a prepared corpus, for readers that use TFDS.

What `affectgpt prepare` writes opens in TFDS as it stands, one config a stream (text, face_8, audio_8). NAME is what
else is wanted: streams joined sample by sample, named one after the other (face_8_audio_8), or media, the texts with
the bytes of video, sound and face crops. SHARDS is the folder of the corpus (data.shards). A stream's own name only
shows what is there. TensorFlow is not needed, neither here nor to read it:

  tfds.data_source("mer_caption/face_8_audio_8:1.0.0", data_dir=SHARDS, split="train")

With a runner of Apache Beam (extra [beam]) the workers of a cluster write the shards. They must see the same folders
under the same names, and have this program installed.

  affectgpt tfds face_8_audio_8 runs/demo/shards
  affectgpt tfds media runs/demo/shards --corpus runs/demo/corpus
  affectgpt tfds media /data/shards --corpus /data/mer2025 --beam-runner DirectRunner
  affectgpt tfds media /data/shards --corpus /data/mer2025 --beam-runner FlinkRunner --beam-option flink_master=H:8081
"""

import argparse
import io
import sys
from contextlib import redirect_stdout

from rich.console import Console
from rich.table import Table

from affectgpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("name", metavar="NAME", help="what to write: media, or streams such as face_8_audio_8")
    parser.add_argument(
        "shards", metavar="SHARDS", help="the folder of the corpus; for media alone it may be a new one"
    )
    parser.add_argument("--corpus", metavar="CORPUS", help="the clips that media is written from, named as for prepare")
    parser.add_argument("--beam-runner", metavar="RUNNER", help="write on the workers of this runner of Apache Beam")
    parser.add_argument(
        "--beam-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of Beam's pipeline or runner, written without dashes; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Write what is wanted and print what is there."""
    import tensorflow_datasets as tfds

    from data_prep.beam import pipeline_options
    from data_prep.corpora import read_corpus
    from data_prep.mer_caption import MEDIA, MerCaption

    if args.corpus and args.name != MEDIA:
        raise UserError(f"--corpus {args.corpus}: {args.name} is made from the streams in {args.shards}")
    wants_beam = args.beam_runner or args.beam_option
    download_config = tfds.download.DownloadConfig(
        beam_runner=args.beam_runner, beam_options=pipeline_options(args.beam_option) if wants_beam else None
    )
    with redirect_stdout(io.StringIO()):  # TFDS tells of downloads, of which there are none
        builder = MerCaption(config=args.name, data_dir=args.shards, corpus=args.corpus)
        builder.download_and_prepare(download_config=download_config)
    table = Table("split", "samples", "shards", "MB", title=str(builder.data_dir))
    for split in builder.info.splits.values():
        table.add_row(
            split.name, str(split.num_examples), str(len(split.shard_lengths)), f"{split.num_bytes / 1e6:.1f}"
        )
    Console().print(table)
    if args.corpus and (problems := read_corpus(args.corpus).problems):
        told = f"{args.corpus}: {len(problems)} remarks on its tables and files, the first: {problems[0].reason}. "
        print(f"{told}All of them: affectgpt data check {args.corpus}", file=sys.stderr)
    return 0
