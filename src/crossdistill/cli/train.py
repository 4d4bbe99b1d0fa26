"""``crossdistill train``: supervised training, for teachers and baselines."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli.options import Training, training_command


@training_command
def command(
    model: Annotated[str, typer.Option("--model", help="timm/NAME, timm/NAME@pretrained or NAME@PATH.")],
    training: Training,
) -> None:
    """Train a model on labels: a teacher to distil from, or a baseline to compare with.

    Example:
    crossdistill train --model timm/resnet18 --data folder:photos \\
      --image-size 64 --epochs 30 --out runs/teacher

    Fine-tune pretrained weights on your classes: add --init pretrained, or --init PATH for a file.
    """
    training.run({"student": {"name": model}})
