"""What is to be downloaded for an item, and doing so: ask the server, compare with the folder, fetch, check, note."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from affectgpt_jax.disk import free_space
from affectgpt_jax.errors import UserError
from affectgpt_jax.fetch.catalogue import Item, size_text
from affectgpt_jax.fetch.convert import SAFETENSORS, TORCH, to_safetensors
from affectgpt_jax.fetch.download import NoAccessError, Remote, download
from affectgpt_jax.fetch.sums import SUMS, Report, hash_file, read_sums, write_sums
from affectgpt_jax.replacing import replacing

SOURCE = "SOURCE.json"
"""Beside the files: where they are from, at which revision, and what was made of what."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "model*.safetensors",
    "model.safetensors.index.json",
    "LICENSE*",
    "README.md",
)
"""What a model is, without the same weights in other formats."""

Bars = Callable[[str, int], AbstractContextManager[Callable[[str], Report]]]
"""Progress: a stage and the number of its parts give what begins a part, which gives what its bytes are told to."""


@dataclass(frozen=True)
class Plan:
    """An item's files and what is missing of them.

    Attributes:
      item: the item.
      folder: where it goes.
      revision: of the repository; empty where there is none.
      files: all that belong to it.
      here: SHA-256 of those in the folder that are as they should be.
      only: the patterns that they were chosen by.
      headers: of requests for them.
      convert: whether weights are rewritten as safetensors.
    """

    item: Item
    folder: Path
    revision: str
    files: tuple[Remote, ...]
    here: Mapping[str, str]
    only: tuple[str, ...]
    headers: Mapping[str, str]
    convert: bool

    @property
    def missing(self) -> list[Remote]:
        return [file for file in self.files if file.name not in self.here]

    @property
    def need(self) -> int:
        """Bytes on the disk that are still wanted, of files whose size is known."""
        sizes = {file.name: file.size or 0 for file in self.missing}
        begun = sum(_size(self.folder / f"{name}.part") for name in sizes)
        return max(0, sum(sizes.values()) - begun) + (sizes.get(TORCH, 0) if self.convert else 0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def read_source(folder: Path) -> dict[str, Any]:
    """The folder's note of where it is from; empty where there is none or it cannot be read."""
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return source if isinstance(source, dict) else {}


def presence(item: Item, folder: Path) -> str:
    """Whether an item lies in a folder, by names and the note: "yes", "in part", "not by fetch" or "no"."""
    if not folder.is_dir():
        return "no"
    if read_source(folder).get("item") == item.name:
        return "yes" if all((folder / name).is_file() for name in read_sums(folder)) else "in part"
    if not item.model:
        return "not by fetch"
    weights = any(folder.glob("*.safetensors"))
    return "not by fetch" if weights and (folder / "config.json").is_file() else "in part"


def is_complete(item: Item, folder: Path, only: Sequence[str], bars: Bars) -> bool:
    """Whether an earlier call brought all of it and each file still has its checksum. No server is asked."""
    source = read_source(folder)
    sums = read_sums(folder)
    if source.get("item") != item.name or source.get("only") != list(only) or not sums:
        return False
    if not all((folder / name).is_file() for name in sums):
        return False
    with bars("check", len(sums)) as begin:
        return all(hash_file(folder / name, begin(name)).sha256 == digest for name, digest in sums.items())


def make_plan(item: Item, folder: Path, only: Sequence[str], bars: Bars) -> Plan:
    """Ask the server what there is, and look what of it is here.

    Args:
      item: open, or granted on the Hub.
      folder: where it goes; nothing is written.
      only: patterns of file names to take; all if there is none.
      bars: shows the progress of checking.

    Raises:
      NoAccessError: the Hub has not granted it to this account.
      UserError: the server is not reached, or no file fits.
    """
    if item.addresses:
        revision, headers = "", dict[str, str]()
        found = [Remote(name, *address) for name, address in item.addresses.items()]
    else:
        revision, headers, found = _ask_hub(item)
        found = _model_files(item, found) if item.model else [x for x in found if not Path(x.name).name.startswith(".")]
    files = [file for file in found if not only or any(fnmatchcase(file.name, pattern) for pattern in only)]
    if not files:
        names = ", ".join(file.name for file in found[:10]) or "none"
        raise UserError(f"{item.name}: no file fits {' '.join(only)!r}; there are {names}")
    convert = any(file.name == TORCH for file in files) and item.model
    return Plan(
        item, folder, revision, tuple(files), _here(folder, files, bars), tuple(only), headers, convert
    )  # fmt: skip


def _ask_hub(item: Item) -> tuple[str, dict[str, str], list[Remote]]:
    """Commit, headers, and files with what the Hub knows of each."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import build_hf_headers

    api = HfApi()
    try:
        ask = api.dataset_info if item.repo_type == "dataset" else api.model_info
        info = ask(item.repo, files_metadata=True)
        if item.access == "hub" or info.gated:
            api.auth_check(item.repo, repo_type=item.repo_type)
    except GatedRepoError as error:
        raise NoAccessError(f"the Hub has not granted {item.repo} to this account") from error
    except RepositoryNotFoundError as error:
        raise NoAccessError(f"the Hub shows no {item.repo} to this account") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{item.name}: HF_HUB_OFFLINE is set, so the Hub is not asked; unset it and try again"
        ) from error
    except Exception as error:  # the library lets errors of its HTTP client through, which are of no common kind
        raise UserError(
            f"{item.name}: {api.endpoint} was not reached or refused ({error}). Check the connection, set HF_ENDPOINT "
            "to a mirror that you can reach, or copy the folder from a machine that has it"
        ) from error
    files = [
        Remote(
            sibling.rfilename,
            hf_hub_url(
                item.repo, sibling.rfilename, repo_type=item.repo_type, revision=info.sha, endpoint=api.endpoint
            ),
            sibling.size,
            sibling.lfs.sha256 if sibling.lfs else None,
            None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or ()
    ]
    headers = {name: value for name, value in build_hf_headers().items() if name.lower() != "accept-encoding"}
    return info.sha or "", headers, files


def _model_files(item: Item, files: Sequence[Remote]) -> list[Remote]:
    """Config, tokenizer and weights, as safetensors if the owner has such; all at the top of the repository."""
    chosen = [file for file in files if any(fnmatchcase(file.name, name) for name in MODEL_FILES)]
    chosen = [file for file in chosen if "/" not in file.name]
    if any(file.name.endswith(".safetensors") for file in chosen):
        return chosen
    torch = [file for file in files if file.name == TORCH]
    if not torch:
        raise UserError(
            f"{item.name}: {item.repo} has neither safetensors nor {TORCH}; it has "
            f"{', '.join(file.name for file in files)}"
        )
    return chosen + torch


def _here(folder: Path, files: Sequence[Remote], bars: Bars) -> dict[str, str]:
    """SHA-256 of files that lie in the folder and are what the server has, or are made of it."""
    made = read_source(folder).get("made", {})
    sums = read_sums(folder)
    here = {}
    present = [file for file in files if (folder / file.name).is_file()]
    if made.get(SAFETENSORS) and (folder / SAFETENSORS).is_file():
        present += [file for file in files if file.name == TORCH and made[SAFETENSORS] == file.sha256]
    with bars("check", len(present)) as begin:
        for file in present:
            path = folder / file.name
            if path.is_file():
                found = hash_file(path, begin(file.name))
                if not file.differs(found):
                    here[file.name] = found.sha256
            elif hash_file(folder / SAFETENSORS, begin(SAFETENSORS)).sha256 == sums.get(SAFETENSORS):
                here[file.name] = made[SAFETENSORS]
    return here


def carry_out(plan: Plan, bars: Bars) -> None:
    """Download what is missing, check it, and write SHA256SUMS and SOURCE.json.

    Raises:
      NoAccessError: the server refuses a file to this account.
      UserError: the disk is too small, or see `download`.
    """
    folder, missing = plan.folder, plan.missing
    if plan.need > (free := free_space(folder)):
        raise UserError(
            f"{plan.item.name} needs {size_text(plan.need)} more, and the disk of {folder} has {size_text(free)} free; "
            "free some space, or choose another disk with --to"
        )
    sums = dict(plan.here)
    with bars("fetch", len(missing)) as begin:
        for file in missing:
            sums[file.name] = download(file, _inside(folder, file.name), plan.headers, begin(file.name))
    before = read_source(folder) if plan.only else {}
    made = before.get("made", {})
    if plan.convert:
        torch = sums.pop(TORCH)
        if (folder / TORCH).is_file():
            with bars("rewrite as safetensors", 1) as begin:
                to_safetensors(folder, begin(SAFETENSORS))
        made = {SAFETENSORS: torch}
        sums[SAFETENSORS] = hash_file(folder / SAFETENSORS).sha256
    if plan.only:  # what other patterns brought stays listed
        sums = {name: x for name, x in read_sums(folder).items() if (folder / name).is_file()} | sums
    write_sums(folder, sums)
    source = {
        "item": plan.item.name,
        "from": plan.item.repo or plan.item.page,
        "revision": plan.revision,
        "terms": plan.item.terms,
        "only": list(plan.only),
        "made": made,
    }
    with replacing(folder / SOURCE) as draft:
        draft.write_text(json.dumps(source, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; the name is the server's, so it may try to lead out of it."""
    path = folder / name
    if os.path.isabs(name) or ".." in Path(name).parts or name in (SUMS, SOURCE):
        raise UserError(f"the server lists a file {name!r}, which cannot lie in {folder}; nothing of it was fetched")
    return path
