"""Tar shards as WebDataset has them, and a web server on this machine that gives them out, or breaks off."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image


def write(path: Path, members, *, form=tarfile.PAX_FORMAT) -> Path:
    """A tar file of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, image: Image.Image, label, *, kind="png") -> list[tuple[str, bytes]]:
    """The members of a sample: the image, and its label as text."""
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG"}[kind])
    return [(f"{key}.{kind}", buffer.getvalue()), (f"{key}.cls", str(label).encode())]


def from_folder(root: Path, out: Path, *, num_shards: int, split: str) -> list[Path]:
    """The images of ``root`` (one folder a class), dealt out over shards, with numbers as labels; and where each is.

    Sample k of the folder's order goes to shard k modulo the number of shards.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    classes = sorted({file.parent.name for file in files})
    shards: list[list[tuple[str, bytes]]] = [[] for _ in range(num_shards)]
    for index, file in enumerate(files):
        label = str(classes.index(file.parent.name)).encode()
        shards[index % num_shards] += [(f"{index:06d}{file.suffix}", file.read_bytes()), (f"{index:06d}.cls", label)]
    return [write(out / f"{split}-{number:03d}.tar", members) for number, members in enumerate(shards)]


class Server(ThreadingHTTPServer):
    """Serves the files of a folder; ``broken[name]`` counts requests still to be broken off, after ``after`` bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requests = folder, []
        self.broken: dict[str, int] = {}
        self.after = 5000

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        self.server.requests.append(name)
        file = self.server.folder / name
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        left = self.server.broken.get(name, 0)
        self.server.broken[name] = max(0, left - 1)
        try:
            self.wfile.write(content[: self.server.after] if left else content)
        except (BrokenPipeError, ConnectionResetError):
            return
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
