"""``crossdistill pretrain``: learn a representation without labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossdistill.cli.options import Training, at_least, settings_tree, training_command
from crossdistill.cli.show import say, show_results

if TYPE_CHECKING:
    from crossdistill.selfsup import PretrainSettings


@partial(training_command, fixed={"labels_per_class": None, "val_share": None}, defaults={"lr": "0.05"})
def command(
    model: Annotated[str, typer.Option("--model", help="The network to train: timm/NAME, torchvision/NAME, …")],
    training: Training,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            help="A trained network of any family whose words are predicted; its labels are not needed.",
            show_default="the model's own average",
        ),
    ] = None,
    num_words: Annotated[
        int | None,
        typer.Option("--words", help="Words of each vocabulary; fewer suit small or narrow sets.", show_default="8192"),
    ] = None,
) -> None:
    """Learn a representation without labels: OBoW, predicting a teacher's bags of visual words.

    Example:
    crossdistill pretrain --model timm/resnet18 --data folder:photos \\
      --image-size 224 --epochs 80 --out runs/pretrained

    --init runs/pretrained then starts a training from it, --teacher distils it.
    Labels, where there are any, only measure; data.unlabelled=true takes a folder
    of images without classes. Sizes of views follow --image-size (views.KEY=VALUE).
    """
    at_least(2, words=num_words)
    own = settings_tree(student__name=model, method__num_words=num_words, teacher__name=teacher)
    tree = training.merged(own)

    from crossdistill import selfsup

    settings = selfsup.load_settings(tree, training.overrides)
    how = {"resume": training.resume, "dry_run": training.dry_run}
    run(settings, training.seeds, training.out, as_json=training.as_json, **how)


def run_recipe(name: str, out: Path, overrides: Sequence[str], *, as_json: bool, **how: bool) -> None:
    """Carry out a recipe of pretraining."""
    from crossdistill import selfsup

    settings, seeds = selfsup.read_recipe(name, overrides)
    run(settings, seeds, out, as_json=as_json, **how)


def run(
    settings: PretrainSettings, seeds: Sequence[int], out: Path, *, as_json: bool, resume: bool, dry_run: bool
) -> None:
    """Pretrain, and show what came of it."""
    from crossdistill import selfsup

    results = selfsup.execute(settings, out, seeds=seeds, resume=resume, dry_run=dry_run, quiet=as_json)
    if "dry_run" in results and not as_json:
        show_trial(results["dry_run"]["pretrain"])
    else:
        show_results(results, as_json=as_json, out=out)


def show_trial(trial: dict[str, object]) -> None:
    """What a dry run built, in a few lines."""
    student, method, views = (dict(trial[key]) for key in ("student", "method", "views"))  # type: ignore[call-overload]
    height, width = student["input"]["image_size"]
    own = f"{method['num_parameters']:,} parameters of its own"
    crops = f"{views['crops']} crops of {views['crop_size']} px"
    lines = {
        "network": f"{student['name']} ({student['family']}), {student['num_parameters']:,} parameters",
        "teacher": str(trial["teacher"]),
        "method": f"{method['name']}, {own}",
        "views": f"{height} x {width} px; {crops}, {views['patches']} patches of {views['patch_size']} px",
        "images": f"{trial['num_train']:,}, without labels",
        "steps": f"{trial['steps_per_epoch']:,} an epoch, {trial['images_per_second']:.0f} images/s",
    }
    for key, text in lines.items():
        say(f"{key:>7}: {text}")
    for warning in list(trial["warnings"]):  # type: ignore[call-overload]
        say(f"   note: {warning}")
    say("dry run: everything fits together; nothing was written")
