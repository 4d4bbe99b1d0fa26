"""Reading a model's name: which source builds it, and where its weights come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import InputError
from crossdistill.models.checkpoint import Checkpoint, locate
from crossdistill.models.sources import transformers
from crossdistill.models.sources.file import File
from crossdistill.models.sources.hub import Folder, Hub, is_transformers_folder
from crossdistill.models.sources.source import PRETRAINED, Source
from crossdistill.models.sources.timm import Timm
from crossdistill.models.sources.torchvision import Torchvision

TIMM, TORCHVISION, HUB, FOLDER, FILE = Timm(), Torchvision(), Hub(), Folder(), File()

PREFIXES: dict[str, Source] = {
    "torchvision/": TORCHVISION,
    "hf-hub:": HUB,
    "hf_hub:": HUB,
    "file:": FILE,
}
OF_A_FILE = re.compile(r"(?P<name>.+\.py:\w+)@(?P<weights>.+)")


@dataclass(frozen=True, slots=True)
class Named:
    """What a name means: ``name`` as its source knows it, and weights from disk, published ones, or none."""

    source: Source
    name: str
    weights: Checkpoint | str | None = None

    @property
    def full(self) -> str:
        """The name with its prefix, as specifications and exports write it."""
        return f"{self.source.prefix}{self.name}"

    @property
    def is_random(self) -> bool:
        """Whether nothing trained is asked for; a file's function may load what it likes."""
        return self.weights is None and self.source is not FILE

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Weights on disk, if it is these."""
        return self.weights if isinstance(self.weights, Checkpoint) else None


def parse(name: str) -> Named:
    """Find the source of a name and the weights that it asks for.

    Raises:
        InputError: a network that its source does not have, or a checkpoint of another one.
    """
    name = name.removeprefix("timm/").removeprefix("local-dir:")
    for prefix, source in PREFIXES.items():
        if name.startswith(prefix):
            return _of_source(source, name.removeprefix(prefix))
    bare = name.partition("@")[0]
    if TIMM.holds(bare):
        return _of_source(TIMM, name)
    if Path(name).expanduser().exists():
        return _from_path(name)
    if "@" not in name and _looks_like_path(name):
        locate(name)
    TIMM.check(bare)
    return Named(TIMM, bare)


def _of_source(source: Source, text: str) -> Named:
    if text.endswith("@"):
        raise InputError(
            f"model {source.prefix + text!r}, with nothing after the @",
            f"weights: {text}PATH or {text}{PRETRAINED}",
            "name them, or drop the @",
        )
    name, weights = _split(source, text)
    source.check(name)
    if not weights:
        return Named(source, name, PRETRAINED if source.always_trained else None)
    if weights == PRETRAINED:
        return Named(source, name, PRETRAINED)
    named = Named(source, name, source.read(locate(weights)))
    _check_same(named)
    return named


def _split(source: Source, text: str) -> tuple[str, str]:
    """The name and what follows ``@``; a revision of the hub belongs to the name, and so may a folder's ``@``."""
    if source is FILE:
        parts = OF_A_FILE.fullmatch(text)
        return (parts["name"], parts["weights"]) if parts else (text, "")
    if source is HUB:
        name, _, revision = text.partition("@")
        return (name, "") if revision in ("", PRETRAINED) else (text, "")
    name, _, weights = text.partition("@")
    return name, weights


def _looks_like_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in (".safetensors", ".pt", ".pth")


def _from_path(path: str) -> Named:
    if is_transformers_folder(path):
        return Named(FOLDER, path, PRETRAINED)
    checkpoint = locate(path)
    architecture = checkpoint.architecture
    if architecture is None:
        raise InputError(
            f"path {path!r} without a config.json that names the architecture",
            "a folder in timm's layout or a run folder",
            f"name the architecture: <name>@{path}",
        )
    if transformers.SAVED in checkpoint.config:
        hub = HUB if architecture.startswith(HUB.prefix) else FOLDER
        return Named(hub, architecture.removeprefix(hub.prefix), checkpoint)
    prefix = next((prefix for prefix in PREFIXES if architecture.startswith(prefix)), "")
    source, name = PREFIXES.get(prefix, TIMM), architecture.removeprefix(prefix)
    try:
        source.check(name)
    except InputError as error:
        given = f"{path!r}, whose config.json names the architecture {architecture!r}"
        raise InputError(f"{given} ({error.given})", error.expected, error.action) from error
    return Named(source, name, source.read(checkpoint))


def _check_same(named: Named) -> None:
    """A folder that names its architecture must name this one; Python files may have moved."""
    checkpoint = named.checkpoint
    saved = checkpoint.architecture if checkpoint is not None else None
    expected = named.name.partition(".")[0] if named.source is TIMM else named.full
    if checkpoint is not None and saved not in (None, expected) and named.source is not FILE:
        raise InputError(
            f"{checkpoint.given}, a checkpoint of {saved!r}",
            f"a checkpoint of {named.full!r}",
            f"use {saved}@{checkpoint.given}, or just the path",
        )
