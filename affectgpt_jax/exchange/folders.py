"""Folders that are either whole or not there."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from affectgpt_jax.errors import UserError


@contextlib.contextmanager
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that gets its name only when all is written.

    Args:
      out: the folder's name in the end.
      overwrite: replace what is there.

    Yields:
      A hidden folder beside it. If writing fails or is interrupted it is removed, or what is left of it is never taken
      for the real one; an older folder stays until the new one is complete.

    Raises:
      UserError: the folder is there and may not be replaced, or nothing can be written there.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; give --overwrite to replace it, or choose another folder")
    draft = out.parent / f".{out.name}.unfinished"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        if out.exists():
            old = out.parent / f".{out.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
            draft.rename(out)
            shutil.rmtree(old)
        else:
            draft.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); free space or choose another folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
