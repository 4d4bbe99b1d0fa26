"""``crossdistill evaluate``: the accuracy of a run or a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli import options as o


def command(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a timm folder or NAME@PATH.")],
    data: Annotated[str | None, typer.Option("--data", help=o.DATA_HELP, show_default="the data of the run")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Height and width in pixels.", show_default="the model's own")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: o.Json = False,
) -> None:
    """Measure a trained model on the test images (the val images where there are no others).

    Example: crossdistill evaluate runs/student --data folder:photos
    """
    from crossdistill import runs

    measured = runs.evaluate(model, data, batch_size=batch_size, image_size=image_size, device=device)
    if as_json:
        o.print_json(measured)
        return
    o.print_table(
        f"{measured['model']} on {measured['data']} ({measured['split']}, {measured['num_samples']} images)",
        ["class", "images", "accuracy"],
        [[one["class"], str(one["num_samples"]), f"{100 * one['accuracy']:.1f} %"] for one in measured["per_class"]],
    )
    typer.echo(f"top-1 {100 * measured['top1']:.2f} %, cross-entropy {measured['loss']:.4f}")
