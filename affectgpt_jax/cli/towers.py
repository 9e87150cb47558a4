"""Train the demo's small vision and speech towers and its tokenizer.

Frozen encoders are only as good as what they learned, and no pretrained ones ship. So a CLIP-style and a HuBERT-style
tower first learn, for about a minute, what the generator of the synthetic corpus knows about faces and voices of
training identities. A linear probe on other identities says how well, beside the same towers untrained.

OUT gets three Hugging Face folders, vision, audio and tokenizer, and towers.json with settings, scores and checksums.
The same settings give the same towers; finished ones are used again.

  affectgpt towers runs/demo/towers --seed 0
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from affectgpt_jax.errors import UserError
from data_prep.towers.report import Progress, TowersReport
from data_prep.towers.settings import TowerSettings

_DEFAULTS = TowerSettings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the towers: new, empty or an earlier one")
    for name in ("seed", "clips", "held_out", "steps"):
        field = TowerSettings.model_fields[name]
        default = getattr(_DEFAULTS, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{field.description} (default: {default})"
        )
    parser.add_argument(
        "--workers",
        type=int,
        choices=(1, 2),
        help="processes: 2 train the towers side by side (default: 2 where there are as many cores)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace finished towers of other settings")


def run(args: argparse.Namespace) -> int:
    """Train the towers and print how they came out."""
    for name, least in (("seed", 0), ("clips", 1), ("held_out", 1), ("steps", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    from data_prep.towers.build import train_towers

    settings = TowerSettings(seed=args.seed, clips=args.clips, held_out=args.held_out, steps=args.steps)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(progress: Progress) -> None:
            if progress.tower not in tasks:
                tasks[progress.tower] = bars.add_task(progress.tower)
            label = f"{progress.tower} tower, {progress.stage}"
            bars.update(tasks[progress.tower], description=label, completed=progress.done, total=progress.total)

        report = train_towers(args.out, settings, workers=args.workers, overwrite=args.overwrite, tell=tell)
    console.print(_table(args.out, report))
    return 0


def _table(out: Path, report: TowersReport) -> Table:
    table = Table(title=f"{out} ({'found' if report.reused else 'trained'})")
    for name in ("", "vision", "audio"):
        table.add_column(name, justify="right" if name else "left")
    towers = (report.vision, report.audio)
    rows = {
        "classes": [", ".join(tower.classes) for tower in towers],
        "linear probe, other identities": [f"{tower.probe:.3f}" for tower in towers],
        "  the same, untrained": [f"{tower.untrained_probe:.3f}" for tower in towers],
        "cross-entropy": [f"{tower.cross_entropy:.3f}" for tower in towers],
        "squared error of attributes": [f"{tower.squared_error:.3f}" for tower in towers],
        "standard deviation of features": [f"{tower.feature_std:.2f}" for tower in towers],
        "seconds (of CPU)": [f"{tower.seconds:.0f} ({tower.cpu_seconds:.0f})" for tower in towers],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    table.caption = f"tokenizer of {report.tokens} tokens, {report.seconds:.0f} s in all"
    return table
