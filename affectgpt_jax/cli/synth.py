"""Write a synthetic corpus of talking faces in the MER2025 layout.

The embedded stand-in for the gated MER-Caption+: real mp4 and wav files, face crops, subtitles, emotion labels and
descriptions of drawn faces that speak. The same seed gives the same files; a finished corpus is used again.

  affectgpt synth data/synth --clips 1500 --seed 0

--features writes feature shards and a tokenizer instead, in seconds and without clips: what each scene means is in the
features, as noisy vectors. `affectgpt train smoke data.shards=OUT weights.tokenizer=OUT/tokenizer` trains on them.

  affectgpt synth data/features --features --train 10000
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from affectgpt_jax.errors import UserError
from data_prep.synth import CorpusSummary, SplitCounts, write_corpus

_DEFAULT_CLIPS = 1500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the corpus: new, empty or an earlier one")
    parser.add_argument(
        "--clips",
        type=int,
        metavar="N",
        help=f"clips in all, 80 percent train, 5 validation, 15 test (default: {_DEFAULT_CLIPS})",
    )
    for split in SplitCounts._fields:
        parser.add_argument(f"--{split}", type=int, metavar="N", help=f"{split} clips, in place of --clips")
    parser.add_argument("--features", action="store_true", help="feature shards and a tokenizer instead of clips")
    parser.add_argument(
        "--babble",
        type=int,
        default=0,
        metavar="N",
        help="with --features: N words of a random language end each description, for studies of size (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides every person and clip (default: 0)")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: one for each core)")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished corpus of another seed or size")


def run(args: argparse.Namespace) -> int:
    """Write the corpus and print what is in it."""
    counts = _counts(args)
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    if args.babble and not args.features:
        raise UserError("--babble goes with --features: nobody mutters in a clip")
    if args.features:
        # Ahead of the bar: TFDS is imported under a rule of its own, which the bar's thread would fall foul of.
        from data_prep.synth.features import write_features
    console = Console()
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("clips", total=sum(counts))
        if args.features:
            found = write_features(
                args.out,
                counts,
                args.seed,
                babble=args.babble,
                workers=args.workers,
                overwrite=args.overwrite,
                on_samples=lambda count: progress.advance(task, count),
            )
            verb = "found" if found.reused else "written"
            console.print(
                f"{found.directory}: {sum(counts)} samples {verb} in {found.seconds:.1f} s",
                highlight=False,
                soft_wrap=True,
            )
            return 0
        summary = write_corpus(
            args.out,
            counts,
            args.seed,
            workers=args.workers,
            overwrite=args.overwrite,
            on_clip=lambda: progress.advance(task),
        )
    console.print(_table(summary))
    return 0


def _counts(args: argparse.Namespace) -> SplitCounts:
    given = {split: getattr(args, split) for split in SplitCounts._fields}
    if all(count is None for count in given.values()):
        return SplitCounts.of_total(_DEFAULT_CLIPS if args.clips is None else args.clips)
    if args.clips is not None:
        raise UserError("give either --clips or the splits' own counts (--train, --validation, --test), not both")
    return SplitCounts(**{split: count or 0 for split, count in given.items()})


def _table(summary: CorpusSummary) -> Table:
    verb = "found" if summary.reused else "written"
    table = Table(title=f"{summary.directory} ({verb})", show_header=False)
    total = sum(summary.counts)
    for split, count in summary.counts._asdict().items():
        table.add_row(f"{split} clips", str(count))
    table.add_section()
    for emotion, count in summary.emotions.items():
        table.add_row(emotion, f"{count} ({count / total:.0%})")
    table.add_section()
    for modality, share in summary.needs.items():
        label = "needs two modalities or more" if modality == "two or more" else f"needs the {modality}"
        table.add_row(label, f"{share:.0%}")
    table.add_section()
    table.add_row("time", f"{summary.seconds:.1f} s")
    table.add_row("size", f"{summary.bytes / 1e6:.0f} MB")
    return table
