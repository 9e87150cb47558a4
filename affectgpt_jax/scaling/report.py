"""A study's report: the same page as HTML in one file, and as Markdown with its pictures beside it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from affectgpt_jax.inference.report import markup
from affectgpt_jax.inference.report.figures import Picture
from affectgpt_jax.replacing import replacing
from affectgpt_jax.scaling.figures import (
    difference_picture,
    frontier_picture,
    law_picture,
    residual_picture,
    slices_picture,
)
from affectgpt_jax.scaling.findings import LOSS, Difference, Finding
from affectgpt_jax.scaling.plan import Plan
from affectgpt_jax.scaling.rows import Row
from affectgpt_jax.scaling.tables import LARGEST
from affectgpt_jax.version import __version__

FORMS = {
    "chinchilla": "L = E + A / N^a + B / D^b",
    "repeats": "L = E + A / N'^a + B / D'^b, N' and D' what sizes and repeats are worth (R_N, R_D)",
    "saturating": "L = E + A / D^a",
    "saturating-size": "L = E + A / N^a",
}


class Text(NamedTuple):
    """A paragraph."""

    words: str


class Listing(NamedTuple):
    """Sentences with dots; `warn` for what a reader must not miss."""

    items: Sequence[str]
    warn: bool = False


class Table(NamedTuple):
    """A table whose rows begin with their name."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(NamedTuple):
    """Lines of a shell."""

    lines: Sequence[str]


Block = Text | Listing | Table | Code | Picture


class Section(NamedTuple):
    """A part of the page."""

    title: str
    blocks: Sequence[Block]


class Source(NamedTuple):
    """What a report is about.

    Attributes:
      name: of the study, or the file of a table.
      plan: the study's; None for a table from elsewhere.
      rows: the study's; empty for a table.
      commands: that made all of it.
    """

    name: str
    plan: Plan | None
    rows: Sequence[Row]
    commands: Sequence[str]


def compose(
    source: Source, findings: Sequence[Finding], found: Sequence[Difference], budgets: Mapping[str, float]
) -> list[Section]:
    """The page.

    Args:
      source: what it is about.
      findings: the laws.
      found: what other axes change.
      budgets: FLOPs that predictions were asked for.
    """
    sections = [Section("The study", _about(source))] if source.plan else []
    sections += [Section(f"Law: {finding.title}", _law(finding, budgets)) for finding in findings]
    if found:
        sections.append(Section("What else changes the loss", _differences(found)))
    if source.rows:
        sections.append(Section("Runs", _runs(source.rows)))
    table = " Every number above comes from results.csv beside this page." if source.rows else ""
    again = Text(f"affectgpt_jax {__version__}.{table}")
    return [*sections, Section("Reproduce", [Code(source.commands), again])]


def _about(source: Source) -> list[Block]:
    plan, rows = source.plan, source.rows
    assert plan is not None
    done = [row for row in rows if row.status == "done"]
    study = plan.study
    hours = sum(row.seconds for row in rows) / 3600
    chips = sorted({row.chip for row in done if row.chip})
    flops = sum(row.flops for row in done)
    words = (
        f"{len(done)} of {len(plan.runs)} runs are done: {study.seeds} seeds, base {study.base}, {flops:.3g} FLOPs in "
        f"{hours:.2f} hours of run time on {', '.join(chips) or 'nothing'}."
    )
    table = [
        (name, part.design, ", ".join(part.size) or "base", _listed(part.captions) or "found", _other_axes(part))
        for name, part in study.parts.items()
    ]
    blocks: list[Block] = [Text(words), Table("Parts", ("", "design", "sizes", "captions", "other axes"), table)]
    rate = study.learning_rate
    rules = [
        "N counts all of the decoder's parameters, embeddings and adapters included; D the captions seen, repeats "
        "included; C is training's FLOPs by the closed form of docs/performance.md, the decoder's alone.",
        "Sizes are those of the ladder in affectgpt_jax/scaling/ladder.py.",
        f"Learning rate: {rate.rate:g} x (width / {rate.width})^{rate.exponent:g}, warmed up over {rate.warmup:.0%} of "
        f"the steps, then a cosine to {rate.end:.0%} of it at the run's own last step.",
    ]
    blocks.append(Listing(rules))
    if bad := [row for row in rows if row.status != "done"]:
        blocks.append(Listing([f"{row.id} {row.status}: {row.reason}" for row in bad], warn=True))
    return blocks


