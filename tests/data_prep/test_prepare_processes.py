"""Preparation by several processes, by processes that are killed, and by towers on several devices."""

import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.cli.prepare import share
from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.shard_schema import TextRecord
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import LABELS_FILE, ClipRecord
from data_prep.report import PrepareReport
from data_prep.synth import SplitCounts, write_corpus
from tests.data_prep.test_prepare import FakeEncoders, _contents
from tests.media_files import tone, truncate, write_faces, write_video, write_wav

SETTINGS = PrepareSettings(batch_clips=2, shard_clips=2, decode_threads=1, progress=False)
CLIPS = 14
RANGES = 7  # 6 of train, 1 of test

# Children are forked from a small server that has imported all of this once.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


PAUSE = 0.1
"""Seconds that each call of a tower takes at least, so that a range takes as long."""


class SlowEncoders(FakeEncoders):
    """Towers whose calls take their time."""

    def _called(self, tower: str, inputs: np.ndarray) -> None:
        time.sleep(PAUSE)
        super()._called(tower, inputs)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[ClipRecord]:
    """Clips with names and a folder that hold spaces and Chinese characters; one lacks faces, one is broken."""
    media = tmp_path_factory.mktemp("made") / "影片 与 声音"
    video = write_video(media / "视频 0.mp4", 10, height=48, width=64, sound=tone(0.5, 44_100)[None])
    records = []
    for i in range(CLIPS):
        name = f"片段 {i:02d} (a b)"
        crops = np.random.default_rng(i).integers(0, 256, (10, 9, 8, 3), np.uint8)
        faces = write_faces(media / f"{name}.npy", crops)
        sound = write_wav(media / f"{name}.wav", tone(1 + i / 4, 16_000, 100 + 10 * i))
        text = TextRecord(name, "train" if i < 12 else "test", f"line {i}", "你好", ("happy",), f"In the text, {i}.")
        records.append(ClipRecord(text, ClipFiles(video, sound, None if i == 3 else faces)))
    truncate(records[7].files.faces or Path(), 0.5)
    return records


@pytest.fixture(scope="module")
def whole(clips: list[ClipRecord], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files that one undisturbed process writes."""
    out = tmp_path_factory.mktemp("whole")
    report = prepare(clips, FakeEncoders(), SETTINGS, out)
    assert (report.kept, report.unfinished) == (CLIPS - 1, 0)
    assert [Path(problem.file).name for problem in report.broken] == [f"{clips[7].name}.npy"]
    assert open_corpus(out, "train").names == tuple(clip.name for clip in clips[:12] if clip is not clips[7])
    return _contents(out)


def _leftovers(out: Path) -> list[Path]:
    return list((out / "mer_caption").glob(".*"))


def _child(target: Callable[..., None], *args: Any) -> BaseProcess:
    process = CHILDREN.Process(target=target, args=args)
    process.start()
    return process


def _prepare(clips: list[ClipRecord], settings: PrepareSettings, out: Path, begun: Any = None) -> None:
    if begun is not None:
        begun.set()
    prepare(clips, SlowEncoders(), settings, out)


# ---------------------------------------------------------------------------------------------------------------------
# Processes that share the work


@pytest.mark.parametrize("processes", [2, 3, 10])
def test_processes_write_what_one_would(
    tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes], processes: int
) -> None:
    calls, reports = [], []
    for process in reversed(range(processes)):
        if reports:
            with pytest.raises(UserError, match="no stream 'text'"):
                open_corpus(tmp_path, "train")
        encoders = FakeEncoders()
        shared = replace(SETTINGS, processes=processes, process=process)
        reports.append(prepare(clips, encoders, shared, tmp_path))
        calls.append(len(encoders.calls))
    shares = [len(range(process, RANGES, processes)) for process in reversed(range(processes))]
    assert [count > 0 for count in calls] == [count > 0 for count in shares]
    assert [report.unfinished for report in reports] == [RANGES - sum(shares[: i + 1]) for i in range(processes)]
    assert reports[0].unfinished_clips == 2 * reports[0].unfinished
    assert f"{reports[0].unfinished} shards of {reports[0].unfinished_clips} clips are left" in reports[0].summary()
    assert reports[0].kept + reports[0].unfinished_clips in (CLIPS, CLIPS - 1)
    assert reports[-1].kept == CLIPS - 1
    assert "not done" not in reports[-1].summary()
    assert _contents(tmp_path) == whole
    assert not _leftovers(tmp_path)
    # Who comes late is told what all did together.
    late = prepare(clips, FakeEncoders(), replace(SETTINGS, processes=processes, process=0), tmp_path)
    assert late == reports[-1]


@pytest.mark.slow
def test_processes_side_by_side(tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes]) -> None:
    for attempt in range(3):  # they come to the end, and to the publishing, in any order
        out = tmp_path / str(attempt)
        children = [_child(_prepare, clips, replace(SETTINGS, processes=4, process=i), out) for i in range(4)]
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0] * 4
        assert _contents(out) == whole
        assert not _leftovers(out)
        saved = next((out / "mer_caption").glob("prepare-*.json"))
        assert PrepareReport.model_validate_json(saved.read_bytes()).unfinished == 0


@pytest.mark.slow
def test_all_that_find_the_work_done_publish_it_once(
    tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes]
) -> None:
    """Eight processes come upon a preparation of which everything is done but the publishing."""
    child = _child(_kill_at_event, clips, tmp_path, 0)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert len(_leftovers(tmp_path)) == 1
    children = [_child(_prepare, clips, replace(SETTINGS, processes=8, process=i), tmp_path) for i in range(8)]
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 8
    assert _contents(tmp_path) == whole
    assert not _leftovers(tmp_path)


@pytest.mark.parametrize("afterwards", [1, 2, 3])
def test_what_a_dead_process_left_is_done_by_a_later_call(
    tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes], afterwards: int
) -> None:
    shared = replace(SETTINGS, processes=2)
    dead = _child(_prepare, clips, shared, tmp_path)
    while not list(tmp_path.rglob("journal/*.json")):  # one of its four ranges is done
        assert dead.is_alive()
        time.sleep(0.01)
    dead.kill()
    dead.join()
    report = prepare(clips, FakeEncoders(), replace(shared, process=1), tmp_path)
    assert 0 < report.unfinished < 4
    for process in range(afterwards):
        encoders = FakeEncoders()
        report = prepare(clips, encoders, replace(SETTINGS, processes=afterwards, process=process), tmp_path)
        assert len(encoders.calls) < 10
    assert report.unfinished == 0
    assert _contents(tmp_path) == whole
    assert not _leftovers(tmp_path)


def test_a_corpus_published_meanwhile_is_left_alone(
    tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process does all of the work while another, which was to share it, is in the middle of its first batch."""

    class Overtaken(FakeEncoders):
        def _called(self, tower: str, inputs: np.ndarray) -> None:
            if not self.calls:
                prepare(clips, FakeEncoders(), SETTINGS, tmp_path)
            super()._called(tower, inputs)

    monkeypatch.setattr("data_prep.encode._CALLS", 1)
    report = prepare(clips, Overtaken(), replace(SETTINGS, processes=2, process=1), tmp_path)
    assert (report.kept, report.unfinished) == (CLIPS - 1, 0)
    assert _contents(tmp_path) == whole
    assert not _leftovers(tmp_path)


def test_a_file_system_without_locks(
    tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"has no locks .* prepare with --processes 1"):
        prepare(clips, FakeEncoders(), replace(SETTINGS, processes=2), tmp_path)
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path)
    assert _contents(tmp_path) == whole


