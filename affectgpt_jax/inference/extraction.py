"""Emotion words out of free answers, and the sentiment of such words: by a language model, as MER-UniBench is scored
(Qwen2.5-7B-Instruct), or by rule.

The benchmark fixes the prompts, byte for byte, the chat template and the sampling (toolkit/utils/qwen.py and
evaluation/ew_metric.py of the reference). A model's responses are kept on disk as they come, so that an interrupted job
goes on where it ended and equal answers are asked about once.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from affectgpt_jax.cache import cache_folder
from affectgpt_jax.config.networks import DecoderConfig, LoraConfig, ModelConfig
from affectgpt_jax.data.prompts import parse_openset
from affectgpt_jax.data.responses import response_labels
from affectgpt_jax.data.tokenizer import Tokenizer, open_tokenizer
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.answering import BUCKET
from affectgpt_jax.inference.engine import Engine, Prompts, Request
from affectgpt_jax.inference.runs import HERE, Placement
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.ops.sampling import Sampling
from affectgpt_jax.unibench.lexicon import polarity
from affectgpt_jax.weights.files import open_part
from affectgpt_jax.weights.initial import parameter_shapes, read_decoder
from affectgpt_jax.weights.networks import SCALE
from affectgpt_jax.weights.table import nest, paths
from affectgpt_jax.weights.towers import weights_hash

Report = Callable[[int, int], None]

LABEL_PROMPT = (
    "Please assume the role of an expert in the field of emotions. "
    "We provide clues that may be related to the emotions of the characters. "
    "Based on the provided clues, please identify the emotional states of the main character. "
    "The main character is the one with the most detailed clues. "
    "Please separate different emotional categories with commas and output only the clearly identifiable emotional "
    "categories in a list format. "
    "If none are identified, please output an empty list. "
    "Input: We cannot recognize his emotional state; Output: [] "
    "Input: His emotional state is happy, sad, and angry; Output: [happy, sad, angry] "
    "Input: {reason}; Output: "
)
"""From an answer to its emotion words."""

# The source's line breaks are escaped, its indentation is not.
SENTIMENT_PROMPT = (" " * 13).join(
    (
        "Please act as an expert in the field of emotions.",
        "We provide a few words to describe the emotions of a character.",
        "Please choose the most likely sentiment from the given candidates: [positive, negative, neutral]",
        "Please direct output answer without analyzing process.",
        "Input: [joyful]; Output: positive",
        "Input: []; Output: neutral",
        "Input: {reason}; Output: ",
    )
)
"""From emotion words, as the first prompt's response spells them, to their sentiment."""

HEAD = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
"""Qwen2.5's chat template around a single message, "user" and a line break before it."""

_PENALTY = Sampling(repetition_penalty=1.05, penalise_prompt=True)
SAMPLINGS = {"greedy": _PENALTY, "reference": _PENALTY._replace(temperature=0.7, top_p=0.8)}
"""The reference's settings for vLLM, which counts the prompt's tokens as repeated, too; and their likeliest answer."""

MAX_NEW = 512
BATCH = 8
"""The reference's, too."""

_LEADS = ("输入", "输出", "翻译", "让我们来翻译一下：", "output", "Output", "input", "Input")

_COMPUTE = {"float32": "float32", "bfloat16": "bfloat16", "float16": "bfloat16"}
"""Stored type of the weights -> type to compute in; float16 would overflow."""

_LAYOUT = 1
"""Part of the hash that names a file of responses: raise the number when the same question is asked in another way."""


def render(message: str) -> str:
    """A message as the chat template renders it, up to where the response begins."""
    return f"{HEAD}user\n{message}{TAIL}"


def chat_ids(tokenizer: Tokenizer, message: str) -> list[int]:
    """Token ids of `render(message)`, but that special tokens which the message spells stay text."""
    return [*tokenizer.encode(HEAD), *tokenizer.encode(f"user\n{message}", literal=True), *tokenizer.encode(TAIL)]


def clean_response(text: str) -> str:
    """A response without what may stand before it and without line breaks (the reference's `func_postprocess_qwen`)."""
    text = text.strip()
    for lead in _LEADS:
        text = text.removeprefix(lead)
    text = text.strip().removeprefix(":").removeprefix("：").strip()
    return text.replace("\n", "").strip()


