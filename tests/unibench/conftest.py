"""Shared pieces: the released predictions and wheels where they lie, and a toy wheel folder of our own."""

from pathlib import Path

import openpyxl
import pytest

from affectgpt_jax.unibench.table_cache import load_official
from affectgpt_jax.unibench.wheel import WheelTable
from tests.conftest import reference_folder


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, or sees the user's wheel folder."""
    monkeypatch.setenv("AFFECTGPT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("AFFECTGPT_WHEEL_DIR", raising=False)


@pytest.fixture(scope="session")
def unibench() -> Path:
    return reference_folder("AFFECTGPT_UNIBENCH", "../shared/unibench")


@pytest.fixture(scope="session")
def official(unibench: Path, tmp_path_factory: pytest.TempPathFactory) -> WheelTable:
    return load_official(unibench / "emotion_wheel", tmp_path_factory.getbasetemp() / "cache")


def write_sheet(path: Path, rows: list[tuple[str | None, ...]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


@pytest.fixture
def toy_wheels(tmp_path: Path) -> Path:
    """Five small wheels: the first three alike, the fourth without "glad", the fifth with one word in two places."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    header = ("level1", "level2", "level3")
    plain = [
        header,
        ("Bright ", "Glad", "Sunny"),
        (None, None, "Merry"),
        ("Dark", "Gloomy", "Grim"),
        (None, "Cross", "Sour"),
    ]
    for k in (1, 2, 3):
        write_sheet(folder / f"wheel{k}.xlsx", plain)
    write_sheet(folder / "wheel4.xlsx", [header, *plain[3:]])
    write_sheet(folder / "wheel5.xlsx", [*plain, (None, None, "Merry")])
    runs = [f"{kind}_run{i}" for i in range(1, 9) for kind in ("word", "synonym")]
    write_sheet(folder / "synonym.xlsx", [tuple(runs), ("Sunny", "radiant, Beaming") * 8, ("grim", "radiant") * 8])
    forms = ['glad,"glad,gladly"', "sunny,sunny", 'radiant,"radiant,radiance"', "beaming,", 'sour,"sour,soured"']
    (folder / "format.csv").write_text("name,format\n" + "\n".join(forms) + "\n")
    return folder
