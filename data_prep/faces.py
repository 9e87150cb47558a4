"""Face crops of clips that come without OpenFace's: a detector looks at frames of the video.

The reference picks its face crops evenly from a file that has one crop for each frame with a face. A detector would
waste its time on all frames, so it is shown twice as many as crops are wanted, spread evenly over the video, and the
crops are then picked evenly from those in which it found a face. Where it found one in all of them, these are just the
frames that the reference picks. A frame without a face is passed over; a clip without any lacks the modality.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import av
import cv2
import numpy as np

from affectgpt_jax.data.clips import CANDIDATES, FRAME_SIDE, ClipFiles, DetectedFaces, read_modality
from affectgpt_jax.data.media import FRAME_SIZE, AbsentStream, MediaError, Upright, frame_count
from affectgpt_jax.data.preprocess import frame_indices, pick_faces
from affectgpt_jax.data.shard_schema import Stream, file_digest
from affectgpt_jax.errors import UserError

FacePolicy = Literal["files", "detect", "files_or_detect"]

MARGIN = 0.1
"""What a crop has more than the detector's box on each side, as a share of the longer side of the box."""

SAME = 0.5
"""Share of a box that may lie in that of another face."""

CROP = 112
"""Side of a crop in pixels: that of OpenFace's."""

_DETECTED = (
    f"v1: {CANDIDATES} frames for each crop, spread evenly, {FRAME_SIDE} pixels at most; largest face, squared, "
    f"{MARGIN:.0%} margin, {CROP}x{CROP}, RGB"
)


_RESIZED = f"v1: detected crops, {FRAME_SIZE}x{FRAME_SIZE} bilinear, spread evenly over the crops"
"""The preprocessing of a stream without stored crops. One that has some keeps that of stored crops."""


class Faces(NamedTuple):
    """The faces of a frame.

    Attributes:
        boxes: float32 [k, 4], each left, top, width, height in pixels of the frame; they may reach beyond it.
        scores: float32 [k], how sure the detector is of each; higher is surer.
    """

    boxes: np.ndarray
    scores: np.ndarray


class FaceDetector(Protocol):
    """Finds faces. Several threads may call it at the same time."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """A flat mapping that JSON can hold and that changes whenever what is found does: at least `detector`, a name,
        and `detector_data`, a checksum of what it has learned."""

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        """Finds the faces in each of some frames, uint8 [n, height, width, 3], RGB, upright."""


@dataclass(frozen=True)
class FaceCrops:
    """Where the face crops of clips come from.

    Attributes:
        policy: `files` stored with the corpus, which are absent where there is none; `detect` in the video, whatever
            is stored; `files_or_detect` where a clip has no file.
        detector: what detects; None if nothing does.
    """

    policy: FacePolicy = "files"
    detector: FaceDetector | None = None

    def detects(self, files: ClipFiles) -> bool:
        """Whether the crops of a clip come from its video."""
        return self.policy == "detect" or (self.policy == "files_or_detect" and files.faces is None)

    def source(self, files: ClipFiles) -> Path | None:
        """The file that the crops of a clip are read from."""
        return files.video if self.detects(files) else files.faces

    def find(self, files: ClipFiles, count: int) -> DetectedFaces | None:
        """Detects the faces of a clip.

        Args:
            files: the clip's files; see `detects`.
            count: crops wanted.

        Returns:
            `count` faces with crops of 224 by 224 pixels, as `read_modality` gives stored crops. None if no face is
            found, or there is no video or no picture in it.

        Raises:
            MediaError: the video is broken.
        """
        if self.detector is None:
            raise ValueError(f"the policy {self.policy!r} needs a detector")
        if files.video is None:
            return None
        try:
            found = detect_faces(files.video, CANDIDATES * count, self.detector)
        except AbsentStream:
            return None
        if not found.frames:
            return None
        picked = frame_indices(len(found.frames), count).tolist()
        return DetectedFaces(
            pick_faces(found.crops, count, FRAME_SIZE),
            tuple(found.frames[i] for i in picked),
            tuple(found.boxes[i] for i in picked),
        )

    def find_all(self, places: Sequence[int], frames: np.ndarray, scale: float) -> DetectedFaces:
        """Detects all faces in some frames.

        Args:
            places: numbers of the frames.
            frames: uint8 [n, height, width, 3], RGB, upright, `FRAME_SIDE` pixels at most.
            scale: by how much they were scaled; boxes are those of the frames as they were.

        Returns:
            Faces in the order of the frames, those of a frame from the largest to the smallest, with crops of 112 by
            112 pixels; there may be none.
        """
        if self.detector is None:
            raise ValueError(f"the policy {self.policy!r} needs a detector")
        return _cut(places, frames, scale, self.detector)

    def media(self, files: ClipFiles, stream: Stream) -> np.ndarray | None:
        """`read_modality` of a clip whose crops may have to be detected."""
        if stream.modality != "face" or not self.detects(files):
            return read_modality(files, stream)
        found = self.find(files, stream.count)
        return None if found is None else found.crops

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What a stream of faces must say of where its crops come from.

        Crops that are all stored are told by saying nothing, so that corpora prepared without a detector stay as they
        are.
        """
        if self.detector is None:
            return {}
        other = {"preprocessing": _RESIZED} if self.policy == "detect" else {}
        return {**other, "faces": self.policy, "detected": _DETECTED, **self.detector.provenance}


