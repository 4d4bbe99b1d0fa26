"""The smallest classifier of every file of timm: what coverage is shown on, and what the tests build."""

from __future__ import annotations

import csv
from importlib import resources


def smallest_variants() -> dict[str, str]:
    """The name of the smallest variant by the name of timm's file (``benchmarks/coverage.py --choose`` renews them).

    timm's own test networks are left out, since nobody trains them.
    """
    text = resources.files("crossdistill.models").joinpath("zoo.csv").read_text(encoding="utf-8")
    return {row["file"]: row["smallest"] for row in csv.DictReader(text.splitlines())}
