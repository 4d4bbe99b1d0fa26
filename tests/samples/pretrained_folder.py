"""The folder of a pretraining run, filled with plausible numbers: several rows that are all of the same runs."""

import json

import numpy
from PIL import Image

from samples.run_folder import sample_results

MEASURED = {"k-NN": 0.25, "k-NN, averaged teacher": 0.24, "linear probe": 0.29}
LEVELS = (3, 4)


def pretraining_results(*, seeds=(0,), labelled=True, teacher=None, **changes):
    """The mapping of ``results.json``."""
    folders = {seed: "." if len(seeds) == 1 else f"pretrained/seed-{seed}" for seed in seeds}
    rows = [
        {
            "role": "pretrained",
            "name": "test_resnet",
            "method": method,
            "runs": [{"seed": seed, "top1": top1 + 0.01 * seed, "folder": folders[seed]} for seed in seeds],
            "top1_mean": top1,
            "num_parameters": 374_656,
        }
        for method, top1 in MEASURED.items()
    ]
    counts = {"num_classes": 10, "num_train": 1437, "num_labelled": 0, "num_evaluation": 360}
    unlabelled = {"num_classes": 0, "num_evaluation": 0}
    data = {"source": "digits", "evaluation_split": "test", **counts, **({} if labelled else unlabelled)}
    settings = {"student": {"name": "timm/test_resnet"}, "teacher": teacher and {"name": teacher}, "seed": 0}
    own = {"kind": "pretrain", "warnings": [], "data": data, "rows": rows if labelled else [], "settings": settings}
    return sample_results(**(own | changes))


def write_pretraining(folder, results=None, *, seeds=(0,)):
    """A whole run folder, with one of its own below it for each of several seeds."""
    results = pretraining_results(seeds=seeds) if results is None else results
    members = [folder if len(seeds) == 1 else folder / "pretrained" / f"seed-{seed}" for seed in seeds]
    for seed, member in zip(seeds, members, strict=True):
        member.mkdir(parents=True, exist_ok=True)
        words = [_picture(member, level) for level in LEVELS]
        own = pretraining_results(seeds=(seed,)) if member != folder else results
        (member / "results.json").write_text(json.dumps(own | {"pretraining": {"words": words}}))
        _log(member, seed, measured=bool(results["rows"]))
    if members != [folder]:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def _picture(folder, level):
    name = f"words-level{level}.png"
    Image.new("RGB", (660, 300), (255, 255, 255)).save(folder / name)
    words = [{"word": 17, "share": 0.0123, "images": [3, 5]}, {"word": 4, "share": 0.01, "images": []}]
    return {"level": level, "file": name, "num_images": 1437, "words": words}


def _log(folder, seed, *, measured, epochs=5, steps_per_epoch=20):
    generator = numpy.random.default_rng(seed)
    lines = []
    for epoch in range(1, epochs + 1):
        common = {"epoch": epoch, "step": steps_per_epoch * epoch}
        figures = {"embedding_spread": 0.8 + 0.01 * generator.random()}
        for level in LEVELS:
            figures |= {
                f"perplexity_image_level{level}": 10.0 + level,
                f"perplexity_batch_level{level}": 90.0 + epoch,
                f"words_used_level{level}": 0.9 + 0.01 * epoch,
                f"mean_distance_level{level}": 20.0 / epoch,
            }
        lines.append({"kind": "train", **common, "losses": {"bow_23px": 6.0 - 0.2 * epoch, "bow_14px": 6.0},
                      "images_per_second": 900.0, "data_wait_share": 0.02, "figures": figures})  # fmt: skip
        if measured:
            lines.append({"kind": "eval", **common, "top1": 0.2 + 0.01 * epoch, "teacher_top1": 0.19 + 0.01 * epoch})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
