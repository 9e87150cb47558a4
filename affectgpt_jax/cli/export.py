"""Write a run's weights as files that other tools open.

    affectgpt export RUN OUT --as adapter        # a PEFT folder; the fusion beside it
    affectgpt export RUN OUT --as merged         # the language model for transformers and vLLM; the fusion beside it
    affectgpt export RUN OUT --as transformers   # all in one folder that runs with trust_remote_code
    affectgpt export RUN OUT --as pth            # a checkpoint as the authors' code reads it

OUT appears only when it is complete. Beside the weights lies a report, parity.json: hashes of all files, and how the
logits of the folder, opened again, differ from the run's in float32 and in bfloat16. `affectgpt verify OUT` checks it,
`affectgpt convert weights OUT RUN` makes a run of it again. README.md is a model card from what the run recorded.

    affectgpt export RUN OUT --as adapter --to-hub yourname --private

uploads OUT, which then names no path of this machine, to a repository called after data, modalities, size and step;
yourname/NAME calls it otherwise.
"""

import argparse
from pathlib import Path

from affectgpt_jax.cli.checkpoint_step import add_step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("run", metavar="RUN", help="run folder")
    add_step(parser)
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--as", dest="kind", required=True, choices=("adapter", "merged", "transformers", "pth"), help="what to write"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of a merged language model; the base's by default"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    parser.add_argument(
        "--no-parity", action="store_true", help="do not open OUT again; that needs memory for the whole model"
    )
    parser.add_argument("--to-hub", metavar="OWNER[/NAME]", help="also upload OUT to the Hugging Face Hub")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--dry-run", action="store_true", help="list what would be uploaded; send nothing")


def run(args: argparse.Namespace) -> int:
    """Export and print what the comparison found."""
    from affectgpt_jax.errors import UserError
    from affectgpt_jax.exchange.export import export

    if (args.private or args.dry_run) and not args.to_hub:
        raise UserError("--private and --dry-run are about an upload; give --to-hub OWNER, too")
    report = export(
        args.run,
        Path(args.out),
        args.kind,
        step=args.step,
        dtype=args.dtype,
        overwrite=args.overwrite,
        parity=not args.no_parity,
        public=bool(args.to_hub),
    )
    if report:
        print_differences(report["differences"])
    print(f"written: {args.out}")
    if args.to_hub:
        from affectgpt_jax.exchange.hub import push

        print(push(Path(args.out), args.to_hub, private=args.private, dry_run=args.dry_run))
    return 0


def print_differences(differences: dict[str, dict[str, float]]) -> None:
    """Print how the logits differ."""
    for dtype, found in differences.items():
        print(
            f"{dtype:<9} logits differ by at most {found['largest']:.2e}, on average by {found['mean']:.2e}; "
            f"another token is first at {found['argmax_differs']} of {found['positions']} positions, "
            f"{found['argmax_differs_clearly']} of them clear"
        )
