"""Panels of a federated run on its clients: whose labels are whose, who learnt from whom, and what it changed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from markupsafe import Markup

from crossdistill.analysis.compare import points
from crossdistill.federated.panel_figures import (
    ABSENT,
    CELL_COLOUR,
    MAX_ROWS,
    MOST_TICKS,
    Cell,
    Grid,
    block,
    even_power,
    folded,
    heat_map,
    isolated,
    long_table,
    opacity,
    pair,
    percent_text,
    share_text,
    squares,
    stacked_bars,
    wrapping,
)
from crossdistill.federated.records import (
    LONGEST_NAME,
    MEASURES,
    ClientRound,
    Read,
    RoundRecord,
    StrategyRun,
    by_strategy,
    neighbours,
    runs_of,
    shortened,
    teachers,
    title,
    titled,
)
from crossdistill.report.figures import NUM_SERIES_COLOURS, css_colour
from crossdistill.report.panel import Panel, panel
from crossdistill.report.panels import paragraph, shown
from crossdistill.report.run import Run
from crossdistill.report.table import grouped, unbroken

_MAX_TOLD = 20
_LEAST_WEIGHT = 0.005


@panel(position=43)
def labels(run: Run) -> Panel | None:
    """How many images of each class each client has, where that is known."""
    for one in runs_of(run):
        known = [client for client in one.clients if client.histogram]
        if known:
            break
    else:
        return None
    names = one.class_names or tuple(map(str, range(len(known[0].histogram or ()))))
    counts = np.array([client.histogram for client in known], dtype=np.float64)
    totals = tuple(grouped(int(total)) for total in counts.sum(axis=1))
    grid = Grid(
        counts, tuple(c.shown_name for c in known), names, float(counts.max()), column_label="class", beside=totals
    )
    label = f"Training images by class of {len(known)} clients: {_told_labels(grid)}."
    left = len(one.clients) - len(known)
    note = f"Of seed {one.seed}, the images that a client trains and validates on."
    note += f" Not known of {grouped(left)} more." if left else ""
    if len(names) <= NUM_SERIES_COLOURS:
        grid = Grid(counts, grid.rows, names, 1.0, column_label="images")
        figure = squares([(shortened(name, LONGEST_NAME), css_colour(index)) for index, name in enumerate(names)])
        figure += pair([shown("images of each class", stacked_bars(grid, identifier="labels", label=label))])
    else:
        in_all = ", and in all at the right" * (len(known) <= MOST_TICKS)
        svg = heat_map(grid, identifier="labels", label=label, percent=False)
        figure = pair([shown(f"images of each class (full colour: {grouped(int(counts.max()))}){in_all}", svg)])
    return Panel("Labels of the clients", figure + block(paragraph(note, "note")))


def _told_labels(grid: Grid) -> str:
    """Each client's most frequent class, as long as these are few."""
    if len(grid.rows) > _MAX_TOLD:
        present = (grid.values > 0).sum(axis=1)
        return f"a client has images of {present.min()} to {present.max()} of {len(grid.columns)} classes"
    strongest = grid.values.argmax(axis=1)
    return "; ".join(
        f"{name} has {row.sum():.0f}, most of class {grid.columns[best]} ({row[best]:.0f})"
        for name, row, best in zip(grid.rows, grid.values, strongest, strict=True)
    )


@panel(position=44)
def weights(run: Run) -> Panel | None:
    """The weights of the first and the last round that was fused."""
    found = by_strategy(runs_of(run))
    parts = [
        (titled(name, runs), _weights_pair(index, name, runs[0]))
        for index, (name, runs) in enumerate(found.items())
        if runs[0].fused
    ]
    if not parts:
        return None
    note = (
        "Rows learn, columns teach; each row adds up to 100 %. A row of one strong cell is a client that learns from "
        "itself alone; an even row is the mean of all. Numbers are percent."
    )
    return Panel("Weights of the fusion", paragraph(note, "note") + block(folded(parts)))


def _weights_pair(index: int, name: str, one: StrategyRun) -> Markup:
    first, last = one.fused[0], one.fused[-1]
    same = first.members == last.members and np.allclose(first.matrix, last.matrix, atol=1e-3)
    records = [last] if same else [first, last]
    power = even_power(len(one.clients))
    figures = []
    for place, record in enumerate(records):
        names = tuple(one.name_of(member) for member in record.members)
        grid = Grid(record.matrix, names, names, 1.0, power, True, row_label="learns", column_label="teaches")
        alike = same and first is not last
        caption = f"rounds {first.round} to {last.round}, alike" if alike else f"round {record.round}"
        label = _told_weights(one, title(name), record)
        figures.append(shown(caption, heat_map(grid, identifier=f"weights{index}-{place}", label=label, percent=True)))
    return _weight_key(len(one.clients), power) + pair(figures)