def face_crops(policy: FacePolicy, detector: str) -> FaceCrops:
    """Where face crops come from, with the detector opened that this needs.

    Args:
        policy: see `FaceCrops`.
        detector: path of an ONNX file, see `YuNet`; empty for the built-in detector.

    Raises:
        UserError: the detector cannot be had, or is named although nothing is detected.
    """
    if policy == "files":
        if detector:
            raise UserError(
                f"prepare.detector names {detector}, but prepare.faces=files reads stored crops only; set "
                "prepare.faces to detect or files_or_detect"
            )
        return FaceCrops()
    return FaceCrops(policy, YuNet(Path(detector)) if detector else Cascade())


# ---------------------------------------------------------------------------------------------------------------------
# From a video to crops


def detect_faces(video: Path, candidates: int, detector: FaceDetector) -> DetectedFaces:
    """Cuts the largest face out of frames of a video.

    Args:
        video: any container with pictures.
        candidates: frames to look at; a shorter video is looked at as a whole.
        detector: finds the faces.

    Returns:
        A crop of 112 by 112 pixels for each frame with a face, in their order; there may be none.

    Raises:
        AbsentStream: there is no video stream.
        MediaError: the file is missing, no media file, cut short or damaged.
    """
    places, frames, scale = _frames(video, candidates)
    found = _cut(places, frames, scale, detector)
    largest = np.unique(found.frames, return_index=True)[1].tolist()
    return DetectedFaces(
        found.crops[largest], tuple(found.frames[i] for i in largest), tuple(found.boxes[i] for i in largest)
    )


def _cut(places: Sequence[int], frames: np.ndarray, scale: float, detector: FaceDetector) -> DetectedFaces:
    """All faces of some frames, cut out; see `_in_order`. Frames are uint8 [n, height, width, 3], scaled by `scale`."""
    found = [
        (place, _crop(frame, box), tuple((box / scale).tolist()))
        for place, frame, faces in zip(places, frames, detector(frames), strict=True)
        for box in _in_order(faces)
    ]
    crops = [crop for _, crop, _ in found]
    return DetectedFaces(
        np.stack(crops) if crops else np.zeros((0, CROP, CROP, 3), np.uint8),
        tuple(place for place, _, _ in found),
        tuple(box for _, _, box in found),
    )


