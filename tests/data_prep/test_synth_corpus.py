"""The synthetic corpus on disk: layout, determinism, and what happens to what was there before."""

import csv
import json
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.errors import UserError
from data_prep.synth import SplitCounts, render_clip, sample_specs, write_corpus

COUNTS = SplitCounts(train=3, validation=1, test=2)
SEED = 7


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("synth") / "corpus"
    assert not write_corpus(directory, COUNTS, SEED, workers=1).reused
    return directory


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    for name, data in contents(corpus).items():
        path = tmp_path / "copy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "copy"


def test_the_layout_is_that_of_the_release(corpus: Path) -> None:
    specs = [spec for split in COUNTS._fields for spec in sample_specs(SEED, split, getattr(COUNTS, split))]
    names = [spec.name for spec in specs]
    assert sorted(p.name for p in (corpus / "video").iterdir()) == sorted(f"{n}.mp4" for n in names)
    assert sorted(p.name for p in (corpus / "audio").iterdir()) == sorted(f"{n}.wav" for n in names)
    faces = sorted(str(p.relative_to(corpus / "openface_face")) for p in corpus.rglob("*.npy"))
    assert faces == sorted(f"{n}/{n}.npy" for n in names)
    subtitles, openset, reasons, splits, latents = (
        table(corpus / f"{name}.csv")
        for name in (
            "subtitle_chieng",
            "track2_train_mercaptionplus",
            "track3_train_mercaptionplus",
            "synth_splits",
            "synth_attributes",
        )
    )
    assert list(subtitles[0]) == ["name", "chinese", "english"]
    assert openset[0] == {"name": names[0], "openset": str(list(specs[0].labels))}
    assert reasons[0] == {"name": names[0], "reason": specs[0].description}
    assert [row["split"] for row in splits] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert all([row["name"] for row in rows] == names for rows in (subtitles, openset, reasons, splits, latents))
    assert float(latents[2]["face_mouth_curve"]) == pytest.approx(specs[2].face.mouth_curve, abs=1e-4)
    assert float(latents[2]["voice_rate"]) == pytest.approx(specs[2].voice.rate, abs=1e-4)
    sheet = cv2.imread(str(corpus / "contact_sheet.png"))
    assert sheet.shape[1] > 1000


def test_the_files_hold_what_was_drawn_and_sung(corpus: Path) -> None:
    spec = sample_specs(SEED, "test", 2)[1]
    frames, faces, sound = render_clip(spec)
    with av.open(str(corpus / "video" / f"{spec.name}.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.average_rate, audio.rate) == (25, 16_000)
        decoded = np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video)])
    # Opened anew, for seeking back may lose the first frame of sound.
    with av.open(str(corpus / "video" / f"{spec.name}.mp4")) as container:
        heard = np.concatenate([block.to_ndarray()[0] for block in container.decode(audio=0)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(float) - frames).mean() < 6
    assert len(heard) >= len(sound)
    assert np.corrcoef(heard[: len(sound)], sound)[0, 1] > 0.97
    with wave.open(str(corpus / "audio" / f"{spec.name}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert np.abs(samples / 32768 - sound).max() <= 1 / 32768
    assert np.array_equal(np.load(corpus / "openface_face" / spec.name / f"{spec.name}.npy"), faces)


def test_the_bytes_do_not_depend_on_the_workers(corpus: Path, tmp_path: Path) -> None:
    seen = []
    write_corpus(tmp_path / "again", COUNTS, SEED, workers=2, on_clip=lambda: seen.append(1))
    assert len(seen) == sum(COUNTS)
    assert contents(tmp_path / "again") == contents(corpus)


def test_a_finished_corpus_is_used_again(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    summary = write_corpus(copy, COUNTS, SEED, workers=1)
    assert summary.reused
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    assert sum(summary.emotions.values()) == sum(COUNTS)


def test_another_corpus_is_replaced_only_when_asked(copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(UserError, match=r"seed 7.*seed 8.*--overwrite"):
        write_corpus(copy, SplitCounts(1, 0, 0), 8, workers=1)
    assert contents(copy) == before
    assert not write_corpus(copy, SplitCounts(1, 0, 0), 8, workers=1, overwrite=True).reused
    assert [path.stem for path in (copy / "video").iterdir()] == [sample_specs(8, "train", 1)[0].name]


@pytest.mark.parametrize("damage", ["missing wav", "truncated mp4", "broken manifest"])
def test_a_damaged_corpus_is_written_anew(copy: Path, corpus: Path, damage: str) -> None:
    if damage == "missing wav":
        next((copy / "audio").iterdir()).unlink()
    elif damage == "truncated mp4":
        path = next((copy / "video").iterdir())
        path.write_bytes(path.read_bytes()[:1000])
    else:
        (copy / "synth_manifest.json").write_text("{")
    assert not write_corpus(copy, COUNTS, SEED, workers=1).reused
    assert contents(copy) == contents(corpus)


def test_what_an_interruption_leaves_is_no_corpus(tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, COUNTS, SEED, workers=1, on_clip=stop)
    assert list(tmp_path.glob("video/*.mp4"))
    assert not (tmp_path / "synth_manifest.json").exists()
    small = SplitCounts(1, 0, 0)
    assert not write_corpus(tmp_path, small, SEED, workers=1).reused
    assert json.loads((tmp_path / "synth_manifest.json").read_text())["counts"] == small._asdict()
    assert len(list(tmp_path.glob("video/*.mp4"))) == 1


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "mine.mp4").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="no synthetic corpus"):
            write_corpus(tmp_path, COUNTS, SEED, workers=1, overwrite=overwrite)
    assert (tmp_path / "video" / "mine.mp4").read_bytes() == b"precious"


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one clip"):
        write_corpus(tmp_path, SplitCounts(0, 0, 0), SEED)
    with pytest.raises(UserError, match="seed -1"):
        write_corpus(tmp_path, COUNTS, -1)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        write_corpus(tmp_path / "file" / "corpus", COUNTS, SEED, workers=1)


def test_the_total_is_shared_among_the_splits() -> None:
    assert SplitCounts.of_total(1500) == (1200, 75, 225)
    assert sum(SplitCounts.of_total(37)) == 37


def test_the_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "corpus")
    assert main(["synth", out, "--clips", "2", "--seed", "1", "--workers", "1"]) == 0
    assert "train clips" in capsys.readouterr().out
    assert main(["synth", out, "--clips", "2", "--train", "1"]) == 2
    assert "--train" in capsys.readouterr().err
    assert main(["synth", out, "--test", "1", "--workers", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["synth", out, "--test", "1", "--workers", "1", "--overwrite"]) == 0
    assert [path.name for path in Path(out, "video").iterdir()] == ["synth0_test_00000.mp4"]
    assert main(["synth", out, "--workers", "0"]) == 2
