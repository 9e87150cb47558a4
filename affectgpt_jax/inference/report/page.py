"""The page: what the run is, how it trained, what it scores, what each modality contributes, clips, limits."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from affectgpt_jax.config import RunConfig
from affectgpt_jax.data.prompts import needs, soft_layout
from affectgpt_jax.inference.report.examples import Example
from affectgpt_jax.inference.report.figures import confusion_picture, need_bars, reliability, training_curves
from affectgpt_jax.inference.report.groups import UNKNOWN, confusion, group, is_hit
from affectgpt_jax.inference.report.markup import (
    STYLE,
    Cell,
    Html,
    bars,
    document,
    facts,
    listing,
    photograph,
    picture,
    section,
    table,
    tag,
)
from affectgpt_jax.inference.report.record import RunRecord, Scored, Scores
from affectgpt_jax.model_folders import short_name
from affectgpt_jax.unibench.lexicon import NAME as LEXICON
from affectgpt_jax.unibench.report.tables import METRIC_TITLES
from affectgpt_jax.version import __version__

METRICS = {
    "hit_rate": "the group of the true primary word is among the groups of the answered words",
    "m_score": "the hit rate with each hit divided by the number of groups that were answered",
    "f_score": "overlap of true and answered groups: F of precision and recall",
    "precision": "share of the answered groups that are true",
    "recall": "share of the true groups that were answered",
    "weighted_f1": "positive or negative, read from the words; F1 of the two, weighted by their clips",
    "accuracy": "positive or negative, read from the words; share that is right",
}

BARS = 5
"""Labels of a clip whose probabilities are drawn."""

LIMITS = (
    "An answer is a statistical guess at how a clip may come across to others. It does not show what a person feels.",
    "It is not a diagnosis, and no basis for decisions about people: not for hiring, schooling, policing, credit, "
    "insurance, health or asylum.",
    "Scores hold for the corpus they were measured on. Other people, languages, cultures, cameras and microphones can "
    "change them in either direction; measure again on clips like yours.",
    "The model answers fluently when it is wrong, and when a face, a voice or words are missing.",
)


def page(record: RunRecord, examples: Sequence[Example]) -> str:
    """The whole report.

    Args:
      record: what the run folder holds.
      examples: clips to show.

    Returns:
      An HTML document without references to other files.
    """
    parts = {
        "run": ("The run", _about(record)),
        "training": ("Training", _training(record)),
        "scores": ("Scores", _scores(record)),
        "labels": ("Labels by probability", _scored(record)),
        "modalities": ("What each modality contributes", _modalities(record)),
        "confusion": ("Which group is taken for which", _confusion(record)),
        "clips": ("Clips", _clips(record, examples)),
        "again": ("Environment and reproduction", _again(record)),
        "limits": ("Limits of use", [listing(LIMITS)]),
    }
    links = (tag("a", title, href=f"#{key}") for key, (title, _) in parts.items())
    body = [
        tag("header", tag("h1", record.config.name), tag("p", _summary(record)), _tiles(record)),
        tag("nav", *links, aria_label="Parts of the page"),
        _gaps(record.gaps),
        tag("main", *(section(key, name, *inside) for key, (name, inside) in parts.items())),
    ]
    return document(f"{record.config.name}: report", STYLE, *body)


def _summary(record: RunRecord) -> str:
    config = record.config
    fusion = "no pre-fusion" if config.model.prefusion == "none" else f"{config.model.prefusion} pre-fusion"
    base = short_name(config.weights.language) if config.weights.language else "a decoder trained from scratch"
    return f"AffectGPT with {fusion} and {base}: emotions from {_modes(config)}."


def _modes(config: RunConfig) -> str:
    names = {"audio": "voice", "frame": "pictures", "face": "face", "image": "picture"}
    wanted = needs(config.model.mode)
    found = [names[stream] for stream in wanted.streams] + (["words"] if wanted.text else [])
    return f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else found[0]


def _plain(scores: Scores) -> str:
    """Name of the condition with everything in place: evaluation writes it first."""
    return next(iter(scores["scores"]))


def _tiles(record: RunRecord) -> Html:
    if record.scores is None:
        return Html("")
    plain = record.scores["scores"][_plain(record.scores)]
    tiles = [
        tag("div", tag("b", f"{plain[name]['value']:.3f}"), tag("span", title), class_="tile")
        for name, title in {"hit_rate": "hit rate", "f_score": "F of label sets", "weighted_f1": "sentiment F1"}.items()
        if name in plain
    ]
    tiles.append(tag("div", tag("b", record.scores["clips"]), tag("span", "clips answered"), class_="tile"))
    return tag("div", *tiles, class_="tiles")


def _gaps(gaps: Sequence[str]) -> Html:
    return tag("section", tag("h2", "Not in this report"), listing(gaps), class_="gaps") if gaps else Html("")


# ---------------------------------------------------------------------------------------------------------------------
# The run and its training


def _about(record: RunRecord) -> list[Html]:
    config, scores = record.config, record.scores or {}
    model, decoder = config.model, config.model.decoder
    tokens = soft_layout(model.mode, **model.tokens.model_dump())
    lora = f"rank {decoder.lora.rank}, alpha {decoder.lora.alpha:g}" if decoder.lora.rank else "none"
    hidden = ", ".join(f"{name} {rate:.0%}" for name, rate in config.data.hide.model_dump().items() if rate)
    steps = int(record.curves["step"][-1]) if "step" in record.curves else 0
    return [
        facts(
            {
                "folder": tag("code", record.folder),
                "trained": f"{steps:,} of {config.train.steps:,} steps" if steps else "no step is logged",
                "answers by": f"checkpoint of step {scores['step']:,}" if "step" in scores else "",
                "answered clips": f"{scores['clips']} of {scores['split']}, {scores['corpus']}" if scores else "",
                "input mode": tag("code", model.mode),
                "pre-fusion": f"{model.prefusion}; video by {model.video}, audio by {model.audio}",
                "soft tokens": ", ".join(f"{name} {len(slots)}" for name, slots in tokens.items()),
                "decoder": f"{decoder.layers} layers, width {decoder.width}, {decoder.heads} heads "
                f"({decoder.kv_heads} for keys and values), {decoder.dtype}",
                "language model": config.weights.language or "none: random weights at the start",
                "LoRA": lora,
                "trained parameters": tag("code", "  ".join(config.train.trainable)),
                "encoders": ", ".join(filter(None, (config.weights.vision, config.weights.audio))),
                "feature streams": ", ".join(config.prepare.streams),
                "hidden in training": hidden,
                "batch": f"{config.train.rows} rows of {config.data.row_length} tokens, "
                f"{config.train.accumulate} a step",
                "compat": config.compat,
                "seed": config.train.seed,
            }
        )
    ]


def _training(record: RunRecord) -> list[Html]:
    curves = record.curves
    shown = training_curves(curves, record.config.train.expected)
    if shown is None:
        return [tag("p", "Nothing was logged.")]

    def median(name: str, form: str) -> str:
        values = curves.get(name, np.empty(0))
        values = values[np.isfinite(values)]
        return format(float(np.median(values)), form) if len(values) else ""

    return [
        picture(shown),
        facts(
            {
                "samples a second": median("samples_per_s", ",.1f"),
                "tokens a second": median("tokens_per_s", ",.0f"),
                "of the peak (mfu_lora)": median("mfu_lora", ".1%"),
                "waiting for data": median("data_wait", ".1%"),
            }
        ),
        tag("p", "Medians over the logged steps; tokens are those of samples, not of padding.", class_="faint"),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def _scores(record: RunRecord) -> list[Html]:
    scores = record.scores
    if scores is None:
        return [tag("p", "The run has not been scored yet.")]
    names = list(scores["scores"][_plain(scores)])
    header = ("", *(METRIC_TITLES.get(name, name) for name in names))
    caption = f"{scores['clips']} clips, words grouped by {scores['table']}; in brackets 95 % bootstrap intervals."
    found = [table(caption, header, ((name, _row(row, names)) for name, row in scores["scores"].items()))]
    if record.others:
        rows = [
            (f"{name}: {other['clips']} clips of {other['corpus']}", _row(other["scores"][_plain(other)], names))
            for name, other in record.others.items()
        ]
        found.append(table("Other evaluations in this run folder, all modalities.", header, rows))
    meanings = {METRIC_TITLES.get(name, name): METRICS[name] for name in names if name in METRICS}
    found.append(tag("details", tag("summary", "What the scores mean"), facts(meanings)))
    if scores["table"] == LEXICON:
        note = (
            f"{LEXICON} is a small lexicon that comes with the program. Scores by it do not compare with published "
            "ones, which use the official emotion wheels (affectgpt evaluate --wheel-dir)."
        )
        found.append(tag("p", note, class_="faint"))
    return found


def _row(scores: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[Cell]:
    return [
        Cell(f"{s['value']:.3f}", f"[{s['low']:.3f}, {s['high']:.3f}]") if (s := scores.get(name)) else Cell("-")
        for name in names
    ]


def _scored(record: RunRecord) -> list[Html]:
    calibration, summary, _ = record.scored
    command = tag("code", f"affectgpt labels {shlex.quote(str(record.folder))} --calibrate validation --evidence")
    if not summary:
        return [tag("p", "Not scored yet. ", command, " adds probabilities of labels and what they rest on.")]
    found = [
        tag(
            "p",
            f"Each of {summary['words']} words is scored as the first label the model would write; nothing is read out "
            "of free text. Probabilities of the words of one group are added up.",
            class_="faint",
        )
    ]
    told: dict[str, object] = {"scored by": f"checkpoint of step {summary['step']:,}"}
    if calibration.get("split"):
        before, after = calibration["before"], calibration["after"]
        fits = {"before (temperature 1)": before, f"after (temperature {calibration['temperature']:.3f})": after}
        told |= {
            "calibrated on": f"{calibration['n']} clips of {calibration['split']}",
            "negative log-likelihood": f"{before['nll']:.3f} before, {after['nll']:.3f} after",
            "expected calibration error": f"{before['ece']:.3f} before, {after['ece']:.3f} after",
            "abstains below": f"{calibration['threshold']:.3f}: labels {calibration['coverage']:.1%} of these clips, "
            f"and {calibration['precision']:.1%} of those rightly",
        }
        if all(one.get("bins") for one in fits.values()):
            found.append(picture(reliability({name: one["bins"] for name, one in fits.items()})))
    else:
        told |= {"calibration": Html("none: probabilities are the model's own; " + command)}
    if summary["fit"]:
        fit = summary["fit"]
        told[f"on {summary['split']}"] = (
            f"negative log-likelihood {fit['nll']:.3f}, expected calibration error {fit['ece']:.3f} "
            f"({fit['clips']} clips with true labels)"
        )
    found.append(facts(told))
    names = ("hit_rate", "f_score")
    rows = [
        (name if part == "scores" else f"{name}, where there are any", [*_row(system[part], names), count])
        for name, system in summary["systems"].items()
        for part, count in (("scores", Cell(str(system["none"]))), ("given", Cell("")))
        if part in system
    ]
    if rows:
        caption = f"{summary['clips']} clips of {summary['split']}, words grouped by {summary['table']}."
        header = ("", *(METRIC_TITLES.get(name, name) for name in names), "clips without a label")
        found.append(table(caption, header, rows))
    if evidence := summary["evidence"]:
        moved = (f"{name} {one['change']:+.3f} (mean of {one['clips']} clips)" for name, one in evidence.items())
        found.append(tag("p", f"The best label's probability changes: {', '.join(moved)}. The clips below show it."))
    else:
        found.append(tag("p", "Without evidence: ", command, " asks again without each modality."))
    return found


def _modalities(record: RunRecord) -> list[Html]:
    scores = record.scores
    if scores is None:
        return [tag("p", "The run has not been scored yet.")]
    conditions = list(scores["scores"])
    if len(conditions) == 1:
        why = "Only the condition with all modalities was asked (affectgpt evaluate --plain, or a model without "
        return [tag("p", why, "features for absent modalities).")]
    by_need = scores["by_need"]
    if not by_need:
        why = "The corpus does not say which clips need which modality; the table above has the scores over all clips."
        return [tag("p", why)]
    plain = conditions[0]
    groups = {
        "without": "Hit rate with a modality absent, and what that costs",
        "shuffled": "Hit rate with a modality of another clip, and what that costs",
    }
    tables = [
        table(
            caption,
            ("", *(f"need {modality} ({entry['clips']})" for modality, entry in by_need.items())),
            ((name, _need_row(by_need, name, plain)) for name in (plain, *chosen)),
        )
        for kind, caption in groups.items()
        if (chosen := [name for name in conditions if name.startswith(kind)])
    ]
    what = (
        "A clip needs a modality when its emotion cannot be told from the others. In place of an absent one the model "
        "gets what it learned for that case; in place of the subtitle it gets none."
    )
    return [tag("p", what, class_="faint"), picture(need_bars(by_need, plain)), *tables]


def _need_row(by_need: Mapping[str, Any], condition: str, plain: str) -> list[Cell]:
    cells = []
    for modality, entry in by_need.items():
        rate = entry["hit_rate"][condition]
        cost = "" if condition == plain else f"{rate - entry['hit_rate'][plain]:+.3f}"
        cells.append(Cell(f"{rate:.3f}", cost, key=condition.endswith(f" {modality}")))
    return cells


def _confusion(record: RunRecord) -> list[Html]:
    if record.scores is None or not record.answers:
        return [tag("p", "There are no answers yet.")]
    counted = confusion(record.answers, _plain(record.scores))
    mistakes = [f"{true} taken for {found} ({count})" for true, found, count in counted.mistakes(5)]
    note = (
        f"Groups of the lexicon {LEXICON}: that of the first true word against that of the first answered word it "
        f"knows; “{UNKNOWN}” where it knows none. Numbers are clips, the shade is their share of the row."
    )
    said = f"Most frequent mistakes: {', '.join(mistakes)}." if mistakes else "No clip was answered with another group."
    return [picture(confusion_picture(counted)), tag("p", said), tag("p", note, class_="faint")]


# ---------------------------------------------------------------------------------------------------------------------
# Clips


def _clips(record: RunRecord, examples: Sequence[Example]) -> list[Html]:
    if record.scores is None or not examples:
        return [tag("p", "There are no answers yet.")]
    plain = _plain(record.scores)
    note = (
        f"{len(examples)} of {len(record.answers)} clips, evenly spread over the split: chosen by place, not by how "
        "well they were answered. The frames are squares, as an encoder reads them. “Hit” is the hit rate's, by "
        f"{LEXICON}."
    )
    return [tag("p", note, class_="faint"), *(_clip(example, plain, record.scored) for example in examples)]


def _clip(example: Example, plain: str, scored: Scored) -> Html:
    line = example.line
    truth, answers = line["truth"], line["answers"]
    if example.picture is not None:
        shown = photograph(example.picture, f"Frames of clip {line['name']}, from its beginning to its end")
    else:
        shown = tag("p", f"No picture: {example.why}.", class_="faint")
    without = [name for name in answers if name.startswith("without")]
    rows: dict[str, object] = {
        "subtitle": f"“{line['subtitle']}”" if line["subtitle"] else "(none)",
        "truth": ", ".join(truth) or "(no label)",
        "answer": Html(_verdict(truth, answers[plain]) + tag("span", f" {answers[plain]['text'] or '(empty)'}")),
        **{name: Html(_verdict(truth, answers[name]) + tag("span", f" {_labels(answers[name])}")) for name in without},
    }
    own = scored.clips.get(line["name"], {})
    evidence = own.get("evidence", {})
    if "likeliest" in own:
        rows["scored labels"] = ", ".join(own["labels"]) or f"none: {scored.summary['threshold']:.2f} is not reached"
    for name, found in evidence.items():
        if name not in answers:
            rows[name] = Html(_verdict(truth, {"labels": found.get("answer_labels", [])}) + _said(found))
    reference = line.get("description", "")
    more = tag("details", tag("summary", "reference description"), tag("p", reference)) if reference else ""
    return tag("article", tag("h3", line["name"]), shown, facts(rows), _changes(own), more, class_="clip")


def _said(found: Mapping[str, Any]) -> Html:
    return tag("span", f" {found.get('answer') or found.get('rejected') or '(empty)'}")


def _changes(own: Mapping[str, Any]) -> Html:
    """The likeliest labels of a clip with everything in its place, and without each modality."""
    evidence = {name: found for name, found in own.get("evidence", {}).items() if "words" in found}
    if not evidence:
        return Html("")
    shares = {name: {word["label"]: word["probability"] for word in found["words"]} for name, found in evidence.items()}
    plain = {word["label"]: word["probability"] for word in own["likeliest"]}
    for found in evidence.values():  # what is likely without a modality was given a probability with it, too
        plain |= {word["label"]: word["probability"] - word["change"] for word in found["words"]} | plain
    top = [own["likeliest"][0]["label"], *(max(by, key=lambda label: by[label]) for by in shares.values())]
    labels = list(dict.fromkeys([*top, *(word["label"] for word in own["likeliest"])]))[:BARS]
    rows = [(label, [plain[label], *(by.get(label) for by in shares.values())]) for label in labels]
    return bars("Probability of labels", ("", "all modalities", *shares), rows)


def _verdict(truth: Sequence[str], answer: Mapping[str, Any]) -> Html:
    if group(truth[:1]) == UNKNOWN:
        return tag("span", "not scored", class_="faint")
    hit = is_hit(truth, answer["labels"])
    return tag("span", "✓ hit" if hit else "✗ miss", class_="hit" if hit else "miss")


def _labels(answer: Mapping[str, Any]) -> str:
    return ", ".join(answer["labels"]) or answer["text"] or "(empty)"


# ---------------------------------------------------------------------------------------------------------------------
# Reproduction


def _again(record: RunRecord) -> list[Html]:
    folder = shlex.quote(str(record.folder))
    settings = f"{folder}/config.yaml"
    commands = [
        *_synthetic(record.corpus),
        f"affectgpt prepare {settings}",
        f"affectgpt train {settings} train.output=NEW_FOLDER",
        "affectgpt evaluate NEW_FOLDER",
        "affectgpt report NEW_FOLDER",
    ]
    environment = record.facts.get("environment", {})
    found: list[Html] = [
        tag(
            "p", "Every setting lies in the run folder's config.yaml; paths in it are as seen from where the run began."
        ),
        tag("pre", "\n".join(commands)),
        facts(
            {
                "this page": f"affectgpt_jax {__version__}",
                "trained with": ", ".join(f"{name} {version}" for name, version in environment.items()),
                "devices": record.facts.get("devices", ""),
                "training shards": tag("code", str(record.facts["corpus"])[:16]) if record.facts.get("corpus") else "",
                "answered shards": tag("code", record.scores["fingerprint"][:16]) if record.scores else "",
            }
        ),
    ]
    if not record.facts:
        found.append(
            tag("p", "No checkpoint lies in the run folder, which would name its environment.", class_="faint")
        )
    text = yaml.safe_dump(record.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    found.append(tag("details", tag("summary", "config.yaml"), tag("pre", text)))
    return found


def _synthetic(corpus: Path | None) -> list[str]:
    """The command that writes a synthetic corpus again; nothing for any other."""
    try:
        manifest = json.loads(((corpus or Path()) / "synth_manifest.json").read_text(encoding="utf-8"))
        counts = " ".join(f"--{split} {count}" for split, count in manifest["counts"].items())
        return [f"affectgpt synth {shlex.quote(str(corpus))} {counts} --seed {manifest['seed']}"]
    except (OSError, ValueError, KeyError):
        return []
