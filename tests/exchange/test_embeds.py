"""Prompts as embeddings: the reference's, and a merged language model answers from them as the run does."""

import base64
import dataclasses
import io
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from affectgpt_jax.cli import main
from affectgpt_jax.data.examples import Rejected
from affectgpt_jax.data.responses import response_text
from affectgpt_jax.errors import UserError
from affectgpt_jax.exchange.export import open_whole
from affectgpt_jax.exchange.language import write_language
from affectgpt_jax.inference.answering import Answer, Answerer
from affectgpt_jax.inference.embeds import answer_with, prompt_embeds
from affectgpt_jax.inference.predict import Prediction, predict
from affectgpt_jax.inference.runs import Run, Trained, open_run, write_run
from affectgpt_jax.models.affectgpt import AffectGPT
from tests.conftest import ROOT
from tests.exchange.runs import golden_queries, golden_run, write_bases
from tests.media_files import tone, write_video
from tests.parity import goldens

pytestmark = pytest.mark.slow

NEW = 20
FACES = goldens.find(mode="multiface_audio_face_text")


def stops(name: str) -> bool:
    """Whether an answer of the setting ends in a stop sequence."""
    return any(key.endswith("/ids_with_stop") and len(x) < NEW for key, x in goldens.arrays(name).items())


# An image comes from no stream of a corpus.
SETTINGS = sorted(
    {FACES, *[x for x in goldens.settings() if stops(x) and goldens.golden(x).config.mode != "image"][:1]}
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    write_bases(folder)
    return folder


def reference_run(name: str, bases: Path) -> Trained:
    """A golden setting that asks as the reference does."""
    trained = golden_run(name, bases)
    return trained._replace(config=trained.config.model_copy(update={"compat": "reference"}))


def opened(trained: Trained) -> Run:
    config, tokenizer, params = open_whole(trained)
    return Run(Path(trained.source), config, tokenizer, AffectGPT(config.model), params, trained.step)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_references_embeddings_and_answers(name: str, bases: Path, tmp_path: Path) -> None:
    """Through a merged folder that transformers opens, token for token, as the reference generated."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    g, trained = goldens.golden(name), reference_run(name, bases)
    run = opened(trained)
    write_language(trained, tmp_path)
    model = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    ours = Answerer(run, batch=3, max_new=NEW)(golden_queries(name))
    for i, query in enumerate(golden_queries(name)):
        embeds = prompt_embeds(run, query)
        assert embeds.dtype == np.float32
        np.testing.assert_allclose(embeds, g.data[f"gen{i}/inputs_embeds"][0], atol=1e-4, rtol=1e-5)
        ids = model.generate(
            inputs_embeds=torch.from_numpy(embeds)[None], max_new_tokens=NEW, stop_strings="###", tokenizer=tokenizer
        )[0].tolist()
        assert ids == g.data[f"gen{i}/ids_with_stop"].tolist()
        assert isinstance(ours[i], Answer)
        assert ours[i].tokens == len(ids)
        assert ours[i].text == response_text(ids, run.tokenizer, compat="reference")


def test_what_a_sample_lacks(bases: Path) -> None:
    """The prompt is that of the answerer: it leaves out what is absent, and refuses what cannot be asked."""
    run = opened(golden_run(FACES, bases))
    query = golden_queries(FACES)[0]
    voice = query._replace(features={"audio": query.features["audio"]})
    assert len(prompt_embeds(run, voice)) < len(prompt_embeds(run, query))
    endless = query._replace(question="why? " * 1000)
    with pytest.raises(UserError, match=r"^0 too long: \d+ prompt tokens, 800 are allowed"):
        prompt_embeds(run, endless)
    assert len(prompt_embeds(run, query._replace(subtitle="word " * 1000))) <= 800
    assert len(prompt_embeds(run, query._replace(subtitle="word " * 1000), max_new_tokens=1500)) <= 500

    refused, said = answer_with(run, lambda embeds: f"{len(embeds)}, ###")([endless, voice])
    assert isinstance(refused, Rejected)
    assert isinstance(said, Answer)
    assert said.text == f"{len(prompt_embeds(run, voice))},"
    assert said.absent == ("face",)
    assert "asked in mode 'audio_text'" in said.note


def stand_in(model: Any, tokenizer: Any) -> ModuleType:
    """A module `openai` whose client does what vLLM documents for a request with prompt embeddings."""
    import torch

    def create(**request: Any) -> Any:
        assert (request.pop("model"), request.pop("prompt"), request.pop("temperature")) == ("served", "", 0)
        stop, most, body = request.pop("stop"), request.pop("max_tokens"), request.pop("extra_body")
        assert not request
        embeds = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True)), weights_only=True)
        assert embeds.dim() == 2
        options = {"max_new_tokens": most, "stop_strings": stop, "tokenizer": tokenizer}
        ids = model.generate(inputs_embeds=embeds[None], **options)[0]
        text = tokenizer.decode(ids, skip_special_tokens=True).partition(stop)[0]
        return SimpleNamespace(choices=[SimpleNamespace(text=text)])

    module = ModuleType("openai")
    client = SimpleNamespace(completions=SimpleNamespace(create=create))
    module.OpenAI = lambda base_url, api_key: client  # type: ignore[attr-defined]
    return module


@pytest.mark.slow
def test_the_page(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/serving.md, as it stands there, answers about a clip as the run does."""
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    write_run(golden_run(FACES, bases), Path("runs/mine"))
    write_video(Path("clip.mp4"), sound=tone(2.0, 44_100)[None])
    (expected,) = predict(open_run("runs/mine"), ["clip.mp4"], "labels", max_new=NEW)
    assert isinstance(expected, Prediction)
    assert expected.answer

    page = (ROOT / "docs" / "serving.md").read_text().replace("200", str(NEW))
    (export,) = re.findall(r"^affectgpt (export .*)$", page, re.MULTILINE)
    assert main([*shlex.split(export), "--no-parity"]) == 0
    ask, *backends = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(backends) == 2
    names: dict[str, Any] = {}
    for backend in backends:
        exec(backend, names)
        exec(ask, names)
        # Tokens are counted anew from the text.
        own = {"seconds": expected.seconds, "tokens": expected.tokens, "notes": expected.notes}
        assert dataclasses.replace(names["found"], **own) == expected
        monkeypatch.setitem(sys.modules, "openai", stand_in(names["model"], names["tokenizer"]))
