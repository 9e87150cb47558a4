"""Follow emotions through a long recording: windows that slide over it, a curve for each person, the video beside it.

    affectgpt timeline runs/demo talk.mp4 --output runs/talk
    affectgpt timeline runs/demo talk.mp4 --window 6 --hop 1 --subtitles talk.srt --output runs/talk
    affectgpt timeline runs/demo talk.mp4 --question valence --output runs/talk

Each window is asked about as a clip of its own: its frames, its sound, and the words of the cues that overlap it, from
--subtitles or beside the recording (NAME.srt, NAME.vtt). Where several people are seen, each is followed and asked
about with their own face. FOLDER gets timeline.csv, timeline.jsonl, timeline.png and timeline.html.

Features and answers are kept in FOLDER/cache: the same command goes on where it was interrupted, and another question
begins with the features that are there. Probabilities are calibrated if the run is (affectgpt labels --calibrate).
docs/timeline.md says more.
"""

import argparse
import shutil
from pathlib import Path

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.labels import open_calibration
from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.cli.predict import check_inputs, question_field
from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add("video", metavar="VIDEO", type=Path, help="the recording; anything FFmpeg reads")
    add_step(parser)
    add_placement(parser)
    add("--output", type=Path, metavar="FOLDER", required=True, help="where to")
    add("--window", type=float, default=4.0, metavar="SECONDS", help="length of a window (default: %(default)g)")
    add("--hop", type=float, default=2.0, metavar="SECONDS", help="from window to window (default: %(default)g)")
    add(
        "--question",
        default="labels",
        metavar="KIND|TEXT",
        help="labels, description, sentiment, valence, another kind, or a text in your own words, as for affectgpt "
        "predict (default: %(default)s)",
    )
    add(
        "--field",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a kind of question leaves open; of valence low=-1 and high=1 by default",
    )
    add(
        "--labels",
        choices=("wheel", "words"),
        default="wheel",
        help="curves of the emotion wheel's groups, or of words",
    )
    add("--vocabulary", metavar="wheel|FILE", help="the words (default: those of the calibration, else the wheel's)")
    add("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--subtitles", type=Path, metavar="PLACE", help=".srt or .vtt, or a folder with NAME.srt or NAME.vtt")
    add("--no-subtitle", action="store_true", help="do not tell the model what is said")
    add(
        "--faces",
        metavar="FILE.npy|DIR|files|detect|files_or_detect",
        help="face crops of the recording, evenly over it; or where they come from (default: the run's "
        "prepare.faces); detect sees several people",
    )
    add("--detector", metavar="FILE.onnx", help="YuNet; default: the run's prepare.detector")
    add("--copy-video", action="store_true", help="copy the recording beside the page, so that FOLDER can be passed on")
    add("--max-new", type=int, metavar="N", help="tokens of an answer at most")
    add("--batch", type=int, metavar="N", help="windows at a time; the run's evaluate.batch by default")


def run(args: argparse.Namespace) -> int:
    """Encode, ask, write."""
    from affectgpt_jax.api.clips import choose_faces
    from affectgpt_jax.data.media import MediaError
    from affectgpt_jax.inference.clip_scores import calibration_file
    from affectgpt_jax.inference.limits import LIMITS
    from affectgpt_jax.inference.predict import how, question_text
    from affectgpt_jax.inference.runs import fingerprint, open_base, open_trained, with_base
    from affectgpt_jax.inference.timeline import Settings, make_timeline
    from affectgpt_jax.inference.timeline.files import curves, write_csv, write_plot, write_records
    from affectgpt_jax.inference.timeline.page import link, page
    from affectgpt_jax.inference.timeline.windows import windows
    from affectgpt_jax.replacing import replacing
    from affectgpt_jax.unibench.table_cache import load_table

    check_inputs(args)
    windows(1.0, args.window, args.hop)
    fields, valence = dict(map(question_field, args.field)), None
    if args.question == "valence":
        fields = {"low": "-1", "high": "1"} | fields
        valence = _limits(fields["low"], fields["high"])
    question = question_text(args.question, **fields)
    if not args.video.is_file():
        raise MediaError(args.video, "there is no such file")
    trained = open_trained(args.run, args.step, placement(args))
    config = trained.config
    model, table = fingerprint(trained), load_table(args.wheel_dir)
    scale = open_calibration(calibration_file(trained), trained, model, table, args.vocabulary, args.wheel_dir)
    crops, stored, given = choose_faces(config, args.faces, args.detector)
    settings = Settings(
        how(config, config.evaluate.batch if args.batch is None else args.batch, question, batch=args.batch,
            max_new=args.max_new, model=model),
        window=args.window,
        hop=args.hop,
        subtitles=args.subtitles,
        words=not args.no_subtitle,
        faces=given,
        stored=stored,
        find=crops.find_all if crops.detector else None,
        provenance=crops.provenance,
        valence=valence,
    )  # fmt: skip
    with stage_bar("timeline", 2) as bar:
        found = make_timeline(
            trained,
            lambda: with_base(trained, open_base(trained)),
            model,
            args.video,
            args.output,
            settings,
            scale,
            stage=bar,
        )
    shown = curves(found, scale.vocabulary, args.labels)
    media = args.video
    if args.copy_video:
        media = args.output / f"video{args.video.suffix}"
        with replacing(media) as draft:
            shutil.copyfile(args.video, draft)
    notes = (
        [] if scale.calibrated else ["The probabilities are not calibrated: affectgpt labels RUN --calibrate SPLIT."]
    )
    write_records(args.output / "timeline.jsonl", found.records)
    write_csv(args.output / "timeline.csv", found, shown)
    write_plot(args.output / "timeline.png", found, shown)
    with replacing(args.output / "timeline.html") as draft:
        draft.write_text(page(found, shown, link(media, args.output), question=question, notes=notes), encoding="utf-8")
    failed = sum("error" in record for record in found.records)
    people = len({record["person"] for record in found.records} - {""})
    parts = len({record["start"] for record in found.records})
    print(f"{found.seconds:.1f} s, windows: {parts}, people: {people}, answers: {len(found.records) - failed}")
    for problem in found.problems:
        print(f"{args.video}: {problem}")
    if failed:
        print(f"{failed} could not be asked, e.g. {next(x['error'] for x in found.records if 'error' in x)}")
    print(f"written: {args.output / 'timeline.html'}, .png, .csv, .jsonl\n{LIMITS}")
    return 1 if failed or found.problems else 0


def _limits(low: str, high: str) -> tuple[float, float]:
    try:
        found = float(low), float(high)
    except ValueError:
        found = 0.0, 0.0
    if not found[0] < found[1]:
        raise UserError(f"--field low={low}, high={high}: expected numbers, the first one smaller")
    return found
