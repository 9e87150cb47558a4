"""Where words lie: the published wheels, the built-in lexicon, and folders that are not as they should be."""

from pathlib import Path

import pytest

from affectgpt_jax.errors import UserError
from affectgpt_jax.unibench import table_cache
from affectgpt_jax.unibench.lexicon import GROUP_OF, NAME, polarity, small_table
from affectgpt_jax.unibench.official import FILES, explain, parse_files, read_files
from affectgpt_jax.unibench.table_cache import load_official, load_table
from affectgpt_jax.unibench.wheel import LEVELS, RULESETS, WheelTable
from data_prep.synth.vocabulary import EMOTIONS
from tests.unibench.conftest import write_sheet

PUBLISHED_PLACES = {
    "neutral": "- - - - -",
    "worried": "scared fearful scared fear scared",
    "worry": "scared fearful scared fear scared",
    "concerned": "scared fearful scared fear scared",
    "happy": "happy happy joyful joy powerful",
    "joy": "happy happy joyful joy powerful",
    "angry": "mad angry mad anger mad",
    "anger": "mad angry mad anger mad",
    "surprise": "surprised surprised powerful fear -",
    "surprised": "surprised surprised powerful fear -",
    "sad": "sad sad sad sad sad",
    "sadness": "sad sad sad sad sad",
    "disgust": "disgusted disgusted - disgust -",
    "fear": "scared happy joyful genius joyful",
    "excited": "surprised happy joyful genius joyful",
    "calm": "happy happy peaceful joy peaceful",
    "no such word": "- - - - -",
}


@pytest.mark.parametrize("word", PUBLISHED_PLACES)
def test_published_places(word: str, official: WheelTable) -> None:
    found = official.classes_of(word, "reference")
    assert " ".join(name or "-" for name in found) == PUBLISHED_PLACES[word]


def test_published_table(official: WheelTable) -> None:
    assert official.name == "official wheels"
    grouping = official.grouping("reference", "level1")
    assert [len(names) for names in grouping.classes] == [6, 7, 6, 6, 6]
    assert [len(names) for names in official.grouping("reference", "level2").classes] == [36, 41, 36, 48, 36]
    assert grouping.classes[1] == ("angry", "bad", "disgusted", "fearful", "happy", "sad", "surprised")


def test_strict_places(official: WheelTable) -> None:
    assert official.classes_of("fear", "strict") == ("scared", "fearful", "scared", "fear", "scared")
    for ruleset_level in ("level1", "level2", "case1", "case2"):
        assert set(official.classes_of("Neutral ", "strict", ruleset_level)) == {"neutral"}
    # a word that stands on a wheel keeps its own place there
    level1 = official.grouping("strict").classes
    for k, names in enumerate(level1):
        for name in set(names) - {"neutral"}:
            assert official.classes_of(name, "strict")[k] == name


def test_explanation_ends_where_the_table_says(unibench: Path, official: WheelTable) -> None:
    folder = unibench / "emotion_wheel"
    tables = parse_files(read_files(folder), folder)
    for word in ("fear", "excited", "neutral", "frustrated", "calm", "let down", "nowhere"):
        for ruleset in RULESETS:
            places = explain(word, tables, ruleset)
            for i, level in enumerate(("level1", "level2")):
                classes = tuple(place.classes[i] if place else None for place in places)
                assert classes == official.classes_of(word, ruleset, level)
    assert explain("fear", tables, "reference")[1].route == "has the synonym fearless, a form of which is fear"


def test_toy_rules(toy_wheels: Path, tmp_path: Path) -> None:
    table = load_official(toy_wheels, tmp_path / "cache")
    assert "edited" in table.name
    # "radiant" has two owners: grim comes first by alphabet, and wheel 4 has nothing else
    assert table.classes_of("radiance", "reference") == ("dark",) * 5
    assert table.classes_of("gladly", "reference") == ("bright",) * 3 + (None,) + ("bright",)
    # of two places on one wheel the last counts; the published scorer drops words without forms
    assert table.classes_of("merry", "strict") == ("bright", "bright", "bright", None, "dark")
    assert table.classes_of("merry", "reference") == (None,) * 5
    # at level 2 a word of the inner ring takes the alphabetically first class inside it
    assert table.classes_of("dark", "strict", "level2") == ("cross",) * 5
    assert table.classes_of("soured", "reference", "case1") == ("sour",)
    assert table.classes_of("radiance", "reference", "case2") == ("grim",)


