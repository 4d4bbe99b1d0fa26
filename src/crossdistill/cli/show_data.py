"""The figures of a data set for people: facts, classes, what is unreadable, what is there twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console

from crossdistill.cli.show import print_table

_MOST_CLASSES = 24
_MOST_SIZES = 4
_MOST_UNREADABLE = 3
_BAR = 24


def show_data(found: Mapping[str, Any]) -> None:
    """What :func:`crossdistill.runs.look` found."""
    splits = found["splits"]
    rows = [[name, *(fact(one) for one in splits.values())] for name, fact in _FACTS.items()]
    typer.echo(f"{found['source']}: {found['num_classes']:,} classes")
    print_table(["", *splits], [row for row in rows if any(row[1:])])
    _show_classes(splits)
    _show_unreadable(splits)
    _show_duplicates(found)
    height, width = found["picture"]["image_size"]
    # A path that is broken over two lines cannot be copied.
    typer.echo(f"picture: {found['picture']['file']} (what a student of {height} x {width} px sees in training)")


def _classes(split: Mapping[str, Any]) -> str:
    found, num_classes = split["num_classes"], len(split["per_class"])
    return f"{num_classes:,}" if found == num_classes else f"{found:,} of {num_classes:,}"


def _class(key: str) -> Callable[[Mapping[str, Any]], str]:
    def text(split: Mapping[str, Any]) -> str:
        one = split[key]
        return f"{'all' if split['imbalance'] == 1 else one['class']} ({one['num_images']:,})"

    return text


def _imbalance(split: Mapping[str, Any]) -> str:
    return "–" if split["imbalance"] is None else f"{split['imbalance']:.2f} to 1"


def _sizes(split: Mapping[str, Any]) -> str:
    """The sizes by name where there are few, else the most frequent ones and how many others there are."""
    sizes = split["sizes"]
    if len(sizes) == 1:
        return f"{sizes[0]['height']} x {sizes[0]['width']}"
    shown = [f"{one['height']} x {one['width']} ({one['num_images']:,})" for one in sizes[:_MOST_SIZES]]
    more = len(sizes) - len(shown)
    return "\n".join([*shown, f"and {more:,} more" if more else ""]).strip()


def _spread(key: str, form: str = ".4g") -> Callable[[Mapping[str, Any]], str]:
    def text(split: Mapping[str, Any]) -> str:
        spread = split[key]
        if spread is None or len(split["sizes"]) == 1:
            return ""
        return " / ".join(f"{spread[end]:{form}}" for end in ("minimum", "median", "maximum"))

    return text


def _counted(counts: Mapping[str, int], otherwise: str) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items()) or otherwise


_FACTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "images": lambda split: f"{split['num_images']:,}",
    "labelled": lambda split: f"{split['num_labelled']:,}",
    "classes": _classes,
    "smallest class": _class("smallest_class"),
    "largest class": _class("largest_class"),
    "largest to smallest": _imbalance,
    "height x width": _sizes,
    "height (min / median / max)": _spread("height"),
    "width": _spread("width"),
    "width / height": _spread("aspect_ratio", ".2f"),
    "channels": lambda split: _counted(split["channels"], "–"),
    "format": lambda split: _counted(split["formats"], "plain pixels"),
    "unreadable": lambda split: f"{len(split['unreadable']):,}",
}


def _show_classes(splits: Mapping[str, Any]) -> None:
    """Images of each class; of many classes the largest and the smallest of the first split."""
    counts = [[one["num_images"] for one in split["per_class"]] for split in splits.values()]
    names = [one["class"] for one in next(iter(splits.values()))["per_class"]]
    if len(names) > _MOST_CLASSES and all(split["imbalance"] == 1 for split in splits.values()):
        return
    order: list[int | None] = list(range(len(names)))
    if len(names) > _MOST_CLASSES:
        by_size, half = sorted(range(len(names)), key=lambda target: -counts[0][target]), _MOST_CLASSES // 2
        order = [*by_size[:half], None, *by_size[-half:]]
    most = max(counts[0]) or 1

    def row(target: int | None) -> list[str]:
        if target is None:
            return [f"… {len(names) - _MOST_CLASSES:,} more", *([""] * len(counts)), ""]
        bar = "█" * round(_BAR * counts[0][target] / most)
        return [names[target], *(f"{one[target]:,}" for one in counts), bar]

    print_table(["class", *splits, ""], [row(target) for target in order], numbers=splits)


def _show_unreadable(splits: Mapping[str, Any]) -> None:
    for name, split in splits.items():
        for one in split["unreadable"][:_MOST_UNREADABLE]:
            typer.echo(f"unreadable in {name}: {one['where']} ({one['reason']})")
        more = len(split["unreadable"]) - _MOST_UNREADABLE
        if more > 0:
            typer.echo(f"unreadable in {name}: {more:,} more")


def _show_duplicates(found: Mapping[str, Any]) -> None:
    overlaps = [one for one in found["duplicates"] if one["num_images"]]
    what = "the same pixels" if found["duplicates_compare"] == "pixels" else "the same bytes"
    if not overlaps:
        _say(f"duplicates: no two images have {what}")
    for one in overlaps:
        _say(f"duplicates: {_overlap(one, what)}")
        for pair in one["examples"]:
            _show_pair(pair)
        if (more := one["num_images"] - len(one["examples"])) > 0:
            typer.echo(f"  and {more:,} more")


def _overlap(one: Mapping[str, Any], what: str) -> str:
    count, (earlier, later) = one["num_images"], one["splits"]
    images = f"{count:,} {later} {'image has' if count == 1 else 'images have'} {what} as "
    where = f"an earlier {later} image" if earlier == later else f"one of {earlier}"
    other = one["num_other_label"]
    return f"{images}{where}; {f'{other:,} with another label' if other else 'all labels agree'}"


def _show_pair(pair: Sequence[Mapping[str, Any]]) -> None:
    """Two lines, since a path is long: what each is called, and where it lies."""
    names = [place["class"] or "(no label)" for place in pair]
    for sign, name, place in zip(" =", names, pair, strict=True):
        typer.echo(f"  {sign} {name:{max(map(len, names))}}  {place['where']}")


def _say(text: str) -> None:
    """A sentence, broken at the edge of the terminal."""
    Console().print(text, markup=False, highlight=False)
