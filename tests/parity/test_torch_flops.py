"""The closed form of the original's way of training against torch's own count: PEFT over a frozen Qwen2, padded."""

import pytest

from affectgpt_jax.config.networks import LINEARS, DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.training.flops import decoder_work, padded_work
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.trainable import split
from tests.parity.torch_models import torch, transformers

peft = pytest.importorskip("peft")
flop_counter = pytest.importorskip("torch.utils.flop_counter")

LENGTH = 24


def test_a_padded_batch_is_what_torch_counts() -> None:
    """To the last product: logits of all places, all pairs, no gradient of a frozen kernel, one of the input."""
    sizes = {"vocab": 64, "width": 48, "layers": 3, "heads": 6, "kv_heads": 3, "head_dim": 8, "mlp_width": 72}
    decoder = DecoderConfig(**sizes, lora=LoraConfig(rank=3))  # type: ignore[arg-type]
    config = ModelConfig(decoder=decoder)
    trained, frozen = split(config, parameter_shapes(AffectGPT(config)), ("^fusion/", "/lora_[ab]$"))
    form = decoder_work(decoder, trained, frozen)

    base = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**decoder.to_hf(), attn_implementation="eager"))
    adapters = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(LINEARS))
    model = peft.get_peft_model(base, adapters)
    words = torch.zeros((3, LENGTH, decoder.width), requires_grad=True)
    mask = torch.ones((3, LENGTH), dtype=torch.long)
    mask[1, 10:] = mask[2, 17:] = 0
    counter = flop_counter.FlopCounterMode(display=False)
    with counter:
        labels = torch.zeros((3, LENGTH), dtype=torch.long)
        model(inputs_embeds=words, attention_mask=mask, labels=labels).loss.backward()
    # Every batch drawn from one length is this one.
    expected = form.flops(padded_work([LENGTH] * 3))
    assert counter.get_total_flops() == expected
