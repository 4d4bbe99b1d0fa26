"""What the words of a vocabulary look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.selfsup.compose import Parts


def draw_words(parts: Parts, folder: Path, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Pictures of the most used words of each level."""
    return []
