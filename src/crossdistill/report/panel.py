"""Panels: functions from a run to a part of the report's page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from crossdistill.report.run import Run


@dataclass(frozen=True, slots=True)
class Panel:
    """A titled part of the page. ``html`` must be ``Markup``; plain text is escaped. ``kind`` is its CSS class."""

    title: str
    html: Markup | str
    kind: str = "plain"


PanelFunction = Callable[[Run], Panel | None]

PANELS: list[tuple[int, PanelFunction]] = []
"""Panels by position; the page shows them in ascending order and leaves out those that return ``None``."""


def panel(position: int) -> Callable[[PanelFunction], PanelFunction]:
    """Decorator that adds a panel to every report.

    >>> @panel(position=55)  # doctest: +SKIP
    ... def exit_branches(run: Run) -> Panel | None:
    ...     return Panel("Exit branches", Markup("<p>…</p>"))
    """

    def file(function: PanelFunction) -> PanelFunction:
        PANELS.append((position, function))
        return function

    return file


def panels_of(run: Run) -> list[Panel]:
    """The panels that have something to say about this run."""
    ordered = sorted(PANELS, key=lambda entry: entry[0])
    return [shown for _, function in ordered if (shown := function(run)) is not None]
