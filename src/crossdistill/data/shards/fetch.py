"""Remote shards, one after the other as they come: fetched and taken apart by the ``webdataset`` package."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from crossdistill.data.shards.index import IMAGE_SUFFIXES, LABEL_SUFFIXES, label_text
from crossdistill.data.source import CorruptImage
from crossdistill.errors import InputError

PAUSES = (1.0, 4.0, 15.0)
"""Seconds before each new attempt at a shard that gave nothing new; webdataset itself waits for a busy server."""

_REFUSED = 22
_WORDS = {
    5: "its proxy is unknown",
    6: "its server is unknown",
    7: "its server does not answer",
    18: "the connection broke",
    _REFUSED: "the server refuses it, or does not have it",
    28: "the server took too long",
    35: "no secure connection",
    52: "the server sent nothing",
    56: "the connection broke",
    60: "the server's certificate is not trusted",
}
"""Exit statuses of curl, with which webdataset fetches."""


@dataclass(frozen=True, slots=True)
class RemoteSample:
    """The members of one sample of a remote shard, by suffix."""

    url: str
    key: str
    members: Mapping[str, bytes]

    @property
    def where(self) -> str:
        """Shard and key, for messages."""
        return f"{self.url}, sample {self.key!r}"

    @property
    def sample_id(self) -> int:
        """63 bits that stand for the shard's name and the key, the same in every run and on every server."""
        name = urlsplit(self.url).path.rpartition("/")[2]
        digest = hashlib.blake2b(f"{name}/{self.key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def image(self) -> bytes:
        """The encoded image; raises :class:`CorruptImage` where there is none."""
        return self._first(IMAGE_SUFFIXES, "image")[1]

    def label(self) -> str:
        """The label's text; raises :class:`CorruptImage` where there is none."""
        try:
            label = label_text(*self._first(LABEL_SUFFIXES, "label"), self.where)
        except InputError as error:
            raise CorruptImage(self.where, f"its label is no {error.expected}") from error
        if label is None:
            raise CorruptImage(self.where, "no label")
        return label

    def _first(self, suffixes: tuple[str, ...], what: str) -> tuple[str, bytes]:
        suffix = next((suffix for suffix in suffixes if suffix in self.members), None)
        if suffix is None:
            raise CorruptImage(self.where, f"no {what}")
        return suffix, self.members[suffix]


def check_can_fetch() -> None:
    """Refuse remote shards where what fetches them is not installed."""
    if importlib.util.find_spec("webdataset") is None:
        raise InputError(
            "remote shards, but the package webdataset is not installed",
            "the extra 'data'",
            "install crossdistill[data], or fetch the shards and give their path",
        )
    if shutil.which("curl") is None:
        raise InputError(
            "remote shards, but the program curl is not installed",
            "curl, with which webdataset fetches",
            "install curl, or fetch the shards and give their path",
        )


def fetch(url: str) -> Iterator[RemoteSample]:
    """The samples of a shard, each once and in order; a broken connection is taken up where it broke.

    Raises:
        InputError: a shard that cannot be fetched to its end after several attempts.
    """
    done, failures = 0, 0
    while True:
        before = done
        try:
            for sample in islice(_samples(url), done, None):
                done += 1
                yield sample
            return
        except _FetchError as error:
            failures = failures + 1 if done == before else 1
            if error.is_final or failures > len(PAUSES):
                raise _given_up(url, error) from error
        time.sleep(PAUSES[failures - 1])


class _FetchError(Exception):
    """An attempt that did not reach the end of a shard; ``is_final`` where another would not either."""

    def __init__(self, reason: str, *, is_final: bool) -> None:
        self.is_final = is_final
        super().__init__(reason)


def _given_up(url: str, error: Exception) -> InputError:
    return InputError(f"shard {url}: {error}", "a complete tar file", "check the address and the server, and resume")


def _samples(url: str) -> Iterator[RemoteSample]:
    """One attempt. A sample is handed on when the next one begins, or when the end is known to be the true one."""
    from webdataset.gopen import gopen_curl

    stream = gopen_curl(url)
    try:
        waiting = None
        for sample in _taken_apart(url, stream):
            if waiting is not None:
                yield waiting
            waiting = sample
        _read_to_the_end(stream)
        if waiting is not None:
            yield waiting
    except (GeneratorExit, _FetchError):
        raise
    except Exception as error:
        raise _explained(stream, error) from error
    finally:
        stream.ignore_errors = True
        stream.proc.kill()
        stream.close()


def _taken_apart(url: str, stream: Any) -> Iterator[RemoteSample]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
        members = {suffix: content for suffix, content in sample.items() if isinstance(content, bytes)}
        yield RemoteSample(url, sample["__key__"], members)


def _read_to_the_end(stream: Any) -> None:
    """Read what follows the last member: only empty blocks, or a header was broken; then ask how the fetch went."""
    while block := stream.stream.read(1 << 20):
        if any(block):
            raise _FetchError("a header in it is broken, so that not all of it can be read", is_final=True)
    stream.wait_for_child()


def _explained(stream: Any, error: Exception) -> _FetchError:
    """Why an attempt failed: curl's own status where it has one, else what was wrong with the content."""
    stream.stream.close()
    try:
        status = stream.proc.wait(timeout=10)
    except subprocess.TimeoutExpired:
        status = 0
    if status in _WORDS:
        return _FetchError(_WORDS[status], is_final=status == _REFUSED)
    return _FetchError(str(error.args[0]) if error.args else type(error).__name__, is_final=False)
