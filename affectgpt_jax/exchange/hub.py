"""Exports on the Hugging Face Hub."""

from pathlib import Path
from typing import Any

from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.parity import REPORT, read_report

CARD = "README.md"


def push(
    folder: Path, repo: str, *, private: bool, token: str | None = None, api: Any = None, dry_run: bool = False
) -> str:
    """Upload an export; the repository is made if it is not there.

    Args:
      folder: a complete export.
      repo: owner/name; the owner alone takes the name that the card proposes.
      private: nobody else may see it.
      token: of the Hub; by default that of `hf auth login` or HF_TOKEN.
      api: a `huggingface_hub.HfApi`; one with the token by default.
      dry_run: send nothing.

    Returns:
      The repository's address, or with `dry_run` the files that would be sent with their sizes.

    Raises:
      UserError: the folder is not complete, the name cannot be one, nobody is logged in, or the Hub refuses.
    """
    for name, remedy in ((REPORT, "export it without --no-parity"), (CARD, "export it again")):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}, so it is not sent; {remedy}")
    lost = [name for name in read_report(folder)["files"] if not (folder / name).is_file()]
    if lost:
        raise UserError(f"{folder} lacks {', '.join(lost)}, which its {REPORT} names; export it again")
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    if repo and "/" not in repo:
        repo = f"{repo}/{_proposed_name(folder / CARD)}"
    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise UserError(f"{repo!r} cannot be a repository's name: {error}") from error
    if dry_run:
        return _listing(folder, repo)
    if api is None:
        token = token or get_token()
        if not token:
            raise UserError("nobody is logged in to the Hub; run `hf auth login`, or set HF_TOKEN")
        api = HfApi(token=token)
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        public = private and not api.repo_info(repo).private
        if not public:
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Export {folder.name}")
    except Exception as error:  # the library lets errors of its HTTP client through, which are of no common kind
        raise UserError(f"{repo}: the Hub refused or was not reached ({error}); nothing or a part was sent") from error
    if public:
        raise UserError(f"{repo} is there already and public, so nothing was sent; make it private, or name another")
    return address


def _proposed_name(card: Path) -> str:
    """The card's title, see `card.card_name`."""
    return next(line[2:].strip() for line in card.read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def _listing(folder: Path, repo: str) -> str:
    sizes = {path.relative_to(folder): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    lines = [f"{size:>16,}  {path}" for path, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files for {repo}; nothing was sent"])
