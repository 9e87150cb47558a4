"""Face crops from videos: which frames and which face, what becomes of it, and the detectors themselves."""

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

import data_prep.faces
from affectgpt_jax.data.clips import ClipFiles
from affectgpt_jax.data.media import MediaError, read_frames
from affectgpt_jax.data.shard_schema import TextRecord, parse_stream, read_manifest
from affectgpt_jax.data.shards import open_corpus
from affectgpt_jax.errors import UserError
from data_prep.faces import Cascade, FaceCrops, Faces, YuNet, detect_faces, face_crops
from data_prep.prepare import PrepareSettings, prepare
from data_prep.readers import ClipRecord
from tests.data_prep.test_prepare import FakeEncoders
from tests.media_files import rotate_metadata, tone, truncate, write_faces, write_video, write_wav

SETTINGS = PrepareSettings(streams=("face@8", "audio@8"), batch_clips=2, shard_clips=2, progress=False)


class Bright:
    """Calls every frame with a bright patch a face, which is where the patch is."""

    provenance: Mapping[str, Any] = {"detector": "bright", "detector_data": "0123"}

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        return [self._find(frame.min(2) > 128) for frame in frames]

    @staticmethod
    def _find(bright: np.ndarray) -> Faces:
        count, _, boxes, _ = cv2.connectedComponentsWithStats(bright.astype(np.uint8))
        return Faces(boxes[1:count, :4].astype(np.float32), np.ones(count - 1, np.float32))


