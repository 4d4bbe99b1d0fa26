"""Write a finished run's rows to a CSV file under ``results/``; rows of the same experiment are replaced.

python benchmarks/record.py RUN results/quickstart.csv --recipe quickstart
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from crossdistill.report.results_csv import append_row, read_rows

SAME = ("recipe", "teacher", "student", "method", "data", "image_size", "epochs_or_steps")


def record(results: dict[str, Any], path: Path, *, recipe: str, command: str, teacher: str | None = None) -> None:
    """One row for each student of ``results``.

    Args:
        results: what ``results.json`` holds.
        path: the CSV file; made where missing.
        recipe: what was run.
        command: how it can be run again.
        teacher: what to call the teacher; default its name.
    """
    environment, train = results["environment"], results["settings"]["train"]
    taught_by = next((row for row in results["rows"] if row["role"] == "teacher"), None)
    length = f"{train['steps']} steps" if train["steps"] else f"{train['epochs']} epochs"
    for row in results["rows"]:
        if row["role"] == "teacher":
            continue
        distilled = row["role"] == "distilled" and taught_by is not None
        replace_row(
            path,
            {
                "recipe": recipe,
                "teacher": (teacher or taught_by["name"]) if distilled else None,
                "student": row["name"],
                "method": row["method"] or "none",
                "data": _data(results["data"]),
                "image_size": results["settings"]["student"]["image_size"],
                "epochs_or_steps": f"{length} of {train['batch_size']}",
                "seeds": len(row["runs"]),
                "top1_mean": round(row["top1_mean"], 5),
                "top1_sd": None if row["top1_sd"] is None else round(row["top1_sd"], 5),
                "top1_by_seed": _by_seed(row["runs"]),
                "teacher_top1": round(taught_by["top1_mean"], 5) if distilled else None,
                "num_parameters": row["num_parameters"],
                "gmacs": float(f"{row['gmacs']:.4g}"),
                **origin(environment, command),
            },
        )


def _by_seed(runs: list[dict[str, Any]]) -> str:
    """Such as ``0:0.3141 1:0.2718``, so that differences between methods can be taken seed by seed."""
    return " ".join(f"{run['seed']}:{round(run['top1'], 5)}" for run in runs)


def _data(data: dict[str, Any]) -> str:
    source = data["source"].rpartition("/")[2].removeprefix("parquet:")
    labelled, images = data["num_labelled"], data["num_train"]
    return source if labelled == images else f"{source}, {labelled} of {images} labelled"


def origin(environment: dict[str, Any], command: str) -> dict[str, str]:
    """The columns that say where, with what and when a row was made; ``environment`` as ``results.json`` holds it."""
    return {
        "device": ", ".join(environment["gpus"]) or "CPU",
        "torch": environment["torch"],
        "commit": (environment["commit"] or "unknown")[:12] + ("+changes" if environment["dirty"] else ""),
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def replace_row(path: Path, row: dict[str, Any]) -> None:
    """Add one row, in the place of those of the same experiment."""
    mark = [str(row.get(key) or "") for key in SAME]
    kept = [one for one in read_rows(path) if [one[key] for key in SAME] != mark] if path.exists() else []
    path.unlink(missing_ok=True)
    for one in [*kept, row]:
        append_row(path, one)


def main() -> None:
    """Record the run named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with results.json")
    parser.add_argument("csv", type=Path)
    parser.add_argument("--recipe", required=True, help="what was run")
    parser.add_argument("--command", help="default: crossdistill and the recipe's name")
    options = parser.parse_args()
    results = json.loads((options.run / "results.json").read_text(encoding="utf-8"))
    command = options.command or f"crossdistill {options.recipe}"
    record(results, options.csv, recipe=options.recipe, command=command)


if __name__ == "__main__":
    main()
