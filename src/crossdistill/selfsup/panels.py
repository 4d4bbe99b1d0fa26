"""Panels of a pretraining run: whether there is something to predict, and what the words look like."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crossdistill.report.figures import Series, line_chart
from crossdistill.report.panel import Panel, panel
from crossdistill.report.panels import Training, describe, drawn, legend, paragraph, shown, trainings
from crossdistill.report.run import Run, run_folders
from crossdistill.report.table import grouped

KIND = "pretrain"
_MAX_CHARTS = 16


@dataclass(frozen=True, slots=True)
class Chart:
    """Figures of the method that are drawn together: name of each -> what it is of. ``healthy`` says what is good."""

    title: str
    figures: Mapping[str, str]
    healthy: str
    percent: bool = False


CHARTS = (
    Chart(
        "perplexity",
        {
            "perplexity_batch": "words in the bags of a batch together",
            "perplexity_image": "words in the bag of one image",
        },
        "that of a batch lies well above that of one image; where they meet, all bags are alike",
    ),
    Chart(
        "words used",
        {"words_used": ""},
        "most words are some location's nearest; towards 0 % the vocabulary is dead",
        percent=True,
    ),
    Chart(
        "mean distance",
        {"mean_distance": ""},
        "the squared distance of a location to its nearest word changes slowly once the vocabulary has filled",
    ),
    Chart(
        "embedding spread",
        {"embedding_spread": ""},
        "stays away from 0 %, where the student says the same of all images, and has collapsed",
        percent=True,
    ),
)


@panel(position=55)
def vocabulary(run: Run) -> Panel | None:
    """Curves of what the method showed of itself, one chart a level, and how they look when all is well."""
    if run.results.kind != KIND:
        return None
    every = trainings(run)
    names = {name for one in every for history in one.histories for name in history.figures}
    found = [(chart, level, _series(run, every, chart, level)) for chart in CHARTS for level in _levels(chart, names)]
    found = [(chart, level, series) for chart, level, series in found if series]
    if not found:
        return None
    told = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(chart.title, chart.healthy)
        for chart in CHARTS
        if any(one is chart for one, _, _ in found)
    )
    drawings = Markup("\n").join(_drawing(run, index, *one) for index, one in enumerate(found[:_MAX_CHARTS]))
    several = next((legend(series) for _, _, series in found if len(series) > 1), Markup(""))
    return Panel(
        "Is there something to predict?",
        Markup('<dl class="facts told">{}</dl>\n{}<div class="charts">{}</div>').format(told, several, drawings),
    )


def _levels(chart: Chart, names: set[str]) -> list[str]:
    """Ends of the names of this chart's figures that were logged: ``_level3``; empty where there are no levels."""
    first = next(iter(chart.figures))
    ends = {name.removeprefix(first) for name in names if name == first or name.startswith(f"{first}_level")}
    return sorted(ends, key=lambda end: (len(end), end))


def _series(run: Run, every: list[Training], chart: Chart, level: str) -> list[Series]:
    return [
        series
        for one in every
        for place, (figure, what) in enumerate(chart.figures.items())
        for series in drawn(
            what or one.name,
            one.colour + place,
            [history.figure(run.axis, figure + level) for history in one.histories],
        )
    ]


def _drawing(run: Run, index: int, chart: Chart, level: str, series: list[Series]) -> Markup:
    title = chart.title + level.replace("_level", ", level ")
    label = describe(title.capitalize(), series, percent=chart.percent, axis=run.axis)
    size, identifier = (3.6, 2.3), f"word{index}"
    return shown(
        title,
        line_chart(series, axis=run.axis, percent=chart.percent, size=size, identifier=identifier, label=label),
    )


@panel(position=56)
def words(run: Run) -> Panel | None:
    """For each level the patches nearest to the most used words; of several seeds, of the first."""
    folders = run_folders(run.folder, run.results) if run.results.kind == KIND else ()
    pictures = [_picture(folders[0], facts) for facts in _drawn_words(folders[0])] if folders else []
    if not pictures:
        return None
    of_which = f" Vocabularies of several seeds have no word in common: these are of {folders[0].name}."
    intro = (
        "Each row is one of the most used words: the share of locations whose nearest word it is, and the patches of "
        "training images around the locations that lie nearest to it, at most one an image. A word is an average of "
        "features that the teacher gave: what its patches share is what it stands for."
    )
    text = intro + of_which * (len(folders) > 1)
    return Panel("What the words look like", paragraph(text, "note") + Markup("\n").join(pictures))


def _drawn_words(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The facts of each picture that is there."""
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for facts in (results.get("pretraining") or {}).get("words", ()):
        if (folder / facts["file"]).is_file():
            yield facts


def _picture(folder: Path, facts: Mapping[str, Any]) -> Markup:
    data = base64.b64encode((folder / facts["file"]).read_bytes()).decode()
    told = ", ".join(f"word {one['word']} ({100 * one['share']:.2f} %)" for one in facts["words"])
    label = f"Patches nearest to the most used words of level {facts['level']}: {told}."
    wrapper = '<div class="wide" tabindex="0" role="region" aria-label="{}">{}</div>'  # narrow screens scroll it
    image = Markup('<img class="words" alt="{}" src="data:image/png;base64,{}">').format(label, data)
    return shown(
        f"Level {facts['level']}, {grouped(facts['num_images'])} images looked at",
        Markup(wrapper).format(f"Words of level {facts['level']}", image),
    )