def test_process_numbers_are_checked(tmp_path: Path, clips: list[ClipRecord]) -> None:
    for process in (-1, 2):
        with pytest.raises(UserError, match="expected a number from 0 to 1"):
            prepare(clips, FakeEncoders(), replace(SETTINGS, processes=2, process=process), tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Processes that are killed


@pytest.mark.slow
def test_ten_kills_at_random_moments(tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes]) -> None:
    random_moments = random.Random(44)
    moments = [random_moments.uniform(0.0, 2.4 * PAUSE) for _ in range(10)]
    assert sum(moment // PAUSE for moment in moments) < RANGES  # none comes to the end
    for moment in moments:
        begun = CHILDREN.Event()
        child = _child(_prepare, clips, SETTINGS, tmp_path, begun)
        assert begun.wait(30)
        child.join(moment)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        with pytest.raises(UserError, match="no stream 'text'"):
            open_corpus(tmp_path, "train")
    prepare(clips, FakeEncoders(), SETTINGS, tmp_path)
    assert _contents(tmp_path) == whole
    assert not _leftovers(tmp_path)


_KILLING = "os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"


def _kill_at_event(clips: list[ClipRecord], out: Path, number: int, events: Any = None) -> None:
    """Prepares, and dies just before the system call of that number after the first one of the publishing."""
    locks = count = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal locks, count
        locks += event == "fcntl.flock"
        if locks < 2 or event not in (*_KILLING, "fcntl.flock"):
            return
        if events is not None:
            events.value = count
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(watch)
    prepare(clips, FakeEncoders(), SETTINGS, out)


@pytest.mark.slow
def test_kills_at_any_step_of_publishing(tmp_path: Path, clips: list[ClipRecord], whole: dict[str, bytes]) -> None:
    child = _child(_kill_at_event, clips, tmp_path / "done", 0)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    events = CHILDREN.Value("i", 0)
    shutil.copytree(tmp_path / "done", tmp_path / "all")
    child = _child(_kill_at_event, clips, tmp_path / "all", -1, events)
    child.join(30)
    assert child.exitcode == 0
    assert events.value > 30
    for number in sorted(random.Random(21).sample(range(1, events.value), 15)):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "done", out)
        child = _child(_kill_at_event, clips, out, number)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        encoders = FakeEncoders()
        assert prepare(clips, encoders, SETTINGS, out).kept == CLIPS - 1
        assert not encoders.calls
        assert _contents(out) == whole
        assert not _leftovers(out)
        shutil.rmtree(out)


# ---------------------------------------------------------------------------------------------------------------------
# The command


