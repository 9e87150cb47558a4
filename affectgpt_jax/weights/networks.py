"""The tables: Hugging Face names for the towers and the language model, the reference's names for what it trains."""

from math import isqrt

from affectgpt_jax.weights.table import Row, Shape, Table

# Logical axes: "embed" a model's width, "heads" / "kv_heads" joined head channels, "mlp" the inner width,
# "vocab" tokens, "rank" adapter rank, None small axes that are never sharded.

_SWAP = (1, 0)


def _dense(path: str, name: str, inner: str | None, outer: str | None, *, bias: bool = True) -> list[Row]:
    rows = [Row(rf"{path}/kernel", f"{name}.weight", (inner, outer), _SWAP)]
    return [*rows, Row(rf"{path}/bias", f"{name}.bias", (outer,))] if bias else rows


def _norm(path: str, name: str) -> list[Row]:
    return [Row(rf"{path}/scale", f"{name}.weight", (None,)), Row(rf"{path}/bias", f"{name}.bias", (None,))]


def _patches(shape: Shape) -> Shape:
    size = isqrt(shape[0] // 3)
    return (size, size, 3, shape[1])


_CLIP_LAYER = "vision_model.encoder.layers.{layer}"

CLIP = Table(
    "CLIP vision tower",
    [
        Row("class_embedding", "vision_model.embeddings.class_embedding", (None,)),
        Row(
            "patch_embedding/kernel",
            "vision_model.embeddings.patch_embedding.weight",
            (None, "embed"),
            (2, 3, 1, 0),
            _patches,
        ),
        Row("position_embedding", "vision_model.embeddings.position_embedding.weight", (None, "embed")),
        *_norm("pre_norm", "vision_model.pre_layrnorm"),
        *_dense(r"layers/([qkv])_proj", rf"{_CLIP_LAYER}.self_attn.\1_proj", "embed", "heads"),
        *_dense("layers/out_proj", f"{_CLIP_LAYER}.self_attn.out_proj", "heads", "embed"),
        *_norm("layers/attention_norm", f"{_CLIP_LAYER}.layer_norm1"),
        *_dense("layers/fc1", f"{_CLIP_LAYER}.mlp.fc1", "embed", "mlp"),
        *_dense("layers/fc2", f"{_CLIP_LAYER}.mlp.fc2", "mlp", "embed"),
        *_norm("layers/mlp_norm", f"{_CLIP_LAYER}.layer_norm2"),
        *_norm("post_norm", "vision_model.post_layernorm"),
        *_dense("projection", "visual_projection", "embed", None, bias=False),
    ],
    ignored=r"text_model\..*|text_projection\..*|logit_scale|vision_model\.embeddings\.position_ids",
)

_HUBERT_LAYER = "encoder.layers.{layer}"

HUBERT = Table(
    "HuBERT encoder",
    [
        Row(
            r"front_end/conv_(\d+)/kernel",
            r"feature_extractor.conv_layers.\1.conv.weight",
            (None, None, "embed"),
            (2, 1, 0),
        ),
        Row(r"front_end/conv_(\d+)/bias", r"feature_extractor.conv_layers.\1.conv.bias", (None,)),
        *_norm(r"front_end/norm_(\d+)", r"feature_extractor.conv_layers.\1.layer_norm"),
        *_norm("projection_norm", "feature_projection.layer_norm"),
        *_dense("projection", "feature_projection.projection", None, "embed"),
        # Hugging Face stores this convolution weight-normed; the reader folds it (`weights.files.HubertTensors`).
        Row("position_conv/kernel", "encoder.pos_conv_embed.conv.weight", (None, None, "embed"), (2, 1, 0)),
        Row("position_conv/bias", "encoder.pos_conv_embed.conv.bias", (None,)),
        *_norm("norm", "encoder.layer_norm"),
        *_dense(r"layers/([qkv])_proj", rf"{_HUBERT_LAYER}.attention.\1_proj", "embed", "heads"),
        *_dense("layers/out_proj", f"{_HUBERT_LAYER}.attention.out_proj", "heads", "embed"),
        *_norm("layers/attention_norm", f"{_HUBERT_LAYER}.layer_norm"),
        *_dense("layers/fc1", f"{_HUBERT_LAYER}.feed_forward.intermediate_dense", "embed", "mlp"),
        *_dense("layers/fc2", f"{_HUBERT_LAYER}.feed_forward.output_dense", "mlp", "embed"),
        *_norm("layers/mlp_norm", f"{_HUBERT_LAYER}.final_layer_norm"),
    ],
    ignored="masked_spec_embed",
)

_LAYER = "model.layers.{layer}"
_ADAPTER = "llama_model.base_model.model.model.layers.{layer}"


def _adapter(linear: str, place: str, inner: str, outer: str) -> list[Row]:
    name = f"{_ADAPTER}.{place}.{linear}"
    return [
        Row(f"decoder/layers/{linear}/lora_a", f"{name}.lora_A.default.weight", (inner, "rank"), _SWAP),
        Row(f"decoder/layers/{linear}/lora_b", f"{name}.lora_B.default.weight", ("rank", outer), _SWAP),
    ]


_LINEARS = [
    # linear, place in the layer, input axis, output axis, bias
    ("q_proj", "self_attn", "embed", "heads", True),
    ("k_proj", "self_attn", "embed", "kv_heads", True),
    ("v_proj", "self_attn", "embed", "kv_heads", True),
    ("o_proj", "self_attn", "heads", "embed", False),
    ("gate_proj", "mlp", "embed", "mlp", False),
    ("up_proj", "mlp", "embed", "mlp", False),
    ("down_proj", "mlp", "mlp", "embed", False),
]

DECODER = Table(
    "Qwen2 decoder",
    [
        Row("decoder/tokens/embedding", "model.embed_tokens.weight", ("vocab", "embed")),
        Row("decoder/layers/attention_norm/scale", f"{_LAYER}.input_layernorm.weight", (None,)),
        Row("decoder/layers/mlp_norm/scale", f"{_LAYER}.post_attention_layernorm.weight", (None,)),
        Row("decoder/final_norm/scale", "model.norm.weight", (None,)),
        Row("decoder/head/kernel", "lm_head.weight", ("embed", "vocab"), _SWAP),
        *(
            row
            for linear, place, inner, outer, bias in _LINEARS
            for row in _dense(f"decoder/layers/{linear}", f"{_LAYER}.{place}.{linear}", inner, outer, bias=bias)
        ),
    ],
    # Some folders store a tied head a second time.
    ignored=r"lm_head\.weight|model\.rotary_emb\.inv_freq|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)


def _qformer(path: str, prefix: str) -> list[Row]:
    layer = rf"{prefix}_Qformer.bert.encoder.layer.{{layer}}"
    blocks = [("self", "attention"), ("cross", "crossattention")]
    return [
        Row(f"{path}/query_tokens", f"{prefix}_query_tokens", (None, None), None, lambda shape: (1, *shape)),
        *_norm(f"{path}/norm", f"{prefix}_Qformer.bert.embeddings.LayerNorm"),
        *(
            row
            for ours, theirs in blocks
            for row in (
                *_dense(rf"{path}/layers/{ours}_(query|key|value)", rf"{layer}.{theirs}.self.\2", "embed", "heads"),
                *_dense(f"{path}/layers/{ours}_out", f"{layer}.{theirs}.output.dense", "heads", "embed"),
                *_norm(f"{path}/layers/{ours}_norm", f"{layer}.{theirs}.output.LayerNorm"),
            )
        ),
        *_dense(f"{path}/layers/fc1", f"{layer}.intermediate_query.dense", "embed", "mlp"),
        *_dense(f"{path}/layers/fc2", f"{layer}.output_query.dense", "mlp", "embed"),
        *_norm(f"{path}/layers/mlp_norm", f"{layer}.output_query.LayerNorm"),
    ]


TRAINED = Table(
    "AffectGPT checkpoint",
    [
        *(row for linear, place, inner, outer, _ in _LINEARS for row in _adapter(linear, place, inner, outer)),
        *_dense("fusion/image/proj", "image_llama_proj", None, "embed"),
        *_dense("fusion/video/proj", "affectgpt_proj", None, "embed"),
        *_dense("fusion/(audio|multi)/proj", r"\1_llama_proj", None, "embed"),
        *_dense("fusion/(video|audio)/score", r"\1_attention_mlp", None, None),
        *_dense("fusion/multi/(audio|video)_in", r"multi_\1_embs", None, None),
        *_dense("fusion/multi/mix", "attention_mlp", None, None),
        *_dense("fusion/multi/weight", "fc_att", None, None),
        *_qformer("fusion/(video|audio|multi)/qformer", r"\1"),
        Row("fusion/video/qformer/positions", "video_frame_position_embedding.weight", (None, None)),
        Row("fusion/(audio|multi)/qformer/positions", r"\1_position_embedding.weight", (None, None)),
        # Ours alone: what stands in for a missing stream.
        Row("fusion/absent_(face|frame|audio|image)", r"absent_\1", (None,)),
    ],
    # Buffers that the reference's checkpoints carry beside the parameters (QUIRKS 41).
    ignored=r".*\.position_ids|.*\.inv_freq",
)

SCALE = "kernel_scale"
"""Last key of what a kernel held as int8 has beside it; it is made when a base is read and stored nowhere."""

_SCALES = [
    Row(f"decoder/layers/{linear}/{SCALE}", f"{_LAYER}.{place}.{linear}.{SCALE}", (outer,))
    for linear, place, _, outer, _ in _LINEARS
]

MODEL = Table("AffectGPT", [*DECODER.rows, *TRAINED.rows, *_SCALES])
"""Every parameter of `models.affectgpt.AffectGPT`: the base model under its Hugging Face names, the rest under the
reference's."""
