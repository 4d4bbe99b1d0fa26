"""A federation on one machine as if on many: a SuperLink, SuperNodes and an operator as processes, over TLS, with keys.

Import it after ``pytest.importorskip`` of flwr and psutil.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from crossdistill.federated.app_folder import write_connection
from crossdistill.federated.certificates import Certificates
from crossdistill.federated.environment import QUIET

PROGRAMS = Path(sys.executable).parent
PATIENCE = 300
"""Seconds after which nothing that is waited for will come any more; none of it takes a tenth on two free cores."""

TINY = {
    "name": "timm/vit_tiny_patch16_224",
    "image_size": 16,
    "args": {"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
}
"""A network that costs next to nothing beside the start of a process."""


@dataclass
class Machines:
    """Processes that stand for machines: each with its own group, its own folder of Flower and its own log.

    ``poll`` is how often, in seconds, a node looks for work that came: many nodes take a core with that alone.
    """

    folder: Path
    poll: float = 0.1
    started: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str, program: str, *arguments: object) -> None:
        """Start a machine, or start it again; its log goes on."""
        command = [str(PROGRAMS / program), *map(str, arguments)]
        options = {"env": self.environment(name), "stdin": subprocess.DEVNULL, "start_new_session": True}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(command, stdout=log, stderr=log, **options)

    def call(self, *arguments: object) -> dict:
        """The JSON that a command of `flwr` prints, run by the operator."""
        command = [str(PROGRAMS / "flwr"), *map(str, arguments), "--format", "json"]
        options = {"env": self.environment("operator"), "capture_output": True, "text": True, "timeout": PATIENCE}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}\n{self.story()}"
        return json.loads(done.stdout)

    def environment(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            **QUIET,
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",  # Flower starts programs of its own by their names
            "FLWR_HOME": str(self.home(name)),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(self.poll),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def home(self, name: str) -> Path:
        return self.folder / name / "flwr"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def until(self, condition, what: str, *, alive: Sequence[str] = (), every: float = 0.1) -> None:
        """Wait for a condition as long as these processes live; ``every`` so many seconds it is asked for."""
        end = time.monotonic() + PATIENCE
        while not condition():
            dead = [name for name in alive if self.started[name].poll() is not None]
            if dead or time.monotonic() > end:
                pytest.fail(f"{what}: {f'{dead} ended' if dead else 'never'}\n{self.story()}")
            time.sleep(every)

    def ended(self, name: str) -> int:
        self.until(lambda: self.started[name].poll() is not None, f"the end of {name}")
        return self.started[name].returncode

    def story(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {name}\n{self.log(name)[-3000:]}" for name in self.started)

    def family(self, name: str) -> list[psutil.Process]:
        """What runs on a machine: the process that was started, and what that started, which may have left its group.

        Nothing where the first has ended.
        """
        process = self.started[name]
        if process.poll() is not None:
            return []
        first = psutil.Process(process.pid)
        return [first, *first.children(recursive=True)]

    def cut_power(self, name: str) -> None:
        """Kill all that runs on a machine, without a word to anybody."""
        for one in self.family(name):
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self.started[name].wait()

    def stop(self) -> None:
        """End all that was started."""
        for name, process in self.started.items():
            self.cut_power(name)
            try:  # what was left behind by a machine that ended before
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def answers(port: int) -> bool:
    with closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def start_link(machines: Machines, keys: Certificates, port: int, *more: object) -> str:
    """The SuperLink, once it answers; its address."""
    files = ("--ssl-ca-certfile", keys.authority, "--ssl-certfile", keys.server, "--ssl-keyfile", keys.server_key)
    options = ("--enable-supernode-auth", "--disable-runtime-dependency-installation", "--port", port)
    machines.start("superlink", "flower-superlink", *files, *options, *more)
    machines.until(lambda: answers(port), "an answer of the SuperLink", alive=("superlink",))
    return f"localhost:{port}"


def register(machines: Machines, keys: Certificates, link: str, sites: Sequence[str]) -> list[str]:
    """Have the operator connect to the SuperLink, as `fed`, and register the keys of sites; their numbers as nodes."""
    write_connection(machines.home("operator"), "fed", address=link, authority=keys.authority)
    public = [keys.node_public(site) for site in sites]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda key: machines.call("supernode", "register", key, "fed")["node-id"], public))


def start_node(
    machines: Machines,
    name: str,
    facts: Mapping[str, int | str],
    *more: str,
    link: str,
    authority: Path,
    key: Path,
    port: int,
) -> None:
    """A SuperNode with a file of its own facts; its port is for its own processes."""
    path = machines.folder / name / "node.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {**facts, "folder": str(machines.folder / name / "state"), "device": "cpu"}
    path.write_text("".join(f"{word} = {json.dumps(value)}\n" for word, value in whole.items()))
    trust = ("--root-certificates", authority, "--superlink", link, "--auth-supernode-private-key", key)
    machines.start(name, "flower-supernode", *trust, "--node-config", path, "--port", port, *more)


def recorded(out: Path) -> list[dict]:
    """The rounds that the server has written."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def statuses(one_round: dict) -> dict[str, str]:
    return {client: facts["status"] for client, facts in one_round["clients"].items()}
