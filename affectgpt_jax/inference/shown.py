"""Answers as a person reads them, in a terminal or a notebook."""

from collections.abc import Iterable
from html import escape

Lines = Iterable[tuple[str, str]]


def as_text(title: str, lines: Lines, limits: str) -> str:
    """A title, named lines, and what the answer is not."""
    named = [*lines, ("limits", limits)]
    width = max(len(name) for name, _ in named)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in named)])


def as_html(title: str, lines: Lines, limits: str) -> str:
    """The same as HTML that needs no style of its own."""
    cell = '<td style="text-align:left;vertical-align:top">'
    rows = "".join(f"<tr>{cell}{escape(name)}</td>{cell}{escape(text)}</td></tr>" for name, text in lines)
    return f"<b>{escape(title)}</b><table>{rows}</table><small>{escape(limits)}</small>"
