"""The card of an export: the README.md that the Hub shows, from what the run and its folder say and nothing else."""

import functools
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from affectgpt_jax.checkpoint import Checkpoints
from affectgpt_jax.config import RunConfig
from affectgpt_jax.config.networks import ModelConfig
from affectgpt_jax.data.prompts import BOS, needs, prompt_parts, prompt_text, question
from affectgpt_jax.data.shard_schema import TEXT
from affectgpt_jax.errors import UserError
from affectgpt_jax.inference.report.page import LIMITS
from affectgpt_jax.inference.report.record import RunRecord, read_record
from affectgpt_jax.inference.runs import Trained, feature_shapes, model_layout, model_streams, open_shards
from affectgpt_jax.model_folders import hub_name, short_name
from affectgpt_jax.models.affectgpt import AffectGPT
from affectgpt_jax.unibench.intervals import Score
from affectgpt_jax.unibench.lexicon import NAME as LEXICON
from affectgpt_jax.unibench.report.render import markdown
from affectgpt_jax.unibench.report.tables import METRIC_TITLES, Table, percent, with_interval
from affectgpt_jax.version import __version__
from affectgpt_jax.weights.files import PARTS
from affectgpt_jax.weights.initial import parameter_shapes
from affectgpt_jax.weights.table import paths
from affectgpt_jax.weights.trainable import split

_KINDS = {
    "adapter": "LoRA adapters of the language model, as PEFT opens them; the fusion is in `fusion/`.",
    "merged": "The language model with its adapters merged (`Qwen2ForCausalLM`); the fusion is in `fusion/`.",
    "transformers": "Encoders, fusion and merged language model in one folder that runs with `trust_remote_code`.",
    "pth": "Adapters and fusion, as the authors' PyTorch code reads them.",
}
_LIBRARIES = {"adapter": "peft", "merged": "transformers", "transformers": "transformers", "pth": "affectgpt-jax"}

_PARTS = {"language": "language model", "tokenizer": "tokenizer", "vision": "CLIP", "audio": "HuBERT"}

SYNTHETIC, MER_CAPTION = "synthetic", "mercaptionplus"
_MARKS = {"synth_attributes.csv": SYNTHETIC, "track2_train_mercaptionplus.csv": MER_CAPTION}
"""Tables by which a folder of clips is known; the synthetic corpus has both."""
_CORPORA = {
    SYNTHETIC: "the synthetic corpus of affectgpt_jax, faces and voices made by a program",
    MER_CAPTION: "MER-Caption+, by the label table among the clips",
}

_CODE = {
    "adapter": """The language model alone, with PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("LANGUAGE"), "FOLDER")
```""",
    "merged": """The language model alone, with transformers or vLLM. Its prompts are embeddings with the soft tokens in
their places, which `affectgpt_jax.inference.embeds` makes (docs/serving.md there):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```""",
    "transformers": """With transformers alone. Zeros stand for a clip: pictures as CLIP's processor prepares them, and
pieces of sound of two seconds at 16 kHz.

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
size = model.config.vision_config.image_size
frames = {frames}
sound = {sound}
prompt = {prompt!r}
ids = tokenizer(prompt, return_tensors="pt").input_ids
options = dict(max_new_tokens=200, stop_strings="###", tokenizer=tokenizer)
answer = model.generate(ids, pixel_values=frames, input_values=sound, **options)
print(tokenizer.decode(answer[0]))
```""",
}

_CITATION = """```bibtex
@inproceedings{lian2025affectgpt,
  title     = {AffectGPT: A New Dataset, Model, and Benchmark for Emotion Understanding with Multimodal Large Language Models},
  author    = {Lian, Zheng and others},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2025},
  note      = {arXiv:2501.16566}
}
@software{affectgpt_jax, title = {affectgpt_jax}, author = {{The affectgpt_jax authors}}}
```"""  # noqa: E501


