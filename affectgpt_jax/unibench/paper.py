"""The main table of the AffectGPT paper (Table 2, arXiv 2501.16566): published scores to stand beside one's own.

Primary metrics in percent, each the best of seven checkpoints on the test clips for AffectGPT, one run for the
others. `A`, `V`, `A+V`: audio, video or both beside the subtitle.
"""

from typing import NamedTuple

COLUMNS = ("mer2023", "mer2024", "meld", "iemocap", "cmumosi", "cmumosei", "sims", "simsv2", "ovmerdplus")
"""Dataset key of each score."""


class PaperRow(NamedTuple):
    """A row of the table.

    Attributes:
        system: name of the model.
        inputs: what it is given beside the subtitle.
        scores: primary metric of each dataset of `COLUMNS`, in percent.
        mean: as printed.
    """

    system: str
    inputs: str
    scores: tuple[float, ...]
    mean: float


TABLE_2: tuple[PaperRow, ...] = (
    PaperRow("Otter", "V", (16.41, 14.65, 22.57, 29.08, 52.89, 50.44, 57.56, 53.12, 16.63), 34.82),
    PaperRow("OneLLM", "A", (25.52, 17.21, 28.32, 33.44, 64.01, 54.09, 63.39, 61.98, 22.25), 41.14),
    PaperRow("Video-LLaVA", "V", (36.93, 30.25, 30.73, 38.95, 56.37, 61.64, 53.28, 57.45, 34.00), 44.40),
    PaperRow("SECap", "A", (40.95, 52.46, 25.56, 36.92, 55.76, 54.18, 59.51, 57.41, 36.97), 46.64),
    PaperRow("PandaGPT", "A", (33.57, 39.04, 31.91, 36.55, 66.06, 61.33, 62.93, 58.88, 31.33), 46.84),
    PaperRow("Qwen-Audio", "A", (41.85, 31.61, 49.09, 35.47, 70.09, 46.90, 70.73, 65.26, 32.36), 49.26),
    PaperRow("PandaGPT", "V", (39.13, 47.16, 38.33, 47.21, 58.50, 64.25, 62.07, 65.25, 35.07), 50.77),
    PaperRow("Video-ChatGPT", "V", (44.86, 46.80, 37.33, 56.83, 54.42, 63.12, 64.82, 65.80, 39.80), 52.64),
    PaperRow("VideoChat2", "V", (33.67, 54.50, 36.64, 48.70, 66.84, 54.32, 69.49, 70.66, 39.21), 52.67),
    PaperRow("PandaGPT", "A+V", (40.21, 51.89, 37.88, 44.04, 61.92, 67.61, 68.38, 67.23, 37.12), 52.92),
    PaperRow("LLaMA-VID", "V", (50.72, 57.60, 42.75, 46.02, 61.78, 63.89, 69.35, 67.48, 45.01), 56.07),
    PaperRow("VideoChat", "V", (48.73, 57.30, 41.11, 48.38, 65.13, 63.61, 69.52, 72.14, 44.52), 56.71),
    PaperRow("SALMONN", "A", (55.53, 45.38, 45.62, 46.84, 81.00, 67.03, 68.69, 65.93, 45.00), 57.89),
    PaperRow("Chat-UniVi", "V", (57.62, 65.67, 45.61, 52.37, 54.53, 63.18, 68.15, 66.36, 48.00), 57.94),
    PaperRow("mPLUG-Owl", "V", (56.86, 59.89, 49.11, 55.54, 72.40, 72.91, 72.13, 75.00, 48.18), 62.45),
    PaperRow("Emotion-LLaMA", "A+V", (59.38, 73.62, 46.76, 55.47, 66.13, 67.66, 78.32, 77.23, 52.97), 64.17),
    PaperRow("AffectGPT", "A", (72.94, 73.41, 56.63, 55.68, 83.46, 80.74, 82.99, 83.75, 59.98), 72.18),
    PaperRow("AffectGPT", "V", (74.58, 75.29, 57.63, 62.19, 82.39, 81.57, 87.20, 86.29, 61.65), 74.31),
    PaperRow("AffectGPT", "A+V", (78.54, 78.80, 55.65, 60.54, 81.30, 80.90, 88.49, 86.18, 62.52), 74.77),
)
