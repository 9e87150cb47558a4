"""Answer a question about your own clips.

    affectgpt predict runs/demo clip.mp4 --faces clip_faces.npy --subtitle "Thank you so much."
    affectgpt predict runs/demo runs/demo/corpus/video --question description --output answers.jsonl

The sound is that of the file. Faces and subtitle are looked up where a clip lies in a folder of the MER2025 layout
(video/NAME.mp4 beside openface_face/NAME/NAME.npy and subtitle_chieng.csv). What a clip lacks is said, and the model
answers without it. A clip that cannot be used is reported; the others are answered, and the exit status is 1.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from affectgpt_jax.inference.clip_files import Source
    from affectgpt_jax.inference.predict import Failed, Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    add_step(parser)
    parser.add_argument("clips", metavar="CLIP", nargs="+", help="media files, folders of them, or patterns")
    parser.add_argument("--subtitle", metavar="TEXT", help="what is said in the clip; default: that of its corpus")
    parser.add_argument(
        "--faces",
        metavar="FILE.npy",
        help="face crops, uint8 [n, height, width, 3]; for several clips a folder with NAME.npy or NAME/NAME.npy",
    )
    parser.add_argument(
        "--question",
        default="labels",
        metavar="KIND|TEXT",
        help="labels, description, sentiment, another kind, or a text in your own words (default: %(default)s)",
    )
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='what a kind of question leaves open, such as candidates="happy, sad", or low=-1 and high=1; repeatable',
    )
    parser.add_argument("--output", metavar="FILE.jsonl", help="also write one JSON line a clip, failures included")
    parser.add_argument("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    parser.add_argument("--max-new", type=int, metavar="N", help="tokens of an answer at most")


def run(args: argparse.Namespace) -> int:
    """Answer, print as answers come, and count."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from affectgpt_jax.inference.clip_files import list_clips
    from affectgpt_jax.inference.predict import LIMITS, Failed, predict, question_text
    from affectgpt_jax.inference.runs import open_run

    question = question_text(args.question, **dict(map(_field, args.field)))
    clips = list_clips(args.clips)
    _check(args, clips)
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    failed = 0
    with (
        _open(args.output) as file,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        opened = open_run(args.run, args.step)
        console.print(f"[bold]{escape(question)}[/bold]  ({escape(str(opened.folder))}, step {opened.step})")
        outcomes = predict(
            opened, clips, question, subtitle=args.subtitle, faces=args.faces, batch=args.batch, max_new=args.max_new
        )
        for outcome in progress.track(outcomes, total=len(clips)):
            if file is not None:
                print(json.dumps(outcome.record(), ensure_ascii=False), file=file)
            failed += isinstance(outcome, Failed)
            _show(console, outcome)
    answered = f"{len(clips) - failed} of {len(clips)} clips answered" if len(clips) > 1 or failed else ""
    console.print("\n" + "\n".join(filter(None, [answered, f"[dim]{LIMITS}[/dim]"])))
    return 1 if failed else 0


def _check(args: argparse.Namespace, clips: list[Path]) -> None:
    for option in ("batch", "max_new"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    if args.faces is not None and not Path(args.faces).exists():
        raise UserError(f"--faces {args.faces}: there is no such file or folder")
    if len(clips) > 1:
        if args.subtitle is not None:
            raise UserError(f"--subtitle goes with one clip, but {len(clips)} are named; ask about them one by one")
        if args.faces is not None and not Path(args.faces).is_dir():
            raise UserError(
                f"--faces {args.faces} are the faces of one clip, but {len(clips)} are named; give a folder with "
                "NAME.npy for each clip"
            )


def _field(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise UserError(f"--field {text!r}: expected KEY=VALUE, for example low=-1")
    return key, value


def _open(path: str | None) -> contextlib.AbstractContextManager[TextIO | None]:
    """The file of JSON lines, each of which is on disk before the next clip; None without a path."""
    if path is None:
        return contextlib.nullcontext()
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error


def _show(console: "Console", outcome: "Prediction | Failed") -> None:
    """Print one clip's answer, or why there is none."""
    from rich.markup import escape

    from affectgpt_jax.inference.predict import Failed

    console.print(f"\n[bold cyan]{escape(outcome.clip)}[/bold cyan]")
    if isinstance(outcome, Failed):
        console.print(f"  [red]failed[/red]    {escape(outcome.error)}")
        return
    lines = [("answer", outcome.answer or "(empty)")]
    if outcome.labels:
        lines.insert(0, ("labels", ", ".join(outcome.labels)))
    if outcome.subtitle:
        lines.append(("subtitle", f'"{outcome.subtitle}" ({outcome.sources["text"].origin})'))
    lines += [(name, _read_from(source)) for name, source in outcome.sources.items() if name != "text"]
    lines += [("no " + name, reason) for name, reason in outcome.absent.items()]
    lines += [("note", note) for note in outcome.notes]
    lines.append(("time", f"{outcome.seconds:.2f} s, {outcome.tokens} tokens"))
    styles = {"labels": "bold green", "no": "yellow", "note": "yellow"}
    for title, text in lines:
        style = styles.get(title.split()[0], "default")
        console.print(f"  {title:<9} [{style}]{escape(text)}[/{style}]")


def _read_from(source: "Source") -> str:
    places = ", ".join(f"{place:g}" for place in source.places)
    return f"{source.origin}, {source.unit}s {places}" if places else source.origin
