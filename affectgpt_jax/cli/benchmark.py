"""Score a run on MER-UniBench: prepare the clips, answer, read the labels out of the answers, score, report.

    affectgpt benchmark runs/mine --data-root DATASETS --wheel-dir emotion_wheel
    affectgpt benchmark runs/mine --data-root DATASETS --datasets meld,cmumosi --steps all --validation
    affectgpt benchmark runs/demo --data-root runs/demo/corpus --datasets synthetic

DATASETS holds the nine data sets' folders in the layout of the original (mer2023-dataset-process, meld-process, ...);
`synthetic` is a corpus of `affectgpt synth`. Everything lies in OUT: shards/, answers/, predictions/ (what
`affectgpt score` reads) and report/. Interrupted, it goes on where it ended.

Labels are read from the answers by rule, or, with --language or evaluate.extractor in the run's config, by the language
model that the benchmark prescribes (Qwen2.5-7B-Instruct). Several checkpoints are scored side by side; --validation
also answers the validation clips, on which the strict column then chooses its checkpoint. --scored adds a second
system: the labels that the run itself finds likely, by scores of a vocabulary and without free text (`affectgpt
labels`, whose calibration of a checkpoint it takes).
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from affectgpt_jax.cli.placement import add_placement, placement
from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answer_file import step_name
from affectgpt_jax.unibench.datasets import DATASETS, SYNTHETIC, Dataset, find_dataset
from affectgpt_jax.unibench.evaluation import DatasetResult, Missing, Settings, SystemResult, evaluate_loaded
from affectgpt_jax.unibench.predictions import read_predictions
from affectgpt_jax.unibench.truth import Truth, read_truth

if TYPE_CHECKING:
    from affectgpt_jax.config import RunConfig
    from affectgpt_jax.inference.answer_file import Record
    from affectgpt_jax.inference.clip_scores import Scale
    from affectgpt_jax.inference.extraction import Extractor, Rules
    from affectgpt_jax.inference.runs import Placement
    from affectgpt_jax.unibench.wheel import WheelTable
    from data_prep.readers import ClipRecord, Problem


SCORED = "predictions-scored"
"""Below OUT: what the scores of labels give."""


class Part(NamedTuple):
    """A split of a data set.

    Attributes:
      dataset: the data set.
      folder: its folder.
      split: "test" or "validation".
      truth: what is true of its clips.
    """

    dataset: Dataset
    folder: Path
    split: str
    truth: Truth

    @property
    def place(self) -> Path:
        """Its folder below shards/, answers/ and predictions/."""
        return Path(self.dataset.key) / self.split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data sets' folders, or one of them")
    add("--datasets", default="all", metavar="NAME,...", help="which; default: all that are there")
    add("--steps", default="newest", metavar="N,...", help="checkpoints: newest, all, or steps (default: newest)")
    add("--out", type=Path, metavar="DIR", help="where to; default: RUN/benchmark")
    add(
        "--language",
        metavar="DIR",
        help="language model that reads labels from the answers (default: evaluate.extractor, else by rule)",
    )
    add("--scored", action="store_true", help="also score a vocabulary's words, as a system of its own")
    add("--vocabulary", metavar="wheel|FILE", help="its words (default: those of the calibration, else the wheel's)")
    add("--wheel-dir", type=Path, help="official emotion-wheel folder (default: $AFFECTGPT_WHEEL_DIR)")
    add("--validation", action="store_true", help="strict: choose the checkpoint on the validation clips")
    add("--checkpoint", help="strict: the checkpoint fixed beforehand, such as step00005000 (default: the last one)")
    add("--drop-names", type=Path, help="strict: clips seen in training, left out (lines, or CSV with a column name)")
    add("--missing", choices=get_args(Missing), default="wrong", help="clips without an answer (default: wrong)")
    add("--any-count", action="store_true", help="accept another number of clips than the benchmark's")
    add("--limit", type=int, metavar="N", help="the first N clips of each data set only, kept apart in OUT/firstN")
    add("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    add("--max-new", type=int, metavar="N", help="tokens of an answer at most")
    add("--resamples", type=int, default=1000, help="bootstrap resamples, 0 for no intervals (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add("--details", action="store_true", help="print classes, wheels and errors too")
    add_placement(parser)
    add("--no-paper", action="store_true", help="leave out the paper's table (always so without the official wheels)")


def run(args: argparse.Namespace) -> int:
    """Do what is left of every stage, and print the report."""
    from affectgpt_jax.cli.score import clip_names, print_report
    from affectgpt_jax.config import load_config
    from affectgpt_jax.inference.runs import run_steps
    from affectgpt_jax.unibench.report import Report as Scored
    from affectgpt_jax.unibench.table_cache import load_table

    for option in ("limit", "batch", "max_new"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    folder = Path(args.run)
    table = load_table(args.wheel_dir)
    dropped = clip_names(args.drop_names)
    parts = list(_parts(args))
    steps = chosen_steps(args.steps, run_steps(folder))
    config = load_config(folder / "config.yaml")
    place = placement(args)
    reader = label_reader(args.language or config.evaluate.extractor, place)
    out: Path = args.out or folder / "benchmark"
    if args.limit:
        out = out / f"first{args.limit}"
    _prepare(config, parts, out, args.limit)
    scales = _answer(args, parts, steps, out, table, place)
    systems = {config.name: ("predictions", _extract(reader, parts, steps, out))}
    if args.scored:
        systems[f"{config.name}, scored labels"] = (SCORED, _label(reader, parts, scales, out))
    missing: Missing = "skip" if args.limit else args.missing
    settings = Settings("level1", args.resamples, args.seed, missing, args.checkpoint, dropped)
    scored = Scored(
        tuple(
            SystemResult(name, _results(parts, files, out / folder, table, settings))
            for name, (folder, files) in systems.items()
        ),
        table,
        settings,
    )
    print_report(scored, details=args.details, paper=not args.no_paper, out=out / "report")
    return 0


def _results(
    parts: Sequence[Part], files: Mapping[Path, Sequence[Path]], folder: Path, table: "WheelTable", settings: Settings
) -> dict[str, DatasetResult]:
    """The results of a system on every data set, from the prediction files of each part, which lie in a folder."""
    results = {}
    tests = {part.dataset.key: part for part in parts if part.split == "test"}
    others = {part.dataset.key: part for part in parts if part.split == "validation"}
    for key, part in tests.items():
        loaded = [read_predictions(file, part.dataset.task) for file in files[part.place]]
        other = others.get(key)
        validation = (other.truth, folder / other.place) if other and len(loaded) > 1 else None
        results[key] = evaluate_loaded(part.truth, loaded, table, settings, validation)
    return results


def _parts(args: argparse.Namespace) -> Iterator[Part]:
    """The splits to answer, of data sets in the order of the paper's table."""
    from data_prep.benchmarks import find_benchmark_folder

    everything = args.datasets == "all"
    wanted = (*DATASETS, SYNTHETIC) if everything else tuple(map(find_dataset, args.datasets.split(",")))
    found: list[Dataset] = []
    for dataset in {dataset.key: dataset for dataset in wanted}.values():
        try:
            folder = find_benchmark_folder(dataset, args.data_root)
        except UserError:
            if everything:
                continue
            raise
        found.append(dataset)
        yield Part(dataset, folder, "test", read_truth(dataset, folder, any_count=args.any_count))
        if args.validation and dataset.validation:
            yield Part(dataset, folder, "validation", read_truth(dataset, folder, "validation"))
    if not found:
        names = ", ".join(dataset.folder for dataset in DATASETS)
        raise UserError(f"{args.data_root} holds none of the data sets; expected folders such as {names}")


