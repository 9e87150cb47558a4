"""Bring weights and settings from elsewhere.

    affectgpt convert config TRAIN.yaml my_run.yaml            # the authors' settings as ours
    affectgpt convert weights CHECKPOINT.pth RUN weights.language=DIR weights.vision=DIR weights.audio=DIR
    affectgpt convert weights OUT RUN                          # a folder of `affectgpt export`, or a PEFT adapter

Nothing that a .pth file pickles is ever run. Base model and encoders stay where they are; the run names their folders.
"""

import argparse
import sys
from pathlib import Path

from affectgpt_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("what", choices=("weights", "config"), help="what is converted")
    parser.add_argument("source", metavar="SOURCE", help="file or folder")
    parser.add_argument("out", metavar="RUN", nargs="?", help="run folder to write; of settings a YAML file or nothing")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="settings, for example weights.language=DIR")
    parser.add_argument("--config", help="config of the run, where SOURCE has none")
    parser.add_argument("--overwrite", action="store_true", help="replace RUN")


def run(args: argparse.Namespace) -> int:
    """Convert."""
    return _config(args) if args.what == "config" else _weights(args)


def _weights(args: argparse.Namespace) -> int:
    from affectgpt_jax.exchange.folders import whole_folder
    from affectgpt_jax.exchange.sources import kind_of, read_export
    from affectgpt_jax.inference.runs import write_run

    if not args.out or "=" in args.out:
        raise UserError("name the run folder to write after SOURCE")
    source, out = Path(args.source), Path(args.out)
    with whole_folder(out, overwrite=args.overwrite) as folder:
        trained = read_export(source, args.config, args.overrides)
        write_run(trained, folder)
    print(f"{source}: {kind_of(source)}, step {trained.step}")
    print(f"written: {out}")
    return 0


def _config(args: argparse.Namespace) -> int:
    import yaml

    from affectgpt_jax.config import build_config
    from affectgpt_jax.config.loading import with_overrides
    from affectgpt_jax.config.reference import import_reference

    path = Path(args.source)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
    settings, notes = import_reference(values, str(path))
    settings = with_overrides(settings, args.overrides)
    build_config(settings, str(path))
    text = "".join(f"# {note}\n" for note in notes) + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if args.out is None:
        sys.stdout.write(text)
        return 0
    if Path(args.out).exists() and not args.overwrite:
        raise UserError(f"{args.out} is there already; give --overwrite to replace it")
    Path(args.out).write_text(text, encoding="utf-8")
    print("\n".join(notes))
    print(f"written: {args.out}")
    return 0