def test_lexicon_covers_the_synthetic_corpus() -> None:
    assert [word for words in EMOTIONS.values() for word in words if word not in GROUP_OF] == []
    # the corpus's groups are told apart, but for two kinds of hostility, as on the official wheels
    groups = {name: {GROUP_OF[word] for word in words} for name, words in EMOTIONS.items()}
    assert all(len(found) == 1 for found in groups.values())
    assert groups["sarcastic"] == groups["angry"]
    assert len(set(map(tuple, groups.values()))) == len(EMOTIONS) - 1


def test_lexicon() -> None:
    table = small_table()
    assert table.name == NAME == "affectgpt-small"
    assert table.classes_of(" Joyful", "strict") == table.classes_of("happy", "reference") == ("joy",)
    assert table.classes_of("neutral", "reference") == (None,)
    assert table.classes_of("neutral", "strict") == ("neutral",)
    with pytest.raises(UserError, match=r"affectgpt-small.*level2.*--wheel-dir"):
        table.grouping("strict", "level2")


@pytest.mark.parametrize(
    ("words", "sign"), [(["Happy", "calm", "sad"], 1), (["sad"], -1), (["surprised"], 0), ([], 0), (["unheard"], 0)]
)
def test_polarity(words: list[str], sign: int) -> None:
    assert polarity(words) == sign


def test_default_table(monkeypatch: pytest.MonkeyPatch, toy_wheels: Path) -> None:
    assert load_table().name == NAME
    monkeypatch.setenv("AFFECTGPT_WHEEL_DIR", str(toy_wheels))
    assert load_table().classes_of("gladly", "reference")[0] == "bright"


# ---- the cache


def test_compiled_once(toy_wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_official(toy_wheels, tmp_path / "cache")
    monkeypatch.setattr(table_cache, "parse_files", None)  # calling it again would fail
    again = load_official(toy_wheels, tmp_path / "cache")
    assert again.rows == first.rows
    assert (again.name, again.fingerprint) == (first.name, first.fingerprint)
    for ruleset in RULESETS:
        for level in LEVELS:
            assert again.grouping(ruleset, level).classes == first.grouping(ruleset, level).classes
            assert (again.grouping(ruleset, level).ids == first.grouping(ruleset, level).ids).all()


def test_an_edited_folder_is_compiled_anew(toy_wheels: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load_official(toy_wheels, cache)
    with (toy_wheels / "format.csv").open("a") as file:
        file.write("grim,grimly\n")
    after = load_official(toy_wheels, cache)
    assert before.fingerprint != after.fingerprint
    assert before.classes_of("grimly", "reference")[0] is None
    assert after.classes_of("grimly", "reference")[0] == "dark"


def test_a_broken_or_forbidden_cache_is_no_error(toy_wheels: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_official(toy_wheels, cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert load_official(toy_wheels, cache).classes_of("gladly", "reference")[0] == "bright"
    (tmp_path / "a file").write_text("")
    assert load_official(toy_wheels, tmp_path / "a file").classes_of("gladly", "reference")[0] == "bright"


# ---- folders that are not as they should be


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*github.com/zeroQiaoba/AffectGPT"):
        load_official(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(name: str, toy_wheels: Path, tmp_path: Path) -> None:
    (toy_wheels / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_official(toy_wheels, tmp_path / "cache")


@pytest.mark.parametrize("name", FILES)
def test_garbage_instead_of_a_file(name: str, toy_wheels: Path, tmp_path: Path) -> None:
    (toy_wheels / name).write_bytes(b"\xff\xfe\x00 not a table")
    with pytest.raises(UserError, match=f"{name} is not .*readable|{name} is not a readable"):
        load_official(toy_wheels, tmp_path / "cache")


def test_missing_column_and_empty_ring(toy_wheels: Path, tmp_path: Path) -> None:
    write_sheet(toy_wheels / "wheel2.xlsx", [("level1", "level3"), ("a", "b")])
    with pytest.raises(UserError, match=r"wheel2\.xlsx: expected a column 'level2'"):
        load_official(toy_wheels, tmp_path / "cache")
    write_sheet(toy_wheels / "wheel2.xlsx", [("level1", "level2", "level3"), (None, "a", "b")])
    with pytest.raises(UserError, match=r"wheel2\.xlsx, row 2: a ring is empty"):
        load_official(toy_wheels, tmp_path / "cache")


def test_format_with_other_columns(toy_wheels: Path, tmp_path: Path) -> None:
    (toy_wheels / "format.csv").write_text("word,forms\nglad,gladly\n")
    with pytest.raises(UserError, match=r"format\.csv: expected the columns name, format"):
        load_official(toy_wheels, tmp_path / "cache")
    (toy_wheels / "format.csv").write_text("name,format\nglad,gladly,gladder\n")
    with pytest.raises(UserError, match=r"format\.csv, line 2: expected 2 cells, found 3"):
        load_official(toy_wheels, tmp_path / "cache")
