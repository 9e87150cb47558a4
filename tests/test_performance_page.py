"""The tables of docs/performance.md are what the closed forms give now."""

import pytest

from affectgpt_jax.planning.job import LOADS
from benchmarks import roofline


def test_the_page_shows_what_the_functions_give() -> None:
    before, begin, rest = roofline.PAGE.read_text().partition(roofline.BEGIN)
    shown, end, after = rest.partition(roofline.END)
    assert begin
    assert end
    assert shown == roofline.tables(), "python -m benchmarks.roofline --update"
    # The assumption that plans make about lengths, too.
    assert roofline.LENGTHS.mean() == pytest.approx(LOADS["train"].tokens)
    assert roofline.TARGETS.mean() == pytest.approx(LOADS["train"].targets)
    assert LOADS["answer"].prompt == roofline.PROMPT
    assert "not measured" in before + after
