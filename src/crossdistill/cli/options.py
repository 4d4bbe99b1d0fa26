"""Options that several commands share, and how they become settings."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossdistill.cli.show import show_results
from crossdistill.errors import InputError

if TYPE_CHECKING:
    from crossdistill.runs import Plan

DATA_HELP = (
    r"digits, folder:PATH (train/ val/ \[test/] or one flat tree), parquet:, idx:, npz:, hf: or wds:PATH, "
    "or a known name such as cifar100 (docs/data.md)."
)

Data = Annotated[str, typer.Option("--data", help=DATA_HELP)]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; made here.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Any setting, such as train.weight_decay=0.1.", show_default=False),
]
Seeds = Annotated[str, typer.Option("--seeds", help="Comma-separated; several make one table with mean and sd.")]
ClassMap = Annotated[
    str | None,
    typer.Option(
        "--class-map",
        help="For a model of other classes: 'names' finds the data's classes among its own, "
        "a YAML or JSON file says {class: class of the model}.",
        metavar="names|FILE",
        show_default=False,
    ),
]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Run the Python file of a model file:PATH.py:FUNCTION.")]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out from its last checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, run two steps, write nothing.")]


@dataclass(frozen=True, slots=True)
class Training:
    """What the shared options of ``train`` and ``distill`` say."""

    tree: dict[str, Any]
    overrides: list[str]
    seeds: tuple[int, ...]
    out: Path
    resume: bool
    dry_run: bool
    as_json: bool

    def run(self, own: dict[str, Any], *, baseline: bool = False) -> None:
        """Carry out a plan made of the shared options and a command's own, and show the results."""
        from crossdistill import runs

        plan = self.plan(own, baseline=baseline)
        results = runs.execute(plan, self.out, resume=self.resume, dry_run=self.dry_run, quiet=self.as_json)
        show_results(results, as_json=self.as_json, out=self.out)

    def plan(self, own: dict[str, Any], *, baseline: bool = False) -> Plan:
        """The shared options and a command's own as a plan."""
        from crossdistill import runs

        return runs.make_plan(self.merged(own), self.overrides, seeds=self.seeds, baseline=baseline)

    def merged(self, own: dict[str, Any]) -> dict[str, Any]:
        """The tree of settings that the shared options and a command's own make."""
        tree = {key: {**self.tree.get(key, {}), **own.get(key, {})} for key in ("student", "data", "train", "method")}
        return {key: value for key, value in {**self.tree, **own, **tree}.items() if value != {}}


def _training(
    data: Data,
    out: Out,
    overrides: Overrides = None,
    seeds: Seeds = "0",
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Passes over the training images.", show_default="100")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps, instead of epochs.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images a step, over all devices.", show_default="128")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="0.001")] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Height and width in pixels.", show_default="the model's own")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Start from these weights: PATH or 'pretrained'; the head may differ.", show_default=False
        ),
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option("--limit-train", help="Use so many training images, stratified.", show_default="all")
    ] = None,
    labels_per_class: Annotated[
        int | None, typer.Option("--labels-per-class", help="Keep so many labels a class.", show_default="all")
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option("--val-share", help="Held out to pick the best epoch (train.select=best).", show_default="0.1"),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, bf16 or fp16.", show_default="fp32")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.", show_default="auto")] = None,
    allow_code: AllowCode = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> Training:
    at_least(1, epochs=epochs, steps=steps, batch_size=batch_size, image_size=image_size)
    at_least(1, limit_train=limit_train, labels_per_class=labels_per_class)
    tree = settings_tree(
        student__image_size=image_size,
        student__init=init,
        data__source=data,
        data__limit_train=limit_train,
        data__labels_per_class=labels_per_class,
        data__val_share=val_share,
        train__epochs=epochs,
        train__steps=steps,
        train__batch_size=batch_size,
        train__lr=lr,
        train__precision=precision,
        device=device,
        allow_code=allow_code or None,
    )
    return Training(tree, overrides or [], parse_seeds(seeds), out, resume, dry_run, as_json)


def training_command(
    command: Callable[..., None],
    *,
    fixed: Mapping[str, Any] = MappingProxyType({}),
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> Callable[..., None]:
    """Give a command the shared options; they reach it as its parameter ``training``.

    Those in ``fixed`` are not offered and have the value given there. ``defaults`` are what the help says of options
    whose default is another one for this command.
    """
    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "training"]
    every = inspect.signature(_training, eval_str=True).parameters.values()
    shared = [_with_default(one, defaults.get(one.name)) for one in every if one.name not in fixed]

    @functools.wraps(command)
    def with_shared(**values: Any) -> None:
        training = _training(**fixed, **{one.name: values.pop(one.name) for one in shared})
        command(**values, training=training)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *shared)]
    with_shared.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_shared.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_shared


def _with_default(option: inspect.Parameter, shown: str | None) -> inspect.Parameter:
    """The option with another default in its help, if one is given."""
    if shown is None:
        return option
    (facts,) = option.annotation.__metadata__
    changed = copy.copy(facts)
    changed.show_default = shown
    return option.replace(annotation=Annotated[option.annotation.__origin__, changed])


def at_least(least: int, **given: int | None) -> None:
    """Refuse numbers that no settings would take, before anything heavy is loaded; ``None`` was not given.

    Raises:
        InputError: naming the option.
    """
    for name, value in given.items():
        if value is not None and value < least:
            raise InputError(
                f"--{name.replace('_', '-')} {value}",
                f"a whole number from {least} on",
                "give a larger number",
            )


def settings_tree(**given: Any) -> dict[str, Any]:
    """A tree from dotted keys with double underscores, leaving out what was not given.

    >>> settings_tree(train__lr=0.1, train__epochs=None, seed=1)
    {'train': {'lr': 0.1}, 'seed': 1}
    """
    tree: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        *parents, leaf = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from ``0,1,2``; whether they are fit for a plan is checked there."""
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--seeds {text!r}",
            "different whole numbers from 0, with commas between them",
            "give --seeds 0 or --seeds 0,1,2",
        ) from None
    return seeds
