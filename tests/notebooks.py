"""Runs a notebook's code cells as a kernel would, without one."""

import ast
import json
from pathlib import Path
from typing import Any


def read_notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def run_notebook(path: Path) -> dict[str, str]:
    """Run all code cells in one namespace.

    Returns:
      By the cell's id what its last expression shows, as HTML where it has that; empty where there is none.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = {}
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]), cell["id"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        html = getattr(value, "_repr_html_", None)
        shown[cell["id"]] = "" if value is None else html() if html else repr(value)
    return shown
