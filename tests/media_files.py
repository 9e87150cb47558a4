"""Small media files for tests, made with PyAV: pictures, sound, and the oddities of files in the wild."""

import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile


def pictures(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Frames in planar YUV 4:2:0, uint8 [frames, height * 3 / 2, width]: slanted waves that move, by a formula."""
    row, column = np.mgrid[0 : height * 3 // 2, 0:width]
    time = np.arange(frames)[:, None, None]
    return ((row * 5 + column * 3 + time * 7) % 220 + 16).astype(np.uint8)


def tone(seconds: float, rate: int = 16_000, frequency: float = 220.0) -> np.ndarray:
    """A sine of amplitude 0.5, float32 [n]."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_video(
    path: Path,
    frames: int = 25,
    *,
    rate: Fraction | int = 25,
    height: int = 96,
    width: int = 128,
    codec: str = "libx264",
    sound: np.ndarray | None = None,
    sound_rate: int = 44_100,
    **options: str,
) -> Path:
    """Writes a video of `pictures`, with an AAC sound track if `sound`, float32 [channels, n], is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate, layout="stereo" if len(sound) == 2 else "mono")
        if frames:
            video = container.add_stream(codec, rate=rate)
            assert isinstance(video, av.VideoStream)
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            for picture in pictures(frames, height, width):
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
            container.mux(video.encode())
        if sound is not None:
            for start in range(0, sound.shape[1] - 1023, 1024):
                chunk = np.ascontiguousarray(sound[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=audio.layout.name)
                frame.rate, frame.pts = sound_rate, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Writes 16-bit samples, float [n] or [channels, n]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.T, rate, subtype="PCM_16")
    return path


def write_faces(path: Path, faces: np.ndarray) -> Path:
    """Writes an array as face crops are stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, faces)
    return path


def rotate_metadata(path: Path, degrees: int) -> Path:
    """Rewrites the display matrix of an mp4's first track so that players turn the picture clockwise."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd")
    matrix = header + 4 + 4 + (32 if content[header + 4] else 20) + 16
    cosine, sine = round(math.cos(math.radians(degrees))) << 16, round(math.sin(math.radians(degrees))) << 16
    content[matrix : matrix + 36] = struct.pack(">9i", cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(content))
    return path


def truncate(path: Path, share: float) -> Path:
    """Cuts a file to a share of its length."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
