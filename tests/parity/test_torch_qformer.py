"""The Q-Former against Hugging Face's BLIP-2 with random weights.

Of the library's BERT-style layers this is the one with QUIRKS 17's order (self-attention, cross-attention,
feed-forward, a norm after each sum), a query branch of its own, keys of another width than the queries, and
self-attention that looks both ways; `BertLayer` has the same order but insists on causal queries for cross-attention.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affectgpt_jax.config.networks import QFormerConfig
from affectgpt_jax.models.qformer import QFormer
from affectgpt_jax.weights.networks import TRAINED
from affectgpt_jax.weights.table import read_tree, write_tree
from tests.parity.torch_models import as_torch, randomise, shapes, torch, transformers, uniform

EXACT = {"atol": 1e-5, "rtol": 1e-5}
COMPOSITE = {"atol": 1e-4, "rtol": 0}

TABLE = 11
QUERIES = 5


def oracle(heads: int, feature_width: int) -> Any:
    config = transformers.Blip2QFormerConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads,
        intermediate_size=40,
        encoder_hidden_size=feature_width,
        cross_attention_frequency=1,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    )
    return randomise(transformers.Blip2QFormerModel(config), seed=1)


def reference_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """BLIP-2's names as the reference's checkpoints spell them."""
    return {
        "video_Qformer.bert."
        + name.replace("layernorm", "embeddings.LayerNorm").replace("attention.attention.", "attention.self."): tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(("heads", "feature_width"), [(4, 24), (3, 18)])
def test_stages_and_gradients(heads: int, feature_width: int) -> None:
    """Every block's output, and gradients of all weights, the queries and the position table."""
    model = oracle(heads, feature_width)
    queries = as_torch(uniform(2, 1, QUERIES, 24)).requires_grad_()
    positions = as_torch(uniform(3, TABLE, feature_width)).requires_grad_()
    features = uniform(4, 3, 7, feature_width)
    cotangent = uniform(5, 3, QUERIES, 24)

    blocks: dict[str, list[Any]] = {"self_attention": [], "cross_attention": [], "output": []}
    for layer in model.encoder.layer:
        for name, module in (("self_attention", layer.attention), ("cross_attention", layer.crossattention)):
            module.register_forward_hook(lambda _, __, out, name=name: blocks[name].append(out.detach()))
        layer.register_forward_hook(lambda _, __, out: blocks["output"].append(out.detach()))
    memory = as_torch(features) + positions[:7]
    expected = model(query_embeds=queries.expand(3, -1, -1), encoder_hidden_states=memory).last_hidden_state
    (expected * as_torch(cotangent)).sum().backward()

    tensors = reference_names(dict(model.named_parameters()))
    tensors |= {"video_query_tokens": queries, "video_frame_position_embedding.weight": positions}
    config = QFormerConfig(width=24, layers=2, heads=heads, mlp_width=40)
    net = QFormer(config, QUERIES, TABLE, feature_width)
    abstract = {"fusion": {"video": {"qformer": shapes(net, jnp.zeros((1, 1, feature_width)))}}}
    weights = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    params = read_tree(TRAINED, abstract, weights, "blip2")

    @jax.jit
    def compute(params: Any) -> Any:
        def loss(params: Any) -> Any:
            start, stages = net.apply(
                {"params": params["fusion"]["video"]["qformer"]}, jnp.asarray(features), method="stages"
            )
            return jnp.sum(stages.output[-1] * cotangent), (start, stages)

        return jax.grad(loss, has_aux=True)(params)

    grads, (start, stages) = compute(params)
    with torch.no_grad():
        np.testing.assert_allclose(start, model.layernorm(queries).expand(3, -1, -1), **EXACT)
    for name, outputs in blocks.items():
        np.testing.assert_allclose(getattr(stages, name), torch.stack(outputs), err_msg=name, **EXACT)
    np.testing.assert_allclose(stages.output[-1], expected.detach(), **EXACT)
    found = dict(write_tree(TRAINED, grads))
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(found[name], tensor.grad, err_msg=name, **COMPOSITE)


def test_more_features_than_positions() -> None:
    net = QFormer(QFormerConfig(width=24, layers=1, heads=3, mlp_width=8), QUERIES, 4, 6)
    with pytest.raises(ValueError, match="5 features exceed the Q-Former's position table of 4"):
        jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 5, 6))))