def chosen_steps(words: str, there: Sequence[int]) -> list[int]:
    """The checkpoints that --steps names.

    Raises:
      UserError: not numbers, or no such checkpoints.
    """
    if words in ("newest", "all"):
        return list(there) if words == "all" else list(there[-1:])
    try:
        steps = sorted({int(word) for word in words.split(",")})
    except ValueError:
        raise UserError(f"--steps {words!r}: expected newest, all, or numbers with commas between them") from None
    if lost := sorted(set(steps) - set(there)):
        raise UserError(
            f"--steps: no checkpoint of {', '.join(map(str, lost))}; there are {', '.join(map(str, there))}"
        )
    return steps


def _prepare(config: "RunConfig", parts: Sequence[Part], out: Path, limit: int | None) -> None:
    """Encode the clips of all splits."""
    from data_prep.benchmarks import read_benchmark

    for part in parts:
        wanted = set(part.truth.names[:limit])
        listing = read_benchmark(part.dataset, part.folder, any_count=True)
        records = [record for record in listing.records if record.split == part.split and record.name in wanted]
        problems = [problem for problem in listing.problems if not problem.name or problem.name in wanted]
        prepare_split(config, records, problems, out / "shards" / part.place, part.split)


def prepare_split(
    config: "RunConfig", records: "Sequence[ClipRecord]", problems: "Sequence[Problem]", shards: Path, split: str
) -> None:
    """Encode clips with a run's encoders, if their shards are not there yet, and print what became of them.

    Args:
      config: the run's.
      records: the clips, all of one split.
      problems: what is known to be wrong with them.
      shards: where to.
      split: the split.
    """
    from affectgpt_jax.cli.prepare import prepare_settings
    from affectgpt_jax.inference.encoders import Encoders
    from affectgpt_jax.inference.runs import model_streams, open_shards
    from data_prep.prepare import prepare

    try:
        open_shards(config, split, str(shards), verify=False)
        return
    except UserError:
        pass  # not there, or not all of its streams: what is left is done
    encoders = Encoders.of(config)
    # A clip that lacks something is answered all the same.
    settings = prepare_settings(config, streams=tuple(model_streams(config).values()), missing="keep")
    print(prepare(records, encoders, settings, shards, problems).summary())


