"""Panels of a pretraining run: whether there is something to predict, and what the words look like."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crossdistill.report.figures import line_chart
from crossdistill.report.panel import Panel, panel
from crossdistill.report.panels import describe, drawn, paragraph, row_colours, shown
from crossdistill.report.run import Run

MEANING = {
    "perplexity_batch": "words in all bags of a batch together: well above those of one image",
    "perplexity_image": "words in the bag of one image",
    "words_used": "share of words that were some location's nearest: near 1; towards 0 the vocabulary is dead",
    "mean_distance": "squared distance of a location to its nearest word, by which assignments are scaled",
    "embedding_spread": "how far apart embeddings of images are, from 0 (collapse) to 1",
}
_SHARES = ("words_used", "embedding_spread")
_MAX_CHARTS = 16


@panel(position=55)
def vocabulary(run: Run) -> Panel | None:
    """Curves of what the method showed of itself."""
    names = dict.fromkeys(name for _, histories in run.rows for one in histories for name in one.figures)
    known = sorted((name for name in names if _kind(name) is not None), key=_order)
    if run.results.kind != "pretrain" or not known:
        return None
    charts = Markup("\n").join(_chart(run, index, name) for index, name in enumerate(known[:_MAX_CHARTS]))
    used = dict.fromkeys(_kind(name) or "" for name in known)
    told = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(kind.replace("_", " "), MEANING[kind]) for kind in used
    )
    return Panel(
        "Is there something to predict?",
        Markup('<dl class="facts">{}</dl><div class="charts">{}</div>').format(told, charts),
    )


def _kind(name: str) -> str | None:
    """What a figure is, without its level; ``None`` of figures that are of another method."""
    kind = name.partition("_level")[0]
    return kind if kind in MEANING else None


def _order(name: str) -> tuple[int, str]:
    return list(MEANING).index(_kind(name) or ""), name


def _chart(run: Run, index: int, name: str) -> Markup:
    colours = row_colours(run.results.rows)
    series = [
        one
        for (row, histories), colour in zip(run.rows, colours, strict=True)
        for one in drawn(row.label, colour, [history.figure(run.axis, name) for history in histories])
    ]
    percent = _kind(name) in _SHARES
    title = name.replace("_level", ", level ").replace("_", " ")
    if not series:
        return Markup("")
    label = describe(title, series, percent=percent, axis=run.axis)
    svg = line_chart(series, axis=run.axis, percent=percent, size=(3.6, 2.3), identifier=f"word{index}", label=label)
    return shown(title, svg)


@panel(position=56)
def words(run: Run) -> Panel | None:
    """For each level the patches nearest to the most used words."""
    found = [one for folder in _folders(run) for one in _drawn_words(folder)]
    if not found:
        return None
    intro = (
        "Each row is one of the most used words, with the share of locations that chose it, and the patches of "
        "training images that lie nearest to it, at most one an image. A word is an average of earlier features: what "
        "its patches share is what it stands for."
    )
    pictures = Markup("\n").join(_picture(folder, facts) for folder, facts in found)
    return Panel("What the words look like", paragraph(intro, "note") + pictures)


def _folders(run: Run) -> list[Path]:
    """The folder of the first single run: vocabularies of several seeds have no word in common."""
    named = [one.folder for row in run.results.rows for one in row.runs if one.folder is not None]
    return [run.folder / folder for folder in (named or ["."])[:1]]


def _drawn_words(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for facts in (results.get("pretraining") or {}).get("words", ()):
        if (folder / facts["file"]).is_file():
            yield folder, facts


def _picture(folder: Path, facts: Mapping[str, Any]) -> Markup:
    data = base64.b64encode((folder / facts["file"]).read_bytes()).decode()
    told = ", ".join(f"word {one['word']} ({100 * one['share']:.2f} %)" for one in facts["words"])
    label = f"Patches nearest to the most used words of level {facts['level']}: {told}"
    image = Markup('<img class="words" alt="{}" src="data:image/png;base64,{}">').format(label, data)
    return shown(f"Level {facts['level']}, {facts['num_images']:,} images", image)
