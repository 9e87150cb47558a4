"""Feature shards of the synthetic scenes: determinism, what there is to learn, and what happens to what was there."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.data.tokenizer import open_tokenizer
from affectgpt_jax.errors import UserError
from data_prep.synth import SplitCounts, features
from data_prep.synth.babble import draw_babble, entropy, words
from data_prep.synth.features import COUNT, STREAMS, WIDTH, directions, draw_features, draw_samples, write_features
from data_prep.synth.vocabulary import EMOTIONS

COUNTS = SplitCounts(train=300, validation=20, test=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "data"
    assert not write_features(folder, COUNTS, 3).reused
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_shards_are_a_corpus(folder: Path) -> None:
    for split, count in COUNTS._asdict().items():
        corpus = open_corpus(str(folder), split, tuple(STREAMS), expect={name: {"width": WIDTH} for name in STREAMS})
        assert len(corpus) == count
        assert corpus.shape("face@8") == (COUNT, WIDTH)
        assert corpus.present("audio@8").all()
        texts = corpus.texts(np.arange(count))
        assert [text.name for text in texts] == [f"features3_{split}_{i:07d}" for i in range(count)]
        assert {text.labels[0] for text in texts} == set(EMOTIONS)
        assert all(text.description.startswith("In the text, ") and text.subtitle for text in texts)
    assert open_tokenizer(folder / "tokenizer").size == 1024


def test_a_larger_corpus_begins_with_the_smaller_one() -> None:
    few, many = draw_samples(3, "train", 0, 10), draw_samples(3, "train", 0, 50)
    assert many[:10] == few
    for name in STREAMS:
        short, long = (draw_features(3, "train", 0, name, [scene for scene, _ in samples]) for samples in (few, many))
        assert np.array_equal(short, long[:10])
    assert draw_samples(3, "train", 1, 10) != few
    assert draw_samples(4, "train", 0, 10) != few


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    for workers in (1, 2):
        write_features(tmp_path / str(workers), SplitCounts(4100, 0, 0), workers=workers, on_samples=told.append)
    assert told == [4096, 4] * 2
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_features_of_one_seed_teach_another() -> None:
    """The nearest direction tells voice and expression; entries alone do not."""
    samples = draw_samples(1, "train", 0, 500), draw_samples(2, "test", 0, 500)
    for name, values in STREAMS.items():
        read = (lambda scene: scene.face) if name.startswith("face") else (lambda scene: scene.voice)
        means, truths = [], []
        for seed, split, drawn in ((1, "train", samples[0]), (2, "test", samples[1])):
            scenes = [scene for scene, _ in drawn]
            means.append(draw_features(seed, split, 0, name, scenes).astype(np.float32).mean(1))
            truths.append(np.array([values.index(read(scene)) for scene in scenes]))
        learned = np.stack([means[0][truths[0] == value].mean(0) for value in range(len(values))])
        found = np.argmin(((means[1][:, None] - learned) ** 2).sum(-1), axis=1)
        assert (found == truths[1]).mean() > 0.99
        one = np.argmin((means[1][:, None, :1] - learned[:, :1]) ** 2, axis=1)[:, 0]
        assert (one == truths[1]).mean() < 0.8
        np.testing.assert_allclose(learned, directions(name, values), atol=0.4)


def test_finished_features_are_used_again(folder: Path) -> None:
    before = files(folder)
    assert write_features(folder, COUNTS, 3).reused
    assert files(folder) == before


def test_other_features_are_replaced_only_when_asked(tmp_path: Path) -> None:
    small = SplitCounts(5, 0, 2)
    write_features(tmp_path, small, 1)
    with pytest.raises(UserError, match=r"seed 1.*seed 2.*--overwrite"):
        write_features(tmp_path, small, 2)
    assert not write_features(tmp_path, small, 2, overwrite=True).reused
    assert open_corpus(str(tmp_path), "test", tuple(STREAMS)).texts(np.arange(1))[0].name == "features2_test_0000000"


def test_nothing_else_is_written_over(tmp_path: Path) -> None:
    from tests.tiny_run import make_shards

    make_shards(tmp_path, {"train": 2})
    with pytest.raises(UserError, match="not written; choose another folder"):
        write_features(tmp_path, COUNTS, overwrite=True)
    with pytest.raises(UserError, match="at least one sample"):
        write_features(tmp_path / "none", SplitCounts(0, 0, 0))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["synth", str(tmp_path / "data"), "--features", "--train", "6"]
    assert main(words) == 0
    assert "6 samples written in" in capsys.readouterr().out
    assert main(words) == 0
    assert "6 samples found in" in capsys.readouterr().out
    assert features.SHARD == 4096


def test_babble_ends_descriptions_and_changes_nothing_else(tmp_path: Path) -> None:
    plain, longer = draw_samples(3, "train", 0, 50), draw_samples(3, "train", 0, 50, babble=12)
    for (scene, text), (same, more) in zip(plain, longer, strict=True):
        assert same == scene
        assert more._replace(description=text.description) == text
        said = more.description.removeprefix(text.description + " The person mutters ").removesuffix(".").split()
        assert len(said) == 12
        assert set(said) <= set(words())
    assert draw_samples(3, "validation", 0, 1, babble=12)[0][1].description != longer[0][1].description
    write_features(tmp_path, SplitCounts(8, 4, 4), babble=12)
    assert "mutters" in open_corpus(str(tmp_path), "train", tuple(STREAMS)).texts(np.arange(1))[0].description
    with pytest.raises(UserError, match="babble 12, not"):
        write_features(tmp_path, SplitCounts(8, 4, 4))
    with pytest.raises(UserError, match="no negative"):
        write_features(tmp_path / "other", SplitCounts(8, 4, 4), babble=-1)
    assert main(["synth", str(tmp_path / "clips"), "--babble", "3", "--clips", "4"]) == 2


def test_babble_is_a_language_of_the_entropy_it_says() -> None:
    """Counted from what is drawn: pairs of words, Miller and Madow's correction for rare ones."""
    text = draw_babble(200_000, np.random.default_rng(5)).split()
    place = {word: i for i, word in enumerate(words())}
    counts = np.zeros((len(place), len(place)))
    np.add.at(counts, ([place[word] for word in text[:-1]], [place[word] for word in text[1:]]), 1)
    after = counts.sum(1)
    shares = counts / after[:, None]
    found = -np.sum(shares * np.log(np.where(shares, shares, 1)), axis=1) + ((counts > 0).sum(1) - 1) / (2 * after)
    assert float(found @ after / after.sum()) == pytest.approx(entropy(), abs=0.03)
    alone = after / after.sum()
    assert -alone @ np.log(alone) > entropy() + 1  # without the word before much less is known