def _other_axes(part: object) -> str:
    names = ("epochs", "rank", "encoder", "query_tokens", "frames", "prefusion", "flops")
    said = {name: getattr(part, name) for name in names}
    return "; ".join(f"{name} {_listed(values)}" for name, values in said.items() if values and values != (1,))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def _law(finding: Finding, budgets: Mapping[str, float]) -> list[Block]:
    if finding.fit is None:
        return [Text(f"No law: {finding.why_not}."), *([Listing(finding.notes)] if finding.notes else [])]
    fitted, points = finding.fit, finding.points
    what = "the loss in nats a target token" if finding.metric == LOSS else f"1 - {finding.metric.replace('_', ' ')}"
    blocks: list[Block] = [
        Text(
            f"{FORMS[fitted.law.name]}, fitted to {what} of {len(points.loss)} runs by a Huber loss of log residuals "
            f"(delta {fitted.delta:.2g}); {fitted.agreeing} of {fitted.starts} starts came to this optimum. A run lies "
            f"{fitted.sigma:.2%} from the law (robust standard deviation)."
        )
    ]
    if finding.warnings:
        blocks.append(Listing(finding.warnings, warn=True))
    if finding.notes:
        blocks.append(Listing(finding.notes))
    blocks += [law_picture(finding), _values(finding), residual_picture(finding), *_left_out(finding)]
    if (best := finding.optimum) is not None:
        ends = best.ends
        said = [
            f"{name} grow with compute to the power {value:.3f}"
            + (f" [{ends[key][0]:.3f}, {ends[key][1]:.3f}]" if ends else "")
            for name, key, value in (
                ("parameters", "size_exponent", best.size_exponent),
                ("captions", "data_exponent", best.data_exponent),
            )
        ]
        blocks += [Text(f"At the compute-optimal frontier {' and '.join(said)}."), frontier_picture(finding)]
        if budgets:
            blocks.append(_predictions(finding, budgets))
    if (slices := finding.slices) is not None:
        blocks += [
            Text(
                f"Slices of equal compute: the optimum grows as C^{slices.size_exponent:.3f} in parameters "
                f"[{slices.size_interval[0]:.3f}, {slices.size_interval[1]:.3f}] and C^{slices.data_exponent:.3f} in "
                "captions."
            ),
            slices_picture(slices, points, finding.title),
        ]
        if slices.notes:
            blocks.append(Listing(slices.notes))
    return blocks


def _values(finding: Finding) -> Table:
    fitted = finding.fit
    assert fitted is not None
    ends = finding.intervals.ends if finding.intervals else {}
    rows = [
        (name, f"{value:.4g}", _interval(ends.get(name)), _interval(finding.profiles.get(name)))
        for name, value in fitted.values.items()
    ]
    return Table("Parameters with 95% intervals", ("", "value", "bootstrap", "profile likelihood"), rows)


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}"


def _left_out(finding: Finding) -> list[Block]:
    rows, reasons = [], []
    for which, (found, why) in finding.left_out.items():
        if found is None:
            reasons.append(f"Without {LARGEST[which]} nothing can be predicted: {why}.")
            continue
        for name, measured, predicted, error in zip(*found, strict=True):
            rows.append((LARGEST[which], name, f"{measured:.4f}", f"{predicted:.4f}", f"{error:+.1%}"))
    header = ("fitted without", "predicted", "measured", "by the law", "error")
    table = Table("Leave-out validation: the small predict the large", header, rows)
    return [*([table] if rows else []), *([Listing(reasons)] if reasons else [])]


def _predictions(finding: Finding, budgets: Mapping[str, float]) -> Table:
    best, points = finding.optimum, finding.points
    assert best is not None
    rows = []
    for i, asked in enumerate(budgets):
        cells = [
            f"{_plain(float(getattr(best, name)[i]), form)}"
            + (
                f" [{_plain(best.ends[name][0, i], form)} to {_plain(best.ends[name][1, i], form)}]"
                if best.ends
                else ""
            )
            for name, form in (("parameters", ".3g"), ("samples", ".3g"), ("loss", ".3f"))
        ]
        beyond = float(best.flops[i] / points.flops.max())
        rows.append((asked, f"{best.flops[i]:.3g}", *cells, f"{beyond:.3g}"))
    header = ("budget", "FLOPs", "parameters", "captions", "loss", "times the largest run")
    return Table("What asked budgets buy, at best; far beyond the runs it is a guess", header, rows)


