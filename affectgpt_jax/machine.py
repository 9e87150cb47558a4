"""What this process may use of its machine: cores, and files that it has to itself."""

import errno
import fcntl
import os
from typing import IO, Any


class NoLocks(Exception):
    """The file system has no locks."""


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lock(file: IO[Any], *, wait: bool) -> bool:
    """Take an open file for this process alone, until it is closed or the process ends, however it ends.

    Args:
      file: that stands for some work.
      wait: until whoever has it gives it up.

    Returns:
      Whether it is taken; always if it waits.

    Raises:
      NoLocks: nothing is known of other processes.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        raise NoLocks(error.strerror) from error
    return True
