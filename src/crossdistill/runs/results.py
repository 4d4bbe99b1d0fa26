"""The figures of a run as plain data: one run makes rows, several runs are merged into one table."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from crossdistill.analysis.compare import summarise, verdict
from crossdistill.analysis.environment import environment
from crossdistill.errors import InputError

Row = dict[str, Any]
Results = dict[str, Any]

SCHEMA = 1


def make_row(
    role: str,
    name: str,
    *,
    seed: int,
    top1: float,
    folder: str | None,
    method: str | None = None,
    cost: dict[str, Any] | None = None,
    num_labels: int | None = None,
) -> Row:
    """One model's line of the table, from one run; ``top1`` is a fraction."""
    return {
        "role": role,
        "name": name,
        "method": method,
        "runs": [{"seed": seed, "top1": top1, "folder": folder}],
        "top1_mean": top1,
        "top1_sd": None,
        "num_labels": num_labels,
        **(cost or {"num_parameters": None, "gmacs": None, "latency_ms": None}),
    }


def make_results(
    kind: str,
    rows: list[Row],
    *,
    data: dict[str, Any],
    store: dict[str, Any] | None = None,
    identity: dict[str, str | None],
    settings: dict[str, Any],
    seconds: float,
    warnings: list[str],
) -> Results:
    """Everything that ``results.json`` holds; ``store`` says what of the teacher's answers was stored, if they were."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "headline": headline(rows),
        "warnings": list(dict.fromkeys(warnings)),
        "data": data,
        "store": store,
        "identity": identity,
        "rows": rows,
        "settings": settings,
        "environment": environment(),
        "seconds": seconds,
        "command": command_line(),
    }


def few_labels_note(num_labelled: int, num_train: int) -> str:
    """What must be said beside the result of a student that has fewer labels than images."""
    return (
        f"the student has labels for {num_labelled} of {num_train} training images: "
        "a teacher that saw more of them passes on what it learned there"
    )


def command_line() -> str:
    """What was typed to get here; from Python nothing was."""
    from_command_line = sys.argv[0].endswith(("/crossdistill", "crossdistill/__main__.py"))
    return shlex.join(["crossdistill", *sys.argv[1:]]) if from_command_line else "from Python"


def merge(kind: str, parts: list[tuple[str, Results]], *, settings: dict[str, Any]) -> Results:
    """One table from the results of several runs, each given with its folder relative to the merged one.

    Raises:
        InputError: runs on other data or of another teacher, which cannot stand in one table.
    """
    identity = {key: _common(key, parts) for key in ("data_sha256", "teacher_sha256")}
    rows: dict[tuple[Any, ...], Row] = {}
    for folder, results in parts:
        for row in results["rows"]:
            key = (row["role"], row["name"], row["method"])
            runs = [{**run, "folder": _below(folder, run["folder"])} for run in row["runs"]]
            if key not in rows:
                rows[key] = {**row, "runs": runs}
            elif row["role"] != "teacher":  # one teacher serves every run and is measured once
                rows[key]["runs"] += runs
    for row in rows.values():
        summary = summarise([run["top1"] for run in row["runs"]])
        row["top1_mean"], row["top1_sd"] = summary.mean, summary.sd
    order = {"pretrained": 0, "student_alone": 0, "distilled": 1, "teacher": 2}
    return make_results(
        kind,
        sorted(rows.values(), key=lambda row: order[row["role"]]),
        # The student alone trains on the labelled images only; the set that all share is the largest.
        data=max((results["data"] for _, results in parts), key=lambda data: data["num_train"]),
        store=next((store for _, results in parts if (store := results.get("store")) is not None), None),
        identity=identity,
        settings=settings,
        seconds=sum(results["seconds"] for _, results in parts),
        warnings=[warning for _, results in parts for warning in results["warnings"]],
    )


def _common(key: str, parts: list[tuple[str, Results]]) -> str | None:
    """The hash that all runs share; those without a teacher have none and fit any."""
    found = {folder: value for folder, results in parts if (value := results["identity"][key]) is not None}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{folder}: {value[:12]}" for folder, value in found.items())
        raise InputError(
            f"runs with different {key.removesuffix('_sha256')}s in one table ({shown})",
            "the same for all of them",
            "restore what the first runs had, or start anew with another --out",
        )
    return next(iter(found.values()), None)


def headline(rows: list[Row]) -> str | None:
    """What was measured, in a sentence a method; ``None`` where nothing was compared."""
    alone = next((row for row in rows if row["role"] == "student_alone"), None)
    distilled = [row for row in rows if row["role"] == "distilled"]
    if alone is None or not distilled:
        return None
    return " ".join(
        verdict(_by_seed(alone), _by_seed(row), subject=f"Distillation ({row['method']})") for row in distilled
    )


def _by_seed(row: Row) -> dict[int, float]:
    return {run["seed"]: run["top1"] for run in row["runs"]}


def _below(folder: str, inner: str | None) -> str | None:
    if inner is None:
        return None
    return folder if inner == "." else f"{folder}/{inner}"
