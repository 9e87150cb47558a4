"""The page of a timeline: the recording beside its curves, which move together."""

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from affectgpt_jax.inference.limits import LIMITS
from affectgpt_jax.inference.report.markup import STYLE, Cell, Html, document, facts, listing, section, table, tag
from affectgpt_jax.inference.report.page import LIMITS as LONG_LIMITS
from affectgpt_jax.inference.timeline import Timeline, clock
from affectgpt_jax.inference.timeline.files import (
    COLOURS,
    Curves,
    ceiling,
    middle,
    person_name,
    plotted,
    spans,
    valences,
)
from affectgpt_jax.version import __version__

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1000, 230, 44, 12, 26
"""Of a drawing, in its own units."""


def page(timeline: Timeline, shown: Curves, media: str, *, question: str, notes: Sequence[str]) -> str:
    """The page.

    Args:
      timeline: what was found.
      shown: the curves.
      media: where the recording is, as seen from the page (`link`).
      question: as it was put.
      notes: what else is to be known, such as that nothing is calibrated.

    Returns:
      An HTML document that refers to the recording and to nothing else.
    """
    here = Path(__file__)
    script = here.with_name("timeline.js").read_text(encoding="utf-8")
    style = STYLE + here.with_name("timeline.css").read_text(encoding="utf-8")
    style += _colours(0) + "@media (prefers-color-scheme: dark) {\n" + _colours(1) + "}\n"
    kind = "video" if timeline.pictures else "audio"
    player = Html(
        f'<{kind} id="media" controls preload="metadata" src="{escape(media)}">'
        f"{tag('a', 'the recording', href=media)}</{kind}>"
    )
    broken = tag("p", "The browser cannot play this file. The curves and the table work without it.", id="unplayable")
    people = plotted(timeline)
    hidden = len({record["person"] for record in timeline.records}) - len(people)
    more = [*timeline.problems, *notes]
    if hidden:
        more.append(f"{hidden} more people are in the table, timeline.csv and timeline.jsonl, but not drawn.")
    body = [
        tag("header", tag("h1", timeline.video.name), tag("p", question), tag("p", LIMITS, class_="limits")),
        tag("section", tag("h2", "To be known"), listing(more), class_="gaps") if more else Html(""),
        tag(
            "main",
            tag(
                "div",
                tag("div", player, broken, tag("div", id="now", aria_live="off"), class_="beside"),
                tag("div", _legend(shown), *(_drawings(timeline, shown, people)), class_="curves"),
                class_="timeline",
            ),
            section("windows", "Windows", _table(timeline, shown)),
            section("about", "About", _about(timeline, question)),
            section("limits", "Limits of use", listing(LONG_LIMITS)),
        ),
        Html(f'<script type="application/json" id="records">{_data(timeline)}</script>'),
        Html(f"<script>\n{script}</script>"),
    ]
    return document(f"{timeline.video.name}: timeline", style, *body)


def link(media: Path, page_folder: Path) -> str:
    """A recording's address, as seen from a page in a folder."""
    return quote(Path(os.path.relpath(media, page_folder)).as_posix())


def _colours(ground: int) -> str:
    return "".join(f".s{k} {{ --c: {colours[ground]}; }}\n" for k, colours in enumerate(COLOURS))


def _legend(shown: Curves) -> Html:
    marks = (tag("li", Html(f'<svg class="s{k}" viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26"/></svg>'), name)
             for k, name in enumerate(shown.names))  # fmt: skip
    return tag("ul", *marks, class_="legend", aria_label="Labels, the likeliest on average first")


def _drawings(timeline: Timeline, shown: Curves, people: Sequence[str]) -> Iterator[Html]:
    top = ceiling(shown.values)
    valence = valences(timeline)
    for person in people:
        name = person_name(person, timeline)
        lines = list(shown.values.T)
        yield _drawing(timeline, person, f"Probabilities, {name}", name, lines, (0.0, top))
        if valence is not None:
            yield _drawing(timeline, person, f"Valence, {name}", "valence", [valence], timeline.limits)


