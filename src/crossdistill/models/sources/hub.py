"""Networks of the Hugging Face hub, by id or as a folder: timm's go to timm, transformers' are wrapped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn

from crossdistill.errors import InputError
from crossdistill.models.checkpoint import Checkpoint
from crossdistill.models.create import create
from crossdistill.models.sources import transformers
from crossdistill.models.sources.source import Head, Request

CONFIG = "config.json"
TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""

ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = [CONFIG, "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


class Hub:
    """``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``: always with its weights, from the hub or its cache."""

    prefix = "hf-hub:"
    always_trained = True

    def check(self, name: str) -> None:
        """Raises: InputError: not an id."""
        if not ID.fullmatch(name.partition("@")[0]):
            raise InputError(
                f"model {self.prefix + name!r}",
                "hf-hub:OWNER/NAME, or OWNER/NAME@REVISION",
                "write the repository's id",
            )

    def published(self, name: str) -> Head | None:
        """The classifier that the repository's configuration describes."""
        config = self.config(name)
        if is_transformers(config):
            return transformers.head(config, self.prefix + name)
        saved = Checkpoint(Path(name), Path(name) / CONFIG, config)
        number = saved.num_classes or (config.get("pretrained_cfg") or config).get("num_classes")
        return Head(number, saved.class_names) if number else None

    def classifiers(self, name: str) -> tuple[str, ...]:
        """Not asked for: the configuration states the number of classes."""
        return ()

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """As it is."""
        return checkpoint

    def create(self, request: Request) -> nn.Module:
        """The network with its own weights, or as an export of ours describes it."""
        full = self.prefix + request.name
        if request.checkpoint is not None and transformers.SAVED in request.checkpoint.config:
            return transformers.rebuild(request, full)
        if not is_transformers(self.config(request.name)):
            options = {"num_classes": request.num_classes, **request.args}
            return create(full, None, options, request.size, pretrained=request.pretrained)
        return transformers.load(request, full, self.folder(request.name))

    def config(self, name: str) -> dict[str, Any]:
        """What the repository's config.json says.

        Raises:
            InputError: it cannot be had, is not JSON, or names neither a network of timm nor one of transformers.
        """
        config = _read(self.fetch(name), self.prefix + name)
        if not is_transformers(config) and not config.get("architecture"):
            raise InputError(
                f"{self.prefix}{name}, whose {CONFIG} names no network",
                "a repository of timm ('architecture') or of transformers ('model_type')",
                "choose another repository",
            )
        return config

    def fetch(self, name: str) -> Path:
        """The path of config.json in the cache."""
        repository, _, revision = name.partition("@")
        try:
            _reach(repository, revision or None)
            return Path(huggingface_hub.hf_hub_download(repository, CONFIG, revision=revision or None))
        except Exception as error:  # no network, no such repository, no access, an empty cache
            raise _not_fetched(self.prefix + name, error) from error

    def folder(self, name: str) -> Path:
        """The folder in the cache, with weights as safetensors only."""
        repository, _, revision = name.partition("@")
        try:
            return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=FILES))
        except Exception as error:  # as above
            raise _not_fetched(self.prefix + name, error) from error


class Folder(Hub):
    """A folder on disk in the layout of transformers."""

    prefix = ""

    def check(self, name: str) -> None:
        """Whether it is there is seen when it is read."""

    def fetch(self, name: str) -> Path:
        """Its config.json."""
        return self.folder(name) / CONFIG

    def folder(self, name: str) -> Path:
        """The folder itself."""
        return Path(name).expanduser()


def is_transformers(config: dict[str, Any]) -> bool:
    """Whether a config.json is of transformers; timm's names no type of model."""
    return "model_type" in config


def is_transformers_folder(path: str) -> bool:
    """Whether a path is a folder in transformers' own layout."""
    config = Path(path).expanduser() / CONFIG
    return config.is_file() and is_transformers(_read(config, path))


def _reach(repository: str, revision: str | None) -> None:
    """One request for what is not in the cache, since a download without a network goes on trying, and prints that."""
    cached = huggingface_hub.try_to_load_from_cache(repository, CONFIG, revision=revision)
    if not isinstance(cached, str) and not huggingface_hub.constants.HF_HUB_OFFLINE:
        url = huggingface_hub.hf_hub_url(repository, CONFIG, revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{name}: {CONFIG}: {error}", "valid JSON", "fetch it again") from error
    return config if isinstance(config, dict) else {}


def _not_fetched(name: str, error: Exception) -> InputError:
    reason = next(iter(str(error).strip().splitlines()), "")
    return InputError(
        f"{name}: {type(error).__name__}: {reason}",
        f"a repository on the Hugging Face hub with {CONFIG}, or a copy of it in the cache",
        "check its name and the network; a folder on disk can be given by its path",
    )
