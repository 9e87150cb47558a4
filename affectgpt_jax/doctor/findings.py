"""What is asked, what a check finds, and how a check is run so that no other one suffers from it."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from affectgpt_jax.config import RunConfig
from affectgpt_jax.errors import UserError

R = TypeVar("R")
Status = Literal["ok", "warning", "fault", "skipped"]


class Finding(NamedTuple):
    """What a check has found out about one thing.

    Attributes:
      area: the thing: a part of the machine, or a key of the config.
      status: `fault` if a run would fail or give something wrong, `warning` if it might.
      found: what was found.
      remedy: one line, something to type or to set; empty where nothing is to be done.
    """

    area: str
    status: Status
    found: str
    remedy: str = ""


def _silent(title: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def _no_corpora(name: str) -> int:
    raise UserError(f"prepare.corpus={name}: nothing here reads corpora")


@dataclass(frozen=True)
class Question:
    """What is to be examined.

    Attributes:
      config: the run, as it was read; None asks about the machine alone.
      unreadable: why there is no config, if one was named.
      name: what `config` was called, for remedies.
      devices: how many the run will have, if that is on another machine; None takes what is here.
      wheel_dir: the official emotion wheels; None looks where the environment says.
      fast: neither hash files nor measure.
      clips: counts the clips of a corpus; raises `UserError` if it cannot be read.
      begin: told what takes long by a title; returns what its progress (done, in all) is told to.
    """

    config: RunConfig | None = None
    unreadable: str = ""
    name: str = "CONFIG"
    devices: int | None = None
    wheel_dir: Path | None = None
    fast: bool = False
    clips: Callable[[str], int] = _no_corpora
    begin: Callable[[str], Callable[[int, int], None]] = _silent


Check = Callable[[Question], Iterable[Finding]]


def examine(area: str, check: Check, question: Question) -> Iterator[Finding]:
    """Run one check, whatever becomes of it.

    Args:
      area: its name, for what it did not mean to find.
      check: the check.
      question: what is to be examined.
    """
    try:
        yield from check(question)
    except UserError as error:
        yield fault(area, error)
    except Exception as error:  # a check that breaks is a finding, and keeps no other from running
        reason = str(error).strip().splitlines()
        yield Finding(
            area,
            "fault",
            f"the check itself failed: {type(error).__name__}: {reason[0] if reason else 'no reason given'}",
            "see what it names; if that is as it should be, report it as a bug of affectgpt doctor",
        )


def fault(area: str, error: UserError, remedy: str = "", status: Status = "fault") -> Finding:
    """An error as a finding. Without another remedy it is the one that its message ends with.

    Args:
      area: what it is about.
      error: its message says what is wrong, then what to do, after a semicolon or as sentences of their own.
      remedy: a better one, such as a command.
      status: how bad it is.
    """
    message = " ".join(str(error).split())
    if parts := re.fullmatch(r"(.+)\. ([A-Z].*)", message) or re.fullmatch(r"(.+); (.+)", message):
        return Finding(area, status, parts[1], remedy or parts[2].removesuffix("."))
    return Finding(area, status, message, remedy or "mend what it names")


THREAD = "doctor"


def within(seconds: float, work: Callable[[], R]) -> R:
    """The result of work that may never come back, as drivers, collectives and name servers do.

    Args:
      seconds: how long to wait; then its thread is left behind (`left_behind`).
      work: the work.

    Raises:
      TimeoutError: it took longer.
      Exception: whatever it raised.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name=THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    result: R = results[0]
    return result


def left_behind() -> bool:
    """Whether something hangs that `within` has given up; a process that has such a thread may not end by itself."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def amount(count: float) -> str:
    """Bytes in words."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} bytes"