def _drawing(
    timeline: Timeline, person: str, title: str, caption: str, lines: Sequence[np.ndarray], limits: tuple[float, float]
) -> Html:
    """Curves over time that can be clicked and moved along with the arrow keys."""
    low, high = limits
    runs = spans(timeline, person)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - 8) * seconds / max(timeline.seconds, 1e-9)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = []
    for value in np.linspace(low, high, 3).tolist():
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - 8}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    for seconds in np.linspace(0, timeline.seconds, 7).tolist():
        parts.append(f'<text x="{x(seconds):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{clock(seconds)}</text>')
    for k, values in enumerate(lines):
        paths, points = [], []
        for run in runs:
            pen = "M"
            for i in run:
                if np.isnan(values[i]):
                    pen = "M"
                    continue
                place = f"{x(middle(timeline.records[i])):.1f} {y(float(values[i])):.1f}"
                paths.append(f"{pen}{place}")
                pen = "L"
                if len(run) == 1:
                    points.append(f"M{place}h0")  # a point alone has no line
        parts.append(f'<path class="s{k} line" d="{"".join(paths)}"/>')
        if points:
            parts.append(f'<path class="s{k} point" d="{"".join(points)}"/>')
    parts.append(f'<rect class="window" y="{TOP}" height="{HEIGHT - TOP - BOTTOM}" x="0" width="0"/>')
    parts.append(f'<path class="cursor" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}"/>')
    drawing = Html(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="slider" tabindex="0" aria-label="{escape(title)}; arrow keys '
        f'move through the recording" aria-valuemin="0" aria-valuemax="{timeline.seconds:.2f}" aria-valuenow="0" '
        f'aria-valuetext="0:00" data-left="{LEFT}" data-right="{WIDTH - 8}" data-width="{WIDTH}" '
        f'data-person="{escape(person)}">{"".join(parts)}</svg>'
    )
    return tag("figure", tag("figcaption", caption), drawing)


def _table(timeline: Timeline, shown: Curves) -> Html:
    several = len({record["person"] for record in timeline.records}) > 1
    valence = any("valence" in record for record in timeline.records)
    header = ["window", *(["person"] if several else []), "labels", "answer", *(["valence"] if valence else [])]
    rows = []
    for record, values in zip(timeline.records, shown.values, strict=True):
        start = f"{record['start']:g}"
        place = tag(
            "button", f"{clock(record['start'])}-{clock(record['end'])}", type="button", data_start=start
        )  # fmt: skip
        number = record.get("valence")
        answer = record.get("error") or record["answer"] or "(empty)"
        said = f"“{record['words']}”" if record["words"] else ""
        cells = [Cell(record["person"] or "-")] if several else []
        cells += [Cell(", ".join(record["labels"]) or "(none sure enough)"), Cell(answer, said)]
        cells += [Cell("" if number is None else f"{number:g}")] if valence else []
        cells += [Cell("" if np.isnan(value) else f"{value:.2f}") for value in values]
        rows.append((place, cells))
    caption = f"{len(rows)} windows; a time leads there. Numbers are probabilities."
    return tag("div", table(caption, [*header, *shown.names], rows), class_="windows")


def _about(timeline: Timeline, question: str) -> Html:
    lacking: dict[str, dict[str, int]] = {}
    for record in timeline.records:
        for name, why in record["absent"].items():
            reasons = lacking.setdefault(name, {})
            reasons[why] = reasons.get(why, 0) + 1
    absent = {
        f"no {name}": "; ".join(f"{why} ({count} of {len(timeline.records)})" for why, count in reasons.items())
        for name, reasons in sorted(lacking.items())
    }
    return facts(
        {
            "recording": tag("code", timeline.video),
            "length": clock(timeline.seconds),
            "question": question,
            "run": f"{shlex.quote(timeline.run)}, step {timeline.step}",
            "program": f"affectgpt_jax {__version__}",
            **absent,
        }
    )


def _data(timeline: Timeline) -> str:
    """Records for the script; no text in them can end it."""
    kept = [
        {
            "start": record["start"],
            "end": record["end"],
            "person": record["person"],
            "name": person_name(record["person"], timeline),
            "labels": ", ".join(record["labels"]),
            "answer": record.get("error") or record["answer"],
            "words": record["words"],
            "valence": record.get("valence"),
        }
        for record in timeline.records
    ]
    text = json.dumps({"seconds": timeline.seconds, "records": kept}, ensure_ascii=False)
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