def _in_order(faces: Faces) -> list[np.ndarray]:
    """The boxes of a frame from the largest to the smallest, of one size the surest first. Detectors may box a face
    several times: one that lies by more than `SAME` in a larger one is left out."""
    kept: list[np.ndarray] = []
    for box in faces.boxes[np.lexsort((faces.scores, faces.boxes[:, 2] * faces.boxes[:, 3]))[::-1]]:
        inside = (
            np.maximum(np.minimum(box[:2] + box[2:], other[:2] + other[2:]) - np.maximum(box[:2], other[:2]), 0)
            for other in kept
        )
        if all(np.prod(sides) <= SAME * np.prod(box[2:]) for sides in inside):
            kept.append(box)
    return kept


def _frames(video: Path, candidates: int) -> tuple[list[int], np.ndarray, float]:
    """Frames spread evenly over a video: their numbers, uint8 [n, height, width, 3], RGB, upright, in the video's
    proportions, and by how much they were scaled."""
    wanted = set(frame_indices(frame_count(video), candidates))
    places: list[int] = []
    pictures: list[np.ndarray] = []
    upright = Upright(FRAME_SIDE)
    try:
        with av.open(str(video)) as container:
            container.streams.video[0].thread_type = "NONE"  # many clips are decoded side by side
            for position, frame in enumerate(container.decode(video=0)):
                if position in wanted:
                    places.append(position)
                    pictures.append(upright(frame))
                    if len(pictures) == len(wanted):
                        break
    except av.error.FFmpegError as error:
        raise MediaError(video, f"cannot be decoded: damaged or cut short ({error.strerror})") from error
    if not pictures:
        raise MediaError(video, "no frame can be decoded")
    return places, np.stack(pictures), upright.scale


