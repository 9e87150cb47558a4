"""Check that the authors' weights, opened here, answer as the answers they published say.

    affectgpt verify-release CHECKPOINT.pth PREDICTIONS.npz DATA weights.language=DIR weights.vision=DIR \\
      weights.audio=DIR model.decoder.dtype=bfloat16 --clips 50

PREDICTIONS.npz is a file of raw answers that the authors published for MER-UniBench; DATA holds clips of its data set
in the MER2025 layout (video/NAME.mp4, openface_face/NAME/NAME.npy, subtitle_chieng.csv) or their prepared shards. The
first clips by name that both have are asked for labels and for a description, with `compat: reference`.

The published answers were drawn at temperature 1, ours are the likeliest, so they cannot all be the same. The limits
lie between what two checkpoints of one training reach (mean Jaccard 0.2, F by wheel 0.7) and what answers to different
clips reach (0.03 and 0.3); more clips make the comparison sharper. The exit status is 1 if a limit is missed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from affectgpt_jax.exchange.release import Agreement, Limits, Pair

SHOWN = 60
"""Letters of a text that the table shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="a .pth file of the authors, an export, or a run folder")
    parser.add_argument("predictions", metavar="PREDICTIONS.npz", help="raw answers that the authors published")
    parser.add_argument("data", metavar="DATA", help="clips in the MER2025 layout, or prepared shards")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, for example weights.language=DIR")
    parser.add_argument("--clips", type=int, default=20, metavar="N", help="clips at most (default: %(default)s)")
    parser.add_argument("--wheel-dir", metavar="DIR", help="official emotion wheels, for F; a small lexicon by default")
    for name, least, meaning in (
        ("opening", 0.9, 'share of descriptions that begin with "In the text"'),
        ("jaccard", 0.1, "mean Jaccard index of the label sets"),
        ("wheel-f", 0.5, "F of the label sets, words grouped by the wheels"),
    ):
        parser.add_argument(
            f"--{name}", type=float, default=least, metavar="X", help=f"least {meaning} (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> int:
    """Answer, compare, print."""
    from rich.console import Console
    from rich.progress import Progress

    from affectgpt_jax.exchange.release import Limits, agreement, answer_released
    from affectgpt_jax.unibench.table_cache import load_table

    if args.clips < 1:
        raise UserError(f"--clips must be at least 1, not {args.clips}")
    table = load_table(args.wheel_dir)
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not stderr.is_terminal) as bar:
        task = bar.add_task("answers", total=None)
        pairs = answer_released(
            Path(args.weights),
            Path(args.predictions),
            Path(args.data),
            clips=args.clips,
            overrides=args.overrides,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    found = agreement(pairs, table)
    limits = Limits(args.opening, args.jaccard, args.wheel_f)
    console = Console(highlight=False, soft_wrap=True)
    _print_answers(console, pairs)
    return 0 if _print_verdict(console, found, limits, table.name) else 1


def _print_answers(console: "Console", pairs: "Sequence[Pair]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("clip", no_wrap=True)
    for title in ("released", "ours", "our description"):
        shown.add_column(title, overflow="fold")
    shown.add_column("Jaccard", justify="right")
    for pair in pairs:
        answers = (
            ", ".join(labels) or text[:SHOWN]
            for labels, text in zip(pair.labels, (pair.released, pair.answer), strict=True)
        )
        cells = (pair.name, *answers, pair.description[:SHOWN], f"{pair.jaccard:.2f}")
        shown.add_row(*(Text(cell) for cell in cells))
    console.print(shown)
    if silent := sum(not pair.subtitle for pair in pairs):
        console.print(f"{silent} of {len(pairs)} clips have no subtitle")


def _print_verdict(console: "Console", found: "Agreement", limits: "Limits", table: str) -> bool:
    passes = found.passes(limits)
    for name, title in (
        ("opening", 'descriptions begin with "In the text"'),
        ("jaccard", "mean Jaccard index of label sets"),
        ("wheel_f", f"F of label sets by {table}"),
    ):
        verdict = "ok" if passes[name] else "missed"
        console.print(f"{title:<42} {getattr(found, name):.3f}   at least {getattr(limits, name):g}: {verdict}")
    console.print(f"{'same first label':<42} {found.first_label:.3f}")
    console.print("Published answers were drawn at temperature 1, ours are the likeliest: not all can be the same.")
    console.print("PASS" if all(passes.values()) else "FAIL")
    return all(passes.values())
