"""Recipes of pretraining: those of a recipe file that says ``kind: pretrain``."""

from __future__ import annotations

from collections.abc import Iterable

from crossdistill.runs.plan import check_seeds
from crossdistill.runs.recipes import KIND, recipe_tree
from crossdistill.selfsup.settings import PretrainSettings, load_settings


def read_recipe(name: str, overrides: Iterable[str] = ()) -> tuple[PretrainSettings, tuple[int, ...]]:
    """Settings and seeds of a recipe after ``key=value`` overrides.

    Raises:
        InputError: an unknown recipe or key, or seeds that are none.
    """
    tree = {key: value for key, value in recipe_tree(name).items() if key not in ("description", KIND)}
    seeds = check_seeds(tree.pop("seeds")) if "seeds" in tree else (tree.pop("seed", 0),)
    return load_settings(tree, overrides), seeds
