"""All methods at equal budget on CIFAR-100's 20 coarse classes at 32 px: each family teaches and is taught once.

Every method trains the same students from the same first weights on the same batches, over the same seeds and for the
same number of steps, with the defaults of its own options. A row is one pair and one method. With ``--questions`` the
rows are FBT's open choices instead: its defaults with one option changed.

    for teacher in cnn vit mlp; do
      crossdistill recipes run pilot/teacher-$teacher --out runs/pilot/teacher-$teacher
    done
    python benchmarks/pilot.py --out runs/pilot
    python benchmarks/pilot.py --out runs/pilot --questions
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from record import origin, record
from timing import write

from crossdistill.registry import METHODS
from crossdistill.runs import execute, make_plan, recipe_path

STUDENTS: dict[str, dict[str, Any]] = {
    "cnn": {"name": "timm/resnet10t", "image_size": 32, "args": {"channels": [16, 32, 64, 128], "stem_width": 16}},
    "vit": {
        "name": "timm/vit_tiny_patch16_224",
        "image_size": 32,
        "args": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    },
    "mlp": {"name": "timm/resmlp_tiny", "image_size": 32, "args": {"patch_size": 8}},
}
TEACHERS = {"vit": "transformer", "cnn": "CNN", "mlp": "Mixer"}
PAIRS = {"vit-cnn": ("vit", "cnn"), "cnn-mlp": ("cnn", "mlp"), "mlp-vit": ("mlp", "vit")}
FUSED_COLUMNS = (
    *("recipe", "method", "seed", "student_top1", "fused_top1", "teacher_top1"),
    *("device", "torch", "commit", "command", "date"),
)
FUSED_SAME = ("recipe", "method", "seed")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "the fused network also learns from what it teaches": ("detach_fusion=false",),
    "the fused network learns from labels": ("fusion_ce_weight=1",),
    "the label counts in every OFA loss": ("form=paper",),
    "InfoNCE in both directions": ("nce_symmetric=true",),
    "InfoNCE on projections of 128": ("projection_dim=128",),
    "the class token gives way to the patches' mean": ("vit_feature=patch_mean",),
    "gamma": ("gamma=1.5",),
    "without teacher to fused": ("teacher_fusion_weight=0",),
    "without fused to student": ("fusion_student_weight=0",),
    "without teacher to student": ("teacher_student_weight=0",),
    "without InfoNCE": ("nce_weight=0",),
    "without OFA": ("logit_weight=0",),
}


def main() -> None:
    """Run what is asked for; finished runs are read, not run again."""
    options = _options()
    train = yaml.safe_load(recipe_path("pilot/none").read_text(encoding="utf-8"))
    variants = [("fbt", one) for one in QUESTIONS.values()] if options.questions else [(m, ()) for m in _methods()]
    wanted = None if options.methods is None else options.methods.split(",")
    for method, changed in variants:
        label = f"{method} ({', '.join(changed)})" if changed else method
        if wanted is not None and not any(word == method or (changed and word in label) for word in wanted):
            continue
        for pair in options.pairs.split(","):
            _run(pair, method, changed, label, train, options)


def _methods() -> list[str]:
    """``none`` first: what every other one is compared with."""
    return sorted((record.name for record in METHODS), key=lambda name: (name != "none", name))


def _run(
    pair: str, method: str, changed: tuple[str, ...], label: str, base: dict[str, Any], options: argparse.Namespace
) -> None:
    teacher, student = PAIRS[pair]
    alone = method == "none"
    out = options.out / pair / label.replace(" ", "_")
    plan = make_plan(
        {
            "student": STUDENTS[student],
            "teachers": [] if alone else [{"name": str(options.out / f"teacher-{teacher}")}],
            "method": {"name": method},
            "data": {**base["data"], "workers": 0},
            "train": {**base["train"], "steps": options.steps or base["train"]["steps"]},
        },
        [f"method.{one}" for one in changed],
        seeds=tuple(int(seed) for seed in options.seeds.split(",")),
    )
    print(f"{pair}: {label}", flush=True)
    results = execute(plan, out, resume=out.exists(), quiet=True)
    command = _command()
    record(
        labelled(results, label), options.results, recipe=f"pilot/{pair}", command=command, teacher=TEACHERS[teacher]
    )
    write(Path("results/checks/fused.csv"), list(_fused(out, pair, label, results)), FUSED_COLUMNS, FUSED_SAME)
    print(json.dumps({row["name"]: row["top1_mean"] for row in results["rows"]}), flush=True)


def _fused(out: Path, pair: str, label: str, results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a seed of the last evaluation's accuracies, where the method has a network of its own."""
    made = origin(results["environment"], _command())
    teacher = next((row["top1_mean"] for row in results["rows"] if row["role"] == "teacher"), None)
    for log in sorted(out.rglob("metrics.jsonl")):
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        last = [event for event in events if event["kind"] == "eval"][-1]
        if "fused_top1" in last:
            about = {"recipe": f"pilot/{pair}", "method": label, "seed": log.parent.name.removeprefix("seed-")}
            yield {
                **about,
                "student_top1": last["top1"],
                "fused_top1": last["fused_top1"],
                "teacher_top1": teacher,
                **made,
            }


def labelled(results: dict[str, Any], label: str) -> dict[str, Any]:
    """The same results under the name that says what was changed."""
    rows = [row | {"method": label} if row["role"] == "distilled" else row for row in results["rows"]]
    return {**results, "rows": rows}


def _command() -> str:
    """The command as it can be repeated: paths that say where this checkout's user keeps things are left to them."""
    names = ("--steps", "--seeds")
    kept = [word for name in names if name in sys.argv for word in (name, sys.argv[sys.argv.index(name) + 1])]
    kept += ["--questions"] * ("--questions" in sys.argv)
    return shlex.join(["python", "benchmarks/pilot.py", "--out", "runs/pilot", *kept])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, with the teachers")
    parser.add_argument(
        "--results", type=Path, default=None, help="default: results/pilot/methods.csv, or results/pilot/fbt.csv"
    )
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--methods", help="only these, such as fbt,rsd; of questions those that hold one of the words")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, help="default: those of recipes/pilot")
    parser.add_argument("--questions", action="store_true", help="FBT's open choices instead of all methods")
    options = parser.parse_args()
    options.results = options.results or Path(
        "results/pilot/fbt.csv" if options.questions else "results/pilot/methods.csv"
    )
    return options


if __name__ == "__main__":
    main()
