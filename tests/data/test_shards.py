"""Shards: what is written, what TFDS reads of it, and everything the reader must refuse."""

import json
import pickle
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from affectgpt_jax.data.shard_records import decode_features
from affectgpt_jax.data.shard_schema import (
    MANIFEST,
    Manifest,
    TextRecord,
    config_name,
    parse_stream,
    read_manifest,
    shard_name,
    stream_directory,
)
from affectgpt_jax.data.shard_writer import publish_stream, write_feature_shard, write_text_shard
from affectgpt_jax.data.shards import RecordFiles, open_corpus
from affectgpt_jax.errors import UserError

SHARDS = {"train": (5, 0, 3), "test": (2,)}  # clips in each; an empty one stands for a range of broken clips
ENCODER = {"encoder": "fake", "weights": "0123", "width": 6}


def _texts(split: str) -> list[TextRecord]:
    return [
        TextRecord(f"{i:04d} 你好", split, f"line {i}", f"第{i}", ("happy", "calm")[: i % 3], f"In the text, {i}.")
        for i in range(sum(SHARDS[split]))
    ]


def _features(split: str, stream: str) -> tuple[np.ndarray, np.ndarray]:
    present = np.arange(sum(SHARDS[split])) % 4 != 1
    rng = np.random.default_rng(len(split) + len(stream))
    features = rng.standard_normal((len(present), parse_stream(stream).count, 6)).astype(np.float16)
    return np.where(present[:, None, None], features, np.float16(0)), present


def _write_text(root: Path) -> Manifest:
    staged = root / "staged"
    splits = {
        split: [
            write_text_shard(staged, split, index, len(lengths), _texts(split)[part])
            for index, part in enumerate(_parts(lengths))
        ]
        for split, lengths in SHARDS.items()
    }
    return publish_stream(staged, root, "text", splits, {"texts": "abc"})


def _write_features(root: Path, stream: str, provenance: dict[str, object] = ENCODER) -> Manifest:
    staged = root / "staged"
    splits = {}
    for split, lengths in SHARDS.items():
        names = [text.name for text in _texts(split)]
        features, present = _features(split, stream)
        splits[split] = [
            write_feature_shard(staged, split, index, len(lengths), names[part], features[part], present[part])
            for index, part in enumerate(_parts(lengths))
        ]
    return publish_stream(staged, root, stream, splits, provenance, (parse_stream(stream).count, 6))


