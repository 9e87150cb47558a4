"""Pieces of HTML; every text that comes in is escaped here and nowhere else."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from affectgpt_jax.inference.report.figures import Picture

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
"""Of all pages, light and dark."""


class Html(str):
    """Text that is markup already."""


class Cell(NamedTuple):
    """A number in a table.

    Attributes:
      text: what it says.
      small: said below it in small letters.
      key: whether the cell is the one to look at.
    """

    text: str
    small: str = ""
    key: bool = False


def text(value: object) -> Html:
    """Anything as markup."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *inside: object, **attributes: str) -> Html:
    """An element; of an attribute's name a trailing underscore is dropped (`class_`), others are dashes."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value
    )
    return Html(f"<{name}{said}>{''.join(map(text, inside))}</{name}>")


def document(title: str, style: str, *body: object) -> str:
    """A page.

    Args:
      title: of its window.
      style: its style sheet.
      *body: what it shows.
    """
    head = [
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        Html(f"<style>\n{style}</style>"),
    ]
    return f'<!doctype html>\n<html lang="en">\n{tag("head", *head)}\n{tag("body", *body)}\n</html>\n'


def section(key: str, title: str, *inside: object) -> Html:
    """A part of the page that the navigation leads to."""
    return Html("\n" + tag("section", tag("h2", title), *inside, id=key))


def facts(items: Mapping[str, object]) -> Html:
    """Names and what they are; those that are empty are left out."""
    rows = (tag("dt", name) + tag("dd", value) for name, value in items.items() if value not in ("", None))
    return tag("dl", Html("".join(rows)), class_="facts")


def table(caption: str, header: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> Html:
    """A table whose rows begin with their name."""
    head = tag("tr", *(tag("th", title, scope="col") for title in header))
    body = (tag("tr", tag("th", name, scope="row"), *map(_cell, cells)) for name, cells in rows)
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _cell(cell: Cell) -> Html:
    return tag("td", cell.text, tag("small", cell.small) if cell.small else "", class_="key" if cell.key else "")


def bars(caption: str, header: Sequence[str], rows: Iterable[tuple[str, Sequence[float | None]]]) -> Html:
    """Shares (0 to 1) as bars side by side, each with its number; None where there is none."""
    head = tag("tr", *(tag("th", title, scope="col") for title in header))
    body = (tag("tr", tag("th", name, scope="row"), *map(_bar, shares)) for name, shares in rows)
    inside = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_="bars")
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _bar(share: float | None) -> Html:
    if share is None:
        return tag("td", "-")
    return tag("td", tag("i", style=f"width:{4 * share:.2f}rem"), tag("span", f"{share:.2f}"))


def listing(items: Iterable[object]) -> Html:
    """A list with dots."""
    return tag("ul", *(tag("li", item) for item in items))


def picture(shown: Picture) -> Html:
    """A drawing that follows the page's light or dark ground."""
    dark, light = _data("image/png", shown.dark), _data("image/png", shown.light)
    width, height = shown.size
    return Html(
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(shown.alt)}" width="{width}" height="{height}"></picture>'
    )


def photograph(jpeg: bytes, alt: str) -> Html:
    """A JPEG."""
    return Html(f'<img src="{_data("image/jpeg", jpeg)}" alt="{escape(alt)}" loading="lazy">')


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
