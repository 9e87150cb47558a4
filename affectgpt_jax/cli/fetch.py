"""List what others publish and this program needs, and download what is open to you.

    affectgpt fetch                                    # all names: what for, size, terms, here or not
    affectgpt fetch qwen2.5-7b-instruct --dry-run      # which files, how many bytes, from where, to where
    affectgpt fetch emotion-wheels clip-vit-large-patch14 --to /data
    affectgpt fetch --for affectgpt_qwen2.5_7b_face    # what a config needs, and what of it is missing

Each NAME goes to a folder of its own in models/ or data/, or in --to. Files are checked against the checksums of the
Hub or the catalogue and listed in SHA256SUMS (`sha256sum -c SHA256SUMS`); an interrupted download goes on where it
ended; what is complete is not fetched again. HF_ENDPOINT names a mirror of the Hub.

What its owner must grant is fetched with your own account's token (`hf auth login`, or HF_TOKEN) once it is granted;
until then, and where no program may fetch it, the command says who grants it and where to ask.

Exit status: 0 if all NAMEs are there, with --for if nothing is missing; 1 if an owner has to grant something first or
something is missing; 2 if a name, a checksum, the disk or the connection is wrong.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from affectgpt_jax.cli.progress import stage_bar
from affectgpt_jax.errors import UserError

if TYPE_CHECKING:
    from affectgpt_jax.fetch.catalogue import Item
    from affectgpt_jax.fetch.plan import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="what to fetch; none lists everything")
    add("--to", type=Path, metavar="DIR", help="folder of the items' folders (default: models or data)")
    add("--dry-run", action="store_true", help="ask the servers, print files, bytes and folders, write nothing")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="files to take, such as '*000060*'; may be given again",
    )
    add("--for", dest="config", metavar="CONFIG", help="list what a config (YAML file, run, shipped name) needs")


def run(args: argparse.Namespace) -> int:
    """List, or fetch."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if args.config is not None:
        if args.names or args.only or args.dry_run:
            raise UserError("--for lists what a config needs; NAME, --only and --dry-run go without it")
        return _list_needs(args.config, args.to, console)
    if not args.names:
        if args.only:
            raise UserError("--only chooses files of a NAME; give one")
        return _list_all(args.to, console)
    return _fetch(args, console)


def _list_all(to: Path | None, console: Console) -> int:
    from affectgpt_jax.fetch.catalogue import CATALOGUE, access_text
    from affectgpt_jax.fetch.needs import item_folder
    from affectgpt_jax.fetch.plan import presence

    group = ""
    for item in CATALOGUE:
        if item.group != group:
            group = item.group
            console.print(f"\n{group}\n{'name':<36}{'size':>14}  {'access':<22}{'here':<14}terms")
        here = presence(item, item_folder(item, to))
        console.print(f"{item.name:<36}{item.size_text:>14}  {access_text(item):<22}{here:<14}{item.terms}")
        console.print(f"    {item.purpose}")
    console.print(
        "\nSizes that are unknown are asked of the server: `affectgpt fetch NAME --dry-run`. docs/fetch.md says who "
        "grants what."
    )
    return 0


def _list_needs(name: str, to: Path | None, console: Console) -> int:
    from affectgpt_jax.config import load_config
    from affectgpt_jax.fetch.needs import config_needs

    found = config_needs(load_config(name), to)
    for need in found:
        names = need.item.name if need.item else "-"
        console.print(f"{need.key:<20}{need.here:<20}{names:<26}{need.value}")
        if need.note:
            console.print(f"    {need.note}")
    if settings := [need.setting for need in found if need.setting and not need.setting.startswith("--")]:
        console.print(f"\nsettings: {' '.join(settings)}")
    missing = [need for need in found if need.missing]
    if items := [need.item.name for need in missing if need.item]:
        console.print(f"missing; fetch: affectgpt fetch {' '.join(items)}" + (f" --to {to}" if to else ""))
    return 1 if any(not need.optional for need in missing) else 0


def _fetch(args: argparse.Namespace, console: Console) -> int:
    from affectgpt_jax.fetch.catalogue import find_item
    from affectgpt_jax.fetch.download import NoAccessError
    from affectgpt_jax.fetch.needs import item_folder
    from affectgpt_jax.fetch.plan import carry_out, is_complete, make_plan

    refused = False
    for item in [find_item(name) for name in dict.fromkeys(args.names)]:
        folder = item_folder(item, args.to)
        if item.access == "hand":
            console.print(_how_to_ask(item))
            refused = True
            continue
        if not is_complete(item, folder, args.only, stage_bar):
            try:
                plan = make_plan(item, folder, args.only, stage_bar)
                console.print(_listing(plan))
                if args.dry_run:
                    console.print("nothing was written\n")
                    continue
                carry_out(plan, stage_bar)
            except NoAccessError as error:
                console.print(f"{item.name}: {error}\n{_how_to_ask(item)}")
                refused = True
                continue
        console.print(f"{item.name}: complete and checked in {folder} (SHA256SUMS)")
        if item.fills:
            words = item.fills.format(folder=folder)
            console.print(f"    use it with {words}" + ("" if "{folder}" in item.fills else f" {folder}"))
        if item.after:
            console.print(f"    {item.after.format(folder=folder)}")
    return 1 if refused else 0


def _listing(plan: "Plan") -> str:
    """Files, bytes, from where, to where."""
    from affectgpt_jax.disk import free_space
    from affectgpt_jax.fetch.catalogue import size_text

    item, missing = plan.item, {file.name for file in plan.missing}
    origin = f"{item.repo} at {plan.revision}" if item.repo else item.page
    lines = [f"{item.name}: {origin} ({item.terms})"]
    for file in plan.files:
        size = "unknown" if file.size is None else f"{file.size:,}"
        lines.append(f"{size:>18}  {file.name}  {'' if file.name in missing else 'is here'}".rstrip())
    lines.append(
        f"{sum(file.size or 0 for file in plan.missing):>18,}  bytes in {len(missing)} files, to {plan.folder}; "
        f"{size_text(free_space(plan.folder))} free there"
    )
    if plan.convert:
        lines.append(
            "    the weights are a torch file: it is rewritten as model.safetensors, without torch, and removed"
        )
    return "\n".join(lines)


def _how_to_ask(item: "Item") -> str:
    """Who grants an item, where, how long it takes, and what comes then."""
    lines = [
        f"{item.name}: {item.purpose}",
        f"    terms    {item.terms}",
        f"    grants   {item.grants or 'unknown'}",
        f"    page     {item.page}",
        f"    wait     {item.wait or 'unknown'}",
        f"    size     {item.size_text}",
    ]
    if item.repo:
        lines.append(
            "    then     log in with the account that it was granted to (`hf auth login`, or HF_TOKEN) and run the "
            "same command again"
        )
    else:
        lines.append(f"    then     {item.after.format(folder=item.folder)}")
    return "\n".join(lines)