def model_card(run_folder: Path, trained: Trained, kind: str, report: Mapping[str, Any] | None) -> str:
    """Write the card.

    Args:
      run_folder: the run's, with scores and metrics if there are any.
      trained: what was exported of it.
      kind: of export, see `export.KINDS`.
      report: the parity report; None if the folder was not opened again.

    Returns:
      Markdown with the Hub's YAML in front. What nothing recorded is left out, or said to be unknown.

    Raises:
      UserError: not a run folder.
    """
    config, wanted = trained.config, needs(trained.config.model.mode)
    record = read_record(run_folder)
    checkpoints = Checkpoints(run_folder / "checkpoints")
    facts = checkpoints.restore({}, trained.step).facts
    checkpoints.close()
    synthetic = _data(config) == SYNTHETIC
    drawn = ["It knows drawn faces and made voices only; its answers about recordings of people mean nothing."]
    base = "Language model and encoders keep the licences of their makers, which bind what is derived from them."
    gated = "MER-Caption is CC BY-NC 4.0 and gated by its owners; nothing of it is in this folder."
    sections = {
        "How to open it": _opening(config, kind),
        "Training data": _training_data(config, facts),
        "Settings": _settings(trained, "corpus" in facts),
        "Scores": _scores(record, trained.step),
        "Hardware": _hardware(record, trained.step, facts),
        "Does the folder compute what the run computed?": _parity(report),
        "Use and limits": _listing(
            "For research on how emotion is expressed and described.", *LIMITS, *(drawn if synthetic else [])
        ),
        "Licences": f"{base} {'The training clips were made by a program.' if synthetic else gated}",
        "Citation": _CITATION,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"""---
{_front_matter(config, kind)}---

# {card_name(trained, kind)}

AffectGPT at step {trained.step:,}: it reads {", ".join([*wanted.streams, *["text"] * wanted.text])} of a clip and says
in words which emotions it shows. {_KINDS[kind]} Written by affectgpt_jax {__version__}.

{body}
"""


def card_name(trained: Trained, kind: str) -> str:
    """A name for the Hub: data, modalities, size, step, and the kind unless it is the whole model.

    The size is the language model's number of parameters cut to whole units, as such models are called: 7.6 billion
    are "7b". Data that are not known are left out.
    """
    wanted, count = needs(trained.config.model.mode), _language_size(trained.config.model)
    units = ((10**9, "b"), (10**6, "m"), (10**3, "k"))
    unit, letter = next((unit for unit in units if count >= unit[0]), units[-1])
    size = f"{count / unit:.1f}{letter}" if count < 2 * unit else f"{count // unit}{letter}"
    words = ["affectgpt", _data(trained.config), *wanted.streams, "text" if wanted.text else "", size]
    return "-".join(filter(None, [*words, f"step{trained.step}", "" if kind == "transformers" else kind]))


def _data(config: RunConfig) -> str:
    """A word for the training data: what the folder of clips is known to be, or else the name of the shards' folder."""
    corpus = config.prepare.corpus.rpartition(":")[2]
    known = [name for mark, name in _MARKS.items() if corpus and (Path(corpus) / mark).is_file()]
    name = re.sub(r"[^a-z0-9]+", "-", Path(config.data.shards).name.lower())[:40].strip("-")
    return known[0] if known else "" if name == "shards" else name


@functools.cache
def _language_size(config: ModelConfig) -> int:
    """Parameters of the language model without adapters."""
    shapes = paths(parameter_shapes(AffectGPT(config)))
    return sum(prod(x.shape) for path, x in shapes.items() if path.startswith("decoder/") and "/lora_" not in path)


def _listing(*lines: str, **facts: object) -> str:
    """A list of sentences and of facts, without those that are empty."""
    return "\n".join(f"- {line}" for line in (*lines, *(f"{k.replace('_', ' ')}: {v}" for k, v in facts.items() if v)))


def _front_matter(config: RunConfig, kind: str) -> str:
    streams = needs(config.model.mode).streams
    whole = "video-text-to-text" if set(streams) - {"audio"} else "audio-text-to-text"
    parts = PARTS if kind == "transformers" else ("language",)
    values = {
        "license": "other",
        "license_name": "base-models-and-data",
        "language": ["en"],
        "library_name": _LIBRARIES[kind],
        # What the Hub's own code would open of an adapter or a merged folder is a language model.
        "pipeline_tag": whole if streams and kind in ("transformers", "pth") else "text-generation",
        "base_model": [name for part in parts if (name := hub_name(getattr(config.weights, part) or ""))],
        "datasets": ["MERChallenge/MER2025"] if _data(config) == MER_CAPTION else [],
        "tags": ["affectgpt", "emotion-recognition", "multimodal", "jax", *streams],
    }
    return yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False)


