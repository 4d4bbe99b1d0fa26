"""``crossdistill evaluate``: the accuracy of a run or a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, print_table


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a timm folder or NAME@PATH.")],
    data: Annotated[str | None, typer.Option("--data", help=o.DATA_HELP, show_default="the data of the run")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Height and width in pixels.", show_default="the model's own")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of the data: data.label_column=grade.", show_default=False),
    ] = None,
    class_map: o.ClassMap = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Measure a trained model on the test images (the val images where there are no others).

    Example:
    crossdistill evaluate runs/student --data folder:photos data.evaluation_split=val
    """
    from crossdistill import runs

    measured = runs.evaluate(
        model,
        data,
        class_map=class_map,
        batch_size=batch_size,
        image_size=image_size,
        device=device,
        allow_code=allow_code,
        overrides=overrides or (),
    )
    if as_json:
        print_json(measured)
        return
    rows = [[one["class"], str(one["num_samples"]), _percent(one["accuracy"])] for one in measured["per_class"]]
    print_table(["class", "images", "accuracy"], rows, numbers=("images", "accuracy"))
    where = f"{measured['data']} ({measured['split']}, {measured['num_samples']} images)"
    typer.echo(f"{measured['model']} on {where}")
    top5 = f", top-5 {_percent(measured['top5'])}" if "top5" in measured else ""
    typer.echo(f"top-1 {_percent(measured['top1'])}{top5}, cross-entropy {measured['loss']:.4f}")
    if "top1_of_all_classes" in measured:
        share = _percent(measured["top1_of_all_classes"])
        typer.echo(f"top-1 {share} where it chooses among all its {measured['num_model_classes']} classes")
    for image, reason in measured["skipped"].items():
        typer.echo(f"left out: {image} ({reason})")


def _percent(share: float | None) -> str:
    """A class without images has no accuracy."""
    return "–" if share is None else f"{100 * share:.1f} %"