def _parts(lengths: tuple[int, ...]) -> list[slice]:
    return [slice(sum(lengths[:index]), sum(lengths[: index + 1])) for index in range(len(lengths))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A corpus with text and two feature streams."""
    _write_text(tmp_path)
    _write_features(tmp_path, "face@8")
    _write_features(tmp_path, "audio@4")
    return tmp_path


def test_reads_what_was_written(root: Path) -> None:
    for split, lengths in SHARDS.items():
        corpus = open_corpus(root, split, ("face@8", "audio@4"))
        assert len(corpus) == sum(lengths)
        assert corpus.texts() == _texts(split)
        assert corpus.names == tuple(text.name for text in _texts(split))
        order = np.random.default_rng(0).permutation(len(corpus))
        assert corpus.texts(order) == [_texts(split)[i] for i in order]
        assert corpus.text(1) == _texts(split)[1]
        for stream in ("face@8", "audio@4"):
            features, present = corpus.features(stream, order)
            expected, flags = _features(split, stream)
            assert features.dtype == np.float16
            np.testing.assert_array_equal(features, expected[order])
            np.testing.assert_array_equal(present, flags[order])
            np.testing.assert_array_equal(corpus.present(stream), flags)
            assert corpus.provenance(stream) == ENCODER
            assert corpus.shape(stream) == (parse_stream(stream).count, 6)
    with pytest.raises(IndexError, match="there are 2"):
        open_corpus(root, "test").texts([2])


def test_tfds_opens_it_and_reads_the_same(root: Path) -> None:
    corpus = open_corpus(root, "train", ("face@8",))
    builder = tfds.builder_from_directory(stream_directory(root, "face@8"))
    assert builder.info.splits["train"].num_examples == 8
    assert builder.info.splits["train"].shard_lengths == [5, 0, 3]
    features, present = corpus.features("face@8", np.arange(8))
    source = builder.as_data_source(split="train")
    assert [example["name"].decode() for example in source] == list(corpus.names)
    np.testing.assert_array_equal([example["features"] for example in source], features)
    assert [example["present"] for example in source] == present.tolist()
    texts = tfds.data_source("mer_caption/text:1.0.0", data_dir=root, split="train")
    for example, text in zip(texts, corpus.texts(), strict=True):
        decoded = {key: value.decode() for key, value in example.items() if key != "labels"}
        assert TextRecord(**decoded, labels=tuple(label.decode() for label in example["labels"])) == text
    assert len(tfds.data_source("mer_caption/audio_4:1.0.0", data_dir=root, split="test[:50%]")) == 1


def test_same_samples_give_same_bytes_and_streams_are_independent(tmp_path: Path, root: Path) -> None:
    before = _contents(root)
    _write_features(root, "frame@8")
    after = _contents(root)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {path for path in after if "frame_8" in path.parts}
    other = tmp_path / "other"
    _write_text(other)
    _write_features(other, "face@8")
    written = {path: content for path, content in before.items() if "audio_4" not in path.parts}
    assert _contents(other) == written


def _contents(root: Path) -> dict[Path, bytes]:
    files = (root / "mer_caption").rglob("*")
    return {path.relative_to(root): path.read_bytes() for path in files if path.is_file()}


def test_fingerprint_changes_with_the_content(root: Path, tmp_path: Path) -> None:
    opened = open_corpus(root, "train", ("face@8",))
    assert opened.fingerprint == open_corpus(root, "train", ("face@8",), verify=False).fingerprint
    others = [
        open_corpus(root, "train"),
        open_corpus(root, "test", ("face@8",)),
        open_corpus(root, "train", ("audio@4",)),
    ]
    assert len({opened.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_pickles_and_threads(root: Path) -> None:
    corpus = open_corpus(root, "train", ("face@8",))
    expected = corpus.features("face@8", np.arange(8))[0]
    copy = pickle.loads(pickle.dumps(corpus))
    np.testing.assert_array_equal(copy.features("face@8", np.arange(8))[0], expected)
    assert copy.fingerprint == corpus.fingerprint

    def read(seed: int) -> bool:
        order = np.random.default_rng(seed).permutation(8)
        return bool((copy.features("face@8", order)[0] == expected[order]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


@pytest.mark.parametrize(
    ("stream", "config"), [("face@8", "face_8"), ("frame@16.siglip", "frame_16_siglip"), ("text", "text")]
)
def test_stream_names(stream: str, config: str) -> None:
    assert config_name(stream) == config
    if stream != "text":
        assert parse_stream(stream).name == stream


@pytest.mark.parametrize("name", ["face", "face@", "@8", "face@08", "Face@8", "face@8.", "face@8/x", "../face@8"])
def test_bad_stream_name(name: str) -> None:
    with pytest.raises(UserError, match="modality@count"):
        parse_stream(name)


# ---------------------------------------------------------------------------------------------------------------------
# What must be refused


def _shard(root: Path, stream: str = "face@8", split: str = "train", index: int = 0) -> Path:
    return stream_directory(root, stream) / shard_name(split, index, len(SHARDS[split]))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"0002")] ^= 1
    path.write_bytes(bytes(content))


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _edit(root: Path, change: Callable[[dict], None]) -> None:
    path = stream_directory(root, "face@8") / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: _flip(_shard(root)), "checksum .* Delete .* prepare the stream again"),
        (lambda root: _cut_off(_shard(root)), "has .* bytes, expected .* bytes"),
        (lambda root: _shard(root).unlink(), "is missing, expected"),
        (lambda root: (stream_directory(root, "face@8") / MANIFEST).unlink(), "was not written to its end"),
        (lambda root: shutil.rmtree(stream_directory(root, "face@8")), r"no stream 'face@8' .* holds audio_4, text"),
        (lambda root: shutil.rmtree(stream_directory(root, "text")), "no stream 'text'"),
        (lambda root: (stream_directory(root, "face@8") / MANIFEST).write_text("{"), "damaged or of another version"),
        (lambda root: _edit(root, lambda m: m.update(version="0.9.0")), "version 0.9.0, expected"),
        (lambda root: _edit(root, lambda m: m.pop("provenance")), "provenance: Field required"),
        (lambda root: _edit(root, lambda m: m["splits"]["train"][2].update(names="x")), "does not belong to the text"),
        (lambda root: _edit(root, lambda m: m["splits"]["train"].pop()), "train: 5 samples, the text has 8"),
    ],
)
def test_refuses_what_does_not_fit(root: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(root)
    with pytest.raises(UserError, match=message):
        open_corpus(root, "train", ("face@8",))


def test_refuses_streams_of_another_corpus(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHARDS, "train", (5, 3))
    _write_text(root)
    with pytest.raises(UserError, match=r"does not belong to the text there .other samples or another order"):
        open_corpus(root, "test", ("face@8",))


def test_refuses_another_encoder(root: Path) -> None:
    expected = {"face@8": {"encoder": "fake", "weights": "0123"}}
    open_corpus(root, "train", ("face@8",), expect=expected)
    with pytest.raises(UserError, match="made with weights='0123', but the configuration expects '9999'"):
        open_corpus(root, "train", ("face@8",), expect={"face@8": {"encoder": "fake", "weights": "9999"}})
    with pytest.raises(UserError, match="layer='nothing'"):
        open_corpus(root, "train", ("face@8",), expect={"face@8": {"layer": -4}})


def test_refuses_unknown_names(root: Path) -> None:
    with pytest.raises(UserError, match="no split 'training'; the splits are train, validation, test"):
        open_corpus(root, "training")
    with pytest.raises(UserError, match="has no split 'validation', only train, test"):
        open_corpus(root, "validation")
    with pytest.raises(UserError, match=r"'audio@4' of .* is not open"):
        open_corpus(root, "train", ("face@8",)).features("audio@4", [0])


def test_damage_inside_a_shard_is_noticed_on_reading(root: Path) -> None:
    _flip(_shard(root))
    corpus = open_corpus(root, "train", ("face@8",), verify=False)
    with pytest.raises(UserError, match="cannot be read"):
        corpus.features("face@8", np.arange(5))


@contextmanager
def _full_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes; what the system says then is what a full disk says."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full_leaves_no_shard(tmp_path: Path) -> None:
    features = np.ones((100, 8, 768), np.float16)
    names = [f"{i:03d}" for i in range(100)]
    with _full_disk(300_000), pytest.raises(UserError, match="disk is full"):
        write_feature_shard(tmp_path, "train", 0, 1, names, features, np.ones(100, bool))
    assert list(tmp_path.iterdir()) == []


def test_disk_full_in_the_metadata_leaves_no_stream(tmp_path: Path) -> None:
    entry = write_text_shard(tmp_path / "staged", "train", 0, 1, _texts("train"))
    with _full_disk(100), pytest.raises(UserError, match=r"could not be written"):
        publish_stream(tmp_path / "staged", tmp_path, "text", {"train": [entry]}, {})
    with pytest.raises(UserError, match="no stream 'text'"):
        read_manifest(tmp_path, "text")


def test_publishing_wants_whole_shards(tmp_path: Path) -> None:
    entry = write_text_shard(tmp_path / "staged", "train", 0, 1, _texts("train"))
    _cut_off(tmp_path / "staged" / entry.file)
    with pytest.raises(UserError, match="not whole"):
        publish_stream(tmp_path / "staged", tmp_path, "text", {"train": [entry]}, {})


def test_publishing_replaces_a_stream(root: Path) -> None:
    _write_features(root, "face@8", {**ENCODER, "weights": "4567"})
    assert open_corpus(root, "train", ("face@8",)).provenance("face@8")["weights"] == "4567"
    assert sorted(path.name for path in stream_directory(root, "face@8").parent.iterdir()) == ["1.0.0"]


def test_record_files_of_nothing() -> None:
    assert len(RecordFiles([], [])) == 0


@pytest.mark.parametrize("shape", [(8, 768), (1, 3), (64, 1024)])
@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("other", [{}, {"another": b"x"}, {"zoo": b"x"}])
def test_features_are_found_in_any_record(shape: tuple[int, int], present: bool, other: dict[str, bytes]) -> None:
    """By their place where the writer put them, else by parsing."""
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    example = tf_example_pb2.Example()
    fields = example.features.feature
    fields["features"].bytes_list.value.append(values.tobytes())
    fields["present"].int64_list.value.append(int(present))
    fields["name"].bytes_list.value.append("\u4e00 clip".encode() * 30)
    for name, value in other.items():
        fields[name].bytes_list.value.append(value)
    found, flag = decode_features(example.SerializeToString(deterministic=True), shape)
    np.testing.assert_array_equal(np.frombuffer(found, np.float16).reshape(shape), values)
    assert flag == present