def _opening(config: RunConfig, kind: str) -> str:
    wanted, apart = needs(config.model.mode), kind in ("adapter", "pth")
    visual = set(wanted.streams) - {"audio"}
    folders = {
        "language": apart,
        "tokenizer": apart and config.weights.tokenizer,
        "vision": kind != "transformers" and visual,
        "audio": kind != "transformers" and "audio" in wanted.streams,
    }
    named = [part for part, asked in folders.items() if asked]
    convert = " ".join(["affectgpt convert weights FOLDER RUN", *(f"weights.{part}={part.upper()}" for part in named)])
    predict = "affectgpt predict RUN CLIP.mp4" + " --faces FACES.npy" * ("face" in wanted.streams)
    predict += ' --subtitle "What is said."' * wanted.text
    where = "".join(f", {part.upper()} that of the original {_PARTS[part]}" for part in named)
    text = f"With affectgpt_jax; FOLDER is this folder{where}:\n\n```bash\n{convert}\n{predict}\n```"
    if kind not in _CODE:
        return text
    counts = {name: count for name, (count, _) in feature_shapes(config).items()}
    frames = ", ".join(f'"{name}": torch.zeros(1, {counts[name]}, 3, size, size)' for name in sorted(visual))
    parts = prompt_parts(config.model.mode, "What is said.", question("ovlabel"), model_layout(config))
    code = _CODE[kind].format(
        frames=f"{{{frames}}}",
        sound=f"model.normalise_audio(torch.zeros(1, {counts['audio']}, 32000))" if "audio" in counts else None,
        prompt=(BOS if config.compat == "strict" else "") + prompt_text(parts),
    )
    return f"{text}\n\n{code}"


def _training_data(config: RunConfig, facts: Mapping[str, Any]) -> str:
    if "corpus" not in facts:
        return "Unknown: the run was not trained here but made of weights from elsewhere."
    hidden = (f"{name} {rate:.0%}" for name, rate in config.data.hide.model_dump().items() if rate)
    return _listing(
        corpus=_CORPORA.get(_data(config), "unknown"),
        clips=", ".join(f"{count:,} {name}" for name, count in _split_sizes(config, facts["corpus"]).items()),
        fingerprint=f"`{facts['corpus']}` ({config.data.split}, {', '.join(model_streams(config).values())})",
        hidden_at_random=", ".join(hidden),
    )


def _split_sizes(config: RunConfig, fingerprint: str) -> dict[str, int]:
    """Clips of each split, if the shards of the training are at hand."""
    try:
        corpus = open_shards(config, config.data.split, verify=False)
    except UserError:
        return {}
    if corpus.fingerprint != fingerprint:
        return {}
    return {name: sum(entry.records for entry in shards) for name, shards in corpus.manifests[TEXT].splits.items()}


