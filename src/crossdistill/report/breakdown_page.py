"""Where the time of a training step goes, as sentences, tables and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from crossdistill.report.page import page_of
from crossdistill.report.panel import Panel
from crossdistill.report.panels import environment_panel, settings_panel
from crossdistill.report.table import grouped, significant

LABELS = {
    "data": "data",
    "teacher": "teacher",
    "student": "student forward",
    "bridges": "bridges",
    "loss": "loss",
    "bridges and loss": "bridges and loss",
    "backward": "backward",
    "optimizer": "optimiser",
    "other": "other",
}
MEANINGS = {
    "data": "waiting for the next images",
    "teacher": "images onto the device, and the teacher's answers",
    "student": "the student's forward pass",
    "bridges": "what the method's own modules compute: projectors, exit branches, a fused network",
    "loss": "the rest of the method, and the hard-label term",
    "bridges and loss": "the method, compiled as one piece, and the hard-label term",
    "backward": "gradients of student and bridges",
    "optimizer": "the optimiser's step, gradient clipping and averaging",
    "other": "learning rate, generators, reading the losses",
}
WAYS = {
    "online": "this step",
    "at_hand": "with the teacher's answers at hand",
    "plain": "plain training of the student",
}

_COLOURS = {
    "data": "var(--series-3)",
    "teacher": "var(--teacher)",
    "student": "var(--series-1)",
    "bridges": "var(--series-0)",
    "loss": "var(--series-4)",
    "bridges and loss": "var(--series-0)",
    "backward": "var(--series-2)",
    "optimizer": "var(--series-5)",
    "other": "var(--rule)",
}
_NARROW = 0.07
"""Shares below this have no room for a number in the bar."""
_UNEVEN_RATIO = 1.5
_UNEVEN = "The machine was busier in one part than in the other; measure again."

Figures = Mapping[str, Any]
"""What ``breakdown.json`` holds."""

Rows = list[list[str]]


def breakdown_page(figures: Figures) -> str:
    """The page: figures, a bar and a table of the parts, the comparison, settings and environment."""
    first, *others = sentences(figures)
    columns, rows = parts_table(figures)
    meanings = {LABELS[part["name"]]: MEANINGS[part["name"]] for part in figures["parts"]}
    described = [[label, meanings[label], *numbers] for label, *numbers in rows]
    parts = _bar(figures) + _table([columns[0], "what it is", *columns[1:]], described, kind="figures described")
    beside = _paragraphs(others, "lead") + _table(*comparison(figures))
    panels = [
        Panel("Where the time goes", _paragraphs([first], "lead") + parts + _paragraphs([how_split(figures)], "note")),
        Panel("Beside plain training", beside + _paragraphs([how_compared(figures)], "note")),
        settings_panel(figures["command"], yaml.safe_dump(figures["settings"], sort_keys=False)),
        environment_panel(figures["environment"]),
    ]
    title = f"{figures['student']} taught by {figures['teacher']}: where the time goes"
    return page_of(title, "bench speed", facts(figures), [panel for panel in panels if panel is not None])


def facts(figures: Figures) -> dict[str, str]:
    """The strip below the title."""
    settings, (height, width) = figures["settings"], figures["image_size"]
    train = settings["train"]
    threads = figures["environment"]["num_threads"]
    compiled = [name for name in ("student", "teacher", "method") if train[f"compile_{name}"]]
    on_gpu, changed_by = figures["device"] == "cuda", settings["data"]["augment_on"]
    named = (", ".join(figures["environment"]["gpus"]) or "GPU") if on_gpu else figures["environment"]["cpu"]
    return {
        "method": figures["method"],
        "data": f"{figures['data']}, changed {'on the device' if changed_by == 'device' else 'by the loader'}",
        "images a step": f"{grouped(figures['batch_size'])} of {height} x {width} px",
        "precision": train["precision"] + (", channels last" if train["channels_last"] else ""),
        "compiled": ", ".join(compiled) or "nothing",
        "teacher's answers": "stored" if figures["teacher_is_stored"] else "computed in each step",
        "device": named if on_gpu else f"{named}, {threads} {'thread' if threads == 1 else 'threads'}",
    }


def sentences(figures: Figures) -> list[str]:
    """What was measured, then how it compares."""
    step, memory = figures["step_ms"], "GPU memory" if figures["device"] == "cuda" else "memory of the process"
    rate = figures["images_per_second"]
    speed = grouped(round(rate)) if rate >= 1000 else significant(rate)
    waiting = f"{figures['data_wait_share']:.1%} of the time waiting for data"
    measured = (
        f"A step takes {significant(step['median'])} ms (median; quartiles {significant(step['low'])} to "
        f"{significant(step['high'])}). All {figures['steps']} together: {speed} images/s, {waiting}, "
        f"{significant(figures['peak_memory_bytes'] / 2**20)} MiB {memory} at the peak."
    )
    ways = figures["in_turn"]
    beside = f"It computes {_times(ways['online'])} as long as plain training of the same student"
    if "at_hand" in ways:
        beside += f"; with the teacher's answers at hand, as from a store, {_times(ways['at_hand'])}"
    return [measured, f"{beside}.", *([_UNEVEN] if _is_uneven(figures) else [])]


def _is_uneven(figures: Figures) -> bool:
    """Whether this step took another time in turn with others than alone, beyond what waiting for data explains."""
    data = sum(part["share"] for part in figures["parts"] if part["name"] == "data")
    alone = figures["step_ms"]["median"] * (1 - max(data, figures["data_wait_share"]))
    beside = figures["in_turn"]["online"]["ms"]["median"]
    return bool(max(alone, beside) > _UNEVEN_RATIO * min(alone, beside))


def how_split(figures: Figures) -> str:
    """How the parts were found."""
    profiled = figures["profiled"]
    counted = (
        "A moment belongs to the part that launched what the GPU was doing, or, where it had nothing to do, to the "
        "part in which the host was."
        if profiled["on_device"]
        else "A moment belongs to the part in which the process was."
    )
    several = f"{profiled['steps']} steps" if profiled["steps"] > 1 else "one step"
    return (
        f"Shares are of {several} under the profiler, where a step took {significant(profiled['ms'])} ms; ms are the "
        f"same shares of the {significant(figures['step_ms']['median'])} ms without it. {counted}"
    )


def how_compared(figures: Figures) -> str:
    """How the comparison was made."""
    at_hand = "at_hand" in figures["in_turn"]
    return (
        "Steps on batches that are there already, taken in turn in one process: medians, and quartiles of the ratio "
        "round by round. No step waits for data." + (" Looking the answers up in a store comes on top." * at_hand)
    )


def parts_table(figures: Figures) -> tuple[list[str], Rows]:
    """The parts of a step; with a GPU also when it worked, when it had nothing to do, and where the host was."""
    on_device = figures["profiled"]["on_device"]
    scale = figures["step_ms"]["median"] / sum(part["ms"] for part in figures["parts"])
    columns = ["part", "ms", "share", *(["GPU busy, ms", "GPU idle, ms", "host, ms"] if on_device else [])]
    rows = []
    for part in figures["parts"]:
        more = [part["busy_ms"], part["idle_ms"], part["host_ms"]] if on_device else []
        row = [LABELS[part["name"]], _ms(part["step_ms"]), f"{part['share']:.1%}"]
        rows.append([*row, *(_ms(scale * value) for value in more)])
    return columns, rows


def comparison(figures: Figures) -> tuple[list[str], Rows]:
    """The ways to take a step, and their ratios to the plain one."""
    rows = []
    for name, label in WAYS.items():
        if name in figures["in_turn"]:
            way = figures["in_turn"][name]
            ratio = way["ratio"]
            spread = "" if name == "plain" else f"{ratio['low']:.2f} to {ratio['high']:.2f}"
            rows.append([label, _ms(way["ms"]["median"]), f"{ratio['median']:.2f}", spread])
    return ["step", "ms", "ratio to plain", "quartiles"], rows


def _times(way: Mapping[str, Any]) -> str:
    ratio = way["ratio"]
    if not ratio["low"] <= 1 <= ratio["high"]:
        return f"{ratio['median']:.2f} times"
    return f"{ratio['median']:.2f} times (quartiles {ratio['low']:.2f} to {ratio['high']:.2f}: no clear difference)"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bar(figures: Figures) -> Markup:
    """The step as one bar from left to right."""
    label = "; ".join(f"{LABELS[part['name']]} {part['share']:.1%}" for part in figures["parts"])
    pieces = Markup("").join(
        Markup('<span style="width: {:.3f}%; background: {}" title="{}">{}</span>').format(
            100 * part["share"],
            _COLOURS[part["name"]],
            f"{LABELS[part['name']]}: {_ms(part['step_ms'])} ms, {part['share']:.1%}",
            f"{part['share']:.0%}" if part["share"] >= _NARROW else "",
        )
        for part in figures["parts"]
    )
    legend = Markup("").join(
        Markup('<li><span class="square" style="background: {}"></span>{}</li>').format(
            _COLOURS[part["name"]], LABELS[part["name"]]
        )
        for part in figures["parts"]
    )
    return Markup('<div class="parts" role="img" aria-label="{}">{}</div>\n<ul class="legend">{}</ul>\n').format(
        f"Shares of a step: {label}.", pieces, legend
    )


def _table(columns: Sequence[str], rows: Rows, kind: str = "figures") -> Markup:
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(column) for column in columns)
    body = Markup("\n").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            label, Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
        )
        for label, *cells in rows
    )
    return Markup(
        '<div class="wide"><table class="{}"><thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody></table></div>\n'
    ).format(kind, head, body)


def _paragraphs(texts: Sequence[str], kind: str) -> Markup:
    return Markup("\n").join(Markup('<p class="{}">{}</p>').format(kind, text) for text in texts)
