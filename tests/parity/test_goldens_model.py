"""The model against the reference's own numbers, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.data.prompts import needs
from affectgpt_jax.models.decoder import DecoderLayer
from affectgpt_jax.models.qformer import QFormer
from affectgpt_jax.nn.norm import RMSNorm
from affectgpt_jax.ops.rotary import rotary_angles
from tests.parity import goldens

pytestmark = pytest.mark.parametrize("name", goldens.settings())

# The golden folder's README: float32 against float32.
ENCODER = {"atol": 2e-5, "rtol": 1e-5}
EMBEDS = {"atol": 1e-4, "rtol": 1e-5}
LOGITS = {"atol": 2e-4, "rtol": 0}


def test_vision_tower(name):
    g = goldens.golden(name)
    tower, params = goldens.vision()
    apply = jax.jit(lambda x: tower.apply({"params": params}, x))
    seen = 0
    for stream in ("face", "frame", "image"):
        if f"out/pixel_values_{stream}" in g.data:
            pixels = g.data[f"out/pixel_values_{stream}"].transpose(0, 2, 3, 1)
            expected = g.data[f"out/visual_encoder_{stream}"]
            np.testing.assert_allclose(apply(pixels), expected.reshape(-1, expected.shape[-1]), **ENCODER)
            seen += 1
    assert seen or "face" not in g.config.mode


def test_audio_tower(name):
    g = goldens.golden(name)
    if "out/hubert_input_values" not in g.data:
        assert "audio" not in g.config.mode
        return
    tower, params = goldens.audio()
    found = jax.jit(lambda x: tower.apply({"params": params}, x))(g.data["out/hubert_input_values"])
    expected = g.data["out/acoustic_encoder"]
    np.testing.assert_allclose(found, expected.reshape(-1, expected.shape[-1]), **ENCODER)


def test_soft_tokens(name):
    g = goldens.golden(name)
    batch = goldens.batch(g)
    params = goldens.model_params(g)
    fuse = jax.jit(lambda *x: g.model.apply({"params": params}, *x, method=lambda m, *x: m.fusion(*x))[:, 0])
    soft = fuse(batch.features, batch.present)
    offset = 0
    for modality in needs(g.config.mode).soft:
        expected = g.data[f"out/{modality}_llm"]
        found = soft[:, offset : offset + expected.shape[1]]
        np.testing.assert_allclose(found, expected, err_msg=modality, **EMBEDS)
        offset += expected.shape[1]
    assert offset == soft.shape[1]


def test_fused_vector(name):
    g = goldens.golden(name)
    if "out/multi_hidden" not in g.data:
        assert "multi" not in g.config.mode
        return
    features = goldens.encoder_features(g)
    params = goldens.model_params(g)
    fuse = jax.jit(lambda *x: g.model.apply({"params": params}, *x, method=lambda m, *x: m.fusion.multi.fused(*x)))
    fused = fuse(features[needs(g.config.mode).fused], features["audio"])
    expected = g.data["out/multi_hidden"]
    np.testing.assert_allclose(fused.reshape(expected.shape), expected, **EMBEDS)


def test_qformer_stages(name):
    g = goldens.golden(name)
    params = goldens.model_params(g)["fusion"]
    features = goldens.encoder_features(g)
    for stream in ("video", "audio", "multi"):
        if f"dbg/{stream}_qformer_embeddings" not in g.data:
            continue
        p = params[stream]
        if stream == "multi":
            linear = lambda part, x: x @ p[part]["kernel"] + p[part]["bias"]  # noqa: E731
            fused = "frame" if g.config.mode.startswith("multiframe") else "face"
            x = jnp.concatenate([linear("video_in", features[fused]), linear("audio_in", features["audio"])], axis=1)
        elif stream == "video":
            x = features["frame" if "frame" in features else "face"]
        else:
            x = features["audio"]
        net = QFormer(
            g.config.qformer,
            getattr(g.config.tokens, stream),
            getattr(g.config.positions, stream),
            x.shape[-1],
        )
        start, stages = jax.jit(lambda v, x: net.apply(v, x, method="stages"))({"params": p["qformer"]}, x)
        np.testing.assert_allclose(start, g.data[f"dbg/{stream}_qformer_embeddings"], **ENCODER)
        for layer in range(g.config.qformer.layers):
            for stage in stages._fields:
                key = f"dbg/{stream}_qformer_layer{layer}_{stage}"
                np.testing.assert_allclose(getattr(stages, stage)[layer], g.data[key], err_msg=key, **ENCODER)


def test_decoder_layers(name):
    g = goldens.golden(name)
    if "dbg/llm_final_norm" not in g.data:
        return
    batch = goldens.batch(g)
    c = g.config.decoder
    params = goldens.model_params(g)["decoder"]
    layer = DecoderLayer(c, parent=None)
    h = jnp.asarray(g.data["out/inputs_embeds"])
    angles = rotary_angles(batch.positions, c.head_dim, c.rope_theta)
    rows = batch.segment_ids > 0
    run = jax.jit(lambda own, h: layer.apply({"params": own}, h, None, angles, batch.segment_ids)[0])
    for i in range(c.layers):
        h = run(jax.tree.map(lambda x: x[i], params["layers"]), h)
        np.testing.assert_allclose(h[rows], g.data[f"dbg/llm_layer{i}_output"][rows], **EMBEDS)
    h = RMSNorm(c.norm_eps).apply({"params": params["final_norm"]}, h)
    np.testing.assert_allclose(h[rows], g.data["dbg/llm_final_norm"][rows], **EMBEDS)


def test_embeds_and_logits(name):
    g = goldens.golden(name)
    batch = goldens.batch(g)
    variables = {"params": goldens.model_params(g)}
    rows = batch.segment_ids > 0

    @jax.jit
    def compute(variables, b):
        inputs = b.tokens, b.soft_index, b.features, b.present
        embeds = g.model.apply(variables, *inputs, method="inputs_embeds")
        return embeds, g.model.apply(variables, b, method="logits")

    embeds, logits = compute(variables, batch)
    np.testing.assert_allclose(embeds[rows], g.data["out/inputs_embeds"][rows], **EMBEDS)
    np.testing.assert_allclose(logits[rows], g.data["out/logits"][rows], **LOGITS)