def _patches(
    path: Path, frames: int, boxes: Mapping[int, Sequence[tuple[int, int, int]]], size: tuple[int, int]
) -> Path:
    """A grey video in which frames have white squares, each left, top, side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "10"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), 40, np.uint8)
            for left, top, side in boxes.get(i, ()):
                picture[top : top + side, left : left + side] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _white(crop: np.ndarray) -> float:
    """Share of a crop that is bright."""
    return float((crop.min(2) > 128).mean())


# ---------------------------------------------------------------------------------------------------------------------
# From videos to crops


def test_the_largest_face_is_cut_out_as_a_square_with_a_margin(tmp_path: Path) -> None:
    boxes = [(20, 30, 40), (120, 60, 80)]
    video = _patches(tmp_path / "a.mp4", 4, dict.fromkeys(range(4), boxes), (256, 192))
    crops = detect_faces(video, 4, Bright()).crops
    assert crops.shape == (4, 112, 112, 3)
    assert crops.dtype == np.uint8
    for crop in crops:  # 80 of 96 pixels in each direction
        assert _white(crop) == pytest.approx((80 / 96) ** 2, abs=0.03)
        assert crop[:7].max() < 128
        assert crop[:, :7].max() < 128
        assert crop[12:-12, 12:-12].min() > 128


def test_what_lies_beyond_the_frame_is_black(tmp_path: Path) -> None:
    video = _patches(tmp_path / "a.mp4", 2, {0: [(0, 0, 80)], 1: [(0, 0, 80)]}, (256, 192))
    crop = detect_faces(video, 2, Bright()).crops[0]
    assert crop[:7].max() == crop[:, :7].max() == 0  # 8 of 96 pixels
    assert crop[-6:, -6:].min() > 20


def test_frames_are_those_that_the_reference_picks_of_a_crop_for_each_frame(tmp_path: Path) -> None:
    """With a face in each frame, whose place tells the frame, the crops are those of frames evenly spread."""
    wide = {i: [(8 * i, 20, 24)] for i in range(20)}
    video = _patches(tmp_path / "a.mp4", 20, wide, (256, 96))
    shown: list[int] = []

    class Watching(Bright):
        def __call__(self, frames: np.ndarray) -> list[Faces]:
            found = super().__call__(frames)
            shown.extend(round(float(faces.boxes[0, 0]) / 8) for faces in found)
            return found

    crops = FaceCrops("detect", Watching()).media(ClipFiles(video=video), parse_stream("face@4"))
    assert shown == [0, 2, 5, 7, 10, 12, 15, 17]
    assert shown[::2] == [0, 5, 10, 15] == np.arange(0, 20, 20 / 4).astype(int).tolist()
    assert crops is not None
    assert crops.shape == (4, 224, 224, 3)


def test_frames_without_a_face_are_left_out(tmp_path: Path) -> None:
    video = _patches(tmp_path / "a.mp4", 16, {2: [(10, 10, 30)], 3: [(100, 50, 60)]}, (192, 144))
    assert detect_faces(video, 16, Bright()).frames == (2, 3)
    reader = FaceCrops("detect", Bright())
    found = reader.find(ClipFiles(video=video), 8)
    assert found is not None
    crops = found.crops
    assert found.frames == (2, *[3] * 7)
    np.testing.assert_allclose(found.boxes[:2], [(10, 10, 30, 30), (100, 50, 60, 60)], atol=2)
    assert found.boxes[2:] == found.boxes[1:2] * 6
    assert crops.shape == (8, 224, 224, 3)  # the last is repeated, as it is of a short file
    np.testing.assert_array_equal(crops[1:], np.broadcast_to(crops[1], crops[1:].shape))
    nobody = _patches(tmp_path / "b.mp4", 16, {}, (192, 144))
    assert reader.find(ClipFiles(video=nobody), 8) is None


def test_all_faces_of_frames(tmp_path: Path) -> None:
    """From the largest to the smallest; a face that is boxed several times is one."""
    video = _patches(tmp_path / "a.mp4", 4, {1: [(20, 30, 40), (120, 60, 80)], 3: [(5, 5, 30)]}, (256, 192))
    frames = read_frames(video, indices=range(4), size=192)[:, :144]
    found = FaceCrops("detect", Bright()).find_all(range(10, 14), frames, 0.5)
    assert found.frames == (11, 11, 13)
    assert found.crops.shape == (3, 112, 112, 3)
    assert found.boxes[0][2] > found.boxes[1][2] > found.boxes[2][2] > 40

    class Nested(Bright):
        @staticmethod
        def _find(bright: np.ndarray) -> Faces:
            boxes = [(10, 10, 20, 20), (0, 0, 40, 40), (35, 0, 20, 20), (32, 32, 10, 10)]
            return Faces(np.array(boxes, np.float32), np.ones(4, np.float32))

    found = FaceCrops("detect", Nested()).find_all([7], frames[:1], 1.0)
    assert found.boxes == ((0, 0, 40, 40), (35, 0, 20, 20))
    with pytest.raises(ValueError, match="needs a detector"):
        FaceCrops().find_all([7], frames[:1], 1.0)


def test_frames_are_upright_and_not_larger_than_need_be(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    class Watching(Bright):
        def __call__(self, frames: np.ndarray) -> list[Faces]:
            seen.append(frames)
            return super().__call__(frames)

    for degrees, shape in ((0, (48, 64)), (90, (64, 48)), (180, (48, 64)), (270, (64, 48))):
        corner = _patches(tmp_path / f"{degrees}.mp4", 4, {frame: [(0, 0, 20)] for frame in range(4)}, (64, 48))
        video = rotate_metadata(corner, degrees)
        detect_faces(video, 4, Watching())
        assert seen[-1].shape == (4, *shape, 3)
        expected = read_frames(video, 4, size=64)  # turned by FFmpeg, and scaled by another filter
        scaled = np.stack([cv2.resize(frame, (64, 64)) for frame in seen[-1]])
        assert np.abs(scaled.astype(int) - expected).mean() < 6
        assert np.abs(np.rot90(scaled, 1, (1, 2)).astype(int) - expected).mean() > 20
    detect_faces(write_video(tmp_path / "large.mp4", 2, height=360, width=1600), 2, Watching())
    assert seen[-1].shape == (2, 288, 1280, 3)


def test_what_cannot_be_read_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    reader = FaceCrops("detect", Bright())
    assert reader.find(ClipFiles(), 8) is None
    assert (
        reader.find(ClipFiles(video=write_video(tmp_path / "sound.mp4", 0, sound=tone(0.5, 44_100)[None])), 8) is None
    )
    broken = truncate(write_video(tmp_path / "broken.mp4"), 0.5)
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        reader.find(ClipFiles(video=broken), 8)


# ---------------------------------------------------------------------------------------------------------------------
# In preparation


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ClipRecord]:
    """Four clips: 0 and 1 with stored crops, 2 with a face in its video only, 3 with none; all but 3 show a face."""
    monkeypatch.setattr(data_prep.faces, "Cascade", Bright)
    records = []
    for i in range(4):
        name = f"{i:04d}"
        stored = write_faces(tmp_path / f"{name}.npy", np.full((9, 8, 8, 3), 10 * (i + 1), np.uint8)) if i < 2 else None
        shown = {} if i == 3 else {frame: [(30, 20, 50)] for frame in range(16)}
        video = _patches(tmp_path / f"{name}.mp4", 16, shown, (128, 96))
        sound = write_wav(tmp_path / f"{name}.wav", tone(1.0))
        records.append(ClipRecord(TextRecord(name, "train"), ClipFiles(video, sound, stored)))
    return records


def _faces(out: Path) -> tuple[np.ndarray, np.ndarray]:
    return open_corpus(out, "train", ("face@8",)).features("face@8", np.arange(4))


def test_policies(tmp_path: Path, clips: list[ClipRecord]) -> None:
    made = {}
    for policy, present, detected in (
        ("files", [True, True, False, False], {}),
        ("detect", [True, True, True, False], {"face@8": 3}),
        ("files_or_detect", [True, True, True, False], {"face@8": 1}),
    ):
        settings = PrepareSettings(**{**vars(SETTINGS), "faces": policy})
        report = prepare(clips, FakeEncoders(), settings, tmp_path / policy)
        made[policy], flags = _faces(tmp_path / policy)
        assert flags.tolist() == present
        assert report.detected == detected
        assert ("detected    face@8" in report.summary()) == bool(detected)
        assert report.present == {"face@8": sum(present), "audio@8": 4}
    np.testing.assert_array_equal(made["files_or_detect"][:2], made["files"][:2])
    np.testing.assert_array_equal(made["files_or_detect"][2], made["detect"][2])
    assert (made["detect"][:2] != made["files"][:2]).any()
    crops = FaceCrops("detect", Bright()).media(clips[2].files, parse_stream("face@8"))
    assert crops is not None
    np.testing.assert_array_equal(made["detect"][2], FakeEncoders().vision(crops).astype(np.float16))


def test_a_stored_file_that_is_broken_is_told_and_not_replaced(tmp_path: Path, clips: list[ClipRecord]) -> None:
    write_faces(tmp_path / "0001.npy", np.zeros(3, np.uint8))
    settings = PrepareSettings(**{**vars(SETTINGS), "faces": "files_or_detect"})
    report = prepare(clips, FakeEncoders(), settings, tmp_path / "out")
    assert [Path(problem.file).name for problem in report.broken] == ["0001.npy"]
    assert open_corpus(tmp_path / "out", "train").names == ("0000", "0002", "0003")


def test_a_stream_names_its_detector_and_is_never_mixed(
    tmp_path: Path, clips: list[ClipRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(**changes: Any) -> PrepareSettings:
        return PrepareSettings(**{**vars(SETTINGS), **changes})

    out = tmp_path / "out"
    prepare(clips, FakeEncoders(), settings(), out)
    stored = read_manifest(out, "face@8").provenance
    assert not {"faces", "detector", "detected"} & set(stored)
    with pytest.raises(UserError, match=r"was prepared otherwise: detected is None there"):
        prepare(clips, FakeEncoders(), settings(faces="files_or_detect"), out)
    report = prepare(clips, FakeEncoders(), settings(faces="files_or_detect", overwrite=True), out)
    assert "face@8" in report.written
    mixed = read_manifest(out, "face@8").provenance
    assert (mixed["faces"], mixed["detector"], mixed["detector_data"]) == ("files_or_detect", "bright", "0123")
    assert mixed["preprocessing"] == stored["preprocessing"]
    assert "2 frames for each crop" in mixed["detected"]
    assert "faces" not in read_manifest(out, "audio@8").provenance
    monkeypatch.setattr(Bright, "provenance", {"detector": "bright", "detector_data": "4567"})
    with pytest.raises(UserError, match="detector_data is '0123' there and '4567' now"):
        prepare(clips, FakeEncoders(), settings(faces="files_or_detect"), out)
    # A stream of detected crops may stand beside that of stored ones.
    joined = prepare(clips, FakeEncoders(), settings(faces="detect", streams=("face@8.detected",)), out)
    assert joined.written == ("face@8.detected",)
    assert read_manifest(out, "face@8.detected").provenance["preprocessing"] != stored["preprocessing"]


def test_a_detector_is_opened_only_if_it_is_needed(tmp_path: Path, clips: list[ClipRecord]) -> None:
    settings = PrepareSettings(
        **{**vars(SETTINGS), "streams": ("audio@8",), "faces": "detect", "detector": str(tmp_path / "no.onnx")}
    )
    assert prepare(clips, FakeEncoders(), settings, tmp_path / "out").kept == 4
    with pytest.raises(UserError, match=r"no\.onnx, but prepare\.faces=files reads stored crops only"):
        face_crops("files", "no.onnx")


# ---------------------------------------------------------------------------------------------------------------------
# The built-in detector


def test_without_scikit_image_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("skimage", "skimage.data", "skimage.feature"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"affectgpt-jax\[faces\]"):
        face_crops("detect", "")


def test_the_built_in_detector_finds_a_photographed_face() -> None:
    """scikit-image's portrait of the astronaut Eileen Collins, whose face is about 90 pixels wide at (225, 115)."""
    data = pytest.importorskip("skimage.data")
    picture = data.astronaut()
    landscape = np.zeros((512, 910, 3), np.uint8)
    landscape[:, 200:712] = picture
    for frame, left in ((picture, 0), (landscape, 200)):
        for scale in (1.0, 2.0):
            (faces,) = Cascade()(cv2.resize(frame, None, fx=scale, fy=scale)[None])
            assert len(faces.boxes)
            x, y, width, height = faces.boxes[(faces.boxes[:, 2] * faces.boxes[:, 3]).argmax()] / scale
            assert abs(x + width / 2 - left - 225) < 20
            assert abs(y + height / 2 - 115) < 25
            assert 60 < width < 150
    assert not len(Cascade()(np.full((1, 240, 320, 3), 90, np.uint8))[0].boxes)
    assert not len(Cascade()(np.zeros((1, 16, 16, 3), np.uint8))[0].boxes)
    provenance = Cascade().provenance
    assert "lbpcascade_frontalface" in provenance["detector"]
    assert len(provenance["detector_data"]) == 64


