"""Answer a question about your own clips.

    affectgpt predict runs/demo clip.mp4 --faces clip_faces.npy --subtitle "Thank you so much."
    affectgpt predict runs/demo my_clips/ --question sentiment --faces detect --output answers.csv
    affectgpt predict runs/demo clips.csv --question candidates --field candidates="happy, sad" --output answers.jsonl
    affectgpt predict runs/demo runs/demo/shards --split test --output answers.parquet
    affectgpt predict runs/demo clip.mp4 --evidence

CLIP is a media file, a folder of them, a pattern, a manifest (.csv, .jsonl, .parquet, as `affectgpt prepare` reads
them), or a folder of feature shards. The sound is that of the file. What is said is given, or lies beside the clip
(NAME.srt, NAME.vtt, subtitles.csv), or in a folder of the MER2025 layout, where stored faces are found, too. What a
clip lacks is said, and the model answers without it. A clip that cannot be used is reported; the others are answered,
and the exit status is 1.

--scores adds how likely each word of a vocabulary is as the first label, calibrated where `affectgpt labels` has
calibrated these words, and --evidence how answer and probabilities change without face, voice or words.

With --output, an interrupted run goes on where it ended when it is started again. docs/predict.md says more.
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.cli.progress import clip_bar
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from affectgpt_jax.config import RunConfig
    from affectgpt_jax.data.shards import Corpus
    from affectgpt_jax.inference.clip_files import Beside, Item, Source
    from affectgpt_jax.inference.clip_scores import Scoring
    from affectgpt_jax.inference.predict import Failed, How, Prediction
    from affectgpt_jax.inference.prediction_files import PredictionFile
    from affectgpt_jax.inference.runs import Run, Trained
    from affectgpt_jax.ops.sampling import Sampling

SHOWN = 3
"""Words of a clip whose probabilities, or changes of them, a person is shown; the file has more."""


class _Asked(NamedTuple):
    """What is asked about.

    Attributes:
      clips: clips with media files, or a split of feature shards.
      beside: where to look for what goes with them.
      facts: what the answers depend on besides the model and the question.
    """

    clips: "Sequence[Item] | Corpus"
    beside: "Beside"
    facts: Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add_step(parser)
    add("clips", metavar="CLIP", nargs="+", help="media files, folders of them, patterns, manifests, or feature shards")
    add("--split", help="of feature shards (default: the run's evaluate.split)")
    said = parser.add_argument_group("what is said")
    said.add_argument("--subtitle", metavar="TEXT", help="what is said in the clip; default: what lies beside it")
    said.add_argument(
        "--subtitles",
        type=Path,
        metavar="PLACE",
        help="look only here: a table (CSV with name and english, subtitle or text), a folder with NAME.srt or "
        "NAME.vtt, or the .srt or .vtt of one clip",
    )
    said.add_argument("--no-subtitle", action="store_true", help="do not tell the model what is said")
    said.add_argument(
        "--transcribe",
        metavar="URL",
        help="send the sound of clips without a subtitle to an OpenAI-compatible endpoint, such as "
        "http://localhost:8000/v1; its key stands in $AFFECTGPT_TRANSCRIBE_KEY",
    )
    said.add_argument(
        "--transcribe-model", default="whisper-1", metavar="NAME", help="recogniser (default: %(default)s)"
    )
    faces = parser.add_argument_group("faces")
    faces.add_argument(
        "--faces",
        metavar="FILE.npy|DIR|files|detect|files_or_detect",
        help="face crops, uint8 [n, height, width, 3]; for several clips a folder with NAME.npy or NAME/NAME.npy; or "
        "where they come from: stored, found by a detector, or found where none are stored (default: the run's "
        "prepare.faces)",
    )
    faces.add_argument("--detector", metavar="FILE.onnx", help="YuNet; default: the run's prepare.detector")
    asked = parser.add_argument_group("the question and its answer")
    asked.add_argument(
        "--question",
        default="labels",
        metavar="KIND|TEXT",
        help="labels, description, sentiment, valence, label, candidates, another kind, or a text in your own words "
        "(default: %(default)s)",
    )
    asked.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='what a kind of question leaves open, such as candidates="happy, sad", or low=-1 and high=1; repeatable',
    )
    asked.add_argument("--max-new", type=int, metavar="N", help="tokens of an answer at most")
    asked.add_argument("--temperature", type=float, default=0.0, metavar="T", help="draw tokens; 0 takes the likeliest")
    asked.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest; 0: among all")
    asked.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest, which have P")
    asked.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    scored = parser.add_argument_group("probabilities of labels")
    scored.add_argument(
        "--scores",
        nargs="?",
        const="",
        metavar="wheel|FILE",
        help="how likely words are as the first label: those of the emotion wheels or of a file, a line each (default: "
        "those that `affectgpt labels` calibrated, else the wheel's)",
    )
    scored.add_argument(
        "--evidence", action="store_true", help="also the answer and the probabilities without each modality"
    )
    scored.add_argument("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--output", type=Path, metavar="FILE", help=".jsonl, .csv or .parquet, failures included; resumable")
    add("--overwrite", action="store_true", help="begin --output anew, whatever is there")
    add("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    add_placement(parser)


def run(args: argparse.Namespace) -> int:
    """Answer, print or write as answers come, and count."""
    from rich.console import Console
    from rich.markup import escape

    from affectgpt_jax.api.clips import check_single, find_items, find_shards
    from affectgpt_jax.data.shards import Corpus
    from affectgpt_jax.inference.limits import LIMITS
    from affectgpt_jax.inference.predict import Failed, how, predict, predict_shards, question_text
    from affectgpt_jax.inference.prediction_files import PredictionFile, ending
    from affectgpt_jax.inference.runs import fingerprint, open_base, open_trained, roundings, with_base

    question = question_text(args.question, **dict(map(question_field, args.field)))
    sampling = _sampling(args)
    _check(args)
    words = find_shards(args.clips)
    items = [] if words else list(find_items(args.clips))
    check_single(len(items), args.subtitle, args.subtitles, args.faces, "--{}")
    if args.output is not None:
        ending(args.output)
        _make_folder(args.output.parent)
    trained = open_trained(args.run, args.step, placement(args))
    asked = _find(args, trained.config, words, items)
    settings = {"batch": args.batch, "max_new": args.max_new, "sampling": sampling, "seed": args.seed}
    model = fingerprint(trained) if args.output is not None or _scores(args) else ""
    scoring = _scoring(args, trained, model)
    way = how(trained.config, len(asked.clips), question, **settings, model=model)
    console = Console(highlight=False, soft_wrap=True)
    total = len(asked.clips)
    with contextlib.ExitStack() as stack:
        file = None
        if args.output is not None:
            facts = _facts(way, trained.step) | roundings(trained.config) | dict(asked.facts)
            facts |= {"scores": scoring and scoring.facts()}
            opened_file = PredictionFile(args.output, facts, total, way.window, args.overwrite)
            file = stack.enter_context(opened_file)
        first, failed = (file.done, file.failed) if file else (0, 0)
        console.print(f"[bold]{escape(question)}[/bold]  ({escape(str(args.run))}, step {trained.step})")
        if scoring is not None and not scoring.scale.calibrated:
            why = "; ".join(filter(None, [_remedy(args), scoring.scale.note]))
            console.print(f"[yellow]probabilities are not calibrated: {escape(why)}[/yellow]")
        if first < total:
            if first:
                console.print(f"{first} of {total} clips are answered in {escape(str(args.output))}; going on")
            opened: Run = with_base(trained, open_base(trained))
            more: dict[str, Any] = settings | {"first": first, "model": model, "scoring": scoring}
            outcomes = (
                predict_shards(opened, asked.clips, question, words=asked.beside.words, **more)
                if isinstance(asked.clips, Corpus)
                # What one clip's decoder does is of no harm to others where there are none.
                else predict(opened, asked.clips, question, beside=asked.beside, apart=total > 1, **more)
            )
            with clip_bar(total, first, failed) as told:
                for outcome in _kept(outcomes, file, way):
                    failed += isinstance(outcome, Failed)
                    if file is None:
                        _show(console, outcome)
                    elif isinstance(outcome, Failed):
                        reason = f"{_plain(outcome.clip)}: {_plain(outcome.error)}"
                        console.print(f"[red]failed[/red]  {escape(reason)}")
                    told(isinstance(outcome, Failed))
        if file is not None:
            file.finish()
    answered = f"{total - failed} of {total} clips answered" if total > 1 or failed else ""
    kept = f"written to {escape(str(args.output))}" if file else ""
    console.print("\n" + "\n".join(filter(None, [", ".join(filter(None, [answered, kept])), f"[dim]{LIMITS}[/dim]"])))
    return 1 if failed else 0


def _kept(
    outcomes: "Iterator[Prediction | Failed]", file: "PredictionFile | None", way: "How"
) -> "Iterator[Prediction | Failed]":
    """The outcomes, each window of them once it is on disk."""
    window: list[Prediction | Failed] = []
    for outcome in outcomes:
        if file is None:
            yield outcome
            continue
        window.append(outcome)
        if len(window) == way.window:
            file.write(window)
            yield from window
            window = []
    if file is not None and window:
        file.write(window)
        yield from window


# ---------------------------------------------------------------------------------------------------------------------
# What is asked about


def _find(args: argparse.Namespace, config: "RunConfig", shards: str, items: "Sequence[Item]") -> _Asked:
    """Open the shards, or say where what goes with clips lies."""
    from affectgpt_jax.api.clips import look
    from affectgpt_jax.inference.clip_files import Beside, identity
    from affectgpt_jax.inference.runs import open_shards
    from affectgpt_jax.inference.transcription import Transcriber

    if shards:
        for option in ("subtitle", "subtitles", "transcribe", "faces", "detector"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} goes with media files; feature shards hold what there is")
        # A record that is damaged is reported when it is read, and costs itself only.
        corpus = open_shards(config, args.split or config.evaluate.split, shards, verify=False)
        return _Asked(
            corpus, Beside(words=not args.no_subtitle), {"clips": corpus.fingerprint, "words": not args.no_subtitle}
        )
    if args.split is not None:
        raise UserError(f"--split {args.split} goes with feature shards")
    beside, facts = look(
        config,
        subtitle=args.subtitle,
        subtitles=args.subtitles,
        words=not args.no_subtitle,
        transcribe=Transcriber(args.transcribe, args.transcribe_model) if args.transcribe else None,
        faces=args.faces,
        detector=args.detector,
    )
    return _Asked(items, beside, {"clips": identity(items), **facts})


def _facts(way: "How", step: int) -> dict[str, Any]:
    """What answers depend on besides their clips."""
    from affectgpt_jax.version import __version__

    return {
        "model": way.model,
        "step": step,
        "version": __version__,
        "question": way.question,
        "max_new": way.max_new,
        "sampling": way.sampling._asdict(),
        "seed": way.seed,
        "batch": way.batch,
    }


def _scores(args: argparse.Namespace) -> bool:
    return args.evidence or args.scores is not None


def _scoring(args: argparse.Namespace, trained: "Trained", model: str) -> "Scoring | None":
    """The words whose probabilities are wanted; None if none are."""
    from affectgpt_jax.cli.labels import named_words
    from affectgpt_jax.inference.clip_scores import Scoring, open_scale
    from affectgpt_jax.unibench.table_cache import load_table

    if not _scores(args):
        return None
    words = named_words(args.scores, args.wheel_dir) if args.scores else None
    table = load_table(args.wheel_dir)
    return Scoring(open_scale(trained, lambda: model, table, words, wheel_dir=args.wheel_dir), args.evidence)


def _remedy(args: argparse.Namespace) -> str:
    words = f" --vocabulary {args.scores}" if args.scores else ""
    return f"affectgpt labels {args.run} --calibrate validation{words}"


# ---------------------------------------------------------------------------------------------------------------------
# Options


def check_inputs(args: argparse.Namespace) -> None:
    """Refuse options about faces, subtitles and batches that cannot be meant, before anything is opened."""
    from affectgpt_jax.api.clips import POLICIES

    for option in ("batch", "max_new"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    if args.faces is not None and args.faces not in POLICIES and not Path(args.faces).exists():
        raise UserError(f"--faces {args.faces}: there is no such file or folder; or say {', '.join(POLICIES)}")
    if args.detector is not None and args.faces not in ("detect", "files_or_detect", None):
        raise UserError(f"--detector {args.detector} goes with --faces detect or files_or_detect")
    if args.subtitles is not None and not args.subtitles.exists():
        raise UserError(f"--subtitles {args.subtitles}: there is no such file or folder")
    if args.no_subtitle and args.subtitles is not None:
        raise UserError("--no-subtitle and --subtitles contradict each other; leave out one")


def _check(args: argparse.Namespace) -> None:
    check_inputs(args)
    given = [name for name in ("subtitle", "subtitles", "transcribe") if getattr(args, name) is not None]
    if args.no_subtitle and given:
        raise UserError(f"--no-subtitle and --{given[0]} contradict each other; leave out one")
    if args.subtitle is not None and len(given) > 1:
        raise UserError(f"--subtitle and --{given[1]} contradict each other; leave out one")


def _sampling(args: argparse.Namespace) -> "Sampling":
    from affectgpt_jax.ops.sampling import Sampling

    found = Sampling(args.temperature, args.top_k, args.top_p)
    for option, value, fits, expected in (
        ("temperature", found.temperature, found.temperature >= 0, "0 or more"),
        ("top-k", found.top_k, found.top_k >= 0, "0 or more"),
        ("top-p", found.top_p, 0 < found.top_p <= 1, "more than 0, and 1 at most"),
        ("seed", args.seed, 0 <= args.seed < 2**31, "0 or more, below 2^31"),
    ):
        if not fits:
            raise UserError(f"--{option} {value}: expected {expected}")
    if not found.temperature and (found.top_k, found.top_p) != (0, 1.0):
        raise UserError("--top-k and --top-p only count where tokens are drawn; add --temperature 1")
    return found


def question_field(text: str) -> tuple[str, str]:
    """What KEY=VALUE fills in a kind of question."""
    key, found, value = text.partition("=")
    if not found or not key.isidentifier():
        raise UserError(f"--field {text!r}: expected KEY=VALUE, for example low=-1")
    return key, value


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written ({error.strerror})") from error


# ---------------------------------------------------------------------------------------------------------------------
# What a person sees


def _plain(text: str) -> str:
    """A text that can be printed, whatever bytes a file's name is of."""
    return text.encode(errors="backslashreplace").decode()


