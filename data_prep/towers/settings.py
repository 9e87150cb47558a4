"""What decides the towers: sizes, and how long they learn. The same settings give the same files."""

from pydantic import Field, PositiveInt

from affectgpt_jax.config.base import Section
from affectgpt_jax.config.networks import HubertConfig, VisionConfig

VISION = VisionConfig(
    width=64, layers=3, heads=4, mlp_width=128, projection=64, image_size=48, patch_size=12, norm_eps=1e-5
)
"""Few patches keep the tower cheap: its cost grows with their number, its use here does not."""

AUDIO = HubertConfig(
    width=64,
    layers=3,
    heads=2,
    mlp_width=128,
    conv_widths=(24, 48, 64),
    conv_kernels=(40, 4, 4),
    conv_strides=(20, 4, 4),
    conv_bias=True,
    # Norm over time keeps the rise and fall of each band, norm over channels does not: after 200 steps a probe told
    # manners of strangers apart with 0.99 and 0.91.
    conv_norm="group",
    position_kernel=5,
    position_groups=4,
)
"""50 feature frames a second, as HuBERT has."""


class TowerSettings(Section):
    """Settings of stage 0."""

    seed: int = Field(default=0, ge=0, description="of the clips' generator, the initial weights and the order")
    clips: PositiveInt = Field(default=400, description="clips of training identities that each tower learns from")
    held_out: PositiveInt = Field(default=120, description="clips of other identities that the towers are probed on")
    steps: PositiveInt = Field(default=250, description="optimizer steps of each tower")
    vocabulary: int = Field(default=1024, ge=300, description="most tokens of the tokenizer, added ones not counted")
    vision: VisionConfig = VISION
    audio: HubertConfig = AUDIO