def _weight_key(num_clients: int, power: float) -> Markup:
    """What colours of the cells mean: half the even weight, the even weight, and up to all."""
    even = 1 / num_clients
    blue = " ".join(map(str, CELL_COLOUR))
    keys = {even / 2: "", even: " (even)", even**0.5: "", 1.0: ""}
    return squares(
        [
            (f"{100 * weight:.{3 if weight == 1 else 2}g} %{told}", f"rgb({blue} / {opacity(weight, 1.0, power):.2f})")
            for weight, told in keys.items()
        ]
    )


def _told_weights(one: StrategyRun, name: str, record: RoundRecord) -> str:
    own, effective = fmean(record.matrix.diagonal()), fmean(neighbours(record).values())
    others = record.matrix - np.diag(record.matrix.diagonal())
    receiver, teacher = (int(place) for place in np.unravel_index(int(others.argmax()), others.shape))
    names = [one.name_of(record.members[place]) for place in (receiver, teacher)]
    strongest = f"; most of all {names[0]} from {names[1]}, {100 * others.max():.0f} %" if others.max() > 0 else ""
    return (
        f"Weights by which {len(record.members)} clients learn from one another by {name} in round {record.round}: "
        f"{100 * own:.0f} % from themselves and from {effective:.1f} clients in effect, on average{strongest}."
    )


@panel(position=45)
def helped(run: Run) -> Panel | None:
    """Who learnt from whom, how often it was no use, and what it changed."""
    found = by_strategy(runs_of(run))
    parts = [(titled(name, runs), _clients_table(runs[0])) for name, runs in found.items() if runs[0].fused]
    note = (
        "Learns from: the three strongest of the other clients in the last round that was fused. In effect: from how "
        "many clients, 1 / Σ weight². Rejected: of the teachers it was offered. Change: of validation accuracy by "
        "learning from the teacher, before the client chose whether to keep it, mean over rounds, in points. "
        "Accuracies are the last that were measured."
    )
    return Panel("Who helped whom", paragraph(note, "note") + block(folded(parts))) if parts else None


def _clients_table(one: StrategyRun) -> Markup:
    columns = ("Client", "Learns from", "Itself", "In effect", "Own mix", "All classes", "Rejected", "Change")
    effective = neighbours(one.fused[-1])
    rows = [_client_row(one, client.id, effective) for client in one.clients[:MAX_ROWS]]
    return paragraph(_on_average(one), "plain") + block(long_table(columns, rows, len(one.clients)))


def _on_average(one: StrategyRun) -> str:
    """The table in a sentence, for those who leave it folded."""
    last = one.fused[-1]
    changes = [done.change for record in one.rounds for done in record.clients.values() if done.change is not None]
    told = (
        f"On average a client takes {percent_text(fmean(last.matrix.diagonal()))} from itself, and learns from "
        f"{fmean(neighbours(last).values()):.1f} clients in effect"
    )
    return (
        f"{told}; that changes its validation accuracy by {points(fmean(changes))} points." if changes else f"{told}."
    )


def _client_row(one: StrategyRun, number: int, effective: dict[int, float]) -> list[Cell]:
    client, last = one.by_id[number], one.fused[-1]
    done = [facts for _, facts in one.of_client(number)]
    offered = [facts for facts in done if facts.offered]
    changes = [facts.change for facts in offered if facts.change is not None]
    under = Markup('<br><span class="note" style="font-weight: 400">{}</span>').format(client.network)
    name = Markup("{}{}").format(wrapping(client.shown_name), under if client.network else "")
    return [
        *(name, *_learns(one, last, number)),
        f"{effective[number]:.1f}" if number in effective else ABSENT,
        *(_last(done, read) for read in MEASURES.values()),
        unbroken(f"{sum(facts.rejected is True for facts in offered)} of {len(offered)}") if offered else ABSENT,
        points(fmean(changes)) if changes else ABSENT,
    ]


def _learns(one: StrategyRun, record: RoundRecord, number: int) -> tuple[Cell, Cell]:
    """From which others, and how much from itself."""
    if number not in record.members:
        return ABSENT, ABSENT
    place = record.members.index(number)
    told = [
        Markup("{} ({})").format(isolated(one.name_of(other)), percent_text(weight))
        for other, weight in teachers(record, number, most=3)
        if weight >= _LEAST_WEIGHT
    ]
    together = Markup("<span>{}</span>").format(Markup(", ").join(told))  # narrow screens space parts of a cell out
    return together if told else "hardly anyone else", percent_text(float(record.matrix[place, place]))


def _last(done: Sequence[ClientRound], read: Read) -> str:
    known = [value for facts in done if (value := read(facts)) is not None]
    return share_text(known[-1:])
