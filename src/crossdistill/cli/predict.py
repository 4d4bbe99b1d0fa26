"""``crossdistill predict``: classes of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, print_table


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run folder, a timm folder or NAME@PATH.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to show for each image.")] = 3,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Name the most probable classes of image files.

    Example:
    crossdistill predict runs/student photo1.jpg photo2.jpg
    """
    from crossdistill import runs

    predictions = runs.predict(model, images, top=top, device=device, allow_code=allow_code)
    if as_json:
        print_json(predictions)
        return
    rows = [
        [one["image"], ", ".join(f"{found['class']} {100 * found['probability']:.1f} %" for found in one["classes"])]
        for one in predictions
    ]
    print_table(["image", "classes"], rows)
