"""Panels of a federated run: what each strategy reached, who learnt from whom, what travelled, and what went wrong.

Everything is told of all seeds where it can be averaged; what cannot, such as a matrix of weights, of the first seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from markupsafe import Markup

import crossdistill.federated.panel_clients  # noqa: F401  (registers the panels of single clients)
from crossdistill.analysis.compare import points
from crossdistill.federated.panel_figures import (
    ABSENT,
    MAX_ROWS,
    Lines,
    block,
    bytes_text,
    folded,
    isolated,
    legend,
    long_table,
    pair,
    rounds_chart,
    share_text,
    span,
    table,
)
from crossdistill.federated.records import (
    MEASURES,
    ClientRound,
    Read,
    RoundRecord,
    StrategyRun,
    Tried,
    by_strategy,
    printable,
    runs_of,
    shortened,
    title,
    titled,
)
from crossdistill.federated.strategy import STRATEGIES
from crossdistill.report.history import Curve
from crossdistill.report.panel import Panel, panel
from crossdistill.report.panels import paragraph, shown
from crossdistill.report.run import Run
from crossdistill.report.table import grouped, unbroken

MISSING = ("absent", "failed", "refused")
"""Why an answer is missing."""

_MAX_FAINT = 200
_MAX_NAMED = 8
_LONGEST_REASON = 200


@panel(position=32)
def strategies(run: Run) -> Panel | None:
    """The table of strategies."""
    found = by_strategy(runs_of(run))
    if not found:
        return None
    outcome = ("Own mix", "All classes", "Worst client", "Spread", "Rejected")
    columns = ("Strategy", "What it does", *outcome, "Sent", "Received")
    rows = [_strategy_row(name, runs) for name, runs in found.items()]
    told = (
        "Accuracy at the end, as a mean over clients, mean ± sample standard deviation over seeds. Own mix: on images "
        "with the label distribution of the client itself (average local model accuracy, ALMA). All classes: on all "
        "classes equally. Worst client and spread (standard deviation over clients, in points) are of the own mix. "
        "Rejected: fused teachers that clients did not keep, because these made them worse. Sent and received: bytes "
        "of a client in a round, on average."
    )
    first = next(iter(found.values()))[0]
    return Panel("Strategies", _facts(first) + block(table(columns, rows, kind="comparison", caption=told)))


def _strategy_row(name: str, runs: Sequence[StrategyRun]) -> list[str]:
    ends = [one.final for one in runs]
    spreads = [end.sd for end in ends if end.sd is not None]
    own = share_text([end.alma for end in ends])
    seeds = unbroken(f"({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})")
    offered, rejected = sum(end.offered for end in ends), sum(end.rejected for end in ends)
    summary = next((one.facts["summary"] for one in STRATEGIES if one.name == name), ABSENT)
    return [
        *(title(name), summary, f"{own} {seeds}"),
        *(share_text([end.alma_balanced for end in ends]), share_text([end.worst for end in ends])),
        f"{100 * fmean(spreads):.1f}" if spreads else ABSENT,
        unbroken(f"{grouped(rejected)} of {grouped(offered)}") if offered else ABSENT,
        *(_mean_bytes(runs, read) for read in (_up, _down)),
    ]


def _up(done: ClientRound) -> int | None:
    return done.bytes_up


def _down(done: ClientRound) -> int | None:
    return done.bytes_down


def _mean_bytes(runs: Iterable[StrategyRun], read: Read) -> str:
    known = [size for one in runs for record in one.rounds for size in _known(record, read)]
    return bytes_text(fmean(known)) if known else ABSENT


def _known(record: RoundRecord, read: Read) -> list[float]:
    return [value for done in record.clients.values() if (value := read(done)) is not None]


def _facts(first: StrategyRun) -> Markup:
    """How the data lie and what was answered, the same for all strategies."""
    models = list(dict.fromkeys(client.network for client in first.clients if client.network))
    left = len(models) - _MAX_NAMED
    sizes = sorted(client.num_train for client in first.clients if client.num_train is not None)
    facts = {
        "clients": grouped(len(first.clients)),
        "training images of each": span(sizes, grouped) if sizes else "",
        "partition": _partition(first),
        "transfer set": f"{first.transfer.source}, {grouped(first.transfer.num_samples)} images"
        if first.transfer
        else "",
        "networks": ", ".join(models[:_MAX_NAMED]) + f" and {left} more" * (left > 0),
    }
    items = Markup("").join(
        Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in facts.items() if fact[1]
    )
    return Markup('<dl class="facts">{}</dl>').format(items)


def _partition(first: StrategyRun) -> str:
    settings = {key: value for key, value in (first.partition or {}).items() if value is not None}
    kind = settings.pop("kind", None)
    parts = [str(kind)] * (kind is not None) + [f"{key} {value}" for key, value in settings.items()]
    return shortened(printable(", ".join(parts)), _LONGEST_REASON)


@panel(position=34)
def automatic(run: Run) -> Panel | None:
    """What ``auto`` settled on, and what it tried."""
    parts = []
    for one in runs_of(run):
        if one.chosen is None:
            continue
        lead = paragraph(f"Chosen: {_setting(one.chosen.choice)}.", "lead")
        tried = _tried(one.chosen.choice, one.chosen.tried)
        parts.append((f"{title(one.strategy)}, seed {one.seed}", lead + tried))
    note = (
        "Gain: mean change of validation accuracy by learning from the fused teacher, in points, as clients reported "
        "it from labels of their own."
    )
    return Panel("What auto chose", folded(parts) + block(paragraph(note, "note"))) if parts else None


def _setting(choice: Sequence[float | None]) -> str:
    names = ("beta", "temperature", "threshold")
    return ", ".join(f"{name} {value:g}" for name, value in zip(names, choice, strict=True) if value is not None)


def _tried(choice: Sequence[float | None], tried: Sequence[Tried]) -> Markup:
    rows = [
        (
            _setting(one.choice),
            "chosen" if one.choice == choice else "",
            ABSENT if one.gain is None else points(one.gain),
            grouped(one.reports),
        )
        for one in tried
    ]
    return table(("Tried", "", "Gain (points)", "Reports"), rows, kind="comparison") if rows else Markup("")


@panel(position=42)
def accuracy(run: Run) -> Panel | None:
    """Accuracy by round: of strategies where there are several, and of each client."""
    found = by_strategy(runs_of(run))
    values = [value for runs in found.values() for one in runs for curve in _every_curve(one) for _, value in curve]
    if not values:
        return None
    limits = (max(0.0, min(values) - 0.03), min(1.03, max(values) + 0.03))
    parts = [
        (titled(name, runs), _clients_pair(index, titled(name, runs), runs[0], limits))
        for index, (name, runs) in enumerate(found.items())
        if any(_every_curve(runs[0]))
    ]
    note = "Faint: single clients; bold: their mean. Measured after a client has learnt from its teacher of that round."
    several = len(found) > 1 or any(len(runs) > 1 for runs in found.values())
    overview = _overview(found) if several else Markup("")
    return Panel("Accuracy by round", overview + block(paragraph(note, "note")) + block(folded(parts)))


def _every_curve(one: StrategyRun) -> list[Curve]:
    """Curves of all clients and both measures."""
    return [curve for read in MEASURES.values() for curve in _client_curves(one, read)]


def _client_curves(one: StrategyRun, read: Read) -> tuple[Curve, ...]:
    """A curve of each client that has one; of very many clients, some that are spread evenly."""
    step = -(-len(one.clients) // _MAX_FAINT)
    told = ([(number, read(done)) for number, done in one.of_client(c.id)] for c in one.clients[::step])
    curves = (tuple((float(x), float(y)) for x, y in pairs if y is not None) for pairs in told)
    return tuple(curve for curve in curves if curve)


def _means(one: StrategyRun, balanced: bool) -> Curve:
    pairs = [(record.round, record.alma_balanced if balanced else record.alma) for record in one.rounds]
    return tuple((float(x), y) for x, y in pairs if y is not None)


def _clients_pair(index: int, name: str, one: StrategyRun, limits: tuple[float, float]) -> Markup:
    charts = []
    for balanced, (measure, read) in enumerate(MEASURES.items()):
        faint = _client_curves(one, read)
        lines = Lines(index, _means(one, bool(balanced)), faint)
        label = _told(f"Accuracy of {len(faint)} clients by {name}, {measure}", lines)
        svg = rounds_chart(
            [lines], size=(4.4, 2.7), identifier=f"clients{index}-{balanced}", label=label, limits=limits
        )
        charts.append(shown(f"{name}: {measure}", svg))
    return pair(charts)


def _told(subject: str, lines: Lines) -> str:
    if not lines.bold:
        return f"{subject}."
    first, last = (100 * lines.bold[end][1] for end in (0, -1))
    return f"{subject}: the mean goes from {first:.1f} % to {last:.1f} %."


def _overview(found: dict[str, list[StrategyRun]]) -> Markup:
    """Both means of all strategies, seeds faint behind them."""
    charts = []
    for balanced, measure in enumerate(MEASURES):
        lines = {name: _strategy_lines(i, runs, bool(balanced)) for i, (name, runs) in enumerate(found.items())}
        told = "; ".join(_told(title(name), one).rstrip(".") for name, one in lines.items())
        svg = rounds_chart(
            list(lines.values()),
            size=(4.4, 2.9),
            identifier=f"means-{balanced}",
            label=f"Mean accuracy {measure}. {told}.",
        )
        charts.append(shown(f"mean {measure}", svg))
    several_seeds = any(len(runs) > 1 for runs in found.values())
    return legend(list(map(title, found)), several_seeds=several_seeds) + block(pair(charts))


def _strategy_lines(index: int, runs: Sequence[StrategyRun], balanced: bool) -> Lines:
    curves = [dict(curve) for one in runs if (curve := _means(one, balanced))]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    bold = tuple((x, fmean(curve[x] for curve in curves)) for x in shared)
    faint = tuple(tuple(curve.items()) for curve in curves) if len(curves) > 1 else ()
    return Lines(index, bold, faint)


@panel(position=46)
def traffic(run: Run) -> Panel | None:
    """Bytes up and down: of each strategy, by round, and of each client."""
    found = by_strategy(runs_of(run))
    ways: dict[str, Read] = {"sent": _up, "received": _down}
    if not any(_known(record, read) for one in _all(found) for record in one.rounds for read in ways.values()):
        return None
    columns = (
        "Strategy",
        *(f"{way.capitalize()} a round" for way in ways),
        *(f"{way.capitalize()} in all" for way in ways),
    )
    rows = [
        [title(name), *(_range(runs, read) for read in ways.values()), *(_in_all(runs, read) for read in ways.values())]
        for name, runs in found.items()
    ]
    told = (
        "A round: by one client, from the least to the most. In all: by all clients in all rounds, mean over seeds. "
        "What the server sends, clients receive. Arrays alone, without the few hundred bytes around each message."
    )
    charts = [_traffic_chart(found, way, read) for way, read in ways.items()]
    parts = [(f"Each client of {titled(name, runs)}", _client_bytes(runs[0], ways)) for name, runs in found.items()]
    own_legend = legend(list(map(title, found)), several_seeds=False) if len(found) > 1 else Markup("")
    return Panel(
        "Traffic",
        table(columns, rows, kind="comparison figures", caption=told)
        + block(own_legend + pair(charts))
        + block(folded(parts, first_open=False)),
    )


def _all(found: dict[str, list[StrategyRun]]) -> list[StrategyRun]:
    return [one for runs in found.values() for one in runs]


def _range(runs: Sequence[StrategyRun], read: Read) -> str:
    known = sorted(size for one in runs for record in one.rounds for size in _known(record, read))
    return span(known, bytes_text) if known else ABSENT


def _in_all(runs: Sequence[StrategyRun], read: Read) -> str:
    totals = [sum(size for record in one.rounds for size in _known(record, read)) for one in runs]
    return bytes_text(fmean(totals)) if any(_range([one], read) != ABSENT for one in runs) else ABSENT


def _traffic_chart(found: dict[str, list[StrategyRun]], way: str, read: Read) -> Markup:
    """Bytes of a client by round, mean over the clients of the first seed."""
    lines = {}
    for index, (name, runs) in enumerate(found.items()):
        pairs = [(float(record.round), _known(record, read)) for record in runs[0].rounds]
        lines[name] = Lines(index, tuple((x, fmean(sizes)) for x, sizes in pairs if sizes))
    told = "; ".join(
        f"{title(name)} {bytes_text(one.bold[-1][1])} in the end" for name, one in lines.items() if one.bold
    )
    label = f"Bytes {way} by a client in each round: {told}."
    svg = rounds_chart(list(lines.values()), size=(4.4, 2.4), identifier=f"bytes-{way}", label=label, percent=False)
    return shown(f"{way} by a client in a round, mean over clients", svg)


def _client_bytes(one: StrategyRun, ways: dict[str, Read]) -> Markup:
    columns = (
        "Client",
        "Rounds",
        *(f"{way.capitalize()} a round" for way in ways),
        *(f"{way.capitalize()} in all" for way in ways),
    )
    rows = []
    for client in one.clients[:MAX_ROWS]:
        done = [facts for _, facts in one.of_client(client.id)]
        sizes = [sorted(size for facts in done if (size := read(facts)) is not None) for read in ways.values()]
        answered = sum(facts.status == "ok" for facts in done)
        each = [span(known, bytes_text) if known else ABSENT for known in sizes]
        rows.append(
            [
                one.name_of(client.id),
                grouped(answered),
                *each,
                *(bytes_text(sum(known)) if known else ABSENT for known in sizes),
            ]
        )
    return long_table(columns, rows, len(one.clients), kind="comparison figures")


@panel(position=47)
def troubles(run: Run) -> Panel | None:
    """Clients that were absent, failed or were refused, teachers that were rejected, and notes, by round."""
    runs = runs_of(run)
    if not any(one.rounds for one in runs):
        return None
    told = [(one, [(record.round, lines) for record in one.rounds if (lines := _wrong(one, record))]) for one in runs]
    parts = [
        (f"{title(one.strategy)}, seed {one.seed}: {_tally(one)}", _rounds_table(rounds))
        for one, rounds in told
        if rounds
    ]
    if not parts:
        text = "Nothing: every client answered in every round, none was refused, and none rejected its teacher."
        return Panel("What went wrong", paragraph(text, "plain"))
    note = (
        "Absent: did not answer in time. Failed: told of an error of its own. Refused: what it sent was not what was "
        "asked for. All of these were left out of that round. Rejected: learning from the teacher made the client "
        "worse, and it went back to its weights before."
    )
    summary = paragraph(f"In all: {_tally(runs[0])}.", "plain") if len(runs) == 1 else Markup("")
    return Panel("What went wrong", summary + block(paragraph(note, "note") + block(folded(parts))))


def _wrong(one: StrategyRun, record: RoundRecord) -> list[Markup]:
    """A line for each kind of trouble in a round."""
    kinds = {
        kind: [(number, facts) for number, facts in record.clients.items() if facts.status == kind] for kind in MISSING
    }
    kinds["rejected"] = [(number, facts) for number, facts in record.clients.items() if facts.rejected]
    lines = [Markup("{}: {}").format(kind, _enumerated(one, which)) for kind, which in kinds.items() if which]
    notes = [isolated(shortened(note, _LONGEST_REASON)) for note in _notes(one, record)[:_MAX_NAMED]]
    return [*lines, *notes]


def _notes(one: StrategyRun, record: RoundRecord) -> list[str]:
    """Notes that say more than why an answer is missing, which is told already."""
    known = {
        f"client {number} ({one.by_id[number].name}) {done.status}: {done.reason}"
        for number, done in record.clients.items()
        if done.reason
    }
    return [note for note in record.notes if note not in known]


def _enumerated(one: StrategyRun, which: Sequence[tuple[int, ClientRound]]) -> Markup:
    """Names with their reasons, the first few of them."""
    named = [
        isolated(one.name_of(number))
        + (Markup(" ({})").format(isolated(shortened(facts.reason, _LONGEST_REASON))) if facts.reason else "")
        for number, facts in which[:_MAX_NAMED]
    ]
    left = len(which) - len(named)
    return Markup(", ").join(named) + (f" and {left} more" if left else "")


def _tally(one: StrategyRun) -> str:
    """How often each kind of trouble was met."""
    done = [facts for record in one.rounds for facts in record.clients.values()]
    counts = {
        **{kind: sum(facts.status == kind for facts in done) for kind in MISSING},
        "rejected": sum(facts.rejected is True for facts in done),
        "noted": sum(len(_notes(one, record)) for record in one.rounds),
    }
    return ", ".join(f"{grouped(count)} {kind}" for kind, count in counts.items() if count)


def _rounds_table(rounds: Sequence[tuple[int, list[Markup]]]) -> Markup:
    rows = [(f"round {number}", Markup("<br>").join(lines)) for number, lines in rounds[:MAX_ROWS]]
    return long_table(("Round", "What happened"), rows, len(rounds), kind="described", what="rounds")
