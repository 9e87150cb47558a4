"""Real media files: H.264 with AAC sound in mp4, PCM in wav."""

from pathlib import Path

import av
import cv2
import numpy as np
import soundfile

_AAC_FRAME = 1024


def write_mp4(path: Path, frames: np.ndarray, frame_rate: int, wave: np.ndarray, sample_rate: int) -> None:
    """Write pictures and sound; the same input gives the same bytes.

    Args:
      path: the file, overwritten.
      frames: uint8 [n, H, W, 3] RGB, H and W even.
      frame_rate: pictures a second.
      wave: float32 [s] in -1..1.
      sample_rate: samples a second.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=frame_rate, options={"preset": "ultrafast", "crf": "25"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1  # with more, the bytes may depend on the machine
        # The "fast" coder is several times quicker than the default and no worse at this rate.
        audio = container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_coder": "fast"})
        audio.bit_rate = 64_000
        for picture in frames:
            planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)  # much faster than the converter behind PyAV
            container.mux(video.encode(av.VideoFrame.from_numpy_buffer(planes, format="yuv420p")))
        container.mux(video.encode())
        for start in range(0, len(wave), _AAC_FRAME):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + _AAC_FRAME], format="fltp", layout="mono")
            block.sample_rate, block.pts = sample_rate, start
            container.mux(audio.encode(block))
        container.mux(audio.encode())


def write_wav(path: Path, wave: np.ndarray, sample_rate: int) -> None:
    """Write 16-bit PCM mono.

    Args:
      path: the file, overwritten.
      wave: float32 [s] in -1..1.
      sample_rate: samples a second.
    """
    soundfile.write(path, wave, sample_rate, subtype="PCM_16")
