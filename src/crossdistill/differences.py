"""What differs between two plain JSON trees, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_UNSET = "unset"
_MOST_SHOWN = 8


def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested tree by dotted keys; empty containers stay, so that they differ from missing ones.

    >>> leaves({"teacher": {"name": "a", "sizes": [224, 224]}, "images": {}})
    {'teacher.name': 'a', 'teacher.sizes.0': 224, 'teacher.sizes.1': 224, 'images': {}}
    """
    if not isinstance(tree, (dict, list)) or not tree:
        return {prefix.removesuffix("."): tree}
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, child in children for key, value in leaves(child, f"{prefix}{name}.").items()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, was: str) -> dict[str, str]:
    """A phrase for every key whose values differ, in their order; a key that one side lacks is ``'unset'`` there.

    Both are compared as JSON has them: a tuple is a list.

    Args:
        was: the word that stands before the earlier value.

    >>> differences({"seed": 0, "size": 32}, {"seed": 1, "size": 32, "flip": True}, was="stored")
    {'flip': "flip: stored 'unset', now True", 'seed': 'seed: stored 0, now 1'}
    """
    old, new = (leaves(json.loads(json.dumps(dict(tree)))) if tree else {} for tree in (before, now))
    return {
        key: f"{key}: {was} {old.get(key, _UNSET)!r}, now {new.get(key, _UNSET)!r}"
        for key in sorted(old.keys() | new.keys())
        if _differ(old.get(key, _UNSET), new.get(key, _UNSET))
    }


def shown(phrases: Sequence[str]) -> str:
    """The first of many phrases, and how many more there are.

    >>> shown(["one", "two"])
    'one; two'
    """
    more = len(phrases) - _MOST_SHOWN
    return "; ".join(phrases[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _differ(old: Any, new: Any) -> bool:
    return bool(old != new) or isinstance(old, bool) != isinstance(new, bool)  # True == 1 in Python, not in JSON