def _crop(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The square around a box, uint8 [112, 112, 3]; black where it reaches beyond the frame."""
    left, top, width, height = (float(value) for value in box)
    side = max(round(max(width, height) * (1 + 2 * MARGIN)), 1)
    x, y = round(left + (width - side) / 2), round(top + (height - side) / 2)
    square = np.zeros((side, side, 3), np.uint8)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, frame.shape[1]), min(y + side, frame.shape[0])
    if x0 < x1 and y0 < y1:
        square[y0 - y : y1 - y, x0 - x : x1 - x] = frame[y0:y1, x0:x1]
    shrinks = side > CROP
    return np.asarray(
        cv2.resize(square, (CROP, CROP), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
    )


# ---------------------------------------------------------------------------------------------------------------------
# Detectors


def _smaller(frames: np.ndarray, longest: int) -> tuple[Iterator[np.ndarray], float]:
    """Frames scaled down to `longest` pixels, and by how much."""
    height, width = frames.shape[1:3]
    scale = min(1.0, longest / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return (cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame for frame in frames), scale


class Cascade:
    """The built-in detector: a cascade of local binary patterns for frontal faces, whose data ship with scikit-image.

    It knows upright frontal faces, and gives no scores (all are 1). It takes faces of an eighth of the frame's shorter
    side and more, since the face that a clip is about is not small.
    """

    LONGEST = 480
    SCALE_FACTOR = 1.1
    SMALLEST = 8

    def __init__(self) -> None:
        """Opens it.

        Raises:
            UserError: scikit-image is not installed.
        """
        try:
            from skimage.data import lbp_frontal_face_cascade_filename
            from skimage.feature import Cascade as SkimageCascade
        except ImportError as error:
            raise UserError(
                "the built-in face detector needs scikit-image: pip install 'affectgpt-jax[faces]', or name an ONNX "
                "detector with prepare.detector"
            ) from error
        file = lbp_frontal_face_cascade_filename()
        self._local = _PerThread(partial(SkimageCascade, file))
        self._file = Path(file)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Name, data and settings."""
        return {
            "detector": f"{self._file.stem} (scikit-image)",
            "detector_data": file_digest(self._file),
            "detector_settings": f"{self.LONGEST} pixels at most, scale factor {self.SCALE_FACTOR}, faces from "
            f"1/{self.SMALLEST} of the shorter side",
        }

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        """Finds the faces in each of some frames, uint8 [n, height, width, 3], RGB, upright."""
        pictures, scale = _smaller(frames, self.LONGEST)
        return [self._detect(picture, scale) for picture in pictures]

    def _detect(self, picture: np.ndarray, scale: float) -> Faces:
        shorter = min(picture.shape[:2])
        smallest = max(shorter // self.SMALLEST, 24)  # the window of the cascade
        if shorter < smallest:
            return Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        found = self._local().detect_multi_scale(
            img=picture,
            scale_factor=self.SCALE_FACTOR,
            step_ratio=1,
            min_size=(smallest, smallest),
            max_size=(shorter, shorter),
        )
        # Its order is that of no rule; ours must be the same each time.
        boxes = sorted((face["c"], face["r"], face["width"], face["height"]) for face in found)
        return Faces(np.asarray(boxes, np.float32).reshape(-1, 4) / np.float32(scale), np.ones(len(boxes), np.float32))


class YuNet:
    """An ONNX detector of YuNet's form, run by OpenCV (`cv2.FaceDetectorYN`).

    The network takes one picture, float32 [1, 3, height, width], BGR, values 0 to 255, both sides multiples of 32, and
    gives for each stride s of 8, 16 and 32 the outputs `cls_s` and `obj_s` [1, n, 1], `bbox_s` [1, n, 4] and `kps_s`
    [1, n, 10] for the n cells of the grid. Files: face_detection_yunet_*.onnx of OpenCV's model zoo.
    """

    LONGEST = 640
    SCORE = 0.7
    OVERLAP = 0.3
    AT_MOST = 100

    def __init__(self, path: Path) -> None:
        """Opens it and tries it on an empty picture.

        Args:
            path: the ONNX file.

        Raises:
            UserError: there is no such file, or it is none of this form.
        """
        if not path.is_file():
            raise UserError(f"prepare.detector: there is no file {path}; expected an ONNX face detector")
        self._path = path
        self._local = _PerThread(partial(_open_yunet, str(path), self.SCORE, self.OVERLAP, self.AT_MOST))
        try:
            self(np.zeros((1, 320, 320, 3), np.uint8))
        except (cv2.error, SystemError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"prepare.detector: {path} cannot be used as a face detector ({reason}); expected an ONNX network with "
                "the inputs and outputs of YuNet, such as face_detection_yunet_2023mar.onnx"
            ) from error

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Name, data and settings."""
        return {
            "detector": f"{self._path.name} (OpenCV)",
            "detector_data": file_digest(self._path),
            "detector_settings": f"{self.LONGEST} pixels at most, score {self.SCORE}, overlap {self.OVERLAP}",
        }

    def __call__(self, frames: np.ndarray) -> list[Faces]:
        """Finds the faces in each of some frames, uint8 [n, height, width, 3], RGB, upright."""
        pictures, scale = _smaller(frames, self.LONGEST)
        return [self._detect(picture, scale) for picture in pictures]

    def _detect(self, picture: np.ndarray, scale: float) -> Faces:
        detector = self._local()
        detector.setInputSize((picture.shape[1], picture.shape[0]))
        found = detector.detect(np.ascontiguousarray(picture[:, :, ::-1]))[1]
        rows = np.zeros((0, 15), np.float32) if found is None else np.asarray(found, np.float32)
        return Faces(rows[:, :4] / np.float32(scale), rows[:, 14])


def _open_yunet(path: str, score: float, overlap: float, most: int) -> Any:
    return cv2.FaceDetectorYN.create(path, "", (320, 320), score, overlap, most)


class _PerThread:
    """Something that only one thread may use at a time: each thread gets its own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._threads = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PerThread, (self._make,)

    def __call__(self) -> Any:
        if not hasattr(self._threads, "made"):
            self._threads.made = self._make()
        return self._threads.made