def _answer(
    args: argparse.Namespace,
    parts: Sequence[Part],
    steps: Sequence[int],
    out: Path,
    table: "WheelTable",
    place: "Placement",
) -> "dict[str, Scale]":
    """Answer the clips that no checkpoint's file has an answer for; with --scored, score their labels, too.

    Returns:
      By checkpoint how its scores become labels.
    """
    from affectgpt_jax.cli.labels import open_calibration
    from affectgpt_jax.inference.benchmark import answer_split, score_split
    from affectgpt_jax.inference.clip_scores import calibration_file
    from affectgpt_jax.inference.runs import fingerprint, open_shards, open_steps

    scales = {}
    with stage_bar("answers", len(parts) * len(steps) * (1 + args.scored)) as bar:
        for trained, opened in open_steps(args.run, steps, place):
            model, name = fingerprint(trained), step_name(trained.step)
            if args.scored:
                file = calibration_file(trained)
                scales[name] = open_calibration(file, trained, model, table, args.vocabulary, args.wheel_dir)
            for part in parts:
                corpus = open_shards(trained.config, part.split, str(out / "shards" / part.place))
                answer_split(
                    trained,
                    opened,
                    corpus,
                    out / "answers" / part.place / f"{name}.jsonl",
                    model=model,
                    batch=args.batch,
                    max_new=args.max_new,
                    report=bar(f"{part.dataset.title}, {part.split}, {name}"),
                )
                if args.scored:
                    score_split(
                        trained,
                        opened,
                        corpus,
                        out / "scores" / part.place / f"{name}.jsonl",
                        model=model,
                        words=scales[name].vocabulary.words,
                        batch=args.batch,
                        max_new=args.max_new,
                        report=bar(f"{part.dataset.title}, {part.split}, {name}, scored"),
                    )
    return scales


