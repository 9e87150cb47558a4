"""Preparation on the workers of an Apache Beam pipeline: the same bytes as without. Needs the extra [beam]."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

import data_prep.mer_caption
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.beam import on_beam, pipeline_options
from data_prep.mer_caption import MerCaption
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import ClipRecord
from tests.data_prep.test_mer_caption import SET, contents, run_command, write_clips, write_streams
from tests.data_prep.test_prepare import FakeEncoders, _clip

pytest.importorskip("apache_beam")

RUNNERS: dict[str, tuple[str, ...]] = {
    "one": (),
    "threads": ("direct_num_workers=2", "direct_running_mode=multi_threading"),
    "processes": ("direct_num_workers=2", "direct_running_mode=multi_processing"),
}
"""Options of the DirectRunner. Only with processes is everything pickled and sent, as on a cluster."""


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Clips for the media, of which two or so make a shard."""
    monkeypatch.setattr(data_prep.mer_caption, "SHARD_BYTES", 1500)
    return write_clips(tmp_path / "clips")


def _made(root: Path, config: str, corpus: str | None = None, options: tuple[str, ...] | None = None) -> Path:
    download_config = tfds.download.DownloadConfig()
    if options is not None:
        download_config.beam_runner, download_config.beam_options = "DirectRunner", pipeline_options(options)
    MerCaption(config=config, data_dir=root, corpus=corpus).download_and_prepare(download_config=download_config)
    return root / "mer_caption" / config / "1.0.0"


@pytest.mark.parametrize("options", RUNNERS.values(), ids=list(RUNNERS))
def test_media_are_those_made_without_beam(tmp_path: Path, clips: str, options: tuple[str, ...]) -> None:
    plain = _made(tmp_path / "plain", "media", clips)
    beam = _made(tmp_path / "beam", "media", clips, options)
    assert contents(beam) == contents(plain)
    assert len(tfds.builder_from_directory(beam).as_data_source(split="train")) == 6


def test_sets_are_those_made_without_beam(tmp_path: Path) -> None:
    places = {"plain": None, "beam": ()}
    for place in places:
        write_streams(tmp_path / place, "text", "face@8", "audio@4")
    plain, beam = (_made(tmp_path / place, SET, None, options) for place, options in places.items())
    assert contents(beam) == contents(plain)


def test_command(tmp_path: Path, clips: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("media", str(tmp_path / "out"), "--corpus", clips, "--beam-runner", "DirectRunner")
    assert run_command(*words, "--beam-option", "direct_num_workers=1") == 0
    assert "│ train │ 6" in capsys.readouterr().out


def _share(records: list[ClipRecord], out: Path, processes: int, process: int) -> None:
    settings = PrepareSettings(
        batch_clips=2, shard_clips=2, progress=False, processes=processes, process=process, streams=("face@8",)
    )
    prepare(records, FakeEncoders(), settings, out)


def test_features_are_those_prepared_without_beam(tmp_path: Path) -> None:
    records = [_clip(tmp_path / "media", f"{number:04d}", "test" if number == 4 else "train") for number in range(5)]
    _share(records, tmp_path / "plain", 1, 0)
    on_beam(partial(range, 3), partial(_share, records, tmp_path / "beam", 3), "DirectRunner")
    written = {path: content for path, content in contents(tmp_path / "plain").items() if "1.0.0" in path}
    assert {path: content for path, content in contents(tmp_path / "beam").items() if "1.0.0" in path} == written
    assert len(open_corpus(tmp_path / "beam", "train", ("face@8",))) == 4


def _nothing() -> list[int]:
    raise UserError("there is nothing; bring something")


def _fail(part: int) -> None:
    raise UserError(f"part {part} is at fault; mend it")


def _crash(part: int) -> None:
    raise ZeroDivisionError("not for users")


@pytest.mark.parametrize("options", [RUNNERS["one"], RUNNERS["threads"]], ids=["one", "threads"])
@pytest.mark.parametrize(
    ("plan", "work", "message"),
    [
        (_nothing, _fail, r"^there is nothing; bring something$"),
        (partial(range, 3, 4), _fail, r"^part 3 is at fault; mend it$"),
    ],
    ids=["plan", "work"],
)
def test_what_a_worker_says_reaches_the_user(
    plan: Callable[[], list[int]], work: Callable[[int], None], message: str, options: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=message):
        on_beam(plan, work, "DirectRunner", pipeline_options(options))


def test_an_unknown_runner_is_refused() -> None:
    with pytest.raises(UserError, match=r"Unexpected pipeline runner: NoRunner\. Valid values are"):
        on_beam(partial(range, 1), _crash, "NoRunner")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError, match="not for users"):
        on_beam(partial(range, 1), _crash, "DirectRunner")


def test_workers_that_do_not_see_the_folder(tmp_path: Path, clips: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_prep.mer_caption, "on_beam", lambda *_: None)
    with pytest.raises(UserError, match=r"holds 0 records, expected 3: the workers do not see this folder"):
        _made(tmp_path / "out", "media", clips, ())
    assert list((tmp_path / "out" / "mer_caption" / "media").iterdir()) == []