def rule_labels(answer: str) -> str:
    """The labels of an answer by rule, spelled as the language model spells them: "[happy, sad]"."""
    return f"[{', '.join(response_labels(answer))}]"


def rule_sentiment(labels: str) -> str:
    """The sentiment of labels by the built-in lexicon: positive, negative or neutral; words it lacks count nothing."""
    return {1: "positive", 0: "neutral", -1: "negative"}[polarity(parse_openset(labels))]


class Rules:
    """What `Extractor` does, by rule."""

    def labels(self, answers: Mapping[str, str], report: Report | None = None) -> dict[str, str]:
        """The labels of answers, by name; there is nothing to report, as it takes no time."""
        return {name: rule_labels(answer) for name, answer in answers.items()}

    def sentiments(self, labels: Mapping[str, str], report: Report | None = None) -> dict[str, str]:
        """The sentiments of labels, by name."""
        return {name: rule_sentiment(response) for name, response in labels.items()}


def prediction_records(
    answers: Mapping[str, str], labels: Mapping[str, str], sentiments: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What `affectgpt score` reads, a record an answer.

    Args:
      answers: by name.
      labels: by name, as `Extractor` or `Rules` spell them.
      sentiments: by name.
    """
    records: list[dict[str, Any]] = []
    for name, answer in answers.items():
        response = labels[name]
        record = {"name": name, "answer": answer, "labels": parse_openset(response), "response": response}
        records.append(record if sentiments is None else record | {"sentiment": sentiments[name]})
    return records


class Extractor:
    """A language model that is asked for labels and sentiments.

    Its weights are read when the first response is not yet on disk. A response depends on its own prompt, the weights
    and the settings alone: not on its company, nor on what was asked before.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        sampling: Sampling = SAMPLINGS["greedy"],
        seed: int = 0,
        batch: int = BATCH,
        max_new: int | None = None,
        place: Placement = HERE,
    ) -> None:
        """Look at the folder.

        Args:
          folder: Hugging Face folder of a Qwen2-class chat model with its tokenizer, or OWNER/NAME in the Hub's cache.
          sampling: how tokens are drawn, see `SAMPLINGS`.
          seed: of the draws; equal prompts draw alike.
          batch: prompts that are at work at a time.
          max_new: tokens of a response at most; by default `MAX_NEW`.
          place: where the model shall lie, and how it is held.

        Raises:
          UserError: no such model, or one of another kind.
        """
        config, self._tensors = open_part(folder, "language")
        if (kind := config.get("model_type")) != "qwen2":
            raise UserError(f"{folder}: config.json says model_type={kind!r}, expected a Qwen2 or Qwen2.5 chat model")
        stored = config.get("dtype") or config.get("torch_dtype")
        if stored not in _COMPUTE:
            raise UserError(f"{folder}: config.json says dtype={stored!r}, expected one of {', '.join(_COMPUTE)}")
        max_new = MAX_NEW if max_new is None else max_new
        held = {"base": place.weights or "float", "cache": place.cache or "float"}
        decoder = DecoderConfig.from_hf(config, lora=LoraConfig(rank=0), dtype=_COMPUTE[stored], **held)
        self._folder, self._place = folder, place
        self._tokenizer = open_tokenizer(folder)
        self._model = AffectGPT(ModelConfig(mode="textonly", decoder=decoder))
        self._longest = config.get("max_position_embeddings", 32768) - max_new
        self._rows, self._max_new, self._sampling, self._seed = batch, max_new, sampling, seed
        settings = {
            "layout": _LAYOUT,
            "weights": weights_hash(folder),
            "decoder": decoder.model_dump(mode="json"),
            "tokenizer": self._tokenizer.fingerprint,
            "sampling": sampling._asdict(),
            "max_new": max_new,
            "seed": seed if sampling.temperature else None,
        }
        self.file = cache_folder() / "extraction" / f"{_sha256(json.dumps(settings, sort_keys=True))}.jsonl"
        """Where the responses are kept: a file a model and settings."""

    def labels(self, answers: Mapping[str, str], report: Report | None = None) -> dict[str, str]:
        """Draw the emotion words out of answers.

        Args:
          answers: by name.
          report: called with the number of names done and in all.

        Returns:
          The responses by name, such as "[happy, sad]" (`data.prompts.parse_openset` reads them).

        Raises:
          UserError: an answer is too long for the model, or the responses cannot be kept.
        """
        return self._ask(LABEL_PROMPT, answers, report)

    def sentiments(self, labels: Mapping[str, str], report: Report | None = None) -> dict[str, str]:
        """Choose a sentiment for emotion words.

        Args:
          labels: what `labels` returned.
          report: called with the number of names done and in all.

        Returns:
          The responses by name: "positive", "negative", "neutral", or what else the model said.

        Raises:
          UserError: as `labels`.
        """
        return self._ask(SENTIMENT_PROMPT, labels, report)

    def _ask(self, prompt: str, reasons: Mapping[str, str], report: Report | None) -> dict[str, str]:
        known = read_responses(self.file)
        keys, waiting = {}, {}
        for name, reason in reasons.items():
            message = prompt.format(reason=reason)
            try:
                keys[name] = key = _sha256(render(message))
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{name}: {reason!r} holds {error.object[error.start]!r}, half a character; write it again as UTF-8"
                ) from error
            if key not in known and key not in waiting:
                waiting[key] = chat_ids(self._tokenizer, message)
                if len(waiting[key]) > self._longest:
                    raise UserError(
                        f"{name}: the prompt has {len(waiting[key])} tokens, {self._folder} takes at most "
                        f"{self._longest} and the response; shorten the answer, or leave it out"
                    )

        asked = Counter(keys.values())
        done = sum(count for key, count in asked.items() if key in known)

        def tell() -> None:
            if report is not None:
                report(done, len(keys))

        tell()
        order = list(waiting)
        # Equal prompts draw alike, whatever else is asked.
        requests = [Request(as_prompt(waiting[key]), int(key[:8], 16)) for key in order]
        added = set(self._tokenizer.added.values())
        for place, ids in self._engine.run(requests) if requests else ():
            response = self._tokenizer.decode(token for token in ids if token not in added)
            add_responses(self.file, {order[place]: response})
            known[order[place]] = response
            done += asked[order[place]]
            tell()
        return {name: clean_response(known[key]) for name, key in keys.items()}

    @cached_property
    def _engine(self) -> Engine:
        return Engine(
            self._model,
            self._params(),
            rows=self._rows,
            max_new=self._max_new,
            stop=[(token,) for token in self._tokenizer.end_ids],
            sampling=self._sampling,
            seed=self._seed,
            length=bucket,
        )

    def _params(self) -> dict[str, Any]:
        dtype = jnp.dtype(self._model.config.decoder.dtype)
        decoder = paths({"decoder": parameter_shapes(self._model)["decoder"]})
        stored = {path: x.shape for path, x in decoder.items() if not path.endswith(SCALE)}
        shapes = nest({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in stored.items()})
        shardings = self._place.shardings(self._model.config)
        return read_decoder(shapes, self._tensors, str(self._folder), shardings)


