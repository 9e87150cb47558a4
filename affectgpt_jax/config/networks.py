"""Sizes of the networks: everything a model needs to know about itself and nothing else.

`from_hf` reads the dictionary of a Hugging Face `config.json`, old and new spellings alike.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from affectgpt_jax.config.base import Section
from affectgpt_jax.data.prompts import MODES, needs, unfused_mode
from affectgpt_jax.errors import UserError

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "names", "full"]
Attention = Literal["auto", "xla", "cudnn", "splash"]
Base = Literal["float", "int8"]
TokenFusion = Literal["attention", "qformer", "mean"]
Prefusion = Literal["attention", "qformer", "none"]
Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

LINEARS: tuple[Linear, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED: dict[str, tuple[Linear, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""Linear maps of one input, by the name of the one product that can give them all."""


def _divides(parts: int, whole: int, parts_name: str, whole_name: str) -> None:
    if whole % parts:
        near = [n for n in (*range(parts, 0, -1), *range(parts, whole + 1)) if whole % n == 0]
        raise ValueError(f"{parts_name}={parts} does not divide {whole_name}={whole}; nearest that does: {near[0]}")


def _require(found: object, expected: object, key: str, network: str) -> None:
    if found != expected:
        raise UserError(f"{network} config.json: {key}={found!r} is not supported; only {expected!r} is")


class VisionConfig(Section):
    """A CLIP vision tower with its projection (`get_image_features`)."""

    width: PositiveInt = 1024
    layers: PositiveInt = 24
    heads: PositiveInt = 16
    mlp_width: PositiveInt = 4096
    projection: PositiveInt = 768
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 14
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _check(self) -> Self:
        _divides(self.heads, self.width, "heads", "width")
        _divides(self.patch_size, self.image_size, "patch_size", "image_size")
        return self

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a `CLIPModel` (or vision-only) config.json."""
        vision = config.get("vision_config", config)
        return cls(
            # Some published files leave out what equals Hugging Face's defaults, which are those of ViT-B/32.
            width=vision.get("hidden_size", 768),
            layers=vision.get("num_hidden_layers", 12),
            heads=vision.get("num_attention_heads", 12),
            mlp_width=vision.get("intermediate_size", 3072),
            projection=config.get("projection_dim", vision.get("projection_dim", 512)),
            image_size=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            activation=vision.get("hidden_act", "quick_gelu"),
            norm_eps=vision.get("layer_norm_eps", 1e-5),
        )


class HubertConfig(Section):
    """A HuBERT speech encoder. Convolution bias and layer-norm style come from the config, never from the size."""

    width: PositiveInt = 1024
    layers: PositiveInt = 24
    heads: PositiveInt = 16
    mlp_width: PositiveInt = 4096
    conv_widths: tuple[PositiveInt, ...] = (512,) * 7
    conv_kernels: tuple[PositiveInt, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[PositiveInt, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["layer", "group"] = "layer"
    position_kernel: PositiveInt = 128
    position_groups: PositiveInt = 16
    projection_norm: bool = True
    stable_layer_norm: bool = True
    norm_eps: float = 1e-5

    @model_validator(mode="after")
    def _check(self) -> Self:
        _divides(self.heads, self.width, "heads", "width")
        _divides(self.position_groups, self.width, "position_groups", "width")
        if not len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError(
                "conv_widths, conv_kernels and conv_strides need one entry a convolution, found "
                f"{len(self.conv_widths)}, {len(self.conv_kernels)} and {len(self.conv_strides)}"
            )
        if self.layers < 3:
            raise ValueError(f"layers={self.layers}: the feature averages four hidden states; use 3 or more")
        return self

    def frames(self, samples: int) -> int:
        """Length of the feature sequence for a waveform of `samples`."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a `HubertModel` config.json."""
        _require(config.get("feat_extract_activation", "gelu"), "gelu", "feat_extract_activation", "HuBERT")
        _require(config.get("hidden_act", "gelu"), "gelu", "hidden_act", "HuBERT")
        _require(config.get("conv_pos_batch_norm", False), False, "conv_pos_batch_norm", "HuBERT")
        return cls(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_width=config["intermediate_size"],
            conv_widths=tuple(config["conv_dim"]),
            conv_kernels=tuple(config["conv_kernel"]),
            conv_strides=tuple(config["conv_stride"]),
            conv_bias=config.get("conv_bias", False),
            conv_norm=config.get("feat_extract_norm", "group"),
            position_kernel=config.get("num_conv_pos_embeddings", 128),
            position_groups=config.get("num_conv_pos_embedding_groups", 16),
            projection_norm=config.get("feat_proj_layer_norm", True),
            stable_layer_norm=config.get("do_stable_layer_norm", False),
            norm_eps=config.get("layer_norm_eps", 1e-5),
        )


class LoraConfig(Section):
    """Low-rank adapters on the decoder's linear maps: y += (alpha / rank) * (x A) B. Rank 0 means none."""

    rank: int = Field(default=16, ge=0)
    alpha: float = 32.0
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[Linear, ...] = LINEARS


