"""Files that are there whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from affectgpt_jax.errors import UserError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, flushed to disk, when the block ends well.

    Processes of any number of machines may write the same file at the same time; the last one stays.

    Raises:
        UserError: the disk is full or the file cannot be written. The temporary file is gone then.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # array_record and torch raise RuntimeError for all of their own
        full = getattr(error, "errno", None) in _NO_SPACE or any(os.strerror(code) in str(error) for code in _NO_SPACE)
        remedy = "The disk is full: free some space and run it again; what is finished is kept." if full else ""
        raise UserError(f"{path} could not be written: {error}. {remedy}".rstrip()) from error
    finally:
        temporary.unlink(missing_ok=True)
