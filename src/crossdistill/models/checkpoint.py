"""Reading weights from disk without ever unpickling code."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from crossdistill.errors import InputError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRAPPINGS = ("state_dict", "model")
STUDENT_FOLDER = "student"
PROBED = "linear_top1"
"""Among the metrics of an export: its classifier is a linear probe, of this accuracy."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk and what the configuration beside them says; tensors are read when asked for."""

    given: Path
    file: Path
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """The folder in timm's layout, if it is one."""
        return self.file.parent if self.config else None

    @property
    def architecture(self) -> str | None:
        """The architecture that the configuration names."""
        name = self.config.get("architecture")
        return str(name) if name else None

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier, where the configuration states them."""
        stated = self.config.get("num_classes")
        return stated if isinstance(stated, int) else None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the logits, where they are recorded.

        Raises:
            InputError: names without an order.
        """
        names = self.config.get("label_names") or (self.config.get("pretrained_cfg") or {}).get("label_names")
        if isinstance(names, dict):
            names = _by_index(names, self.given)
        return tuple(str(name) for name in names) if names else None

    @property
    def holds_probe(self) -> bool:
        """Whether the classifier is a linear probe that was fitted to a representation learnt without labels."""
        facts = self.config.get("crossdistill") or {}
        return PROBED in (facts.get("metrics") or {})

    @property
    def model_args(self) -> dict[str, Any]:
        """Arguments with which the saved network was built."""
        return dict(self.config.get("model_args") or {})

    def num_rows(self, modules: Iterable[str]) -> int | None:
        """Rows of the first of these modules whose weight is saved; None where none is. Of a classifier: its classes.

        Raises:
            InputError: a file that cannot be read.
        """
        shapes = _safetensors_shapes(self.file) if self.file.suffix == ".safetensors" else self._shapes()
        saved = (shapes[f"{module}.weight"] for module in modules if f"{module}.weight" in shapes)
        return next((shape[0] for shape in saved if shape), None)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(tensor.shape) for key, tensor in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The state dict on the CPU.

        Raises:
            InputError: a truncated file, a pickle with code in it, or no state dict.
        """
        return _read_safetensors(self.file) if self.file.suffix == ".safetensors" else _read_torch(self.file)


def locate(given: str | Path) -> Checkpoint:
    """The checkpoint at a path: a weights file, a folder in timm's layout, or a run folder.

    Raises:
        InputError: nothing there, no weights in it, or a broken configuration.
    """
    path = Path(given).expanduser()
    if not path.exists():
        raise InputError(
            f"checkpoint {str(given)!r}, which does not exist",
            "a .safetensors or .pth file, a run folder or one in timm's layout; `distill --teacher` also takes a store",
            "check the path",
        )
    folder = path / STUDENT_FOLDER if (path / STUDENT_FOLDER).is_dir() else path
    file = path if path.is_file() else _weights_in(folder, given)
    if file.suffix != ".safetensors" and file.suffix not in TORCH_SUFFIXES:
        raise InputError(
            f"checkpoint {str(given)!r}, a {file.suffix or 'suffixless'} file",
            f"one of .safetensors, {', '.join(TORCH_SUFFIXES)}",
            "save the weights with safetensors",
        )
    return Checkpoint(path, file, _config_beside(file))


def _weights_in(folder: Path, given: str | Path) -> Path:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"folder {str(given)!r} without weights",
        f"{WEIGHT_FILES[0]} and config.json, or {STUDENT_FOLDER}/ with both",
        "check the path; a run that has not finished its first epoch holds no student yet",
    )


def _config_beside(file: Path) -> dict[str, Any]:
    path = file.parent / "config.json"
    if file.name not in WEIGHT_FILES or not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: {error}", "valid JSON as timm writes it", "export the model again") from error
    return config if isinstance(config, dict) else {}


def _by_index(names: dict[str, Any], given: Path) -> list[Any]:
    try:
        return [names[key] for key in sorted(names, key=int)]
    except ValueError as error:
        raise InputError(
            f"config.json of {given}, where label_names has the keys {', '.join(map(repr, list(names)[:3]))}, …",
            "a list of names, or names by index: 0, 1, …",
            "correct label_names in that file, or remove it",
        ) from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with _complete(file):
        return safetensors.torch.load_file(file)


def _safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """From the header alone."""
    with _complete(file), safetensors.safe_open(file, framework="pt") as saved:
        return {key: tuple(saved.get_slice(key).get_shape()) for key in saved.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def _complete(file: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{file}, which cannot be read ({error})",
            "a complete safetensors file",
            "it is truncated or damaged: copy or download it again",
        ) from error


def _read_torch(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain settings in timm's own checkpoints
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}, a pickle that holds more than tensors, or is damaged",
            "a state dict: unpickling could run any code",
            "where you trust it, load it yourself and save its state_dict() with safetensors",
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in any way
        raise InputError(
            f"{file}, which cannot be read ({_first_line(error) or type(error).__name__})",
            "a complete state dict",
            "it is truncated or damaged: copy or download it again",
        ) from error
    return _state_dict(loaded, file)


def _state_dict(loaded: Any, file: Path) -> dict[str, Tensor]:
    for wrapping in WRAPPINGS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapping), dict):
            loaded = loaded[wrapping]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{file}, which holds {type(loaded).__name__}", "a state dict of tensors", "save one")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
