"""``crossdistill probe``: how good a representation is, by neighbours, a linear probe, few labels and few shots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, print_table, say, show_results
from crossdistill.errors import InputError

if TYPE_CHECKING:
    from crossdistill.selfsup.evaluation import Subject

_HELP = """Measure a representation: nearest neighbours, a linear probe, few labels, few shots.

Example:
crossdistill probe knn runs/pretrained
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, a timm folder, NAME@PATH or NAME@pretrained.")
]
Data = Annotated[str | None, typer.Option("--data", help=o.DATA_HELP, show_default="the data of the run")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="Height and width in pixels.", show_default="the model's own")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
AllowRandom = Annotated[bool, typer.Option("--allow-random", help="Measure random weights, as what to compare with.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings of the data: data.limit_train=5000.", show_default=False),
]
Seed = Annotated[int, typer.Option("--seed", min=0)]


@app.command()
def knn(
    model: Model,
    overrides: Overrides = None,
    data: Data = None,
    neighbours: Annotated[int, typer.Option("--neighbours", min=1, help="Training images that vote.")] = 20,
    temperature: Annotated[float, typer.Option("--temperature", help="The lower, the more the nearest count.")] = 0.07,
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    device: Device = "auto",
    allow_random: AllowRandom = False,
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Accuracy by the weighted votes of the nearest training images.

    Example:
    crossdistill probe knn runs/pretrained --data folder:photos
    """
    from crossdistill.selfsup import evaluation

    subject = _subject(model, data, batch_size, image_size, device, allow_code, allow_random, overrides)
    measured = evaluation.knn(subject, neighbours=neighbours, temperature=temperature)
    _show(measured, f"{neighbours} nearest of {measured['num_train']:,} training images vote", as_json=as_json)


@app.command()
def linear(
    model: Model,
    overrides: Overrides = None,
    data: Data = None,
    rates: Annotated[str | None, typer.Option("--rates", help="Learning rates to try, with commas.")] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training images' features.")] = 50,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the network with the probe as its classifier: a teacher.", show_default="–"),
    ] = None,
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    device: Device = "auto",
    allow_random: AllowRandom = False,
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Accuracy of a linear classifier on frozen features; its rate is chosen on held-out training images.

    Example:
    crossdistill probe linear runs/pretrained --data folder:photos --out teachers/photos
    """
    from crossdistill.selfsup import evaluation
    from crossdistill.selfsup.linear import DEFAULT_RATES

    subject = _subject(model, data, batch_size, image_size, device, allow_code, allow_random, overrides)
    sweep = DEFAULT_RATES if rates is None else _rates(rates)
    measured = evaluation.linear(subject, rates=sweep, epochs=epochs, seed=seed, out=out)
    held_out = measured["held_out_top1"]
    chosen = "" if held_out is None else f", {_percent(held_out)} on held-out training images"
    _show(measured, f"a linear probe of rate {measured['rate']:g}{chosen}", as_json=as_json)


@app.command(name="few-shot")
def few_shot(
    model: Model,
    overrides: Overrides = None,
    data: Data = None,
    ways: Annotated[int, typer.Option("--ways", help="Classes of an episode.")] = 50,
    shots: Annotated[int, typer.Option("--shots", help="Examples of each.")] = 1,
    queries: Annotated[int, typer.Option("--queries", help="Questions of each.")] = 1,
    episodes: Annotated[int, typer.Option("--episodes", help="How many.")] = 200,
    novel: Annotated[
        int | None, typer.Option("--novel", help="Draw so many classes first.", show_default="all classes")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", help="A file with the name of a novel class in each line.", show_default="–"),
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 128,
    image_size: ImageSize = None,
    device: Device = "auto",
    allow_random: AllowRandom = False,
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Accuracy over episodes: classes told apart by a few examples each, without any training.

    Example:
    crossdistill probe few-shot runs/pretrained --classes novel.txt --ways 50 --shots 5
    """
    from crossdistill.selfsup import evaluation
    from crossdistill.selfsup.few_shot import Episodes

    subject = _subject(model, data, batch_size, image_size, device, allow_code, allow_random, overrides)
    form = Episodes(ways, shots, queries, episodes, seed)
    measured = evaluation.few_shot(subject, form, novel=novel, classes=classes)
    if as_json:
        print_json(measured)
        return
    interval = "" if measured["interval"] is None else f" ± {100 * measured['interval']:.1f} (95 % interval)"
    say(f"{measured['model']} on {measured['data']} ({measured['split']})")
    say(f"{ways}-way {shots}-shot: {_percent(measured['accuracy'])}{interval} over {episodes} episodes")
    if measured["num_classes"] < len(measured["classes"]):
        num_left_out = len(measured["classes"]) - measured["num_classes"]
        say(f"note: {num_left_out} of {len(measured['classes'])} classes have fewer than {shots + queries} images")
    say(
        f"pretraining saw images of these {len(measured['classes'])} classes: {measured['classes_seen_in_pretraining']}"
    )
    _say_skipped(measured)


@app.command()
def semi(
    model: Model,
    out: o.Out,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any setting.", show_default=False)
    ] = None,
    data: Data = None,
    share: Annotated[
        float | None, typer.Option("--share", help="Of the training images, those with a label.", show_default="0.01")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--list", help="A file with the end of an image's path in each line, instead.", show_default="–"),
    ] = None,
    seeds: o.Seeds = "0",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images a step.")] = 256,
    image_size: ImageSize = None,
    device: Device = "auto",
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    allow_random: AllowRandom = False,
    allow_code: o.AllowCode = False,
    as_json: o.Json = False,
) -> None:
    """Fine-tune the whole network with the labels of a few images.

    Example:
    crossdistill probe semi runs/pretrained --share 0.1 --seeds 0,1,2 --out runs/tenth

    Settings are those published for 1 % and 10 % of ImageNet (which report top-5); KEY=VALUE changes any.
    """
    from crossdistill.selfsup.semi import semi_supervised

    subject = _subject(model, data, batch_size, image_size, device, allow_code, allow_random, overrides)
    how: dict[str, Any] = {"share": share, "images": images, "batch_size": batch_size, "seeds": o.parse_seeds(seeds)}
    results = semi_supervised(subject, out, **how, resume=resume, dry_run=dry_run, quiet=as_json)
    show_results(results, as_json=as_json, out=out)
    if not as_json and not dry_run:
        _say_figures(results["semi_supervised"])


def _say_figures(measured: Mapping[str, Any]) -> None:
    """Top-5 beside top-1: what is published for this protocol is the former."""
    top5 = f"top-5 {_percent(measured['top5_mean'])}, " if "top5_mean" in measured else ""
    say(f"{measured['num_labels']:,} labels: {top5}top-1 {_percent(measured['top1_mean'])} (published: top-5)")


def _subject(
    model: str,
    data: str | None,
    batch_size: int,
    image_size: int | None,
    device: str,
    allow_code: bool,
    allow_random: bool,
    overrides: list[str] | None,
) -> Subject:
    from crossdistill.selfsup.evaluation import Subject

    return Subject(model, data, batch_size, image_size, device, allow_code, allow_random, tuple(overrides or ()))


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError:
        raise InputError(f"--rates {text!r}", "numbers with commas between them", "give --rates 0.1,1") from None


def _show(measured: Mapping[str, Any], how: str, *, as_json: bool) -> None:
    if as_json:
        print_json(dict(measured))
        return
    say(f"{measured['model']} on {measured['data']} ({measured['split']}, {measured['num_samples']} images): {how}")
    shown = [(name, measured[key]) for name, key in _FIGURES.items() if key in measured]
    print_table(["", "accuracy"], [[name, _percent(value)] for name, value in shown], numbers=("accuracy",))
    for warning in measured.get("warnings", ()):
        say(f"note: {warning}")
    _say_skipped(measured)
    if "folder" in measured:
        say(f"written to {measured['folder']}: a teacher by that name")


def _say_skipped(measured: Mapping[str, Any]) -> None:
    for image, reason in measured["skipped"].items():
        say(f"left out: {image} ({reason})")


_FIGURES = {"top-1": "top1", "top-5": "top5", "top-1 on training images": "train_top1"}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
