"""What a store is: whose answers to which images, how much of them is kept, and how they are cut into shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.differences import differences
from crossdistill.errors import InputError

FILE = "manifest.json"
KIND = "crossdistill-store"
SCHEMA = 1

LARGEST_ID = 2**32 - 1
"""Sample ids are kept as uint32."""
LARGEST_OCCURRENCE = 2**16 - 1
"""How often a sample came before in its epoch is kept as uint16."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What of each answer is kept.

    Attributes:
        top_k: the so many largest logits of an image, fp16, and the log of the remaining mass; ``None``: all logits,
            fp16.
        embeddings: each teacher's embedding too, fp16.
    """

    top_k: int | None = None
    embeddings: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a shard: numpy's name of its type, and the shape of one row."""

    dtype: str
    row: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.row, dtype=np.int64))


@dataclass(frozen=True)
class Manifest:
    """The facts of a store that all its shards share.

    ``keep.top_k`` of all classes or more is kept as all logits: that says the same in fewer bytes.

    Attributes:
        identity: what makes the answers what they are, by section ("teacher", "images", …); plain JSON, compared.
        facts: what was measured, or is for readers; plain JSON, not compared.
        num_classes: classes K of the logits.
        num_samples: positions that an epoch has.
        shard_size: positions that a shard holds; the last may hold fewer.
        keep: what of each answer is kept.
        embedding_dims: one a teacher, () if no embeddings are kept.

    Raises:
        InputError: sizes below 1, embeddings without their sizes or sizes without embeddings, or values that are no
            plain JSON.
    """

    identity: Mapping[str, Any]
    facts: Mapping[str, Any]
    num_classes: int
    num_samples: int
    shard_size: int
    keep: Keep
    embedding_dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(self)
        plain: dict[str, Any] = {"identity": _plain(self.identity, "identity"), "facts": _plain(self.facts, "facts")}
        plain |= {name: int(getattr(self, name)) for name in ("num_classes", "num_samples", "shard_size")}
        plain["embedding_dims"] = tuple(int(dim) for dim in self.embedding_dims)
        if self.keep.top_k is not None and self.keep.top_k >= self.num_classes:
            plain["keep"] = replace(self.keep, top_k=None)
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def num_shards(self) -> int:
        """Shards of one epoch."""
        return -(-self.num_samples // self.shard_size)

    def positions(self, shard: int) -> range:
        """The positions of an epoch's order whose answers this shard holds."""
        if not 0 <= shard < self.num_shards:
            raise InputError(f"shard {shard}", f"one of the {self.num_shards} shards of an epoch", "give one of these")
        return range(shard * self.shard_size, min(self.num_samples, (shard + 1) * self.shard_size))

    def layout(self) -> dict[str, Field]:
        """The tensors of every shard by name."""
        answer = {"id": Field("uint32"), "occurrence": Field("uint16"), "shift": Field("float32")}
        if self.keep.top_k is None:
            answer["logits"] = Field("float16", (self.num_classes,))
        else:
            answer["values"] = Field("float16", (self.keep.top_k,))
            answer["classes"] = Field(class_dtype(self.num_classes), (self.keep.top_k,))
            answer["rest"] = Field("float16")
        return answer | {f"embedding{i}": Field("float16", (dim,)) for i, dim in enumerate(self.embedding_dims)}

    def bytes_per_sample(self) -> int:
        """Bytes on disk for one answer with the key it is found by; a shard's header, about 1 KB, comes on top."""
        return sum(field.bytes for field in self.layout().values())

    def fingerprint(self) -> str:
        """A hash that names whose answers these are and how they are kept; more epochs do not change it."""
        return self._fingerprint  # every shard's header is compared with it, and class names may be many

    @cached_property
    def _fingerprint(self) -> str:
        return _hash({key: value for key, value in _tree(self).items() if key != "facts"})

    def differences(self, now: Manifest) -> list[str]:
        """What another manifest says otherwise, ``facts`` aside."""
        aside = {"facts"} | ({"embedding_dims"} if self.keep.embeddings != now.keep.embeddings else set())
        old, new = ({key: value for key, value in _tree(one).items() if key not in aside} for one in (self, now))
        return list(differences(old, new, was="stored").values())

    def made_by(self, num_epochs: int) -> str:
        """A phrase for the command that fills so many epochs: the one which began the store, where that is known."""
        command = self.facts.get("command")
        if not isinstance(command, str) or "--epochs" not in command:  # begun from Python
            return f"the command that made the store, with --epochs {num_epochs}"
        command = re.sub(r" --part[ =]\S+", "", command)  # that of one job of many
        return "`" + re.sub(r"--epochs[ =]\S+", f"--epochs {num_epochs}", command) + "`"

    def to_json(self) -> bytes:
        """The content of ``manifest.json``."""
        body: dict[str, Any] = {"kind": KIND, "schema": SCHEMA} | _tree(self)
        return json.dumps(body | {"sha256": _hash(body)}, indent=1).encode() + b"\n"


def class_dtype(num_classes: int) -> str:
    """The smallest type that counts so many classes.

    >>> class_dtype(256), class_dtype(257), class_dtype(65_536), class_dtype(65_537)
    ('uint8', 'uint16', 'uint16', 'int32')
    """
    return "uint8" if num_classes <= 2**8 else "uint16" if num_classes <= 2**16 else "int32"


def is_store(path: Path) -> bool:
    """Whether a folder is a store, be its manifest damaged or lost."""
    try:
        content = json.loads((path / FILE).read_bytes())
    except OSError:
        return has_lost_manifest(path)
    except ValueError:
        return any(path.glob("epoch-*"))
    return isinstance(content, dict) and content.get("kind") == KIND


def has_lost_manifest(path: Path) -> bool:
    """Whether a folder has the shards of a store, but not what says whose they are."""
    return not (path / FILE).exists() and any(path.glob("epoch-*/shard-*.safetensors"))


def check_manifest(path: Path) -> None:
    """Refuse a store whose manifest was lost.

    Raises:
        InputError: likewise.
    """
    if has_lost_manifest(path):
        raise InputError(
            f"{path}, a store without its {FILE}",
            "the manifest as it was written",
            "restore it from a backup, or store the answers anew in another folder",
        )


def load(path: Path) -> Manifest:
    """Read the manifest of the store at ``path``.

    Raises:
        InputError: there is none, it is damaged, of something else, or of a newer version.
    """
    file = path / FILE
    check_manifest(path)
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}, whose {FILE} cannot be read ({error.strerror})",
            "a folder that `crossdistill store` has made",
            "check the path",
        ) from error
    except ValueError as error:
        raise _damaged(file, f"no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(
            f"{file}, which is no store's",
            f'a manifest of kind "{KIND}"',
            "give a folder that `crossdistill store` made",
        )
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(
            f"store {path} of schema {schema}",
            f"schema {SCHEMA} or older",
            "read it with the crossdistill that wrote it",
        )
    if content.pop("sha256", None) != _hash(content):
        raise _damaged(file, "its content does not match its hash")
    try:
        return _from_tree(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def _from_tree(content: dict[str, Any]) -> Manifest:
    values = {field.name: content[field.name] for field in fields(Manifest)}
    return Manifest(**values | {"keep": Keep(**values["keep"]), "embedding_dims": tuple(values["embedding_dims"])})


def _tree(manifest: Manifest) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
    return tree


def _hash(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _plain(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(tree, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a store's {name} that JSON cannot hold ({error})",
            "plain values: texts, finite numbers, true, false, null, and lists and mappings of these",
            "turn the others into texts",
        ) from error
    return plain


def _check(manifest: Manifest) -> None:
    keep, dims = manifest.keep, manifest.embedding_dims
    sizes = {"num_classes": manifest.num_classes, "num_samples": manifest.num_samples}
    sizes |= {"shard_size": manifest.shard_size} | ({} if keep.top_k is None else {"top_k": keep.top_k})
    small = [f"{name} {size}" for name, size in sizes.items() if size < 1]
    if small:
        raise InputError(f"a store with {', '.join(small)}", "at least 1 of each", "give larger numbers")
    if keep.embeddings != bool(dims) or any(dim < 1 for dim in dims):
        raise InputError(
            f"a store with embeddings {'kept' if keep.embeddings else 'not kept'} and embedding sizes {dims}",
            "the size of each teacher's embedding where they are kept, and none where they are not",
            "give both or neither",
        )


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file}, which is damaged: {reason}",
        "the manifest as it was written",
        "restore it from a backup, or store the answers anew in another folder",
    )
