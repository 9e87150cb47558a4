"""`affectgpt data` from the command line: what it prints, what it writes, and its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.config import save_config
from data_prep.synth import SplitCounts, write_corpus
from tests.media_files import tone, write_wav
from tests.tiny_run import make_tiny, tiny_config


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", SplitCounts(2, 1, 1), seed=0, workers=1)
    return tmp_path / "corpus"


def test_a_sound_corpus_gives_0(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(corpus), "--json", str(tmp_path / "check.json")]) == 0
    shown = capsys.readouterr()
    assert "4: train 2, validation 1, test 1" in shown.out
    assert "usable: picture 4, sound 4, face 4" in shown.out
    assert shown.out.endswith("found       errors 0, warnings 0, notes 0\n")
    assert shown.err == ""
    assert json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))["topics"]["media"]["facts"]["opened"] == 4


def test_an_error_gives_1_and_is_written(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = sorted((corpus / "audio").iterdir())[0]
    write_wav(wav, tone(0))
    command = ["data", "check", str(corpus), "--json", str(tmp_path / "check.json")]
    assert main(command) == 1
    assert f"error: files that cannot be used: 1 ({wav.stem}: audio/{wav.name}: holds no" in capsys.readouterr().out
    record = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["errors"]) == ("synthetic", 1)


def test_warnings_give_0_and_options_arrive(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(file.stem for file in (corpus / "video").iterdir())[:2]
    (tmp_path / "a.txt").write_text(first)
    (tmp_path / "b.csv").write_text(f"name\n{second}\n")
    options = ["--against", str(tmp_path / "a.txt"), "--against", str(tmp_path / "b.csv"), "--threads", "1"]
    assert main(["data", "check", f"mercaptionplus:{corpus}", *options]) == 1  # it is not 31,327 clips
    assert main(["data", "check", str(corpus), *options, "--fast", "--limit", "3"]) == 0
    shown = capsys.readouterr().out.partition("found")[2]
    assert "3 clips opened, headers only; the other 1 not" in shown
    assert f"warning: clips that a.txt has, too: 1 ({first})" in shown
    assert f"warning: clips that b.csv has, too: 1 ({second})" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no corpus nowhere; expected a folder, a manifest or KIND:PATH"),
        (["{corpus}", "--limit", "0"], "--limit must be at least 1, not 0"),
        (["{corpus}", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["{corpus}", "--json", "no/such/file.json"], "--json no/such/file.json: there is no folder no/such"),
        (["{corpus}", "--against", "nowhere"], "there is no corpus nowhere"),
    ],
)
def test_user_errors_give_2(corpus: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", *(word.format(corpus=corpus) for word in words)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["chekc"], ["check"], ["check", "x", "--limit", "few"], ["check", "x", "y"]])
def test_usage_errors_give_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    assert "usage: affectgpt" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "affectgpt data check clips/manifest.csv --fast" in shown
    assert "Exit status:" in shown


def test_neither_jax_nor_torch_nor_tensorflow_is_loaded(corpus: Path) -> None:
    code = "import sys; from affectgpt_jax.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    words = [sys.executable, "-c", code, "data", "check", str(corpus)]
    loaded = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert "data_prep.check" in loaded
    assert not {"jax", "flax", "torch", "tensorflow"} & set(loaded)


def test_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of the plan that training makes, printed and as JSON; settings can be changed."""
    config = tiny_config(make_tiny(tmp_path))
    save_config(config, tmp_path / "config.yaml")
    words = ["data", "stats", str(tmp_path / "config.yaml")]
    assert main([*words, "--json", str(tmp_path / "stats.json")]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "stats.json").read_text())
    assert record["samples"] == 23
    assert f"a pass: 23 samples, {record['pass_tokens']:,} tokens" in said
    own, single, _ = record["fills"]
    assert (single["rows"], single["positions"]) == (23, 23 * 256)
    assert own["rows"] < 23
    assert own["share"] == pytest.approx(record["pass_tokens"] / own["positions"])
    assert record["pass_steps"] == -(-own["rows"] // 8)
    assert f"the run: 6 steps are {6 / record['pass_steps']:,.1f} passes" in said
    assert main([*words, "data.row_samples=1", "--json", str(tmp_path / "stats.json")]) == 0
    assert json.loads((tmp_path / "stats.json").read_text())["fills"][0]["rows"] == 23
    assert main([*words, "data.shards=/nowhere"]) == 2
