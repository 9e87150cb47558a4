"""Scores of labels against Hugging Face's Qwen2 with random weights: one plain forward pass a word."""

from pathlib import Path

import numpy as np
import pytest

from affectgpt_jax.config.networks import DecoderConfig, LoraConfig
from affectgpt_jax.data.examples import Example
from affectgpt_jax.data.prompts import question
from affectgpt_jax.inference.answering import Query, make_prompt
from affectgpt_jax.inference.label_scores import LabelScorer, Scores
from affectgpt_jax.inference.runs import Run
from affectgpt_jax.weights.initial import resolve
from tests.parity.test_torch_qwen2 import text_model
from tests.parity.torch_models import as_torch, randomise, saved, torch, transformers
from tests.tiny_run import EMOTIONS, make_tokenizer, tiny_config

WORDS = (*EMOTIONS, "ill at ease", "dissatisfied", "x")
ENDS = (",", ".###")
"""After a label: more of them, or the end of the answer."""


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_a_plain_forward_pass(tied: bool, tmp_path: Path) -> None:
    """log p(word) + log of the summed p of what may end it, by `log_softmax` over prompt, opening, word."""
    make_tokenizer(tmp_path / "tokenizer")
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "tie_word_embeddings": tied}
    config = transformers.Qwen2Config(
        vocab_size=640,
        num_hidden_layers=2,
        intermediate_size=72,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=None,
        eos_token_id=None,
        **sizes,
    )
    theirs = randomise(transformers.Qwen2ForCausalLM(config), seed=4)
    hf, tensors = saved(theirs, tmp_path / "model")
    model, base, _ = text_model(hf, tensors, LoraConfig(rank=0))
    settings, tokenizer = resolve(tiny_config(tmp_path))
    assert model.config.decoder == DecoderConfig.from_hf(hf, lora=LoraConfig(rank=0))
    run = Run(tmp_path, settings.model_copy(update={"model": model.config}), tokenizer, model, base, 1)

    queries = [Query(str(i), "Well, " * i + "I see.", question("ovlabel"), {}) for i in (1, 9)]
    found = LabelScorer(run, WORDS, batch=2, max_new=8)(queries)

    def encode(text: str) -> list[int]:
        return theirs_tokenizer(text, add_special_tokens=False).input_ids

    stem = "The character's emotional state is"
    many = 0
    for query, scores in zip(queries, found, strict=True):
        assert isinstance(scores, Scores)
        prompt = make_prompt(run, query, 8)
        assert isinstance(prompt, Example)
        for word, score in zip(WORDS, scores.logs, strict=True):
            answer = encode(f"{stem} {word}")
            ends = {encode(f"{stem} {word}{end}")[len(answer)] for end in ENDS}
            assert len(ends) == 2
            ids = [*np.asarray(prompt.tokens).tolist(), *answer]
            with torch.no_grad():
                logs = theirs(input_ids=as_torch(np.array([ids]))).logits[0].log_softmax(-1)
            size = len(answer) - len(encode(stem))
            many += size > 2
            label = sum(logs[at - 1, ids[at]] for at in range(len(ids) - size, len(ids)))
            expected = label + logs[-1, sorted(ends)].logsumexp(0)
            assert abs(score - float(expected)) < 1e-4, word
    assert many >= 4