def _settings(trained: Trained, own: bool) -> str:
    """The model's, and those of the training if it was our own."""
    config, layout = trained.config, model_layout(trained.config)
    model, train, rule = config.model, config.train, config.train.optimizer
    decoder, lora = model.decoder, model.decoder.lora
    named = {part: short_name(folder) for part, folder in config.weights if folder}
    kinds: dict[str, str] = {"multi": model.prefusion, "audio": model.audio, "image": model.image}
    kinds |= dict.fromkeys(("face", "frame"), model.video)
    chosen, _ = split(model, trained.params, train.trainable)
    training = {
        "trained": f"{sum(x.size for x in paths(chosen).values()):,} parameters",
        "steps": f"{trained.step:,} of {train.steps:,}",
        "batch": f"{train.rows} rows of {config.data.row_length:,} tokens with {config.data.row_samples} samples at "
        f"most, {train.accumulate} a step",
        "optimizer": f"AdamW, rate {rule.peak:g} to {rule.end:g}, warm-up {rule.warmup_steps:,} steps (schedule "
        f"{rule.schedule}), weight decay {rule.weight_decay:g}, betas {rule.beta1:g} and {rule.beta2:g}, "
        f"clipped at {rule.clip_norm or 'no'} norm",
        "seed": str(train.seed),
    }
    return _listing(
        input_mode=f"`{model.mode}`",
        soft_tokens=", ".join(f"{name} {len(slots)} (by {kinds[name]})" for name, slots in layout.items()),
        language_model=f"{named.get('language', 'random weights at the start')}; {_language_size(model):,} "
        f"parameters, {decoder.layers} layers, width {decoder.width}, computed in {decoder.dtype}",
        encoders=", ".join(named[part] for part in ("vision", "audio") if part in named),
        LoRA=f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}" if lora.rank else "none",
        compat=config.compat,
        **(training if own else {}),
    )


def _scores(record: RunRecord, step: int) -> str:
    scores = record.scores
    if scores is None or scores.get("step") != step:
        return "Not scored" + (f"; the run's scores are those of step {scores.get('step')}." if scores else ".")
    names = list(next(iter(scores["scores"].values())))
    cells = {name: [with_interval(Score(**found[n])) for n in names] for name, found in scores["scores"].items()}
    note = f"{scores['clips']:,} clips of {scores['split']}, words grouped by {scores['table']}, 95 % intervals."
    if scores["table"] == LEXICON:
        note += " Scores by this lexicon do not compare with published ones."
    header = ("", *(METRIC_TITLES.get(name, name) for name in names))
    tables = [Table("Scores in percent", header, tuple((name, *row) for name, row in cells.items()), note)]
    if needed := scores["by_need"]:
        header = ("", *(f"need {name} ({entry['clips']})" for name, entry in needed.items()))
        rows = ((name, *(percent(entry["hit_rate"][name]) for entry in needed.values())) for name in cells)
        tables.append(Table("Hit rate on the clips that need a modality", header, tuple(rows)))
    return "\n".join(map(markdown, tables)).strip()


def _hardware(record: RunRecord, step: int, facts: Mapping[str, Any]) -> str:
    speeds = []
    for name in ("samples", "tokens"):
        values = record.curves.get(f"{name}_per_s", np.empty(0))
        values = values[np.isfinite(values) & (record.curves["step"] <= step)] if len(values) else values
        speeds += [f"{np.median(values):,.1f} {name} a second"] if len(values) else []
    return _listing(
        devices=facts.get("devices"),
        median_speed=", ".join(speeds),
        environment=", ".join(f"{name} {version}" for name, version in facts.get("environment", {}).items()),
    )


def _parity(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "Unknown: it was not opened again after the export."
    counts = ("positions", "argmax_differs", "argmax_differs_clearly")
    header = ("computed in", "largest", "mean", "positions", "another token first", "clearly so")
    rows = tuple(
        (dtype, f"{found['largest']:.2e}", f"{found['mean']:.2e}", *(str(found[key]) for key in counts))
        for dtype, found in report["differences"].items()
    )
    note = "Probes with fixed texts and random features; `affectgpt verify FOLDER` computes them anew."
    return markdown(Table("Differences of its logits from the run's", header, rows, note)).strip()