# ---------------------------------------------------------------------------------------------------------------------
# Detectors in ONNX files. The tests write a small one themselves, field by field (onnx.proto).


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    head = b""
    while number > 127:
        head += bytes([number & 127 | 128])
        number >>= 7
    return head + bytes([number])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"f": 1, "i": 7}[values.dtype.kind]
    return (
        b"".join(_field(1, size) for size in values.shape)
        + _field(2, kind)
        + _field(8, name)
        + _field(9, values.tobytes())
    )


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Sequence[int]) -> bytes:
    lists = (
        _field(1, key) + b"".join(_field(8, i) for i in value) + _field(20, 7) for key, value in attributes.items()
    )
    wires = b"".join(_field(1, name) for name in inputs) + _field(2, output)
    return wires + _field(3, output) + _field(4, operator) + b"".join(_field(5, attribute) for attribute in lists)


def _value(name: str, shape: Sequence[int]) -> bytes:
    sizes = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, sizes)))


def _tiny_yunet(size: int = 320, heads: Sequence[str] = ("cls", "obj", "bbox", "kps")) -> bytes:
    """A network in YuNet's form: at stride 32 a cell is a face as sure as it is bright, 64 pixels wide around it."""
    nodes, constants, outputs = b"", b"", b""
    for stride in (8, 16, 32):
        mean = np.full((1, 3, stride, stride), (stride == 32) / (3 * 255 * stride**2), np.float32)
        biases = {"cls": [0], "obj": [0], "bbox": [0.5, 0.5, np.log(2), np.log(2)], "kps": [0] * 10}
        for head in heads:
            name, bias = f"{head}_{stride}", np.asarray(biases[head], np.float32)
            weight = mean if len(bias) == 1 else np.zeros((len(bias), 3, stride, stride), np.float32)
            shape = np.asarray([1, -1, len(bias)], np.int64)
            for part, values in (("weight", weight), ("bias", bias), ("shape", shape)):
                constants += _field(5, _tensor(f"{name}_{part}", values))
            inputs, patch = ("input", f"{name}_weight", f"{name}_bias"), [stride, stride]
            nodes += _field(1, _node("Conv", inputs, f"{name}_grid", kernel_shape=patch, strides=patch))
            nodes += _field(1, _node("Transpose", [f"{name}_grid"], f"{name}_last", perm=[0, 2, 3, 1]))
            nodes += _field(1, _node("Reshape", [f"{name}_last", f"{name}_shape"], name))
            outputs += _field(12, _value(name, [1, (size // stride) ** 2, len(bias)]))
    graph = nodes + _field(2, "tiny") + constants + _field(11, _value("input", [1, 3, size, size])) + outputs
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 11))


def test_an_onnx_detector_by_path(tmp_path: Path) -> None:
    path = tmp_path / "tiny yunet.onnx"
    path.write_bytes(_tiny_yunet())
    detector = YuNet(path)
    frames = np.zeros((3, 360, 640, 3), np.uint8)
    frames[0, 96:128, 128:160] = 255  # one cell: a face of 64 pixels around it
    frames[2, 320:352, 0:32] = 255
    first, none, last = detector(frames)
    np.testing.assert_allclose(first.boxes, [[112, 80, 64, 64]], atol=0.01)
    assert first.scores[0] > 0.99
    assert len(none.boxes) == len(none.scores) == 0
    np.testing.assert_allclose(last.boxes, [[-16, 304, 64, 64]], atol=0.01)
    # Larger frames are scaled down, and the boxes back up.
    large = np.kron(frames[0], np.ones((2, 2, 1), np.uint8))
    np.testing.assert_allclose(detector(large[None])[0].boxes, [[224, 160, 128, 128]], atol=0.02)
    assert detector.provenance["detector"] == "tiny yunet.onnx (OpenCV)"
    other = tmp_path / "other.onnx"
    other.write_bytes(_tiny_yunet(640))
    assert YuNet(other).provenance["detector_data"] != detector.provenance["detector_data"]


def test_an_onnx_detector_reads_blue_green_red(tmp_path: Path) -> None:
    """What the network gets is BGR, as YuNet learned it: weights on its first channel see blue."""
    (tmp_path / "yunet.onnx").write_bytes(_tiny_yunet())
    seen: list[np.ndarray] = []

    class Recording:
        def setInputSize(self, size: tuple[int, int]) -> None:
            assert size == (4, 2)

        def detect(self, picture: np.ndarray) -> tuple[int, None]:
            seen.append(picture)
            return 1, None

    detector = YuNet(tmp_path / "yunet.onnx")
    detector._local = Recording  # type: ignore[assignment]
    frame = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    detector(frame)
    np.testing.assert_array_equal(seen[0], frame[0, :, :, [2, 1, 0]].transpose(1, 2, 0))


def test_prepares_with_an_onnx_detector_in_several_threads(tmp_path: Path, clips: list[ClipRecord]) -> None:
    (tmp_path / "yunet.onnx").write_bytes(_tiny_yunet())
    shown = {frame: [(32, 32, 32)] for frame in range(16)}
    records = [
        ClipRecord(TextRecord(str(i), "train"), ClipFiles(_patches(tmp_path / f"x{i}.mp4", 16, shown, (128, 96))))
        for i in range(4)
    ]
    settings = {**vars(SETTINGS), "streams": ("face@8",), "faces": "detect", "detector": str(tmp_path / "yunet.onnx")}
    report = prepare(
        records,
        FakeEncoders(),
        PrepareSettings(
            **settings,
        ),
        tmp_path / "a",
    )
    assert report.detected == {"face@8": 4}
    prepare(records, FakeEncoders(), PrepareSettings(**{**settings, "decode_threads": 4}), tmp_path / "b")
    np.testing.assert_array_equal(_faces(tmp_path / "a")[0], _faces(tmp_path / "b")[0])
    assert _faces(tmp_path / "a")[0].any()


@pytest.mark.parametrize("content", [b"", b"no network", _tiny_yunet(heads=("cls", "bbox"))])
def test_what_is_no_detector_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=r"prepare\.detector: there is no file .*model\.onnx"):
        face_crops("detect", str(path))
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"model\.onnx cannot be used as a face detector .* inputs and outputs of YuNet"
    ):
        face_crops("detect", str(path))
