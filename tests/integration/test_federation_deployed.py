"""A deployed federation: a SuperLink and three SuperNodes as processes, over TLS, with node authentication.

All are launched once. A node dies in the second round, as if its power failed; one without a registered key and one
that trusts another authority try to take part.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("psutil")  # comes with accelerate

import numpy as np

from crossdistill.federated.app_folder import write_app
from crossdistill.federated.certificates import make_certificates
from crossdistill.federated.client_app import build_app
from crossdistill.federated.direct import DirectGrid
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import load_settings
from samples.machines import (
    PATIENCE,
    TINY,
    Machines,
    free_ports,
    recorded,
    register,
    start_link,
    start_node,
    statuses,
)

SITES = ("site-a", "site-b", "site-c")

IDLE = ("--isolation", "process")
"""A node that starts nothing to work with, since it is not let in."""

SETTINGS = {
    "models": [TINY],
    "clients": 3,
    "rounds": 2,
    "data": {"source": "digits"},
    "partition": {"alpha": 5.0, "samples": 60},
    "transfer": {"limit": 40},
    "train": {"epochs": 1},
    "tune": {"epochs": 1},
    "fusion": {"quorum": 2},
    "patience": PATIENCE,
    "gather": PATIENCE,
    "device": "cpu",
}


@dataclass
class Happened:
    machines: Machines
    out: Path
    run: dict
    port: int

    def rounds(self) -> list[dict]:
        return recorded(self.out)


@pytest.fixture(scope="module")
def happened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation")
    machines = Machines(folder)
    try:
        yield federate(folder, machines)
    finally:
        machines.stop()


def federate(folder: Path, machines: Machines) -> Happened:
    keys = make_certificates(folder / "certs", hosts=("localhost",), nodes=(*SITES, "stranger"))
    foreign = make_certificates(folder / "foreign", hosts=("localhost",))
    port, *others = free_ports(6)
    link = start_link(machines, keys, port)
    nodes = register(machines, keys, link, SITES)
    for number, site in enumerate(SITES):
        join(machines, site, number, link, keys.authority, keys.node(site), others.pop())
    write_app(folder / "trial", load_settings(SETTINGS).model_dump_json(), out=folder / "run")
    machines.start("operator", "flwr", "run", folder / "trial", "fed", "--stream")
    join(machines, "stranger", 2, link, keys.authority, keys.node("stranger"), others.pop(), *IDLE)
    join(machines, "misled", 2, link, foreign.authority, keys.node(SITES[2]), others.pop(), *IDLE)
    machines.until(
        lambda: "ROUND 2]" in machines.log(SITES[2]), "round 2 at a site", alive=("superlink", "operator", *SITES)
    )
    machines.cut_power(SITES[2])
    # What an operator does for a site that is gone; else the SuperLink notices after a minute without a sign of life.
    machines.call("supernode", "unregister", nodes[2], "fed")
    assert machines.ended("operator") == 0, machines.story()
    (run,) = machines.call("list", "fed")["runs"]
    return Happened(machines, folder / "run", run, port)


def join(
    machines: Machines, name: str, number: int, link: str, authority: Path, key: Path, port: int, *more: str
) -> None:
    """A node that takes its part of the whole."""
    facts = {"partition-id": number, "num-partitions": 3}
    start_node(machines, name, facts, *more, link=link, authority=authority, key=key, port=port)


def test_the_run_finishes_with_the_two_that_are_left(happened):
    assert happened.run["status"] == "finished:completed", happened.machines.story()
    first, second = happened.rounds()
    assert statuses(first) == {"0": "ok", "1": "ok", "2": "ok"}
    assert [statuses(second)[client] for client in "01"] == ["ok", "ok"]
    assert second["members"] == [0, 1]  # what was fused in it
    assert second["alma"] > 0


def test_it_says_who_was_absent(happened):
    _, second = happened.rounds()
    assert statuses(second)["2"] == "absent"
    assert any("client 2" in note and "absent" in note for note in second["notes"])
    assert "1 without a usable answer" in happened.machines.log("operator")  # streamed to whoever submitted the run
    assert (happened.out / "results.json").exists()
    assert (happened.out / "report.html").exists()


def test_separate_processes_compute_what_one_does(happened, tmp_path):
    """The same apps, all in this process: the clients' networks, and hence what they weigh, are the same."""
    settings = load_settings({**SETTINGS, "rounds": 1})
    log = RoundLog(tmp_path)
    Federation(settings, log, print).run(DirectGrid(build_app({"folder": str(tmp_path)}), settings.clients))
    first, _ = happened.rounds()
    assert log.rounds[0]["members"] == first["members"] == [0, 1, 2]
    assert np.ptp(first["weights"]) > 1e-3  # and not as good as constant
    np.testing.assert_allclose(first["weights"], log.rounds[0]["weights"], rtol=1e-6)


@pytest.mark.parametrize(("name", "reason"), [("stranger", "code: 2004"), ("misled", "CERTIFICATE_VERIFY_FAILED")])
def test_who_has_no_registered_key_or_trusts_another_authority_is_refused(happened, name, reason):
    assert happened.machines.ended(name) != 0
    log = happened.machines.log(name)
    assert "Exit Code: 305" in log
    assert reason in log
    assert "SuperNode ID" not in log  # which a node gets when it is let in
    assert not (happened.machines.folder / name / "state").exists()


def test_nothing_is_said_without_encryption(happened):
    with socket.create_connection(("127.0.0.1", happened.port), timeout=PATIENCE) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"HTTP" not in plain.recv(1024)


def test_networks_stay_with_their_sites_and_no_code_travels(happened):
    for site in SITES:
        own = happened.machines.folder / site
        assert list((own / "state").rglob("*.safetensors"))
        apps = [path.name for path in (own / "flwr" / "apps").rglob("*") if path.is_file()]
        assert set(apps) <= {"pyproject.toml", "CONTENT"}
        assert "pyproject.toml" in apps
    assert not list(happened.out.rglob("*.safetensors"))
