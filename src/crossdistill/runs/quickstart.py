"""The main job in miniature: a transformer that saw every label teaches a small CNN that saw few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossdistill.report import write_report
from crossdistill.runs.folder import RunFolder
from crossdistill.runs.plan import Plan, make_plan, run_members
from crossdistill.runs.results import Results, few_labels_note

SEEDS = (0, 1, 2)
LABELS_PER_CLASS = 10

# A vision transformer of 0.2 M parameters that sees a digit as 4 x 4 patches.
_TEACHER = {
    "name": "timm/vit_tiny_patch16_224",
    "image_size": 16,
    "args": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
}
# A residual CNN of 50 k parameters, four stages from 8 x 8 down to 1 x 1.
_STUDENT = {
    "name": "timm/resnet10t",
    "image_size": 32,
    "args": {"channels": [8, 16, 24, 48], "stem_width": 8},
}
_TEACHER_TRAINING = {"epochs": 40, "batch_size": 64, "lr": 2e-3, "eval_every": 5, "checkpoint_every": 10}
_STUDENT_TRAINING = {"steps": 300, "batch_size": 100, "lr": 4e-3, "eval_every": 4, "checkpoint_every": 40}


def quickstart(out: Path, *, resume: bool = False, quiet: bool = False) -> Results:
    """Train the teacher, then the student alone and by two methods, over three seeds; table and report in ``out``.

    Everybody trains for the same number of steps, with the same schedule and batch size. The student alone can use
    only the images with a label (all of them in each step); for the others a teacher's answer stands in.
    """
    teacher_plan = make_plan({"student": _TEACHER, "data": {"source": "digits"}, "train": _TEACHER_TRAINING})
    teacher_folder = out / "teacher"
    teacher = run_members(
        "train",
        teacher_plan.members(),
        teacher_folder,
        teacher_plan.settings,
        resume=resume and RunFolder(teacher_folder).config.exists(),
        quiet=quiet,
    )
    kd, ofa = (_student_plan(method, teacher_folder, baseline=method == "kd") for method in ("kd", "ofa"))
    results = run_members("quickstart", {**kd.members(), **ofa.members()}, out, kd.settings, resume=resume, quiet=quiet)
    num_teacher_labels = teacher["data"]["num_labelled"]
    for row in results["rows"]:
        if row["role"] == "teacher":
            row["num_labels"] = num_teacher_labels
    general = few_labels_note(results["data"]["num_labelled"], results["data"]["num_train"])
    results["warnings"] = [
        f"the teacher saw {num_teacher_labels} labels and the student {results['data']['num_labelled']}: "
        "what distillation adds here is what the teacher knows of the other images, not better use of the same labels",
        *(warning for warning in results["warnings"] if warning != general),
    ]
    RunFolder(out).write_results(results)
    write_report(out)
    return results


def _student_plan(method: str, teacher_folder: Path, *, baseline: bool) -> Plan:
    tree: dict[str, Any] = {
        "student": _STUDENT,
        "teachers": [{"name": str(teacher_folder)}],
        "method": {"name": method},
        "data": {"source": "digits", "labels_per_class": LABELS_PER_CLASS},
        "train": _STUDENT_TRAINING,
    }
    return make_plan(tree, seeds=SEEDS, baseline=baseline)
