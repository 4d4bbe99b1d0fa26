"""Recipes: experiments as YAML files that ship with the package, to read, copy and run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from crossdistill.errors import InputError, nearest
from crossdistill.files import shipped, write_text, writing
from crossdistill.runs.plan import Plan, check_seeds, make_plan

KIND = "kind"
"""The key that says what a recipe is for; without it, for training or distillation."""

_PLAN_KEYS = ("description", "seeds", "baseline")


def list_recipes() -> list[dict[str, str]]:
    """Name and description of every recipe that ships with the package."""
    return [{"name": name, "description": str(_tree(path)["description"])} for name, path in sorted(_shipped().items())]


def recipe_path(name: str) -> Path:
    """The file of a recipe, by its name or its own path."""
    known = _shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise InputError(
        f"recipe {name!r}",
        "the name of a recipe or the path of a YAML file",
        f"{nearest(name, known)} `crossdistill recipes ls` lists all",
    )


def copy_recipe(name: str, to: Path) -> None:
    """Copy a recipe to a file that does not exist yet."""
    if to.exists():
        raise InputError(f"{to}, which exists", "a new file", "give another name")
    text = recipe_path(name).read_text(encoding="utf-8")
    with writing(to.parent):
        to.parent.mkdir(parents=True, exist_ok=True)
        write_text(to, text)


def read_recipe(name: str, overrides: Iterable[str] = ()) -> Plan:
    """The plan of a recipe after ``key=value`` overrides; a run's ``config.yaml`` is a recipe with one seed.

    Raises:
        InputError: an unknown recipe or key, a file that is no recipe, or seeds that are none.
    """
    tree = recipe_tree(name)
    if recipe_kind(name) != "run":
        raise InputError(
            f"recipe {name!r}, which is one of pretraining without labels",
            "a recipe of training or distillation",
            f"run it with `crossdistill recipes run {name} --out RUN`, or read it with selfsup.read_recipe",
        )
    settings = {key: value for key, value in tree.items() if key not in _PLAN_KEYS}
    seeds = check_seeds(tree["seeds"]) if "seeds" in tree else (settings.pop("seed", 0),)
    return make_plan(settings, overrides, seeds=seeds, baseline=bool(tree.get("baseline", False)))


def recipe_tree(name: str) -> dict[str, Any]:
    """What a recipe's file holds, not yet validated."""
    return _tree(recipe_path(name))


def recipe_kind(name: str) -> str:
    """What a recipe is for: "pretrain" without labels, or "run"; the ``config.yaml`` of a run is told by its views."""
    tree = recipe_tree(name)
    return str(tree.get(KIND, "pretrain" if "views" in tree else "run"))


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: {error}", "valid YAML", "mend the file at that line") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("description", ""), str):
        raise InputError(f"recipe {path}", "a mapping of settings with a description", "see `recipes show`")
    return tree


def _shipped() -> dict[str, Path]:
    home = shipped("recipes")
    if home is None:
        return {}
    return {path.relative_to(home).with_suffix("").as_posix(): path for path in home.rglob("*.yaml")}