def bucket(tokens: int) -> int:
    """What a prompt is padded to: one of four lengths an octave, for each of which the model is compiled."""
    step = max(BUCKET, (1 << tokens.bit_length()) >> 3)
    return -(-tokens // step) * step


def as_prompt(ids: Sequence[int]) -> Prompts:
    """A prompt of words alone."""
    tokens = np.asarray(ids, np.int32)[None]
    return Prompts(tokens, np.zeros_like(tokens), np.ones(tokens.shape, bool), {}, {})


def read_responses(file: Path) -> dict[str, str]:
    """The responses that a file keeps, by their prompts' hashes; a line that was cut off is asked for again."""
    return dict(_responses(file.read_bytes().splitlines())) if file.is_file() else {}


def _responses(lines: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    for line in lines:
        try:
            record = json.loads(line)
            found = record["key"], record["response"]
        except (ValueError, KeyError, TypeError):
            continue
        yield found


def add_responses(file: Path, found: Mapping[str, str]) -> None:
    """Add responses to a file that others may be adding to.

    Raises:
      UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as out:
            for key, response in found.items():
                # One call a line, so that two writers never mix theirs; a line break before it ends one cut off.
                line = f"\n{json.dumps({'key': key, 'response': response})}\n".encode()
                if out.write(line) < len(line):
                    raise OSError("the disk is full")
    except OSError as error:
        raise UserError(
            f"{file}: responses cannot be kept ({error}); free space, or name another folder with AFFECTGPT_CACHE_DIR"
        ) from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