def _plain(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else "-"


# ---------------------------------------------------------------------------------------------------------------------
# The rest


def _differences(found: Sequence[Difference]) -> list[Block]:
    blocks: list[Block] = []
    for axis in dict.fromkeys(one.axis for one in found):
        mine = [one for one in found if one.axis == axis]
        rows = [
            (
                f"{one.second} - {one.first}",
                one.setting or "all",
                str(one.pairs),
                f"{one.change:+.4f}",
                "-" if np.isnan(one.low) else f"{one.low:+.4f} to {one.high:+.4f}",
            )
            for one in mine
        ]
        caption = f"{axis}: change of the loss between runs that are otherwise alike, same seed"
        if any(one.setting for one in mine):
            blocks.append(difference_picture(mine, axis, LOSS))
        blocks.append(Table(caption, ("", "at", "pairs", "change", "95% interval (t)"), rows))
    return blocks


def _runs(rows: Sequence[Row]) -> list[Block]:
    names = sorted({name for row in rows for name in row.scores})
    header = ("run", "N", "D", "FLOPs", "loss", *names, "samples/s", "predicted", "s")
    table = [
        (
            row.id,
            f"{row.parameters:,}",
            f"{row.samples:,}",
            f"{row.flops:.2e}",
            "-" if row.loss is None else f"{row.loss:.4f}",
            *(f"{row.scores[name]:.3f}" if name in row.scores else "-" for name in names),
            "-" if row.samples_per_s is None else f"{row.samples_per_s:,.0f}",
            "-" if row.predicted is None else f"{row.predicted:,.0f}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return [Table("All runs; seconds include start, compiling and validation", header, table)]


def reproduce(study: str, budgets: Sequence[str]) -> list[str]:
    """The commands that make a study's report."""
    asked = f" --budget {shlex.join(budgets)}" if budgets else ""
    return [f"affectgpt scaling {action} {shlex.quote(study)}" for action in ("plan", "run")] + [
        f"affectgpt scaling report {shlex.quote(study)}{asked}"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Written


def write_report(folder: Path, name: str, sections: Sequence[Section]) -> tuple[Path, Path]:
    """Write report.html, which needs nothing else, and report.md with its pictures in the same folder."""
    html, text = folder / "report.html", folder / "report.md"
    with replacing(html) as temporary:
        temporary.write_text(as_html(name, sections), encoding="utf-8")
    pictures: dict[str, Picture] = {}
    markdown = as_markdown(name, sections, pictures)
    for file, picture in pictures.items():
        with replacing(folder / file) as temporary:
            temporary.write_bytes(picture.light)
    with replacing(text) as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    return html, text


def as_html(name: str, sections: Sequence[Section]) -> str:
    """One document without references to other files."""
    keys = {section.title: f"part{i}" for i, section in enumerate(sections)}
    links = (markup.tag("a", title, href=f"#{key}") for title, key in keys.items())
    body = [
        markup.tag("header", markup.tag("h1", f"Scaling: {name}")),
        markup.tag("nav", *links, aria_label="Parts of the page"),
        markup.tag("main", *(markup.section(keys[s.title], s.title, *map(_html, s.blocks)) for s in sections)),
    ]
    return markup.document(f"Scaling: {name}", markup.STYLE, *body)


def _html(block: Block) -> markup.Html:
    match block:
        case Text(words):
            return markup.tag("p", words)
        case Listing(items, warn):
            return markup.tag("div", markup.listing(items), class_="gaps" if warn else "")
        case Table(caption, header, rows):
            cells = ((row[0], [markup.Cell(cell) for cell in row[1:]]) for row in rows)
            return markup.table(caption, header, cells)
        case Code(lines):
            return markup.tag("pre", "\n".join(lines))
        case Picture():
            return markup.picture(block)


def as_markdown(name: str, sections: Sequence[Section], pictures: dict[str, Picture]) -> str:
    """The page as Markdown; `pictures` gets what it shows, by file name."""
    lines = [f"# Scaling: {name}"]
    for i, section in enumerate(sections):
        lines += ["", f"## {section.title}"]
        for block in section.blocks:
            match block:
                case Text(words):
                    lines += ["", words]
                case Listing(items, warn):
                    lines += ["", *(f"- {'**' if warn else ''}{item}{'**' if warn else ''}" for item in items)]
                case Table(caption, header, rows):
                    rule = ["---", *["---:"] * (len(header) - 1)]
                    table = [header, rule, *rows]
                    lines += ["", f"{caption}:", "", *("| " + " | ".join(row) + " |" for row in table)]
                case Code(code):
                    lines += ["", "```", *code, "```"]
                case Picture():
                    file = f"picture{i}-{len(pictures)}.png"
                    pictures[file] = block
                    lines += ["", f"![{block.alt}]({file})"]
    return "\n".join(lines) + "\n"