class DecoderConfig(Section):
    """A Qwen2-class causal decoder: grouped queries, rotary positions, RMSNorm, SwiGLU, biases on q, k and v."""

    vocab: PositiveInt = 152064
    width: PositiveInt = 3584
    layers: PositiveInt = 28
    heads: PositiveInt = 28
    kv_heads: PositiveInt = 4
    head_dim: PositiveInt = 128
    mlp_width: PositiveInt = 18944
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tied_head: bool = False
    lora: LoraConfig = LoraConfig()
    dtype: Dtype = "float32"
    base: Base = Field(
        default="float", description="how the layers' frozen kernels are held: in `dtype`, or as int8 with scales"
    )
    cache: Base = Field(
        default="float", description="how answers hold keys and values: in `dtype`, or as int8 with scales"
    )
    attention: Attention = Field(
        default="auto", description="kernel of training rows and prompts; auto: by device and row length"
    )
    remat: Remat = "none"
    fused: bool = Field(
        default=False,
        description="one product for q, k and v and one for gate and up: frozen kernels are put together at the start",
    )
    unroll: NonNegativeInt = Field(
        default=0, description="layers in a turn of the training loop over layers; 0: all of up to four, else one"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _divides(self.kv_heads, self.heads, "kv_heads", "heads")
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention=cudnn computes in half precision; use dtype=bfloat16, or attention=auto")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions need pairs")
        return self

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """Read a `Qwen2ForCausalLM` config.json; `changes` set what it does not hold (`RUNTIME`)."""
        _require(config.get("hidden_act", "silu"), "silu", "hidden_act", "Qwen2")
        _require(config.get("use_sliding_window", False), False, "use_sliding_window", "Qwen2")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        _require(kind, "default", "rope_type", "Qwen2")
        heads = config["num_attention_heads"]
        width = config["hidden_size"]
        if not config.get("head_dim"):
            _divides(heads, width, "num_attention_heads", "hidden_size")
        return cls(
            vocab=config["vocab_size"],
            width=width,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            mlp_width=config["intermediate_size"],
            rope_theta=config.get("rope_theta") or rope.get("rope_theta", 10000.0),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied_head=config.get("tie_word_embeddings", False),
            **changes,
        )

    def to_hf(self) -> dict[str, Any]:
        """A `Qwen2ForCausalLM` config.json, with both spellings of the rotary base."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.mlp_width,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tied_head,
            "attention_dropout": 0.0,
        }


RUNTIME = ("lora", "dtype", "base", "cache", "attention", "remat", "fused", "unroll")
"""Keys of `DecoderConfig` that no Hugging Face config.json holds."""


class QFormerConfig(Section):
    """The query branch of a BERT-style Q-Former with cross-attention in every layer (QUIRKS 17)."""

    width: PositiveInt = 768
    layers: PositiveInt = 2
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    norm_eps: float = 1e-12
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _divides(self.heads, self.width, "heads", "width")
        return self


class SoftTokens(Section):
    """How many soft tokens each source gives the language model."""

    multi: PositiveInt = 1
    audio: PositiveInt = 1
    video: PositiveInt = 1
    image: PositiveInt = 1


class PositionTables(Section):
    """Longest sequences the Q-Formers' learned position tables can hold."""

    video: PositiveInt = 32
    audio: PositiveInt = 8
    multi: PositiveInt = 264


class ModelConfig(Section):
    """AffectGPT without its encoders: fusion to soft tokens, and the language model.

    `mode` names the input mode: which modalities the prompt shows (`data.prompts`).
    """

    mode: str = "multiface_audio_face_text"
    vision_width: PositiveInt = 768
    audio_width: PositiveInt = 1024
    prefusion: Prefusion = "attention"
    video: TokenFusion = "attention"
    audio: TokenFusion = "attention"
    image: Literal["mean", "token"] = "mean"
    tokens: SoftTokens = SoftTokens()
    positions: PositionTables = PositionTables()
    qformer: QFormerConfig = QFormerConfig()
    absent: bool = Field(
        default=False, description="learn a feature per stream that stands in for a missing face, frame or voice"
    )
    decoder: DecoderConfig = DecoderConfig()

    @property
    def multi_width(self) -> int:
        """Width of the space that audio and video share before the language model (QUIRKS 16)."""
        return max(self.vision_width, self.audio_width)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; one of {', '.join(sorted(MODES))}")
        if self.prefusion == "none" and "multi" in needs(self.mode).soft:
            raise ValueError(
                f"prefusion=none has no multi token, but mode={self.mode} shows one; use mode={unfused_mode(self.mode)}"
            )
        for name, kind in (("video", self.video), ("audio", self.audio), ("multi", self.prefusion)):
            tokens, table = getattr(self.tokens, name), getattr(self.positions, name)
            if kind == "qformer" and tokens > table:
                raise ValueError(
                    f"tokens.{name}={tokens} query tokens are more than the position table positions.{name}={table} "
                    f"holds; use at most {table}"
                )
        return self
