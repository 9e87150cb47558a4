# SPDX-License-Identifier: Apache-2.0
"""AffectGPT for transformers (4.49 and later): encoders, fusion and language model from one folder.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    # Eight frames (or faces) after CLIP's image processor: [1, 8, 3, 224, 224].
    # Eight clips of two seconds at 16 kHz, spread over the sound: [1, 8, 32000].
    inputs = {"pixel_values": frames, "input_values": model.normalise_audio(clips)}
    # The prompt the model was trained with, a placeholder such as <FaceHere> for each soft token.
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answer = model.generate(ids, **inputs, stop_strings="###", tokenizer=tokenizer)
    print(tokenizer.decode(answer[0]))

`generate` returns the new tokens alone. Several prompts at once are padded on the left and need an attention_mask.
Frames and sound that serve many prompts are encoded once: `features = model.encode(**inputs)`, then
`model.generate(ids, features=features)`. Leave out a stream whose soft tokens the prompt does not show. A model with
`config.fusion["absent"]` takes zeros and `present={"face": tensor([False])}` for a stream that a sample lacks.

Shapes: b samples, t time steps (frames, clips), F width of a feature, n soft tokens, T tokens, D width of the language
model. Streams are face, frame, audio, image; modalities are those and multi, which mixes the audio with one visual.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPVisionModelWithProjection,
    GenerationMixin,
    HubertModel,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from .configuration_affectgpt import AffectGPTConfig

Streams = dict[str, Tensor]


class QFormerAttention(nn.Module):
    """Attention over a source, residual connection, norm."""

    def __init__(self, width: int, source: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        inputs = {"query": width, "key": source, "value": source}
        self.self = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.items()})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps)})

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        inputs = {"query": x, "key": source, "value": source}
        q, k, v = (self.self[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name, y in inputs.items())
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.output["LayerNorm"](x + self.output["dense"](y))


class QFormerLayer(nn.Module):
    """Queries attend to themselves, then to the features; a feed-forward block follows."""

    def __init__(self, c: dict[str, Any], source: int) -> None:
        super().__init__()
        width, inner, eps = c["width"], c["mlp_width"], c["norm_eps"]
        self.attention = QFormerAttention(width, width, c["heads"], eps)
        self.crossattention = QFormerAttention(width, source, c["heads"], eps)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output_query = nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps)})

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = self.attention(x, x)
        x = self.crossattention(x, features)
        y = functional.gelu(self.intermediate_query["dense"](x))
        return self.output_query["LayerNorm"](x + self.output_query["dense"](y))


class QFormer(nn.Module):
    """Learned queries that read a feature sequence: the query branch of a BERT with cross-attention."""

    def __init__(self, c: dict[str, Any], source: int) -> None:
        super().__init__()
        norm = nn.ModuleDict({"LayerNorm": nn.LayerNorm(c["width"], c["norm_eps"])})
        layers = nn.ModuleList(QFormerLayer(c, source) for _ in range(c["layers"]))
        self.bert: Any = nn.ModuleDict({"embeddings": norm, "encoder": nn.ModuleDict({"layer": layers})})

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        x = self.bert["embeddings"]["LayerNorm"](queries).expand(len(features), -1, -1)
        for layer in self.bert["encoder"]["layer"]:
            x = layer(x, features)
        return x


class Fusion(nn.Module):
    """From encoder features to soft tokens. Parameters bear the names of AffectGPT's own checkpoints."""

    PROJECTIONS = {  # noqa: RUF012
        "video": "affectgpt_proj",
        "audio": "audio_llama_proj",
        "multi": "multi_llama_proj",
    }
    POSITIONS = {  # noqa: RUF012
        "video": "video_frame_position_embedding",
        "audio": "audio_position_embedding",
        "multi": "multi_position_embedding",
    }

    def __init__(self, c: dict[str, Any], width: int) -> None:
        super().__init__()
        self.c = c
        vision, audio = c["vision_width"], c["audio_width"]
        multi = max(vision, audio)
        self.image_llama_proj = nn.Linear(vision, width)
        self.multi_audio_embs = nn.Linear(audio, multi)
        self.multi_video_embs = nn.Linear(vision, multi)
        for part, kind, source in (
            ("video", c["video"], vision),
            ("audio", c["audio"], audio),
            ("multi", c["prefusion"], multi),
        ):
            if kind == "none":
                continue
            if kind == "qformer":
                queries = torch.randn(1, c["tokens"][part], c["qformer"]["width"]) * 0.02
                setattr(self, f"{part}_query_tokens", nn.Parameter(queries))
                setattr(self, self.POSITIONS[part], nn.Embedding(c["positions"][part], source))
                setattr(self, f"{part}_Qformer", QFormer(c["qformer"], source))
            elif part == "multi":
                self.attention_mlp = nn.Linear(2 * multi, multi)
                self.fc_att = nn.Linear(multi, 2)
            elif kind == "attention":
                setattr(self, f"{part}_attention_mlp", nn.Linear(source, 1))
            fused = c["qformer"]["width"] if kind == "qformer" else source
            setattr(self, self.PROJECTIONS[part], nn.Linear(fused, width))
        if c["absent"]:
            for stream in ("face", "frame", "audio", "image"):
                size = audio if stream == "audio" else vision
                setattr(self, f"absent_{stream}", nn.Parameter(torch.randn(size) * 0.02))

    def sources(self, modality: str) -> tuple[str, ...]:
        """The streams a modality is made from."""
        return (self.c["fused"], "audio") if modality == "multi" else (modality,)

    def read(self, part: str, features: Tensor) -> Tensor:
        """A Q-Former's queries [b, n, width] after reading features [b, t, F]."""
        positions, length = getattr(self, self.POSITIONS[part]), features.shape[1]
        if length > positions.num_embeddings:
            raise ValueError(f"{part}: {length} features, but the Q-Former reads at most {positions.num_embeddings}")
        features = features + positions(torch.arange(length, device=features.device))
        return getattr(self, f"{part}_Qformer")(getattr(self, f"{part}_query_tokens"), features)

    def stream(self, part: str, x: Tensor) -> Tensor:
        """Soft tokens of one stream; the scores of `attention` pass no softmax."""
        kind = self.c[part]
        if kind == "qformer":
            fused = self.read(part, x)
        elif kind == "attention":
            fused = (getattr(self, f"{part}_attention_mlp")(x) * x).sum(1, keepdim=True)
        else:
            fused = x.mean(1, keepdim=True)
        return getattr(self, self.PROJECTIONS[part])(fused)

    def image(self, x: Tensor) -> Tensor:
        return self.image_llama_proj(x[:, :1] if self.c["image"] == "token" else x.mean(1, keepdim=True))

    def multi(self, video: Tensor, audio: Tensor) -> Tensor:
        """Soft tokens of both; the weights of `attention` pass neither an activation nor a softmax."""
        if self.c["prefusion"] == "qformer":
            fused = self.read("multi", torch.cat([self.multi_video_embs(video), self.multi_audio_embs(audio)], 1))
        else:
            pair = torch.stack([self.multi_video_embs(video.mean(1)), self.multi_audio_embs(audio.mean(1))], 1)
            weights = self.fc_att(self.attention_mlp(pair.flatten(1)))
            fused = (weights[..., None] * pair).sum(1, keepdim=True)
        return getattr(self, self.PROJECTIONS["multi"])(fused)

    def forward(self, features: Streams, present: Streams | None = None) -> dict[str, Tensor]:
        """Modality -> soft tokens [b, n, D], of the modalities whose streams are among the features."""
        streams = {}
        for stream, x in features.items():
            streams[stream] = x.to(self.image_llama_proj.weight.dtype)
            if self.c["absent"] and present and stream in present:
                there = present[stream][:, None, None]
                streams[stream] = torch.where(there, streams[stream], getattr(self, f"absent_{stream}"))
        tokens = {}
        for modality in self.c["soft"]:
            if not streams.keys() >= set(self.sources(modality)):
                continue
            inputs = [streams[stream] for stream in self.sources(modality)]
            if modality in ("multi", "image"):
                part, soft = modality, getattr(self, modality)(*inputs)
            else:
                part = "audio" if modality == "audio" else "video"
                soft = self.stream(part, *inputs)
            tokens[modality] = soft.expand(-1, self.c["tokens"][part], -1)
        return tokens


class AffectGPTForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """AffectGPT: an answer from frames or faces, sound and words."""

    config_class = AffectGPTConfig
    _no_split_modules = ["Qwen2DecoderLayer", "CLIPVisionModelWithProjection", "HubertModel", "Fusion"]  # noqa: RUF012
    # Only the language model takes another type, so features stay those that training saw (early 4.x casts all).
    _keep_in_fp32_modules_strict = ["vision_tower", "audio_tower", "fusion"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = _supports_flash_attn_2 = True

    def __init__(self, config: AffectGPTConfig) -> None:
        super().__init__(config)
        self.language_model: Any = Qwen2ForCausalLM(config.text_config)
        self.vision_tower = CLIPVisionModelWithProjection(config.vision_config)
        self.audio_tower = HubertModel(config.audio_config)
        self.fusion = Fusion(config.fusion, config.text_config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def train(self, mode: bool = True) -> "AffectGPTForConditionalGeneration":
        """The encoders are frozen and stay as they are in evaluation."""
        super().train(mode)
        self.vision_tower.eval()
        self.audio_tower.eval()
        return self

    @staticmethod
    def normalise_audio(clips: Tensor) -> Tensor:
        """Bring the clips [..., 8, samples] of each sample to zero mean and unit variance, over all eight at once."""
        variance, mean = torch.var_mean(clips, (-2, -1), correction=0, keepdim=True)
        return (clips - mean) / torch.sqrt(variance + 1e-7)

    @torch.no_grad()
    def encode_frames(self, pixel_values: Tensor) -> Tensor:
        """Features [b, t, F] of frames [b, t, 3, height, width] that CLIP's processor prepared."""
        frames = pixel_values.flatten(0, 1).to(self.vision_tower.dtype)
        return self.vision_tower(frames).image_embeds.unflatten(0, pixel_values.shape[:2])

    @torch.no_grad()
    def encode_audio(self, input_values: Tensor) -> Tensor:
        """Features [b, t, F] of normalised clips [b, t, samples]: the mean of four hidden states, then of time."""
        clips = input_values.flatten(0, 1).to(self.audio_tower.dtype)
        output = self.audio_tower(clips, output_hidden_states=True)
        # The last of hidden_states has passed the final norm in transformers 4 and has not in 5; this one always has.
        states = torch.stack([*output.hidden_states[-4:-1], output.last_hidden_state])
        return states.mean(0).mean(1).unflatten(0, input_values.shape[:2])

    def encode(self, pixel_values: Tensor | Streams | None = None, input_values: Tensor | None = None) -> Streams:
        """Stream -> features. A model with two visual streams takes frames as a dict by stream."""
        features = {}
        if pixel_values is not None:
            if not isinstance(pixel_values, dict):
                sources = [source for modality in self.fusion.c["soft"] for source in self.fusion.sources(modality)]
                visual = sorted(set(sources) - {"audio"})
                if len(visual) != 1:
                    raise ValueError(f"pixel_values: the visual streams are {visual}; pass a dict of frames by stream")
                pixel_values = {visual[0]: pixel_values}
            features = {stream: self.encode_frames(frames) for stream, frames in pixel_values.items()}
        if input_values is not None:
            features["audio"] = self.encode_audio(input_values)
        return features

    def soft_tokens(self, features: Streams, present: Streams | None = None) -> dict[str, Tensor]:
        """Modality -> soft tokens [b, n, D].

        Args:
          features: stream -> [b, t, F]; a modality without its streams gets no tokens.
          present: stream -> bool [b], False where the learned feature stands in; all of a stream left out is there.
        """
        return self.fusion(features, present)

    def inputs_embeds(self, input_ids: Tensor, features: Streams, present: Streams | None = None) -> Tensor:
        """Embeddings [b, T, D] of the tokens, the soft tokens in the places of their placeholders.

        Raises:
          ValueError: a row has more or fewer placeholders of a modality than there are soft tokens.
        """
        tokens = self.soft_tokens(features, present)
        places = {modality: input_ids == token for modality, token in self.config.placeholders.items()}
        for modality, place in places.items():
            expected = tokens[modality].shape[1] if modality in tokens else 0
            for row, found in enumerate(place.sum(1).tolist()):
                if found != expected:
                    why = "" if modality in tokens else f" (features given: {', '.join(features) or 'none'})"
                    raise ValueError(
                        f"{modality}: row {row} of input_ids has {found} placeholders, expected {expected}{why}"
                    )
        embeds = self.get_input_embeddings()(input_ids)
        for modality, soft in tokens.items():
            embeds = embeds.masked_scatter(places[modality][..., None].to(embeds.device), soft.to(embeds))
        return embeds

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: Streams | None = None,
        pixel_values: Tensor | Streams | None = None,
        input_values: Tensor | None = None,
        present: Streams | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and the loss if labels are given; from features or from what they are encoded of."""
        features = self.encode(pixel_values, input_values) if features is None else features
        embeds = self.inputs_embeds(input_ids, features, present)
        return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels, **kwargs)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        features: Streams | None = None,
        pixel_values: Tensor | Streams | None = None,
        input_values: Tensor | None = None,
        present: Streams | None = None,
        **kwargs: Any,
    ) -> Any:
        """New token ids [b, new]; `kwargs` are those of transformers' `generate`."""
        features = self.encode(pixel_values, input_values) if features is None else features
        embeds = self.inputs_embeds(input_ids, features, present)
        self.language_model.generation_config = self.generation_config
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs)


# What save_pretrained writes opens again: it copies this code too.
AffectGPTConfig.register_for_auto_class()
AffectGPTForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
