"""What a client knows from round to round, in a folder of its own: it outlives the process that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.files import write_bytes, writing

KEPT = 2
"""Rounds that are kept: a server that was killed repeats the round that it had not finished."""

_STUDENT, _METHOD, _FACTS = "student.", "method.", "facts"


@dataclass(frozen=True, slots=True)
class Past:
    """A client after a round: weights of its network and its method, and what it would answer of that round.

    ``task`` is the hash of what was asked.
    """

    round: int
    student: Mapping[str, Tensor]
    method: Mapping[str, Tensor]
    figures: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    task: str = ""


class Memory:
    """The last rounds of one client; files are written whole or not at all.

    Args:
        folder: of this client in this federation alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, round_: int) -> Past | None:
        """The newest round up to this one, or ``None`` for a client that has not begun.

        Raises:
            InputError: a file that is damaged.
        """
        found = [number for number in self._rounds() if number <= round_]
        return self._read(max(found)) if found else None

    def keep(self, past: Past) -> None:
        """Write a round, and forget those before the last :data:`KEPT`, and later ones, which are of another run."""
        tensors = {_STUDENT + name: tensor for name, tensor in past.student.items()}
        tensors |= {_METHOD + name: tensor for name, tensor in past.method.items()}
        facts = {"round": past.round, "figures": past.figures, "notes": past.notes, "task": past.task}
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        content = safetensors.torch.save(plain, metadata={_FACTS: json.dumps(facts)})
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._path(past.round), content)
            for number in self._rounds():
                if not past.round - KEPT < number <= past.round:
                    self._path(number).unlink(missing_ok=True)

    def _read(self, round_: int) -> Past:
        path = self._path(round_)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()[_FACTS])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise InputError(
                f"client state {path}, which cannot be read ({type(error).__name__})",
                "what an earlier round wrote",
                "restore the file, or delete it: the client then begins anew",
            ) from error
        return Past(
            student={name.removeprefix(_STUDENT): one for name, one in tensors.items() if name.startswith(_STUDENT)},
            method={name.removeprefix(_METHOD): one for name, one in tensors.items() if name.startswith(_METHOD)},
            **facts,
        )

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:05d}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors"))
