"""A table as terminal text, Markdown and LaTeX."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from affectgpt_jax.unibench.report.tables import Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    }
)


def terminal(table: Table) -> RichTable:
    """A table for a rich console."""
    rendered = RichTable(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(table.note) if table.note else None,
        caption_justify="left",
        box=box.SIMPLE,
    )
    for i, name in enumerate(table.header):
        rendered.add_column(Text(name), justify="left" if i < table.names else "right", no_wrap=True)
    for i, row in enumerate(table.rows):
        if i in table.breaks:
            rendered.add_section()
        rendered.add_row(*map(Text, row))
    return rendered


def print_table(console: Console, table: Table) -> None:
    """Print a table at its own width: numbers are never cut, however narrow the terminal."""
    rendered = terminal(table)
    needed = Measurement.get(console, console.options.update(max_width=1000), rendered).maximum
    Console(width=max(needed, console.width)).print(rendered)


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown; a break between rows has no form there."""
    lines = [
        _markdown_row(table.header),
        _markdown_row([":--" if i < table.names else "--:" for i in range(len(table.header))]),
        *map(_markdown_row, table.rows),
    ]
    note = [_markdown_cell(table.note), ""] if table.note else []
    return "\n".join([f"### {_markdown_cell(table.title)}", "", *lines, "", *note])


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_markdown_cell, cells))} |"


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def latex(table: Table) -> str:
    """A table in LaTeX, as wide as the line; needs the packages booktabs and graphicx."""
    rows = [("\\midrule\n" if i in table.breaks else "") + _latex_row(row) for i, row in enumerate(table.rows)]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_cell(f'{table.title}. {table.note}'.strip())}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * table.names}{'r' * (len(table.header) - table.names)}}}",
        r"\toprule",
        _latex_row(table.header),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    # a row that begins with a bracket would be read as an option of the row break before it
    return f"{{}}{' & '.join(map(_latex_cell, cells))} \\\\"


def _latex_cell(text: str) -> str:
    return text.translate(_LATEX).replace("\n", " ")
