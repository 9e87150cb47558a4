"""Answer clips without labels and write a challenge's CSV.

    affectgpt submission runs/mine --track fg --corpus mer2025-dataset --names track1_track2_candidate.csv
    affectgpt submission runs/mine --track des --corpus mer2025-dataset --names track3_candidate.csv --out des.csv

`fg` (MER-FG, track 2) has the columns name and openset, the list of emotion words; `des` (MER-DES, track 3) also
reason, the description. They are those of the challenge's own training tables. DIR is a folder in the layout of
MER2025; every name of the list gets a line, and the names that could not be answered are told. Interrupted, it goes on
where it ended.
"""

import argparse
import csv
import io
from pathlib import Path

from affectgpt_jax.cli.checkpoint_step import add_step
from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

TRACKS = {"fg": ("ovlabel",), "des": ("ovlabel", "description")}
"""Track -> kinds of question that it needs answered."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add_step(parser)
    add("--track", required=True, choices=TRACKS, help="which challenge")
    add("--corpus", type=Path, required=True, metavar="DIR", help="folder in the layout of MER2025")
    add("--names", type=Path, metavar="CSV", help="table with a column name: the clips; default: all in DIR/video")
    add("--out", type=Path, metavar="FILE.csv", help="what is written; default: RUN/submission_TRACK.csv")
    add("--work", type=Path, metavar="DIR", help="features and answers; default: RUN/submission")
    add(
        "--language",
        metavar="DIR",
        help="language model that reads labels from the answers (default: evaluate.extractor, else by rule)",
    )
    add("--batch", type=int, metavar="N", help="clips at a time; the run's evaluate.batch by default")
    add("--max-new", type=int, metavar="N", help="tokens of an answer at most")
    add("--overwrite", action="store_true", help="replace FILE.csv")


def run(args: argparse.Namespace) -> int:
    """Do what is left, write the table, and name the clips without an answer."""
    from affectgpt_jax.cli.benchmark import label_reader, prepare_split
    from affectgpt_jax.cli.extract import write_whole
    from affectgpt_jax.data.prompts import parse_openset
    from affectgpt_jax.inference.answer_file import step_name
    from affectgpt_jax.inference.benchmark import answer_split
    from affectgpt_jax.inference.runs import fingerprint, open_base, open_shards, open_trained, with_base
    from data_prep.readers import read_unlabelled

    for option in ("batch", "max_new"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
    folder = Path(args.run)
    work: Path = args.work or folder / "submission"
    out: Path = args.out or folder / f"submission_{args.track}.csv"
    if out.exists() and not args.overwrite:
        raise UserError(f"{out} is there already; give --overwrite to replace it, or name another with --out")
    listing = read_unlabelled(args.corpus, args.names)
    trained = open_trained(folder, args.step)
    reader = label_reader(args.language or trained.config.evaluate.extractor)
    prepare_split(trained.config, listing.records, listing.problems, work / "shards", "test")
    corpus = open_shards(trained.config, "test", str(work / "shards"))
    names = [record.name for record in listing.records]
    if odd := set(corpus.names) - set(names):
        raise UserError(
            f"{work / 'shards'} was prepared from another list (it has {min(odd)}); name another --work, or remove it"
        )
    found = {}
    with stage_bar("answers", len(TRACKS[args.track])) as bar:
        for kind in TRACKS[args.track]:
            found[kind] = answer_split(
                trained,
                lambda: with_base(trained, open_base(trained)),
                corpus,
                work / "answers" / kind / f"{step_name(trained.step)}.jsonl",
                model=fingerprint(trained),
                kind=kind,
                batch=args.batch,
                max_new=args.max_new,
                report=bar(kind),
            )
    answers = {name: record["answer"] for name, record in found["ovlabel"].items() if "answer" in record}
    with stage_bar("labels", 1) as bar:
        labels = reader.labels(answers, bar("labels"))
    columns = ("name", "openset", "reason")[: len(found) + 1]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for name in names:
        words = ", ".join(parse_openset(labels.get(name, "[]")))
        reason = found.get("description", {}).get(name, {}).get("answer", "")
        table.writerow((name, f"[{words}]", reason)[: len(columns)])
    write_whole(out, text.getvalue())
    lost = [name for name in names if name not in answers]
    if lost:
        more = f" and {len(lost) - 10:,} more" if len(lost) > 10 else ""
        print(f"{len(lost):,} clips have no answer and an empty list: {', '.join(lost[:10])}{more}")
    empty = sum(not parse_openset(response) for response in labels.values())
    print(f"written: {out}, {len(names):,} clips, {empty:,} answers without a label")
    return 1 if lost else 0
