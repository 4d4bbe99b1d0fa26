"""Which networks of timm are cut into stages: all of them, one after the other, on the meta device.

    python benchmarks/coverage.py                 # the smallest variant of every file: minutes
    python benchmarks/coverage.py --all           # every variant: about half an hour
    python benchmarks/coverage.py --table         # write docs/backbones.md from results/checks/coverage.csv
    python benchmarks/coverage.py --choose        # find the smallest variants again, after an update of timm

Rows go to ``results/checks/coverage.csv``, one a network; a network that is there already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections import Counter, defaultdict
from pathlib import Path

import timm
import torch
from record import origin

from crossdistill.analysis import environment
from crossdistill.models import additions
from crossdistill.models.coverage import cover, file_of
from crossdistill.models.points import ENOUGH_STAGES
from crossdistill.models.zoo import smallest_variants

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "results" / "checks" / "coverage.csv"
PAGE = ROOT / "docs" / "backbones.md"
CHOICE = ROOT / "src" / "crossdistill" / "models" / "zoo.csv"
COLUMNS = (
    "file", "name", "family", "image_size", "parameters", "num_stages", "stages", "any_size", "reason", "timm",
    "device", "torch", "commit", "command", "date",
)  # fmt: skip
ENVIRONMENT = environment()
BEGIN, END = "<!-- coverage:begin -->", "<!-- coverage:end -->"


def variants() -> list[str]:
    """The names that timm registers itself, without its own test networks."""
    return [name for name in timm.list_models() if file_of(name) != _OWN and not name.startswith("test_")]


_OWN = additions.__name__.rpartition(".")[2]


def measure(names: list[str]) -> None:
    """Append a row for every network that has none yet."""
    done = {row["name"] for row in read()}
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    with ROWS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for index, name in enumerate(names, start=1):
            if name not in done:
                row = row_of(name)
                writer.writerow(row)
                file.flush()
                print(f"{index}/{len(names)} {name}: {row.get('stages') or '-'} {row['reason']}", flush=True)


def row_of(name: str) -> dict[str, object]:
    """What one network gives; one that timm itself cannot build says so."""
    facts = {"timm": timm.__version__, **origin(ENVIRONMENT, shlex.join(["python", *sys.argv]))}
    try:
        found = cover(name)
    except Exception as error:  # constructors that cannot run on the meta device, or at all
        return {"file": file_of(name), "name": name, "num_stages": 0, "reason": f"not built: {error}", **facts}
    return {
        "file": found.file,
        "name": name,
        "family": found.family,
        "image_size": found.image_size,
        "parameters": found.num_parameters,
        "num_stages": len(found.stages),
        "stages": ", ".join(stage.describe() for stage in found.stages),
        "any_size": found.any_size,
        "reason": found.reason,
        **facts,
    }


def read() -> list[dict[str, str]]:
    """The rows so far."""
    if not ROWS.is_file():
        return []
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_page() -> None:
    """Put the table of files into the page, between its marks."""
    by_file: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read():
        by_file[row["file"]].append(row)
    registered = Counter(map(file_of, variants()))
    lines = [
        "| File of timm | With three or more | Smallest variant | Family | px | Stages: channels/stride layout |",
        "|---|---|---|---|---|---|",
    ]
    for file, name in smallest_variants().items():
        rows = by_file[file]
        smallest = next(row for row in rows if row["name"] == name)
        enough = sum(int(row["num_stages"]) >= ENOUGH_STAGES for row in rows)
        stages = "; ".join(text for text in (smallest["stages"], smallest["reason"]) if text)
        share = f"{enough} of {len(rows)}" if len(rows) == registered[file] else f"({enough} of {len(rows)} tried)"
        facts = f"`{name}` | {smallest['family']} | {smallest['image_size']}"
        lines.append(f"| {file} | {share} | {facts} | {stages} |")
    rows = read()
    enough = sum(int(row["num_stages"]) >= ENOUGH_STAGES for row in rows)
    files = sum(any(int(row["num_stages"]) >= ENOUGH_STAGES for row in by_file[file]) for file in smallest_variants())
    summary = (
        f"timm {rows[0]['timm']}: {enough} of {len(rows)} networks have three or more stages; so does at least one "
        f"network in {files} of {len(smallest_variants())} files."
    )
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{summary}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


def choose() -> None:
    """The classifier with the fewest parameters in every file."""
    best: dict[str, tuple[int, str]] = {}
    for name in variants():
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=10)
        size = sum(parameter.numel() for parameter in net.parameters())
        if net.num_classes and (size, name) < best.get(file_of(name), (size + 1, "")):
            best[file_of(name)] = (size, name)
    lines = ["file,smallest", *(f"{file},{name}" for file, (_, name) in sorted(best.items()))]
    CHOICE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=[], help="every variant of these files of timm")
    parser.add_argument("--all", action="store_true", help="every variant instead of the smallest of each file")
    parser.add_argument("--table", action="store_true", help="only write docs/backbones.md")
    parser.add_argument("--choose", action="store_true", help="only renew the list of smallest variants")
    options = parser.parse_args()
    if options.choose:
        choose()
    elif options.table:
        write_page()
    else:
        first = [name for name in variants() if file_of(name) in options.files]
        first = first or list(smallest_variants().values())
        measure(list(dict.fromkeys(first + variants())) if options.all else first)


if __name__ == "__main__":
    main()
