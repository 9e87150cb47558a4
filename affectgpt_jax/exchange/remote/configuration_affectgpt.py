# SPDX-License-Identifier: Apache-2.0
"""Configuration of AffectGPT for transformers; `modeling_affectgpt.py` beside it says how to use the model."""

from typing import Any, TypeAlias

from transformers import CLIPVisionConfig, HubertConfig, PretrainedConfig, Qwen2Config

Part: TypeAlias = PretrainedConfig | dict[str, Any] | None


class AffectGPTConfig(PretrainedConfig):
    """A language model, two encoders, and what lies between them.

    Args:
      text_config: dict of `Qwen2ForCausalLM`.
      vision_config: dict of `CLIPVisionModelWithProjection`.
      audio_config: dict of `HubertModel`.
      fusion: dict of what lies between:
        mode: name of the input mode; it stands for the prompt the model was trained with.
        soft: modalities with soft tokens in that prompt, in order; of multi, audio, face, frame, image.
        fused: the visual stream that multi mixes with the audio, "face" or "frame"; None without multi.
        prefusion (attention, qformer, none), video, audio (attention, qformer, mean), image (mean, token): the kinds.
        tokens: soft tokens of multi, audio, video (face and frame alike), image.
        positions: longest sequence a Q-Former reads, of video, audio, multi.
        qformer: width, layers, heads, mlp_width, norm_eps.
        absent: whether the model learned a feature that stands in for an absent stream.
        vision_width, audio_width: widths of the encoders' features.
      placeholders: modality -> id of the token that stands in the prompt for one soft token.
    """

    model_type = "affectgpt"
    sub_configs = {  # noqa: RUF012
        "text_config": Qwen2Config,
        "vision_config": CLIPVisionConfig,
        "audio_config": HubertConfig,
    }

    def __init__(
        self,
        text_config: Part = None,
        vision_config: Part = None,
        audio_config: Part = None,
        fusion: dict[str, Any] | None = None,
        placeholders: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        parts = {"text_config": text_config, "vision_config": vision_config, "audio_config": audio_config}
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, PretrainedConfig) else self.sub_configs[name](**(part or {})))
        # transformers 5 writes the rotary base into rope_parameters, where 4 would not look for it.
        rope = getattr(self.text_config, "rope_parameters", None) or {}
        if "rope_theta" in rope:
            self.text_config.rope_theta = rope["rope_theta"]
        self.fusion = fusion or {}
        self.placeholders = placeholders or {}
        super().__init__(**kwargs)
