"""A decoder that crashes costs the clip it was reading, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import parse_stream
from affectgpt_jax.inference.clip_files import Beside, Item, file_item
from affectgpt_jax.inference.predict import Failed, Prediction, predict
from affectgpt_jax.inference.reading import Inputs, ReadingProcesses, read_clip
from data_prep.faces import face_crops
from tests.inference import hostile
from tests.inference.test_predict import FlatEncoders, Oracle, fake_run
from tests.media_files import tone, write_video
from tests.tiny_run import tiny_config

STREAMS = {"face": parse_stream("face@8"), "audio": parse_stream("audio@8")}


def make_clips(folder: Path, *names: str) -> list[Path]:
    sound = np.stack([tone(0.5, 16_000)] * 2)
    return [write_video(folder / f"{name}.mp4", 5, sound=sound) for name in names]


def test_a_crash_costs_its_clip(tmp_path: Path) -> None:
    """Whatever ends the process, others are read, in their order; a process that dies once is not the clip's fault."""
    names = ("a", "segfault_1", "exit_1", "once_1", "b")
    clips = make_clips(tmp_path, *names)
    run, oracle = fake_run(tiny_config(tmp_path, prepare__decode_threads=2, evaluate__batch=2)), Oracle()
    beside = Beside(subtitle="Hi", detect=hostile.find, detector="nobody")
    outcomes = list(predict(run, clips, beside=beside, encoders=FlatEncoders(), answerer=oracle, apart=True))
    assert [outcome.clip for outcome in outcomes] == list(map(str, clips))
    errors = {Path(one.clip).stem: one.error for one in outcomes if isinstance(one, Failed)}
    crashed = "its decoder crashed: the process that read it ended with {}, 2 times"
    assert errors == {
        "segfault_1": crashed.format("SIGSEGV"),
        "exit_1": crashed.format("exit status 3"),
    }
    assert [query.name for query in oracle.queries] == ["a", "once_1", "b"]
    good = next(one for one in outcomes if isinstance(one, Prediction))
    assert good.absent == {"face": f"nobody found no face in {clips[0]}"}


def test_it_reads_what_this_process_reads(tmp_path: Path) -> None:
    """Arrays to the bit, faults in the same words, with the detector that the command line takes along."""
    sound, silent = make_clips(tmp_path, "sound", "silent")
    (tmp_path / "silent.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nWell.\n")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    items = [file_item(path) for path in (sound, silent, broken, tmp_path / "nowhere.mp4")]
    items.append(Item("row 3", ClipFiles(), "", fault="has nothing"))
    crops = face_crops("detect", "")
    beside = Beside(detect=crops.find, detector="cascade")
    processes = ReadingProcesses(beside=beside, streams=STREAMS, text=True)
    try:
        for item in items:
            found = processes(item)
            here = read_clip(item, beside=beside, streams=STREAMS, text=True, tables=dict)
            if isinstance(here, Failed):
                assert found == here
                continue
            assert isinstance(found, Inputs)
            assert found._replace(media={}, seconds=0.0) == here._replace(media={}, seconds=0.0)
            assert found.media.keys() == here.media.keys() == {"audio"}
            np.testing.assert_array_equal(found.media["audio"], here.media["audio"])
        assert len(processes._processes) == 1
        process = processes._processes[0]
    finally:
        processes.close()
    assert process.returncode == 0


def test_a_process_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is about more than a clip, and no clip is blamed."""
    processes = ReadingProcesses(beside=Beside(), streams=STREAMS, text=True)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with exit status 1"):
        processes(file_item(tmp_path / "a.mp4"))
    processes.close()