def _show(console: "Console", outcome: "Prediction | Failed") -> None:
    """Print one clip's answer, or why there is none."""
    from rich.markup import escape

    from affectgpt_jax.inference.predict import Failed

    console.print(f"\n[bold cyan]{escape(_plain(outcome.clip))}[/bold cyan]")
    if isinstance(outcome, Failed):
        console.print(f"  [red]failed[/red]    {escape(_plain(outcome.error))}")
        return
    lines = [("answer", outcome.answer or "(empty)")]
    if outcome.labels:
        lines.insert(0, ("labels", ", ".join(outcome.labels)))
    if outcome.subtitle:
        lines.append(("subtitle", f'"{outcome.subtitle}" ({outcome.sources["text"].origin})'))
    lines += _scored(outcome)
    lines += [(name, _read_from(source)) for name, source in outcome.sources.items() if name != "text"]
    lines += [("no " + name, reason) for name, reason in outcome.absent.items()]
    lines += [("note", note) for note in outcome.notes]
    lines.append(("time", f"{outcome.seconds:.2f} s, {outcome.tokens} tokens"))
    styles = {"labels": "bold green", "no": "yellow", "note": "yellow"}
    width = max(9, *(len(title) for title, _ in lines))
    for title, text in lines:
        style = styles.get(title.split()[0], "default")
        console.print(f"  {title:<{width}} [{style}]{escape(_plain(text))}[/{style}]")


def _scored(outcome: "Prediction") -> list[tuple[str, str]]:
    """The likeliest labels, and what becomes of them without each modality."""
    lines = []
    if (scores := outcome.scores) is not None:
        if "rejected" in scores:
            lines.append(("scores", f"none: {scores['rejected']}"))
        else:
            likely = ", ".join(f"{word['label']} {word['probability']:.2f}" for word in scores["likeliest"][:SHOWN])
            given = f"abstains below {scores['threshold']:.2f}: " if scores["abstained"] else ""
            lines.append(("scores", given + likely))
    for modality, found in (outcome.evidence or {}).items():
        if "rejected" in found:
            lines.append((f"without {modality}", f"none: {found['rejected']}"))
            continue
        changes = sorted(found.get("changes", ()), key=lambda word: -abs(word["change"]))[:SHOWN]
        moved = ", ".join(f"{word['label']} {word['change']:+.2f}" for word in changes)
        lines.append((f"without {modality}", f"{moved}; {found['answer'] or '(empty)'}"))
    return lines


def _read_from(source: "Source") -> str:
    places = ", ".join(f"{place:g}" for place in source.places)
    by = f" ({source.detector})" if source.detector else ""
    return f"{source.origin}, {source.unit}s {places}{by}" if places else source.origin