SRUN = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_ID": "0"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ((None, None), {}, (1, 0)),
        ((4, 2), {}, (4, 2)),
        ((None, None), SRUN, (8, 5)),
        ((None, None), MPIRUN, (4, 3)),
        ((None, None), {**SRUN, **MPIRUN}, (4, 3)),  # mpirun inside a step
        ((2, 0), {**SRUN, **MPIRUN}, (2, 0)),
        ((1, None), SRUN, (1, 0)),
        # In a batch script itself, which starts no other task.
        ((None, None), {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "17"}, (1, 0)),
    ],
)
def test_which_process_this_is(
    given: tuple[int | None, int | None], environ: dict[str, str], expected: tuple[int, int]
) -> None:
    assert share(*given, environ) == expected


@pytest.mark.parametrize(
    ("given", "environ", "message"),
    [
        ((4, None), {}, "--processes is given without --process"),
        ((None, 0), {}, "--process is given without --processes"),
        ((4, 4), {}, "expected a number from 0 to 3"),
        ((4, -1), {}, "expected a number from 0 to 3"),
        ((0, 0), {}, "--processes 0"),
        ((None, None), {**MPIRUN, "OMPI_COMM_WORLD_RANK": "x"}, "OMPI_COMM_WORLD_RANK=x in the environment"),
        ((None, None), {**SRUN, "SLURM_PROCID": "8"}, "SLURM_PROCID=8 in the environment"),
    ],
)
def test_process_numbers_that_make_no_sense(
    given: tuple[int | None, int | None], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        share(*given, environ)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A corpus of six clips, and the command that prepares it with towers that cost nothing, two clips a shard."""
    write_corpus(tmp_path / "corpus", SplitCounts(4, 1, 1), seed=0, workers=1)
    monkeypatch.setattr("affectgpt_jax.inference.encoders.Encoders.of", lambda config: FakeEncoders())
    for name in (*SRUN, *MPIRUN):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run.yaml").write_text(f"prepare: {{corpus: {tmp_path / 'corpus'}, shard_clips: 2}}\n")
    return ["prepare", str(tmp_path / "run.yaml"), f"data.shards={tmp_path / 'shards'}"]


def test_command_shares_the_work(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*command, "--processes", "2", "--process", "1"]) == 0
    assert "not done    2 shards of 3 clips are left to other processes" in capsys.readouterr().out
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert main(command) == 0
    assert "not done" not in capsys.readouterr().out
    assert len(open_corpus(tmp_path / "shards", "train", ("face@8", "audio@8"))) == 4
    assert main([*command, "--processes", "2"]) == 2
    assert "without --process" in capsys.readouterr().err


def test_a_trial_stays_apart_from_the_whole(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--limit", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"corpus      {tmp_path / 'shards-first3'}" in printed
    assert "3 listed, 3 kept" in printed
    assert not (tmp_path / "shards").exists()
    assert main(command) == 0
    assert main([*command, "--limit", "3", "--strict"]) == 0  # there already
    whole = open_corpus(tmp_path / "shards", "train", ("face@8",))
    trial = open_corpus(tmp_path / "shards-first3", "train", ("face@8",))
    assert (len(whole), len(trial)) == (4, 3)
    assert trial.names == whole.names[:3]
    np.testing.assert_array_equal(trial.features("face@8", np.arange(3))[0], whole.features("face@8", np.arange(3))[0])
    assert main([*command, "--limit", "0"]) == 2
    assert "--limit 0: expected at least 1" in capsys.readouterr().err


def test_a_corpus_without_clips(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "corpus" / LABELS_FILE
    table.write_text(table.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert main(command) == 2
    assert f"{LABELS_FILE} lists no clip" in capsys.readouterr().err.replace("\n", "")
    assert not (tmp_path / "shards").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Real towers on several devices


_TOWERS = """
import sys, numpy as np, jax
from affectgpt_jax.inference.encoders import Encoders
encoders = Encoders(sys.argv[1] + "/vision", sys.argv[1] + "/audio", batch=6)
rng = np.random.default_rng(0)
vision = encoders.vision(rng.integers(256, size=(11, 40, 40, 3)).astype(np.uint8))
audio = encoders.audio(rng.normal(size=(3, 3, 32000)).astype(np.float32))
devices = {d for leaf in jax.tree.leaves(encoders._vision.params) for d in leaf.sharding.device_set}
np.savez(sys.argv[2], vision=vision, audio=audio, devices=len(devices))
"""


@pytest.mark.slow
def test_towers_use_all_devices(tmp_path: Path) -> None:
    from tests.inference.clip_run import write_towers

    write_towers(tmp_path)
    found = []
    for devices in (1, 4):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        file = tmp_path / f"{devices}.npz"
        subprocess.run([sys.executable, "-c", _TOWERS, str(tmp_path), str(file)], env=environment, check=True)
        with np.load(file) as arrays:
            found.append(dict(arrays))
    assert [int(one["devices"]) for one in found] == [1, 4]
    assert found[0]["vision"].shape == (11, 12)
    for modality in ("vision", "audio"):
        np.testing.assert_allclose(found[1][modality], found[0][modality], rtol=1e-5, atol=1e-5)
