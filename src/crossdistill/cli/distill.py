"""``crossdistill distill``: one teacher or several into one student."""

from __future__ import annotations

from typing import Annotated

import typer

from crossdistill.cli.options import ClassMap, Training, training_command


@training_command
def command(
    teacher: Annotated[
        list[str],
        typer.Option("--teacher", help="A trained model: run folder, NAME@PATH …; repeat for an ensemble. Or a store."),
    ],
    student: Annotated[str, typer.Option("--student", help="The model to train, by name.")],
    training: Training,
    class_map: ClassMap = None,
    method: Annotated[str, typer.Option("--method", help="`crossdistill methods` lists them.")] = "kd",
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the student alone, for an honest comparison.")
    ] = False,
) -> None:
    """Distil a teacher into a student of any architecture.

    Example:
    crossdistill distill --teacher runs/teacher --student timm/mobilenetv2_100 \\
      --method ofa --data folder:photos --image-size 64 --baseline \\
      --out runs/student

    --class-map holds for all teachers; teachers.0.class_map=… sets one.
    The teacher's accuracy is measured first; a teacher that guesses is refused.
    With a store: data.seed=S gives all --seeds the images of seed S;
    data.cycle_epochs=N shows N stored epochs again and again.
    """
    own = {
        "student": {"name": student},
        "teachers": [{"name": name} | ({} if class_map is None else {"class_map": class_map}) for name in teacher],
        "method": {"name": method},
    }
    training.run(own, baseline=baseline)