def _label(
    reader: "Extractor | Rules",
    parts: Sequence[Part],
    scales: "Mapping[str, Scale]",
    out: Path,
) -> dict[Path, list[Path]]:
    """Choose labels by their scores, and the sentiments of sentiment data sets; what `affectgpt score` reads.

    Returns:
      The prediction files of each part, one a checkpoint.
    """
    import numpy as np

    from affectgpt_jax.cli.extract import write_records
    from affectgpt_jax.inference.calibration import given_labels, probabilities
    from affectgpt_jax.inference.evaluate import PLAIN

    files: dict[Path, list[Path]] = {part.place: [] for part in parts}
    with stage_bar("scored labels", len(parts) * len(scales)) as bar:
        for part in parts:
            for name, scale in scales.items():
                report = bar(f"{part.dataset.title}, {part.split}, {name}")
                found = {
                    record["name"]: record["found"][PLAIN.name]["scores"]
                    for record in _records(out / "scores" / part.place / f"{name}.jsonl")
                    if "scores" in record["found"][PLAIN.name]
                }
                labels = {
                    clip: given_labels(
                        probabilities(np.array(scores), scale.temperature), scale.vocabulary, scale.threshold
                    )
                    for clip, scores in found.items()
                }
                records: list[Record] = [{"name": clip, "labels": words} for clip, words in labels.items()]
                if part.dataset.task == "sentiment":
                    lists = {clip: f"[{', '.join(words)}]" for clip, words in labels.items()}
                    sentiments = reader.sentiments(lists, report)
                    records = [record | {"sentiment": sentiments[record["name"]]} for record in records]
                file = out / SCORED / part.place / f"{name}.jsonl"
                write_records(file, records)
                files[part.place].append(file)
                none = sum(not words for words in labels.values())
                print(f"{part.dataset.title}, {part.split}, {name}: no scored label for {none} of {len(labels)} clips")
    return files


def label_reader(language: str, place: "Placement") -> "Extractor | Rules":
    """What reads labels out of answers: the rules, or a language model on the mesh of the run.

    That model keeps its own type, as the benchmark prescribes it; `affectgpt extract` can round it.
    """
    from affectgpt_jax.inference.extraction import Extractor, Rules
    from affectgpt_jax.inference.runs import Placement

    return Extractor(language, place=Placement(place.mesh)) if language else Rules()


def _extract(
    reader: "Extractor | Rules", parts: Sequence[Part], steps: Sequence[int], out: Path
) -> dict[Path, list[Path]]:
    """Read labels, and the sentiments of sentiment data sets, out of the answers; what `affectgpt score` reads.

    Returns:
      The prediction files of each part, one a checkpoint.
    """
    from affectgpt_jax.cli.extract import write_records
    from affectgpt_jax.inference.extraction import prediction_records

    files: dict[Path, list[Path]] = {part.place: [] for part in parts}
    with stage_bar("labels", len(parts) * len(steps)) as bar:
        for part in parts:
            for name in map(step_name, steps):
                records = _records(out / "answers" / part.place / f"{name}.jsonl")
                answers = {record["name"]: record["answer"] for record in records if "answer" in record}
                title = f"{part.dataset.title}, {part.split}, {name}"
                labels = reader.labels(answers, bar(title))
                sentiments = reader.sentiments(labels) if part.dataset.task == "sentiment" else None
                file = out / "predictions" / part.place / f"{name}.jsonl"
                write_records(file, prediction_records(answers, labels, sentiments))
                files[part.place].append(file)
                for record in records:
                    if "rejected" in record:
                        print(f"{title}: no answer about {record['name']}, which {record['rejected']}")
    return files


def _records(file: Path) -> "list[Record]":
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
