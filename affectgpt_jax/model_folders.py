"""Model folders by name: a folder's path, or OWNER/NAME of what lies in the Hugging Face Hub's cache."""

import re
from pathlib import Path

from affectgpt_jax.errors import UserError


def model_folder(name: str | Path) -> Path:
    """The folder that a name stands for. Nothing is downloaded.

    Args:
      name: a folder, or OWNER/NAME on the Hub.

    Raises:
      UserError: no such folder, and nothing of that name was downloaded from the Hub.
    """
    if not _on_hub(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise UserError(
            f"{name}: neither a folder nor a model in the Hub's cache; `hf download {name}` fetches the latter"
        ) from error


def hub_name(name: str | Path) -> str | None:
    """OWNER/NAME of what `model_folder` finds in the Hub's cache; no other folder says where it is from: None."""
    if _on_hub(name):
        return str(name)
    cached = [part for part in Path(name).parts if part.startswith("models--")]
    return cached[0].removeprefix("models--").replace("--", "/") if cached else None


def short_name(name: str | Path) -> str:
    """OWNER/NAME, or the last part of a folder's path."""
    return hub_name(name) or Path(name).name


def _on_hub(name: str | Path) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name))) and not Path(name).exists()
