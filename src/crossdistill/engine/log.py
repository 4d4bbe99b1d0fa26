"""``metrics.jsonl`` and TensorBoard events, written as the run goes, with nothing twice after a resume."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from crossdistill.files import write_text, writing

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


class MetricsLog:
    """One JSON object a line, flushed at once: ``{"kind": "train" | "eval", "step": …, "epoch": …, figures}``.

    Args:
        out: the run folder.
        step: where the run goes on from; lines of later steps, and of evaluations that are to be made again, are
            dropped.
        evaluated: steps whose evaluation counts as done.

    Raises:
        InputError: the folder cannot be written, here and in :meth:`write`.
    """

    def __init__(self, out: Path, *, step: int, evaluated: Collection[int]) -> None:
        # TensorBoard takes two seconds to import, which runs without a folder need not wait for.
        from torch.utils.tensorboard import SummaryWriter

        self._out = out
        path = out / METRICS
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read(path) if _counts(line, step, evaluated)]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(out / EVENTS), purge_step=step + 1 if step else None)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, and its figures as events."""
        with writing(self._out):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in _figures(line).items():
                self._events.add_scalar(f"{line['kind']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flush both files."""
        with writing(self._out):
            self._file.close()
            self._events.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, none where it is missing; a last line cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _counts(line: dict[str, Any], step: int, evaluated: Collection[int]) -> bool:
    return bool(line["step"] in evaluated if line["kind"] == "eval" else line["step"] <= step)


def _figures(line: dict[str, Any]) -> dict[str, float]:
    flat = {
        **{k: v for k, v in line.items() if k not in ("kind", "step")},
        **line.get("losses", {}),
        **line.get("figures", {}),
    }
    return {name: value for name, value in flat.items() if isinstance(value, (int, float))}
